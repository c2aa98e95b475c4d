"""samples.jsonl: some of the policy's responses at each step, with their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlaif_cli.stats.as_json import rounded
from rlaif_cli.train.reward_source import RewardSource, scores_and_parts
from rlaif_cli.train.rollout import Rollout

SAMPLES = "samples.jsonl"
_COUNT = 4  # per step


def write_samples(
    folder: Path,
    step: int,
    rollouts: Sequence[Rollout],
    scores: Tensor,
    functions: Mapping[str, RewardSource],
) -> None:
    """Append the first response to a few prompts, with its score and other measures, for people to read.

    Args:
        scores: [S].
        functions: the evaluation functions by name.
    """
    shown, n = rollouts[:_COUNT], len(rollouts[0].completions)
    texts = [rollout.completions[0].answer for rollout in shown]
    measured = {name: scores_of_first(source, shown, texts) for name, source in functions.items()}
    with open(folder / SAMPLES, "a", encoding="utf-8") as file:
        for index, (rollout, text) in enumerate(zip(shown, texts, strict=True)):
            row: dict[str, Any] = {
                "step": step,
                "prompt": [message.model_dump() for message in rollout.prompt.messages],
                "response": text,
                **({} if (thoughts := rollout.completions[0].reasoning) is None else {"reasoning": thoughts}),
                "score": rounded(float(scores[index * n]), 4),
            }
            row |= {"functions": {name: found[index] for name, found in measured.items()}} if measured else {}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def scores_of_first(
    source: RewardSource, rollouts: Sequence[Rollout], texts: Sequence[str | None]
) -> list[float | None]:
    """The score of one answer per prompt."""
    scores, _ = scores_and_parts(source, [rollout.prompt for rollout in rollouts], [[text] for text in texts])
    return [rounded(score, 4) for score in scores.flatten().tolist()]
