"""Rewards, measured: how often a reward model agrees with people, and the mean reward that PPO climbs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_cli.config.evaluate import BestOfNConfig, RewardConfig, RewardModelEvalConfig
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Candidates, HumanPair, PairsOnly, as_messages, content_id, prompt_key
from rlaif_cli.engines import EnginePool
from rlaif_cli.models.metadata import check_reward_model
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.results import agreement, check_preferences, nothing_scored, planned, prompts_of_both, save
from rlaif_cli.stats.agreement import wins
from rlaif_cli.stats.as_json import estimate, rate, rounded
from rlaif_cli.stats.calibration import entropy
from rlaif_cli.train.best_policy import Compare
from rlaif_cli.train.nn.heads import load_reward_model
from rlaif_cli.train.nn.packing import Group
from rlaif_cli.train.reward_function import PromptRow
from rlaif_cli.train.reward_model import log_loss, probability, score_groups, too_long
from rlaif_cli.train.reward_source import (
    RewardReader,
    RewardSource,
    check_reward_source,
    reward_source,
    scores_and_parts,
    why_unscored,
)


def reward_model(config: RewardModelEvalConfig) -> dict[str, Any]:
    """How often the reward model (or the mean probability of several) prefers what people, or labels, prefer.

    Raises:
        InputError: the pairs cannot be used, or none has a preference.
        ModelError: a folder holds no reward model.
    """
    paths = [resolve_model(name) for name in config.reward_model]
    for path in paths:
        check_reward_model(path)
    readers = {path: RewardReader(path) for path in paths}

    def fits(pair: HumanPair) -> str | None:
        reasons = (too_long(_group(pair, readers[path]), config.max_length) for path in paths)
        return next(filter(None, reasons), None)

    rejected = rejected_path(config.output, "reward-model")
    source = Source(config.pairs, HumanPair, skip_invalid=config.skip_invalid, rejected_path=rejected, check=fits)
    pairs = list(source)
    if config.dry_run:
        return planned("reward-model", len(pairs))
    check_preferences(pairs, config.pairs)
    human = np.array([pair.human_fraction_a for pair in pairs])
    scores = np.stack([_pair_scores(path, pairs, readers[path], config) for path in paths])  # [models, pairs, 2]
    p = probability(scores.reshape(-1, 2)).reshape(len(paths), -1).mean(0)
    lengths = np.array([(len(pair.response_a), len(pair.response_b)) for pair in pairs])
    prompts = [pair.cluster for pair in pairs]
    result = {
        "metric": "reward-model",
        "reward_model": list(config.reward_model),
        **agreement(p, human, lengths, [pair.source for pair in pairs], prompts),
        "loss": round(log_loss(p, human), 9),
        "entropy_floor": round(float(entropy(human).mean()), 9),
    }
    items = (
        {
            "id": pair.id,
            "prompt_key": prompt,
            "source": pair.source,
            "p_a": float(probability_a),
            "human_fraction_a": pair.human_fraction_a,
            "length_a": length_a,
            "length_b": length_b,
            "rewards": rewards.tolist(),  # [models, (a, b)], as the models say them
        }
        for pair, prompt, probability_a, (length_a, length_b), rewards in zip(
            pairs, prompts, p, lengths.tolist(), scores.swapaxes(0, 1), strict=True
        )
    )
    return save(config, result, items)


def _group(pair: HumanPair, reader: RewardReader) -> Group:
    return reader.group(as_messages(pair.prompt), (pair.response_a, pair.response_b))


def _pair_scores(path: Path, pairs: list[HumanPair], reader: RewardReader, config: RewardModelEvalConfig) -> Any:
    """[pairs, 2]; the model is held no longer than this takes."""
    model = load_reward_model(path).eval().requires_grad_(False)
    groups = [_group(pair, reader) for pair in pairs]
    return score_groups(model, groups, config.precision, config.tokens_per_batch)


def best_of_n(config: BestOfNConfig, compare: Compare) -> dict[str, Any]:
    """How often a judge prefers the response that scores best to the first, and to a random one.

    A reward model or function can only be of use to a policy if its choice among the policy's own samples is a better
    one. A row in which a response has no score is left out.

    Raises:
        InputError: the candidates cannot be used, a reward function fails, or no comparison could be decided.
        ModelError: a folder holds no reward model.
    """
    check_reward_source(config)
    rejected = rejected_path(config.output, "best-of-n")
    rows = list(Source(config.candidates, PairsOnly, skip_invalid=config.skip_invalid, rejected_path=rejected))
    if config.dry_run:
        return planned("best-of-n", len(rows))
    scores = _scores(reward_source(config, None), rows)
    left_out = [row for row in rows if scores[row.id].unscored]
    missing = [_without_best(row, scores[row.id]) for row in left_out]
    rows = [row for row in rows if not scores[row.id].unscored]
    if not rows:
        what = "in every row a response has no score"
        raise nothing_scored(config, "best-of-n", what, config.candidates, missing)
    rewards = [scores[row.id].total for row in rows]
    best = [int(np.argmax(found)) for found in rewards]
    others = {
        "first": [0] * len(rows),
        "random": [int(content_id(config.seed, row.id), 16) % len(row.responses) for row in rows],
    }
    texts = [
        (as_messages(row.prompt), row.responses[chosen].text, row.responses[other].text)
        for places in others.values()
        for row, chosen, other in zip(rows, best, places, strict=True)
    ]
    answers = iter(compare([(prompt, a, b) for prompt, a, b in texts if a != b]))
    p = [next(answers) if a != b else 0.5 for _, a, b in texts]  # one response against itself is a tie
    verdicts = dict(zip(others, (p[: len(rows)], p[len(rows) :]), strict=True))
    prompts = [prompt_key(row.prompt) for row in rows]
    items = [
        {
            "id": row.id,
            "prompt_key": prompt,
            "rewards": [rounded(value, 6) for value in found],
            "best": chosen,
            **{name: places[index] for name, places in others.items()},
            **{f"p_over_{name}": verdicts[name][index] for name in others},
        }
        for index, (row, prompt, found, chosen) in enumerate(zip(rows, prompts, rewards, best, strict=True))
    ]
    result: dict[str, Any] = {
        "metric": "best-of-n",
        "reward_model": list(config.reward_model),
        "reward_function": list(config.reward_function),
        "judge": config.judge_name,
        "n": len(rows),
        "prompts": len(set(prompts)),
        "unscored": sum(each is None for each in p) + len(left_out),
        "rows_without_scores": len(left_out),
    }
    for name in others:
        decided = [(each, prompt) for each, prompt in zip(verdicts[name], prompts, strict=True) if each is not None]
        if not decided:
            what = "no comparison could be decided"
            raise nothing_scored(config, "best-of-n", what, config.candidates, [*items, *missing])
        result[f"win_rate_over_{name}"] = rate(wins([each for each, _ in decided]), [key for _, key in decided])
    result["chose_the_first"] = rate([place == 0 for place in best], prompts)
    return save(config, result, [*items, *missing])


def _without_best(row: Candidates, scores: RowScores) -> dict[str, Any]:
    """The item of a row that is left out, with the reason."""
    return {
        "id": row.id,
        "prompt_key": prompt_key(row.prompt),
        "rewards": [rounded(value, 6) for value in scores.total],
        "best": None,
        "reason": scores.reason,
    }


def reward(config: RewardConfig, engines: EnginePool) -> dict[str, Any]:
    """The mean reward of candidates; with a baseline, of both, and the mean paired difference.

    A reward model's are in its standard deviations over its training responses, from its mean; a judge's are logits,
    as in `ppo`. Of several sources the weighted sum, and each one's own mean under `sources`.

    Raises:
        InputError: an id stands on different prompts in the two files, or a reward function fails.
    """
    check_reward_source(config)
    rows, baseline, alone = _by_id(config.candidates, config), None, 0
    if config.baseline:
        baseline = _by_id(config.baseline, config)
        asked = prompts_of_both(rows, baseline, (config.candidates, config.baseline))
        alone = len(rows) + len(baseline) - 2 * len(asked)
        rows, baseline = (
            {key: side[key].model_copy(update={"prompt": prompt}) for key, prompt in asked.items()}
            for side in (rows, baseline)
        )
    keys = list(rows)
    if config.dry_run:
        return planned("reward", len(keys))
    scorer = reward_source(config, engines)
    sides = {"reward": rows} | ({} if baseline is None else {"baseline": baseline})
    found = {name: _scores(scorer, [side[key] for key in keys]) for name, side in sides.items()}
    of_rows = {name: [scores[key] for key in keys] for name, scores in found.items()}
    means = {name: np.array([each.mean(each.total) for each in side]) for name, side in of_rows.items()}
    parts = _means_by_source(of_rows)
    scored = np.isfinite(np.stack([*means.values()])).all(0)
    unscored = [sum(each.unscored for each in of_row) for of_row in zip(*of_rows.values(), strict=True)]
    prompts = [prompt_key(rows[key].prompt) for key in keys]

    def item(place: int, key: str) -> dict[str, Any]:
        reasons = [side[place].reason for side in of_rows.values() if side[place].reason]
        own = {
            source: {name: rounded(values[place], 6) for name, values in of_sides.items()}
            for source, of_sides in parts.items()
        }
        return (
            {"id": key, "prompt_key": prompts[place], "unscored": unscored[place]}
            | {name: round(float(values[place]), 9) if scored[place] else None for name, values in means.items()}
            | ({"sources": own} if own else {})
            | ({"reason": reasons[0]} if reasons else {})
        )

    items = [item(place, key) for place, key in enumerate(keys)]
    if not scored.any():
        raise nothing_scored(config, "reward", "no response could be scored", config.candidates, items)
    of_scored = [prompt for prompt, is_scored in zip(prompts, scored, strict=True) if is_scored]
    result: dict[str, Any] = {"metric": "reward", "n": len(of_scored), "prompts": len(set(of_scored))}
    result["unscored"] = sum(unscored)
    result |= _compared(means, scored, of_scored)
    if baseline is not None:
        result["prompts_of_one_side"] = alone
    if parts:
        result["sources"] = {source: _compared(of_sides, scored, of_scored) for source, of_sides in parts.items()}
    return save(config, result, items)


def _compared(means: Mapping[str, NDArray[Any]], scored: NDArray[Any], prompts: Sequence[str]) -> dict[str, Any]:
    """Each side's mean with its interval; of two, also that of their paired difference.

    Args:
        means: the row's mean rewards by side (`reward`, `baseline`), [rows] each.
        scored: [rows] which of them count.
        prompts: of those.
    """
    found = {name: estimate(values[scored], prompts) for name, values in means.items()}
    if "baseline" in means:
        found["difference"] = estimate((means["reward"] - means["baseline"])[scored], prompts)
    return found


def _means_by_source(sides: Mapping[str, Sequence[RowScores]]) -> dict[str, dict[str, NDArray[Any]]]:
    """source -> side -> [rows]: each source's mean over the responses that have a score; {} of one source."""
    first = next(iter(sides.values()))
    names = list(first[0].by_source) if first else []
    return {
        name: {side: np.array([each.mean(each.by_source[name]) for each in rows]) for side, rows in sides.items()}
        for name in names
    }


