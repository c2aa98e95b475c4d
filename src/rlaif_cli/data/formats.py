"""Convert rows from and to other tools' formats: pure functions on one row.

What a format cannot represent is an error, never dropped; fields that we do not know go to `meta`.
Shapes: TRL's preference and prompt-completion formats (conversational), HH-RLHF's transcripts, UltraFeedback's
completions with scores, its binarized form (H4), OpenRLHF's pairs of conversations, Argilla's cleaned form and the
records of its client, and OpenAI's fine-tuning chats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Json, ValidationError, model_validator

from rlaif_cli.data.json_lines import describe
from rlaif_cli.data.messages import Message, as_messages, content_id, prompt_text
from rlaif_cli.data.records import Candidates, Demonstration, Preference, Record
from rlaif_cli.data.turns import (
    as_turns,
    count_common_turns,
    is_conversation,
    normalize_row,
    parse_transcript,
    without_repeated_prompt,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A format of another tool.

    Attributes:
        record: our record type for its rows.
        read: its row -> a row that `record` accepts. Raises ValueError: the row is not in this format.
        write: our record -> its row. Raises ValueError: the format cannot represent it.
    """

    record: type[Record]
    read: Callable[[Row], Row]
    write: Callable[[Any], Row]

    def reader(self) -> type[Record]:
        """A subclass of `record` that reads this format."""

        def accept(cls: type[Record], row: Row) -> Row:
            return self.record.accept(self.read(row))

        return type(self.record.__name__, (self.record,), {"accept": classmethod(accept)})


def _messages(messages: list[Message]) -> list[Row]:
    return [message.model_dump() for message in messages]


def _need(row: Row, *names: str) -> None:
    if missing := [name for name in names if name not in row]:
        raise ValueError(f"'{missing[0]}' is missing")


_LABEL = ("p_chosen", "judge", "meta")  # fields that every preference format keeps


def _only(record: Record, *names: str) -> Row:
    """The named fields, which the other format does not define but keeps."""
    return record.model_dump(mode="json", include=set(names), exclude_none=True, exclude_defaults=True)


# --- TRL ----------------------------------------------------------------------------------------------------


def _read_trl_preference(row: Row) -> Row:
    """With an explicit prompt, or with the prompt as the shared beginning of both; `p_chosen` defaults to 1."""
    _need(row, "chosen", "rejected")
    if "prompt" not in row:
        return {"p_chosen": 1.0} | row | _shared_prompt(row["chosen"], row["rejected"])
    return {"p_chosen": 1.0} | without_repeated_prompt(row, "chosen", "rejected")


