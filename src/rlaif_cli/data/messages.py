"""Prompts as chat messages, and what identifies one."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from rlaif_cli.data.turns import plain_message


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return plain_message(value)


def waits_for_a_reply(turns: list[Message]) -> list[Message]:
    last = turns[-1].role
    if last == "user" and not turns[-1].content:
        raise ValueError("ends with an empty turn")
    if last in ("user", "tool"):
        return turns
    hint = "; a chat that ends with its reply is a demonstration, for `rlaif sft`" if last == "assistant" else ""
    raise ValueError(f"must end with a user's (or tool's) turn, and ends with the {last}'s{hint}")


def content_id(*parts: Any) -> str:
    """A row's id when its author gave none: 16 hex digits of the content's sha256."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)


def as_messages(prompt: str | list[Message]) -> list[Message]:
    """A prompt as chat messages: a plain string is one user turn."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def prompt_text(prompt: str | list[Message]) -> str:
    """A prompt as one plain text, for judge prompts and screens; turns are named when there are several."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt)


def shared_prompt(one: str | list[Message], other: str | list[Message]) -> list[Message] | None:
    """The prompt of two rows, as messages; None where they have different ones.

    Where one of them has another system turn, or alone has one (`generate --system`), it is left out: what was asked
    is the same.
    """
    a, b = as_messages(one), as_messages(other)
    if a != b:
        a, b = ([turn for turn in turns if turn.role != "system"] for turns in (a, b))
    return a if a == b else None


def prompt_key(prompt: str | list[Message]) -> str:
    """A prompt's content as 16 hex digits: rows of one prompt share it, whatever their ids."""
    return content_id(as_messages(prompt))
