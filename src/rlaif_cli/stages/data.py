"""Records as files: checked, counted, converted, split, freed of repeats. Streams, so that size does not matter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_cli.config.data import (
    ConvertConfig,
    DataConfig,
    DedupeConfig,
    ParallelConfig,
    SplitConfig,
    StatsConfig,
    ValidateConfig,
)
from rlaif_cli.data.atomic import new_file, read_json
from rlaif_cli.data.compression import content_sha256
from rlaif_cli.data.filetypes import by_first_bytes, first_value, without_rows
from rlaif_cli.data.formats import FORMATS, NO_STATUS, NOT_SUBMITTED
from rlaif_cli.data.hash_set import HashSet, hash64
from rlaif_cli.data.inputs import InputFile, files
from rlaif_cli.data.paths import rejected_path, sidecar
from rlaif_cli.data.reader import Each, Source, is_changed
from rlaif_cli.data.records import (
    Candidates,
    Demonstration,
    HumanPair,
    Preference,
    PromptRecord,
    Record,
    Revision,
    content_id,
    prompt_text,
)
from rlaif_cli.errors import InputError, RlaifError, UsageError
from rlaif_cli.rates import cores
from rlaif_cli.ui.console import counted
from rlaif_cli.ui.progress import ProgressCallback, no_progress

KEPT, HELD_OUT = "kept", "held out"  # the parts of a split, in their manifests
KINDS: dict[str, type[Record]] = {
    "prompts": PromptRecord,
    "candidates": Candidates,
    "preferences": Preference,
    "pairs": HumanPair,
    "demonstrations": Demonstration,
    "revisions": Revision,
}


def kind_of(config: DataConfig) -> str:
    """The kind that was asked for, or the one that the first row's fields look like.

    Raises:
        InputError: a file is no JSONL (nor one of which `--fix` makes JSONL, where it is asked for), or no row says
            what it is.
    """
    fix = isinstance(config, ValidateConfig) and config.fix is not None
    given = files(config.records)
    for file in given:
        if (other := by_first_bytes(file)) and not (fix and other.how is None):
            raise other.error(file)
    if config.kind is not None:
        return config.kind
    for file in given:
        if isinstance(row := _first_row(file), dict):
            return _looks_like(row)
    for file in given:
        if other := without_rows(file):
            raise other.error(file)
    raise InputError("no line is a JSON object", where=config.records, hint="one JSON object a line")


def _first_row(file: InputFile) -> Any:
    """Also of a file that `--fix` is yet to make JSONL of."""
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
    if {"response_a", "response_b"} <= fields:  # what people preferred may be what is wrong with the row
        return "pairs"
    if {"initial", "rounds"} <= fields:
        return "revisions"
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if fields & {"response", "completion"} or (isinstance(last, dict) and last.get("role") == "assistant"):
        return "demonstrations"
    return "prompts"


def faults(config: ParallelConfig, kind: str) -> tuple[int, list[str]]:
    """(good records, every fault by line and field).

    Raises:
        InputError: the file cannot be read at all.
    """
    try:
        with _each_file(config) as each:
            source = Source(config.records, KINDS[kind], skip_invalid=True, each=each)
    except InputError as error:
        if not error.faults:
            raise
        return 0, error.faults
    return len(source), source.faults


def _source(config: DataConfig, kind: str, output: str, stage: str, **how: Any) -> Source[Any]:
    aside = rejected_path(output, stage)
    return Source(config.records, KINDS[kind], skip_invalid=config.skip_invalid, rejected_path=aside, **how)


@contextlib.contextmanager
def _each_file(config: ParallelConfig) -> Iterator[Each]:
    """A `map` over the files of an input: by several processes, where there are several files."""
    many = min(len(files(config.records)), config.num_workers or cores())
    if many == 1:
        yield map
        return
    # Not by fork: a bar's thread may hold a lock at that moment.
    with ProcessPoolExecutor(many, get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            yield pool.map
        except BrokenProcessPool as error:
            hint = "it may have run out of memory; --num-workers takes fewer"
            raise RlaifError("a worker process was ended from outside", where=config.records, hint=hint) from error
        except BaseException:  # nobody waits for what the others still do
            for worker in active_children():
                worker.terminate()
            # Its thread is waited for: one that still closes its pipe while Python exits prints a traceback.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin_worker() -> None:
    """Ctrl-C ends a worker without a word, and it outlives nobody: not even a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ------------------------------------------------------------------------------------------------ stats


