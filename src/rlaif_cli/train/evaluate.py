"""The mean reward of responses: what PPO climbs, measured on prompts that it never saw."""

from __future__ import annotations

from typing import Any

from rlaif_cli.config import RewardConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.errors import InputError
from rlaif_cli.jsonl import Source, rejected_path
from rlaif_cli.records import Candidates, as_messages
from rlaif_cli.results import estimate, save
from rlaif_cli.train.rewards import RewardSource, check_reward_source, reward_source


def reward(config: RewardConfig, engines: EnginePool) -> dict[str, Any]:
    """The mean reward of candidates; with a baseline, of both, and the mean paired difference.

    A reward model's are in its standard deviations over its training responses, from its mean; a judge's are logits,
    as in `ppo`.
    """
    check_reward_source(config)
    rows = _by_id(config.candidates, config)
    baseline = _by_id(config.baseline, config) if config.baseline else None
    keys = [key for key in rows if baseline is None or key in baseline]
    if not keys:
        raise InputError("the two files have no prompt id in common", where=f"{config.candidates}, {config.baseline}")
    scorer = reward_source(config, engines)
    found = _mean_rewards(scorer, [rows[key] for key in keys])
    result: dict[str, Any] = {"metric": "reward", "n": len(keys), "reward": estimate(found)}
    items = [{"id": key, "reward": round(value, 9)} for key, value in zip(keys, found, strict=True)]
    if baseline is not None:
        before = _mean_rewards(scorer, [baseline[key] for key in keys])
        result["baseline"] = estimate(before)
        result["difference"] = estimate([a - b for a, b in zip(found, before, strict=True)])
        items = [item | {"baseline": round(value, 9)} for item, value in zip(items, before, strict=True)]
    return save(config.output, "reward", result, items)


def _by_id(path: str, config: RewardConfig) -> dict[str, Candidates]:
    source = Source(
        path,
        Candidates,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, "reward"),
    )
    return {row.id: row for row in source}


def _mean_rewards(scorer: RewardSource, rows: list[Candidates]) -> list[float]:
    """A row's mean reward over its responses; rows with equally many are scored together."""
    means: dict[str, float] = {}
    for count in {len(row.responses) for row in rows}:
        alike = [row for row in rows if len(row.responses) == count]
        scores = scorer.score(
            [as_messages(row.prompt) for row in alike], [[r.text for r in row.responses] for row in alike]
        )
        means |= {row.id: float(score) for row, score in zip(alike, scores.mean(1), strict=True)}
    return [means[row.id] for row in rows]
