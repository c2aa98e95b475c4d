"""Prices, and a budget that is never passed: what a request may cost at most is reserved before it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.engines.base import Usage

_OVERHEAD = 256  # tokens that a chat template may add to a request
_TOLERANCE = 1e-9  # USD: rounding errors of sums


class NotNow(Exception):
    """A request is not sent, or its answer is not there yet; a rerun of the command gets it."""


@dataclass(frozen=True)
class Prices:
    """In USD per million tokens."""

    tokens_in: float
    tokens_out: float

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


def most_tokens(body: dict[str, Any]) -> tuple[int, int]:
    """At most how many tokens a request has, and its answer: a token of text has at least one byte."""
    size = sum(len(turn["content"].encode("utf-8", "surrogatepass")) for turn in body["messages"])
    longest = body.get("max_tokens") or body.get("max_completion_tokens") or 0
    return size + _OVERHEAD, longest * (body.get("n") or 1)


class Budget:
    """How much may be spent on an output.

    Args:
        limit: USD.
        before: USD that the output cost before `usage`.
        usage: the tokens paid for, as they are counted.

    Attributes:
        exhausted: a request was not sent because it might have passed the limit.
    """

    def __init__(self, limit: float, prices: Prices, before: float, usage: Usage) -> None:
        self.limit, self.prices = limit, prices
        self._before, self._usage = before, usage
        self._reserved = 0.0
        self._changed = threading.Condition()
        self.exhausted = False

    @property
    def spent(self) -> float:
        return self._before + self.prices.cost(self._usage.tokens_in, self._usage.tokens_out)

    def fits(self, cost: float) -> bool:
        return self.spent + self._reserved + cost <= self.limit + _TOLERANCE

    def reserve(self, cost: float) -> None:
        with self._changed:
            self._reserved += cost

    def release(self, cost: float) -> None:
        with self._changed:
            self._reserved -= cost
            self._changed.notify_all()

    @contextmanager
    def reserved(self, body: dict[str, Any]) -> Iterator[None]:
        """Reserve what a request may cost while it is in flight; wait for others if only they stand in its way.

        Raises:
            NotNow: it might pass the limit.
        """
        cost = self.prices.cost(*most_tokens(body))
        with self._changed:
            while not self.exhausted and not self.fits(cost):
                if self._reserved <= _TOLERANCE:
                    self.exhausted = True
                    self._changed.notify_all()
                else:
                    self._changed.wait()
            if self.exhausted:
                raise NotNow(f"{option('max_cost')} is reached")
            self._reserved += cost
        try:
            yield
        finally:
            self.release(cost)
