"""Split a batch over the processes, and each share into micro-batches that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlaif_cli.train.nn.packing import Group, distribute
from rlaif_cli.train.parallel.distributed import rank, world_size


def micro_batches(groups: Sequence[Group], token_budget: int) -> Iterator[tuple[list[int], float]]:
    """This process's micro-batches: (indices of groups, weight). The weight is 1, or 0 for padding.

    All processes get the same number of micro-batches, because every forward pass is a collective when weights are
    sharded.
    """
    yield from distribute(groups, token_budget, world_size())[rank()]
