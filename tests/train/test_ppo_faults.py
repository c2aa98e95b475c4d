"""PPO where something is missing, equal or doubled: tied scores, repeated prompts, a judge that does not answer."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_training import Interrupted, assert_same_run, interrupt_after, log_of, make_rollouts, ppo_config

from helpers import rows_of
from rlaif_cli.cli import ppo as ppo_command
from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.config.evaluate import RewardConfig
from rlaif_cli.config.judge import JudgeConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.base import Completion, Request, request_seed
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.errors import EngineError, InputError, RlaifWarning, UsageError
from rlaif_cli.evaluation.reward import reward
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.stages.generate import _candidates
from rlaif_cli.train import best_policy, ppo_stage, scoring
from rlaif_cli.train.best_policy import Selection
from rlaif_cli.train.dataset import epoch_order
from rlaif_cli.train.math.advantages import group_normalized_advantage, leave_one_out_baseline
from rlaif_cli.train.math.kl import kl_estimate
from rlaif_cli.train.math.losses import ppo_policy_loss, ppo_value_loss
from rlaif_cli.train.math.masked import last_token_index, masked_mean, masked_whiten
from rlaif_cli.train.ppo import VERSION, sample_seeds, shaped_scores, step_prompts, train_ppo
from rlaif_cli.train.ppo_update import Trainer, all_tied, group_advantages, whiten_advantages
from rlaif_cli.train.reward_function import PromptRow
from rlaif_cli.train.reward_source import JudgeScorer, why_unscored
from rlaif_cli.train.rollout import Prompt, Rollout
from rlaif_cli.ui.progress import no_progress

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------- scores that tie


def gradient_norm(tiny: Path, scores: torch.Tensor, **options: Any) -> float:
    """Of one update whose reference is a little off the policy, as a bf16 copy of it is."""
    trainer = Trainer(ppo_config(tiny, n=2, lr=1e-9, **options), tiny, None)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rollouts = make_rollouts(trainer.policy)
        for parameter in trainer.reference.parameters():  # type: ignore[attr-defined]
            parameter += 1e-3 * torch.randn(parameter.shape, generator=noise)
    return trainer.update(trainer.experience(rollouts, scores), step=0)["grad_norm"]


def test_scores_that_tie_teach_grpo_nothing_but_the_kl(tiny: Path) -> None:
    """As the KL in the loss does; it was 600 times that, the KL's noise divided by its own deviation."""
    tied, differing = torch.full((8,), 0.3), torch.arange(8.0)
    in_loss = gradient_norm(tiny, tied, advantage="grpo", kl_in="loss")
    assert gradient_norm(tiny, tied, advantage="grpo") == pytest.approx(in_loss, rel=1e-3)
    assert gradient_norm(tiny, tied, advantage="grpo", kl_coef=0) == 0
    assert gradient_norm(tiny, differing, advantage="grpo") > 50 * in_loss


@pytest.mark.parametrize("advantage", ["gae", "reinforce", "rloo"])
def test_scores_that_all_tie_are_never_a_reason_to_train_on_noise(tiny: Path, advantage: str) -> None:
    tied, differing = (
        gradient_norm(tiny, scores, advantage=advantage) for scores in (torch.zeros(8), torch.arange(8.0))
    )
    assert tied < 0.1 and differing > 1


def test_the_convex_form_weighs_the_normalized_scores(tiny: Path) -> None:
    found = {}
    for form in ("plain", "convex"):
        trainer = Trainer(ppo_config(tiny, advantage="grpo", kl_form=form, kl_coef=0.25), tiny, None)
        with torch.no_grad():
            rollouts = make_rollouts(trainer.policy)
        found[form] = trainer.experience(rollouts, torch.arange(8.0)).advantages
    torch.testing.assert_close(found["convex"], 0.75 * found["plain"], atol=1e-4, rtol=1e-4)


