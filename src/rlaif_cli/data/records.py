"""The JSONL records that stages pass to each other (docs/inputs.md has what a row must say).

A field that a stage does not know is kept under `meta`; a null field counts as absent. Known shapes of other tools
(Alpaca's `instruction`, `question`, `messages`, HH-RLHF transcripts, A/B pairs) are accepted. The parts of a row must
fit together: a prompt ends with a turn that needs a reply, and `chosen` and `rejected` are replies.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_serializer, model_validator

from rlaif_cli.data.messages import Message, check_last_turn, content_id, jsonable, prompt_key
from rlaif_cli.data.turns import (
    accept_prompt,
    as_single_replies,
    as_turns,
    is_conversation,
    normalize_message,
    normalize_row,
    refuse_repeated_text,
    shared_turns_as_prompt,
)

Text = Annotated[str, Field(min_length=1)]


Conversation = Annotated[list[Message], Field(min_length=1), AfterValidator(check_last_turn)]
Prompt = Text | Conversation


class Record(BaseModel):
    """Base of all records: unknown fields move to `meta`; a missing `id` is made from the content."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    id: Text
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _keep_unknown_fields(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            raise ValueError(f"expected an object with fields, found {type(row).__name__}")
        try:
            json.dumps(row, ensure_ascii=False, default=jsonable).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                "a text contains a lone surrogate (half a character), which cannot be written to a file"
            ) from None
        row = cls.accept(normalize_row(row))
        known = {key: value for key, value in row.items() if key in cls.model_fields}
        unknown = {key: value for key, value in row.items() if key not in cls.model_fields}
        if isinstance(meta := known.get("meta", {}), dict):
            known["meta"] = _checked_meta(meta, unknown)
        if not isinstance(name := known.get("id"), str | int | None) or isinstance(name, bool):
            raise ValueError("'id' must be a string or an integer")
        if isinstance(name, int):
            known["id"] = str(name)
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
        """Convert known shapes of other tools to this record's fields."""
        return row

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        """The fields whose content makes the id of a row without one."""
        return ("prompt",)


FLAGS = ("human_harmless", "prompt_is_unsafe")  # of `meta`; read by `eval harmless-rate`


def _checked_meta(meta: dict[str, Any], unknown: dict[str, Any]) -> dict[str, Any]:
    """`meta` merged with the unknown fields; the flags that later stages read are validated.

    Raises:
        ValueError: a field has two values, or an invalid one.
    """
    for name in meta.keys() & unknown.keys():
        if meta[name] != unknown[name]:
            raise ValueError(f"'{name}' is in the row and in 'meta', with different values")
    meta = {**meta, **unknown}
    for name in FLAGS:
        if (value := meta.get(name)) is not None:
            if value not in (0, 1):  # True and False are equal to these
                shown = json.dumps(value, ensure_ascii=False, default=str)[:40]
                raise ValueError(f"'{name}' must be true or false (or 1 or 0), found {shown}")
            meta[name] = bool(value)
    return meta


class PromptRecord(Record):
    prompt: Prompt
    reference: str | None = None

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        return accept_prompt(row)


def has_answer(text: str, reasoning: str | None) -> bool:
    """False if all of a response is reasoning: an empty text without reasoning is an answer."""
    return reasoning is None or bool(text.strip())


NO_ANSWER = "it ended inside its reasoning, without an answer"  # why a response cannot be judged or scored


