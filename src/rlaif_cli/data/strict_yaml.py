"""A strict, safe subset of YAML for settings files, which keeps the line of every value.

PyYAML's safe loader would expand a "billion laughs" file, let the last of two equal keys win, and turn `2024-01-01`
into a date.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlaif_cli.errors import InputError

MAX_BYTES = 1024 * 1024  # a settings file is a few pages; anything larger is the wrong file
MAX_DEPTH = 16
MAX_VALUES = 20_000

Loc = tuple[str | int, ...]  # where a value is: ("principles", 2, "choose")


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        errors: those after which parsing could continue, such as duplicate keys.
    """

    value: object
    lines: dict[Loc, int]
    errors: list[tuple[Loc, str]]

    def error(self, path: Path, errors: list[tuple[Loc, str]]) -> InputError:
        """All errors as one exception, each with its line and field."""
        return invalid_file(path, [(self.line_of(loc), dotted(loc), what) for loc, what in errors])

    def line_of(self, loc: Loc) -> int | None:
        """The line of a value, or for a missing one the line of its parent."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc) if loc else None


def read(path: Path) -> bytes:
    """The bytes of a settings file; at most MAX_BYTES + 1 are ever read.

    Raises:
        FileNotFoundError: for the caller, who knows what was expected.
        InputError: the path is a folder, the file is too large or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise InputError("is a folder, not a file", where=str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read ({reason})", where=str(path)) from None
    if len(content) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES // 1024} KiB", where=str(path), hint="is it a settings file?")
    return content


def parse(content: bytes, path: Path) -> Document:
    """Read the bytes of the file at `path`.

    Raises:
        InputError: they are not valid, with the line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise invalid_file(path, [(line, "", "is not UTF-8 text")], hint="is it a YAML file?") from None
    try:
        reader = _YamlReader(text)
        data = reader.document()
    except _YamlError as error:
        raise invalid_file(path, [(error.args[0], "", error.args[1])]) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        what = f"a character that YAML does not allow (U+{ord(text[error.position]):04X})"
        raise invalid_file(path, [(line, "", what)], hint="is it a YAML file?") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = "not valid YAML: " + ", ".join(part for part in (error.context, error.problem) if part)
        hint = (
            "text that contains ': ' or ' #', or starts with a special character, needs quotes or the '>-' block style"
        )
        raise invalid_file(path, [(mark.line + 1 if mark else None, "", what)], hint=hint) from None
    return Document(data, reader.lines, reader.errors)


def load(path: Path) -> object:
    """Read and parse a valid file.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read, or is invalid.
    """
    document = parse(read(path), path)
    if document.errors:
        raise document.error(path, document.errors)
    return document.value


class _YamlError(Exception):
    """Parsing cannot continue: (line, what)."""


class _YamlReader:
    """Reads mappings, lists, text, numbers, true/false and null.

    Aliases, anchors, tags and deep nesting are refused at once, duplicate keys are errors, dates stay text, and the
    line of every value is kept.
    """

    SCALARS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))

    def __init__(self, text: str) -> None:
        self.loader = yaml.SafeLoader(text)
        self.values = 0
        self.lines: dict[Loc, int] = {}
        self.errors: list[tuple[Loc, str]] = []

    def document(self) -> object:
        """The value of the only document in the file; None if there is none."""
        self.loader.get_event()  # the stream starts
        if self.loader.check_event(yaml.StreamEndEvent):
            return None
        self.loader.get_event()  # the document starts
        value = self.value((), None)
        self.loader.get_event()  # the document ends
        if not self.loader.check_event(yaml.StreamEndEvent):
            line = self.line(self.loader.peek_event())
            raise _YamlError(line, "a second document starts here; only one is read")
        return value

    def value(self, loc: Loc, key_line: int | None) -> object:
        event = self.event()
        self.lines[loc] = key_line or self.line(event)
        self.values += 1
        if self.values > MAX_VALUES:
            raise _YamlError(self.line(event), f"more than {MAX_VALUES} values; is it a settings file?")
        if len(loc) > MAX_DEPTH:
            raise _YamlError(self.line(event), f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(loc)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(loc)
        return self.scalar(event, loc)

    def event(self) -> Any:
        """The next event that makes a key or a value."""
        event: Any = self.loader.get_event()
        refused = {
            "an alias": f"*{event.anchor}" if isinstance(event, yaml.AliasEvent) else None,
            "an anchor": event.anchor and f"&{event.anchor}",
            "a tag": getattr(event, "tag", None),
        }
        for what, found in refused.items():
            if found is not None:
                raise _YamlError(self.line(event), f"{what} ({shown(found)}) is not allowed; if it is text, quote it")
        return event

    def mapping(self, loc: Loc) -> dict[str, object]:
        found: dict[str, object] = {}
        while not self.loader.check_event(yaml.MappingEndEvent):
            event = self.event()
            line = self.line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise _YamlError(line, "a key must be plain text")
            here = (*loc, event.value)
            if event.value in found:
                self.errors.append((here, f"the key is already used in line {self.lines[here]}"))
            found[event.value] = self.value(here, line)
        self.loader.get_event()
        return found

    def sequence(self, loc: Loc) -> list[object]:
        found: list[object] = []
        while not self.loader.check_event(yaml.SequenceEndEvent):
            found.append(self.value((*loc, len(found)), None))
        self.loader.get_event()
        return found

    def scalar(self, event: Any, loc: Loc) -> object:
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag not in self.SCALARS:
            return event.value
        try:
            return self.loader.construct_object(yaml.ScalarNode(tag, event.value))
        except ValueError:  # it looks like a number but is not one: `0b_`, or 5000 digits
            self.errors.append((loc, "is not a usable number; if it is text, put it in quotes"))
            return event.value

    @staticmethod
    def line(event: Any) -> int:
        return int(event.start_mark.line) + 1


def invalid_file(path: Path, errors: list[tuple[int | None, str, str]], hint: str | None = None) -> InputError:
    """A single error becomes the message itself; several are listed below it, in line order."""

    def place(line: int | None) -> str:
        return f"{path} line {line}" if line else str(path)

    def message(field: str, what: str) -> str:
        return f"{field}: {what}" if field else what

    errors = sorted(errors, key=lambda error: error[0] or 0)
    if len(errors) == 1:
        line, field, what = errors[0]
        return InputError(message(field, what), where=place(line), hint=hint)
    listed = [f"{place(line)}: {message(field, what)}" for line, field, what in errors]
    return InputError(f"{len(errors)} errors", where=str(path), hint=hint, errors=listed)


def dotted(loc: Loc) -> str:
    """("principles", 2, "choose") as principles[2].choose."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def shown(value: object) -> str:
    """How a message names a value."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a true/false value (yes, no, on and off are such values in YAML)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 40 else f"'{value[:40]}…'"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    return str(value)
