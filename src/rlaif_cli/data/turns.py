"""Which turns of a raw row are its prompt and which its replies, in the shapes in which other tools write them.

Rows here are as `json.loads` gives them. What is no list of messages is left as it is: the record's own fields say what
is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

Row = dict[str, Any]
MESSAGE_FIELDS = ("prompt", "messages", "chosen", "rejected", "completion", "response")
_TAKE_OFF = "`rlaif data validate --fix NEW` takes an exact copy off"


def plain_message(value: Any) -> Any:
    """A chat message without its null fields, and with a list of text parts as their text.

    Raises:
        ValueError: a part is not text.
    """
    if isinstance(value, BaseModel):
        return value.model_dump()
    if not isinstance(value, dict) or (isinstance(value.get("content"), str) and None not in value.values()):
        return value  # as most are
    message = {name: each for name, each in value.items() if each is not None}
    if isinstance(message.get("content"), list):
        message["content"] = "".join(map(_text_of_part, message["content"]))
    return message


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind, text = (part.get("type", "text"), part.get("text")) if isinstance(part, dict) else (type(part).__name__, None)
    if kind != "text" or not isinstance(text, str):
        raise ValueError(f"'content' has a part of type '{kind}', and only text can be used")
    return text


def plain_row(row: Row) -> Row:
    """A row without its null fields (`datasets` writes every column of every row) and with plain messages.

    Raises:
        ValueError: a message has a part that is not text.
    """
    row = {name: value for name, value in row.items() if value is not None}
    for name in MESSAGE_FIELDS:
        if isinstance(row.get(name), list):
            try:
                row[name] = list(map(plain_message, row[name]))
            except ValueError as error:
                raise ValueError(f"'{name}': {error}") from None
    return row


def as_turns(value: Any, role: str = "user") -> Any:
    """A plain text as one turn."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def is_talk(value: Any) -> bool:
    """Whether this is a list of messages, each with a role."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and "role" in each for each in value)


# ------------------------------------------------------------------------------------------------ the prompt


def accept_prompt(row: Row) -> Row:
    """Find the prompt of a row in the shapes that other tools write it."""
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
    """An HH-RLHF transcript ("\\n\\nHuman: … \\n\\nAssistant: …") as messages; [] if it is none."""
    pieces = _HH_TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        return []
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": _HH_ROLES[name], "content": content.strip()} for name, content in turns]


# ------------------------------------------------------------------------------------------------ the replies


def one_reply_each(row: Row, *sides: str) -> Row:
    """Each side as one reply to the prompt, which takes over the turns that all sides begin with.

    A judge and a reward model compare replies to *one* conversation, so sides that part earlier are no pair.

    Raises:
        ValueError: a side does not end with the assistant's turn, begins with the prompt once more, or the sides
            differ before their last turn.
    """
    prompt: Any = as_turns(row.get("prompt"))
    talks: list[Any] = [row.get(name) for name in sides]
    if not is_talk(prompt) or not all(map(is_talk, talks)):
        return row
    for name, talk in zip(sides, talks, strict=True):
        if (last := talk[-1]["role"]) != "assistant":
            raise ValueError(f"'{name}' must end with the assistant's turn, and ends with the {last}'s")
    shared = common_turns(talks)
    rest = [talk[shared:] for talk in talks]
    for name, talk in zip(sides, talks, strict=True):
        if (first := talk[0]["role"]) != "assistant" and (shared or prompt[-1]["role"] != "assistant"):
            raise ValueError(f"'{name}' begins with a {first} turn: the prompt must not stand in it again; {_TAKE_OFF}")
    if max(map(len, rest)) > 1:
        named = " and ".join(f"'{name}'" for name in sides)
        raise ValueError(
            f"{named} differ before their last turn, and a pair is two replies to one conversation: "
            "cut both after the first reply that differs, or leave the row out"
        )
    grown = {"prompt": [*prompt, *talks[0][:shared]]} if shared else {}
    return row | grown | dict(zip(sides, rest, strict=True))


def shared_turns_as_prompt(row: Row, *sides: str) -> Row:
    """A row without a prompt whose sides are whole conversations: the prompt is what all of them begin with."""
    talks: list[Any] = [row.get(name) for name in sides]
    if "prompt" in row or not all(map(is_talk, talks)) or not (shared := common_turns(talks)):
        return row
    return row | {"prompt": talks[0][:shared]} | {name: talk[shared:] for name, talk in zip(sides, talks, strict=True)}


def common_turns(talks: Sequence[list[Any]]) -> int:
    """How many turns all conversations begin with; the last one of each is never counted."""
    same = 0
    while same < min(map(len, talks)) - 1 and all(talk[same] == talks[0][same] for talk in talks):
        same += 1
    return same


def refuse_repeated_text(row: Row, *sides: str) -> None:
    """For sides that are plain texts.

    Raises:
        ValueError: all sides begin with the prompt, or one is a whole transcript.
    """
    for name in sides:
        if isinstance(row.get(name), str) and row[name].startswith("\n\nHuman: "):
            raise ValueError(
                f"'{name}' is a whole transcript, not a reply; `rlaif data convert --from hh-rlhf` reads it"
            )
    if _text_is_repeated(row, sides):
        named = " and ".join(f"'{name}'" for name in sides)
        raise ValueError(f"the prompt stands in {named} again; {_TAKE_OFF}")


def without_prompt(row: Row, *sides: str) -> Row:
    """The row with the prompt taken off the beginning of its sides, where all of them repeat it; else the row."""
    if _text_is_repeated(row, sides):
        return row | {name: row[name][len(row["prompt"]) :].lstrip() for name in sides}
    prompt: Any = as_turns(row.get("prompt"))
    talks: list[Any] = [row.get(name) for name in sides]
    if not is_talk(prompt) or not all(map(is_talk, talks)):
        return row
    for count in range(min(len(prompt), *(len(talk) - 1 for talk in talks)), 0, -1):
        # Without its system turn a prompt is repeated too.
        if all(talk[:count] == prompt[-count:] for talk in talks):
            return row | {name: talk[count:] for name, talk in zip(sides, talks, strict=True)}
    return row


def _text_is_repeated(row: Row, sides: Sequence[str]) -> bool:
    texts: list[Any] = [row.get(name) for name in ("prompt", *sides)]
    return all(isinstance(text, str) for text in texts) and text_is_repeated(texts[0], texts[1:])


def text_is_repeated(prompt: str, replies: Sequence[str]) -> bool:
    """Whether all replies begin with the prompt. With one of one or two words ("Good morning") they may well."""
    return len(prompt.split()) > 2 and all(reply.startswith(prompt) and reply != prompt for reply in replies)
