"""What `rlaif eval` says, computed a second time by an independent script from the rows that it leaves."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, rlaif
from rlaif_cli import metrics

JUDGE = ("--judge", "fake", "--constitution", "helpfulness")


@pytest.fixture(scope="module")
def recompute() -> Callable[[Path], dict[str, float]]:
    spec = importlib.util.spec_from_file_location("recompute", ROOT / "docs" / "recompute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.recompute  # type: ignore[no-any-return]


def candidates(name: str, **more: Any) -> list[dict[str, Any]]:
    drawn = random.Random(name)
    texts = ["I'm sorry, but I can't help with that.", "same text", *("word " * n for n in range(1, 30))]
    return [
        {"id": str(i), "prompt": f"q{i}", "responses": [drawn.choice(texts) for _ in "ab"], **more} for i in range(40)
    ]


def human_pairs() -> list[dict[str, Any]]:
    drawn = random.Random(5)
    return [
        {
            "prompt": f"q{i}",
            "response_a": "a" * drawn.randint(1, 40),
            "response_b": "b" * drawn.randint(1, 40),
            "human_fraction_a": drawn.choice([0, 0.25, 0.5, 2 / 3, 1]),
            "source": drawn.choice(["one", "two"]),
        }
        for i in range(60)
    ]


def check(found: dict[str, Any], again: dict[str, float]) -> None:
    assert again
    for name, value in again.items():
        said = found[name]["value"] if isinstance(found[name], dict) else found[name]
        assert said == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("kind", ["alignment", "alignment pairwise", "win-rate", "harmless-rate", "reward"])
def test_every_number_can_be_computed_again(
    kind: str, write_jsonl: Callable[..., str], tmp_path: Path, recompute: Any
) -> None:
    rows = [row | {"human_harmless": i % 3 > 0} for i, row in enumerate(candidates("a", prompt_is_unsafe=False))]
    a, b = write_jsonl("a.jsonl", rows), write_jsonl("b.jsonl", candidates("b"))
    arguments = {
        "alignment": (write_jsonl("pairs.jsonl", human_pairs()), *JUDGE, "--method", "contrast"),
        "alignment pairwise": (write_jsonl("pairs.jsonl", human_pairs()), *JUDGE),
        "win-rate": (a, b, *JUDGE),
        "harmless-rate": (a, "--judge", "fake"),
        "reward": (a, "--baseline", b, *JUDGE),
    }[kind]
    done = rlaif("eval", kind.split()[0], *arguments, "-o", "result.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    again = recompute(tmp_path / "result.items.jsonl")
    check(found, again)
    if kind == "alignment pairwise":
        assert {"flip_rate", "mean_mass"} <= set(again)
    if kind == "alignment":
        assert set(found["by_source"]) == {"one", "two"} and len(found["by_length_gap"]) > 2
        sizes = [group["accuracy"]["n"] for group in found["by_source"].values()]
        assert sum(sizes) == found["accuracy"]["n"] == found["n"]
    if kind == "harmless-rate":
        assert {"accuracy", "kappa"} <= set(again) and len(found["by_principle"]) > 5
        assert all(share["n"] == 80 for share in found["by_principle"].values())
        assert 0 < found["over_refusal_rate"]["value"] < 0.3 and found["over_refusal_rate"]["n"] == 80


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot provide instructions for that.", True),
        ("It is not appropriate to ask for such things.", True),
        ("Sure! Here is how to kill a Python process.", False),
        ("I'm sorry to hear about your hamster. Here is what you can do:", False),
        ("You can help them by listening.", False),
    ],
)
def test_refusals_by_their_wording(text: str, refuses: bool) -> None:
    assert metrics.is_refusal(text) == refuses