class Lengths:
    """Characters of texts, eight bytes each."""

    def __init__(self) -> None:
        self._found = array("Q")

    def add(self, text: str) -> None:
        self._found.append(len(text))

    def update(self, other: Lengths) -> None:
        self._found.extend(other._found)

    def as_numbers(self) -> dict[str, Any] | None:
        if not self._found:
            return None
        found = np.frombuffer(self._found, dtype=np.uint64)
        quantiles = dict(zip(("p05", "median", "p95"), np.quantile(found, [0.05, 0.5, 0.95]).tolist(), strict=True))
        numbers = {"mean": found.mean(), "min": found.min(), **quantiles, "max": found.max()}
        return {name: round(float(value), 1) for name, value in numbers.items()} | {"n": len(found)}


class Counts:
    """What `stats` counts, of one file or several."""

    def __init__(self) -> None:
        self.rows = 0
        self.prompts, self.contents = HashSet(), HashSet()
        self.responses, self.sources = Counter[int](), Counter[str]()
        self.prompt_lengths, self.response_lengths = Lengths(), Lengths()
        self.empty = 0
        self.labels = array("d")

    @classmethod
    def of(cls, rows: Iterable[Any], tell: Callable[[int], None] | None = None) -> Counts:
        counts = cls()
        for row in rows:
            counts.add(row)
            if tell is not None and counts.rows % 256 == 0:
                tell(counts.rows)
        return counts

    def add(self, row: Any) -> None:
        prompt, texts = prompt_text(row.prompt), response_texts(row)
        self.rows += 1
        self.prompts.add(prompt)
        self.contents.add(prompt, *texts)
        self.responses[len(texts)] += 1
        self.prompt_lengths.add(prompt)
        for text in texts:
            self.response_lengths.add(text)
            self.empty += not text.strip()
        label = getattr(row, "p_chosen", getattr(row, "human_fraction_a", None))
        if label is not None:
            self.labels.append(label)
        name = getattr(row, "source", None) or getattr(row, "model", None) or row.meta.get("source")
        self.sources[str(name or "")] += 1

    def update(self, other: Counts) -> None:
        self.rows += other.rows
        self.prompts.update(other.prompts)
        self.contents.update(other.contents)
        self.responses.update(other.responses)
        self.sources.update(other.sources)
        self.prompt_lengths.update(other.prompt_lengths)
        self.response_lengths.update(other.response_lengths)
        self.empty += other.empty
        self.labels.extend(other.labels)


