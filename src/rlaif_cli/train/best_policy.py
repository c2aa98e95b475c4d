"""Which of the policies on the way is the best: the one whose answers a judge prefers most often to the start's.

A reward that is climbed for too long is gamed: PPO's last policy is often not its best (Gao et al., arXiv 2210.10760).

The highest of several win rates is too high: by chance one of many looks is far above the truth, also where nothing
was learned. So the held-out prompts are split in two: one half chooses, and the chosen weights are measured on the
other, which took no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.data.messages import Message, content_id
from rlaif_cli.errors import UsageError
from rlaif_cli.stats import agreement
from rlaif_cli.stats.as_json import rate
from rlaif_cli.train import dataset
from rlaif_cli.train.rollout import Prompt

# (prompt, a, b) triples -> P(a is better), None where the judge cannot tell
Compare = Callable[[Sequence[tuple[list[Message], str, str]]], list[float | None]]
# A prompt's id -> its responses, as many under each id.
Answers = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that are not trained on. Without a judge that chooses weights, all of them are in `reporting`."""

    choosing: list[Prompt]
    reporting: list[Prompt]

    @property
    def prompts(self) -> list[Prompt]:
        return [*self.choosing, *self.reporting]


@dataclass(frozen=True)
class WinRate:
    """How often a policy's answers are preferred to the start's.

    Attributes:
        wins: of each comparison: 1, 0, or 0.5 for a tie; None where the judge could not decide.
        prompts: the id of each one's prompt.
    """

    wins: list[float | None]
    prompts: list[str]

    @property
    def decided(self) -> list[float]:
        return [win for win in self.wins if win is not None]

    @property
    def unscored(self) -> int:
        """Comparisons that the judge could not decide."""
        return len(self.wins) - len(self.decided)

    @property
    def value(self) -> float:
        return float(np.mean(self.decided))

    @property
    def estimate(self) -> dict[str, Any] | None:
        """With its interval over prompts, and its n; None where nothing was decided."""
        prompts = [prompt for prompt, win in zip(self.prompts, self.wins, strict=True) if win is not None]
        return rate(np.array(self.decided), prompts) if prompts else None

    def as_json(self) -> dict[str, Any]:
        found = self.estimate
        return {"win_rate": found, "prompts": found["prompts"] if found else 0, "unscored": self.unscored}


def split(config: PPOConfig, prompts: list[Prompt]) -> tuple[list[Prompt], HeldOut]:
    """(trained on, held out), by content: a prompt that stands in the file twice is on one side.

    Raises:
        UsageError: there are too few to hold two out.
    """
    if not config.evaluates:
        return prompts, HeldOut([], [])
    content = [content_id(prompt.messages) for prompt in prompts]
    away = dataset.held_out(content, config.eval_fraction, config.seed, minimum=2)
    if not away:
        raise UsageError(
            "--eval-judge and --eval-function need at least three different prompts: two are held out (with a judge, "
            "one to choose the weights and one to measure them)",
            where=config.prompts,
        )
    reporting = dataset.held_out(away, 0.5, config.seed) if config.eval_judge is not None else away

    def those(wanted: set[str]) -> list[Prompt]:
        return [prompt for prompt, key in zip(prompts, content, strict=True) if key in wanted]

    return those(set(content) - away), HeldOut(those(away - reporting), those(reporting))


class Selection:
    """Win rates over the start's answers to held-out prompts. The judge is asked in the process that calls."""

    def __init__(self, held_out: HeldOut, compare: Compare) -> None:
        self._held_out = held_out
        self._compare = compare

    def selection_win_rate(self, now: Answers, start: Answers) -> WinRate:
        """On the prompts that choose."""
        return self._win_rate(self._held_out.choosing, now, start)

    def report_win_rate(self, now: Answers, start: Answers) -> WinRate:
        """On the prompts that took no part in the choice."""
        return self._win_rate(self._held_out.reporting, now, start)

    def _win_rate(self, prompts: list[Prompt], now: Answers, start: Answers) -> WinRate:
        texts = [(p, a, b) for p in prompts for a, b in zip(now[p.id], start[p.id], strict=True)]
        # Equal texts are a tie; the judge is not asked.
        asked = iter(self._compare([(prompt.messages, a, b) for prompt, a, b in texts if a != b]))
        p_better = [next(asked) if a != b else 0.5 for _, a, b in texts]
        return WinRate([_win(p) for p in p_better], [prompt.id for prompt, _, _ in texts])


def _win(p_better: float | None) -> float | None:
    return None if p_better is None else float(agreement.wins([p_better])[0])
