"""The kind of record that a file holds."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from rlaif_cli.config.data import DataConfig, ValidateConfig
from rlaif_cli.data.filetypes import detect_by_content, detect_by_magic, first_value
from rlaif_cli.data.inputs import InputFile, files
from rlaif_cli.data.records import Candidates, Demonstration, HumanPair, Preference, PromptRecord, Record, Revision
from rlaif_cli.errors import InputError

KINDS: dict[str, type[Record]] = {
    "prompts": PromptRecord,
    "candidates": Candidates,
    "preferences": Preference,
    "pairs": HumanPair,
    "demonstrations": Demonstration,
    "revisions": Revision,
}


def kind_of(config: DataConfig) -> str:
    """The requested kind, or a guess from the fields of the first row.

    Raises:
        InputError: a file is not JSONL (nor a type that a requested `--fix` converts), or no line is an object.
    """
    fix = isinstance(config, ValidateConfig) and config.fix is not None
    given = files(config.records)
    for file in given:
        if (other := detect_by_magic(file)) and not (fix and other.conversion is None):
            raise other.error(file)
    if config.kind is not None:
        return config.kind
    for file in given:
        if isinstance(row := _first_row(file), dict):
            return _looks_like(row)
    for file in given:
        if other := detect_by_content(file):
            raise other.error(file)
    raise InputError("no line is a JSON object", where=config.records, hint="one JSON object per line")


def _first_row(file: InputFile) -> Any:
    """The first row, also of a file that `--fix` has yet to convert."""
    for _, line in file.lines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line.strip().rstrip(b",")), dict):
                return row
    return first_value(file)


def _looks_like(row: dict[str, Any]) -> str:
    fields = row.keys()
    if {"chosen", "rejected"} <= fields:
        return "preferences"
    if "responses" in fields:
        return "candidates"
    if {"response_a", "response_b"} <= fields:  # even without a human label, which may be the error
        return "pairs"
    if {"initial", "rounds"} <= fields:
        return "revisions"
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if fields & {"response", "completion"} or (isinstance(last, dict) and last.get("role") == "assistant"):
        return "demonstrations"
    return "prompts"


def response_texts(row: Any) -> list[str]:
    """The responses of any record, in the record's order."""
    if isinstance(row, Candidates):
        return [response.text for response in row.responses]
    names = ("chosen_text", "rejected_text", "response_a", "response_b", "response")
    return [getattr(row, name) for name in names if hasattr(row, name)]
