"""Token log-probs -> preference distributions: orders, principles, and why a pair stays unscored.

Three methods, one file each, and the panel that averages several judges:

- pairwise (Lee et al. 2023): which response is better? Asked in both orders, averaged.
- score (Lee et al. 2023, "direct RLAIF"): how good is this response, from 1 to 10? The whole distribution counts.
- contrast (after Liu et al. 2024, "DLMA"): no question; how much more likely does a principle make the response?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif_cli.config.judge import CompareConfig, JudgeConfig
from rlaif_cli.engines.base import Engine
from rlaif_cli.judge.base import (
    Approval,
    Comparison,
    Judge,
    Judgement,
    NoReward,
    RewardingJudge,
    Single,
    choose_principles,
    direction,
    named_principles,
)
from rlaif_cli.judge.constitution import Constitution
from rlaif_cli.judge.contrast import ContrastJudge
from rlaif_cli.judge.labels import Labels
from rlaif_cli.judge.pairwise import PairwiseJudge
from rlaif_cli.judge.panel import PanelJudge
from rlaif_cli.judge.score import ScoreJudge

__all__ = [
    "Approval",
    "Comparison",
    "ContrastJudge",
    "Judge",
    "Judgement",
    "Labels",
    "NoReward",
    "PairwiseJudge",
    "PanelJudge",
    "RewardingJudge",
    "ScoreJudge",
    "Single",
    "choose_principles",
    "direction",
    "make_judge",
    "make_panel",
    "named_principles",
]


def make_panel(config: JudgeConfig, judges: Sequence[Judge]) -> Judge:
    """The judge of a config, or a panel of several."""
    return judges[0] if len(judges) == 1 else PanelJudge(dict(zip(config.judge_names, judges, strict=True)))


def make_judge(config: JudgeConfig, constitution: Constitution, engine: Engine) -> Judge:
    if config.method == "contrast":
        return ContrastJudge(engine, config.contrast_scale)
    asked: dict[str, Any] = {"min_mass": config.min_mass, "samples": config.samples, "seed": config.seed}
    asked["structured"] = config.structured
    # A server may reason before every answer, whatever it is asked.
    asked["reasoning_tokens"] = config.rationale_tokens if engine.tokenizer.reasons is None else 0
    if config.method == "score":
        return ScoreJudge(engine, constitution, **asked)
    if isinstance(config, CompareConfig):
        asked |= {"shots": config.shots, "clamp": config.clamp, "cot": config.cot}
        asked["reasoning_tokens"] = config.rationale_tokens if config.cot else asked["reasoning_tokens"]
    return PairwiseJudge(engine, constitution, **asked)
