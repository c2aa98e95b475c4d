"""What the functions of the API return, and the rows that they take and give."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel

from rlaif_cli.data.atomic import read_rows
from rlaif_cli.data.compression import lines
from rlaif_cli.data.paths import beside, rejected_path, trainer_rejected_path
from rlaif_cli.data.records import Candidates, Preference, Revision, Unscored
from rlaif_cli.stages.audit_checks import Finding, Level
from rlaif_cli.stats.intervals import Estimate

R = TypeVar("R")


class Rows(Generic[R]):
    """Rows of a file, read again at each iteration, or in memory (`path` is None). Accepted wherever rows are."""

    def __init__(self, path: Path, read: Callable[[dict[str, Any]], R], *, in_memory: bool) -> None:
        self.path = None if in_memory else path
        self._file, self._read = path, read
        self._held = list(self._lines()) if in_memory else None

    def __iter__(self) -> Iterator[R]:
        return iter(self._held) if self._held is not None else self._lines()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{len(self)} rows {'in memory' if self.path is None else f'in {self.path}'}>"

    def _lines(self) -> Iterator[R]:
        if self._file.exists():
            yield from (self._read(json.loads(line)) for _, line in lines(self._file))


@dataclass(frozen=True)
class DataResult(Generic[R]):
    """What a data stage made. It may be given to the next function as it is.

    Attributes:
        records: the rows.
        rejected: the input's rows that could not be used, each with its `reason`.
        resumed: how many rows were there already.
    """

    records: Rows[R]
    rejected: Rows[dict[str, Any]]
    resumed: int

    @property
    def path(self) -> Path | None:
        """Where the rows are; None: in memory."""
        return self.records.path

    def __iter__(self) -> Iterator[R]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class GenerateResult(DataResult[Candidates]):
    rows: int
    responses: int
    tokens_in: int
    tokens_out: int
    unfinished: int  # responses cut at `max_tokens`
    unanswered: int  # responses that are all reasoning
    refused: int  # responses that the server marked as refusals
    without_text: int  # answers that are no responses, in rows that have others


@dataclass(frozen=True)
class ReviseResult(DataResult[Revision]):
    rows: int


@dataclass(frozen=True)
class LabelResult(DataResult[Preference]):
    """Preferences.

    Attributes:
        unscored: the pairs that the judge gave no label, each with the reason.
        pairs: with those.
        mean_p_chosen, flip_rate, first_position_share, mean_mass: as in the summary of `rlaif label`; None: of nothing.
    """

    unscored: Rows[Unscored]
    pairs: int
    truncated: int
    mean_p_chosen: float | None
    flip_rate: float | None
    first_position_share: float | None
    mean_mass: float | None


@dataclass(frozen=True)
class AuditResult:
    """`verdict` is the worst of the findings': ok, look or stop."""

    verdict: Level
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class TrainResult:
    """A trained model. May be given wherever a model's or reward model's folder is asked for.

    Attributes:
        path: the checkpoint's folder.
        numbers: what the manifest's `results` say.
        rejected: the input's rows that could not be used, each with its `reason`.
    """

    path: Path
    numbers: Mapping[str, Any]
    rejected: Rows[dict[str, Any]]

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row a step; docs/metrics.md explains each number."""
        return read_rows(self.path / "metrics.jsonl")


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found; `result["win_rate"]` is an estimate by its name.

    Attributes:
        n: the items that were scored; `unscored` were not, and are not counted.
        estimates: each with its interval over prompts.
        numbers: the whole result, as the JSON of `rlaif eval` has it.
        items: a row for each item.
        path: the result's file; None: it is here alone.
    """

    metric: str
    n: int
    unscored: int
    estimates: Mapping[str, Estimate]
    numbers: Mapping[str, Any]
    items: Rows[dict[str, Any]]
    path: Path | None

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]


Row: TypeAlias = "Mapping[str, Any] | BaseModel | str"  # a text: in a list of prompts
Data: TypeAlias = "str | os.PathLike[str] | Iterable[Row] | DataResult[Any] | Rows[Any]"


def data_result(
    output: str, in_memory: bool, stage: str, kind: type[BaseModel], numbers: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a `DataResult`: the stage's numbers, and rows in place of their count."""
    return numbers | {
        "records": Rows(Path(output), kind.model_validate, in_memory=in_memory),
        "rejected": Rows(rejected_path(output, stage), dict, in_memory=in_memory),
    }


def train_result(output: str, numbers: dict[str, Any]) -> TrainResult:
    return TrainResult(Path(output), numbers, Rows(trainer_rejected_path(output), dict, in_memory=False))


def evaluation_result(numbers: dict[str, Any], output: str, in_memory: bool) -> EvaluationResult:
    path, metric = Path(output), numbers["metric"]
    items = Rows(beside(output, metric, "items"), dict, in_memory=in_memory)
    numbers = {name: each for name, each in numbers.items() if name != "items" or not in_memory}
    found = {name: each for name, each in numbers.items() if isinstance(each, dict) and "value" in each}
    estimates = {name: _estimate(each) for name, each in found.items()}
    where = None if in_memory else path
    return EvaluationResult(metric, numbers["n"], numbers.get("unscored", 0), estimates, numbers, items, where)


def unscored_reasons(output: str, metric: str) -> list[str]:
    """Why an evaluation that failed could score nothing; empty where it wrote no items."""
    items = Rows(beside(output, metric, "items"), dict, in_memory=True)
    return sorted({str(item["reason"]) for item in items if item.get("reason") is not None})


def _estimate(found: dict[str, Any]) -> Estimate:
    low, high = (-float("inf"), float("inf")) if found["low"] is None else (found["low"], found["high"])
    return Estimate(found["value"], low, high, found["n"], found["prompts"])
