"""What a stage asks of models and machines, and the time and memory that takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif_cli.pipeline.plan.throughput import Rate


@dataclass(frozen=True)
class File:
    """What stands in a file of records, or will: rows, responses of each, mean tokens of a prompt and a response."""

    rows: int
    responses: int = 0
    prompt: float = 0.0
    response: float = 0.0


@dataclass(frozen=True)
class Work:
    """Tokens that one model has to read, sample or learn from, in one way of running it.

    Attributes:
        engine: its name; "" for a trainer.
        options: of the engine or the trainer, those that decide speed and memory.
        read: tokens to prefill, those of a shared prefix once.
        learned: tokens to train on; one that only goes forward counts a third.
    """

    model: str
    engine: str
    options: tuple[tuple[str, Any], ...]
    read: float = 0.0
    sampled: float = 0.0
    learned: float = 0.0

    @property
    def learns(self) -> bool:
        return not self.engine

    @property
    def key(self) -> str:
        how = " ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.model}: {self.engine or 'training'} {how}".strip()

    def seconds(self, rate: Rate) -> float:
        """Without the start."""
        parts = ((self.read, rate.read), (self.sampled, rate.sampled), (self.learned, rate.learned))
        return sum(tokens / speed for tokens, speed in parts if tokens)


@dataclass(frozen=True)
class Plan:
    """What a step will do; None where it cannot be known yet.

    Attributes:
        rows: of its input (for `label` and the evaluations: comparisons).
        calls: requests to a model; of trainers, optimizer steps.
        work: of each model, for time and memory; None where a server does it.
    """

    rows: int | None = None
    calls: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None
    work: tuple[Work, ...] | None = ()

    def seconds(self, known: Mapping[str, Rate], running: Iterable[str] = ()) -> float | None:
        """None where a rate is not known. Engines that are `running` need no start."""
        if self.work is None or any(each.key not in known for each in self.work):
            return None
        started = sum(known[each.key].start for each in self.work if each.key not in running)
        return started + sum(each.seconds(known[each.key]) for each in self.work)

    def memory(self, known: Mapping[str, Rate]) -> float | None:
        """GiB at most: of all its models side by side."""
        if not self.work or any(each.key not in known for each in self.work):
            return None
        return sum(known[key].memory for key in {each.key for each in self.work})


def timed(plans: Iterable[Plan], known: Mapping[str, Rate]) -> list[float | None]:
    """Seconds of each, one after another: an engine that the one before had open is open still, unless it trained."""
    found, running = [], set[str]()
    for each in plans:
        found.append(each.seconds(known, running))
        running = left_open(each)
    return found


def left_open(plan: Plan) -> set[str]:
    """The engines, by `Work.key`, that a step leaves open for the next; one that trains needs their memory."""
    work = plan.work or ()
    return set() if any(part.learns for part in work) else {part.key for part in work}
