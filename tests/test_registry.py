"""A row of `registry.py` is all that `rlaif` has to know of a stage."""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import toy_stage
from helpers import ROOT
from rlaif_cli import evaluate
from rlaif_cli.cli.app import build
from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.pipeline.file import load
from rlaif_cli.pipeline.schema import schema
from rlaif_cli.registry import GROUPS, STAGES, part


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(STAGES, toy_stage.NAME, toy_stage.ROW)
    return toy_stage.NAME


def with_toy(*arguments: str, cwd: Path) -> Any:
    """The command line of a process that has the toy's row."""
    command = [sys.executable, str(ROOT / "tests" / "toy_stage.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("name", STAGES)
def test_every_part_of_a_row_is_there(name: str) -> None:
    stage = STAGES[name]
    assert issubclass(stage.config_class, StageConfig) and stage.config_class.__doc__
    assert "output" in stage.config_class.model_fields, "a pipeline says where it goes"
    assert stage.trains == issubclass(stage.config_class, TrainConfig)
    inspect.signature(part(stage.function)).bind("config", "engines", progress="progress")
    describe = stage.finding.describe if stage.finding else ""
    arguments = {stage.command: 2, stage.counter: 2, stage.needs: 1, stage.story: 2, describe: 2}
    for place, count in arguments.items():
        if place:
            inspect.signature(part(place)).bind(*range(count))


def test_rows_do_not_share_what_is_theirs() -> None:
    places = [stage.finding.place for stage in STAGES.values() if stage.finding]
    assert len(places) == len(set(places))
    configs = [stage.config for stage in STAGES.values()]
    assert len(configs) == len(set(configs))
    assert {name.rpartition(" ")[0] for name in STAGES} - {""} == set(GROUPS)


def test_a_part_with_a_typo_is_not_found() -> None:
    with pytest.raises(AttributeError, match="generates"):
        part("rlaif_cli.stages.generate:generates")


# ------------------------------------------------------------------------------------------------ a stage more


def test_the_toy_is_in_help_with_its_options(toy: str, tmp_path: Path) -> None:
    listed = with_toy("--help", cwd=tmp_path)
    assert "words         Count the words of prompts." in listed.stdout, listed.stderr
    group: Any = typer.main.get_command(build())
    own = group.commands[toy]
    text = own.get_help(own.make_context(toy, [], resilient_parsing=True))
    assert "--dictionary" in text and "rlaif words prompts.jsonl" in text


def test_the_toy_has_a_page_and_a_place_in_the_manual(toy: str) -> None:
    spec = importlib.util.spec_from_file_location("command_pages", ROOT / "scripts" / "command_pages.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pages = script.pages()
    assert "| `--dictionary` |  | Count only the words of this file. |" in pages["words.md"]
    assert "| [`rlaif words`](words.md) | Count the words of prompts |" in pages["README.md"]
    assert ".SS rlaif words TEXTS" in script.man_page()
    assert "      - commands/words.md\n" in script.site(pages)


def test_the_toy_runs_as_a_command(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": "Why is it so?"}, {"prompt": "How?"}])
    done = with_toy("words", prompts, "-o", "words.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and "words: rows 2, words 5" in done.stderr, done.stderr
    assert [json.loads(line)["words"] for line in (tmp_path / "words.jsonl").read_text().splitlines()] == [4, 1]


def test_the_toy_is_planned_run_and_reported(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": "Why is it so?"}, {"prompt": "How?"}])
    stages = {
        "counted": {"run": "words", "texts": prompts},
        "report": {"run": "report", "run_folder": "${run}", "output": "report.md"},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": "mine", "stages": stages}))
    planned = with_toy("run", "mine.yaml", "-o", "run", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "1. counted: rlaif words -> run/counted.jsonl" in planned.stderr
    assert "about 2 rows, 4 calls" in planned.stderr
    done = with_toy("run", "mine.yaml", "-o", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / "counted.jsonl").read_text().splitlines()) == 2
    assert "Words: 5 words in 2 prompts" in (tmp_path / "run" / "report.md").read_text("utf-8")


def test_what_the_toy_needs_is_looked_up_before_anything_runs(tmp_path: Path) -> None:
    settings = {"run": "words", "texts": "gone.jsonl", "dictionary": "none.txt"}
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": "mine", "stages": {"counted": settings}}))
    done = with_toy("run", "mine.yaml", "-o", "run", cwd=tmp_path)
    assert done.returncode == 1 and "counted: gone.jsonl: " in done.stderr
    assert "counted: none.txt: no such dictionary" in done.stderr
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ names


def test_an_unknown_name_is_answered_with_the_known_ones(toy: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"name": "mine", "stages": {"a": {"run": "word"}}}))
    with pytest.raises(InputError) as unknown:
        load(str(file), tmp_path / "run", STAGES)
    assert f"'word' is unknown; it must be one of {', '.join(STAGES)}" in str(unknown.value.errors)
    assert any(each["title"] == toy for each in schema(STAGES)["properties"]["stages"]["additionalProperties"]["oneOf"])


def test_an_evaluation_more_is_known_to_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "eval words", toy_stage.ROW)
    with pytest.raises(UsageError, match="there is no evaluation 'word'") as unknown:
        evaluate("word")
    assert unknown.value.hint is not None and unknown.value.hint.endswith("reward, words")
