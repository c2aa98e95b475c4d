"""The command line as a user meets it: a process with its streams, files and exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import ROOT, heed_interrupts, rlaif, rows_of
from rlaif_cli.cli.app import order
from rlaif_cli.ui.console import Console

Write = Callable[..., str]
FAKE_JUDGE = ("--judge", "fake", "--constitution", "helpfulness")
QUESTIONS = [{"id": f"q{i}", "prompt": f"What is number {i}?"} for i in range(8)]
# A stage with its output; `OUT` is where it goes, so that a test can see that nothing came there.
GENERATE = ("--model", "fake", "-o", "OUT")
LABEL = (*FAKE_JUDGE, "-o", "OUT")


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Processes in any working folder run this checkout, without colour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        patch.setenv("PYTHONPATH", str(ROOT / "src"))
        yield


@pytest.fixture
def questions(write_jsonl: Write) -> str:
    return write_jsonl("prompts.jsonl", QUESTIONS)


def candidate(name: str, *responses: str) -> dict[str, Any]:
    return {"id": name, "prompt": "Why?", "responses": list(responses)}


def fails(done: Any, code: int, *said: str) -> None:
    """One clear `error:` line, no traceback, and nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert len(re.findall(r"^error: ", done.stderr, re.MULTILINE)) == 1, done.stderr
    for text in said:
        assert text in done.stderr, done.stderr


# --- help, version, what is imported ------------------------------------------------------------------------


def test_version() -> None:
    done = rlaif("--version")
    assert (done.returncode, done.stderr) == (0, "") and re.fullmatch(r"rlaif \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("arguments", [["--help"], ["label", "--help"], ["ppo", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = """
import sys
sys.argv = ["rlaif", *sys.argv[1:]]
from rlaif_cli.__main__ import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "vllm", "transformers", "ray", "numpy", "datasets", "huggingface_hub"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_help_names_every_command() -> None:
    done = rlaif("--help")
    commands = ("generate", "label", "train-rm", "ppo", "eval", "report", "run", "demo", "constitution")
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in commands)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(f"`rlaif {name}" in readme for name in commands)


def test_libraries_are_told_not_to_chatter() -> None:
    code = "import os, rlaif_cli.__main__ as _; print(os.environ['HF_HUB_DISABLE_PROGRESS_BARS'], end=' ');"
    code += "print(os.environ['TRANSFORMERS_VERBOSITY'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "1 error\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"TRANSFORMERS_VERBOSITY": "info"},
    )
    assert done.stdout == "1 info\n", "what the user has set stands"


# --- the pipe -----------------------------------------------------------------------------------------------


def test_generate_into_label(questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generated = rlaif("generate", questions, "--model", "fake", "-n", "3")
    assert generated.returncode == 0, generated.stderr
    candidates = [json.loads(line) for line in generated.stdout.splitlines()]
    assert [row["id"] for row in candidates] == [row["id"] for row in QUESTIONS]
    assert all(len(row["responses"]) == 3 for row in candidates)

    labelled = rlaif("label", "-", *FAKE_JUDGE, stdin=generated.stdout)
    assert labelled.returncode == 0, labelled.stderr
    preferences = [json.loads(line) for line in labelled.stdout.splitlines()]
    assert len(preferences) == 2 * len(QUESTIONS), "neighbours are compared: two pairs of three responses"
    assert all(0.5 <= row["p_chosen"] <= 1 for row in preferences)
    assert len({row["p_chosen"] for row in preferences}) > 1
    assert "label: pairs 16" in labelled.stderr and "error" not in labelled.stderr

    path = tmp_path / "prefs.jsonl"
    path.write_text(labelled.stdout, "utf-8")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "datasets"))
    assert rows["p_chosen"][:] == [row["p_chosen"] for row in preferences]


