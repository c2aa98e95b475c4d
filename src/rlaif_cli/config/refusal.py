"""Why settings are refused, for the command line, a pipeline file, or Python: only the names of settings differ."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.naming import SettingError, Spell, spelled

# pydantic's error types for a value that is not the number, or not the truth value, that is needed.
PLAIN_TYPES = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "finite_number": "a finite number",
}


def refusal(error: ValueError, kind: type[StageConfig], spell: Spell) -> str:
    """What is wrong with settings, all of it in one line.

    Args:
        error: what the validation or a later check of the settings raised.
        kind: the config that they are for.
        spell: how the reader knows a setting.
    """
    if isinstance(error, ValidationError):
        return "; ".join(_one(found, kind, spell) for found in error.errors())
    return spelled(error.text, spell) if isinstance(error, SettingError) else str(error)


def _one(found: Any, kind: type[StageConfig], spell: Spell) -> str:
    cause = found.get("ctx", {}).get("error")
    message = refusal(cause, kind, spell) if isinstance(cause, ValueError) else str(found["msg"])
    message = message.replace("Input should ", "must ", 1)
    if found["type"] in PLAIN_TYPES:
        message = f"must be {PLAIN_TYPES[found['type']]}"
    if not found["loc"]:
        return message
    name = str(found["loc"][0])
    if found["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, list(kind.model_fields), n=1)
        return f"{name}: there is no such setting" + (f"; did you mean {spell(close[0])}?" if close else "")
    item = "".join(f"[{part}]" for part in found["loc"][1:] if isinstance(part, int))  # of a list
    return f"{spell(name)}{item}: {message}"