def _shared_prompt(chosen: Any, rejected: Any) -> Row:
    """Split two whole conversations into their shared beginning and the rest of each."""
    if not (is_conversation(chosen) and is_conversation(rejected)):
        raise ValueError("'chosen' and 'rejected' must be lists of messages")
    same = count_common_turns((chosen, rejected))
    if not same:
        raise ValueError("'chosen' and 'rejected' have no prompt in common")
    return {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def _write_trl_preference(record: Preference) -> Row:
    turns = {name: _messages(getattr(record, name)) for name in ("prompt", "chosen", "rejected")}
    return turns | _only(record, "id", *_LABEL)


def _read_completion(row: Row) -> Row:
    _need(row, "prompt", "completion")
    return without_repeated_prompt(row, "completion")


def _write_completion(record: Demonstration) -> Row:
    completion = _messages([_reply(record)])
    return {"prompt": _messages(as_messages(record.prompt)), "completion": completion} | _only(record, "id", "meta")


def _reply(record: Demonstration) -> Message:
    return Message(role="assistant", content=record.response, reasoning_content=record.reasoning)


# --- HH-RLHF ------------------------------------------------------------------------------------------------

_HH_NAMES = {"user": "Human", "assistant": "Assistant"}
_HH_MARK = re.compile(r"\n\n(Human|Assistant): ")


def _read_hh(row: Row) -> Row:
    _need(row, "chosen", "rejected")
    turns = {name: parse_transcript(row[name]) for name in ("chosen", "rejected") if isinstance(row[name], str)}
    if len(turns) < 2 or not all(turns.values()):
        raise ValueError("'chosen' and 'rejected' must be transcripts ('\\n\\nHuman: …\\n\\nAssistant: …')")
    return {"p_chosen": 1.0} | row | _shared_prompt(turns["chosen"], turns["rejected"])


def _write_hh(record: Preference) -> Row:
    sides = {"chosen": record.chosen, "rejected": record.rejected}
    rows = {name: _transcript([*record.prompt, *turns]) for name, turns in sides.items()}
    return rows | _only(record, "id", *_LABEL)


def _transcript(turns: list[Message]) -> str:
    for turn in turns:
        if turn.role not in _HH_NAMES:
            raise ValueError(f"a transcript has no {turn.role} turns")
        if _HH_MARK.search(f"\n\n{turn.content}") or turn.content != turn.content.strip():
            raise ValueError(
                "a text that looks like a turn, or has white space at its ends, would not survive the round trip"
            )
    return "".join(f"\n\n{_HH_NAMES[turn.role]}: {turn.content}" for turn in turns)


# --- UltraFeedback ------------------------------------------------------------------------------------------


_RESPONSE_FIELDS = ("finish_reason", "tokens", "logprob")  # our fields of a response besides its text


def _read_ultrafeedback(row: Row) -> Row:
    _need(row, "instruction", "completions")
    row = dict(row)
    completions = row.pop("completions")
    if not isinstance(completions, list) or not all(
        isinstance(each, dict) and "response" in each for each in completions
    ):
        raise ValueError("'completions' must be a list of objects with a 'response'")
    rest = [
        {name: value for name, value in each.items() if name not in ("response", *_RESPONSE_FIELDS)}
        for each in completions
    ]
    responses = [
        {"text": each["response"], **{name: each[name] for name in _RESPONSE_FIELDS if name in each}}
        for each in completions
    ]
    return row | {"responses": responses, "completions": rest}


def _write_ultrafeedback(record: Candidates) -> Row:
    meta = dict(record.meta)
    rest = meta.pop("completions", None) or [{"model": record.model} if record.model else {}] * len(record.responses)
    if not isinstance(rest, list) or len(rest) != len(record.responses) or not all(isinstance(x, dict) for x in rest):
        raise ValueError("'completions' in 'meta' must be a list with an object for each response")
    completions = [
        {"response": response.text, **response.model_dump(include=set(_RESPONSE_FIELDS), exclude_none=True), **more}
        for response, more in zip(record.responses, rest, strict=True)
    ]
    more = {"meta": meta} if meta else {}
    return {"id": record.id, "instruction": prompt_text(record.prompt), "completions": completions} | more


def _read_binarized(row: Row) -> Row:
    """H4's: `prompt` beside whole conversations in `chosen` and `rejected`, with their scores."""
    row = _read_conversations(row)
    row.pop("messages", None)  # a copy of the chosen conversation
    return row | ({"id": row.pop("prompt_id")} if "prompt_id" in row and "id" not in row else {})


def _write_binarized(record: Preference) -> Row:
    row = {"prompt": prompt_text(record.prompt), "prompt_id": record.id, **_conversations(record)}
    return row | _only(record, *_LABEL)


# --- OpenRLHF -----------------------------------------------------------------------------------------------


def _read_conversations(row: Row) -> Row:
    """Whole conversations in `chosen` and `rejected`: its default keys, with --apply_chat_template."""
    _need(row, "chosen", "rejected")
    found = _shared_prompt(row["chosen"], row["rejected"])
    given = as_turns(row.get("prompt") or found["prompt"])
    if not is_conversation(given) or any(turn not in found["prompt"] for turn in given):
        raise ValueError("the conversations in 'chosen' and 'rejected' do not begin with 'prompt'")
    return {"p_chosen": 1.0} | row | found


def _write_conversations(record: Preference) -> Row:
    return _conversations(record) | _only(record, "id", *_LABEL)


def _conversations(record: Preference) -> Row:
    prompt = _messages(record.prompt)
    return {name: [*prompt, *_messages(getattr(record, name))] for name in ("chosen", "rejected")}


# --- Argilla ------------------------------------------------------------------------------------------------


def _read_argilla(row: Row) -> Row:
    _need(row, "instruction", "chosen_response", "rejected_response")
    row = {"p_chosen": 1.0} | row
    names = {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}
    return without_repeated_prompt(
        row | {ours: row.pop(theirs) for ours, theirs in names.items()}, "chosen", "rejected"
    )


def _write_argilla(record: Preference) -> Row:
    if len(record.prompt) > 1 or record.prompt[0].role != "user":
        raise ValueError("the format holds one instruction and one response per side, not a conversation")
    texts = {"instruction": record.prompt[0].content}
    texts |= {"chosen_response": record.chosen_text, "rejected_response": record.rejected_text}
    return texts | _only(record, "id", *_LABEL)


# Records of Argilla 2, as its client's `Record.to_dict` writes them, for human review: the prompt (a chat field),
# two responses in random order, and one question, "preference", with the labels a, b and tie.
_CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}
NOT_SUBMITTED, NO_STATUS = "answers_not_submitted", "answers_without_status"  # in `meta`


