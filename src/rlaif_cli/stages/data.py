"""Records as files: checked, counted, converted, split, freed of repeats. Streams, so that size does not matter."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_cli.compression import content_sha256
from rlaif_cli.config import ConvertConfig, DataConfig, DedupeConfig, SplitConfig
from rlaif_cli.console import ProgressCallback, no_progress
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.formats import FORMATS, NO_STATUS, NOT_SUBMITTED
from rlaif_cli.hashes import HashSet, hash64
from rlaif_cli.jsonl import Source, is_changed, raw_lines
from rlaif_cli.output import new_file, read_json, rejected_path, sidecar
from rlaif_cli.records import (
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
        InputError: no row says what it is.
    """
    if config.kind is not None:
        return config.kind
    for _, line in raw_lines(config.records):
        try:
            row = json.loads(line.strip().rstrip(b","))  # also of a file that is yet to be mended
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            return _looks_like(row)
    raise InputError("no line is a JSON object", where=config.records, hint="one JSON object a line")


def _looks_like(row: dict[str, Any]) -> str:
    fields = row.keys()
    if {"chosen", "rejected"} <= fields:
        return "preferences"
    if {"response_a", "response_b"} <= fields and fields & {"human_fraction_a", "human_preference"}:
        return "pairs"
    if "responses" in fields or {"response_a", "response_b"} <= fields:
        return "candidates"
    if {"initial", "rounds"} <= fields:
        return "revisions"
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if fields & {"response", "completion"} or (isinstance(last, dict) and last.get("role") == "assistant"):
        return "demonstrations"
    return "prompts"


def faults(config: DataConfig, kind: str) -> tuple[int, list[str]]:
    """(good records, every fault by line and field).

    Raises:
        InputError: the file cannot be read at all.
    """
    try:
        source = Source(config.records, KINDS[kind], skip_invalid=True)
    except InputError as error:
        if not error.faults:
            raise
        return 0, error.faults
    return len(source), source.faults


def _source(config: DataConfig, kind: type[Record], output: str, stage: str) -> Source[Any]:
    aside = rejected_path(output, stage)
    return Source(config.records, kind, skip_invalid=config.skip_invalid, rejected_path=aside)


# ------------------------------------------------------------------------------------------------ stats


class Lengths:
    """Characters of texts, eight bytes each."""

    def __init__(self) -> None:
        self._found = array("Q")

    def add(self, text: str) -> None:
        self._found.append(len(text))

    def as_numbers(self) -> dict[str, Any] | None:
        if not self._found:
            return None
        found = np.frombuffer(self._found, dtype=np.uint64)
        quantiles = dict(zip(("p05", "median", "p95"), np.quantile(found, [0.05, 0.5, 0.95]).tolist(), strict=True))
        numbers = {"mean": found.mean(), "min": found.min(), **quantiles, "max": found.max()}
        return {name: round(float(value), 1) for name, value in numbers.items()} | {"n": len(found)}


def stats(config: DataConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """What is in a file: rows, prompts, repeats, lengths in characters, labels, sources."""
    source = _source(config, KINDS[kind], "-", "stats")
    prompts, rows, responses = HashSet(), HashSet(), Counter[int]()
    prompt_lengths, response_lengths, empty = Lengths(), Lengths(), 0
    labels, names = array("d"), Counter[str]()
    for count, row in enumerate(source, start=1):
        prompt, texts = prompt_text(row.prompt), response_texts(row)
        prompts.add(prompt)
        rows.add(prompt, *texts)
        responses[len(texts)] += 1
        prompt_lengths.add(prompt)
        for text in texts:
            response_lengths.add(text)
            empty += not text.strip()
        label = getattr(row, "p_chosen", getattr(row, "human_fraction_a", None))
        if label is not None:
            labels.append(label)
        names[str(getattr(row, "source", None) or getattr(row, "model", None) or row.meta.get("source") or "")] += 1
        if count % 256 == 0:
            progress(count, len(source))
    return {
        "kind": kind,
        "rows": len(source),
        "rejected": source.rejected,
        "prompts": len(prompts),
        "repeated_rows": len(source) - len(rows),
        "responses_a_row": dict(sorted(responses.items())),
        "empty_responses": empty,
        "prompt_characters": prompt_lengths.as_numbers(),
        "response_characters": response_lengths.as_numbers(),
        "labels": _label_numbers(labels),
        "sources": dict(names.most_common(20)) if set(names) != {""} else None,
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
    source = _source(config, KINDS[kind], config.output, "split")
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
    return (found.get("part"), found.get("settings")) == (part, _settings(config, source)) and not is_changed(
        path, content_sha256(path)
    )


def dedupe(config: DedupeConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """The first of every set of rows with one content (or one prompt)."""
    source = _source(config, KINDS[kind], config.output, "dedupe")

    def key(row: Any) -> str:
        return prompt_text(row.prompt) if config.by == "prompt" else _content(row)

    repeated = HashSet(key(row) for row in source).repeated()
    seen: set[int] = set()  # of those that are repeated alone
    kept = 0
    with _rewritten(config, source) as put:
        for count, row in enumerate(source, start=1):
            number = hash64(key(row))
            if number not in seen:
                put(row.model_dump_json(exclude_none=True))
                kept += 1
            if number in repeated:
                seen.add(number)
            progress(count, len(source))
    return {"rows": kept, "repeats": len(source) - kept, "rejected": source.rejected}


def _content(row: Any) -> str:
    return content_id(prompt_text(row.prompt), response_texts(row))


def _rewritten(config: Any, source: Source[Any], **facts: str) -> Any:
    """A new file of lines, there whole or not at all, with a manifest that leads back to what it was made of."""
    manifest = {"stage": "data", "settings": _settings(config, source), **facts}
    return new_file(config.output, manifest, overwrite=config.overwrite)


def _settings(config: DataConfig, source: Source[Any]) -> dict[str, Any]:
    return config.deciding() | {"input_sha256": source.sha256}
