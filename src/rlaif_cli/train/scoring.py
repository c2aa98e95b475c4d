"""The scores of a step's responses, and the treatment of unscored responses.

A missing score is never replaced by a made-up one. An unscored response is left out of its group: it contributes to no
mean, deviation, baseline or gradient, not even that of the KL. A prompt without enough scored responses is left out of
the step. The run stops if more than `--max-unscored` of a step's responses are unscored.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif_cli.config.naming import option
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.data.atomic import open_for_writing
from rlaif_cli.errors import EngineError
from rlaif_cli.train.parallel.distributed import all_gather, is_main
from rlaif_cli.train.reward_source import RewardSource, scores_and_parts, why_unscored
from rlaif_cli.train.rollout import Prompt, Rollout

UNSCORED = "unscored.jsonl"


class TooManyUnscored(EngineError):
    """Too many responses of a step are unscored. The step made no update."""


@dataclass(frozen=True)
class Scores:
    """The scores of the S responses of a step.

    Attributes:
        values: [S]; NaN for unscored responses.
        reasons: [S]; why a response is unscored, or None.
        by_source: [S] per source, before weighting; empty if there is only one source.
    """

    values: Tensor
    reasons: list[str | None]
    by_source: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Each source's mean over the scored responses, under its name in the log."""
        scored = self.values.isfinite()
        return {f"reward_{name}": float(each[scored].mean()) for name, each in self.by_source.items()}


def score_rollouts(source: RewardSource, mine: Sequence[Rollout]) -> Scores:
    """Score every response of a step, on all processes together.

    Args:
        mine: this process's share of the step's rollouts.
    """
    # The texts as in response files: what reward models are trained on and judges label.
    texts = [[completion.reply for completion in rollout.completions] for rollout in mine]
    rows = [rollout.prompt for rollout in mine]
    scores, parts = scores_and_parts(source, rows, texts)

    def with_reason(prompt: Prompt, text: str, score: float) -> tuple[float, str | None]:
        known = math.isfinite(score)
        return (score, None) if known else (math.nan, why_unscored(source, prompt, text))

    found = [
        [with_reason(prompt, text, score) for text, score in zip(of_prompt, row, strict=True)]
        for prompt, of_prompt, row in zip(rows, texts, scores.tolist(), strict=True)
    ]
    flat = [each for row in all_gather(found) for each in row]
    by_source = {
        name: torch.tensor([score for row in all_gather(each.tolist()) for score in row])
        for name, each in parts.items()
    }
    return Scores(torch.tensor([score for score, _ in flat]), [reason for _, reason in flat], by_source)


def record_unscored(
    folder: Path, step: int, rollouts: Sequence[Rollout], scores: Tensor, reasons: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Return the unscored responses with their reasons, and append them to a file. `scores`, `reasons`: [S]."""
    responses = [(rollout.prompt, completion) for rollout in rollouts for completion in rollout.completions]
    rows = [
        {
            "step": step,
            "prompt": [message.model_dump() for message in prompt.messages],
            "response": completion.reply,
            "reason": reason,
        }
        for (prompt, completion), scored, reason in zip(responses, scores.isfinite().tolist(), reasons, strict=True)
        if not scored
    ]
    if rows and is_main():
        with open_for_writing(folder / UNSCORED, "a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return rows


def trainable_rollouts(config: PPOConfig, rollouts: list[Rollout], scores: Tensor) -> tuple[list[Rollout], Tensor]:
    """The rollouts with enough scores to train on (2 if scores are compared within a prompt), and their scores [S]."""
    needed = 2 if config.advantage in ("rloo", "grpo") else 1
    by_prompt = scores.view(len(rollouts), -1)
    trainable = by_prompt.isfinite().sum(1) >= needed
    return [rollout for rollout, kept in zip(rollouts, trainable.tolist(), strict=True) if kept], by_prompt[
        trainable
    ].flatten()


def check_unscored(
    config: PPOConfig, unscored: Sequence[dict[str, Any]], total: int, trained_on: int, step: int
) -> None:
    """Stop the run if too many responses of a step are unscored.

    Args:
        total: number of responses of the step.
        trained_on: number of prompts left by `trainable_rollouts`.

    Raises:
        TooManyUnscored: more than `--max-unscored`, or no prompt is left.
    """
    if trained_on and len(unscored) <= config.max_unscored * total + 1e-9:
        return
    several = config.judge and (len(config.principles) > 1 or tuple(config.principles) == ("all",))
    fewer = (
        f" A score needs an answer for every principle, so fewer {option('principles')} fail less often."
        if several
        else ""
    )
    reasons = Counter(row["reason"] for row in unscored).most_common(3)
    summary = "; ".join(f"{reason} ({count} of {len(unscored)})" for reason, count in reasons)
    bound = (
        f"{option('max_unscored')} allows {config.max_unscored:.0%}"
        if trained_on
        else "which leaves nothing to compare"
    )
    raise TooManyUnscored(
        f"{len(unscored)} of the {total} responses of step {step} got no score ({bound}): {summary}",
        hint=f"they are in {Path(config.output) / UNSCORED}. Nothing is lost: once the judge answers, run the same "
        "command to resume before this step; or train without these responses with a higher "
        f"{option('max_unscored')}.{fewer} "
        f"A different judge, function, {option('method')}, {option('principles')} or {option('max_tokens')} "
        f"needs a new run ({option('overwrite')})",
    )