def test_whitening_makes_noise_no_larger_than_it_is() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    small, large = torch.arange(6.0).view(2, 3) * 1e-3, torch.arange(6.0).view(2, 3) * 1e3
    torch.testing.assert_close(whiten_advantages(small, mask, True), small - small.mean(), atol=1e-5, rtol=1e-2)
    for values, tied in ((large, True), (large, False), (small, False)):
        torch.testing.assert_close(whiten_advantages(values, mask, tied), masked_whiten(values, mask))
    assert all_tied(torch.tensor([0.3, torch.nan, 0.3])) and not all_tied(torch.tensor([0.3, 0.4]))
    assert not all_tied(torch.tensor([0.3, torch.nan])), "one response alone ties with nothing"


# ------------------------------------------------------------------------------------------- responses without a score


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_a_response_without_a_score_is_no_part_of_its_group(kind: str) -> None:
    scores = torch.randn(30, 10, generator=torch.Generator().manual_seed(1))
    scored = torch.rand(30, 10, generator=torch.Generator().manual_seed(2)) > 0.3
    assert scored.sum(1).min() >= 2
    mask = torch.ones(300, 1, dtype=torch.bool)
    rewards = scores.masked_fill(~scored, 99.0).view(300, 1)
    found = group_advantages(rewards, mask & scored.view(300, 1), 10, kind, scored.flatten()).view(30, 10)
    assert (found[~scored] == 0).all()
    for row, row_scores, row_scored in zip(found, scores, scored, strict=True):
        rest = row_scores[row_scored].view(-1, 1)
        alone = group_advantages(rest, torch.ones_like(rest, dtype=torch.bool), len(rest), kind)
        torch.testing.assert_close(row[row_scored], alone[:, 0], atol=1e-5, rtol=1e-5)


def test_a_group_of_one_has_no_baseline() -> None:
    alone = torch.tensor([[True, False], [True, True]])
    for function in (leave_one_out_baseline, group_normalized_advantage):
        with pytest.raises(ValueError, match="fewer than two"):
            function(torch.zeros(2, 2), mask=alone)


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo", "reinforce"])
def test_an_update_without_a_score_is_the_update_without_the_response(tiny: Path, advantage: str) -> None:
    """Group, baseline, deviation, whitening, value targets and gradient: as if it had never been sampled."""
    weights = []
    for left_out in (False, True):
        n = 2 if left_out else 3
        trainer = Trainer(ppo_config(tiny, advantage=advantage, n=n, kl_coef=0.2), tiny, None)
        trained = [*trainer.policy.parameters(), *(trainer.value_model.parameters() if trainer.value_model else ())]  # type: ignore[attr-defined]
        trainer.optimizer = torch.optim.SGD(trained, lr=0.1)
        with torch.no_grad():
            rollouts = make_rollouts(trainer.policy)
        scores = torch.tensor([0.5, 1.0, 3.0, -1.0, 0.0, 2.0, 1.0, 1.5])
        if not left_out:  # a third response, in another place each time, that nobody scored
            for rollout, place in zip(rollouts, (0, 1, 2, 1), strict=True):
                rollout.completions.insert(place, rollout.completions[0])
            by_prompt = [row.tolist() for row in scores.view(4, 2)]
            for row, place in zip(by_prompt, (0, 1, 2, 1), strict=True):
                row.insert(place, float("nan"))
            scores = torch.tensor(by_prompt).flatten()
        trainer.update(trainer.experience(rollouts, scores), step=0)
        weights.append(dict(trainer.policy.named_parameters()))  # type: ignore[attr-defined]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-5, rtol=1e-3)


def rollout(*texts: str, prompt: str = "Say it") -> Rollout:
    messages = [Message(role="user", content=prompt)]
    return Rollout(Prompt(prompt, messages, [1]), [Completion(text, [5], [-1.0]) for text in texts])


