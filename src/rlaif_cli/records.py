"""The JSONL records that stages pass to each other (DESIGN section 3).

A field that a stage does not know is carried along under `meta`, never lost. Known shapes of other tools (Alpaca's
`instruction`, `question`, `messages`, HH-RLHF transcripts, A/B pairs) are accepted as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

Text = Annotated[str, Field(min_length=1)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str


Prompt = Text | Annotated[list[Message], Field(min_length=1)]


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


class Record(BaseModel):
    """Common ground: unknown fields move to `meta`; a missing `id` is made from the content."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    id: Text
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _keep_unknown_fields(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            raise ValueError(f"expected an object with fields, found {type(row).__name__}")
        try:
            json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a text holds half a character (a lone surrogate), which no file can") from None
        row = cls.accept(dict(row))
        known = {key: value for key, value in row.items() if key in cls.model_fields}
        unknown = {key: value for key, value in row.items() if key not in cls.model_fields}
        meta = known.get("meta") or {}
        if unknown and isinstance(meta, dict):
            known["meta"] = {**meta, **unknown}
        if isinstance(known.get("id"), int):
            known["id"] = str(known["id"])
        if known.get("id") is None:
            known["id"] = content_id(*(known.get(field) for field in cls.identity()))
        return known

    @model_serializer(mode="wrap")
    def _meta_last(self, handler: Any) -> dict[str, Any]:
        row: dict[str, Any] = handler(self)
        meta = row.pop("meta", {})
        return row | {"meta": meta}

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Turn known shapes of other tools into this record's fields."""
        return row

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        """The fields whose content names a row that has no id."""
        return ("prompt",)


class PromptRecord(Record):
    prompt: Prompt
    reference: str | None = None

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        return accept_prompt(row)


class Response(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    text: str
    finish_reason: str | None = None
    tokens: int | None = None
    logprob: float | None = None  # sum over the response's tokens, nats

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class Candidates(Record):
    prompt: Prompt
    responses: Annotated[list[Response], Field(min_length=1)]
    model: str | None = None

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        row = accept_prompt(row)
        if "responses" not in row and {"response_a", "response_b"} <= row.keys():
            row["responses"] = [row.pop("response_a"), row.pop("response_b")]
        elif "responses" not in row and isinstance(row.get("response"), str):
            row["responses"] = [row.pop("response")]
        return row

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        return ("prompt", "responses")


class Round(BaseModel):
    """One critique and what became of the response."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    principle: str
    critique: str
    revision: str


class Revision(Record):
    """A response that its model has criticised and rewritten; `response` is the last revision."""

    prompt: Prompt
    response: str
    initial: str
    rounds: list[Round]
    model: str | None = None


class Demonstration(Record):
    """A prompt and the response to learn."""

    prompt: Prompt
    response: Text

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Also `completion`, a preference's `chosen`, one of `responses`, or `messages` that end with a reply."""
        messages = row.get("messages")
        if "prompt" not in row and isinstance(messages, list) and messages and _role(messages[-1]) == "assistant":
            row["response"] = messages[-1].get("content")
            row["messages"] = messages[:-1]
        row = accept_prompt(row)
        for name in ("completion", "chosen", "responses"):
            if "response" not in row and name in row:
                row["response"] = row.pop(name)
        response = row.get("response")
        if isinstance(response, list) and len(response) == 1:
            response = response[0]
        if isinstance(response, dict):
            response = response.get("content", response.get("text"))
        return row | ({"response": response} if response is not None else {})

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        return ("prompt", "response")


def _last_content(messages: Any) -> Any:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last.get("content") if isinstance(last, dict) else messages


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


class PairsOnly(Candidates):
    """Candidates that can be compared."""

    responses: Annotated[list[Response], Field(min_length=2)]


Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0)]  # a sum of rounded probabilities may be a little above one


