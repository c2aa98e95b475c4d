"""Token log-probs -> preference distributions: orders, principles, and the reasons a pair stays unscored.

Three methods, one file each:

- pairwise (Lee et al. 2023): which response is better? Asked in both orders, averaged.
- score (Lee et al. 2023, "direct RLAIF"): how good is this response, from 1 to 10? The whole distribution counts.
- contrast (after Liu et al. 2024, "DLMA"): nothing is asked; how much likelier does a principle make the response?
"""

from __future__ import annotations

from rlaif_cli.config import JudgeConfig
from rlaif_cli.constitution import Constitution
from rlaif_cli.engines.base import Engine
from rlaif_cli.judge.base import Comparison, Judge, Judgement, RewardingJudge, choose_principles, direction
from rlaif_cli.judge.contrast import ContrastJudge
from rlaif_cli.judge.labels import Labels
from rlaif_cli.judge.pairwise import PairwiseJudge
from rlaif_cli.judge.score import ScoreJudge

__all__ = [
    "Comparison",
    "ContrastJudge",
    "Judge",
    "Judgement",
    "Labels",
    "PairwiseJudge",
    "RewardingJudge",
    "ScoreJudge",
    "choose_principles",
    "direction",
    "make_judge",
]


def make_judge(config: JudgeConfig, constitution: Constitution, engine: Engine) -> Judge:
    if config.method == "contrast":
        return ContrastJudge(engine, constitution, config.contrast_scale)
    if config.method == "score":
        return ScoreJudge(engine, constitution, min_mass=config.min_mass, samples=config.samples, seed=config.seed)
    return PairwiseJudge(
        engine,
        constitution,
        min_mass=config.min_mass,
        shots=config.shots,
        rationale_tokens=config.rationale_tokens if config.cot else 0,
        clamp=config.clamp,
        samples=config.samples,
        seed=config.seed,
    )
