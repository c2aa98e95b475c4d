"""`rlaif data`: every fault named, mended where that needs no judgement; formats of other tools there and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif, rows_of
from rlaif_cli.data.formats import FORMATS
from rlaif_cli.data.messages import as_messages
from rlaif_cli.data.records import PromptRecord

Write = Callable[..., str]
PREFERENCE = {"id": "p1", "prompt": "Why?", "chosen": "so", "rejected": "no", "p_chosen": 0.75, "source": "s"}
A, B = ({"role": "assistant", "content": text} for text in "ab")
WHY = {"role": "user", "content": "Why?"}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?\n\nTell me."},
]
CANDIDATES = {
    "id": "c1",
    "prompt": "Why?",
    "responses": [{"text": "so", "tokens": 3, "logprob": -2.5}, "no", "maybe"],
    "source": "s",
}
DEMONSTRATION = {"id": "d1", "prompt": TALK, "response": "So."}

# What a row of each format looks like in the wild, and what it must be to us.
WILD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "trl-preference": (
        {
            "chosen": [*TALK, {"role": "assistant", "content": "a"}],
            "rejected": [*TALK, {"role": "assistant", "content": "b"}],
        },
        {"prompt": TALK, "chosen": [A], "p_chosen": 1.0},
    ),
    "trl-prompt-completion": (
        {"prompt": "Why?", "completion": " So."},
        {"prompt": "Why?", "response": " So."},
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: So.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: No.",
        },
        {
            "prompt": [*TALK[:2], {"role": "user", "content": "Why?"}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
    ),
    "ultrafeedback": (
        {
            "source": "evol",
            "instruction": "Why?",
            "completions": [{"model": "m", "response": "a", "score": 7}, {"model": "n", "response": "b"}],
        },
        {
            "prompt": "Why?",
            "meta": {"source": "evol", "completions": [{"model": "m", "score": 7}, {"model": "n"}]},
        },
    ),
    "ultrafeedback-binarized": (
        {
            "prompt": "Why?",
            "prompt_id": "x",
            "chosen": [WHY, A],
            "rejected": [WHY, B],
            "messages": [WHY, A],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        {
            "id": "x",
            "prompt": [WHY],
            "meta": {"score_chosen": 8.5, "score_rejected": 3.0},
        },
    ),
    "openrlhf": (
        {"chosen": [WHY, A], "rejected": [WHY, B], "score": 3},
        {"prompt": [WHY], "chosen": [A], "p_chosen": 1.0, "meta": {"score": 3}},
    ),
    "argilla": (
        {"instruction": "Why?", "chosen_response": "a", "rejected_response": "b", "chosen_avg_rating": 4.5},
        {"chosen": [{"role": "assistant", "content": "a"}], "meta": {"chosen_avg_rating": 4.5}},
    ),
    "argilla-records": (
        {
            "id": "r1",
            "fields": {"prompt": [WHY], "response_a": "b", "response_b": "a"},
            "metadata": {"p_a": 0.9},
            "responses": {"preference": [{"value": value, "status": "submitted"} for value in ("b", "b", "tie", "a")]},
            "status": "completed",
        },
        {
            "prompt": [WHY],
            "chosen": [{"role": "assistant", "content": "a"}],
            "p_chosen": 0.625,
            "meta": {"annotators": 4, "judge_p_a": 0.9},
        },
    ),
    "openai-chat": (
        {"messages": [*TALK, {"role": "assistant", "content": "So."}]},
        {"prompt": TALK, "response": "So."},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_other_tools(name: str, write_jsonl: Write, tmp_path: Path) -> None:
    wild, ours = WILD[name]
    done = rlaif("data", "convert", write_jsonl("in.jsonl", [wild]), "--from", name, "-o", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = rows_of(tmp_path / "out.jsonl")[0]
    assert {key: row[key] for key in ours} == ours


@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name: str, write_jsonl: Write, tmp_path: Path) -> None:
    record = FORMATS[name].record
    rows: dict[str, Any] = {"Preference": PREFERENCE, "Candidates": CANDIDATES, "Demonstration": DEMONSTRATION}
    given = rows[record.__name__]
    first = record.model_validate(dict(given))
    path = write_jsonl("ours.jsonl", [given])
    for source, options in (
        (path, ("--to", name, "-o", "theirs.jsonl")),
        ("theirs.jsonl", ("--from", name, "-o", "back.jsonl")),
    ):
        done = rlaif("data", "convert", source, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    again = record.model_validate(rows_of(tmp_path / "back.jsonl")[0])
    for field in record.model_fields:
        before, after = (getattr(each, field) for each in (first, again))
        if field == "prompt":
            before, after = (as_messages(value) for value in (before, after))
        if field == "meta":
            after = {name: value for name, value in after.items() if name != "completions"}
        assert after == before, field


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("hh-rlhf", {"chosen": "x\n\nHuman: do it"}, "looks like a turn"),
        ("hh-rlhf", {"prompt": [{"role": "system", "content": "s"}, WHY]}, "no system turns"),
        ("argilla", {"prompt": TALK}, "not a conversation"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    name: str, change: dict[str, Any], said: str, write_jsonl: Write, tmp_path: Path
) -> None:
    path = write_jsonl("ours.jsonl", [PREFERENCE, PREFERENCE | {"id": "p2"} | change])
    done = rlaif("data", "convert", path, "--to", name, "-o", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr and "line 2" in done.stderr, done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    done = rlaif("data", "convert", path, "--to", name, "-o", "out.jsonl", "--skip-invalid", cwd=tmp_path)
    assert done.returncode == 3 and len(rows_of(tmp_path / "out.jsonl")) == 1
    assert said in rows_of(tmp_path / "out.rejected.jsonl")[0]["reason"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fields": 1}, "fields"),
        ({"fields": {"prompt": "q", "response_a": 1, "response_b": "y"}}, "response_a"),
        ({"metadata": {"p_a": "x"}}, "p_a"),
        ({"metadata": {"p_a": 0.4, "rlaif": "{"}}, "rlaif"),
        ({"metadata": {"p_a": 0.4, "rlaif": "[1]"}}, "rlaif"),
        ({"metadata": {}}, "nobody has answered"),
        ({"responses": {"preference": [{"value": "zzz"}]}}, "'a', 'b' or 'tie'"),
        ({"responses": {"preference": [3]}}, "preference"),
        ({"responses": "no"}, "responses"),
    ],
)
def test_what_is_no_record_of_argilla(change: dict[str, Any], said: str, write_jsonl: Write) -> None:
    record = {"fields": {"prompt": "q", "response_a": "x", "response_b": "y"}, "metadata": {"p_a": 0.3}}
    done = rlaif("data", "convert", write_jsonl("in.jsonl", [record | change]), "--from", "argilla-records")
    assert done.returncode == 1 and said in done.stderr and "a bug" not in done.stderr, done.stderr


def test_only_answers_that_were_submitted_count(write_jsonl: Write) -> None:
    def record(*answers: dict[str, str]) -> dict[str, Any]:
        fields = {"prompt": "q", "response_a": "x", "response_b": "y"}
        return {"fields": fields, "metadata": {"p_a": 0.3}, "responses": {"preference": list(answers)}}

    a, b = {"value": "a", "status": "submitted"}, {"value": "b", "status": "discarded"}
    rows = [record(a, b, b | {"status": "draft"}), record(b), record({"value": "a"})]
    done = rlaif("data", "convert", write_jsonl("in.jsonl", rows), "--from", "argilla-records")
    assert done.returncode == 0, done.stderr
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert first["p_chosen"] == 1.0 and first["chosen"][0]["content"] == "x"
    assert first["meta"] == {"answers_not_submitted": 2, "annotators": 1, "judge_p_a": 0.3}
    assert second["p_chosen"] == 0.7 and second["meta"] == {"answers_not_submitted": 1}, "the judge's label stays"
    assert third["meta"]["annotators"] == 1
    assert "3 answers left out: drafts or discarded" in done.stderr and "1 answer without a status" in done.stderr


def test_formats_of_other_records_do_not_meet(write_jsonl: Write) -> None:
    done = rlaif("data", "convert", write_jsonl("x.jsonl", [{}]), "--from", "openai-chat", "--to", "hh-rlhf")
    assert done.returncode == 2 and "openai-chat has Demonstration rows" in done.stderr
    assert rlaif("data", "convert", "x.jsonl").returncode == 2


def test_every_fault_is_named_by_line_and_field(write_jsonl: Write) -> None:
    path = write_jsonl(
        "p.jsonl", [PREFERENCE, PREFERENCE | {"id": "q", "p_chosen": 2}, "{", {"chosen": "a", "rejected": "b"}]
    )
    done = rlaif("data", "validate", path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path} line {n}" for n in (2, 3, 4)]
    assert "'p_chosen'" in lines[0] and "not JSON" in lines[1] and "'prompt' is missing" in lines[2]
    assert "read as preferences" in done.stderr and "preferences: 1 valid, 3 invalid" in done.stderr
    good = rlaif("data", "validate", write_jsonl("good.jsonl", [PREFERENCE]), "--kind", "preferences")
    assert good.returncode == 0 and good.stdout == ""


def test_what_needs_no_judgement_is_mended(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [
        "[",
        json.dumps(PREFERENCE) + ",",
        json.dumps(PREFERENCE | {"p_chosen": "0.25"}) + ",",
        '{"id": "", "prompt": "a", "prompt": "a", "chosen": "x \\ud800", "rejected": "y", "p_chosen": 1},',
        '{"prompt": "a", "prompt": "b", "chosen": "x", "rejected": "y", "p_chosen": 1}',
        '{"prompt": "a", "chosen": "x", "rejected": "y", "p_chosen": NaN}',
        "]",
    ]
    done = rlaif(
        "data", "validate", write_jsonl("p.jsonl", rows), "--kind", "preferences", "--fix", "m.jsonl", cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    for what in (
        "brackets: 2",
        "comma after a row: 3",
        "was a text: 1",
        "empty id: 1",
        "twice: 1",
        "half a character: 1",
    ):
        assert what in done.stderr, done.stderr
    mended = rows_of(tmp_path / "m.jsonl")
    assert [row.get("id") for row in mended] == ["p1", "p1-2", None] and mended[1]["p_chosen"] == 0.25
    assert mended[2]["chosen"] == "x \N{REPLACEMENT CHARACTER}"
    assert [row["line"] for row in rows_of(tmp_path / "m.rejected.jsonl")] == [5, 6]
    assert rlaif("data", "validate", "m.jsonl", cwd=tmp_path).returncode == 0
    again = rlaif("data", "validate", "p.jsonl", "--fix", "m.jsonl", cwd=tmp_path)
    assert again.returncode == 2 and "the file exists" in again.stderr


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_other_encodings_are_mended(encoding: str, tmp_path: Path) -> None:
    text = "".join(json.dumps({"prompt": f"q{i} ü"}, ensure_ascii=False) + "\r\n" for i in range(3))
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "p.jsonl").write_bytes((mark + text).encode(encoding))
    done = rlaif("data", "validate", "p.jsonl", "--kind", "prompts", "--fix", "m.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["prompt"] for row in rows_of(tmp_path / "m.jsonl")] == ["q0 ü", "q1 ü", "q2 ü"]


def test_stats(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [PREFERENCE | {"id": str(i), "prompt": f"q{i % 4}", "chosen": "x" * i} for i in range(1, 11)]
    done = rlaif("data", "stats", write_jsonl("p.jsonl", [*rows, rows[0] | {"id": "again"}]), "--json")
    found = json.loads(done.stdout)
    assert (found["kind"], found["rows"], found["prompts"], found["repeated_rows"]) == ("preferences", 11, 4, 1)
    assert found["response_characters"]["max"] == 10 and found["response_characters"]["n"] == 22
    assert found["labels"]["mean"] == 0.75 and found["labels"]["tenths"][7] == 11 and found["sources"] == {"s": 11}
    shown = rlaif("data", "stats", str(tmp_path / "p.jsonl"))
    assert "median" in shown.stdout and shown.returncode == 0


def test_split_by_prompt(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": f"q{i // 3}"} for i in range(600)]
    path = write_jsonl("p.jsonl", rows)

    def split(name: str, *options: str) -> tuple[set[str], set[str]]:
        out, held = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.held.jsonl.gz"
        done = rlaif("data", "split", path, "-o", str(out), "--held-out", str(held), "--fraction", "0.25", *options)
        assert done.returncode == 0, done.stderr
        import gzip

        sides = out.read_text(), gzip.decompress(held.read_bytes()).decode()
        one, two = ({json.loads(line)["prompt"] for line in side.splitlines()} for side in sides)
        assert sum(side.count("\n") for side in sides) == 600
        return one, two

    train, test = split("a")
    assert not train & test and 25 < len(test) < 75
    assert split("b") == (train, test) and split("c", "--seed", "1")[1] != test
    manifest = json.loads((tmp_path / "a.jsonl.manifest.json").read_text())
    assert manifest["settings"]["fraction"] == 0.25 and manifest["settings"]["input_sha256"]

    for left in ("a.jsonl", "a.held.jsonl.gz"):  # an interrupted run wrote one of the two
        for name in {"a.jsonl", "a.held.jsonl.gz"} - {left}:
            (tmp_path / name).unlink()
        assert split("a") == (train, test)
    (tmp_path / "a.jsonl").unlink()
    held = ("--held-out", "a.held.jsonl.gz", "--fraction")
    for command in (
        ("-o", "a.jsonl", *held, "0.5"),
        ("-o", "a.held.jsonl.gz", "--held-out", "x.jsonl", *held[2:], "0.25"),
    ):
        done = rlaif("data", "split", path, *command, cwd=tmp_path)
        assert done.returncode == 2 and "the file exists" in done.stderr, "another split's file is not replaced"


def test_dedupe(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [CANDIDATES | {"id": str(i), "responses": ["a", "b" * (i % 5 + 1)]} for i in range(20)]
    path = write_jsonl("c.jsonl", rows)
    for by, ids in (("content", ["0", "1", "2", "3", "4"]), ("prompt", ["0"])):
        done = rlaif("data", "dedupe", path, "--by", by, "-o", f"{by}.jsonl", cwd=tmp_path)
        assert done.returncode == 0 and [row["id"] for row in rows_of(tmp_path / f"{by}.jsonl")] == ids
    assert rlaif("data", "dedupe", path, "-o", path, "--overwrite").returncode == 2, "an input is never replaced"
    piped = rlaif("data", "dedupe", "-", stdin=Path(path).read_text())
    assert len(piped.stdout.splitlines()) == 5


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ("\n\nHuman: x\n\nAssistant:", ["x"]),
        ("\n\nHuman: x\n\nAssistant: ", ["x"]),
        ("Human: x\n\nAssistant: ", ["x"]),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", ["a", "b", "c"]),
        ("Human: x", None),
    ],
)
def test_a_transcript_that_waits_for_an_answer_is_a_prompt(prompt: str, turns: list[str] | None) -> None:
    found = PromptRecord.model_validate({"prompt": prompt}).prompt
    assert found == prompt if turns is None else [turn.content for turn in found] == turns  # type: ignore[union-attr]


def test_the_judge_comes_back_from_every_format_of_preferences(write_jsonl: Write, tmp_path: Path) -> None:
    judge = {"model": "m", "method": "pairwise", "p_first": [0.9, 0.3], "flipped": False}
    path = write_jsonl("ours.jsonl", [{**PREFERENCE, "judge": judge}])
    for name, made in FORMATS.items():
        if made.record.__name__ == "Preference":
            for source, options in ((path, ("--to", name, "-o", f"{name}.jsonl")), (f"{name}.jsonl", ("--from", name))):
                done = rlaif("data", "convert", source, *options, cwd=tmp_path)
            assert json.loads(done.stdout)["judge"].items() >= judge.items(), name


def test_what_a_killed_command_left_is_removed_by_the_next(write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl("ours.jsonl", [PREFERENCE])
    left, others = tmp_path / ".99999999.out.jsonl", tmp_path / f".{os.getppid()}.out.jsonl"
    left.touch()
    others.touch()
    assert rlaif("data", "dedupe", path, "-o", "out.jsonl", cwd=tmp_path).returncode == 0
    assert not left.exists() and others.exists(), "that of a process which lives is its own"


def test_dedupe_takes_rows_that_are_there_twice_with_their_ids(write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": f"Say {i}"} for i in range(3)]
    path = write_jsonl("twice.jsonl", [*rows, rows[0]])
    done = rlaif("data", "dedupe", path, "-o", str(tmp_path / "once.jsonl"))
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows_of(tmp_path / "once.jsonl")] == ["r0", "r1", "r2"]
    other = write_jsonl("other.jsonl", [*rows, {"id": "r0", "prompt": "Something else"}])
    done = rlaif("data", "dedupe", other, "-o", str(tmp_path / "none.jsonl"))
    assert done.returncode == 1 and "1 id shared by rows of different content" in done.stderr
    assert not (tmp_path / "none.jsonl").exists()
