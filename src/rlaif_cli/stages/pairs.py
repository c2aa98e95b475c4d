"""Which responses to a prompt are compared."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.data.records import Candidates
from rlaif_cli.errors import UsageError


def pair_chooser(rule: str, seed: int) -> Any:
    """The rule of `--pairs` as a function: row -> index pairs.

    Raises:
        UsageError: the rule is not all, chain or random:K.
    """
    if rule == "all":
        return lambda row: list(combinations(range(len(row.responses)), 2))
    if rule == "chain":
        return lambda row: [(i, i + 1) for i in range(len(row.responses) - 1)]
    name, _, count = rule.partition(":")
    if name != "random" or not count.isdigit() or int(count) < 1:
        raise UsageError(
            f"{option('pairs')} '{rule}' is unknown", hint="one of: all, chain, random:K (K pairs per row)"
        )

    def some(row: Candidates) -> list[tuple[int, int]]:
        every = list(combinations(range(len(row.responses)), 2))
        return sorted(random.Random(f"{seed}:{row.id}").sample(every, min(int(count), len(every))))

    return some


def pair_id(row: Candidates, i: int, j: int) -> str:
    return row.id if len(row.responses) == 2 else f"{row.id}/{i}-{j}"
