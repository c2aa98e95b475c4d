"""Parse one line of JSON strictly, and explain what is wrong with an invalid one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from rlaif_cli.config.refusal import PLAIN_TYPES

MAX_DEPTH = 100  # pydantic cannot serialise 255 levels


TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field '{twice}' appears twice")
    return row


def parse_json(line: str, fields: Callable[[list[tuple[str, Any]]], dict[str, Any]] = _no_duplicates) -> Any:
    """Strict JSON: no NaN, no duplicate keys (unless `fields`, which builds an object from its pairs, allows them).

    Raises:
        ValueError: with a one-line reason.
    """
    try:
        row = json.loads(line, parse_constant=_no_constants, parse_float=_finite, object_pairs_hook=fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if line.count("[") + line.count("{") > MAX_DEPTH and _depth(row) > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    return row


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def describe(error: Exception) -> str:
    """Why a value was refused, in one line: pydantic's errors in plain words, the message of any other exception."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors()
    # A prompt may be text or a list of messages: report only the errors of the form that it has.
    right = [_place(each) for each in found if not each["type"].endswith("_type")]
    reported = [
        each
        for each in found
        if not each["type"].endswith("_type") or not any(f"{place}.".startswith(f"{_place(each)}.") for place in right)
    ]
    return "; ".join(_describe_one(each) for each in reported[:3])


# pydantic's error types for a value of the wrong type.
_TYPES = {
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    **PLAIN_TYPES,
}


def _place(found: Any) -> str:
    return ".".join(
        str(part) for part in found["loc"] if not str(part).startswith(("list[", "constrained", "function-"))
    )


def _describe_one(found: Any) -> str:
    place = _place(found)
    kind, context = found["type"], found.get("ctx", {})
    if kind == "missing":
        return f"'{place}' is missing"
    if kind == "too_short":
        return f"'{place}' needs at least {_items(context['min_length'])}, found {context['actual_length']}"
    if kind == "too_long":
        return f"'{place}' must have no more than {_items(context['max_length'])}, found {context['actual_length']}"
    if kind == "string_too_short":
        return f"'{place}' is empty"
    if kind == "extra_forbidden":
        return f"'{place}' is not a known field"
    if kind in _TYPES:
        return f"'{place}' must be {_TYPES[kind]}"
    message = found["msg"].removeprefix("Value error, ").replace("Input should ", "must ", 1)
    return f"'{place}'{'' if message.startswith('must ') else ':'} {message}" if place else message


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"
