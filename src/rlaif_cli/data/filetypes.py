"""Files that hold rows but are not JSONL: detect the type, say how to convert it, and read the types we can.

The type is detected from the first bytes, or, if no line is a valid row, from the text. `rlaif data validate --fix`
reads JSON arrays, rows that span several lines, and UTF-16; the hint names the tool for everything else.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rlaif_cli.data.compression import MAX_LINE, blocks
from rlaif_cli.data.inputs import InputFile
from rlaif_cli.data.turns import MESSAGE_FIELDS
from rlaif_cli.errors import InputError

_LOOKED_AT = 1 << 20  # bytes read to detect the type; a row longer than this is not recognised as spanning lines
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class FileType:
    """Attributes:
    what: as in "this is …, not JSONL".
    conversion: a command that converts it to JSONL ({} is the file's name); None: `data validate --fix` does.
    """

    what: str
    conversion: str | None = None

    def error(self, file: InputFile) -> InputError:
        how = self.conversion or "`rlaif data validate {} --fix NEW.jsonl` converts it to JSONL"
        name = "FILE" if file.name == "stdin" else file.name
        return InputError(f"this is {self.what}, not JSONL", where=file.name, hint=how.replace("{}", name))


def _pandas(reader: str) -> str:
    return f"""python -c 'import pandas; pandas.{reader}("{{}}").to_json("NEW.jsonl", orient="records", lines=True)'"""


_ARRAY, UTF16, _SEVERAL_LINES = map(FileType, ("a JSON array", "UTF-16 text", "JSON with rows over several lines"))
_UTF32 = FileType("UTF-32 text", "iconv -f UTF-32 -t UTF-8 {} > NEW.jsonl")
_BINARY: dict[bytes, FileType] = {
    codecs.BOM_UTF32_LE: _UTF32,  # before UTF-16, whose mark is a prefix of it
    codecs.BOM_UTF32_BE: _UTF32,
    b"PAR1": FileType("Parquet", _pandas("read_parquet")),
    b"ARROW1": FileType("Arrow (Feather)", _pandas("read_feather")),
    b"\xff\xff\xff\xff": FileType(
        "an Arrow stream", """python -c 'import datasets; datasets.Dataset.from_file("{}").to_json("NEW.jsonl")'"""
    ),
    b"PK\x03\x04": FileType("a zip archive", "unzip {}"),
    b"BZh": FileType("a bzip2 file", "bunzip2 {}"),
    b"\xfd7zXZ\0": FileType("an xz file", "unxz {}"),
    b"version https://git-lfs": FileType("a Git LFS pointer", "git lfs pull --include {} fetches the file itself"),
}
_TAR = FileType("a tar archive", "tar -xf {}")
_BINARY_FILE = FileType("a binary file", "rows must be JSON, one object per line, in a plain, gzip or Zstandard file")
_MARKUP = FileType("HTML or XML", "is it an error or login page? download the file itself")
_LATIN_1 = FileType(
    "text in Latin-1 or another 8-bit encoding (not UTF-8)", "iconv -f WINDOWS-1252 -t UTF-8 {} > NEW.jsonl"
)
_CSV = """python -c 'import csv, json; [print(json.dumps(row)) for row in csv.DictReader(open("{}")%s)]' > NEW.jsonl"""


_SPLITS = re.compile(r'\s*\{\s*"([^"]+)"\s*:\s*\[\s*\{')  # an object whose first field is a list of objects
_LISTS_OF_A_ROW = {*MESSAGE_FIELDS, "responses", "completions", "conversations", "rounds"}


def detect_by_magic(file: InputFile) -> FileType | None:
    """The type of a file that cannot be JSONL, by its first bytes; None if it may be."""
    start = _start(file, 512)
    for magic, found in _BINARY.items():
        if start.startswith(magic):
            return found
    if start.startswith(_UTF16_MARKS):
        return UTF16
    if start[257:262] == b"ustar":
        return _TAR
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"<"):
        return _MARKUP
    return _ARRAY if text.startswith(b"[") else None


def detect_by_content(file: InputFile) -> FileType | None:
    """The type of a file without a valid line, by its text; None: report the error of each line instead."""
    start = _start(file, _LOOKED_AT)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    except UnicodeDecodeError:
        return _BINARY_FILE if b"\0" in start else _LATIN_1
    if (split := _SPLITS.match(text)) and split[1] not in _LISTS_OF_A_ROW:
        rows = f"""json.load(open("{{}}"))["{split[1]}"]"""
        how = f"python -c 'import json; [print(json.dumps(row)) for row in {rows}]' > NEW.jsonl"
        return FileType(f"one JSON object with lists of rows (such as '{split[1]}')", how)
    if spans_lines(text):
        return _SEVERAL_LINES
    header = text.lstrip().partition("\n")[0]
    for mark, name, how in ((",", "CSV", ""), ("\t", "tab-separated values", ', delimiter="\\t"')):
        if mark in header and re.fullmatch(rf"""["']?\w[\w .\-"']*({mark}["']?[\w .\-"']*)+""", header.strip()):
            return FileType(name, _CSV % how)
    return None


def not_utf8(line: bytes, at: int) -> str:
    """The error for a line whose first undecodable byte is `at`."""
    if at < 2 or b"\0" in line:
        return f"not UTF-8 at byte {at} (UTF-16?); `iconv -f UTF-16 -t UTF-8` converts a file"
    return f"not UTF-8 at byte {at} (Latin-1?); `iconv -f WINDOWS-1252 -t UTF-8` converts a file"


# ------------------------------------------------------------------------------------------------ reading them


def spans_lines(text: str) -> bool:
    """Whether the rows at the start of a file are not one per line."""
    text = text.lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        bracket, _, rest = text.partition("\n")
        if bracket.strip() != "[":
            return True  # the rows are on the same line as the bracket
        text = rest.lstrip()
    return text.startswith("{") and "\n" in text[: _end_of_value(text, 0) or 0]


def has_multiline_rows(file: InputFile) -> bool:
    """Whether a file must be read by `values`, since its rows are not one per line."""
    return spans_lines(_beginning(file))


def first_value(file: InputFile) -> object:
    """The first JSON value of a file, JSONL or not; None if there is none."""
    text = _beginning(file).lstrip("\ufeff \t\r\n[")
    end = _end_of_value(text, 0)
    return json.loads(text[:end], strict=False) if end else None


def values(file: InputFile) -> Iterator[tuple[int, str]]:
    """(line, text) of the JSON values in an array or one after another; `line` is where each begins.

    Raises:
        InputError: the file is truncated, or contains something that is not JSON.
    """
    text, place, line = "", 0, 1
    for block in _decoded(file):
        text, place = text[place:] + block, 0
        while True:
            begin = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it also matches the empty string
            line, place = line + text.count("\n", place, begin), begin
            if (end := _end_of_value(text, begin)) is None or end == len(text):
                break  # it continues in the next block
            yield line, text[begin:end]
            line, place = line + text.count("\n", begin, end), end
        if len(text) - place > MAX_LINE:
            break
    if rest := text[place:]:
        if (end := _end_of_value(rest, 0)) is None or _BETWEEN.fullmatch(rest, end) is None:
            hint = "is the file complete? remove the rest to use what comes before that line"
            raise InputError(f"not JSON from line {line} on", where=file.name, hint=hint)
        yield line, rest[:end]


_BETWEEN = re.compile(r"[\s,\[\]\ufeff]*")
_DECODER = json.JSONDecoder(strict=False)


def _end_of_value(text: str, begin: int) -> int | None:
    try:
        return _DECODER.raw_decode(text, begin)[1]
    except (ValueError, RecursionError):
        return None


def _start(file: InputFile, count: int) -> bytes:
    start = b""
    for block in blocks(file.path, file.name):
        start += block
        if len(start) >= count:
            break
    return start[:count]


def _encoding(start: bytes) -> str:
    return "utf-16" if start.startswith(_UTF16_MARKS) else "utf-8"


def _beginning(file: InputFile) -> str:
    start = _start(file, _LOOKED_AT)
    return start.decode(_encoding(start), errors="replace")


def _decoded(file: InputFile) -> Iterator[str]:
    """A file's text in blocks."""
    decoder = codecs.getincrementaldecoder(_encoding(_start(file, 2)))()
    try:
        for block in blocks(file.path, file.name):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise _LATIN_1.error(file) from None
