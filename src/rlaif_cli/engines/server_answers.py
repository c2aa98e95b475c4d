"""What a chat server sends, read as data that nobody vouches for.

Any part of an answer may be missing, null, of another type, or there twice. What can be used is taken; for the rest it
is said what is wrong with the answer. Nothing is made up: an answer without text is no empty response.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_cli.engines.base import Completion
from rlaif_cli.engines.server_errors import said

SETTLED = {400, 413, 422}  # status codes that a server will give again to the same request


class Unusable(Exception):
    """An answer that is none; `again`: asking again may help."""

    def __init__(self, message: str, again: bool) -> None:
        super().__init__(message)
        self.again = again


def field(value: Any, *path: str) -> Any:
    """What stands at a place inside JSON; None where there is no such place."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def parsed(content: bytes) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        Unusable: it is something else, or reports an error.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"an answer that is no JSON ({error})", again=True) from error
    if not isinstance(body, dict):
        raise Unusable("an answer that is no JSON object", again=True)
    if body.get("error"):
        raise _failure(body["error"])
    return body


def choices(body: dict[str, Any], wanted: int = 1) -> list[dict[str, Any]]:
    """The choices of an answer, as many as were asked for.

    Of more than that, those with an index that stood there before are left out. (Of as many they are not: some servers
    give all choices the same index.)

    Raises:
        Unusable: there are none.
    """
    listed = body.get("choices")
    found = [choice for choice in listed if isinstance(choice, dict)] if isinstance(listed, list) else []
    if not found:
        raise Unusable("an answer without choices", again=True)
    if len(found) > wanted:
        places = [str(choice.get("index", place)) for place, choice in enumerate(found)]
        found = [choice for place, choice in enumerate(found) if places.index(places[place]) == place]
    return found[:wanted]


