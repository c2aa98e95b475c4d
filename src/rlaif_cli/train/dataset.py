"""Training rows: checked, held out, and put in an order."""

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


@functools.lru_cache(maxsize=2)  # a step may reach into the next pass
def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `count` items in a shuffled pass, known from the seed and the pass alone: a resumed run has it too.

    Kept between calls: to shuffle a million prompts again for each of them took longer than a step.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.setflags(write=False)  # all callers share it
    return order


def held_out(keys: Iterable[str], fraction: float, seed: int, *, least: int = 1) -> set[str]:
    """The keys (prompts) that training never sees: `fraction` of the distinct ones, chosen by hash.

    Args:
        least: that many at least; none where not even one more is there.
    """
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())
    count = round(fraction * len(distinct))
    return set(distinct[: max(least, count) if fraction > 0 and len(distinct) > least else 0])


def checked_source(
    config: Any, path: str, kind: type[R], check: Callable[[R], str | None], rejected: str = "rejected"
) -> Source[R]:
    """A trainer's input; lines put aside with `skip_invalid` go beside its output folder, into `rejected`."""
    written = trainer_rejected_path(config.output, rejected) if is_main() else None
    return Source(path, kind, skip_invalid=config.skip_invalid, rejected_path=written, check=check)
