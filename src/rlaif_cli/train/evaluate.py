"""Rewards, measured: how often a reward model agrees with people, and the mean reward that PPO climbs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_cli import metrics, models
from rlaif_cli.config import BestOfNConfig, RewardConfig, RewardModelEvalConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.jsonl import Source
from rlaif_cli.output import rejected_path
from rlaif_cli.records import Candidates, HumanPair, PairsOnly, as_messages, content_id, prompt_key
from rlaif_cli.results import (
    agreement,
    check_preferences,
    estimate,
    nothing_scored,
    planned,
    prompts_of_both,
    rate,
    save,
)
from rlaif_cli.train.models import load_reward_model
from rlaif_cli.train.packing import Group
from rlaif_cli.train.reward_model import log_loss, probability, score_groups, too_long
from rlaif_cli.train.rewards import RewardReader, RewardSource, check_reward_source, reward_models, reward_source
from rlaif_cli.train.selection import Compare


def reward_model(config: RewardModelEvalConfig) -> dict[str, Any]:
    """How often the reward model (or the mean probability of several) prefers what people, or labels, prefer.

    Raises:
        InputError: the pairs cannot be used, or none has a preference.
        ModelError: a folder holds no reward model.
    """
    paths = [models.resolve(name) for name in config.reward_model]
    for path in paths:
        models.check_reward_model(path)
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
    prompts = [prompt_key(pair.prompt) for pair in pairs]
    result = {
        "metric": "reward-model",
        "reward_model": list(config.reward_model),
        **agreement(p, human, lengths, [pair.source for pair in pairs], prompts),
        "loss": round(log_loss(p, human), 9),
        "entropy_floor": round(float(metrics.entropy(human).mean()), 9),
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
    """How often a judge prefers the response that the reward model likes best to the first, and to a random one.

    A reward model can only be of use to a policy if its choice among the policy's own samples is a better one.

    Raises:
        InputError: the candidates cannot be used, or no comparison could be decided.
        ModelError: a folder holds no reward model.
    """
    for name in config.reward_model:
        models.check_reward_model(models.resolve(name))
    rejected = rejected_path(config.output, "best-of-n")
    rows = list(Source(config.candidates, PairsOnly, skip_invalid=config.skip_invalid, rejected_path=rejected))
    if config.dry_run:
        return planned("best-of-n", len(rows))
    scorer = reward_models(config.reward_model, config.precision, config.tokens_per_batch)
    rewards = _rewards(scorer, rows)
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
            "rewards": [round(value, 6) for value in found],
            "best": chosen,
            **{name: places[index] for name, places in others.items()},
            **{f"p_over_{name}": verdicts[name][index] for name in others},
        }
        for index, (row, prompt, found, chosen) in enumerate(zip(rows, prompts, rewards, best, strict=True))
    ]
    result: dict[str, Any] = {
        "metric": "best-of-n",
        "reward_model": list(config.reward_model),
        "judge": config.judge_name,
        "n": len(rows),
        "prompts": len(set(prompts)),
        "unscored": sum(each is None for each in p),
    }
    for name in others:
        decided = [(each, prompt) for each, prompt in zip(verdicts[name], prompts, strict=True) if each is not None]
        if not decided:
            what = "no comparison could be decided"
            raise nothing_scored(config, "best-of-n", what, config.candidates, items)
        result[f"win_rate_over_{name}"] = rate(metrics.wins([each for each, _ in decided]), [key for _, key in decided])
    result["chose_the_first"] = rate([place == 0 for place in best], prompts)
    return save(config, result, items)


def reward(config: RewardConfig, engines: EnginePool) -> dict[str, Any]:
    """The mean reward of candidates; with a baseline, of both, and the mean paired difference.

    A reward model's are in its standard deviations over its training responses, from its mean; a judge's are logits,
    as in `ppo`.

    Raises:
        InputError: an id stands on different prompts in the two files.
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
    rewards = {name: _rewards(scorer, [side[key] for key in keys]) for name, side in sides.items()}
    means = {name: np.array([_mean_of_scored(each) for each in found]) for name, found in rewards.items()}
    scored = np.isfinite(np.stack([*means.values()])).all(0)
    unscored = [
        sum(not math.isfinite(value) for each in of_row for value in each)
        for of_row in zip(*rewards.values(), strict=True)
    ]
    prompts = [prompt_key(rows[key].prompt) for key in keys]
    items = [
        {"id": key, "prompt_key": prompts[place], "unscored": unscored[place]}
        | {name: round(float(found[place]), 9) if scored[place] else None for name, found in means.items()}
        for place, key in enumerate(keys)
    ]
    if not scored.any():
        raise nothing_scored(config, "reward", "no response could be scored", config.candidates, items)
    of_scored = [prompt for prompt, is_scored in zip(prompts, scored, strict=True) if is_scored]
    result: dict[str, Any] = {"metric": "reward", "n": len(of_scored), "prompts": len(set(of_scored))}
    result["unscored"] = sum(unscored)
    result |= {name: estimate(found[scored], of_scored) for name, found in means.items()}
    if baseline is not None:
        result["prompts_of_one_side"] = alone
        result["difference"] = estimate((means["reward"] - means["baseline"])[scored], of_scored)
    return save(config, result, items)


def _by_id(path: str, config: RewardConfig) -> dict[str, Candidates]:
    source = Source(
        path,
        Candidates,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, "reward"),
    )
    return {row.id: row for row in source}


def _mean_of_scored(rewards: Sequence[float]) -> float:
    """NaN where no response of a prompt has a score."""
    known = [reward for reward in rewards if math.isfinite(reward)]
    return float(np.mean(known)) if known else math.nan


def _rewards(scorer: RewardSource, rows: Sequence[Candidates]) -> list[list[float]]:
    """The reward of every response of every row, NaN where it has none; rows with equally many go together."""
    found: dict[str, list[float]] = {}
    for count in {len(row.responses) for row in rows}:
        alike = [row for row in rows if len(row.responses) == count]
        scores = scorer.score(
            [as_messages(row.prompt) for row in alike], [[r.text for r in row.responses] for row in alike]
        )
        found |= {row.id: values for row, values in zip(alike, scores.tolist(), strict=True)}
    return [found[row.id] for row in rows]
