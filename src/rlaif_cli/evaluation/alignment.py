"""Alignment of a judge with human preferences.

Every number has its n, the unscored count and an interval over prompts; per-item results are saved next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlaif_cli.config.evaluate import AlignmentConfig
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import HumanPair
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.server_account import until_paused
from rlaif_cli.evaluation.agreement import agreement
from rlaif_cli.evaluation.result import check_preferences, nothing_scored, planned, save
from rlaif_cli.judge.compare import judge_all
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.context_budget import ContextBudget
from rlaif_cli.judge.session import check_principles
from rlaif_cli.stats.calibration import fit_contrast_scale
from rlaif_cli.ui.progress import ProgressCallback, no_progress


@until_paused
def alignment(
    config: AlignmentConfig, engines: EnginePool, *, progress: ProgressCallback = no_progress
) -> dict[str, Any]:
    """AI Labeler Alignment (Lee et al. 2023): z = mean 1[argmax P_AI = human], with the baseline "longer wins".

    Human ties are left out; an exactly undecided judge counts one half.

    Raises:
        InputError: the pairs are invalid, or no pair with a preference could be scored.
    """
    constitution = load_constitution(config.constitution)
    check_principles(config, constitution)
    budget = ContextBudget(config, constitution)
    source = Source(
        config.pairs,
        HumanPair,
        skip_invalid=config.skip_invalid,
        rejected_path=rejected_path(config.output, "alignment"),
        check=lambda pair: budget.check(pair.prompt, [pair.response_a, pair.response_b]),
    )
    pairs = list(source)
    if config.dry_run:
        return planned("alignment", len(pairs))
    check_preferences(pairs, config.pairs)
    texts = [(pair.prompt, pair.response_a, pair.response_b) for pair in pairs]
    judgements = judge_all(config, constitution, budget, engines, texts, progress)
    items = [
        {
            "id": pair.id,
            "prompt_key": pair.cluster,
            "source": pair.source,
            "p_a": j.p_a,
            "human_fraction_a": pair.human_fraction_a,
            "length_a": len(pair.response_a),
            "length_b": len(pair.response_b),
            "flipped": j.flipped if config.method == "pairwise" and j.p_a is not None else None,
            "mass": list(j.mass),
            "reason": j.reason,
        }
        for pair, j in zip(pairs, judgements, strict=True)
    ]
    scored = [(pair, j) for pair, j in zip(pairs, judgements, strict=True) if j.p_a is not None]
    p = np.array([j.p_a for _, j in scored])
    human = np.array([pair.human_fraction_a for pair, _ in scored])
    if not (human != 0.5).any():
        what = "no pair with a human preference could be scored"
        raise nothing_scored(config, "alignment", what, config.pairs, items)
    lengths = np.array([(len(pair.response_a), len(pair.response_b)) for pair, _ in scored])
    result: dict[str, Any] = {
        "metric": "alignment",
        "judge": config.judge_name,
        "method": config.method,
        "constitution": config.constitution,
        "unscored": len(pairs) - len(scored),
        **agreement(
            p,
            human,
            lengths,
            [pair.source for pair, _ in scored],
            [pair.cluster for pair, _ in scored],
        ),
        "flip_rate": _mean([j.flipped for _, j in scored]) if config.method == "pairwise" else None,
        "mean_mass": _mean([mass for j in judgements for mass in j.mass]),
    }
    if config.method == "contrast":
        difference = np.array([j.scores[0] - j.scores[1] for _, j in scored])
        result["fitted_contrast_scale"] = round(fit_contrast_scale(difference, human), 2)
    return save(config, result, items)


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 9) if values else None
