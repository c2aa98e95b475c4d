"""What servers refuse, and what keeps a client from reaching one: whose fault it is, and what the user can do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rlaif_cli.config.base import address_fault
from rlaif_cli.errors import EngineError, UsageError

KEY = "OPENAI_API_KEY"
_ADDRESS = "OPENAI_BASE_URL"
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")

# What a request alone can be refused for: it is too long, or its content is not allowed.
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
    "logprobs": "--samples N counts sampled answers instead",
    "top_logprobs": "--samples N counts sampled answers instead",
    "temperature": "set --temperature to what the server takes",
    "top_p": "set --top-p to what the server takes",
    "max_tokens": "set --max-tokens to what the server takes",
    "max_completion_tokens": "set --max-tokens to what the server takes",
    "stop": "leave out --stop",
}
_TEXTS = ("message", "msg", "detail", "error", "errors", "reason")  # where servers put their words, the best first
_DEPTH = 9  # of nested objects that are looked into
_SECRET = 8  # characters; what is shorter is no key but a placeholder, and stands in ordinary words too
_WORDY = {"n", "stop", "seed", "temperature"}  # names that are also words: they count where they are quoted


def check_environment(has_address: bool) -> None:
    """Whether what the environment says of servers can be used.

    Raises:
        UsageError: the key or the address holds what it cannot; the key itself is not shown.
    """
    key = os.environ.get(KEY, "")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{KEY} holds a character that no key has (a line break, a space or a letter beyond ASCII)",
            hint="export it again, without what surrounds it",
        )
    address = os.environ.get(_ADDRESS)
    if not has_address and address is not None and (fault := address_fault(address)):
        raise UsageError(f"{_ADDRESS}: {fault}")


def no_connection(error: Exception) -> UsageError:
    """Why a client cannot be made at all: its proxies, as a rule."""
    names = [name for wanted in _PROXIES for name in (wanted, wanted.lower()) if os.environ.get(name)]
    if isinstance(error, ImportError) and names:
        hint = f"pip install 'httpx[socks]' (the package socksio), or unset {' and '.join(names)}"
    elif names:
        hint = f"a proxy is http://host:port, https:// or socks5://; or unset {' and '.join(names)}"
    else:
        hint = "look at the variables OPENAI_*, SSL_CERT_FILE and SSL_CERT_DIR"
    named = ", ".join(f"{name}={shown_address(os.environ[name])}" for name in names)
    return UsageError(f"no server can be reached with {named or 'this environment'}: {told(error)}", hint=hint)


def failing(where: str, error: Exception) -> EngineError:
    """A server that answers nothing, or the same refusal to everything."""
    hints = {
        401: f"the key is read from {KEY}",
        403: f"the key is read from {KEY}",
        404: "an address ends in /v1 as a rule, http://host:port/v1, and has nothing after it",
    }
    hint = hints.get(getattr(error, "status_code", 0), "what was done is kept; run the same command again to resume")
    return EngineError(f"the server is failing: {told(error)}", where=where, hint=hint)


def is_own(error: Exception) -> bool:
    """Whether a refusal is about the request's length or content, and so says nothing of other requests."""
    said = " ".join(_words(getattr(error, "body", None)))
    return bool(_OWN.search(said or told(error)))


def refused_parameter(error: Exception, sent: Iterable[str]) -> str | None:
    """Which of the parameters that were sent a server refuses; "system" for a system turn. None: it is not said."""
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
    """A parameter that a server does not take and that cannot be left out without another meaning."""
    what = "a system turn" if name == "system" else f"'{name}'"
    return EngineError(f"the server refuses {what}: {told(error)}", where=where, hint=_HINTS.get(name))


def words_of(error: Exception) -> str:
    """All that a server says in a refusal, in one line."""
    return " ".join(_words(getattr(error, "body", None))) or told(error)


def _words(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts of a refusal; not what it repeats of the request."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < _DEPTH:
        for each in value:
            yield from _words(each, depth + 1)
    elif isinstance(value, dict) and depth < _DEPTH:
        for key in (*_TEXTS, "code", "param", "loc", "type"):
            yield from _words(value.get(key), depth + 1)


def shown_address(url: str) -> str:
    """Without a name, password or query, which may be secrets."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return "…"


def said(body: Any, depth: int = 0) -> str:
    """A server's own words for a fault, whatever form it gives them: a text, or objects and lists that hold one."""
    if isinstance(body, str):
        return body.strip()
    if isinstance(body, list) and depth < _DEPTH:
        return "; ".join(filter(None, (said(each, depth + 1) for each in body)))
    if not isinstance(body, dict) or depth >= _DEPTH:
        return ""
    text = next(filter(None, (said(body.get(key), depth + 1) for key in _TEXTS)), "")
    place = body.get("loc")
    if text and isinstance(place, list) and place:
        return f"{'.'.join(map(str, place))}: {text}"
    return text


def told(error: Exception) -> str:
    """One line, and nothing that might hold a key."""
    text = str(getattr(error, "message", error))
    if (status := getattr(error, "status_code", None)) is not None and hasattr(error, "response"):
        text = f"Error code: {status} - {said(getattr(error, 'body', None)) or error.response.text}".rstrip(" -")
    if error.__cause__ is not None and not hasattr(error, "status_code") and str(error.__cause__) not in text:
        text += f" ({error.__cause__})"
    text = " ".join(text.split())
    key = os.environ.get(KEY, "")
    return (text.replace(key, "…") if len(key) >= _SECRET else text)[:300]