def test_a_real_pipe_whose_reader_leaves_early_ends_quietly(questions: str) -> None:
    command = (
        f"{sys.executable} -m rlaif_cli generate {questions} --model fake -n 500 | head -1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout)["id"] == "q0"
    assert not re.search("error|Traceback|Broken", done.stderr), done.stderr


def test_swapped_responses_get_the_swapped_label(write_jsonl: Write) -> None:
    texts = [("yes", "no"), ("a long answer", "short"), ("one", "two"), ("x", "y")]
    labels = []
    for name, turn in (("ab", 1), ("ba", -1)):
        rows = [{"id": f"r{i}", "prompt": f"{i}?", "responses": list(pair[::turn])} for i, pair in enumerate(texts)]
        done = rlaif("label", write_jsonl(f"{name}.jsonl", rows), *FAKE_JUDGE)
        assert done.returncode == 0, done.stderr
        labels.append([json.loads(line) for line in done.stdout.splitlines()])
    for one, other in zip(*labels, strict=True):
        assert one["chosen"] == other["chosen"]
        assert one["p_chosen"] == pytest.approx(other["p_chosen"], abs=1e-12)
        assert one["judge"]["principle"] == other["judge"]["principle"]
        assert one["meta"]["pair"] == other["meta"]["pair"][::-1]


def test_nothing_but_records_reaches_stdout(questions: str) -> None:
    code = """
import os, subprocess, sys
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.__main__ import main

generate = FakeEngine.generate

def noisy(self, requests, sampling):
    print("noise of Python")
    os.write(1, b"noise of the descriptor\\n")
    subprocess.run(["echo", "noise of a child"], check=True)
    yield from generate(self, requests, sampling)

FakeEngine.generate = noisy
sys.argv = ["rlaif", *sys.argv[1:]]
main()
"""
    command = [sys.executable, "-c", code, "generate", questions, "--model", "fake"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [row["id"] for row in QUESTIONS]
    assert all(f"noise of {who}" in done.stderr for who in ("Python", "the descriptor", "a child"))


# --- going on, and refusing to ------------------------------------------------------------------------------


def test_a_cut_output_is_completed(questions: str, tmp_path: Path) -> None:
    output = tmp_path / "candidates.jsonl"
    assert rlaif("generate", questions, "--model", "fake", "-o", str(output)).returncode == 0
    whole = output.read_bytes()
    assert not Path(f"{output}.run.json").exists() and Path(f"{output}.manifest.json").exists()

    again = rlaif("generate", questions, "--model", "fake", "-o", str(output))
    assert again.returncode == 0 and "8 already done" in again.stderr
    assert output.read_bytes() == whole

    output.write_bytes(whole[: len(whole) // 2])  # in the middle of a line
    again = rlaif("generate", questions, "--model", "fake", "-o", str(output))
    assert again.returncode == 0, again.stderr
    assert output.read_bytes() == whole
    manifest = json.loads(Path(f"{output}.manifest.json").read_text())
    counts = manifest["counts"]
    assert 0 < counts["resumed"] < 8 and manifest["bytes"] == len(whole)
    assert (counts["rows"], counts["responses"]) == (8, 32), "the counts are of the whole file"


def test_labels_of_a_resumed_run_are_counted_whole(write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl("input.jsonl", [candidate(str(i), f"x{i}", f"y{i}") for i in range(9)])
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    for target in (whole, output):
        assert rlaif("label", path, *LABEL[:-1], str(target)).returncode == 0
    output.write_bytes(output.read_bytes()[:-700])
    assert rlaif("label", path, *LABEL[:-1], str(output)).returncode == 0
    counts = [json.loads(Path(f"{target}.manifest.json").read_text())["counts"] for target in (whole, output)]
    assert 0 < counts[1].pop("resumed") < 9 and counts[0].pop("resumed") == 0
    assert counts[0] == counts[1]


def test_an_interrupt_keeps_what_was_done(questions: str, tmp_path: Path) -> None:
    code = """
import sys, time
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.__main__ import main

generate = FakeEngine.generate

def slow(self, requests, sampling):
    for number, result in enumerate(generate(self, requests, sampling)):
        yield result
        if number == 2:
            print("now", file=sys.stderr, flush=True)
            time.sleep(60)

FakeEngine.generate = slow
sys.argv = ["rlaif", *sys.argv[1:]]
main()
"""
    output = tmp_path / "candidates.jsonl"
    command = ("generate", questions, "--model", "fake", "-o", str(output))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stderr is not None and process.stderr.readline() == "now\n"
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "rerun the same command to resume" in said and "Traceback" not in said
    assert len(rows_of(output)) == 3
    done = rlaif(*command)
    assert done.returncode == 0 and "3 already done" in done.stderr and len(rows_of(output)) == 8


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_with_what_differs(questions: str, tmp_path: Path, finished: bool) -> None:
    output = tmp_path / "candidates.jsonl"
    assert rlaif("generate", questions, "--model", "fake", "-o", str(output)).returncode == 0
    if not finished:
        Path(f"{output}.manifest.json").rename(f"{output}.run.json")
    whole = output.read_bytes()
    done = rlaif("generate", questions, "--model", "fake", "-o", str(output), "--seed", "7", "-n", "2")
    fails(done, 2, "n: 4 before, 2 now", "seed: 0 before, 7 now", "--overwrite")
    assert output.read_bytes() == whole
    done = rlaif("generate", questions, "--model", "fake", "-o", str(output), "-n", "2", "--overwrite")
    assert done.returncode == 0 and all(len(row["responses"]) == 2 for row in rows_of(output))


def test_a_file_of_unknown_making_is_not_written_into(questions: str, tmp_path: Path) -> None:
    output = tmp_path / "mine.jsonl"
    output.write_text("my notes\n")
    fails(rlaif("generate", questions, "--model", "fake", "-o", str(output)), 2, "no record of the run", "hint: ")
    assert output.read_text() == "my notes\n"


# --- bad input ----------------------------------------------------------------------------------------------

GOOD = [json.dumps(row) for row in QUESTIONS[:6]]
BAD_INPUT = {
    "not JSON": ("generate", [*GOOD, "{not json"], GENERATE, 1, ["line 7: not JSON", "hint: "]),
    "missing field": ("generate", [*GOOD, '{"id": "q", "text": "?"}'], GENERATE, 1, ["line 7: 'prompt' is missing"]),
    "empty": ("generate", [], GENERATE, 1, ["holds no records", "hint: "]),
    "blank": ("generate", ["", "  "], GENERATE, 1, ["holds no records", "hint: "]),
    "id twice": ("generate", [*GOOD, GOOD[2]], GENERATE, 1, ["line 7: the id 'q2' is already used in line 3"]),
    "one response": (
        "label",
        [candidate("a", "x", "y"), candidate("b", "x")],
        LABEL,
        1,
        ["line 2: 'responses' needs at least 2 items, found 1", "hint: "],
    ),
    "unknown model": ("generate", GOOD, ("--model", "nope", "-o", "OUT"), 1, ["nope: no such model", "hint: "]),
    "unknown judge": (
        "label",
        [candidate("a", "x", "y")],
        ("--judge", "nope", "--constitution", "helpfulness", "-o", "OUT"),
        1,
        ["nope: no such model", "hint: "],
    ),
    "unknown constitution": (
        "label",
        [candidate("a", "x", "y")],
        ("--judge", "fake", "--constitution", "kindness", "-o", "OUT"),
        2,
        ["unknown constitution 'kindness'", "hint: ", "helpfulness"],
    ),
    "unknown principle": (
        "label",
        [candidate("a", "x", "y")],
        (*LABEL, "--principles", "nope"),
        2,
        ["nope"],
    ),
    "unknown pairs": (
        "label",
        [candidate("a", "x", "y")],
        (*LABEL, "--pairs", "most"),
        2,
        ["--pairs 'most'", "hint: "],
    ),
    "greedy many": ("generate", GOOD, (*GENERATE, "--temperature", "0"), 2, ["--temperature 0", "-n 1"]),
    "top-p with ppo": (
        "ppo",
        GOOD,
        ("--model", "fake", "--engine", "fake", *FAKE_JUDGE, "-o", "OUT", "--top-p", "0.9"),
        2,
        ["--top-p must be 1"],
    ),
    "ppo without a reward": ("ppo", GOOD, GENERATE, 2, ["--reward-model, --judge or --reward-function"]),
    "ppo's constitution": (
        "ppo",
        GOOD,
        (*GENERATE, "--engine", "fake", "--judge", "fake", "--constitution", "kindness"),
        2,
        ["unknown constitution 'kindness'", "hint: "],
    ),
    "ppo's reward model": ("ppo", GOOD, (*GENERATE, "--reward-model", "./nope"), 1, ["./nope: no such model"]),
    "train-rm's rows": ("train-rm", GOOD, GENERATE, 1, ["line 1: 'chosen' is missing"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str, write_jsonl: Write, tmp_path: Path) -> None:
    stage, rows, options, code, said = BAD_INPUT[case]
    path, output = write_jsonl("input.jsonl", rows), tmp_path / "out" / "output"
    done = rlaif(stage, path, *(option.replace("OUT", str(output)) for option in options), cwd=tmp_path)
    fails(done, code, *said)
    assert not output.parent.exists() and os.listdir(tmp_path) == ["input.jsonl"]


@pytest.mark.parametrize("stage", ["generate", "label", "train-rm", "ppo"])
def test_a_missing_file(stage: str, tmp_path: Path) -> None:
    options = {
        "generate": ("--model", "fake"),
        "label": FAKE_JUDGE,
        "train-rm": ("--model", "fake"),
        "ppo": ("--model", "fake", "--engine", "fake", *FAKE_JUDGE),
    }[stage]
    done = rlaif(stage, "gone.jsonl", *options, "-o", "output", cwd=tmp_path)
    fails(done, 1, "error: gone.jsonl: there is no such file", "hint: ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("stage", ["generate", "label", "train-rm", "ppo"])
def test_an_output_that_cannot_be_written(stage: str, write_jsonl: Write, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    preference = {"prompt": "Why?", "chosen": "so", "rejected": "no", "p_chosen": 0.7}
    rows, options = {
        "generate": (QUESTIONS, ("--model", "fake")),
        "label": ([candidate("a", "x", "y")], FAKE_JUDGE),
        "train-rm": ([preference], ("--model", "fake")),
        "ppo": (QUESTIONS, ("--model", "fake", "--engine", "fake", *FAKE_JUDGE)),
    }[stage]
    output = tmp_path / "a-file" / "below" / "output"
    done = rlaif(stage, write_jsonl("input.jsonl", rows), *options, "-o", str(output), cwd=tmp_path)
    fails(done, 1, f"error: {output}: cannot be written", "hint: choose another location with -o")
    assert sorted(os.listdir(tmp_path)) == ["a-file", "input.jsonl"]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("", 2, "does not name a file"),
        (".", 2, "does not name a file"),
        ("folder", 2, "this is a folder"),
        ("/dev/null", 2, "-o - writes to stdout"),
        ("long" * 100, 1, "hint: choose a shorter name with -o"),
    ],
)
def test_an_output_that_is_no_file(name: str, code: int, said: str, questions: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fails(rlaif("generate", questions, "--model", "fake", "-o", name, cwd=tmp_path), code, said)


def test_a_full_disk_behind_stdout(questions: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rlaif_cli", "generate", questions, "--model", "fake"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1 and "error: stdout: cannot be written: No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_longer_than_the_context(write_jsonl: Write, tmp_path: Path, tiny: Path) -> None:
    rows = [{"id": "short", "prompt": "Hi"}, {"id": "long", "prompt": "word " * 40}]
    path, output = write_jsonl("input.jsonl", rows), tmp_path / "output.jsonl"
    options = ("--model", str(tiny), "--engine", "transformers", "--max-length", "100", "--max-tokens", "8", "-n", "1")
    done = rlaif("generate", path, *options, "-o", str(output))
    fails(done, 1, "line 2: prompt and response need ", "the model's context holds 100", "hint: ")
    assert not output.exists()

    done = rlaif("generate", path, *options, "-o", str(output), "--skip-invalid")
    assert done.returncode == 3, done.stderr
    assert [row["id"] for row in rows_of(output)] == ["short"]
    assert [row["line"] for row in rows_of(tmp_path / "output.rejected.jsonl")] == [2]


def test_all_faults_of_a_file_are_told_at_once(write_jsonl: Write) -> None:
    done = rlaif("generate", write_jsonl("input.jsonl", ["?"] * 30), "--model", "fake")
    fails(done, 1, "30 of 30 lines", "line 1:", "line 20:", "and 10 more")
    assert "line 21:" not in done.stderr


def test_an_unknown_option_is_wrong_usage(questions: str) -> None:
    done = rlaif("generate", questions, "--model", "fake", "--temprature", "1")
    assert (done.returncode, done.stdout) == (2, "") and "--temprature" in done.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in rlaif("generate", "gone.jsonl", "--model", "fake", "--debug").stderr


# --- rows that cannot be used -------------------------------------------------------------------------------


def test_skipped_lines_are_kept_with_their_reason(write_jsonl: Write, tmp_path: Path) -> None:
    path, output = write_jsonl("input.jsonl", [*GOOD, "{not json"]), tmp_path / "out.jsonl"
    done = rlaif("generate", path, "--model", "fake", "-o", str(output), "--skip-invalid")
    rejected = tmp_path / "out.rejected.jsonl"
    assert done.returncode == 3 and str(rejected) in done.stderr
    (row,) = rows_of(rejected)
    assert row["line"] == 7 and row["text"] == "{not json\n" and "not JSON" in row["reason"]
    assert len(rows_of(output)) == 6


def test_unscored_rows_are_kept_with_their_reason(write_jsonl: Write, tmp_path: Path) -> None:
    path, output = write_jsonl("input.jsonl", [candidate("a", "x", "y")]), tmp_path / "out.jsonl"
    command = ("label", path, *LABEL[:-1], str(output), "--min-mass", "0.95")  # the fake judge's labels hold 0.9
    for _ in "ab":  # the second run has nothing to do, and says the same
        done = rlaif(*command)
        assert done.returncode == 3, done.stderr
        assert str(tmp_path / "out.unscored.jsonl") in done.stderr
        assert output.read_text() == ""
        (row,) = rows_of(tmp_path / "out.unscored.jsonl")
        assert "0.9 of the judge's answer" in row["reason"] and row["responses"] == ["x", "y"]
        assert len(row["judge"]["p_first"]) == 2


def test_dry_run_shows_the_settings_and_starts_nothing(questions: str, tmp_path: Path) -> None:
    done = rlaif("generate", questions, "--model", "fake", "-o", "out.jsonl", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "") and '"max_tokens": 256' in done.stderr
    assert "8 prompts, 32 responses" in done.stderr and not (tmp_path / "out.jsonl").exists()


# --- training -----------------------------------------------------------------------------------------------

SHORT = ("--steps", "2", "--prompts-per-step", "2", "-n", "2", "--max-tokens", "8")
LOGGED_BY_PPO = {"step", "reward", "kl", "samples_per_second", "seconds_rollout", "seconds_update"}


@pytest.fixture(scope="module")
def reward_model(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    rows = [
        {"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": "no", "p_chosen": 0.5 + i / 20, "id": str(i)}
        for i in range(8)
    ]
    (folder / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = rlaif("train-rm", "prefs.jsonl", "--model", "fake", "-o", "rm", "--batch-size", "4", cwd=folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "train-rm: the reward model is in rm" in done.stderr
    return folder / "rm"


def documented(stage: str) -> set[str]:
    """The numbers that docs/metrics.md explains for a stage: the first column of its table."""
    section = (ROOT / "docs" / "metrics.md").read_text("utf-8").partition(f"## {stage}\n")[2].partition("\n## ")[0]
    first_cells = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    return set(re.findall(r"`(\w+)`", first_cells))


def test_train_rm(reward_model: Path) -> None:
    metrics = rows_of(reward_model / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert {"loss", "entropy_floor", "pairs_per_second", "tokens_per_second"} <= metrics[0].keys()
    assert metrics[1].keys() == documented("train-rm") == metrics[0].keys() | {"held_out_loss"}
    config = json.loads((reward_model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["rlaif"]["reward_std"] > 0
    manifest = json.loads((reward_model / "manifest.json").read_text())
    assert manifest["results"]["held_out"]["pairs"] == 1
    done = rlaif("train-rm", "prefs.jsonl", "--model", "fake", "-o", "rm", "--lr", "1", cwd=reward_model.parent)
    fails(done, 2, "lr: 1e-05 before, 1.0 now", "batch_size: 4 before, 32 now")


def test_train_rm_on_labels_that_are_all_undecided(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b", "p_chosen": 0.5} for i in range(4)]
    done = rlaif("train-rm", write_jsonl("prefs.jsonl", rows), "--model", "fake", "-o", "rm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not evaluated, because no pair with a preference was held out" in done.stderr


def test_ppo_by_group_logs_what_it_has(questions: str, tmp_path: Path) -> None:
    command = ("ppo", questions, "--model", "fake", "--engine", "fake", *FAKE_JUDGE, "-o", "policy", *SHORT)
    done = rlaif(*command, "--advantage", "rloo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    others = {"explained_variance", "value_loss", "value_clip_fraction", "win_rate", "win_rate_n", "seconds_evaluation"}
    assert rows_of(tmp_path / "policy" / "metrics.jsonl")[0].keys() - {"step"} == documented("ppo") - others


@pytest.mark.parametrize("reward", ["reward model", "judge"])
def test_ppo(reward: str, questions: str, tmp_path: Path, reward_model: Path) -> None:
    source = ("--reward-model", str(reward_model)) if reward == "reward model" else FAKE_JUDGE
    command = ("ppo", questions, "--model", "fake", "--engine", "fake", *source, "-o", "policy", *SHORT)
    choice = ("--eval-judge", "fake", "--eval-every", "1", "--eval-constitution", "helpfulness")
    done = rlaif(*command, *choice, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "held-out win rate" in done.stderr
    metrics = rows_of(tmp_path / "policy" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2] and metrics[0].keys() >= LOGGED_BY_PPO
    assert metrics[0].keys() - {"step"} == documented("ppo")
    evaluations = rows_of(tmp_path / "policy" / "evaluations.jsonl")
    assert evaluations[-1].keys() - {"step"} == documented("ppo's evaluations")
    assert {row["step"] for row in rows_of(tmp_path / "policy" / "samples.jsonl")} == {1}
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_ppo_refuses_a_policy_as_its_reward_model(questions: str, tmp_path: Path, tiny: Path) -> None:
    done = rlaif(
        *("ppo", questions, "--model", "fake", "--engine", "fake", "--reward-model", str(tiny), "-o", "policy"),
        cwd=tmp_path,
    )
    fails(done, 1, "not a reward model", "hint: ")
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "a reward source is needed: --reward-model, --judge or --reward-function"),
        (("--judge", "fake"), "--judge needs --constitution"),
        (("--reward-model", "rm", "--principles", "clarity"), "--principles needs --judge"),
        ((*FAKE_JUDGE, "--principles", "sample"), "--principles sample is for comparisons"),
    ],
)
def test_a_reward_comes_from_one_place(options: tuple[str, ...], said: str, questions: str, tmp_path: Path) -> None:
    for command in (("ppo", questions, "--model", "fake", "-o", "policy"), ("eval", "reward", questions)):
        fails(rlaif(*command, *options, cwd=tmp_path), 2, said)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--eval-every", "3"), 2, "--eval-every needs --eval-function or --eval-judge"),
        (("--eval-judge", "./nope"), 1, "./nope: no such model"),
        (("--eval-judge", "fake", "--eval-constitution", "nope"), 2, "nope"),
        (("--kl-form", "convex", "--kl-coef", "2"), 2, "--kl-form convex needs"),
        (("--advantage", "reinforce", "--lam", "0.5"), 2, "--lam needs --advantage gae"),
    ],
)
def test_ppo_says_what_cannot_be_before_it_starts(
    options: tuple[str, ...], code: int, said: str, questions: str, tmp_path: Path
) -> None:
    command = ("ppo", questions, "--model", "fake", "--engine", "fake", *FAKE_JUDGE, "-o", "policy")
    fails(rlaif(*command, *options, cwd=tmp_path), code, said)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    "command", [("label", "--judge", "fake", "--constitution", "helpfulness"), ("generate", "--model", "fake")]
)
def test_an_input_is_never_replaced(command: tuple[str, ...], write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl("rows.jsonl", [{"prompt": "q", "responses": ["a", "b"]}])
    before = Path(path).read_text()
    done = rlaif(command[0], path, *command[1:], "-o", "./rows.jsonl", "--overwrite", cwd=tmp_path)
    fails(done, 2, "the output would replace an input")
    assert Path(path).read_text() == before


def test_half_a_character_is_named_before_compute(write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl("rows.jsonl", ['{"prompt": "q", "responses": ["a", "lone \\ud800"]}'])
    fails(
        rlaif("label", path, "--judge", "fake", "--constitution", "helpfulness", cwd=tmp_path), 1, "line 1", "surrogate"
    )


# --- a whole pipeline ---------------------------------------------------------------------------------------

JUDGED = {"judge": "fake", "constitution": "helpfulness", "method": "contrast"}
PIPELINE = {
    "name": "small",
    "stages": {
        "candidates": {"run": "generate", "prompts": "PROMPTS", "model": "fake", "n": 2, "max_tokens": 16},
        "preferences": {"run": "label", "candidates": "${candidates}", **JUDGED},
        "rm": {"run": "train-rm", "preferences": "${preferences}", "model": "fake", "batch_size": 4, "save_every": 1},
        "policy": {
            "run": "ppo",
            "prompts": "PROMPTS",
            "model": "fake",
            "engine": "fake",
            "reward_model": "${rm}",
            "steps": 6,
            "prompts_per_step": 2,
            "n": 2,
            "max_tokens": 8,
            "save_every": 1,
        },
        "before": {"run": "generate", "prompts": "PROMPTS", "model": "fake", "n": 1, "max_tokens": 16},
        "after": {
            "run": "generate",
            "prompts": "PROMPTS",
            "model": "${policy}",
            "engine": "transformers",
            "n": 1,
            "max_tokens": 16,
        },
        "reward": {"run": "eval reward", "candidates": "${after}", "baseline": "${before}", "reward_model": "${rm}"},
        "judged_reward": {
            "run": "eval reward",
            "candidates": "${after}",
            "baseline": "${before}",
            "judge": "fake",
            "constitution": "helpfulness",
        },
        "win_rate": {"run": "eval win-rate", "a": "${after}", "b": "${before}", **JUDGED},
        "report": {"run": "report", "run_folder": "${run}"},
    },
}


@pytest.fixture
def small(questions: str, tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PIPELINE, sort_keys=False).replace("PROMPTS", questions))
    return file


def test_a_pipeline_that_was_interrupted_goes_on(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def stop_in_ppo(self: Console, title: str) -> Iterator[Any]:
        def progress(done: int, *_: Any, **__: Any) -> None:
            if title == "policy" and done == 3:
                raise KeyboardInterrupt

        yield progress

    command = ("run", str(small), "-o", str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(Console, "progress", stop_in_ppo)
        stopped = rlaif(*command)
    assert stopped.returncode == 130 and "rerun the same command" in stopped.stderr
    goes_on(command, tmp_path / "run")


@pytest.mark.slow
def test_a_pipeline_that_was_killed_goes_on(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ("run", str(small), "-o", str(folder))
    process = subprocess.Popen([sys.executable, "-m", "rlaif_cli", *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "policy" / "state").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it should have been killed in the middle"
    goes_on(command, folder)


def goes_on(command: tuple[str, ...], folder: Path) -> None:
    """Run a pipeline that was stopped during PPO: only what is missing is done."""
    assert not (folder / "policy" / "manifest.json").exists()
    labels = (folder / "preferences.jsonl").read_bytes()
    reward_model = (folder / "rm" / "model.safetensors").stat().st_mtime_ns

    done = rlaif(*command)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (folder / "preferences.jsonl").read_bytes() == labels
    assert (folder / "rm" / "model.safetensors").stat().st_mtime_ns == reward_model, "what was done is not done again"
    assert [row["step"] for row in rows_of(folder / "policy" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert not (folder / "policy" / "state").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["stages"]) == list(PIPELINE["stages"])  # type: ignore[call-overload]
    assert "<html" in (folder / "report.html").read_text("utf-8")
    assert "win rate" in done.stderr.lower()


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on(questions: str, tmp_path: Path) -> None:
    file, folder, moved = tmp_path / "small.yaml", tmp_path / "runs" / "small", tmp_path / "moved"
    names = ("candidates", "preferences", "rm")
    stages = {name: PIPELINE["stages"][name] for name in names}  # type: ignore[index]
    file.write_text(yaml.safe_dump({"name": "s", "stages": stages}, sort_keys=False).replace("PROMPTS", questions))
    done = rlaif("run", str(file), "-o", str(folder))
    assert done.returncode == 0, done.stderr
    folder.rename(moved)
    written = ("candidates.jsonl", "preferences.jsonl", "rm/model.safetensors", "rm/metrics.jsonl")
    files = [moved / name for name in written]
    times = [path.stat().st_mtime_ns for path in files]
    done = rlaif("run", str(file), "-o", str(moved))
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in files] == times, "what was done is not done again"
    with open(questions, "a") as more:
        more.write('{"prompt": "one more"}\n')
    fails(rlaif("run", str(file), "-o", str(moved)), 2, "other settings", "the input has changed")


MATRIX = {
    "name": "matrix",
    "values": {"judge": "fake", "rate": 0.001},
    "matrix": {"hard": [False, True], "seed": [0, 1]},
    "stages": {
        "candidates": {"run": "generate", "prompts": "PROMPTS", "model": "fake", "n": 2},
        "preferences": {
            "run": "label",
            "candidates": "${candidates}",
            "judge": "${judge}",
            "constitution": "helpfulness",
        },
        "rm": {
            "run": "train-rm",
            "preferences": "${preferences}",
            "model": "fake",
            "lr": "${rate}",
            "hard_labels": "${hard}",
            "seed": "${seed}",
            "batch_size": 4,
        },
        "quality": {"run": "eval reward-model", "pairs": "${preferences}", "reward_model": "${rm}"},
        "soft": {"run": "eval reward-model", "pairs": "${preferences}", "reward_model": "${run}/rm.hard=false.seed=0"},
    },
}


def test_a_matrix_runs_what_differs_and_shares_what_is_equal(questions: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "matrix.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(MATRIX, sort_keys=False).replace("PROMPTS", questions))
    plan = rlaif("run", str(file), "-o", str(folder), "--dry-run")
    assert plan.returncode == 0, plan.stderr
    cells = [f"hard={hard}.seed={seed}" for hard in ("false", "true") for seed in (0, 1)]
    names = ["candidates", "preferences", *(f"rm.{c}" for c in cells), *(f"quality.{c}" for c in cells), "soft"]
    lines = [line for line in plan.stderr.splitlines() if not line.startswith((" ", "time:"))]
    assert [line.split(":")[0].split(". ", 1)[1] for line in lines] == names
    assert "about 8 rows, 8 calls, " in plan.stderr and "4,096 tokens out at most" in plan.stderr
    assert "about 8 rows, 16 calls, " in plan.stderr  # both orders
    assert not folder.exists()

    done = rlaif("run", str(file), "-o", str(folder), "--only", "candidates", "--only", "preferences")
    assert done.returncode == 0, done.stderr
    assert list(json.loads((folder / "summary.json").read_text())["stages"]) == names[:2]
    done = rlaif("run", str(file), "-o", str(folder), "--from", "rm")
    assert done.returncode == 0, done.stderr
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    assert list(stages) == names, "what was not run now is still told"
    settings = stages["rm.hard=true.seed=1"]["settings"]
    assert (settings["hard_labels"], settings["seed"], settings["lr"]) == (True, 1, 0.001)
    weights = {(folder / f"rm.{cell}" / "model.safetensors").read_bytes() for cell in cells}
    assert len(weights) == 4
    assert stages["quality.hard=false.seed=0"]["results"]["accuracy"] == stages["soft"]["results"]["accuracy"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"matrix": {"rm": [1]}}, "'rm' is defined twice"),
        ({"values": {"run": "x"}}, "'run' is defined twice"),
        ({"matrix": {"hard": []}}, "'matrix.hard' needs at least 1 item"),
        ({"matrix": {"hard": [[1]]}}, "matrix.hard"),
        ({"matrix": {}}, "${hard} is neither an earlier stage nor a value"),
    ],
)
def test_a_matrix_that_cannot_be(change: dict[str, Any], said: str, questions: str, tmp_path: Path) -> None:
    file = tmp_path / "matrix.yaml"
    file.write_text(yaml.safe_dump(MATRIX | change, sort_keys=False).replace("PROMPTS", questions))
    done = rlaif("run", str(file), "-o", str(tmp_path / "run"))
    assert done.returncode == 1 and said in done.stderr and "a bug" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ".."}, "name"),
        ({"stages": {"a/../../b": {"run": "report", "run_folder": "x"}}}, "stages"),
        ({"stages": {"..": {"run": "report", "run_folder": "x"}}}, "stages"),
        ({"stages": {"a\nb": {"run": "report", "run_folder": "x"}}}, "stages"),
        ({"stages": {"a" * 300: {"run": "report", "run_folder": "x"}}}, "stages"),
        ({"matrix": {"seed": [0, 0]}}, "duplicate values"),
    ],
)
def test_names_that_would_leave_the_folder_or_meet(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    document = {"name": "x", "stages": {"a": {"run": "report", "run_folder": "x"}}} | change
    file.write_text(yaml.safe_dump(document))
    done = rlaif("run", str(file), "--dry-run", cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr and "a bug" not in done.stderr, done.stderr


def test_values_are_changed_on_the_command_line(questions: str, tmp_path: Path) -> None:
    changed = [f"prompts={questions}", "model=fake", "judge=fake", "n=2", "method=score"]
    options = [part for change in changed for part in ("--set", change)]
    stages = ("--only", "candidates", "--only", "preferences")
    done = rlaif("run", "labels", "-o", str(tmp_path / "run"), *stages, *options)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "run" / "preferences.jsonl")
    assert len(rows) == 8 and {row["judge"]["method"] for row in rows} == {"score"}
    for change, said in (
        ("m=x", "no value 'm'"),
        ("n=two", "is not of type int"),
        ("n", "--set expects NAME=VALUE, got 'n'"),
        ("model=", "'model' is empty; in the file it is smollm2-135m"),
        ("preferences.judge= ", "'preferences.judge' is empty"),
        ("preferences.jugde=x", "stage 'preferences' has no setting 'jugde'"),
        ("candidates.dry_run=true", "stage 'candidates' has no setting 'dry_run'"),
    ):
        fails(rlaif("run", "labels", "-o", str(tmp_path / "no"), "--set", change), 2, said)


def test_a_stage_that_fails_is_named_and_goes_on_with_the_settings_that_the_error_names(
    questions: str, tmp_path: Path
) -> None:
    stages = {name: PIPELINE["stages"][name] for name in ("candidates", "preferences", "rm")}  # type: ignore[index]
    file, folder = tmp_path / "small.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump({"name": "s", "stages": stages}, sort_keys=False).replace("PROMPTS", questions))
    command = ("run", str(file), "-o", str(folder))
    labelled = rlaif(
        *command, "--only", "candidates", "--only", "preferences", "--set", "preferences.principles=[clarity]"
    )
    assert labelled.returncode == 0, labelled.stderr
    with open(folder / "preferences.jsonl", "a") as labels:
        labels.write("no json\n")
    said = ("error: stage 'rm': ", "--set rm.skip_invalid=true", "`skip_invalid: true`", "rerun the same command")
    fails(rlaif(*command, "--from", "rm"), 1, *said)
    fails(
        rlaif(*command, "--from", "rm", "--set", "rm.max_length=seven"),
        1,
        "stage 'rm': max_length: must be a whole number",
        "--set: rm.max_",
    )
    done = rlaif(*command, "--from", "rm", "--set", "rm.skip_invalid=true")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "summary.json").read_text())["stages"]["rm"]["settings"]["skip_invalid"] is True


def test_editors_get_a_schema_that_knows_every_setting() -> None:
    import jsonschema

    said = rlaif("run", "--schema")
    assert said.returncode == 0, said.stderr
    check = jsonschema.Draft202012Validator(json.loads(said.stdout))
    check.check_schema(check.schema)
    for path in (ROOT / "examples").glob("*/pipeline.yaml"):
        check.validate(yaml.safe_load(path.read_text("utf-8")))
    check.validate(MATRIX)
    stage = {"run": "generate", "prompts": "p", "model": "m"}
    for wrong in ({"run": "genrate"}, {"temprature": 1}, {"n": 0}, {"n": "many"}, {"model": None}):
        assert not check.is_valid({"name": "x", "stages": {"a": stage | wrong}}), wrong


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--schema", "demo"), "--schema cannot be combined"),
        (("--schema", "--dry-run"), "--schema cannot be combined"),
        (("demo", "--from-manifest", "x.jsonl", "-o", "y"), "cannot be combined"),
        (("--from-manifest", "x.jsonl", "-o", "y", "--set", "model=z"), "--set changes a pipeline file"),
        ((), "a pipeline file or --from-manifest is needed"),
    ],
)
def test_what_a_run_cannot_be_told_together(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = rlaif("run", *options, cwd=tmp_path)
    fails(done, 2, said)
    assert done.stdout == ""


@pytest.mark.parametrize("option", ["--only", "--from"])
def test_an_unknown_stage_is_named(option: str, questions: str, tmp_path: Path) -> None:
    done = rlaif("run", "no-signal", "-o", str(tmp_path / "run"), option, "canidates")
    assert done.returncode == 2 and "did you mean 'candidates'" in done.stderr


def test_only_and_from_that_leave_no_stage_are_refused(tmp_path: Path) -> None:
    done = rlaif("run", "no-signal", "-o", str(tmp_path / "run"), "--only", "candidates", "--from", "report")
    fails(done, 2, "no stage of --only comes at or after 'report'")


def on_a_tiny_model(path: Path, questions: str) -> str:
    """A shipped pipeline with the same stages and settings, on a model that costs nothing."""
    pipeline = yaml.safe_load(path.read_text("utf-8"))
    tiny = {"model": "fake", "judge": "fake", "prompts": questions, "held_out": questions, "max_tokens": 8}
    values = pipeline.get("values", {})
    values |= {key: tiny[key] for key in values.keys() & tiny.keys()}
    for stage in pipeline["stages"].values():
        stage |= {key: "fake" for key in ("model", "judge") if stage.get(key) == "smollm2-135m"}
        stage |= {key: questions for key in ("prompts",) if key in stage}
        trained = stage.get("model") not in ("fake", "${model}")
        stage |= {"engine": "transformers"} if stage["run"] == "generate" and trained else {}
        stage |= {"steps": 2, "save_every": 1, "engine": "fake", "max_mismatch": 99.0} if stage["run"] == "ppo" else {}
        stage |= {"max_tokens": 8} if "max_tokens" in stage else {}
        stage |= {"max_length": 4096} if "max_length" in stage else {}
    return yaml.safe_dump(pipeline, sort_keys=False)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "examples").glob("*/pipeline.yaml")))
def test_a_shipped_pipeline_runs(name: str, questions: str, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(on_a_tiny_model(ROOT / "examples" / name / "pipeline.yaml", questions))
    done = rlaif("run", str(file), "-o", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    stages = dict.fromkeys(step.partition(".")[0] for step in summary["stages"])  # of a matrix: rm.seed=0
    assert list(stages) == list(yaml.safe_load(file.read_text())["stages"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": "generte"}, "run: 'generte' is unknown"),
        ({"temprature": 1}, "temprature"),
        ({"prompts": "${nothing}"}, "${nothing} is neither an earlier stage"),
    ],
)
def test_a_pipeline_is_checked_before_it_starts(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    stages = PIPELINE["stages"]
    assert isinstance(stages, dict)
    (tmp_path / "bad.yaml").write_text(
        yaml.safe_dump({"name": "bad", "stages": {**stages, "before": {**stages["before"], **change}}}, sort_keys=False)
    )
    fails(rlaif("run", "bad.yaml", "-o", "run", cwd=tmp_path), 1, "stage 'before'", said)
    assert os.listdir(tmp_path) == ["bad.yaml"]


BROKEN = {
    "candidates": {"run": "generate", "prompts": "PROMPTS", "model": "fake", "n": 2},
    "preferences": {"run": "label", "candidates": "${candidates}", "judge": "fake", "constitution": "helpfulnes"},
    "rm": {"run": "train-rm", "preferences": "${preferences}", "model": "nosuch"},
    "quality": {"run": "eval reward-model", "pairs": "${preferences}", "reward_model": "nosuch"},
    "before": {"run": "generate", "prompts": "gone.jsonl", "model": "fake"},
    "asked": {"run": "generate", "prompts": "PROMPTS", "model": "gpt", "engine": "openai"},  # only a server knows it
}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, ["4 of 6", "preferences: unknown constitution 'helpfulnes'", "rm, quality: nosuch:", "before: gone."]),
        (("--only", "before"), 1, ["before: gone.jsonl: there is no such file"]),
        (
            ("--only", "rm"),
            1,
            ["it is made by stage 'preferences', which is not being run", "rm: nosuch: no such model"],
        ),
    ],
)
def test_what_a_pipeline_lacks_is_told_before_it_starts(
    options: tuple[str, ...], code: int, said: list[str], questions: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump({"name": "b", "stages": BROKEN}, sort_keys=False).replace("PROMPTS", questions))
    for dry_run in ((), ("--dry-run",)):
        fails(rlaif("run", str(file), "-o", str(tmp_path / "run"), *options, *dry_run), code, *said)
        assert not (tmp_path / "run").exists()


# --- defaults of one's own ----------------------------------------------------------------------------------


def test_defaults_come_from_the_command_line_the_environment_and_a_file_in_this_order(
    questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rlaif.toml").write_text('model = "fake"\nseed = 5\n[generate]\nn = 2\nstop = ["x", "y"]\n')

    def settings(*options: str) -> dict[str, Any]:
        done = rlaif("generate", questions, "--dry-run", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "from rlaif.toml: --model" in done.stderr
        return dict(json.loads(done.stderr[done.stderr.index("{") : done.stderr.rindex("}") + 1]))

    found = settings()
    assert (found["model"], found["seed"], found["n"], found["stop"]) == ("fake", 5, 2, ["x", "y"])
    monkeypatch.setenv("RLAIF_GENERATE_N", "3")
    assert settings()["n"] == 3
    assert settings("-n", "7")["n"] == 7
    monkeypatch.setenv("RLAIF_GENERATE_OVERWRITE", "1")
    fails(rlaif("generate", questions, cwd=tmp_path), 2, "--overwrite may only come from the command line")


def test_one_value_stands_for_a_list_in_a_file_of_defaults(questions: str, tmp_path: Path) -> None:
    (tmp_path / "rlaif.toml").write_text('judge = "org/big"\n')
    done = rlaif("label", questions, "--constitution", "helpfulness", "--dry-run", cwd=tmp_path)
    assert "from rlaif.toml: --judge" in done.stderr and "cannot be" not in done.stderr
    assert rlaif("generate", questions, "--model", "fake", "--dry-run", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('judg = "x"', "no command has the option 'judg'"),
        ("[labell]\na = 1", "[labell] is not a command"),
        ("[eval.alignment]\nb = 1", "[eval.alignment] has no option 'b'"),
        ('[label]\nbase_url = "http://x"', "'base_url' may only come from"),
        ('[generate]\nn = "many"', "'n' cannot be 'many'"),
        ('[run]\noutput = "x"', "[run] takes no defaults"),
        ("overwrite = true", "'overwrite' may only come from"),
        ("a = = 1", "cannot be read"),
        ("[" * 9000, "cannot be read"),
    ],
)
def test_a_file_of_defaults_that_cannot_be(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rlaif.toml").write_text(content)
    fails(rlaif("generate", "p.jsonl", "--model", "fake", cwd=tmp_path), 1, said, "rlaif.toml")
    assert rlaif("--version", cwd=tmp_path).returncode == 0


def test_help_lists_the_commands_in_the_order_of_use_each_with_a_whole_line() -> None:
    listed = rlaif("--help").stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == order()
    assert not [line for line in listed if line.endswith("...")]
