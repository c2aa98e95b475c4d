"""Training rows: validation, held-out splits and shuffling."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlaif_cli.data.paths import trainer_rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Record
from rlaif_cli.train.parallel.distributed import is_main

R = TypeVar("R", bound=Record)
T = TypeVar("T")


@functools.lru_cache(maxsize=2)  # a step may extend into the next pass
def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `count` items in a shuffled pass; depends only on seed and pass, so a resumed run has the same.

    Cached: reshuffling a million prompts for each prompt of a step took longer than the step.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.setflags(write=False)  # the cached array is shared
    return order


def held_out(keys: Iterable[str], fraction: float, seed: int, *, minimum: int = 1) -> set[str]:
    """The keys (prompts) that training never sees: `fraction` of the distinct ones, chosen by hash.

    Args:
        minimum: hold out at least this many; if there are no more than this, hold out none.
    """
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())
    count = round(fraction * len(distinct))
    return set(distinct[: max(minimum, count) if fraction > 0 and len(distinct) > minimum else 0])


def checked_rows(
    config: Any, path: str, kind: type[R], convert: Callable[[R], T | str], rejected: str = "rejected"
) -> tuple[Source[R], list[T]]:
    """A trainer's input, and what `convert` makes of each record, in order: the check needs the tokens already.

    With `skip_invalid`, invalid lines go to the `rejected` file beside the output folder.

    A dry run, which only counts, keeps no rows.

    Args:
        convert: returns a text if the record is invalid: the reason.
    """
    rows: list[T] = []

    def check(record: R) -> str | None:
        row = convert(record)
        if isinstance(row, str):
            return row
        if not config.dry_run:
            rows.append(row)
        return None

    written = trainer_rejected_path(config.output, rejected) if is_main() else None
    source = Source(
        path, kind, skip_invalid=config.skip_invalid, rejected_path=written, check=check, restart=rows.clear
    )
    return source, rows
