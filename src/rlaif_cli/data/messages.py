"""Prompts as chat messages, and ids made from their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from rlaif_cli.data.turns import normalize_message


class Message(BaseModel):
    """One turn.

    Attributes:
        reasoning_content: what the assistant thought before it wrote `content`, under the name that chat templates and
            servers use; absent from files where there is none.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> Any:
        return normalize_message(value)

    @model_serializer(mode="wrap")
    def _without_absent_reasoning(self, handler: Any) -> dict[str, Any]:
        row: dict[str, Any] = handler(self)
        if self.reasoning_content is None:
            row.pop("reasoning_content", None)
        return row


class Asked(Message):
    """A question to a judge as one turn, with its parts for an engine that takes them separately.

    Attributes:
        material: what is judged, marked as data.
        question: the question about it, without how to write the answer.
        options: what each label means, in the labels' order.
        scale: the options are levels, the lowest first.
    """

    material: str
    question: str
    options: tuple[str, ...]
    scale: bool = False


def check_last_turn(turns: list[Message]) -> list[Message]:
    last = turns[-1].role
    if last == "user" and not turns[-1].content:
        raise ValueError("ends with an empty turn")
    if last in ("user", "tool"):
        return turns
    hint = (
        "; a conversation that ends with its reply is a demonstration, for `rlaif sft`" if last == "assistant" else ""
    )
    raise ValueError(f"must end with a user (or tool) turn, not with one of role {last}{hint}")


def content_id(*parts: Any) -> str:
    """The id of a row that has none: 16 hex digits of the content's sha256."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=jsonable)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def jsonable(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)


def as_messages(prompt: str | list[Message]) -> list[Message]:
    """A prompt as chat messages: a plain string is one user turn."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def prompt_text(prompt: str | list[Message]) -> str:
    """A prompt as one plain text, for judge prompts and screens; several turns are labelled with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt)


def shared_prompt(one: str | list[Message], other: str | list[Message]) -> list[Message] | None:
    """The common prompt of two rows, as messages; None if they differ.

    System turns are dropped if they differ or only one row has one (`generate --system`): the question is the same.
    """
    a, b = as_messages(one), as_messages(other)
    if a != b:
        a, b = ([turn for turn in turns if turn.role != "system"] for turns in (a, b))
    return a if a == b else None


def prompt_key(prompt: str | list[Message]) -> str:
    """16 hex digits of a prompt's content: the same for all rows with that prompt, whatever their ids."""
    return content_id(as_messages(prompt))