def _by_id(path: str, config: RewardConfig) -> dict[str, Candidates]:
    source = Source(
        path,
        Candidates,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, "reward"),
    )
    return {row.id: row for row in source}


@dataclass(frozen=True)
class RowScores:
    """What the responses of a row scored.

    Attributes:
        total: [n]; NaN where there is none.
        by_source: [n] each; empty where there is one source.
        reason: why one of them has none.
    """

    total: NDArray[Any]
    by_source: dict[str, NDArray[Any]]
    reason: str | None

    @property
    def unscored(self) -> int:
        return int((~np.isfinite(self.total)).sum())

    def mean(self, values: NDArray[Any]) -> float:
        """Of those of the responses that have a score; NaN where none has one."""
        known = values[np.isfinite(self.total)]
        return float(known.mean()) if len(known) else math.nan


def _scores(scorer: RewardSource, rows: Sequence[Candidates]) -> dict[str, RowScores]:
    """The scores of every row by its id; rows with equally many responses go together."""
    found: dict[str, RowScores] = {}
    for count in {len(row.responses) for row in rows}:
        of_count = [row for row in rows if len(row.responses) == count]
        alike = [_with_own_fields(row) for row in of_count]
        texts = [[response.text for response in row.responses] for row in of_count]
        totals, parts = scores_and_parts(scorer, alike, texts)
        for place, (row, of_row) in enumerate(zip(alike, texts, strict=True)):
            total = totals[place].double().numpy()
            without = next((text for text, score in zip(of_row, total, strict=True) if not math.isfinite(score)), None)
            reason = None if without is None else why_unscored(scorer, row, without)
            found[row.id] = RowScores(
                total, {name: each[place].double().numpy() for name, each in parts.items()}, reason
            )
    return found


def _with_own_fields(row: Candidates) -> PromptRow:
    """As `ppo` has it: `generate` keeps a prompt's reference in `meta`."""
    meta = dict(row.meta)
    reference = meta.pop("reference", None)
    return PromptRow(row.id, as_messages(row.prompt), reference, meta)
