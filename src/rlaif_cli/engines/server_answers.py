"""Parse what a chat server sends, as untrusted data.

Any part of an answer may be missing, null, of the wrong type, or duplicated. Usable parts are used; for the rest, the
error says what is wrong. Nothing is invented: an answer without text is not an empty response.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_cli.engines.base import Completion
from rlaif_cli.engines.server_errors import server_text
from rlaif_cli.models.reasoning import Reply, split_reply

_REASONING = ("reasoning_content", "reasoning")  # the fields of a message that servers put its reasoning in
PERMANENT = {400, 413, 422}  # status codes that a server would return again for the same request


class Unusable(Exception):
    """An answer that cannot be used; `retryable`: a retry may help."""

    def __init__(self, message: str, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


def field(value: Any, *path: str) -> Any:
    """The value at a path inside JSON; None if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def parsed(content: bytes) -> dict[str, Any]:
    """Parse an answer as a JSON object.

    Raises:
        Unusable: it is not one, or reports an error.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"the answer is not JSON ({error})", retryable=True) from error
    if not isinstance(body, dict):
        raise Unusable("the answer is not a JSON object", retryable=True)
    if body.get("error"):
        raise _failure(body["error"])
    return body


def choices(body: dict[str, Any], wanted: int = 1) -> list[dict[str, Any]]:
    """The choices of an answer, at most as many as requested.

    If there are more, choices with a repeated index are dropped first. (Not otherwise: some servers give all choices
    the same index.)

    Raises:
        Unusable: there are no choices.
    """
    listed = body.get("choices")
    found = [choice for choice in listed if isinstance(choice, dict)] if isinstance(listed, list) else []
    if not found:
        raise Unusable("the answer has no choices", retryable=True)
    if len(found) > wanted:
        places = [str(choice.get("index", place)) for place, choice in enumerate(found)]
        found = [choice for place, choice in enumerate(found) if places.index(places[place]) == place]
    return found[:wanted]


def completion(choice: dict[str, Any], *, may_be_empty: bool = False) -> Completion:
    """The reply of a choice; a refusal counts as one. An unusable reply has no text, and `no_text` says why.

    Check this before anything else in an answer: log-probs that come with a tool call belong to that call.

    Args:
        may_be_empty: accept an empty text as a reply: its log-probs may show the alternatives.

    Raises:
        Unusable: the choice reports an error, or has no message.
    """
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) and _is_text(reason) else None
    if choice.get("error") or reason == "error":
        raise _failure(choice.get("error"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Unusable("the answer has no message", retryable=True)
    reply = _reply(message)
    text = reply.answer or ""
    refused, refusal = _refusal(message)
    if refused:
        text, reason = refusal or text, "refusal"
    may_be_empty = may_be_empty and isinstance(message.get("content"), str)
    no_text = _why_no_text(message, text, reason, may_be_empty or reply.reasoning is not None)
    return Completion("" if no_text else text, finish_reason=reason, no_text=no_text, reasoning=reply.reasoning)


def _reply(message: dict[str, Any]) -> Reply:
    """The answer and the reasoning of a message: in a field of its own, in a part, or marked in the text."""
    content = message.get("content")
    fields = [message.get(name) for name in _REASONING]
    parts = [_content(field(part, "thinking")) for part in content] if isinstance(content, list) else []
    found = [text for text in (*fields, "".join(parts)) if isinstance(text, str) and text.strip() and _is_text(text)]
    return Reply(_content(content), found[0].strip()) if found else split_reply(_content(content))


def _content(content: Any) -> str:
    """A message's text; if it is in parts, the text parts, without thinking."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (field(part, "text") if field(part, "type") in ("text", "output_text") else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _refusal(message: dict[str, Any]) -> tuple[bool, str]:
    """Whether a message is marked as a refusal, and the refusal's text if it is separate."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    found = [message.get("refusal"), *(field(part, "refusal") for part in parts)]
    found = [each.strip() if isinstance(each, str) else each for each in found]
    return any(found), next((each for each in found if isinstance(each, str) and each), "")


def _why_no_text(message: dict[str, Any], text: str, reason: str | None, may_be_empty: bool) -> str:
    """Why a message has no text or an incomplete one; empty if the text can be used."""
    if message.get("tool_calls") or message.get("function_call") or reason in ("tool_calls", "function_call"):
        return "the answer is a tool call" + (" besides the text" if text.strip() else ", without text")
    if reason == "content_filter":
        return "the server's content filter stopped the answer (finish reason: content_filter)"
    if not _is_text(text):
        return "the answer contains a lone surrogate (half a character)"
    if text.strip() or may_be_empty:
        return ""
    if reason == "length":
        return "the answer has no text: it was cut off at --max-tokens (of a judge: --rationale-tokens)"
    return f"the answer has no text (finish reason: {reason or 'not given'})"


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON escapes can produce lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _failure(error: Any) -> Unusable:
    """An error that a server reports inside a successful response."""
    code = field(error, "code")
    return Unusable(
        f"the server sent an error in place of an answer: {server_text(error) or 'no reason given'}",
        retryable=not (isinstance(code, int) and code in PERMANENT),
    )


def usage(body: dict[str, Any]) -> tuple[int | None, int | None]:
    """Input and output tokens as reported by the server; None if missing or unreadable."""
    return _count(field(body, "usage", "prompt_tokens")), _count(field(body, "usage", "completion_tokens"))


def decision_usage(body: dict[str, Any]) -> tuple[int | None, int | None]:
    """The same of a decision endpoint, most of which name them differently."""
    found = _count(field(body, "usage", "input_tokens")), _count(field(body, "usage", "output_tokens"))
    return usage(body) if found == (None, None) else found


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 50 else None


def identity(body: dict[str, Any]) -> dict[str, str]:
    """What the server says that it is: the model that answered, and its configuration."""
    found = {name: body.get(name) for name in ("model", "system_fingerprint")}
    return {name: value[:200] for name, value in found.items() if isinstance(value, str) and value and _is_text(value)}


def model_list(content: bytes) -> dict[str, dict[str, Any]] | None:
    """The models that a server lists, by name; None if the list cannot be read completely."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    models = body if isinstance(body, list) else field(body, "data")
    if not isinstance(models, list) or not models:
        return None
    names = [field(model, "id") for model in models]
    if not all(isinstance(name, str) and name for name in names):
        return None
    return dict(zip(names, models, strict=True))


