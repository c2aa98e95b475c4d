"""Labels with one known fault each: the check that is made for it must say so, and no other."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif
from rlaif_cli.config.judge import AuditConfig
from rlaif_cli.stages.audit import audit, worst
from rlaif_cli.stages.audit_checks import similarity

WORDS = [f"word{i}" for i in range(500)]


def rows(count: int = 200, **faults: Callable[[int, dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Healthy labels, changed by `fault(i, row)`."""
    drawn, made = random.Random(0), []
    for i in range(count):
        chosen, rejected = (" ".join(drawn.choices(WORDS, k=drawn.randint(20, 30))) for _ in "ab")
        flip = i % 10 == 0
        p_first = [0.6, 0.7] if flip else [0.8, 0.3]
        row = {
            "id": str(i),
            "prompt": f"prompt {i}",
            "chosen": chosen,
            "rejected": rejected,
            "p_chosen": 0.6 + drawn.random() / 3,
            "judge": {
                "model": "m",
                "method": "pairwise",
                "principle": "a" if i % 2 else "b",
                "p_first": p_first,
                "mass": [0.9, 0.95],
                "flipped": flip,
            },
            "meta": {"finish_reasons": ["stop", "length" if i % 10 == 0 else "stop"]},
        }
        for fault in faults.values():
            fault(i, row)
        made.append(row)
    return made


@pytest.fixture
def verdicts(write_jsonl: Callable[..., str]) -> Callable[..., dict[str, str]]:
    def run(made: Iterable[dict[str, Any]]) -> dict[str, str]:
        findings = audit(AuditConfig(preferences=write_jsonl("prefs.jsonl", list(made))))
        return {finding.check: finding.verdict for finding in findings}

    return run


def test_healthy_labels_are_ok(verdicts: Any) -> None:
    found = verdicts(rows())
    assert set(found.values()) == {"ok"} and len(found) == 9


def one_value(i: int, row: dict[str, Any]) -> None:
    row["p_chosen"] = 0.73


def near_ties(i: int, row: dict[str, Any]) -> None:
    row["p_chosen"] = 0.5 + (i % 20) / 1000 if i % 5 else 0.9


def flipped(i: int, row: dict[str, Any]) -> None:
    row["judge"] |= {"flipped": i % 10 < 7, "p_first": [0.9, 0.8]}


def first_wins(i: int, row: dict[str, Any]) -> None:
    row["judge"] |= {"flipped": False, "p_first": [0.9, 0.6 if i % 3 else 0.2]}


def no_mass(i: int, row: dict[str, Any]) -> None:
    row["judge"]["mass"] = [0.12, 0.15]


def some_mass(i: int, row: dict[str, Any]) -> None:
    row["judge"]["mass"] = [0.95, 0.3 if i % 5 == 0 else 0.9]


def longer(i: int, row: dict[str, Any]) -> None:
    row["chosen"] = row["rejected"] + " and more"


def same_text(i: int, row: dict[str, Any]) -> None:
    if i % 20 == 0:
        row["rejected"] = row["chosen"].upper()


def repeated(i: int, row: dict[str, Any]) -> None:
    if i % 3 == 0:
        row |= {"prompt": "again", "chosen": "a b c d", "rejected": "e f g h"}


def empty(i: int, row: dict[str, Any]) -> None:
    if i % 4 == 0:
        row["rejected"] = " "


def cut(i: int, row: dict[str, Any]) -> None:
    row["meta"]["finish_reasons"] = ["length", "stop"]


def one_prompt(i: int, row: dict[str, Any]) -> None:
    if i % 4 == 0:
        row["prompt"] = "the one"


def contrary(i: int, row: dict[str, Any]) -> None:
    if i == 7:
        row["p_chosen"] = 0.2


def split(i: int, row: dict[str, Any]) -> None:
    row["judge"] |= {"principle": ["a", "b"], "by_principle": [0.9, 0.4]}


@pytest.mark.parametrize(
    ("fault", "check", "verdict"),
    [
        (one_value, "decided", "stop"),
        (near_ties, "decided", "look"),
        (contrary, "decided", "look"),
        (flipped, "position", "stop"),
        (first_wins, "position", "look"),
        (no_mass, "mass", "stop"),
        (some_mass, "mass", "look"),
        (longer, "length", "stop"),
        (same_text, "repeats", "look"),
        (repeated, "repeats", "stop"),
        (empty, "responses", "stop"),
        (cut, "responses", "look"),
        (one_prompt, "prompts", "look"),
        (split, "principles", "look"),
    ],
)
def test_a_fault_is_found_by_its_check(verdicts: Any, fault: Any, check: str, verdict: str) -> None:
    assert verdicts(rows(fault=fault))[check] == verdict


def test_unscored_rows_are_counted_by_reason(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl("prefs.jsonl", rows(90))
    reasons = [f"the labels hold 0.0{i} of the judge's answer, less than 0.1" for i in range(8)] + ["other", "other"]
    write_jsonl("prefs.unscored.jsonl", [{"id": str(i), "reason": reason} for i, reason in enumerate(reasons)])
    scored = audit(AuditConfig(preferences=path))[0]
    assert scored.verdict == "look" and scored.numbers["unscored"] == 10
    assert sorted(scored.numbers["reasons"].values()) == [2, 8]


def test_preferences_of_people_have_fewer_checks(verdicts: Any) -> None:
    made = [{key: row[key] for key in ("prompt", "chosen", "rejected", "p_chosen")} for row in rows(50)]
    assert verdicts(made).keys() == {"scored", "decided", "length", "repeats", "responses", "prompts"}


def test_rates_carry_their_interval(write_jsonl: Callable[..., str]) -> None:
    findings = {f.check: f for f in audit(AuditConfig(preferences=write_jsonl("prefs.jsonl", rows(200))))}
    flips = findings["position"].numbers["flip_rate"]
    assert flips["value"] == 0.1 and flips["n"] == 200 and 0.06 < flips["low"] < 0.1 < flips["high"] < 0.16


def test_nearly_one_text() -> None:
    words = WORDS[:40]
    assert similarity(words, [*words, "more"]) > 0.9 > similarity(words, words[20:])


def test_the_worst_verdict_counts(write_jsonl: Callable[..., str]) -> None:
    assert worst(audit(AuditConfig(preferences=write_jsonl("p.jsonl", rows(50, a=one_value))))) == "stop"


def test_the_command(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl("prefs.jsonl", rows(60, a=one_value))
    done = rlaif("audit", path)
    assert done.returncode == 0 and "share one value" in done.stdout and "audit: stop" in done.stderr
    assert rlaif("audit", path, "--strict").returncode == 3
    found = json.loads(rlaif("audit", path, "--json").stdout)
    assert found["verdict"] == "stop" and len(found["checks"]) == 9


def test_lines_that_are_no_labels(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    path = write_jsonl("prefs.jsonl", [*rows(60), {"prompt": "q"}, "{"])
    for options in ((), ("--dry-run",)):
        done = rlaif("audit", path, *options, cwd=tmp_path)
        assert done.returncode == 1 and "line 61" in done.stderr and "line 62" in done.stderr
    done = rlaif("audit", path, "--skip-invalid", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["checks"][0]["numbers"]["unusable"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["prefs.jsonl"], "an audit leaves nothing behind"
    assert rlaif("audit", path, "--skip-invalid", "--dry-run").stdout == ""


def test_a_reader_that_went_away_is_no_error(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl("prefs.jsonl", rows(60))
    command = f"{sys.executable} -m rlaif_cli audit {path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "error" not in done.stderr
