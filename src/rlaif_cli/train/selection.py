"""Which of the policies on the way is the best: the one whose answers a judge prefers most often to the start's.

A reward that is climbed for too long is gamed: PPO's last policy is often not its best (Gao et al., arXiv 2210.10760).

The highest of several win rates is too high: by chance one of many looks is far above the truth, also where nothing
was learned. So the held-out prompts are split in two: one half chooses, and the chosen weights are measured on the
other, which took no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_cli import metrics
from rlaif_cli.config import PPOConfig
from rlaif_cli.engines.base import request_seed
from rlaif_cli.errors import UsageError
from rlaif_cli.output import read_json, write_json
from rlaif_cli.records import Message, content_id
from rlaif_cli.results import rate
from rlaif_cli.train import distributed, loop
from rlaif_cli.train.rollout import Prompt, RolloutEngine

START = "held_out.start.json"
# (prompt, a, b) triples -> P(a is better), None where the judge cannot tell
Compare = Callable[[Sequence[tuple[list[Message], str, str]]], list[float | None]]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that are not trained on."""

    choosing: list[Prompt]
    reporting: list[Prompt]


@dataclass(frozen=True)
class WinRate:
    """How often a policy's answers are preferred to the start's.

    Attributes:
        wins: of each decided comparison: 1, 0, or 0.5 for a tie.
        prompts: the id of each one's prompt.
        unscored: comparisons that the judge could not decide.
    """

    wins: list[float]
    prompts: list[str]
    unscored: int

    @property
    def value(self) -> float:
        return float(np.mean(self.wins))

    def as_json(self) -> dict[str, Any]:
        """With its interval over prompts, and its n."""
        found = rate(np.array(self.wins), self.prompts) if self.wins else None
        return {"win_rate": found, "prompts": len(set(self.prompts)), "unscored": self.unscored}


def split(config: PPOConfig, prompts: list[Prompt]) -> tuple[list[Prompt], HeldOut]:
    """(trained on, held out), by content: a prompt that stands in the file twice is on one side.

    Raises:
        UsageError: there are too few to hold two out.
    """
    if config.eval_judge is None:
        return prompts, HeldOut([], [])
    content = [content_id(prompt.messages) for prompt in prompts]
    away = loop.held_out(content, config.eval_fraction, config.seed, least=2)
    if not away:
        raise UsageError(
            "--eval-judge needs at least three different prompts: two are held out, one to choose the weights and one "
            "to measure them",
            where=config.prompts,
        )
    reporting = loop.held_out(away, 0.5, config.seed)

    def those(wanted: set[str]) -> list[Prompt]:
        return [prompt for prompt, key in zip(prompts, content, strict=True) if key in wanted]

    return those(set(content) - away), HeldOut(those(away - reporting), those(reporting))


class Selection:
    """Win rates over the start's answers to held-out prompts.

    Args:
        folder: keeps the start's answers, so that a resumed run compares with the same.
    """

    def __init__(self, config: PPOConfig, folder: Path, held_out: HeldOut, compare: Compare) -> None:
        self._seed = config.seed
        self._path = folder / START
        self._held_out = held_out
        self._compare = compare

    def remember_start(self, engine: RolloutEngine) -> None:
        """Before the first update: the answers to compare with."""
        if distributed.from_main(self._path.exists):
            return
        engine.sync()
        prompts = [*self._held_out.choosing, *self._held_out.reporting]
        answers = self._answers(engine, prompts)
        start = {prompt.id: texts for prompt, texts in zip(prompts, answers, strict=True)}
        distributed.from_main(lambda: write_json(self._path, start))

    def look(self, engine: RolloutEngine) -> WinRate:
        """Of the policy as it is now, on the prompts that choose."""
        return self._win_rate(engine, self._held_out.choosing)

    def report(self, engine: RolloutEngine) -> WinRate:
        """Of the policy as it is now, on the prompts that took no part in the choice."""
        return self._win_rate(engine, self._held_out.reporting)

    def _win_rate(self, engine: RolloutEngine, prompts: list[Prompt]) -> WinRate:
        engine.sync()
        answers = self._answers(engine, prompts)
        return distributed.from_main(lambda: self._compared(prompts, answers))

    def _compared(self, prompts: list[Prompt], answers: list[list[str]]) -> WinRate:
        start = read_json(self._path)
        texts = [
            (prompt, now, then)
            for prompt, of_now in zip(prompts, answers, strict=True)
            for now, then in zip(of_now, start[prompt.id], strict=True)
        ]
        # Equal texts are a tie; the judge is not asked.
        asked = iter(self._compare([(prompt.messages, now, then) for prompt, now, then in texts if now != then]))
        p = [next(asked) if now != then else 0.5 for _, now, then in texts]
        decided = [(prompt.id, each) for (prompt, _, _), each in zip(texts, p, strict=True) if each is not None]
        wins = metrics.wins([each for _, each in decided]).tolist() if decided else []
        return WinRate(wins, [key for key, _ in decided], len(texts) - len(decided))

    def _answers(self, engine: RolloutEngine, prompts: list[Prompt]) -> list[list[str]]:
        """Sampled with the same seeds every time, so that chance differs as little as it can."""
        mine = distributed.share_of(prompts)
        seeds = [request_seed(self._seed, "held out", prompt.id) for prompt in mine]
        sampled = [[c.reply for c in rollout.completions] for rollout in engine.sample(mine, seeds)]
        return distributed.whole_of(sampled)