def stats(config: StatsConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """What is in a file: rows, prompts, repeats, lengths in characters, labels, sources."""
    counts = Counts()
    with _each_file(config) as each:
        source = _source(config, kind, "-", "stats", each=each)

        def tell(done: int) -> None:
            progress(counts.rows + done, len(source))

        for found in source.by_file(partial(Counts.of, tell=tell) if each is map else Counts.of):
            counts.update(found)
            tell(0)
    return {
        "kind": kind,
        "rows": counts.rows,
        "rejected": source.rejected,
        "prompts": len(counts.prompts),
        "repeated_rows": counts.rows - len(counts.contents),
        "responses_a_row": dict(sorted(counts.responses.items())),
        "empty_responses": counts.empty,
        "prompt_characters": counts.prompt_lengths.as_numbers(),
        "response_characters": counts.response_lengths.as_numbers(),
        "labels": _label_numbers(counts.labels),
        "sources": dict(counts.sources.most_common(20)) if set(counts.sources) != {""} else None,
    }


def response_texts(row: Any) -> list[str]:
    """The responses of any record, in the order in which it names them."""
    if isinstance(row, Candidates):
        return [response.text for response in row.responses]
    names = ("chosen_text", "rejected_text", "response_a", "response_b", "response")
    return [getattr(row, name) for name in names if hasattr(row, name)]


def _label_numbers(labels: array[float]) -> dict[str, Any] | None:
    if not labels:
        return None
    p = np.frombuffer(labels)
    counts, _ = np.histogram(p, bins=10, range=(0, 1))
    near = float((np.abs(p - 0.5) < 0.05).mean())
    return {"mean": round(float(p.mean()), 4), "near_ties": round(near, 4), "tenths": counts.tolist()}


# ------------------------------------------------------------------------------------------------ rewriting


def convert(config: ConvertConfig, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Rows of another tool as ours, or ours as another tool's.

    Raises:
        InputError: with every row that the format cannot hold.
    """
    origin, target = (FORMATS.get(name or "") for name in (config.from_format, config.to_format))
    if origin and target and origin.record is not target.record:
        theirs, wanted = origin.record.__name__, target.record.__name__
        raise UsageError(f"{config.from_format} has {theirs} rows, and {config.to_format} needs {wanted} rows")
    reader = origin.reader() if origin else target.record if target else Record
    write = target.write if target else None

    def cannot_hold(row: Any) -> str | None:
        try:
            if write is not None:
                write(row)
        except ValueError as error:
            return f"{config.to_format} cannot hold it: {error}"
        return None

    told = (NOT_SUBMITTED, NO_STATUS) if config.from_format == "argilla-records" else ()
    answers = Counter[str]()
    aside = rejected_path(config.output, "convert")
    source = Source(config.records, reader, skip_invalid=config.skip_invalid, rejected_path=aside, check=cannot_hold)
    with _rewritten(config, source) as put:
        for count, row in enumerate(source, start=1):
            put(json.dumps(write(row), ensure_ascii=False) if write else row.model_dump_json(exclude_none=True))
            answers.update({name: row.meta.get(name, 0) for name in told})
            progress(count, len(source))
    return {"rows": len(source), "rejected": source.rejected} | answers


def split(config: SplitConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Two files with no prompt in common. Where a prompt goes depends on the seed and the prompt alone.

    Where an interrupted run with the same settings left one of the two, both are made.
    """
    source = _source(config, kind, config.output, "split")
    if _half_done(config, source):
        config = config.model_copy(update={"overwrite": True})
    counts: Counter[bool] = Counter()
    held_out = config.model_copy(update={"output": config.held_out})
    with _rewritten(config, source, part=KEPT) as keep, _rewritten(held_out, source, part=HELD_OUT) as hold:
        for count, row in enumerate(source, start=1):
            away = hash64(str(config.seed), prompt_text(row.prompt)) < config.fraction * 2**64
            (hold if away else keep)(row.model_dump_json(exclude_none=True))
            counts[away] += 1
            progress(count, len(source))
    return {"rows": counts[False], "held_out": counts[True], "rejected": source.rejected}


def _half_done(config: SplitConfig, source: Source[Any]) -> bool:
    sides = ((Path(config.output), KEPT), (Path(config.held_out), HELD_OUT))
    there = [(path, part) for path, part in sides if path.exists()]
    if len(there) != 1 or config.output == "-":
        return False
    path, part = there[0]
    manifest = sidecar(path, "manifest.json")
    found = read_json(manifest) if manifest.exists() else {}
    same = (found.get("part"), found.get("settings")) == (part, _settings(config, source))
    return same and not is_changed(manifest, content_sha256(path))


def dedupe(config: DedupeConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """The first of every set of rows with one content (or one prompt).

    Raises:
        InputError: among those that are left, two have one id.
    """
    keys, ids = array("Q"), HashSet()
    with _each_file(config) as each:
        source = _source(config, kind, config.output, "dedupe", each=each, repeats=True)
        for found in source.by_file(partial(_keys, by=config.by)):
            keys.extend(found)
    is_first = np.zeros(len(keys), dtype=bool)
    is_first[np.unique(np.frombuffer(keys, dtype=np.uint64), return_index=True)[1]] = True
    with _rewritten(config, source) as put:
        for count, (row, keep) in enumerate(zip(source, is_first, strict=True), start=1):
            if keep:
                ids.add(row.id)
                put(row.model_dump_json(exclude_none=True))
            progress(count, len(source))
        if twice := ids.repeated():
            what = f"{counted(len(twice), 'id')} shared by rows of different content"
            raise InputError(what, where=config.records, hint="`rlaif data validate` lists them")
    kept = int(is_first.sum())
    return {"rows": kept, "repeats": len(source) - kept, "rejected": source.rejected}


def _keys(rows: Iterable[Any], by: str) -> array[int]:
    """Equal for rows of which one is left."""
    key = _prompt if by == "prompt" else _content
    return array("Q", (hash64(key(row)) for row in rows))


def _prompt(row: Any) -> str:
    return prompt_text(row.prompt)


def _content(row: Any) -> str:
    return content_id(prompt_text(row.prompt), response_texts(row))


def _rewritten(config: Any, source: Source[Any], **facts: str) -> Any:
    """A new file of lines, there whole or not at all, with a manifest that leads back to what it was made of."""
    manifest = {"stage": "data", "settings": _settings(config, source), **facts}
    return new_file(config.output, manifest, overwrite=config.overwrite)


def _settings(config: DataConfig, source: Source[Any]) -> dict[str, Any]:
    return config.deciding() | {"input_sha256": source.sha256}
