"""Mean reward of responses, optionally compared with a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_cli.config.evaluate import RewardConfig
from rlaif_cli.data.messages import as_messages, prompt_key
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Candidates
from rlaif_cli.engines import EnginePool
from rlaif_cli.evaluation.result import nothing_scored, planned, prompts_of_both, save
from rlaif_cli.stats.as_json import estimate, rounded
from rlaif_cli.train.reward_function import PromptRow
from rlaif_cli.train.reward_source import (
    RewardSource,
    check_reward_source,
    reward_source,
    scores_and_parts,
    why_unscored,
)
from rlaif_cli.ui.progress import ProgressCallback


def reward(config: RewardConfig, engines: EnginePool) -> dict[str, Any]:
    """The mean reward of candidates; with a baseline, of both, and the mean paired difference.

    Rewards of a reward model are normalized by its mean and standard deviation on its training responses; those of a
    judge are logits, as in `ppo`. With several sources, the reward is their weighted sum, and `sources` has the mean of
    each.

    Raises:
        InputError: an id has different prompts in the two files, or a reward function fails.
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
    found = {name: response_scores(scorer, [side[key] for key in keys]) for name, side in sides.items()}
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
    """The mean of each side with its interval; for two sides also their paired difference.

    Args:
        means: mean rewards of the rows by side (`reward`, `baseline`), [rows] each.
        scored: [rows] which rows count.
        prompts: the prompts of these rows.
    """
    found = {name: estimate(values[scored], prompts) for name, values in means.items()}
    if "baseline" in means:
        found["difference"] = estimate((means["reward"] - means["baseline"])[scored], prompts)
    return found


def _means_by_source(sides: Mapping[str, Sequence[RowScores]]) -> dict[str, dict[str, NDArray[Any]]]:
    """source -> side -> [rows]: mean of each source over the scored responses; {} if there is only one source."""
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
    """The scores of the responses of a row.

    Attributes:
        total: [n]; NaN for unscored responses.
        by_source: [n] each; empty if there is only one source.
        reason: why a response is unscored.
    """

    total: NDArray[Any]
    by_source: dict[str, NDArray[Any]]
    reason: str | None

    @property
    def unscored(self) -> int:
        return int((~np.isfinite(self.total)).sum())

    def mean(self, values: NDArray[Any]) -> float:
        """The mean over the scored responses; NaN if there are none."""
        known = values[np.isfinite(self.total)]
        return float(known.mean()) if len(known) else math.nan


def response_scores(scorer: RewardSource, rows: Sequence[Candidates]) -> dict[str, RowScores]:
    """The scores of every row by id; rows with the same number of responses are scored together."""
    found: dict[str, RowScores] = {}
    for count in {len(row.responses) for row in rows}:
        of_count = [row for row in rows if len(row.responses) == count]
        alike = [_with_own_fields(row) for row in of_count]
        texts = [[response.text if response.answered else None for response in row.responses] for row in of_count]
        totals, parts = scores_and_parts(scorer, alike, texts)
        for place, (row, of_row) in enumerate(zip(alike, texts, strict=True)):
            total = totals[place].double().numpy()
            without = [text for text, score in zip(of_row, total, strict=True) if not math.isfinite(score)]
            reason = why_unscored(scorer, row, without[0]) if without else None
            found[row.id] = RowScores(
                total, {name: each[place].double().numpy() for name, each in parts.items()}, reason
            )
    return found


def _with_own_fields(row: Candidates) -> PromptRow:
    """The row as `ppo` passes it: `generate` stores the reference of a prompt in `meta`."""
    meta = dict(row.meta)
    reference = meta.pop("reference", None)
    return PromptRow(row.id, as_messages(row.prompt), reference, meta)


def run(config: RewardConfig, engines: EnginePool, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it; it shows no progress."""
    return reward(config, engines)
