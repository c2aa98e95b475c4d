"""One call of the API: its arguments as a config, rows as files, errors that name arguments, and silence."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from rlaif_cli.api.results import DataResult, LabelResult, Rows
from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.naming import as_field
from rlaif_cli.config.refusal import refusal
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.data import inputs
from rlaif_cli.data.overlap import check_outputs
from rlaif_cli.data.paths import beside
from rlaif_cli.engines import FAKE, SERVERS
from rlaif_cli.errors import InputError, RlaifError, UsageError
from rlaif_cli.ui import messages

C = TypeVar("C", bound=StageConfig)
T = TypeVar("T")
_FOLDER = "rlaif_api-"


@contextmanager
def called(kind: type[C], settings: dict[str, Any], *data: Any) -> Iterator[tuple[C, bool]]:
    """The config of one call, and whether its output is wanted in memory. Its temporary files go when it ends."""
    with _silent(), tempfile.TemporaryDirectory(prefix=_FOLDER) as name:
        folder = Path(name)
        try:
            config = _config(kind, settings, data, folder)
            in_memory = getattr(config, "output", None) == "-"
            if in_memory:
                config = config.model_copy(update={"output": str(folder / "output.jsonl")})
            yield config, in_memory
        except RlaifError as error:
            _name_arguments(error)
            raise


_lock, _under_way = threading.Lock(), 0


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing is printed, also when a command calls; what was copied goes when the last call under way ends."""
    global _under_way
    with _lock:
        _under_way += 1
    try:
        with messages.reported_to(messages.Library()):
            yield
    finally:
        with _lock:
            _under_way -= 1
            if not _under_way:
                inputs.remove_temporary_files()


@contextmanager
def hushed(config: StageConfig) -> Iterator[None]:
    """transformers shows no bars and logs errors alone, where a stage loads models with it."""
    if not _loads_models(config):
        yield
        return
    from transformers.utils import logging  # a second, which is spent anyway

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _loads_models(config: StageConfig) -> bool:
    if isinstance(config, TrainConfig) or getattr(config, "reward_model", None):
        return True
    named = getattr(config, "model", None) or getattr(config, "judge", None)
    return named not in (None, FAKE, (FAKE,)) and getattr(config, "engine", None) not in (FAKE, *SERVERS)


def _config(kind: type[C], settings: dict[str, Any], data: tuple[Any, ...], folder: Path) -> C:
    """Raises: UsageError: naming every argument that cannot be as it is."""
    if any(isinstance(each, StageConfig) for each in data):
        if settings or len(data) > 1 or not isinstance(data[0], kind):
            raise UsageError(f"either one {kind.__name__}, or data and settings by their names")
        return _checked(data[0])
    names = [name for name, extra in _extras(kind).items() if extra["argument"]]
    if len(data) > len(names):
        raise UsageError(f"{len(data)} inputs were given; it takes {', '.join(names)}")
    values = dict(zip(names, data, strict=False))
    if twice := sorted(values.keys() & settings.keys()):
        raise UsageError(f"{twice[0]} is given twice")
    return _checked(kind, {name: _plain(kind, name, value, folder) for name, value in (values | settings).items()})


def _checked(config: C | type[C], values: Mapping[str, Any] | None = None) -> C:
    kind = config if isinstance(config, type) else type(config)
    try:
        return check_outputs(config.model_validate(values) if isinstance(config, type) else config)
    except ValueError as error:  # pydantic's are ValueErrors too
        raise UsageError(refusal(error, kind, as_field)) from None


def _extras(kind: type[StageConfig]) -> dict[str, dict[str, Any]]:
    return {name: cast(dict[str, Any], field.json_schema_extra) for name, field in kind.model_fields.items()}


def _name_arguments(error: RlaifError) -> None:
    """Settings and data are called as in the call."""
    error.spell = as_field
    error.what = as_given(error.what)
    error.where, error.hint = as_given(error.where), as_given(error.hint)
    error.errors = [as_given(each) for each in error.errors]


def as_given(value: T) -> T:
    """A text in which temporary files have the names of the arguments that they hold the rows of."""
    if not isinstance(value, str):
        return value
    folder = re.escape(os.path.join(tempfile.gettempdir(), _FOLDER))
    return cast(T, re.sub(rf"{folder}[^/]+/(\w+)\.jsonl", r"\1", value))


# ------------------------------------------------------------------------------------------------ rows


def _plain(kind: type[StageConfig], name: str, value: Any, folder: Path) -> Any:
    """A setting as a config takes it: paths as texts, and the name of a file in place of rows."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if name in kind.data_fields() and isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return _file(name, value, folder)
    if isinstance(value, list | tuple):
        return [_plain(kind, "", each, folder) for each in value]
    return value


def _file(name: str, rows: Iterable[Any], folder: Path) -> str:
    if isinstance(rows, DataResult | Rows) and rows.path is not None:
        return str(rows.path)
    path = folder / f"{name}.jsonl"
    _write(path, name, rows)
    if isinstance(rows, LabelResult) and len(rows.unscored):  # `audit` looks for them beside the labels
        _write(beside(str(path), "label", "unscored"), name, rows.unscored)
    return str(path)


def _write(path: Path, name: str, rows: Iterable[Any]) -> None:
    texts = name == "prompts" and isinstance(rows, list | tuple)  # a data frame too is iterable, over its columns
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for number, row in enumerate(rows, start=1):
            file.write(_line({"prompt": row} if texts and isinstance(row, str) else row, f"{name} row {number}") + "\n")


def _line(row: Any, where: str) -> str:
    if isinstance(row, BaseModel):
        return row.model_dump_json(exclude_none=True)
    if not isinstance(row, Mapping):
        raise InputError(f"a dict or a record is needed, found {type(row).__name__}", where=where)
    try:
        return json.dumps(dict(row), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"this cannot be said in JSON: {error}", where=where) from error
