"""The Python API: the command line's stages as functions, silent and typed."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlaif_cli
from helpers import ROOT, rows_of
from rlaif_cli import (
    Candidates,
    Engines,
    GenerateConfig,
    GenerateResult,
    InputError,
    LabelConfig,
    LabelResult,
    RlaifWarning,
    TrainResult,
    UsageError,
    audit,
    evaluate,
    generate,
    label,
    ppo,
    revise,
    sft,
    train_rm,
)
from rlaif_cli.stages.generate import GenerateSummary
from rlaif_cli.stages.label import LabelSummary

PROMPTS = [{"id": f"q{i}", "prompt": f"What is number {i}?"} for i in range(8)]
MODEL: dict[str, Any] = {"model": "fake", "n": 2, "max_tokens": 16}
JUDGE: dict[str, Any] = {"judge": "fake", "constitution": "helpfulness"}
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Any:
    yield
    assert capfd.readouterr() == ("", "")


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dumped(rows: Any) -> list[dict[str, Any]]:
    return [row.model_dump(exclude_none=True) for row in rows]


# ------------------------------------------------------------------------------------------------ the package


def test_importing_the_package_costs_nothing() -> None:
    heavy = "[name for name in ('torch', 'vllm', 'transformers', 'pydantic', 'numpy', 'rich') if name in sys.modules]"
    assert in_a_process(f"import sys, rlaif_cli; dir(rlaif_cli); rlaif_cli.__version__; print({heavy})") == "[]\n"


def test_importing_the_functions_costs_no_torch() -> None:
    heavy = "[name for name in ('torch', 'vllm', 'transformers', 'ray', 'openai') if name in sys.modules]"
    assert in_a_process(f"import sys; from rlaif_cli import *; generate, ppo; print({heavy})") == "[]\n"


def test_every_public_name_is_there() -> None:
    for name in rlaif_cli.__all__:
        assert getattr(rlaif_cli, name) is not None
    assert set(rlaif_cli.__all__) <= set(dir(rlaif_cli))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rlaif_cli.nothing
    assert (Path(rlaif_cli.__file__).parent / "py.typed").exists()


def test_results_have_every_number_of_their_stage() -> None:
    def names(result: type[Any]) -> set[str]:
        return {field.name for field in dataclasses.fields(result)} - {"records"}

    assert names(GenerateResult) == {field.name for field in dataclasses.fields(GenerateSummary)}
    assert names(LabelResult) == set(LabelSummary().as_numbers())


# ------------------------------------------------------------------------------------------------ data stages


def test_rows_in_memory_equal_those_of_files(write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl("prompts.jsonl", PROMPTS)
    filed = generate(path, output=tmp_path / "candidates.jsonl", **MODEL)
    held = generate((row for row in PROMPTS), **MODEL)
    assert (held.path, filed.path) == (None, tmp_path / "candidates.jsonl")
    assert dumped(held) == dumped(filed) == rows_of(tmp_path / "candidates.jsonl")
    assert isinstance(next(iter(held)), Candidates) and len(held) == held.rows == 8
    again = generate(GenerateConfig(prompts=path, output=str(filed.path), **MODEL))
    assert (again.resumed, dumped(again)) == (8, dumped(filed))
    given = [label(rows, **JUDGE) for rows in (str(filed.path), filed, held, list(held), dumped(held))]
    assert all(dumped(each) == dumped(given[0]) and each.pairs == 8 for each in given)


def test_rows_resume_an_output(tmp_path: Path) -> None:
    first, again = (generate(PROMPTS, output=tmp_path / "out.jsonl", **MODEL) for _ in range(2))
    assert (first.resumed, again.resumed) == (0, 8)
    with pytest.raises(UsageError, match="other settings"):
        generate(PROMPTS[1:], output=tmp_path / "out.jsonl", **MODEL)


def test_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    label(generate(["a?", "b?"], **MODEL), **JUDGE)
    with pytest.raises(InputError):
        generate([{}], **MODEL)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_used_or_scored_is_in_the_result() -> None:
    found = generate([*PROMPTS, {"prompt": 3}], skip_invalid=True, **MODEL)
    assert len(found) == 8 and [row["line"] for row in found.rejected] == [9]
    labels = label(found, min_mass=1.0, **JUDGE)
    assert (len(labels), len(labels.unscored), labels.mean_p_chosen) == (0, 8, None)
    assert audit(labels).verdict == "stop"


def test_revisions_and_fine_tuning(tmp_path: Path) -> None:
    revised = revise(PROMPTS, model="fake", constitution="harmlessness", rounds=1, max_tokens=16)
    assert [len(row.rounds) for row in revised] == [1] * 8
    model = sft(revised, model="fake", output=tmp_path / "sft")
    assert isinstance(model, TrainResult) and model.numbers["records"] + model.numbers["held_out"]["records"] == 8


def test_engines_are_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif_cli import engines as package

    opened: list[str] = []
    open_engine = package.open_engine
    monkeypatch.setattr(package, "open_engine", lambda name, *a, **k: opened.append(name) or open_engine(name, *a, **k))
    with Engines() as engines:
        label(generate(PROMPTS, engines=engines, **MODEL), engines=engines, **JUDGE)
    assert opened == ["fake"]


def test_progress_is_told_in_full() -> None:
    told: list[tuple[Any, ...]] = []
    label(generate(PROMPTS, progress=lambda *each: told.append(each), **MODEL), **JUDGE)
    assert told == [(done, 8, "", None) for done in range(1, 9)]


def test_warnings_are_pythons(write_jsonl: Write) -> None:
    path = write_jsonl("prompts.jsonl", PROMPTS)
    Path(f"{path}.manifest.json").write_text(json.dumps({"sha256": "another"}))
    for _ in range(2):
        with pytest.warns(RlaifWarning, match="changed after it was made") as found:
            generate(path, **MODEL)
        assert {warning.filename for warning in found} == {__file__}
    with warnings.catch_warnings(), pytest.raises(RlaifWarning):
        warnings.simplefilter("error")
        generate(path, **MODEL)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate(PROMPTS, base_url="http://here:1", **MODEL), "base_url needs engine openai"),
        (lambda: generate(PROMPTS, modle="fake"), "model: .*modle: there is no such setting; did you mean model"),
        (lambda: generate(PROMPTS, **MODEL | {"n": 0}), "n: .* greater"),
        (lambda: generate(GenerateConfig(prompts="p", **MODEL), n=2), "either one GenerateConfig"),
        (lambda: generate(LabelConfig(candidates="c", **JUDGE), n=2), "either one GenerateConfig"),  # type: ignore[arg-type]
        (lambda: generate(3, **MODEL), "prompts: .*string"),  # type: ignore[arg-type]
        (lambda: train_rm([], model="fake"), "output: Field required"),
        (lambda: label(PROMPTS, judge="fake", constitution="helpfulnes"), "helpfulnes"),
        (lambda: evaluate("win", PROMPTS), "no evaluation 'win'"),  # type: ignore[arg-type]
        (lambda: evaluate("alignment", PROMPTS, PROMPTS, **JUDGE), "it takes pairs"),
        (lambda: evaluate("alignment", PROMPTS, pairs=PROMPTS, **JUDGE), "pairs is given twice"),
    ],
)
def test_settings_that_cannot_be(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        call()
    assert "--" not in f"{raised.value} {raised.value.hint}"


def test_an_output_never_replaces_an_input(write_jsonl: Write) -> None:
    path = write_jsonl("prompts.jsonl", PROMPTS)
    for call in (lambda: generate(path, output=path, **MODEL), lambda: generate(Path(path), output=path, **MODEL)):
        with pytest.raises(UsageError, match="would replace an input"):
            call()
    assert rows_of(path) == PROMPTS


def test_faulty_rows_are_named_by_their_argument() -> None:
    with pytest.raises(InputError) as raised:
        generate([*PROMPTS, {"prompt": 3}], **MODEL)
    error = raised.value
    assert (
        error.where == "prompts"
        and error.errors[0].startswith("prompts line 9: ")
        and "skip_invalid" in str(error.hint)
    )
    for rows, message in ([{"prompt": {1}}], "JSON"), ([4], "found int"), (iter(["a?"]), "found str"):
        with pytest.raises(InputError, match=message) as raised:
            generate(rows, **MODEL)  # type: ignore[arg-type]
        assert raised.value.where == "prompts row 1"


# ------------------------------------------------------------------------------------------------ evaluations


def test_evaluations(tmp_path: Path) -> None:
    a, b = generate(PROMPTS, **MODEL), generate(PROMPTS, seed=1, **MODEL)
    held = evaluate("win-rate", a, b, **JUDGE)
    assert (held.metric, held.n, held.unscored, held.path) == ("win-rate", 16, 0, None)
    assert held["win_rate"].low < held["win_rate"].value < held["win_rate"].high and len(held.items) == 16
    assert (held.numbers["a"], "items" in held.numbers) == ("a", False)
    filed = evaluate("win-rate", a=a, b=b, output=tmp_path / "result.json", **JUDGE)
    assert filed.estimates == held.estimates and list(filed.items) == list(held.items)
    assert json.loads((tmp_path / "result.json").read_text())["n"] == 16 and filed.path == tmp_path / "result.json"
    harmless = evaluate("harmless-rate", a, judge="fake")
    assert 0 <= harmless["harmless_rate"].value <= 1


def test_why_nothing_could_be_scored_is_told() -> None:
    a = generate(PROMPTS, **MODEL)
    with pytest.raises(InputError, match="no comparison could be scored") as raised:
        evaluate("win-rate", a, generate(PROMPTS, seed=1, **MODEL), min_mass=1.0, **JUDGE)
    assert "labels" in raised.value.errors[0] and raised.value.hint is None


# ------------------------------------------------------------------------------------------------ the page


def example() -> str:
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "python-api.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def run_example(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"print": lambda *_: None}
    exec(compile(code, "docs/python-api.md", "exec"), names)
    assert isinstance(names["policy"], TrainResult) and (folder / "policy" / "config.json").exists()
    assert len(names["policy"].metrics) == 2 and names["result"].n == 16
    return names


def test_the_pages_example_on_the_fake_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    code = example().replace('"smollm2-135m", "transformers"', '"fake", "fake"')
    assert "smollm" not in code and '"transformers"' not in code
    names = run_example(code, tmp_path, monkeypatch)
    given = {"model": "fake", "reward_model": names["reward_model"], "output": Path("policy"), **names["tuning"]}
    assert ppo(names["prompts"], **given).numbers == names["policy"].numbers
    with pytest.raises(UsageError, match=r"lr: 5e-05 before, 0\.1 now"):
        ppo(names["prompts"], **given | {"lr": 0.1})


@pytest.mark.slow
def test_the_pages_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example(example(), tmp_path, monkeypatch)