def _write_argilla_records(record: Preference) -> Row:
    sides = (record.chosen_text, record.rejected_text, record.p_chosen)
    if int(content_id(record.prompt, sorted(sides[:2])), 16) % 2:
        sides = (sides[1], sides[0], 1 - record.p_chosen)
    fields = {"prompt": _messages(record.prompt), "response_a": sides[0], "response_b": sides[1]}
    kept = json.dumps(_only(record, "judge", "meta"), ensure_ascii=False)
    metadata = {"p_a": sides[2], "rlaif": kept}
    return {"id": record.id, "fields": fields, "metadata": metadata, "suggestions": {}, "responses": {}}


class _Nullable(BaseModel):
    """An object whose null fields are treated as absent."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, row: Any) -> Any:
        return normalize_row(row) if isinstance(row, dict) else row


class _Fields(_Nullable):
    prompt: str | list[Message]
    response_a: str
    response_b: str


class _Kept(_Nullable):
    """What `_write_argilla_records` keeps of a row."""

    judge: dict[str, Any] | None = None
    meta: dict[str, Any] = {}


class _Metadata(_Nullable):
    p_a: Annotated[float, Field(ge=0, le=1)] | None = None
    rlaif: Json[_Kept] = _Kept()


class _Answer(_Nullable):
    value: Literal["a", "b", "tie"]
    status: Literal["draft", "submitted", "discarded"] | None = None  # the client's `to_dict` omits it


class _Responses(_Nullable):
    preference: list[_Answer] = []


class _ArgillaRecord(_Nullable):
    """The parts of a record that are read; its status, suggestions and vectors are ignored."""

    id: str | None = None
    fields: _Fields
    metadata: _Metadata = _Metadata()
    responses: _Responses = _Responses()


def _read_argilla_records(row: Row) -> Row:
    """If people have answered, `p_chosen` is their share and the judge's label is dropped.

    Drafts and discarded answers do not count; an answer without a status does. `meta` has the number of each.
    """
    try:
        record = _ArgillaRecord.model_validate(row)
    except ValidationError as error:
        raise ValueError(describe(error)) from None
    p_a, kept = record.metadata.p_a, record.metadata.rlaif.model_dump(exclude_none=True)
    statuses = [answer.status for answer in record.responses.preference]
    counted = [answer for answer in record.responses.preference if answer.status in (None, "submitted")]
    status_counts = {NOT_SUBMITTED: len(statuses) - len(counted), NO_STATUS: statuses.count(None)}
    kept = kept | {"meta": kept["meta"] | {name: count for name, count in status_counts.items() if count}}
    if counted:
        judged = {} if p_a is None else {"judge_p_a": p_a}
        kept = {"meta": kept["meta"] | {"annotators": len(counted)} | judged}
        p_a = sum(_CHOICES[answer.value] for answer in counted) / len(counted)
    if p_a is None:
        raise ValueError("nobody has answered 'preference' yet")
    a, b = record.fields.response_a, record.fields.response_b
    best, other, p = (a, b, p_a) if p_a >= 0.5 else (b, a, 1 - p_a)
    found = kept | {"prompt": row["fields"]["prompt"], "chosen": best, "rejected": other, "p_chosen": round(p, 9)}
    return found | ({"id": record.id} if record.id else {})


# --- OpenAI -------------------------------------------------------------------------------------------------


def _read_chat(row: Row) -> Row:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise ValueError("'messages' must be a list of messages")
    if messages[-1].get("role") != "assistant":
        raise ValueError("'messages' must end with the assistant's reply")
    return row


def _write_chat(record: Demonstration) -> Row:
    return {"messages": _messages([*as_messages(record.prompt), _reply(record)])} | _only(record, "id", "meta")


FORMATS = {
    "trl-preference": Format(Preference, _read_trl_preference, _write_trl_preference),
    "trl-prompt-completion": Format(Demonstration, _read_completion, _write_completion),
    "hh-rlhf": Format(Preference, _read_hh, _write_hh),
    "ultrafeedback": Format(Candidates, _read_ultrafeedback, _write_ultrafeedback),
    "ultrafeedback-binarized": Format(Preference, _read_binarized, _write_binarized),
    "openrlhf": Format(Preference, _read_conversations, _write_conversations),
    "argilla": Format(Preference, _read_argilla, _write_argilla),
    "argilla-records": Format(Preference, _read_argilla_records, _write_argilla_records),
    "openai-chat": Format(Demonstration, _read_chat, _write_chat),
}
