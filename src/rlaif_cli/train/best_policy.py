"""Select the best policy of a PPO run: the one whose answers a judge most often prefers to the initial policy's.

Optimising a reward for too long exploits its errors, so PPO's last policy is often not its best (Gao et al.,
arXiv 2210.10760).

The highest of several win rates is biased upwards: by chance, one of many measurements is far above the true value,
even if nothing was learned. So the held-out prompts are split in two: one half selects the weights, and the other half
measures the selected weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif_cli.config.naming import option
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.data.messages import Message, content_id
from rlaif_cli.errors import UsageError
from rlaif_cli.stats import agreement
from rlaif_cli.stats.as_json import rate
from rlaif_cli.train import dataset
from rlaif_cli.train.rollout import Prompt

# (prompt, a, b) triples -> P(a is better), None if the judge cannot decide
Compare = Callable[[Sequence[tuple[list[Message], str, str]]], list[float | None]]
# Prompt id -> its responses, the same number for each prompt.
Answers = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that are not trained on.

    Attributes:
        choosing: those that select the weights; empty without `--eval-judge`.
        reporting: those that measure the selected weights.
    """

    choosing: list[Prompt]
    reporting: list[Prompt]

    @property
    def prompts(self) -> list[Prompt]:
        return [*self.choosing, *self.reporting]


@dataclass(frozen=True)
class WinRate:
    """How often a policy's answers are preferred to those of the initial policy.

    Attributes:
        wins: per comparison 1, 0, or 0.5 for a tie; None if the judge could not decide.
        prompts: per comparison, the id of its prompt.
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
        """The win rate with n and an interval over prompts; None if nothing was decided."""
        prompts = [prompt for prompt, win in zip(self.prompts, self.wins, strict=True) if win is not None]
        return rate(np.array(self.decided), prompts) if prompts else None

    def as_json(self) -> dict[str, Any]:
        found = self.estimate
        return {"win_rate": found, "prompts": found["prompts"] if found else 0, "unscored": self.unscored}


def split(config: PPOConfig, prompts: list[Prompt]) -> tuple[list[Prompt], HeldOut]:
    """Split prompts into (training, held out), by content: copies of a prompt are on the same side.

    Raises:
        UsageError: there are too few prompts to hold out two.
    """
    if not config.evaluates:
        return prompts, HeldOut([], [])
    content = [content_id(prompt.messages) for prompt in prompts]
    held_out = dataset.held_out(content, config.eval_fraction, config.seed, minimum=2)
    if not held_out:
        raise UsageError(
            f"{option('eval_judge')} and {option('eval_function')} need at least three different prompts: two "
            "are held out (with a judge, "
            "one to select the weights and one to measure them)",
            where=config.prompts,
        )
    reporting = dataset.held_out(held_out, 0.5, config.seed) if config.eval_judge is not None else held_out

    def with_content(wanted: set[str]) -> list[Prompt]:
        return [prompt for prompt, key in zip(prompts, content, strict=True) if key in wanted]

    selecting = held_out - reporting
    return with_content(set(content) - held_out), HeldOut(with_content(selecting), with_content(reporting))


class Selection:
    """Win rates over the initial policy's answers to held-out prompts. Calls the judge in the calling process."""

    def __init__(self, held_out: HeldOut, compare: Compare) -> None:
        self._held_out = held_out
        self._compare = compare

    def selection_win_rate(self, now: Answers, start: Answers) -> WinRate:
        """The win rate on the prompts that select the weights."""
        return self._win_rate(self._held_out.choosing, now, start)

    def report_win_rate(self, now: Answers, start: Answers) -> WinRate:
        """The win rate on the prompts that had no part in the selection."""
        return self._win_rate(self._held_out.reporting, now, start)

    def _win_rate(self, prompts: list[Prompt], now: Answers, start: Answers) -> WinRate:
        texts = [(p, a, b) for p in prompts for a, b in zip(now[p.id], start[p.id], strict=True)]
        # Equal texts are a tie; the judge is not called.
        judged = iter(self._compare([(prompt.messages, a, b) for prompt, a, b in texts if a != b]))
        p_better = [next(judged) if a != b else 0.5 for _, a, b in texts]
        return WinRate([_win(p) for p in p_better], [prompt.id for prompt, _, _ in texts])


def _win(p_better: float | None) -> float | None:
    return None if p_better is None else float(agreement.wins([p_better])[0])
