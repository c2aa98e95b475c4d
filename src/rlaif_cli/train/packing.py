"""Rows in which sequences that share a prompt compute it once: [prompt | response 1 | response 2 | …].

A reward model's pair and a policy's group of rollouts are the same thing here: a prompt with branches. Positions
restart at every branch and a mask keeps branches apart, so each branch sees what it would see alone (after prefix
sharing, arXiv 2410.20305).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and the responses to it, as token ids."""

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass(frozen=True, slots=True)
class Packed:
    """Groups ready for a model. B rows (groups) of T tokens; n branches a row, each of at most R response tokens.

    Attributes:
        input_ids: [B, T].
        position_ids: [B, T]; every branch goes on from the end of its prompt.
        mask: [B, 1, T, T] bool; who may see whom. Padding sees itself alone (a row that sees nothing would be NaN).
        response_ids: [B, n, R].
        response_mask: [B, n, R] bool; False is padding.
        predictor: [B, n, R]; the position in T whose output predicts this response token.
        last: [B, n]; the position of the branch's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    predictor: Tensor
    last: Tensor

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(getattr(self, name).to(device) for name in self.__slots__))


def pack(groups: Sequence[Group]) -> Packed:
    """Lay out groups of equally many responses.

    Raises:
        ValueError: a prompt or response is empty, or the groups differ in their number of responses.
    """
    branches = len(groups[0].responses)
    if any(len(group.responses) != branches for group in groups):
        raise ValueError("groups packed together need the same number of responses")
    if any(not group.prompt or not all(group.responses) for group in groups):
        raise ValueError("a prompt or a response holds no tokens")
    rows, width = len(groups), max(group.tokens for group in groups)
    longest = max(len(response) for group in groups for response in group.responses)
    input_ids = torch.zeros(rows, width, dtype=torch.long)
    position_ids = torch.zeros(rows, width, dtype=torch.long)
    branch = torch.full((rows, width), -1)  # -1 padding, 0 prompt, 1… the branches
    response_ids = torch.zeros(rows, branches, longest, dtype=torch.long)
    response_mask = torch.zeros(rows, branches, longest, dtype=torch.bool)
    predictor = torch.zeros(rows, branches, longest, dtype=torch.long)
    last = torch.zeros(rows, branches, dtype=torch.long)
    for row, group in enumerate(groups):
        start = len(group.prompt)
        input_ids[row, :start] = torch.tensor(group.prompt)
        position_ids[row, :start] = torch.arange(start)
        branch[row, :start] = 0
        for index, response in enumerate(group.responses):
            length = len(response)
            end = start + length
            tokens = torch.tensor(response)
            input_ids[row, start:end] = tokens
            position_ids[row, start:end] = torch.arange(length) + len(group.prompt)
            branch[row, start:end] = index + 1
            response_ids[row, index, :length] = tokens
            response_mask[row, index, :length] = True
            predictor[row, index, :length] = torch.arange(start - 1, end - 1)
            predictor[row, index, 0] = len(group.prompt) - 1  # the shared prompt predicts every first token
            last[row, index] = end - 1
            start = end
    return Packed(input_ids, position_ids, _branch_mask(branch), response_ids, response_mask, predictor, last)


def _branch_mask(branch: Tensor) -> Tensor:
    """[B, T] branch numbers -> [B, 1, T, T]: a token sees earlier tokens of its own branch and of the prompt."""
    width = branch.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = branch[:, :, None] == branch[:, None, :]
    prompt = (branch[:, None, :] == 0) & (branch[:, :, None] >= 0)
    visible = causal & (same | prompt) & (branch[:, :, None] >= 0)
    return (visible | torch.eye(width, dtype=torch.bool))[:, None]


def micro_batches(groups: Sequence[Group], token_budget: int) -> Iterator[list[int]]:
    """Indices of groups that go through the model together: alike in length, at most `token_budget` padded tokens.

    A group that is larger than the budget goes alone.
    """
    batch: list[int] = []
    for index in sorted(range(len(groups)), key=lambda i: groups[i].tokens):
        if batch and groups[index].tokens * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
