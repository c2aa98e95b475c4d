"""Sequences in batches that fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlaif_cli.train.nn.packing import Group, distribute
from rlaif_cli.train.parallel.distributed import rank, world_size


def micro_batches(groups: Sequence[Group], token_budget: int) -> Iterator[tuple[list[int], float]]:
    """This process's (indices of groups, weight): weight 1; 0 where the others have more of them.

    All processes go through the model equally often, because each pass gathers weights from all.
    """
    yield from distribute(groups, token_budget, world_size())[rank()]
