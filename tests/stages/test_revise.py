"""Critique and revision: every round by its own principle, resumable, and fit to train on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif, rows_of
from rlaif_cli.config.engine import ReviseConfig
from rlaif_cli.engines.base import Completion
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.stages import revise as stage

HELPFUL = load_constitution("helpfulness")
COMMAND = ("--model", "fake", "--constitution", "helpfulness", "--rounds", "3")


@pytest.fixture
def questions(write_jsonl: Callable[..., str]) -> str:
    return write_jsonl("prompts.jsonl", [{"id": f"p{i}", "prompt": f"Question {i}?", "topic": i} for i in range(9)])


def test_all_rounds_are_kept(questions: str, tmp_path: Path) -> None:
    done = rlaif("revise", questions, *COMMAND, "-o", "out.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(9)]
    for row in rows:
        assert len(row["rounds"]) == 3 and row["response"] == row["rounds"][-1]["revision"]
        assert row["initial"] and row["meta"]["topic"] == int(row["id"][1:])
    assert len({round_["principle"] for row in rows for round_ in row["rounds"]}) > 3
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["stage"] == "revise" and manifest["counts"]["rows"] == 9


def test_a_run_that_was_cut_goes_on(questions: str, tmp_path: Path) -> None:
    whole = rlaif("revise", questions, *COMMAND, cwd=tmp_path).stdout
    assert rlaif("revise", questions, *COMMAND, "-o", "out.jsonl", cwd=tmp_path).returncode == 0
    path = tmp_path / "out.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:30])
    manifest = tmp_path / "out.jsonl.manifest.json"
    (tmp_path / "out.jsonl.run.json").write_text(json.dumps({"settings": json.loads(manifest.read_text())["settings"]}))
    manifest.unlink()
    done = rlaif("revise", questions, *COMMAND, "-o", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and "4 already done" in done.stderr, done.stderr
    assert path.read_text() == whole


class Echo(FakeEngine):
    """Answers so that one can see what it was asked."""

    def generate(self, requests: Any, sampling: Any) -> Any:
        for request in requests:
            text = self.tokenizer.decode(request.prompt)
            if "Now write the response" in text:
                response = text.split("[Response]\n")[1].split("\n[End")[0]
                yield request.key, [Completion(f"{response}+")]
            elif "falls short" in text:
                yield request.key, [Completion("critique of " + text.split("[Response]\n")[1].split("\n[End")[0])]
            else:
                yield request.key, [Completion("first")]


def test_every_round_works_on_the_revision_before(questions: str, tmp_path: Path) -> None:
    class Engines:
        def get(self, *_: Any) -> Echo:
            return Echo()

    config = ReviseConfig(
        prompts=questions, output=str(tmp_path / "o.jsonl"), model="fake", constitution="helpfulness", rounds=2
    )
    stage.revise(config, Engines())  # type: ignore[arg-type]
    row = rows_of(tmp_path / "o.jsonl")[0]
    assert [round_["critique"] for round_ in row["rounds"]] == ["critique of first", "critique of first+"]
    assert [round_["revision"] for round_ in row["rounds"]] == ["first+", "first++"] and row["response"] == "first++"


@pytest.mark.parametrize(("options", "records"), [((), 9), (("--all-rounds",), 27)])
def test_sft_learns_the_last_revisions_or_all(
    options: tuple[str, ...], records: int, questions: str, tmp_path: Path
) -> None:
    assert rlaif("revise", questions, *COMMAND, "-o", "out.jsonl", cwd=tmp_path).returncode == 0
    command = ("sft", "out.jsonl", "--model", "fake", "-o", "sft", "--eval-fraction", "0", *options)
    done = rlaif(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"sft: {records} records" in done.stderr


def test_a_prompt_without_room_for_its_rounds_is_refused(questions: str, tmp_path: Path) -> None:
    done = rlaif("revise", questions, *COMMAND, "--max-length", "900", cwd=tmp_path)
    assert done.returncode != 0 and "a response, its critique and the revision need" in done.stderr


def test_an_unknown_principle_is_refused(questions: str, tmp_path: Path) -> None:
    done = rlaif("revise", questions, *COMMAND, "--principles", "kindnes", cwd=tmp_path)
    assert done.returncode == 2 and "kindnes" in done.stderr
