"""Annotation of pairs by people: blind, shuffled, saved at once, resumable, with undo. This is the backend of the page.

Rows are human pairs (`records.HumanPair`), so `rlaif eval alignment` can read the file. `meta` records the annotator
and which response was shown first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlaif_cli.config.judge import AnnotateConfig
from rlaif_cli.config.naming import option
from rlaif_cli.data.atomic import cannot_write, read_rows
from rlaif_cli.data.messages import prompt_text
from rlaif_cli.data.paths import rejected_path, sidecar
from rlaif_cli.data.reader import Source, parse_record
from rlaif_cli.data.records import HumanPair, PairsOnly, Preference
from rlaif_cli.data.torn_lines import drop_torn_line
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.stages.pairs import pair_chooser, pair_id
from rlaif_cli.stats.agreement import agreement_items, pair_kappa
from rlaif_cli.stats.as_json import rate


@dataclass(frozen=True)
class Pair:
    """Two responses to compare; `swapped`: b is shown first."""

    id: str
    prompt: str
    a: str
    b: str
    swapped: bool


class Session:
    """The work of one annotator on the pairs of a file.

    Attributes:
        total: the number of pairs.

    Raises:
        InputError: the candidates, the judge's labels or the existing answers are invalid.
    """

    def __init__(self, config: AnnotateConfig) -> None:
        choose = pair_chooser(config.pairs, config.seed)
        source = Source(
            config.candidates,
            PairsOnly,
            skip_invalid=config.skip_invalid,
            rejected_path=rejected_path(config.output, "annotate"),
        )
        self._annotator = config.annotator
        self._path = Path(config.output)
        self._pairs = self._shuffled(source, choose, config.seed)
        self.total = len(self._pairs)
        self._judge = _judge_labels(config.labels) if config.labels else {}
        self._lock = FileLock(sidecar(self._path, "lock"))
        self._skipped: list[str] = []
        self._done: list[str] = []  # answers of this session, in order, for undo
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        except OSError as error:
            raise cannot_write(self._path, error) from error
        with self._lock:
            drop_torn_line(self._path)
        self._check_answers()
        self._answered = {row["meta"]["pair"] for row in self._rows() if row["meta"]["annotator"] == self._annotator}

    def _shuffled(self, rows: Iterable[PairsOnly], choose: Any, seed: int) -> dict[str, Pair]:
        """The pairs in an order and with sides that depend only on the seed, the annotator and the pair."""
        found = []
        for row in rows:
            for i, j in choose(row):
                name = pair_id(row, i, j)
                drawn = hashlib.sha256(f"{seed}:{self._annotator}:{name}".encode()).digest()
                a, b = row.responses[i].text, row.responses[j].text
                found.append((drawn, Pair(name, prompt_text(row.prompt), a, b, bool(drawn[-1] & 1)), row))
        self._prompts = {pair.id: row.prompt for _, pair, row in found}
        return {pair.id: pair for _, pair, _ in sorted(found, key=lambda each: each[0])}

    # ---------------------------------------------------------------------------------------- the requests of the page

    def state(self) -> dict[str, Any]:
        """What to show: the next pair, blind; only at the end also the agreement."""
        pair = next((p for p in self._pairs.values() if p.id not in self._answered and p.id not in self._skipped), None)
        shown: dict[str, Any] = {
            "annotator": self._annotator,
            "answered": sum(name in self._pairs for name in self._answered),
            "skipped": len(self._skipped),
            "total": self.total,
            "can_undo": bool(self._done),
            "pair": None,
        }
        if pair is None:
            return shown | {"agreement": self.agreement()}
        first, second = (pair.b, pair.a) if pair.swapped else (pair.a, pair.b)
        return shown | {"pair": {"id": pair.id, "prompt": pair.prompt, "responses": [first, second]}}

    def answer(self, name: str, answer: str) -> None:
        """Save an answer: "1" or "2" (the position on the screen), "tie" or "skip".

        Raises:
            UsageError: there is no such pair or answer, or the pair is already answered.
        """
        pair = self._pairs.get(name)
        if pair is None or answer not in ("1", "2", "tie", "skip") or name in self._answered:
            raise UsageError(f"no open pair '{name}', or '{answer}' is not a valid answer")
        if answer == "skip":
            self._skipped.append(name)
            self._done.append(name)
            return
        preference = "tie" if answer == "tie" else "ab"[(answer == "2") != pair.swapped]
        row = HumanPair(
            id=f"{name}@{self._annotator}",
            prompt=self._prompts[name],
            response_a=pair.a,
            response_b=pair.b,
            human_fraction_a={"a": 1.0, "b": 0.0, "tie": 0.5}[preference],
            meta={"pair": name, "annotator": self._annotator, "shown_first": "b" if pair.swapped else "a"},
        )
        is_new = self._append(row)
        self._answered.add(name)
        if not is_new:
            raise UsageError(f"'{self._annotator}' has already answered this pair: is the page open twice?")
        self._done.append(name)

    def undo(self) -> None:
        """Undo the last answer or skip of this session."""
        if not self._done:
            return
        name = self._done.pop()
        if name in self._skipped:
            self._skipped.remove(name)
            return
        self._remove(f"{name}@{self._annotator}")
        self._answered.discard(name)

    # ------------------------------------------------------------------------------------------ agreement

    def agreement(self) -> dict[str, Any]:
        """Agreement with the judge, and with every other annotator on the pairs that both answered."""
        answers: dict[str, dict[str, float]] = {}
        for row in self._rows():
            if row["meta"]["pair"] in self._pairs:
                answers.setdefault(row["meta"]["annotator"], {})[row["meta"]["pair"]] = row["human_fraction_a"]
        own = answers.pop(self._annotator, {})
        judge = {name: p for name in own if (p := self._judged(self._pairs[name])) is not None}
        others = {"judge": judge} if judge else {}
        others |= {f"annotator {name}": found for name, found in answers.items()}
        prompts = {name: pair.prompt for name, pair in self._pairs.items()}
        return {name: _agreement(own, found, prompts) for name, found in others.items() if own.keys() & found.keys()}

    def _judged(self, pair: Pair) -> float | None:
        """P(the judge prefers a)."""
        p = self._judge.get((pair.prompt, pair.a, pair.b))
        q = self._judge.get((pair.prompt, pair.b, pair.a))
        return p if p is not None else None if q is None else 1 - q

    # ------------------------------------------------------------------------------------------ the file

    def _check_answers(self) -> None:
        """Raises: InputError: a line of the file is not an answer, or the texts of its pair have changed."""
        faults = []
        with open(self._path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip() and (reason := self._invalid(line)):
                    faults.append(f"line {number}: {reason}")
        if faults:
            hint = f"choose another {option('output')}, or use the candidates that these answers belong to"
            raise InputError(
                "the file has rows that are not answers to these pairs", where=str(self._path), errors=faults, hint=hint
            )

    def _invalid(self, line: str) -> str | None:
        try:
            row = parse_record(HumanPair, line)
        except ValueError as error:
            return str(error)
        if not all(isinstance(row.meta.get(name), str) for name in ("pair", "annotator")):
            return "'pair' or 'annotator' is missing in 'meta'"
        pair = self._pairs.get(row.meta["pair"])
        answered = (prompt_text(row.prompt), row.response_a, row.response_b)
        same = pair is None or answered == (pair.prompt, pair.a, pair.b)
        return None if same else f"'{row.meta['pair']}' is now the id of a different prompt or of different responses"

    def _rows(self) -> list[dict[str, Any]]:
        return read_rows(self._path)

    def _append(self, row: HumanPair) -> bool:
        """False if the file already has this annotator's answer."""
        try:
            with self._lock, open(self._path, "a", encoding="utf-8") as file:
                if any(before["id"] == row.id for before in self._rows()):
                    return False
                file.write(row.model_dump_json(exclude_none=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
                return True
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def _remove(self, row_id: str) -> None:
        """Rewrite the file without a row, under the lock since another annotator may be writing to it."""
        with self._lock:
            kept = [row for row in self._rows() if row["id"] != row_id]
            new = self._path.with_name(f".{self._path.name}.new")
            new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), "utf-8")
            os.replace(new, self._path)


def _judge_labels(path: str) -> dict[tuple[str, str, str], float]:
    """(prompt, chosen, rejected) -> p_chosen."""
    return {
        (prompt_text(row.prompt), row.chosen_text, row.rejected_text): row.p_chosen for row in Source(path, Preference)
    }


def _agreement(own: dict[str, float], other: dict[str, float], prompts: dict[str, str]) -> dict[str, Any]:
    """On the common pairs: how often both prefer the same response, without ties; and Cohen's kappa."""
    common = sorted(own.keys() & other.keys())
    decided = [name for name in common if own[name] != 0.5]
    found: dict[str, Any] = {"pairs": len(common)}
    if decided:
        items = agreement_items([other[name] for name in decided], [own[name] for name in decided])
        found["same"] = rate(items, [prompts[name] for name in decided])
        kappa = pair_kappa([own[name] for name in common], [other[name] for name in common])
        found["kappa"] = round(kappa, 3) if kappa == kappa else None
    return found
