"""User-written reward functions, `FILE.py:NAME`, called with prompts, responses and the fields of the prompts' rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rlaif_cli.data import user_function
from rlaif_cli.data.messages import Message, content_id
from rlaif_cli.data.user_function import UserFunction


class Row(Protocol):
    """A prompt whose responses are scored."""

    @property
    def id(self) -> str: ...
    @property
    def messages(self) -> list[Message]: ...
    @property
    def reference(self) -> str | None: ...
    @property
    def meta(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PromptRow:
    """A prompt of a file, with the other fields of its row."""

    id: str
    messages: list[Message]
    reference: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def response_key(row: Row, response: str) -> str:
    """The key of a response to a row in `reasons`."""
    return content_id(row.id, row.messages, response)


class RewardFunction:
    """A reward source that calls a user's function.

    Attributes:
        reasons: why a response of the last call is unscored, by `response_key`.
    """

    def __init__(self, function: UserFunction) -> None:
        self._function = function
        self.reasons: dict[str, str] = {}

    @property
    def spec(self) -> str:
        return self._function.spec

    @property
    def name(self) -> str:
        return self._function.name

    @property
    def sha256(self) -> str:
        """SHA-256 of the file that defines the function."""
        return self._function.sha256

    def score(self, rows: Sequence[Row], responses: Sequence[Sequence[str]]) -> Tensor:
        """The score of every response, [rows, n]; NaN where the function returned None or NaN.

        Calls the function once, with flat lists in which a prompt is repeated for each of its responses. The lists are
        copies, so the function may change them.

        Args:
            responses: [rows, n].

        Raises:
            InputError: the function failed, or returned something other than numbers; names the row if it is known.
        """
        flat = [
            (row, text, f"row '{row.id}', response {number}")
            for row, texts in zip(rows, responses, strict=True)
            for number, text in enumerate(texts, start=1)
        ]
        arguments: dict[str, list[Any]] = {
            "prompts": [[message.model_dump() for message in row.messages] for row, _, _ in flat],
            "responses": [text for _, text, _ in flat],
            "reference": [row.reference for row, _, _ in flat],
            "meta": [copy.deepcopy(row.meta) for row, _, _ in flat],
        }
        found = self._function.scores([place for _, _, place in flat], arguments)
        self.reasons = {
            response_key(row, text): f"{self.name} returned {'None' if value is None else 'NaN'}"
            for (row, text, _), value in zip(flat, found, strict=True)
            if value is None or math.isnan(value)
        }
        values = torch.tensor([math.nan if value is None else value for value in found])
        return values.view(len(rows), -1) if rows else torch.empty(0, 0)


def load(spec: str) -> RewardFunction:
    """Load the function that `FILE.py:NAME` names; this runs the file.

    Raises:
        InputError: see `user_function.load`.
    """
    return RewardFunction(user_function.load(spec))
