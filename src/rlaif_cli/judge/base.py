"""Comparisons, judgements, the judge protocol, and the choice of principles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlaif_cli.data.messages import Message, content_id
from rlaif_cli.engines.base import Request
from rlaif_cli.judge.constitution import Constitution, Principle

Prompt = str | list[Message]


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, and the principles to judge them by."""

    key: Any
    prompt: Prompt
    a: str
    b: str
    principles: tuple[Principle, ...]


@dataclass(frozen=True)
class Judgement:
    """A judge's result for a comparison.

    Attributes:
        p_a: P(the judge prefers `a`); None if unscored.
        reason: why it is unscored.
        retryable: a later retry may help: the judge could not be reached.
        by_principle: `p_a` for each principle alone.
        p_first: pairwise: per principle and order, P(the response shown first wins); a shown first, then b.
        mass: probability of the labels in the full distribution, for each of `p_first`; for scores, for a and b per
            principle. Empty if the judge's server does not report it.
        scores: of a and b, mean over the principles: nats per token (contrast), or from 1 to 10 (score).
        flipped: pairwise: the same *position* won in both orders (averaged over the principles).
        rationales: the judge's reasoning before each answer.
        panel: for several judges, the judgement of each by name; all of the above are then means.
    """

    p_a: float | None
    reason: str | None = None
    retryable: bool = False
    by_principle: tuple[float, ...] = ()
    p_first: tuple[float, ...] = ()
    mass: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    flipped: bool = False
    rationales: tuple[str, ...] = ()
    panel: Mapping[str, Judgement] = field(default_factory=dict)


@dataclass(frozen=True)
class Single:
    """A single response, and the principles to judge it by."""

    key: Any
    prompt: Prompt
    response: str
    principles: tuple[Principle, ...]


@dataclass(frozen=True)
class Approval:
    """How well a response meets its principles.

    Attributes:
        by_principle: P(a principle favours the response); empty if unscored.
        reason: why it is unscored.
    """

    by_principle: tuple[float, ...] = ()
    reason: str | None = None

    @property
    def p(self) -> float | None:
        """The mean over the principles; None if unscored."""
        return mean(self.by_principle) if self.reason is None else None


class Judge(Protocol):
    method: str

    def requests(self, comparison: Comparison) -> list[Request]:
        """All engine requests of one comparison, except those for rationales."""
        ...

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        """Judge a stream of comparisons, in any order."""
        ...

    def approve(self, items: Iterable[Single]) -> Iterator[tuple[Single, Approval]]:
        """Judge a stream of single responses, in any order."""
        ...

    def approval_requests(self, item: Single) -> list[Request]:
        """All engine requests of one of them."""
        ...


class NoReward(float):
    """NaN, and why the judge gave no reward."""

    reason: str

    def __new__(cls, reason: str) -> NoReward:
        found = super().__new__(cls, math.nan)
        found.reason = reason
        return found


class RewardingJudge(Judge, Protocol):
    """A judge that can give a single response a reward."""

    def rewards(self, items: Iterable[tuple[Any, Prompt, str, Principle]]) -> Iterator[tuple[Any, float]]:
        """Items: (key, prompt, response, principle); higher is better. `NoReward` where there is none."""
        ...


def choose_principles(
    constitution: Constitution, wanted: Sequence[str], prompt: Any, a: str, b: str, seed: int
) -> tuple[Principle, ...]:
    """The principles of one comparison.

    A drawn principle depends only on the seed and the texts: not on the row's position, nor on which response comes
    first, so that swapping two responses swaps their label.
    """
    if tuple(wanted) == ("sample",):
        return (constitution.draw(content_id(prompt, sorted([a, b])), seed),)
    return named_principles(constitution, wanted)


def named_principles(constitution: Constitution, wanted: Sequence[str]) -> tuple[Principle, ...]:
    """The principles with these ids, or all for 'all'."""
    return tuple(constitution.principles if tuple(wanted) == ("all",) else constitution.select(list(wanted)).principles)


def direction(principle: Principle) -> float:
    """+1, or -1 where a principle asks for the *worse* response: the one place where answers are inverted.

    Easy to get silently wrong (Lee et al. ask for the more harmful response and invert the label). Whatever a judge
    measures as a difference around zero is multiplied by this, once.
    """
    return -1.0 if principle.choose == "worse" else 1.0


def position_won(p_first: Sequence[float]) -> bool:
    """Whether the same *position* won in both orders, on average over the principles; `p_first` as in `Judgement`."""
    if not p_first:
        return False
    a_first, b_first = mean(p_first[0::2]), mean(p_first[1::2])
    return (a_first > 0.5) == (b_first > 0.5) and a_first != 0.5


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))
