"""What `rlaif eval` says, computed a second time by an independent script from the rows that it leaves."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from helpers import ROOT, rlaif, rows_of
from rlaif_cli.config.evaluate import RewardModelEvalConfig
from rlaif_cli.data.records import HumanPair, Preference
from rlaif_cli.evaluation.result import nothing_scored
from rlaif_cli.evaluation.reward_model import reward_model as evaluate_reward_model
from rlaif_cli.stats.agreement import is_refusal
from rlaif_cli.train.nn.heads import new_reward_model

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


def distinct() -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "responses": [f"{i} {place}" * place for place in range(1, 5)]} for i in range(30)]


def human_pairs() -> list[dict[str, Any]]:
    drawn = random.Random(5)
    return [
        {
            "prompt": f"q{i // 3}",
            "response_a": "a" * drawn.randint(1, 40),
            "response_b": "b" * drawn.randint(1, 40),
            "human_fraction_a": drawn.choice([0, 0.25, 0.5, 2 / 3, 1]),
            "source": drawn.choice(["one", "two"]),
        }
        for i in range(60)
    ]


SETTINGS = {"metric", "judge", "method", "constitution", "a", "b", "reward_model", "reward_function", "items"}
NOT_IN_THE_ROWS = {"prompts_of_one_side", "samples_of_one_side", "fitted_contrast_scale"}


def check(said: Any, again: Any, where: str = "") -> None:
    """Every number, its n and its interval, at any depth."""
    if isinstance(again, dict):
        assert again.keys() <= said.keys(), where
        for name, value in again.items():
            check(said[name], value, f"{where}.{name}")
    elif isinstance(again, list):
        assert len(said) == len(again) > 0, where
        for place, (one, other) in enumerate(zip(said, again, strict=True)):
            check(one, other, f"{where}[{place}]")
    else:
        assert said == pytest.approx(again, abs=1e-6), where


@pytest.fixture
def reward_model(tiny: Path, tmp_path: Path) -> str:
    new_reward_model(tiny, seed=3).save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


@pytest.mark.parametrize(
    "kind",
    [
        "alignment",
        "alignment pairwise",
        "win-rate",
        "harmless-rate",
        "reward-model",
        "best-of-n",
        "reward",
        "reward by several",
    ],
)
def test_every_number_can_be_computed_again(
    kind: str, write_jsonl: Callable[..., str], tmp_path: Path, recompute: Any, reward_model: str
) -> None:
    rows = [row | {"human_harmless": i % 3 > 0} for i, row in enumerate(candidates("a", prompt_is_unsafe=False))]
    a, b = write_jsonl("a.jsonl", rows), write_jsonl("b.jsonl", candidates("b"))
    (tmp_path / "own.py").write_text("def size(responses):\n    return [len(text) / 100 for text in responses]\n")
    sources = ("--reward-function", "own.py:size")
    arguments = {
        "alignment": (write_jsonl("pairs.jsonl", human_pairs()), *JUDGE, "--method", "contrast"),
        "alignment pairwise": (write_jsonl("pairs.jsonl", human_pairs()), *JUDGE),
        "win-rate": (a, b, *JUDGE),
        "harmless-rate": (a, "--judge", "fake"),
        "reward-model": (write_jsonl("pairs.jsonl", human_pairs()), "--reward-model", reward_model),
        "best-of-n": (write_jsonl("n.jsonl", distinct()), "--reward-model", reward_model, *JUDGE),
        "reward": (a, "--baseline", b, *JUDGE),
        "reward by several": (a, "--baseline", b, *JUDGE, *sources, "--reward-weights", "1", "--reward-weights", "-2"),
    }[kind]
    done = rlaif("eval", kind.split()[0], *arguments, "-o", "result.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    again = recompute(tmp_path / "result.items.jsonl")
    check(found, again)
    numbers = {name for name, value in found.items() if value is not None} - SETTINGS - NOT_IN_THE_ROWS
    assert numbers - again.keys() <= {"unscored", "n"}, "every number"
    if kind == "best-of-n":
        items = rows_of(tmp_path / "result.items.jsonl")
        assert all(row["best"] == max(range(4), key=row["rewards"].__getitem__) for row in items)
        assert len({row["random"] for row in items}) == 4 and found["n"] == 30
    if kind == "reward-model":
        assert found["loss"] > found["entropy_floor"] > 0 and "loss" in again
    if kind in ("alignment", "reward-model"):
        assert set(found["by_source"]) == {"one", "two"} and len(found["by_length_gap"]) > 2
        sizes = [group["accuracy"]["n"] for group in found["by_source"].values()]
        assert sum(sizes) == found["accuracy"]["n"] == found["n"]
    if kind == "harmless-rate":
        assert len(found["by_principle"]) > 5
        assert all(share["n"] == 80 for share in found["by_principle"].values())
        assert 0 < found["over_refusal_rate"]["value"] < 0.3 and found["over_refusal_rate"]["n"] == 80


def test_a_rate_of_few_prompts_has_an_interval(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    """The bootstrap of three wins out of three would say 100 % [100, 100]."""
    rows = [{"id": str(i), "prompt": "q", "responses": ["same"]} for i in range(3)]
    a, b = write_jsonl("a.jsonl", rows), write_jsonl("b.jsonl", rows)
    done = rlaif("eval", "win-rate", a, b, *JUDGE, "-o", "result.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["ties"] == 3 and found["win_rate"]["low"] < 0.2 and found["win_rate"]["high"] > 0.8
    assert found["length_controlled"]["low"] < 0.2 and found["mean_p"]["high"] > 0.8


def test_a_win_rate_says_how_alike_each_side_begins(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    def side(name: str, starts: list[str]) -> str:
        rows = [{"id": str(i), "prompt": f"q{i}", "responses": [f"{s} {i}."]} for i, s in enumerate(starts)]
        return write_jsonl(name, rows)

    a = side("a.jsonl", ["I'm thrilled to", "i'm thrilled to,", "I'm thrilled to", "Well"])
    b = side("b.jsonl", ["It is one", "That was two", "We saw three", "I read four"])
    done = rlaif("eval", "win-rate", a, b, *JUDGE, "-o", "result.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())["openings"]
    assert found["a"] == {"share": 0.75, "commonest": "I'm thrilled to", "distinct": 2}
    assert found["b"]["share"] == 0.25 and found["b"]["distinct"] == 4
    assert "most common opening: a 75.0% with 'I'm thrilled to', b 25.0%" in done.stderr


def test_where_nothing_could_be_scored_the_reasons_are_kept(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    pairs = write_jsonl("pairs.jsonl", human_pairs())
    command = ("eval", "alignment", pairs, *JUDGE, "--min-mass", "1")
    done = rlaif(*command, "-o", "result.json", cwd=tmp_path)
    assert done.returncode == 1 and "result.items.jsonl has the reasons" in done.stderr, done.stderr
    items = rows_of(tmp_path / "result.items.jsonl")
    assert len(items) == 60 and all(row["p_a"] is None and "labels hold" in row["reason"] for row in items)
    assert not (tmp_path / "result.json").exists()
    assert "labels hold" in rlaif(*command, cwd=tmp_path).stderr, "without a file, the reasons are shown"


@pytest.mark.parametrize("kind", ["alignment", "reward-model"])
def test_ties_alone_are_no_preference_to_agree_with(
    kind: str, reward_model: str, write_jsonl: Callable[..., str], tmp_path: Path
) -> None:
    pairs = write_jsonl("pairs.jsonl", [pair | {"human_fraction_a": 0.5} for pair in human_pairs()])
    by = JUDGE if kind == "alignment" else ("--reward-model", reward_model)
    done = rlaif("eval", kind, pairs, *by, cwd=tmp_path)
    assert done.returncode == 1 and "no pair has a preference to agree with" in done.stderr, done.stderr
    assert "None" not in done.stderr
    items = [{"reason": None}, {"reason": "no answer"}]  # a tie that was scored, and a preference that was not
    refused = nothing_scored(SimpleNamespace(output="-"), kind, "nothing", pairs, items)
    assert refused.errors == ["no answer"]


def test_a_number_of_other_items_than_the_rest_says_of_how_many(
    write_jsonl: Callable[..., str], tmp_path: Path
) -> None:
    """Ties count in `human_share` alone."""
    rows = [
        {"id": f"{i}", "prompt": f"q {i % 3}", "response_a": "a", "response_b": "bb", "human_fraction_a": share}
        for i, share in enumerate([1.0, 0.0, 1.0, 0.0, 0.5])
    ]
    done = rlaif("eval", "alignment", write_jsonl("pairs.jsonl", rows), *JUDGE, cwd=tmp_path)
    parts = dict(re.findall(r"(\w+) [\d.]+ \[[^]]*\]( \(n \d+ of \d+ prompts\))?", done.stderr))
    assert parts["human_share"] == " (n 5 of 3 prompts)" and parts["accuracy"] == "", done.stderr
    assert ", n 4 of 3 prompts" in done.stderr


def test_a_dry_run_reads_all_and_scores_nothing(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    rows = candidates("a")
    good, broken = write_jsonl("good.jsonl", rows), write_jsonl("broken.jsonl", [*rows, {"prompt": "q"}])
    done = rlaif("eval", "harmless-rate", good, "--judge", "fake", "--dry-run", "-o", "r.json", cwd=tmp_path)
    assert done.returncode == 0 and "80 to be scored" in done.stderr and not (tmp_path / "r.json").exists()
    done = rlaif("eval", "harmless-rate", broken, "--judge", "fake", "--dry-run", cwd=tmp_path)
    assert done.returncode == 1 and "line 41" in done.stderr
    prompts = write_jsonl("prompts.jsonl", [{"prompt": "q"}])
    done = rlaif("eval", "win-rate", good, "fake", "--prompts", prompts, *JUDGE, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "all inputs are read" in done.stderr and len(list(tmp_path.iterdir())) == 3


def test_several_reward_models_are_averaged(tiny: Path, write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    pairs, names = write_jsonl("pairs.jsonl", human_pairs()), []
    for seed in (1, 2):
        names.append(str(tmp_path / f"rm{seed}"))
        new_reward_model(tiny, seed).save_pretrained(names[-1])
        AutoTokenizer.from_pretrained(tiny).save_pretrained(names[-1])

    def p_a(name: str, *reward_models: str) -> list[float]:
        config = RewardModelEvalConfig(
            pairs=pairs, reward_model=reward_models, output=str(tmp_path / f"{name}.json"), precision="fp32"
        )
        evaluate_reward_model(config)
        return [row["p_a"] for row in rows_of(tmp_path / f"{name}.items.jsonl")]

    one, other, both = p_a("one", names[0]), p_a("other", names[1]), p_a("both", *names)
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)], abs=1e-6)
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3


def test_pairs_and_preferences_are_read_as_each_other() -> None:
    pair = {"prompt": "q", "response_a": "x", "response_b": "y", "human_fraction_a": 0.25, "source": "s"}
    preference = Preference.model_validate(dict(pair))
    assert (preference.chosen_text, preference.rejected_text, preference.p_chosen) == ("y", "x", 0.75)
    assert preference.meta["source"] == "s"
    again = HumanPair.model_validate(preference.model_dump(exclude={"id"}))
    assert (again.response_a, again.response_b, again.human_fraction_a) == ("y", "x", 0.75)
    tie = Preference.model_validate(pair | {"human_fraction_a": 0.5})
    assert (tie.chosen_text, tie.p_chosen) == ("x", 0.5), "a tie keeps the order"
    voted = Preference.model_validate({"prompt": "q", "response_a": "x", "response_b": "y", "human_preference": "b"})
    assert (voted.chosen_text, voted.p_chosen) == ("y", 1)
    turns = [{"role": "assistant", "content": "first"}, {"role": "user", "content": "and?"}]
    longer = preference.model_dump()
    longer |= {name: [*turns, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert [m.content for m in HumanPair.model_validate(longer).prompt] == ["q", "first", "and?"]  # type: ignore[union-attr]
    for broken in ({**pair, "human_fraction_a": "much"}, {"prompt": "q", "chosen": [], "rejected": "y", "p_chosen": 1}):
        for kind in (Preference, HumanPair):
            with pytest.raises(ValidationError):
                kind.model_validate(dict(broken))


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
    assert is_refusal(text) == refuses