@pytest.mark.parametrize(("advantage", "kept"), [("gae", "abc"), ("reinforce", "abc"), ("rloo", "ac"), ("grpo", "ac")])
def test_a_prompt_that_has_too_few_scores_leaves_the_step(tiny: Path, advantage: str, kept: str) -> None:
    rollouts = [rollout("x", "y", prompt=name) for name in "abcd"]
    scores = torch.tensor([1.0, 2.0, torch.nan, 4.0, 5.0, 6.0, torch.nan, torch.nan])
    found, left = scoring.trainable_rollouts(ppo_config(tiny, advantage=advantage), rollouts, scores)
    assert "".join(each.prompt.id for each in found) == kept
    rows = torch.tensor(["abcd".index(name) for name in kept])
    assert torch.equal(left.nan_to_num(-1), scores.view(4, 2)[rows].flatten().nan_to_num(-1))


def test_a_penalty_is_no_score_for_what_got_none(tiny: Path) -> None:
    cut = [Completion("", [5], [0.0], "length")] * 2
    found = shaped_scores(ppo_config(tiny, missing_eos_penalty=-1), torch.tensor([torch.nan, 2.0]), cut)
    assert found.isnan().tolist() == [True, False] and found[1] == -1


class ScriptedJudge(FakeEngine):
    """A judge asked with --method score that says other things than a number where `fails` (a text) is true.

    Attributes:
        asked: the text of every request.
    """

    def __init__(self, fails: Callable[[str], bool] = lambda _: False) -> None:
        super().__init__()
        self.fails = fails
        self.asked: list[str] = []

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float]]]:
        requests = list(requests)
        for request, (key, found) in zip(requests, super().logprobs(requests), strict=True):
            text = self.tokenizer.decode(request.prompt)
            self.asked.append(text)
            yield key, [-20.0] * len(found) if self.fails(text) else found


def some(share: float) -> Callable[[str], bool]:
    """True for this share of all texts, chosen by content."""
    return lambda text: zlib.crc32(text.encode()) % 1000 < 1000 * share


def scorer_of(judge: ScriptedJudge, *principles: str) -> JudgeScorer:
    settings = JudgeConfig(
        judge=("fake",), constitution="helpfulness", method="score", principles=principles or ("correctness",)
    )
    return JudgeScorer(settings, judge)


def test_a_judge_that_does_not_answer_is_asked_again_and_its_silence_is_no_score() -> None:
    judge = ScriptedJudge(lambda text: "bad" in text)
    scorer = scorer_of(judge)
    prompts = [PromptRow("p", [Message(role="user", content="q")])]
    first = scorer.score(prompts, [["good", "bad"]])
    assert first.isnan().tolist() == [[False, True]]
    assert "the labels hold" in why_unscored(scorer, prompts[0], "bad")
    asked = len(judge.asked)
    judge.fails = lambda _: False
    second = scorer.score(prompts, [["good", "bad"]])
    assert second.isfinite().all() and second[0, 0] == first[0, 0]
    assert all("bad" in text for text in judge.asked[asked:]) and len(judge.asked) > asked


def test_a_response_that_one_principle_leaves_out_has_no_score() -> None:
    """A mean over the principles that happened to answer is another kind of number."""
    constitution = load_constitution("helpfulness")
    one, other = (principle.id for principle in constitution.principles[:2])
    words = constitution.select([other]).principles[0].text
    scorer, prompt = (
        scorer_of(ScriptedJudge(lambda text: words in text), one, other),
        PromptRow("p", [Message(role="user", content="q")]),
    )
    assert scorer.score([prompt], [["r"]]).isnan().all()
    said = why_unscored(scorer, prompt, "r")
    assert said.startswith("1 of its 2 questions (one for each principle) failed: the labels hold")


@pytest.mark.parametrize("method", ["score", "contrast"])
def test_a_response_too_long_for_the_judge_is_unscored_and_never_sent(method: str) -> None:
    judge = ScriptedJudge()
    judge.max_length = 2000
    settings = JudgeConfig(judge=("fake",), constitution="helpfulness", method=method, principles=("all",))
    scorer, prompt = JudgeScorer(settings, judge), PromptRow("p", [Message(role="user", content="q")])
    found = scorer.score([prompt], [["short", "long " * 400]])
    assert found.isnan().tolist() == [[False, True]]
    assert "its context holds 2000" in why_unscored(scorer, prompt, "long " * 400)
    assert judge.asked and not any("long long" in text for text in judge.asked)