class Response(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    text: str  # the answer
    reasoning: str | None = None  # what the model thought before it; absent if it did not
    finish_reason: str | None = None
    tokens: int | None = None
    logprob: float | None = None  # sum over the response's tokens, nats

    @property
    def answered(self) -> bool:
        return has_answer(self.text, self.reasoning)

    def seen(self, part: str) -> str:
        """What a judge reads: the "answer", or "all" of it."""
        return self.text if part == "answer" or not self.reasoning else f"{self.reasoning}\n\n{self.text}"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _without_absent_reasoning(self, handler: Any) -> dict[str, Any]:
        row: dict[str, Any] = handler(self)
        if self.reasoning is None:
            row.pop("reasoning", None)
        return row


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
    """One critique and the revision that followed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    principle: str
    critique: str
    revision: str


class Revision(Record):
    """A response that its model critiqued and rewrote; `response` is the last revision."""

    prompt: Prompt
    response: str
    initial: str
    rounds: list[Round]
    model: str | None = None


class Demonstration(Record):
    """A prompt and the response to train on."""

    prompt: Prompt
    response: Text
    reasoning: str | None = None  # what the model thinks before it

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Also `completion`, a preference's `chosen`, one of `responses`, or `messages` that end with a reply."""
        name = next((name for name in ("response", "completion", "chosen", "responses") if name in row), None)
        messages: Any = row.get("messages")
        if name is None and "prompt" not in row and is_conversation(messages):
            if messages[-1]["role"] != "assistant":
                raise ValueError("'messages' must end with the assistant's reply")
            name = "response"
            row |= {"messages": messages[:-1], name: messages[-1:]}
        if name in ("completion", "chosen"):
            refuse_repeated_text(row, name)
        if name == "responses" and isinstance(row[name], list) and len(row[name]) > 1:
            raise ValueError(f"{len(row[name])} 'responses' to one prompt: a demonstration has one 'response'")
        row = accept_prompt(row)
        if name is None:
            return row
        if isinstance(row[name], dict) and "role" in row[name]:
            row[name] = [normalize_message(row[name])]
        row = as_single_replies(row, name)
        reply = _only_one(row.pop(name))
        if not isinstance(reply, dict):
            return row | {"response": reply}
        reasoning = reply.get("reasoning", reply.get("reasoning_content"))
        return row | {"response": _text_of(reply)} | ({} if reasoning is None else {"reasoning": reasoning})

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        return ("prompt", "response")


def _only_one(replies: Any) -> Any:
    return replies[0] if isinstance(replies, list) and len(replies) == 1 else replies


def _text_of(reply: Any) -> Any:
    """The text of a reply, given as text or as an object."""
    return reply.get("content", reply.get("text")) if isinstance(reply, dict) else reply


def _text_of_one(replies: Any) -> Any:
    """The text of a reply, given as text, as an object, or as a list of one of these."""
    return _text_of(_only_one(replies))


class PairsOnly(Candidates):
    """Candidates with at least two responses, which can be compared."""

    responses: Annotated[list[Response], Field(min_length=2)]


Probability = Annotated[float, Field(ge=0, le=1, strict=True)]  # neither true nor "1"
Share = Annotated[float, Field(ge=0, strict=True)]  # a sum of rounded probabilities may slightly exceed 1


class Judged(BaseModel):
    """The numbers behind a soft label."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, defer_build=True)

    model: str
    p_first: list[Probability] | None = None  # P(the response shown first wins): `chosen` first, then `rejected` first
    by_principle: list[Probability] | None = None  # if there are several: P(chosen) by each alone
    mass: list[Share] | None = None  # probability of the label tokens in the full distribution
    flipped: bool = False  # the same *position* won in both orders
    scores: list[float] | None = None  # [chosen, rejected]: nats per token (contrast), or from 1 to 10 (score)
    rationales: list[str] | None = None  # what the judge said before each of `p_first`


class Vote(Judged):
    """One judge of a panel."""

    p_chosen: Probability  # P(this judge prefers `chosen`): below 0.5 if it disagrees with the panel


class Verdict(Judged):
    """How a judge arrived at its soft label, stored in the preference row under `judge`. For a panel: the means."""

    method: Literal["pairwise", "score", "contrast"]
    principle: str | list[str] | None = None
    truncated: bool | None = None  # the judge saw truncated texts
    panel: list[Vote] | None = None


_NO_P_CHOSEN = "'p_chosen' is missing; `rlaif data convert --from trl-preference` reads rows with hard labels"


class Preference(Record):
    """TRL's conversational preference format, made soft by `p_chosen` = P(the judge prefers `chosen`)."""

    prompt: Conversation
    chosen: Annotated[list[Message], Field(min_length=1, max_length=1)]  # the assistant's reply to `prompt`
    rejected: Annotated[list[Message], Field(min_length=1, max_length=1)]
    p_chosen: Probability
    judge: Verdict | None = None

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Also accepts a `HumanPair`: `p_chosen` is then the share of people who preferred `chosen`.

        Turns that `chosen` and `rejected` both begin with (TRL allows them) become part of the prompt, or the prompt
        if there is none.

        Raises:
            ValueError: the two are not replies to one conversation, or there is no `p_chosen`.
        """
        refuse_repeated_text(row, "chosen", "rejected")
        row = accept_prompt(row)
        if {"response_a", "response_b"} <= row.keys() and not {"chosen", "rejected"} & row.keys():
            row = HumanPair.accept(row)
            texts, p = [row.pop("response_a"), row.pop("response_b")], row.pop("human_fraction_a")
            if not isinstance(p, int | float) or isinstance(p, bool):
                raise ValueError("'human_fraction_a' must be a number")
            texts, p = (texts[::-1], 1 - p) if p < 0.5 else (texts, p)
            row |= {"chosen": texts[0], "rejected": texts[1], "p_chosen": p}
        if {"chosen", "rejected"} <= row.keys():
            row = shared_turns_as_prompt(row, "chosen", "rejected")
            if "p_chosen" not in row:
                raise ValueError(_NO_P_CHOSEN if "prompt" in row else f"'prompt' is missing; {_NO_P_CHOSEN}")
        for field, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            if field in row:
                row[field] = as_turns(row[field], role)
        return as_single_replies(row, "chosen", "rejected")

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        return ("prompt", "chosen", "rejected")

    @property
    def chosen_text(self) -> str:
        return self.chosen[0].content

    @property
    def rejected_text(self) -> str:
        return self.rejected[0].content


class HumanPair(Record):
    """Two responses and a human label: the ground truth for judges and reward models."""

    prompt: Prompt
    response_a: str
    response_b: str
    human_fraction_a: Probability  # share of annotators for a; 0.5 is a tie
    source: str | None = None
    task: str | None = None
    group: str | None = None  # the cluster for intervals, if it is not the prompt

    @property
    def cluster(self) -> str:
        """Pairs of one cluster are not independent: the prompt, unless the row names a group."""
        return prompt_key(self.prompt) if self.group is None else content_id("group", self.group)

    @classmethod
    def accept(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Also accepts a `Preference`, whose labels then count as human."""
        if {"chosen", "rejected"} <= row.keys() and not {"response_a", "response_b"} & row.keys():
            row = Preference.accept(row)
            row |= {"response_a": _text_of_one(row.pop("chosen")), "response_b": _text_of_one(row.pop("rejected"))}
            row["human_fraction_a"] = row.pop("p_chosen")
        row = accept_prompt(row)
        if "human_preference" in row:
            whole = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(str(row["human_preference"]))
            fraction = row.setdefault("human_fraction_a", whole)
            if whole is None and fraction is None:
                raise ValueError("'human_preference' must be a, b or tie if there is no 'human_fraction_a'")
            if isinstance(fraction, float | int) and whole is not None and _sign(fraction) != _sign(whole):
                raise ValueError("'human_preference' and 'human_fraction_a' contradict each other")
        elif "human_fraction_a" not in row and {"response_a", "response_b"} <= row.keys():
            raise ValueError("the human label is missing: 'human_fraction_a' or 'human_preference'")
        return row

    @classmethod
    def identity(cls) -> tuple[str, ...]:
        return ("prompt", "response_a", "response_b")


def _sign(fraction: float) -> int:
    return (fraction > 0.5) - (fraction < 0.5)


class Unscored(BaseModel):
    """A pair that got no label: the row, the judge's answer, and the reason. It gets no default or random label."""

    id: str
    prompt: str | list[Message]
    responses: list[str]
    reason: str
    judge: dict[str, Any]
