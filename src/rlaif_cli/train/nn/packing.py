"""Packing with prefix sharing: [prompt | response 1 | response 2 | … | next prompt | …], without padding.

Responses to the same prompt share it, so that it is computed once (after arXiv 2410.20305). A reward model's pair and a
policy's group of rollouts are both a prompt with branches. Every branch's positions continue from the end of its
prompt, and attention keeps branches separate (`attention.py`), so each branch sees exactly what it would see alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its responses, as token ids."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True, eq=False)
class Layout:
    """Per group: the length of its prompt, then of each branch, in tokens.

    An object, not a bare tuple: torch.compile treats a tuple's numbers as constants and recompiles for every batch.
    """

    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed groups: T tokens in B groups of n branches, each of at most R response tokens.

    Attributes:
        layout: the lengths of the prompts and branches, in the order of T.
        input_ids: [1, T].
        position_ids: [1, T]; every branch continues from the end of its prompt.
        response_ids: [B, n, R].
        response_mask: [B, n, R] bool; False is padding.
        predictor: [B, n, R]; the index in T whose output predicts this response token.
        last: [B, n]; the index in T of the branch's last token.
    """

    layout: Layout
    input_ids: Tensor
    position_ids: Tensor
    response_ids: Tensor
    response_mask: Tensor
    predictor: Tensor
    last: Tensor

    def to(self, device: torch.device | str) -> Packed:
        return Packed(self.layout, *(getattr(self, name).to(device) for name in self.__slots__[1:]))

    def split_branches(self) -> Packed:
        """The same branches, each with its own copy of the prompt: for models that cannot pack."""
        ids: list[Tensor] = []
        positions: list[Tensor] = []
        groups = []
        predictor, last = torch.zeros_like(self.predictor), torch.zeros_like(self.last)
        start = begin = 0
        for row, (prompt, *branches) in enumerate(self.layout.groups):
            shared, begin = slice(begin, begin + prompt), begin + prompt
            for index, length in enumerate(branches):
                own, begin = slice(begin, begin + length), begin + length
                for tensor, parts in ((self.input_ids, ids), (self.position_ids, positions)):
                    parts += [tensor[:, shared], tensor[:, own]]
                groups.append((prompt, length))
                predictor[row, index, :length] = torch.arange(start + prompt - 1, start + prompt + length - 1)
                start += prompt + length
                last[row, index] = start - 1
        return Packed(
            Layout(tuple(groups)),
            torch.cat(ids, dim=1),
            torch.cat(positions, dim=1),
            self.response_ids,
            self.response_mask,
            predictor,
            last,
        )


def pack(groups: Sequence[Group]) -> Packed:
    """Pack groups with the same number of responses each.

    Raises:
        ValueError: a prompt or response is empty, or the groups differ in their number of responses.
    """
    branches = len(groups[0].responses)
    if any(len(group.responses) != branches for group in groups):
        raise ValueError("groups packed together must have the same number of responses")
    if any(not group.prompt or not all(group.responses) for group in groups):
        raise ValueError("a prompt or a response has no tokens")
    shape = (len(groups), branches, max(len(response) for group in groups for response in group.responses))
    response_ids, predictor = torch.zeros(2, *shape, dtype=torch.long).unbind()
    response_mask = torch.zeros(shape, dtype=torch.bool)
    last = torch.zeros(shape[:2], dtype=torch.long)
    ids: list[int] = []
    positions: list[int] = []
    for row, group in enumerate(groups):
        begin = len(group.prompt)
        ids += group.prompt
        positions += range(begin)
        prompt_end = len(ids) - 1
        for index, response in enumerate(group.responses):
            start, length = len(ids), len(response)
            ids += response
            positions += range(begin, begin + length)
            response_ids[row, index, :length] = torch.tensor(response)
            response_mask[row, index, :length] = True
            predictor[row, index, :length] = torch.arange(start - 1, start - 1 + length)
            predictor[row, index, 0] = prompt_end  # the shared prompt predicts every first token
            last[row, index] = start + length - 1
    layout = Layout(tuple((len(group.prompt), *map(len, group.responses)) for group in groups))
    return Packed(layout, torch.tensor([ids]), torch.tensor([positions]), response_ids, response_mask, predictor, last)


def micro_batches(groups: Sequence[Group], token_budget: int) -> Iterator[list[int]]:
    """Indices of groups, in order, in batches of at most `token_budget` tokens.

    A group larger than the budget is a batch by itself.
    """
    batch: list[int] = []
    tokens = 0
    for index, group in enumerate(groups):
        if batch and tokens + group.tokens > token_budget:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += group.tokens
    if batch:
        yield batch


def distribute(groups: Sequence[Group], token_budget: int, parts: int) -> list[list[tuple[list[int], float]]]:
    """Distribute micro-batches over `parts` processes, balanced by tokens.

    Returns:
        For each process its micro-batches, (indices of groups, weight); the same number for all. The weight is 1, or 0
        for a repeated small group that only pads the list.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for index in sorted(range(len(groups)), key=lambda i: groups[i].tokens, reverse=True):
        part = loads.index(min(loads))
        shares[part].append(index)
        loads[part] += groups[index].tokens
    distributed = []
    for share in map(sorted, shares):
        batches = micro_batches([groups[i] for i in share], token_budget)
        distributed.append([([share[i] for i in batch], 1.0) for batch in batches])
    smallest = min(range(len(groups)), key=lambda i: groups[i].tokens)
    passes = max(map(len, distributed))
    return [batches + [([smallest], 0.0)] * (passes - len(batches)) for batches in distributed]