def test_what_is_scored_is_what_files_of_responses_hold(tiny: Path) -> None:
    """`generate` writes replies without the white space around them: so train-rm learns, and label judges, those."""
    texts = []

    class Source:
        def score(self, rows: Any, responses: Any) -> torch.Tensor:
            texts.extend(responses)
            return torch.zeros(len(responses), len(responses[0]))

    scoring.score_rollouts(Source(), [rollout(" yes\n", "\n\nno")])
    assert texts == [["yes", "no"]]
    config = GenerateConfig(prompts="-", model=str(tiny))
    record = PromptRecord(id="p", prompt="q")
    written = _candidates(config, record, [Completion(" yes\n"), Completion("\n\nno")])
    assert [response.text for response in written.responses] == texts[0]


# ------------------------------------------------------------------------------------------- a run with a failing judge


@pytest.fixture
def run(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> Callable[..., Path]:
    """PPO into tmp_path/<name>, scored by a judge; `stop`: the step after which it is interrupted."""

    def train(name: str, judge: ScriptedJudge, stop: int = 0, compare: Any = None, **options: Any) -> Path:
        data = write_jsonl("prompts.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}"} for i in range(10)])
        chosen = {"steps": 5, "save_every": 2, "n": 4, "advantage": "rloo", "method": "score"} | options
        config = ppo_config(tiny, **chosen, prompts=data, output=str(tmp_path / name))
        progress = interrupt_after(stop) if stop else no_progress
        train_ppo(config, lambda _: scorer_of(judge), compare, progress=progress)
        return tmp_path / name

    return train


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text())["results"])


def test_responses_without_a_score_are_left_out_counted_and_kept_with_the_reason(run: Any) -> None:
    folder = run("policy", ScriptedJudge(some(0.05)), save_every=0)
    rows, left_out = log_of(folder), rows_of(folder / "unscored.jsonl")
    assert len(rows) == 5 and all(math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in rows)
    counts = [row["unscored"] for row in rows]
    assert 0 < sum(counts) == len(left_out) == results_of(folder)["unscored"]
    assert [sum(row["step"] == step for row in left_out) for step in range(1, 6)] == counts
    assert all("labels hold" in row["reason"] and row["prompt"] for row in left_out)


def test_too_many_responses_without_a_score_stop_the_run_where_it_can_be_resumed(run: Any) -> None:
    whole = run("whole", ScriptedJudge())
    judge = ScriptedJudge()

    def breaks_down(text: str) -> bool:
        return len(judge.asked) > 80  # two questions a response: in the third step

    judge.fails = breaks_down
    with pytest.raises(EngineError, match=r"of the 16 responses of step 3 got no score .*the labels hold") as error:
        run("cut", judge)
    assert "--max-unscored" in str(error.value.hint) and "unscored.jsonl" in str(error.value.hint)
    folder = whole.parent / "cut"
    assert {row["step"] for row in rows_of(folder / "unscored.jsonl")} == {3}
    assert len(rows_of(folder / "metrics.jsonl")) == 2
    position = json.loads((folder / "state" / "position.json").read_text())
    assert position["position"]["step"] == 2
    assert_same_run(whole, run("cut", ScriptedJudge()))
    assert not rows_of(folder / "unscored.jsonl")


def test_a_first_step_without_scores_can_be_resumed_too(run: Any) -> None:
    whole = run("whole", ScriptedJudge(), steps=2)
    with pytest.raises(EngineError, match="16 of the 16 responses of step 1"):
        run("cut", ScriptedJudge(lambda _: True), steps=2)
    assert_same_run(whole, run("cut", ScriptedJudge(), steps=2))


