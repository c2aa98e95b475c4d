"""Which of the policies on the way is the best: the one whose answers a judge prefers most often to the start's.

A reward that is climbed for too long is gamed: PPO's last policy is often not its best (RESEARCH section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rlaif_cli import metrics
from rlaif_cli.config import PPOConfig
from rlaif_cli.engines.base import request_seed
from rlaif_cli.errors import EngineError, UsageError
from rlaif_cli.output import read_json, write_json
from rlaif_cli.records import Message
from rlaif_cli.train import distributed, loop
from rlaif_cli.train.rollout import Prompt, RolloutEngine

START = "held_out.start.json"
# (prompt, a, b) triples -> P(a is better), None where the judge cannot tell
Compare = Callable[[Sequence[tuple[list[Message], str, str]]], list[float | None]]


def split(config: PPOConfig, prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(trained on, held out).

    Raises:
        UsageError: there are too few to hold one out.
    """
    if config.eval_judge is None:
        return prompts, []
    away = loop.held_out((prompt.id for prompt in prompts), config.eval_fraction, config.seed)
    if not away:
        raise UsageError("--eval-judge needs at least two prompts: one is held out", where=config.prompts)
    return [p for p in prompts if p.id not in away], [p for p in prompts if p.id in away]


class Selection:
    """Win rates over the start's answers to held-out prompts.

    Args:
        folder: keeps the start's answers, so that a resumed run compares with the same.
    """

    def __init__(self, config: PPOConfig, folder: Path, prompts: list[Prompt], compare: Compare) -> None:
        self._seed = config.seed
        self._path = folder / START
        self._prompts = prompts
        self._compare = compare

    def remember_start(self, engine: RolloutEngine) -> None:
        """Before the first update: the answers to compare with."""
        if distributed.from_main(self._path.exists):
            return
        engine.sync()
        ids, answers = [prompt.id for prompt in self._prompts], self._answers(engine)
        distributed.from_main(lambda: write_json(self._path, dict(zip(ids, answers, strict=True))))

    def win_rate(self, engine: RolloutEngine) -> float:
        """Of the policy as it is now; undecided comparisons count one half.

        Raises:
            EngineError: the judge could decide none.
        """
        engine.sync()
        answers = self._answers(engine)
        return distributed.from_main(lambda: self._compared(answers))

    def _compared(self, answers: list[list[str]]) -> float:
        start = read_json(self._path)
        texts = [
            (prompt.messages, now, then)
            for prompt, of_now in zip(self._prompts, answers, strict=True)
            for now, then in zip(of_now, start[prompt.id], strict=True)
        ]
        decided = [p for p in self._compare(texts) if p is not None]
        if not decided:
            raise EngineError(
                f"the judge could decide none of {len(texts)} comparisons", hint="another --eval-judge or --eval-method"
            )
        return float(metrics.wins(decided).mean())

    def _answers(self, engine: RolloutEngine) -> list[list[str]]:
        """Sampled with the same seeds every time, so that chance differs as little as it can."""
        mine = distributed.share_of(self._prompts)
        seeds = [request_seed(self._seed, "held out", prompt.id) for prompt in mine]
        sampled = [[c.text for c in rollout.completions] for rollout in engine.sample(mine, seeds)]
        return distributed.whole_of(sampled)
