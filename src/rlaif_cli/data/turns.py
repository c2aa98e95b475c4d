"""Find the prompt and the replies of a raw row, in the shapes that other tools write.

Rows are as `json.loads` returns them. What is not a list of messages is left unchanged: the record's own validation
reports it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

Row = dict[str, Any]
MESSAGE_FIELDS = ("prompt", "messages", "chosen", "rejected", "completion", "response")
# What other tools call a message's `reasoning_content`.
_REASONING_NAMES = ("reasoning", "thinking")
_REMOVE_HINT = "`rlaif data validate --fix NEW` removes an exact copy"


def normalize_message(value: Any) -> Any:
    """A chat message without null fields, with a list of text parts joined to one text, and its reasoning so named.

    Raises:
        ValueError: a part is not text, or the reasoning has two values.
    """
    if isinstance(value, BaseModel):
        return value.model_dump()
    if not isinstance(value, dict) or (value.keys() == {"role", "content"} and isinstance(value["content"], str)):
        return value  # the common case
    message = {name: each for name, each in value.items() if each is not None}
    for name in _REASONING_NAMES:
        if name in message and message.setdefault("reasoning_content", message[name]) != message.pop(name):
            raise ValueError(f"'{name}' and 'reasoning_content' have different values")
    if isinstance(message.get("content"), list):
        message["content"] = "".join(map(_text_of_part, message["content"]))
    return message


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind, text = (part.get("type", "text"), part.get("text")) if isinstance(part, dict) else (type(part).__name__, None)
    if kind != "text" or not isinstance(text, str):
        raise ValueError(f"'content' has a part of type '{kind}'; only text is supported")
    return text


def normalize_row(row: Row) -> Row:
    """A row without null fields (`datasets` writes every column of every row) and with normalized messages.

    Raises:
        ValueError: a message has a part that is not text.
    """
    row = {name: value for name, value in row.items() if value is not None}
    for name in MESSAGE_FIELDS:
        if isinstance(row.get(name), list):
            try:
                row[name] = list(map(normalize_message, row[name]))
            except ValueError as error:
                raise ValueError(f"'{name}': {error}") from None
    return row


def as_turns(value: Any, role: str = "user") -> Any:
    """A plain text as one turn; other values unchanged."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages, each with a role."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and "role" in each for each in value)


# ------------------------------------------------------------------------------------------------ the prompt


def accept_prompt(row: Row) -> Row:
    """Move the prompt of a row to `prompt`, from the shapes that other tools write."""
    if "prompt" not in row:
        if isinstance(row.get("messages"), list):
            row["prompt"] = row.pop("messages")
        elif isinstance(row.get("instruction"), str):
            extra = row.pop("input", None)
            row["prompt"] = row.pop("instruction") + (f"\n\n{extra}" if extra else "")
        elif isinstance(row.get("question"), str):
            row["prompt"] = row.pop("question")
    prompt = row.get("prompt")
    if isinstance(prompt, str) and (
        prompt.startswith("\n\nHuman: ") or (prompt.startswith("Human: ") and "\n\nAssistant:" in prompt)
    ):
        row["prompt"] = parse_transcript(prompt) or prompt
    if isinstance(row.get("prompt"), list):
        # The reply under judgement is not part of the prompt: drop the empty assistant turn HH-RLHF ends with.
        while row["prompt"] and row["prompt"][-1] == {"role": "assistant", "content": ""}:
            row["prompt"] = row["prompt"][:-1]
    return row


_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):(?: |\Z)")  # a prompt ends in "Assistant:", with nothing after it
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> list[dict[str, str]]:
    """An HH-RLHF transcript ("\\n\\nHuman: … \\n\\nAssistant: …") as messages; [] if it is not one."""
    pieces = _HH_TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        return []
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": _HH_ROLES[name], "content": content.strip()} for name, content in turns]


# ------------------------------------------------------------------------------------------------ the replies