class Judged(BaseModel):
    """The numbers behind a soft label."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, defer_build=True)

    model: str
    p_first: list[Probability] | None = None  # P(the response shown first wins): `chosen` first, then `rejected` first
    by_principle: list[Probability] | None = None  # where there are several: P(chosen) by each alone
    mass: list[Share] | None = None  # the share of the full distribution that fell on the label tokens
    flipped: bool = False  # the same *position* won in both orders
    scores: list[float] | None = None  # [chosen, rejected]: nats per token (contrast), or from 1 to 10 (score)
    rationales: list[str] | None = None  # what the judge said before each of `p_first`


class Vote(Judged):
    """One judge of a panel."""

    p_chosen: Probability  # P(this judge prefers `chosen`): below one half where it alone would have said the opposite


class Verdict(Judged):
    """How a judge came to its soft label; kept in the preference row under `judge`. Of a panel: the means."""

    method: Literal["pairwise", "score", "contrast"]
    principle: str | list[str] | None = None
    truncated: bool | None = None  # the judge saw the texts cut
    panel: list[Vote] | None = None


class Preference(Record):
    """TRL's conversational preference format, made soft by `p_chosen` = P(the judge prefers `chosen`)."""

    prompt: Annotated[list[Message], Field(min_length=1)]
    chosen: Annotated[list[Message], Field(min_length=1)]
    rejected: Annotated[list[Message], Field(min_length=1)]
    p_chosen: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    judge: Verdict | None = None

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Also a `HumanPair`: `p_chosen` is then the share of people who preferred `chosen`."""
        if {"response_a", "response_b"} <= row.keys():
            row = HumanPair.accept(row)
            texts, p = [row.pop("response_a"), row.pop("response_b")], row.pop("human_fraction_a", None)
            if isinstance(p, int | float):
                texts, p = (texts[::-1], 1 - p) if p < 0.5 else (texts, p)
                row |= {"chosen": texts[0], "rejected": texts[1], "p_chosen": p}
        for field, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            if isinstance(row.get(field), str):
                row[field] = [{"role": role, "content": row[field]}]
        return row

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        return ("prompt", "chosen", "rejected")

    @property
    def chosen_text(self) -> str:
        return self.chosen[-1].content

    @property
    def rejected_text(self) -> str:
        return self.rejected[-1].content


class HumanPair(Record):
    """Two responses and what people preferred: the ground that judges and reward models are measured on."""

    prompt: Prompt
    response_a: str
    response_b: str
    human_fraction_a: Annotated[float, Field(ge=0, le=1)]  # share of annotators for a; 0.5 is a tie
    source: str | None = None
    task: str | None = None

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Also a `Preference`, whose labels then stand for people's."""
        if {"chosen", "rejected", "p_chosen"} <= row.keys():
            row = Preference.accept(row)
            chosen, rejected = row.pop("chosen"), row.pop("rejected")
            if isinstance(row.get("prompt"), list) and isinstance(chosen, list):
                row["prompt"] = [*row["prompt"], *chosen[:-1]]
            row |= {"response_a": _last_content(chosen), "response_b": _last_content(rejected)}
            row["human_fraction_a"] = row.pop("p_chosen")
        if isinstance(row.get("messages"), list):
            row["prompt"] = row.pop("messages")
        if row.get("human_fraction_a") is None and row.get("human_preference") in ("a", "b", "tie"):
            row["human_fraction_a"] = {"a": 1.0, "b": 0.0, "tie": 0.5}[row["human_preference"]]
        return row

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        return ("prompt", "response_a", "response_b")


class Unscored(BaseModel):
    """A pair that got no label: the row, what the judge answered, and why. Never a default, never a coin."""

    id: str
    prompt: str | list[Message]
    responses: list[str]
    reason: str
    judge: dict[str, Any]


_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):(?: |\Z)")  # a prompt ends in "Assistant:", with nothing after it
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> list[dict[str, str]]:
    """An HH-RLHF transcript ("\\n\\nHuman: … \\n\\nAssistant: …") as messages; [] if it is none."""
    pieces = _HH_TURN.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        return []
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": _HH_ROLES[name], "content": content.strip()} for name, content in turns]


def accept_prompt(row: dict[str, Any]) -> dict[str, Any]:
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
