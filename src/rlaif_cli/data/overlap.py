"""Refuse an output that would overwrite an input, which would be emptied before it is read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from rlaif_cli.config.base import DATA_FIELDS, FUNCTION_FIELDS, StageConfig, function_place
from rlaif_cli.config.naming import SettingError, option
from rlaif_cli.data import inputs

C = TypeVar("C", bound=StageConfig)
_OUTPUTS = ("output", "fix", "held_out")


def check_outputs(config: C) -> C:
    """The config, after checking its outputs.

    Raises:
        SettingError: an output is not a local file, or is an input or a folder that holds one.
    """
    outputs = {field: getattr(config, field, None) for field in _OUTPUTS}
    for field, output in outputs.items():
        if output in (None, "-"):
            continue
        given = f"{option(field)} '{output}'"
        if "://" in output:
            hint = "write to a local file, then run `rlaif data shard` and upload the shards"
            raise SettingError(f"{given}: outputs must be local files; {hint}")
        if not Path(output).name:
            raise SettingError(f"{given} does not name a file")
        for name, text in _named_files(config):
            if name != field and _would_replace(output, name, text):
                raise SettingError(f"the output would replace an input: {text}")
    return config


def _named_files(config: StageConfig) -> Iterator[tuple[str, str]]:
    """(field, text) of every text setting, which may name a file."""
    for name in type(config).model_fields:
        for text in _texts(getattr(config, name)):
            yield name, function_place(text)[0] if name in FUNCTION_FIELDS else text


def _would_replace(output: str, name: str, text: str) -> bool:
    written = {Path(output).resolve(), Path(output).with_suffix(".items.jsonl").resolve()}
    if Path(text).resolve() in written or _lies_in(text, Path(output)):
        return True
    return name in DATA_FIELDS and any(inputs.includes(text, path) for path in written)


def _texts(value: Any) -> list[str]:
    """The texts of a setting: itself, or each of a tuple."""
    return [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str) and each]


def _lies_in(text: str, folder: Path) -> bool:
    """Whether the file that a text names, itself or as a glob, exists and is in the folder."""
    if not os.path.isdir(folder):  # os.path: a name that is too long is simply not a folder; Path raises
        return False
    named = [text] if os.path.exists(text) else glob.glob(text)
    return any(folder.resolve() in Path(each).resolve().parents for each in named)