def as_single_replies(row: Row, *sides: str) -> Row:
    """Reduce each side to one reply; turns that all sides begin with move to the prompt.

    A judge or reward model compares replies to *one* conversation, so sides that diverge earlier are not a pair.

    Raises:
        ValueError: a side does not end with an assistant turn or repeats the prompt, or the sides differ before their
            last turn.
    """
    prompt: Any = as_turns(row.get("prompt"))
    conversations: list[Any] = [row.get(name) for name in sides]
    if not is_conversation(prompt) or not all(map(is_conversation, conversations)):
        return row
    for name, conversation in zip(sides, conversations, strict=True):
        if (last := conversation[-1]["role"]) != "assistant":
            raise ValueError(f"'{name}' must end with an assistant turn, not with one of role {last}")
    shared = count_common_turns(conversations)
    rest = [conversation[shared:] for conversation in conversations]
    for name, conversation in zip(sides, conversations, strict=True):
        if (first := conversation[0]["role"]) != "assistant" and (shared or prompt[-1]["role"] != "assistant"):
            raise ValueError(f"'{name}' begins with a {first} turn, but must not repeat the prompt; {_REMOVE_HINT}")
    if max(map(len, rest)) > 1:
        named = " and ".join(f"'{name}'" for name in sides)
        raise ValueError(
            f"{named} differ before their last turn, but a pair is two replies to one conversation: "
            "cut both after the first reply that differs, or remove the row"
        )
    grown = {"prompt": [*prompt, *conversations[0][:shared]]} if shared else {}
    return row | grown | dict(zip(sides, rest, strict=True))


def shared_turns_as_prompt(row: Row, *sides: str) -> Row:
    """For a row without a prompt whose sides are whole conversations: their shared beginning becomes the prompt."""
    conversations: list[Any] = [row.get(name) for name in sides]
    if (
        "prompt" in row
        or not all(map(is_conversation, conversations))
        or not (shared := count_common_turns(conversations))
    ):
        return row
    return (
        row
        | {"prompt": conversations[0][:shared]}
        | {name: conversation[shared:] for name, conversation in zip(sides, conversations, strict=True)}
    )


def count_common_turns(conversations: Sequence[list[Any]]) -> int:
    """How many leading turns all conversations share; the last turn of each never counts."""
    same = 0
    while same < min(map(len, conversations)) - 1 and all(
        conversation[same] == conversations[0][same] for conversation in conversations
    ):
        same += 1
    return same


def refuse_repeated_text(row: Row, *sides: str) -> None:
    """Check sides that are plain texts.

    Raises:
        ValueError: all sides repeat the prompt, or one is a whole transcript.
    """
    for name in sides:
        if isinstance(row.get(name), str) and row[name].startswith("\n\nHuman: "):
            raise ValueError(
                f"'{name}' is a whole transcript, not a reply; `rlaif data convert --from hh-rlhf` reads it"
            )
    if _text_is_repeated(row, sides):
        named = " and ".join(f"'{name}'" for name in sides)
        raise ValueError(f"{named} must not repeat the prompt; {_REMOVE_HINT}")


def without_repeated_prompt(row: Row, *sides: str) -> Row:
    """Remove the prompt from the beginning of the sides if all of them repeat it; else the row unchanged."""
    if _text_is_repeated(row, sides):
        return row | {name: row[name][len(row["prompt"]) :].lstrip() for name in sides}
    prompt: Any = as_turns(row.get("prompt"))
    conversations: list[Any] = [row.get(name) for name in sides]
    if not is_conversation(prompt) or not all(map(is_conversation, conversations)):
        return row
    for count in range(min(len(prompt), *(len(conversation) - 1 for conversation in conversations)), 0, -1):
        # A prompt also counts as repeated without its system turn.
        if all(conversation[:count] == prompt[-count:] for conversation in conversations):
            return row | {name: conversation[count:] for name, conversation in zip(sides, conversations, strict=True)}
    return row


def _text_is_repeated(row: Row, sides: Sequence[str]) -> bool:
    texts: list[Any] = [row.get(name) for name in ("prompt", *sides)]
    return all(isinstance(text, str) for text in texts) and text_is_repeated(texts[0], texts[1:])


def text_is_repeated(prompt: str, replies: Sequence[str]) -> bool:
    """Whether all replies begin with the prompt; one of one or two words ("Good morning") does not count."""
    return len(prompt.split()) > 2 and all(reply.startswith(prompt) and reply != prompt for reply in replies)
