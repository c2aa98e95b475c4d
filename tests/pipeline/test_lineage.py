"""From an output back to the prompts, by recorded hashes; and the same output made again from its manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif, rows_of

JUDGE = ("--judge", "fake", "--constitution", "helpfulness")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    prompts = (json.dumps({"id": str(i), "prompt": f"Question {i}?"}) for i in range(12))
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    commands: list[tuple[str, ...]] = [
        ("generate", "prompts.jsonl", "--model", "fake", "-n", "2", "-o", "candidates.jsonl.gz"),
        ("label", "candidates.jsonl.gz", *JUDGE, "-o", "prefs.jsonl"),
        ("train-rm", "prefs.jsonl", "--model", "fake", "-o", "rm"),
        ("eval", "reward", "candidates.jsonl.gz", "--reward-model", "rm", "-o", "reward.json"),
    ]
    for command in commands:
        done = rlaif(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def chain(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "chain"))


def tree(folder: Path, path: str, *options: str) -> tuple[dict[str, Any], int]:
    done = rlaif("lineage", path, "--json", *options, cwd=folder)
    return json.loads(done.stdout), done.returncode


def states(node: dict[str, Any]) -> dict[str, str]:
    found = {node["name"]: node["state"]}
    for part in node["inputs"]:
        found |= states(part)
    return found


def test_from_a_result_back_to_the_prompts(chain: Path) -> None:
    found, code = tree(chain, "reward.json", "--verify")
    assert code == 0 and set(states(found).values()) == {"as recorded"}
    assert set(states(found)) == {
        *("reward.json", "candidates.jsonl.gz", "prompts.jsonl", "rm", "prefs.jsonl", "fake", "helpfulness")
    }
    candidates, model = found["inputs"][:2]
    assert candidates["stage"] == "generate" and candidates["inputs"][0]["role"] == "prompts"
    assert model["stage"] == "train-rm" and model["role"] == "reward_model"
    shown = rlaif("lineage", "reward.json", cwd=chain)
    assert shown.returncode == 0 and "prompts: prompts.jsonl  as recorded" in shown.stdout
    assert "fake  not checked" in shown.stdout, "without --verify checkpoints are not read"


def test_a_policy_names_the_judge_that_rewarded_it(chain: Path) -> None:
    rewarded = ("--judge", "fake", "--constitution", "helpfulness", "--advantage", "rloo", "--engine", "transformers")
    small = ("--steps", "1", "--prompts-per-step", "2", "-n", "2", "--max-tokens", "4")
    done = rlaif("ppo", "prompts.jsonl", "--model", "fake", *rewarded, *small, "-o", "policy", cwd=chain)
    assert done.returncode == 0, done.stderr
    found, code = tree(chain, "policy", "--verify")
    assert code == 0 and set(states(found).values()) == {"as recorded"}
    assert [part["role"] for part in found["inputs"]] == ["prompts", "model", "judge", "constitution"]


@pytest.mark.parametrize("change", ["changed prompts", "changed labels", "changed weights", "missing prompts"])
def test_what_changed_is_shown(chain: Path, change: str) -> None:
    name = {"prompts": "prompts.jsonl", "labels": "prefs.jsonl", "weights": "rm"}[change.split()[1]]
    if change == "missing prompts":
        (chain / name).unlink()
    elif name == "rm":
        weights = chain / "rm" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
    else:
        lines = (chain / name).read_text().splitlines(keepends=True)
        (chain / name).write_text("".join(lines[:-1]))
    found, code = tree(chain, "reward.json", "--verify")
    wrong = {node for node, state in states(found).items() if state != "as recorded"}
    assert code == 1 and wrong == {name} and states(found)[name] == change.split()[0]


def test_what_rlaif_did_not_make(chain: Path) -> None:
    for path, said in (("prompts.jsonl", "no manifest"), ("gone", "no such file")):
        done = rlaif("lineage", path, cwd=chain)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    (chain / "prefs.jsonl.manifest.json").write_text("[1]")
    assert "not a JSON object" in rlaif("lineage", "prefs.jsonl", cwd=chain).stderr


def test_made_again_from_its_manifest(chain: Path) -> None:
    for path, again in (("prefs.jsonl", "again.jsonl"), ("prefs.jsonl.manifest.json", "once-more.jsonl")):
        done = rlaif("run", "--from-manifest", path, "-o", again, cwd=chain)
        assert done.returncode == 0, done.stderr
        assert rows_of(chain / again) == rows_of(chain / "prefs.jsonl")
    done = rlaif("run", "--from-manifest", "rm", "-o", "rm2", cwd=chain)
    assert done.returncode == 0, done.stderr
    assert (chain / "rm2" / "model.safetensors").read_bytes() == (chain / "rm" / "model.safetensors").read_bytes()
    assert rlaif("run", "--from-manifest", "prefs.jsonl", cwd=chain).returncode == 2
    assert rlaif("run", "--from-manifest", "prompts.jsonl", "-o", "x", cwd=chain).returncode == 1


def test_a_whole_run_made_again(chain: Path) -> None:
    (chain / "mine.yaml").write_text(
        "name: mine\nstages:\n"
        "  candidates: {run: generate, prompts: prompts.jsonl, model: fake, n: 2}\n"
        '  preferences: {run: label, candidates: "${candidates}", judge: fake, constitution: helpfulness}\n'
    )
    assert rlaif("run", "mine.yaml", cwd=chain).returncode == 0
    done = rlaif("run", "--from-manifest", "runs/mine", "-o", "runs/again", cwd=chain)
    assert done.returncode == 0, done.stderr
    for name in ("candidates.jsonl", "preferences.jsonl"):
        assert rows_of(chain / "runs/again" / name) == rows_of(chain / "runs/mine" / name)
    settings = json.loads((chain / "runs/again/preferences.jsonl.manifest.json").read_text())["settings"]
    assert settings["candidates"] == "runs/again/candidates.jsonl"


def test_nothing_is_made_again_from_other_inputs(write_jsonl: Any, tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"id": "a", "prompt": "Why?"}])
    made = str(tmp_path / "candidates.jsonl")
    assert rlaif("generate", prompts, "--model", "fake", "-o", made).returncode == 0
    with open(prompts, "a") as file:
        file.write('{"id": "b", "prompt": "How?"}\n')
    done = rlaif("run", "--from-manifest", made, "-o", str(tmp_path / "again.jsonl"))
    assert done.returncode == 1 and "prompts.jsonl (prompts of" in done.stderr and "changed" in done.stderr
    assert not (tmp_path / "again.jsonl").exists()
