"""The policy on held-out prompts during PPO: what is measured and written, also by a run that was killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_training import (
    Interrupted,
    Lowercase,
    _lowercase,
    assert_same_run,
    interrupt_after,
    log_of,
    make_rollouts,
    ppo_config,
)

from helpers import rows_of
from rlaif_cli.cli import ppo as ppo_command
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.errors import UsageError
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train import scoring
from rlaif_cli.train.best_policy import WinRate
from rlaif_cli.train.evaluations import EVALUATIONS, ITEMS, answers, function, peak, summary_row
from rlaif_cli.train.nn.heads import new_reward_model
from rlaif_cli.train.ppo import describe, train_ppo
from rlaif_cli.train.ppo_update import Trainer
from rlaif_cli.train.reward_source import reward_source
from rlaif_cli.train.rollout import RolloutEngine
from rlaif_cli.ui.progress import no_progress

pytestmark = pytest.mark.usefixtures("one_thread")

GOLD = '''
def lowercase(responses):
    return [sum("a" <= c <= "z" for c in text) / max(1, len(text)) for text in responses]


def half(responses):
    """Highest where half of the letters are lowercase: a reward for all of them is climbed too far."""
    return [-abs(share - 0.5) for share in lowercase(responses)]


def odd(prompts, responses):
    """Scores some prompts alone."""
    return [len(text) if int(prompt[-1]["content"][-1]) % 2 else None for prompt, text in zip(prompts, responses)]


def silent(responses):
    return [None for _ in responses]
'''


# ------------------------------------------------------------------------------------------- the numbers, by hand


def item(
    key: str, text: str = "a b", step: int = 0, reward: float | None = 0.0, gold: float | None = 0.0, **more: Any
) -> dict[str, Any]:
    given: dict[str, Any] = {"step": step, "id": key, "response": text, "tokens": 3, "kl": 0.0, "reward": reward}
    return given | {"functions": {"gold": gold}} | more


def test_a_row_has_means_paired_differences_and_what_is_missing() -> None:
    start = [item("p", "x y", gold=1.0), item("p", "y", gold=2.0), item("q", gold=3.0), item("q", "c d", gold=None)]
    now = [
        item("p", "x y", 2, reward=1.0, gold=2.0, kl=0.5, tokens=5),
        item("p", "X, Y!", 2, reward=None, gold=5.0, kl=1.5),
        item("q", "x y z", 2, reward=3.0, gold=4.0, kl=-1.0),
        item("q", "a", 2, reward=2.0, gold=9.0),
    ]
    row = summary_row(now, start)
    assert (row["step"], row["prompts"], row["responses"], row["unscored"]) == (2, 2, 4, 1)
    assert row["kl"]["value"] == 0.25 and row["kl"]["n"] == 4 and row["kl"]["prompts"] == 2
    assert row["reward"]["value"] == 2 and row["reward"]["n"] == 3
    assert row["functions"]["gold"]["value"] == 5
    # 2 - 1, 5 - 2, 4 - 3; the fourth has no score at the start
    change = row["functions_change"]["gold"]
    assert change["value"] == pytest.approx(5 / 3) and (change["n"], change["prompts"]) == (3, 2)
    assert row["reward_change"]["value"] == 2
    assert row["openings"] == {"share": 0.5, "commonest": "x y", "distinct": 3}
    assert row["distinct_bigrams"] == 2 / 4  # x y, x y, x y, y z
    assert row["response_length"] == 3.5
    assert "win_rate" not in row


def test_at_the_start_nothing_has_changed_and_nothing_is_compared() -> None:
    start = [item("p"), item("q", reward=None, gold=None)]
    row = summary_row(start, start)
    assert row["reward_change"] is None and row["functions_change"] == {"gold": None}
    assert row["unscored"] == 1


def test_measures_without_a_single_score_are_null() -> None:
    items = [item("p", gold=None), item("q", gold=None)]
    row = summary_row(items, items)
    assert row["functions"] == {"gold": None} and row["unscored"] == 2 and row["reward"]["n"] == 2


def test_the_win_rate_stands_in_the_row_where_the_judge_decided_something() -> None:
    items, start = [item(key, step=1) for key in "pq"], [item(key) for key in "pq"]
    row = summary_row(items, start, WinRate([1.0, None, 0.5], ["p", "q", "q"]))
    assert (row["win_rate"]["value"], row["win_rate"]["n"], row["win_rate_unscored"]) == (0.75, 2, 1)
    assert "win_rate" not in summary_row(items, start, WinRate([None], ["p"]))


# ------------------------------------------------------------------------------------------- where the peak was


def by_step(*means: float, prompts: int = 20, noise: float = 0.0, seed: int = 0) -> dict[int, list[dict[str, Any]]]:
    random = np.random.default_rng(seed)
    return {
        step: [item(str(p), step=step, gold=mean + noise * random.standard_normal()) for p in range(prompts)]
        for step, mean in enumerate(means)
    }


GOLD_VALUE = function("gold")


def test_the_peak_is_named_and_the_last_evaluation_lies_clearly_below_it() -> None:
    found = peak(by_step(0.0, 1.0, 3.0, 2.0, noise=0.3), GOLD_VALUE, seed=0)
    assert found is not None and found["step"] == 2 and found["value"] == pytest.approx(3, abs=0.3)
    below = found["last_below"]
    assert below["value"] == pytest.approx(-1, abs=0.3) and below["high"] < 0 and below["prompts"] == 20


def test_where_the_last_is_the_peak_nothing_is_below_it() -> None:
    found = peak(by_step(0.0, 1.0, 2.0), GOLD_VALUE, seed=0)
    assert found is not None and found["step"] == 2 and found["last_below"]["value"] == 0


def test_the_first_of_equal_peaks_is_named() -> None:
    found = peak(by_step(1.0, 2.0, 2.0), GOLD_VALUE, seed=0)
    assert found is not None and found["step"] == 1


def test_no_prompt_measures_a_peak_that_it_chose() -> None:
    """No effect at all, 10 evaluations: the last would lie below the highest mean, and does not below the peak."""
    runs = [by_step(*[0.0] * 10, noise=1.0, seed=seed) for seed in range(200)]
    found = [peak(run, GOLD_VALUE, seed) for seed, run in enumerate(runs)]
    below = [at["last_below"] for at in found if at is not None]
    naive = [
        np.mean([i["functions"]["gold"] for i in run[9]]) - at["value"]  # type: ignore[index]
        for run, at in zip(runs, found, strict=True)
    ]
    assert np.mean(naive) < -0.25, "chance alone"
    assert np.mean([each["value"] for each in below]) == pytest.approx(0, abs=0.06)
    assert np.mean([each["high"] < 0 for each in below]) < 0.06


def test_a_peak_needs_scores_and_its_fall_two_prompts() -> None:
    assert peak({0: [item("p", gold=None)]}, GOLD_VALUE, seed=0) is None
    found = peak(by_step(0.0, 1.0, 0.0, prompts=1), GOLD_VALUE, seed=0)
    assert found == {"step": 1, "value": 1, "last_below": None}


# ------------------------------------------------------------------------------------------- a run


OPTIONS: dict[str, Any] = {"steps": 5, "prompts_per_step": 4, "n": 4, "lr": 2e-3, "kl_coef": 0.0, "advantage": "rloo"}
OPTIONS |= {"eval_every": 2, "eval_fraction": 0.4, "save_every": 2}


@pytest.fixture
def gold(tmp_path: Path) -> str:
    (tmp_path / "gold.py").write_text(GOLD)
    return f"{tmp_path}/gold.py"


@pytest.fixture
def run(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str], gold: str) -> Callable[..., Path]:
    """PPO towards lowercase letters into tmp_path/<name>; `stop`: the step after which it is interrupted."""

    def train(name: str, *functions: str, stop: int = 0, compare: Any = None, **options: Any) -> Path:
        data = write_jsonl("prompts.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}"} for i in range(10)])
        specs = tuple(f"{gold}:{function}" for function in functions)
        config = ppo_config(tiny, **(OPTIONS | options), eval_function=specs, prompts=data, output=str(tmp_path / name))
        progress = interrupt_after(stop) if stop else no_progress
        train_ppo(config, lambda _: Lowercase(), compare, progress=progress)
        return tmp_path / name

    return train


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text())["results"])


def test_the_kl_is_that_of_the_log(tiny: Path) -> None:
    trainer = Trainer(ppo_config(tiny, lr=1e-2), tiny, None)
    with torch.no_grad():
        rollouts = make_rollouts(trainer.policy)
    assert trainer.response_kl(rollouts).abs().max() < 1e-5
    trainer.update(trainer.experience(rollouts, torch.arange(8.0)), step=0)
    moved = trainer.response_kl(rollouts)
    logged = describe(trainer.experience(rollouts, torch.arange(8.0)), 0.0)["kl"]
    assert moved.shape == (8,) and float(moved.mean()) == pytest.approx(logged, abs=1e-5) and abs(logged) > 0.01


def test_rows_are_written_at_the_start_on_the_way_and_at_the_end(run: Any) -> None:
    folder = run("policy", "lowercase", "odd", samples_every=1)
    rows, items = rows_of(folder / EVALUATIONS), rows_of(folder / ITEMS)
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert all((row["prompts"], row["responses"]) == (4, 16) for row in rows) and len(items) == 64
    held_out = {item["id"] for item in items}
    trained_on = {row["prompt"][0]["content"] for row in rows_of(folder / "samples.jsonl")}
    assert len(held_out) == 4 and not {f"Say {key[1:]}" for key in held_out} & trained_on
    for row in rows:
        these = [item for item in items if item["step"] == row["step"]]
        assert [item["reward"] for item in these] == pytest.approx([_lowercase(i["response"]) for i in these], abs=1e-6)
        assert row["functions"]["lowercase"] == row["reward"], "here the gold is the reward"
        scored = [item for item in these if int(item["id"][1:]) % 2]
        assert row["functions"]["odd"]["n"] == len(scored) == 16 - row["unscored"] and 0 < len(scored) < 16
        assert row["functions"]["odd"]["value"] == np.mean([len(item["response"]) for item in scored])
    assert rows[0]["kl"]["value"] == pytest.approx(0, abs=1e-4) and rows[-1]["kl"]["value"] > 0.02
    change = rows[-1]["reward_change"]
    assert change["value"] == pytest.approx(rows[-1]["reward"]["value"] - rows[0]["reward"]["value"], abs=1e-6)
    assert all("seconds_evaluation" in row for row in rows_of(folder / "metrics.jsonl") if row["step"] in (2, 4, 5))


def test_a_reward_that_is_climbed_for_too_long_leaves_the_gold_behind(run: Any) -> None:
    folder = run("policy", "half", steps=24, prompts_per_step=6, eval_every=4)
    rows, found = rows_of(folder / EVALUATIONS), results_of(folder)["evaluations"]
    assert rows[-1]["reward"]["value"] > rows[0]["reward"]["value"] + 0.3
    assert (found["first"], found["last"]) == (rows[0], rows[-1])
    top = found["peak"]["half"]
    golds = {row["step"]: row["functions"]["half"]["value"] for row in rows}
    assert top["step"] == max(golds, key=lambda step: golds[step]) < 24 and top["value"] == golds[top["step"]]
    assert top["last_below"]["high"] < 0
    said = ppo_command.summary(results_of(folder))
    assert (
        f"half {golds[0]:.3f} -> {golds[24]:.3f}" in said
        and f"highest after step {top['step']}, and clearly lower at the end" in said
    )


def test_samples_carry_what_the_functions_say_and_the_log_how_alike_they_begin(run: Any) -> None:
    folder = run("policy", "lowercase", "odd", samples_every=1)
    samples = rows_of(folder / "samples.jsonl")
    for sample in samples:
        odd = int(sample["prompt"][0]["content"][-1]) % 2
        assert sample["functions"]["lowercase"] == pytest.approx(_lowercase(sample["response"]), abs=1e-4)
        assert sample["functions"]["odd"] == (len(sample["response"]) if odd else None)
    assert {sample["functions"]["odd"] is None for sample in samples} == {True, False}
    assert all(1 / 16 <= row["openings_share"] <= 1 for row in log_of(folder))
    plain = run("plain", eval_every=10, eval_fraction=0.1)
    assert all("functions" not in sample for sample in rows_of(plain / "samples.jsonl"))
    assert not (plain / EVALUATIONS).exists() and "evaluations" not in results_of(plain)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"advantage": "gae", "precision": "bf16"}])
def test_evaluating_changes_nothing_of_the_training(run: Any, options: dict[str, Any]) -> None:
    often, seldom = (run(f"every {every}", "half", eval_every=every, **options) for every in (1, 5))
    assert_same_run(seldom, often)
    first, *_, last = rows_of(often / EVALUATIONS)
    assert abs(first["kl"]["value"]) < 0.01 < last["kl"]["value"]


def test_a_function_that_scores_nothing_is_null_and_has_no_peak(run: Any) -> None:
    folder = run("policy", "silent", steps=1)
    assert [row["functions"] for row in rows_of(folder / EVALUATIONS)] == [{"silent": None}] * 2
    assert results_of(folder)["evaluations"]["peak"] == {}
    assert "silent: no scores to compare" in ppo_command.summary(results_of(folder))


# ------------------------------------------------------------------------------------------- killed and resumed


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines(keepends=True)


def step_of(line: str) -> int:
    return int(json.loads(line)["step"])


def assert_same_evaluations(a: Path, b: Path) -> None:
    for name in (EVALUATIONS, ITEMS):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert results_of(a)["evaluations"] == results_of(b)["evaluations"]


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_an_interrupted_run_writes_the_same_evaluations(run: Any, stop: int) -> None:
    whole = run("whole", "half", "odd")
    with pytest.raises(Interrupted):
        run("cut", "half", "odd", stop=stop)
    cut = run("cut", "half", "odd")
    assert_same_run(whole, cut)
    assert_same_evaluations(whole, cut)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_kill_while_an_evaluation_is_written_leaves_nothing_of_it(run: Any, at: int) -> None:
    """Its items are there, in part, and the row that says that they are complete is not."""
    whole = run("whole", "half")
    with pytest.raises(Interrupted):
        run("cut", "half", stop=max(1, at - 1))
    folder = whole.parent / "cut"
    before = {name: [line for line in lines_of(whole / name) if step_of(line) < at] for name in (EVALUATIONS, ITEMS)}
    half_written = [line for line in lines_of(whole / ITEMS) if step_of(line) == at][:-3]
    (folder / EVALUATIONS).write_text("".join(before[EVALUATIONS]))
    (folder / ITEMS).write_text("".join(before[ITEMS] + half_written)[:-20])
    assert_same_evaluations(whole, run("cut", "half"))


def test_a_changed_function_is_refused_on_the_way(run: Any, gold: str) -> None:
    with pytest.raises(Interrupted):
        run("cut", "half", stop=3)
    Path(gold).write_text(GOLD + "\n# another\n")
    with pytest.raises(UsageError, match=r"the eval function .*gold.py:half has changed"):
        run("cut", "half")


# ------------------------------------------------------------------------------------------- stops, judges


def test_a_run_that_goes_too_far_is_evaluated_where_it_ends(run: Any) -> None:
    options = {"steps": 30, "prompts_per_step": 6, "max_kl": 0.5, "eval_every": 10, "save_every": 1}
    folder = run("stopped", "half", **options)
    done = len(log_of(folder)) - 1  # the last step had no update
    assert done not in (0, 10, 29)
    assert [row["step"] for row in rows_of(folder / EVALUATIONS)] == sorted({0, *range(10, done + 1, 10), done})
    assert results_of(folder)["stopped_by_kl"]
    (folder / "manifest.json").unlink()  # killed after the last evaluation, whose step has a state
    with pytest.raises(Interrupted):
        run("again", "half", stop=done, **options)
    again = run("again", "half", **options)
    assert_same_evaluations(run("stopped", "half", **options), again)


def longer(texts: Any) -> list[float]:
    return [0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b))) for _, a, b in texts]


def test_a_judge_compares_the_answers_that_are_measured(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    sample = RolloutEngine.sample

    def counted(self: Any, prompts: Any, seeds: Any) -> Any:
        asked.append(len(prompts))
        return sample(self, prompts, seeds)

    monkeypatch.setattr(RolloutEngine, "sample", counted)
    folder = run("policy", "half", compare=longer, eval_judge="fake", eval_fraction=0.5, prompts_per_step=3)
    assert asked.count(5) == len(rows_of(folder / EVALUATIONS)) == 4 and asked.count(3) == 5 and len(asked) == 9
    rows, items, results = rows_of(folder / EVALUATIONS), rows_of(folder / ITEMS), results_of(folder)
    assert "win_rate" not in rows[0] and not any("win" in item for item in items if item["step"] == 0)
    logged = {row["step"]: (row["win_rate"], row["win_rate_n"]) for row in log_of(folder) if "win_rate" in row}
    start = answers([item for item in items if item["step"] == 0])
    for row in rows[1:]:
        these = [item for item in items if item["step"] == row["step"]]
        wins = [item["win"] for item in these if "win" in item]
        now = answers([item for item in these if "win" in item])
        assert wins == longer([(0, a, b) for key in now for a, b in zip(now[key], start[key], strict=True)])
        assert row["win_rate"]["value"] == pytest.approx(np.mean(wins)) and row["win_rate"]["n"] == len(wins) == 12
        assert logged[row["step"]] == (round(float(np.mean(wins)), 6), 12)
    kept = next(row for row in rows if row["step"] == results["weights"]["step"])
    assert results["evaluations"]["kept"] == kept
    assert results["weights"]["highest_win_rate"] == round(kept["win_rate"]["value"], 4)
    assert results["weights"]["prompts"] == 2 and results["weights"]["win_rate"]["n"] == 8
    said = ppo_command.summary(results)
    before, after = rows[0]["functions"]["half"]["value"], kept["functions"]["half"]["value"]
    assert f"half {before:.3f} -> {after:.3f}" in said, "of the weights that were kept"
    others = [i for i in items if i["step"] == kept["step"] and "win" not in i]
    now = answers(others)
    wins = longer([(0, a, b) for key in now for a, b in zip(now[key], start[key], strict=True)])
    assert results["weights"]["win_rate"]["value"] == pytest.approx(np.mean(wins))


def test_weights_that_went_too_far_are_never_chosen(run: Any) -> None:
    options = {"steps": 30, "prompts_per_step": 4, "max_kl": 0.3, "eval_every": 100, "eval_judge": "fake"}
    folder = run("stopped", compare=longer, **options)
    rows = rows_of(folder / EVALUATIONS)
    assert [row["step"] for row in rows] == [0, len(log_of(folder)) - 1] and "win_rate" not in rows[-1]
    assert "weights" not in results_of(folder) and rows[-1]["functions"] == {}


def test_responses_without_a_reward_are_counted_and_left_out(
    tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str], gold: str
) -> None:
    class Some(Lowercase):
        """No score where a response has an even number of characters."""

        def score(self, prompts: Any, responses: Any) -> torch.Tensor:
            even = torch.tensor([[len(text) % 2 == 0 for text in texts] for texts in responses])
            return super().score(prompts, responses).masked_fill(even, float("nan"))

    data = write_jsonl("prompts.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}"} for i in range(10)])
    options = OPTIONS | {"steps": 1, "max_unscored": 1.0, "eval_function": f"{gold}:half"}
    config = ppo_config(tiny, **options, prompts=data, output=str(tmp_path / "policy"))
    train_ppo(config, lambda _: Some())
    for row in rows_of(tmp_path / "policy" / EVALUATIONS):
        these = [i for i in rows_of(tmp_path / "policy" / ITEMS) if i["step"] == row["step"]]
        missing = [len(i["response"]) % 2 == 0 for i in these]
        assert row["unscored"] == sum(missing) > 0 and row["reward"]["n"] == 16 - sum(missing)
        assert [i["reward"] is None for i in these] == missing and row["functions"]["half"]["n"] == 16


@pytest.mark.parametrize("kind", ["model", "judge", "function", "model and function"])
def test_a_process_without_a_held_out_prompt_asks_for_nothing(tiny: Path, tmp_path: Path, gold: str, kind: str) -> None:
    options: dict[str, Any] = {"judge": None, "constitution": None} if kind != "judge" else {}
    if "model" in kind:
        new_reward_model(tiny, seed=0).save_pretrained(tmp_path / "rm")
        ChatTokenizer(tiny).hf.save_pretrained(tmp_path / "rm")
        options["reward_model"] = str(tmp_path / "rm")
    if "function" in kind:
        options["reward_function"] = f"{gold}:half"
    with EnginePool() as engines:
        found = scoring.score_rollouts(reward_source(ppo_config(tiny, **options), engines), [])
    assert len(found.values) == 0 and set(found.by_source) == ({"model", "half"} if " and " in kind else set())


# ------------------------------------------------------------------------------------------- what can be said


def test_how_to_evaluate_belongs_to_either_option(tiny: Path) -> None:
    for name in ("eval_every", "eval_fraction"):
        with pytest.raises(ValidationError, match="needs eval_function or eval_judge"):
            ppo_config(tiny, **{name: 0.5 if name == "eval_fraction" else 3})
    assert ppo_config(tiny, eval_function="gold.py:tone", eval_every=3).evaluates
    assert not ppo_config(tiny).evaluates
    with pytest.raises(ValidationError, match="eval_constitution needs eval_judge"):
        ppo_config(tiny, eval_function="gold.py:tone", eval_constitution="helpfulness")
    with pytest.raises(ValidationError, match="eval_judge needs eval_constitution"):
        PPOConfig(prompts="-", output="-", model=str(tiny), reward_model="rm", eval_judge="fake")


def test_functions_of_one_name_are_told_apart_by_their_files(tiny: Path) -> None:
    named = ppo_config(tiny, eval_function=("a/one.py:tone", "two.py:tone", "two.py:length")).eval_functions
    assert named == {"one.tone": "a/one.py:tone", "two.tone": "two.py:tone", "length": "two.py:length"}
    with pytest.raises(ValidationError, match=r"both be called one\.tone"):
        ppo_config(tiny, eval_function=("a/one.py:tone", "b/one.py:tone"))


def test_too_few_prompts_to_hold_out_are_told(tiny: Path, gold: str, tmp_path: Path, write_jsonl: Any) -> None:
    data = write_jsonl("few.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    config = ppo_config(tiny, eval_function=f"{gold}:half", prompts=data, output=str(tmp_path / "few"))
    with pytest.raises(UsageError, match="--eval-function need at least three different prompts"):
        train_ppo(config, lambda _: Lowercase())