def context_length(model: dict[str, Any]) -> int:
    """In tokens; 0: not reported."""
    return _count(model.get("max_model_len")) or 0


# ------------------------------------------------------------------------------------------------------- log-probs


@dataclass(frozen=True)
class Position:
    """One token of a reply, and its alternatives.

    Attributes:
        listed: text and probability of the most likely tokens and the sampled one; texts may repeat.
        taken: index of the sampled one; None: not reported.
        least: upper bound for the probability of a token that is not listed.
    """

    listed: tuple[tuple[str, float], ...]
    taken: int | None
    least: float

    @property
    def text(self) -> str | None:
        return None if self.taken is None else self.listed[self.taken][0]


def has_logprobs(choice: dict[str, Any]) -> bool:
    """Whether a choice has log-probs, readable or not."""
    logprobs = choice.get("logprobs")
    return bool(logprobs.get("content") if isinstance(logprobs, dict) else logprobs)


def positions(choice: dict[str, Any]) -> list[Position]:
    """The log-probs of a reply, up to the first token whose log-probs cannot be read.

    Raises:
        Unusable: the probabilities are invalid.
    """
    found = []
    content = field(choice, "logprobs", "content")
    for entry in content if isinstance(content, list) else ():
        position = _position(entry)
        if position is None:
            break
        found.append(position)
    return found


def _position(entry: Any) -> Position | None:
    top = field(entry, "top_logprobs")
    entries = (
        [(field(each, "token"), _logprob(field(each, "logprob"))) for each in top] if isinstance(top, list) else []
    )
    if not entries:
        return None
    # Entries with the same text and log-prob are one token; different tokens with one text differ in log-prob.
    readable = [(text, value) for text, value in entries if isinstance(text, str) and value is not None]
    listed = [(_token_text(text), math.exp(value)) for text, value in dict.fromkeys(readable)]
    if not listed:
        return None
    least = min(p for _, p in listed) if len(readable) == len(entries) else 1.0
    token, value = field(entry, "token"), _logprob(field(entry, "logprob"))
    if isinstance(token, str) and value is not None and all(text != _token_text(token) for text, _ in listed):
        listed.append((_token_text(token), math.exp(value)))
    if sum(p for _, p in listed) > 1.01:
        raise Unusable("the probabilities of the log-probs add up to more than 1", retryable=False)
    return Position(tuple(listed), _taken(listed, token, value), least)


def _taken(listed: Sequence[tuple[str, float]], token: Any, value: float | None) -> int | None:
    """The index of the sampled token; of several with its text, the one with the nearest probability."""
    if not isinstance(token, str):
        return None
    same = [place for place, (text, _) in enumerate(listed) if text == _token_text(token)]
    p = math.exp(value) if value is not None else 1.0
    return min(same, key=lambda place: abs(listed[place][1] - p), default=None)


def _token_text(token: str) -> str:
    """A token's text, also if a server shows its vocabulary form."""
    if token[:1] in ("▁", "Ġ", "Ċ"):
        return ("\n" if token[0] == "Ċ" else " ") + token[1:]
    return token


def _logprob(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not value <= 0.001:  # a probability is at most 1, up to rounding; this also rejects NaN
        return None
    return float(max(min(value, 0), -1e4))