@pytest.mark.parametrize(("principles", "hinted"), [(("all",), True), (("one", "two"), True), (("one",), False)])
def test_where_several_principles_are_asked_fewer_are_hinted_at(principles: tuple[str, ...], hinted: bool) -> None:
    config: Any = SimpleNamespace(judge="j", principles=principles, max_unscored=0.2, output="policy")
    with pytest.raises(EngineError) as error:
        scoring.check_unscored(config, [{"reason": "r"}], total=2, trained_on=1, step=1)
    assert ("fewer --principles" in str(error.value.hint)) == hinted


def test_a_run_that_stopped_goes_on_with_a_higher_bound(run: Any) -> None:
    judge = ScriptedJudge(some(0.35))
    whole = run("whole", judge, max_unscored=0.8)
    with pytest.raises(EngineError, match="got no score"):
        run("cut", judge, max_unscored=0.1)
    assert_same_run(whole, run("cut", judge, max_unscored=0.8))
    assert rows_of(whole / "unscored.jsonl") == rows_of(whole.parent / "cut" / "unscored.jsonl")
    with pytest.raises(EngineError, match="nothing to compare"):
        run("nothing", ScriptedJudge(lambda _: True), max_unscored=1.0)


def test_an_interrupted_run_with_missing_scores_equals_an_uninterrupted_one(run: Any) -> None:
    judge = ScriptedJudge(some(0.05))
    whole = run("whole", judge)
    with pytest.raises(Interrupted):
        run("cut", judge, stop=3)
    assert_same_run(whole, run("cut", judge))
    assert rows_of(whole / "unscored.jsonl") == rows_of(whole.parent / "cut" / "unscored.jsonl")


def test_a_run_of_an_earlier_version_is_not_mixed_with_this_one(run: Any) -> None:
    with pytest.raises(Interrupted):
        run("old", ScriptedJudge(), stop=3)
    folder = run("new", ScriptedJudge()).parent / "old"
    position = json.loads((folder / "state" / "position.json").read_text())
    del position["settings"]["ppo_version"]
    (folder / "state" / "position.json").write_text(json.dumps(position))
    with pytest.raises(UsageError, match=f"ppo_version: None before, {VERSION} now"):
        run("old", ScriptedJudge())


def test_prompts_that_leave_the_judge_no_room_are_refused_before_compute(
    tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]
) -> None:
    small = shutil.copytree(tiny, tmp_path / "small")
    settings = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 700}))
    data = write_jsonl("prompts.jsonl", [{"prompt": "short"}, {"prompt": "long " * 60}])
    options = {"judge": str(small), "prompts": data, "output": str(tmp_path / "policy"), "dry_run": True}

    def checked(tokens: int) -> Any:
        with EnginePool() as engines:
            return ppo_stage.run(ppo_config(tiny, max_tokens=tokens, **options), engines, progress=no_progress)

    assert checked(100)["prompts"] == 2
    for tokens, count in ((400, 1), (600, 2)):
        with pytest.raises(InputError, match=f"{count} of 2 lines") as error:
            checked(tokens)
        assert f"a response of --max-tokens {tokens} tokens need" in error.value.errors[-1]
        assert "context holds 700" in error.value.errors[-1]


def test_eval_reward_counts_what_the_judge_left_out(tmp_path: Path, write_jsonl: Callable[..., str]) -> None:
    rows = [{"id": f"p{i}", "prompt": f"Say {i}", "responses": [f"good {i}", f"bad {i}"]} for i in range(6)]
    rows.append({"id": "none", "prompt": "Say it", "responses": ["bad", "bad too"]})
    config = RewardConfig(
        candidates=write_jsonl("c.jsonl", rows),
        baseline=write_jsonl("b.jsonl", [row | {"responses": ["good"]} for row in rows]),
        judge="fake",
        constitution="helpfulness",
        method="score",
        output=str(tmp_path / "reward.json"),
    )

    class Pool:
        def get(self, *_: Any) -> ScriptedJudge:
            return ScriptedJudge(lambda text: "bad" in text)

    found = reward(config, Pool())
    assert (found["n"], found["unscored"]) == (6, 8)
    items = {item["id"]: item for item in rows_of(tmp_path / "reward.items.jsonl")}
    assert items["none"].items() >= {"unscored": 2, "reward": None, "baseline": None}.items()
    assert found["reward"]["value"] == pytest.approx(np.mean([items[f"p{i}"]["reward"] for i in range(6)]), abs=1e-8)