def completion(choice: dict[str, Any], *, may_be_empty: bool = False) -> Completion:
    """The reply of a choice; a refusal's words are one. One that cannot be used has no text, and `no_text` says why.

    Whatever is wanted of an answer, this is looked at first: log-probs that come with a tool call are of that call.

    Args:
        may_be_empty: text that is there and empty is a reply: its log-probs may show what else could have been said.

    Raises:
        Unusable: the choice reports an error, or has no message.
    """
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) and _is_text(reason) else None
    if choice.get("error") or reason == "error":
        raise _failure(choice.get("error"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Unusable("an answer without a message", again=True)
    text = _content(message.get("content"))
    refused, refusal = _refusal(message)
    if refused:
        text, reason = refusal or text, "refusal"
    no_text = _why_no_text(message, text, reason, may_be_empty)
    return Completion("" if no_text else text, finish_reason=reason, no_text=no_text)


def _content(content: Any) -> str:
    """A message's text; of one in parts, the text parts, without thoughts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (field(part, "text") if field(part, "type") in ("text", "output_text") else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _refusal(message: dict[str, Any]) -> tuple[bool, str]:
    """Whether a message says that it is a refusal, and its words, if they are not the message's text."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    found = [message.get("refusal"), *(field(part, "refusal") for part in parts)]
    found = [each.strip() if isinstance(each, str) else each for each in found]
    return any(found), next((each for each in found if isinstance(each, str) and each), "")


def _why_no_text(message: dict[str, Any], text: str, reason: str | None, may_be_empty: bool) -> str:
    """Why a message has no text, or one that is not the whole reply; empty where nothing speaks against its text."""
    if message.get("tool_calls") or message.get("function_call") or reason in ("tool_calls", "function_call"):
        return "an answer with a tool call" + (" beside the text" if text.strip() else ", without text")
    if reason == "content_filter":
        return "an answer that the server's content filter stopped (finish reason: content_filter)"
    if not _is_text(text):
        return "an answer with half a character (a lone surrogate)"
    thoughts = any(message.get(name) for name in ("reasoning_content", "reasoning"))
    if text.strip() or (may_be_empty and isinstance(message.get("content"), str) and not thoughts):
        return ""
    if reason == "length":
        return "an answer without text: cut at --max-tokens" + (" while it was still thinking" if thoughts else "")
    return f"an answer without text (finish reason: {reason or 'not given'})"


def _is_text(text: str) -> bool:
    """Whether a file can hold it: JSON can spell half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _failure(error: Any) -> Unusable:
    """What a server says is wrong inside of an answer that claims to be one."""
    code = field(error, "code")
    return Unusable(
        f"an error in place of an answer: {said(error) or 'no reason given'}",
        again=not (isinstance(code, int) and code in SETTLED),
    )


def usage(body: dict[str, Any]) -> tuple[int | None, int | None]:
    """Tokens in and out, as the server counts them; None where it does not, or not in a way that can be read."""
    return _count(field(body, "usage", "prompt_tokens")), _count(field(body, "usage", "completion_tokens"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 50 else None


def model_list(content: bytes) -> dict[str, dict[str, Any]] | None:
    """The models that a server says it has, by name; None where no such list can be read, or not all of it."""
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
    """Tokens; 0: the server does not say."""
    return _count(model.get("max_model_len")) or 0


# ------------------------------------------------------------------------------------------------------- log-probs


@dataclass(frozen=True)
class Position:
    """One token of a reply, and what could have stood in its place.

    Attributes:
        listed: text and probability of the likeliest tokens, the sampled one among them; two may have one text.
        taken: which of them was sampled; None: not told.
        least: what a token that is not listed can hold at most.
    """

    listed: tuple[tuple[str, float], ...]
    taken: int | None
    least: float

    @property
    def text(self) -> str | None:
        return None if self.taken is None else self.listed[self.taken][0]


def has_logprobs(choice: dict[str, Any]) -> bool:
    """Whether a choice comes with something in the place of log-probs, whether it can be read or not."""
    logprobs = choice.get("logprobs")
    return bool(logprobs.get("content") if isinstance(logprobs, dict) else logprobs)


def positions(choice: dict[str, Any]) -> list[Position]:
    """The log-probs of a reply, up to the first token that they cannot be read of.

    Raises:
        Unusable: they are no probabilities.
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
    told = [(field(each, "token"), _logprob(field(each, "logprob"))) for each in top] if isinstance(top, list) else []
    if not told:
        return None
    # A token that is there twice, with the very same number, is one; two tokens of one text differ in theirs.
    readable = [(text, value) for text, value in told if isinstance(text, str) and value is not None]
    listed = [(_shown(text), math.exp(value)) for text, value in dict.fromkeys(readable)]
    if not listed:
        return None
    least = min(p for _, p in listed) if len(readable) == len(told) else 1.0
    token, value = field(entry, "token"), _logprob(field(entry, "logprob"))
    if isinstance(token, str) and value is not None and all(text != _shown(token) for text, _ in listed):
        listed.append((_shown(token), math.exp(value)))
    if sum(p for _, p in listed) > 1.01:
        raise Unusable("log-probs whose probabilities add up to more than 1", again=False)
    return Position(tuple(listed), _taken(listed, token, value), least)


def _taken(listed: Sequence[tuple[str, float]], token: Any, value: float | None) -> int | None:
    """Where the sampled token stands; of several with its text, the one whose probability is nearest."""
    if not isinstance(token, str):
        return None
    same = [place for place, (text, _) in enumerate(listed) if text == _shown(token)]
    p = math.exp(value) if value is not None else 1.0
    return min(same, key=lambda place: abs(listed[place][1] - p), default=None)


def _shown(token: str) -> str:
    """A token's text, also where a server shows it as it stands in the vocabulary."""
    if token[:1] in ("▁", "Ġ", "Ċ"):
        return ("\n" if token[0] == "Ċ" else " ") + token[1:]
    return token


def _logprob(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not value <= 0.001:  # rounding apart, a probability is at most 1; this is also where NaN ends
        return None
    return float(max(min(value, 0), -1e4))
