"""The work of a stage in tokens per model, and the time and memory it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif_cli.pipeline.plan.throughput import Rate


@dataclass(frozen=True)
class File:
    """The size of a file of records that exists or will exist; `prompt` and `response` are mean tokens."""

    rows: int
    responses: int = 0
    prompt: float = 0.0
    response: float = 0.0


@dataclass(frozen=True)
class Work:
    """Tokens that one model has to prefill, decode or train on, with one set of options.

    Attributes:
        engine: its name; "" for a trainer.
        options: those of the engine or trainer that affect speed and memory.
        prefill: tokens to prefill; a shared prefix counts once.
        decode: tokens to decode.
        train: tokens to train on; one in a forward pass only counts a third.
    """

    model: str
    engine: str
    options: tuple[tuple[str, Any], ...]
    prefill: float = 0.0
    decode: float = 0.0
    train: float = 0.0

    @property
    def trains(self) -> bool:
        return not self.engine

    @property
    def key(self) -> str:
        options = " ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.model}: {self.engine or 'training'} {options}".strip()

    def seconds(self, rate: Rate) -> float:
        """Time without the start of the engine."""
        parts = ((self.prefill, rate.prefill), (self.decode, rate.decode), (self.train, rate.train))
        return sum(tokens / speed for tokens, speed in parts if tokens)


@dataclass(frozen=True)
class Plan:
    """What a step will do; None where it is unknown.

    Attributes:
        rows: rows of its input (for `label` and the evaluations: comparisons).
        calls: requests to a model; for trainers, optimizer steps.
        work: the work of each model; None if a server does it.
        sequential: for a stage that takes turns at sampling and training, the tokens decoded one after another.
    """

    rows: int | None = None
    calls: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None
    work: tuple[Work, ...] | None = ()
    sequential: int | None = None

    def seconds(self, known: Mapping[str, Rate], running: Iterable[str] = ()) -> float | None:
        """Seconds, or None if a rate is unknown. Engines that are already `running` need no start."""
        if self.work is None or any(each.key not in known for each in self.work):
            return None
        started = sum(known[each.key].start for each in self.work if each.key not in running)
        return started + sum(each.seconds(known[each.key]) for each in self.work)

    def memory(self, known: Mapping[str, Rate]) -> float | None:
        """Peak GiB with all of its models loaded."""
        if not self.work or any(each.key not in known for each in self.work):
            return None
        return sum(known[key].memory for key in {each.key for each in self.work})


def timed(plans: Iterable[Plan], known: Mapping[str, Rate]) -> list[float | None]:
    """Seconds of each plan, run one after another: an engine stays open for the next step, unless the step trains."""
    found, running = [], set[str]()
    for each in plans:
        found.append(each.seconds(known, running))
        running = left_open(each)
    return found


def left_open(plan: Plan) -> set[str]:
    """The engines, by `Work.key`, that a step leaves open; a step that trains closes them for their memory."""
    work = plan.work or ()
    return set() if any(part.trains for part in work) else {part.key for part in work}