# ------------------------------------------------------------------------------------------- choosing and measuring


def answers_to(prompts: Sequence[Prompt], *texts: str, call: int = 0) -> dict[str, list[str]]:
    """The same to each prompt; without `texts`, four that are different at every `call`."""
    return {prompt.id: list(texts) or [f"{call} {prompt.id} {k}" for k in range(4)] for prompt in prompts}


def coin(texts: Any) -> list[float]:
    """A judge for whom there is no difference: p by the texts alone, above one half in half of the cases."""
    return [request_seed(*pair) / 2**31 for _, *pair in texts]


def test_the_highest_of_many_looks_is_too_high_and_the_reported_win_rate_is_not(tiny: Path) -> None:
    """No effect at all: 10 looks at 12 comparisons, 60 runs."""
    highest, reported = [], []
    for seed in range(60):
        config = ppo_config(tiny, eval_judge="fake", eval_fraction=0.4, seed=seed)
        prompts = [rollout(prompt=f"{seed} {i}").prompt for i in range(15)]
        held_out = best_policy.split(config, prompts)[1]
        choice = Selection(held_out, coin)
        start, *looks = (answers_to(held_out.prompts, call=call) for call in range(11))
        highest.append(max(choice.selection_win_rate(now, start).value for now in looks))
        reported.append(choice.report_win_rate(looks[-1], start).value)
    assert np.mean(highest) > 0.62
    assert np.mean(reported) == pytest.approx(0.5, abs=3 * 0.5 / (12 * 60) ** 0.5)


def test_held_out_prompts_are_split_by_content_and_each_serves_once(tiny: Path) -> None:
    prompts = [Prompt(f"id{i}", [Message(role="user", content=f"q{i % 20}")], [1]) for i in range(40)]
    config = ppo_config(tiny, eval_judge="fake", eval_fraction=0.3)
    trained, held_out = best_policy.split(config, prompts)
    parts = [{p.messages[0].content for p in part} for part in (trained, held_out.choosing, held_out.reporting)]
    assert list(map(len, parts)) == [14, 3, 3] and len(set.union(*parts)) == 20
    assert len(trained) + len(held_out.choosing) + len(held_out.reporting) == 40
    with pytest.raises(UsageError, match="at least three different prompts"):
        best_policy.split(config, [*prompts[:2], *prompts[20:22]])
    trained, held_out = best_policy.split(config, prompts[:3])
    assert list(map(len, (trained, held_out.choosing, held_out.reporting))) == [1, 1, 1]


def test_without_a_judge_that_chooses_all_held_out_prompts_report(tiny: Path) -> None:
    prompts = [rollout(prompt=str(i)).prompt for i in range(10)]
    trained, held_out = best_policy.split(ppo_config(tiny, eval_function="gold.py:tone", eval_fraction=0.3), prompts)
    assert (len(trained), held_out.choosing, len(held_out.reporting)) == (7, [], 3)
    judged = best_policy.split(ppo_config(tiny, eval_judge="fake", eval_fraction=0.3), prompts)[1]
    assert {p.id for p in judged.prompts} == {p.id for p in held_out.prompts}, "the same, with a judge and without"
    assert best_policy.split(ppo_config(tiny), prompts) == (prompts, best_policy.HeldOut([], []))


def test_equal_answers_are_ties_and_nobody_is_asked(tiny: Path) -> None:
    config = ppo_config(tiny, eval_judge="fake", eval_fraction=0.5)
    held_out = best_policy.split(config, [rollout(prompt=str(i)).prompt for i in range(10)])[1]
    choice = Selection(held_out, lambda texts: [0.4] * len(texts))
    start = answers_to(held_out.prompts, "same", "same")
    assert choice.selection_win_rate(start, start).value == 0.5
    assert choice.selection_win_rate(answers_to(held_out.prompts, "same", "another"), start).value == 0.25


