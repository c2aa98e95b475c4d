"""Refusals and connection errors of servers: what caused them, and what the user can do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from rlaif_cli.config.base import address_fault, shown_address
from rlaif_cli.config.naming import option
from rlaif_cli.errors import EngineError, UsageError

KEY = "OPENAI_API_KEY"
_ADDRESS = "OPENAI_BASE_URL"
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")

# Reasons that concern a single request: it is too long, or its content is not allowed.
_OWN = re.compile(
    r"context.{0,10}(length|window|size)|too long|prompt is too|input.{0,20}too (long|large)|maximum.{0,20}input"
    r"|reduce the length|content.{0,12}(policy|filter|management)|moderation|flagged|safety",
    re.IGNORECASE,
)
_SYSTEM = re.compile(
    r"system.{0,20}(role|message|prompt|turn|instruction)|role.{0,20}system|developer instruction|roles must alternate",
    re.IGNORECASE,
)
_HINTS = {
    "logprobs": f"{option('samples')} N counts sampled answers instead",
    "top_logprobs": f"{option('samples')} N counts sampled answers instead",
    "temperature": f"set {option('temperature')} to a value that the server accepts",
    "top_p": f"set {option('top_p')} to a value that the server accepts",
    "max_tokens": f"set {option('max_tokens')} to a value that the server accepts",
    "max_completion_tokens": f"set {option('max_tokens')} to a value that the server accepts",
    "stop": f"omit {option('stop')}",
}
_TEXTS = ("message", "msg", "detail", "error", "errors", "reason")  # fields where servers put their message, best first
_DEPTH = 9  # of nested objects that are searched
_SECRET = 8  # characters; a shorter key is a placeholder, which may also appear in ordinary words
_WORDY = {"n", "stop", "seed", "temperature"}  # parameter names that are also words: they count only if quoted


def check_environment(has_address: bool) -> None:
    """Check the key and the address in the environment.

    Raises:
        UsageError: one of them is invalid; the key itself is not shown.
    """
    key = os.environ.get(KEY, "")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{KEY} contains a character that no key has (a line break, a space or a non-ASCII letter)",
            hint="export it again, without surrounding characters",
        )
    address = os.environ.get(_ADDRESS)
    if not has_address and address is not None and (problem := address_fault(address)):
        raise UsageError(f"{_ADDRESS}: {problem}")


def no_connection(error: Exception) -> UsageError:
    """Why a client cannot be created: usually a proxy setting."""
    names = [name for wanted in _PROXIES for name in (wanted, wanted.lower()) if os.environ.get(name)]
    if isinstance(error, ImportError) and names:
        hint = f"pip install 'httpx[socks]' (the package socksio), or unset {' and '.join(names)}"
    elif names:
        hint = f"a proxy must be http://host:port, https:// or socks5://; or unset {' and '.join(names)}"
    else:
        hint = "check the variables OPENAI_*, SSL_CERT_FILE and SSL_CERT_DIR"
    named = ", ".join(f"{name}={shown_address(os.environ[name])}" for name in names)
    return UsageError(f"no server can be reached with {named or 'this environment'}: {describe(error)}", hint=hint)


def failing(where: str, error: Exception) -> EngineError:
    """The error for a server that does not answer, or refuses everything."""
    hints = {
        401: f"the key is read from {KEY}",
        403: f"the key is read from {KEY}",
        404: "the address usually ends in /v1, as in http://host:port/v1, with nothing after it",
    }
    hint = hints.get(
        getattr(error, "status_code", 0),
        "check that it is running at this address; finished work is kept: rerun the same command to resume",
    )
    return EngineError(f"the server is failing: {describe(error)}", where=where, hint=hint)


def is_own(error: Exception) -> bool:
    """Whether a refusal is about this request's length or content, so other requests may succeed."""
    said = " ".join(_words(getattr(error, "body", None)))
    return bool(_OWN.search(said or describe(error)))


def refused_parameter(error: Exception, sent: Iterable[str]) -> str | None:
    """Which of the sent parameters a server refuses; "system" for a system turn. None: it does not say."""
    body = getattr(error, "body", None)
    words = list(_words(body))
    said = " ".join(words)
    if is_own(error):
        return None
    sent = sorted(sent, key=len, reverse=True)
    named = body.get("param") if isinstance(body, dict) else None
    for name in sent:
        if name == named or name in words:
            return name
    for name in sent:
        quoted = rf"['\"`]{name}['\"`]|(?<![\w]){name}\s*(=|>|must)"
        if re.search(quoted if name in _WORDY else rf"(?<![\w]){name}(?!\w)", said):
            return name
    return "system" if _SYSTEM.search(said) else None


def refusal(where: str, name: str, error: Exception) -> EngineError:
    """The error for a refused parameter that cannot be omitted without changing the meaning."""
    what = "a system turn" if name == "system" else f"'{name}'"
    return EngineError(f"the server refuses {what}: {describe(error)}", where=where, hint=_HINTS.get(name))


def all_text(error: Exception) -> str:
    """All text of a refusal, in one line."""
    return " ".join(_words(getattr(error, "body", None))) or describe(error)


def _words(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts of a refusal, without what it repeats of the request."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < _DEPTH:
        for each in value:
            yield from _words(each, depth + 1)
    elif isinstance(value, dict) and depth < _DEPTH:
        for key in (*_TEXTS, "code", "param", "loc", "type"):
            yield from _words(value.get(key), depth + 1)


def server_text(body: Any, depth: int = 0) -> str:
    """A server's error message, given as text or nested in objects and lists."""
    if isinstance(body, str):
        return body.strip()
    if isinstance(body, list) and depth < _DEPTH:
        return "; ".join(filter(None, (server_text(each, depth + 1) for each in body)))
    if not isinstance(body, dict) or depth >= _DEPTH:
        return ""
    text = next(filter(None, (server_text(body.get(key), depth + 1) for key in _TEXTS)), "")
    place = body.get("loc")
    if text and isinstance(place, list) and place:
        return f"{'.'.join(map(str, place))}: {text}"
    return text


def describe(error: Exception) -> str:
    """An error in one line, with the key hidden."""
    text = str(getattr(error, "message", error))
    if (status := getattr(error, "status_code", None)) is not None and hasattr(error, "response"):
        text = f"Error code: {status} - {server_text(getattr(error, 'body', None)) or error.response.text}".rstrip(" -")
    if error.__cause__ is not None and not hasattr(error, "status_code") and str(error.__cause__) not in text:
        text += f" ({error.__cause__})"
    text = " ".join(text.split())
    key = os.environ.get(KEY, "")
    return (text.replace(key, "…") if len(key) >= _SECRET else text)[:300]
