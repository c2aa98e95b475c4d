"""Constitutions as YAML files: found, read, and explained when they are invalid."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif_cli.data import strict_yaml
from rlaif_cli.data.shipped_files import shipped_path
from rlaif_cli.data.strict_yaml import Loc, shown
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.judge.constitution import (
    MAX_WEIGHT,
    Constitution,
    Exemplar,
    Model,
    Principle,
    cross_check_errors,
    did_you_mean,
)


def shipped_constitutions() -> list[str]:
    """The names of the constitutions that ship with rlaif, sorted."""
    return sorted(path.stem for path in shipped_path("constitutions").glob("*.yaml"))


def load_constitution(name_or_path: str) -> Constitution:
    """Load a shipped constitution by its name, or any by the path of its YAML file.

    A shipped name always means the shipped one; write `./helpfulness` for a file of that name.

    Raises:
        UsageError: neither a shipped name nor something that looks like a path.
        InputError: the file cannot be read or is invalid; all errors are listed, with line and field.
    """
    path = _find(name_or_path)
    content, document = _read(path)
    errors = document.errors
    constitution, schema_errors = _validated(document.value)
    reported = {loc for loc, _ in errors}  # one error per value is enough
    errors += [error for error in schema_errors if error[0] not in reported]
    if constitution is None or errors:
        raise document.error(path, errors)
    constitution.remember_file(path, content)
    return constitution


def _find(name_or_path: str) -> Path:
    names = shipped_constitutions()
    if name_or_path in names:
        return shipped_path("constitutions") / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if re.search(r"[/\\]|\.ya?ml\Z", name_or_path) or os.path.exists(name_or_path):
        return path
    guess = did_you_mean(name_or_path, names)
    raise UsageError(
        f"unknown constitution '{name_or_path}'",
        hint=f"{guess}shipped: {', '.join(names)}; or give the path of a YAML file",
    )


def _read(path: Path) -> tuple[bytes, strict_yaml.Document]:
    try:
        content = strict_yaml.read(path)
    except FileNotFoundError:
        stem = path.stem if path.stem in shipped_constitutions() else None
        hint = (
            f"for the shipped constitution, write '{stem}'"
            if stem
            else f"shipped: {', '.join(shipped_constitutions())}"
        )
        raise InputError("no such constitution file", where=str(path), hint=hint) from None
    document = strict_yaml.parse(content, path)
    if not isinstance(document.value, dict):
        wanted = "must have the keys name, description, preamble and principles"
        what = "is empty" if document.value is None else f"{wanted}, found {shown(document.value)}"
        raise InputError(what, where=str(path), hint=f"{shipped_path('constitutions')} has complete examples")
    return content, document


def _validated(data: object) -> tuple[Constitution | None, list[tuple[Loc, str]]]:
    """The constitution, or all errors of the schema and the cross checks."""
    errors = cross_check_errors(data) if isinstance(data, Mapping) else []
    try:
        return Constitution.model_validate(data), errors
    except ValidationError as invalid:
        for each in invalid.errors(include_url=False):
            if each["loc"] == () and each["type"] == "value_error":
                continue  # the cross checks, which are in `errors` already, with their locations
            errors.append((each["loc"], _explain(each)))
        return None, errors


def _explain(error: Any) -> str:
    """A pydantic error in words for the author of the file."""
    kind, loc, value, context = error["type"], error["loc"], error["input"], error.get("ctx", {})
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            known = _keys(loc)
            guess = did_you_mean(str(loc[-1]), known)
            return f"unknown key; {guess}known keys are {', '.join(known)}"
        case "string_type":
            quote = "; put it in quotes" if isinstance(value, bool | int | float) else ""
            return f"must be text, not {shown(value)}{quote}"
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters, found {len(value)}"
        case "string_pattern_mismatch" if "\n" in value:
            return "must be a single line"
        case "string_pattern_mismatch":
            return f"must consist of a-z, 0-9 and '-', found '{value}'"
        case "literal_error":
            return f"must be {context['expected']}, not {shown(value)}"
        case "float_type":
            return f"must be a number, not {'the text ' if isinstance(value, str) else ''}{shown(value)}"
        case "greater_than" | "less_than_equal" | "finite_number":
            return f"must be above 0 and at most {MAX_WEIGHT:,.0f}, not {shown(value)}"
        case "tuple_type":
            return f"must be a list, not {shown(value)}"
        case "model_type":
            return f"must be a mapping with the keys {', '.join(_keys((*loc, '')))}, not {shown(value)}"
        case "value_error":
            return str(context["error"])
    return str(error["msg"])


def _keys(loc: Loc) -> list[str]:
    """The known keys of the mapping that contains `loc`."""
    sections: dict[str, type[Model]] = {"principles": Principle, "exemplars": Exemplar}
    model = sections[str(loc[0])] if len(loc) > 1 else Constitution
    return [field.alias or name for name, field in model.model_fields.items()]