def test_what_the_judge_cannot_decide_is_counted_and_left_out(tiny: Path) -> None:
    config = ppo_config(tiny, eval_judge="fake", eval_fraction=0.5)
    held_out = best_policy.split(config, [rollout(prompt=str(i)).prompt for i in range(8)])[1]
    choice = Selection(held_out, lambda texts: [None if "maybe" in a else 0.9 for _, a, _ in texts])
    found = choice.selection_win_rate(
        answers_to(held_out.prompts, "good", "maybe"), answers_to(held_out.prompts, "a", "b")
    )
    assert found.wins == [1, None] * 2 and (found.value, found.unscored) == (1, 2)
    assert found.as_json()["win_rate"]["n"] == found.as_json()["prompts"] == 2


def test_a_look_that_decides_nothing_chooses_nothing(run: Any) -> None:
    options = {"eval_judge": "fake", "eval_fraction": 0.4, "eval_every": 1, "steps": 3, "lr": 0.05}
    answers = iter([0.9, None])

    def compare(texts: Any) -> list[float | None]:
        answer = next(answers, None)
        return [answer] * len(texts)

    with pytest.warns(RlaifWarning, match="could decide none of the 8 comparisons"):
        folder = run("policy", ScriptedJudge(), compare=compare, **options)
    kept = results_of(folder)["weights"]
    assert (kept["step"], kept["looks"], kept["highest_win_rate"]) == (1, 1, 1)
    assert kept["win_rate"] is None and kept["unscored"] == 8, "the judge fell silent"
    assert "was undecided on the prompts that were not used for the choice" in ppo_command.choice(kept)


# ------------------------------------------------------------------------------------------- which prompts, which seeds


def prompts_named(names: str) -> list[Prompt]:
    return [Prompt(name, [], [1]) for name in names]


def test_a_prompt_that_stands_twice_in_a_step_gets_other_seeds() -> None:
    twice, once = (sample_seeds(prompts_named(names), 0, 5) for names in ("abab", "ab"))
    assert len(set(twice)) == 4 and twice[:2] == once
    assert sample_seeds(prompts_named("ab"), 0, 6) != once != sample_seeds(prompts_named("ab"), 1, 5)


def test_the_prompts_of_a_step_are_shuffled_passes_known_from_the_step_alone() -> None:
    prompts = prompts_named("abcdefg")
    steps = [step_prompts(prompts, 5, 3, step) for step in range(7)]
    ids = [prompt.id for step in steps for prompt in step]
    passes = [ids[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(each) == list("abcdefg") for each in passes) and len(set(map(tuple, passes))) > 3
    assert step_prompts(prompts, 5, 3, 4) == steps[4], "asked for alone, as a resumed run does"
    order = np.random.default_rng([3, 1]).permutation(7)
    assert passes[1] == ["abcdefg"[i] for i in order], "the order of runs begun by earlier versions"


def test_a_pass_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: shuffled.append(seed) or real(seed))
    epoch_order.cache_clear()
    for step in range(30):
        step_prompts(prompts_named("abcdefghij") * 10, 8, 4321, step)
    assert shuffled == [[4321, epoch] for epoch in range(3)]


# ------------------------------------------------------------------------------------------- waiting for a GPU


def test_losses_do_not_wait_for_a_gpu() -> None:
    """A meta tensor has no values: whatever would have to be waited for on a GPU raises here."""
    numbers = [torch.zeros(2, 3, device="meta") for _ in range(4)]
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    ppo_policy_loss(numbers[0], numbers[1], numbers[2], mask, 0.2, numbers[3])
    ppo_value_loss(numbers[0], numbers[1], numbers[2], mask, 0.2)
    masked_mean(kl_estimate(numbers[0], numbers[1], "k2"), mask)
    masked_whiten(numbers[0], mask)
    last_token_index(mask)
    with pytest.raises(RuntimeError):
        bool(mask.any())
