"""An evaluation's result: JSON in which every number has its n and interval, and per-item rows beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rlaif_cli import metrics
from rlaif_cli.jsonl import beside, file_of, open_for_writing, write_json


def estimate(values: Any, groups: Sequence[Any] | None = None) -> dict[str, Any]:
    """A mean with its bootstrap interval, as JSON."""
    found = metrics.mean_estimate(values, groups)
    return {
        "value": round(found.value, 9),
        "low": round(found.low, 9),
        "high": round(found.high, 9),
        "n": found.n,
    }


def share(count: float, n: int) -> dict[str, Any]:
    """A share with its Wilson interval, as JSON."""
    low, high = metrics.wilson_interval(count, n)
    return {"value": round(count / n, 9), "low": round(low, 9), "high": round(high, 9), "n": n}


def save(output: str, stage: str, result: dict[str, Any], items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write `<output>` and `<output>.items.jsonl` beside it; a result for stdout is the caller's to print."""
    path = file_of(output)
    if path is not None:
        items_path = beside(output, stage, "items")
        with open_for_writing(items_path, "w") as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        result = result | {"items": items_path.name}
        write_json(path, result)
    return result
