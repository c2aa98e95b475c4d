"""Several judges for every pair: each judgement is kept, and their distributions are averaged.

A pair that any of them leaves unscored is unscored: an average over only some judges would not be comparable with other
pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from rlaif_cli.engines.base import Request
from rlaif_cli.judge.base import Approval, Comparison, Judge, Judgement, Single, mean, position_won

_CHUNK = 128  # items passed from judge to judge together


class PanelJudge:
    """See `Judge`.

    Args:
        judges: by name; all of one method.
    """

    def __init__(self, judges: dict[str, Judge]) -> None:
        self._judges = judges
        self.method = next(iter(judges.values())).method

    def requests(self, comparison: Comparison) -> list[Request]:
        return [request for judge in self._judges.values() for request in judge.requests(comparison)]

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        for comparison, votes in self._votes(comparisons, lambda judge, asked: judge.compare(asked)):
            yield comparison, combined(votes)

    def approve(self, items: Iterable[Single]) -> Iterator[tuple[Single, Approval]]:
        for item, votes in self._votes(items, lambda judge, asked: judge.approve(asked)):
            reason = next((f"{name}: {vote.reason}" for name, vote in votes.items() if vote.reason), None)
            yield item, Approval(() if reason else _means([vote.by_principle for vote in votes.values()]), reason)

    def _votes(self, items: Iterable[Any], ask: Callable[[Judge, Iterator[Any]], Any]) -> Iterator[tuple[Any, Any]]:
        """Each item with every judge's result, by name."""
        waiting = iter(items)
        while chunk := list(islice(waiting, _CHUNK)):
            votes: list[dict[str, Any]] = [{} for _ in chunk]
            for name, judge in self._judges.items():
                for asked, vote in ask(judge, (replace(item, key=place) for place, item in enumerate(chunk))):
                    votes[asked.key][name] = vote
            yield from zip(chunk, votes, strict=True)

    def approval_requests(self, item: Single) -> list[Request]:
        return [request for judge in self._judges.values() for request in judge.approval_requests(item)]


def combined(votes: dict[str, Judgement]) -> Judgement:
    """The panel's judgement: the means over its judges, or why it is unscored."""
    every = list(votes.values())
    for name, vote in votes.items():
        if vote.p_a is None:
            retryable = any(other.retryable for other in every)
            return Judgement(None, f"{name}: {vote.reason}", retryable, panel=votes)
    p_first = _means([vote.p_first for vote in every])
    return Judgement(
        p_a=mean([vote.p_a for vote in every if vote.p_a is not None]),
        by_principle=_means([vote.by_principle for vote in every]),
        p_first=p_first,
        mass=_means([vote.mass for vote in every]) if all(vote.mass for vote in every) else (),
        scores=_means([vote.scores for vote in every]),
        flipped=position_won(p_first),
        panel=votes,
    )


def _means(columns: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(mean(values) for values in zip(*columns, strict=True))
