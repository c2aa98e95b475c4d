"""Judges whose truth is known: what a label means must survive order, principles, masses and odd tokenizers."""

from __future__ import annotations

import math

import pytest

from rlaif_cli import constitution as constitutions
from rlaif_cli.chat import FakeTokenizer
from rlaif_cli.config import LabelConfig
from rlaif_cli.constitution import Constitution
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.judge import Comparison, ContrastJudge, Labels, PairwiseJudge, choose_principles
from rlaif_cli.records import Candidates
from rlaif_cli.stages.label import pair_chooser, preference

HELPFUL = constitutions.load("helpfulness")


def constitution_with(choose: str) -> Constitution:
    principle = {"id": "p", "text": "Which?", "choose": choose, "for": "Be good.", "against": "Be bad."}
    return Constitution.model_validate(
        {"name": "x", "description": "d", "preamble": "Judge.", "principles": [principle]}
    )


class Scripted(FakeEngine):
    """Answers from a function of the decoded prompt."""

    def __init__(self, label_probabilities=None, logprob=None):
        super().__init__()
        self._answer, self._logprob = label_probabilities, logprob

    def next_token_logprobs(self, requests, token_ids):
        for request in requests:
            one, two = self._answer(self.tokenizer.decode(request.prompt))
            yield request.key, [math.log(one), math.log(two)]

    def score(self, requests):
        for request in requests:
            value = self._logprob(self.tokenizer.decode(request.prompt), self.tokenizer.decode(request.continuation))
            yield request.key, [value] * len(request.continuation)


def oracle(text):
    """Prefers the response that holds 'gold', wherever it stands, with 0.9 of a mass of 0.8."""
    first = text.split("[Response 1]\n")[1].split("\n[End")[0]
    return (0.72, 0.08) if "gold" in first else (0.08, 0.72)


def judged(judge, a, b, constitution=HELPFUL, principles=None):
    comparison = Comparison("k", "question", a, b, principles or (constitution.principles[0],))
    ((_, judgement),) = judge.compare([comparison])
    return judgement


def test_an_oracle_is_believed_in_either_order():
    judge = PairwiseJudge(Scripted(oracle), HELPFUL, 0.1)
    assert judged(judge, "gold", "lead").p_a == pytest.approx(0.9)
    assert judged(judge, "lead", "gold").p_a == pytest.approx(0.1)
    assert not judged(judge, "gold", "lead").flipped
    assert judged(judge, "gold", "lead").mass == pytest.approx((0.8, 0.8))


def test_position_bias_averages_out_and_is_flagged():
    judgement = judged(PairwiseJudge(Scripted(lambda _: (0.8, 0.1)), HELPFUL, 0.1), "x", "y")
    assert judgement.p_a == pytest.approx(0.5)
    assert judgement.flipped


def test_a_judge_that_does_not_answer_leaves_the_row_unscored():
    judgement = judged(PairwiseJudge(Scripted(lambda _: (0.001, 0.002)), HELPFUL, 0.1), "x", "y")
    assert judgement.p_a is None
    assert "0.003" in judgement.reason


@pytest.mark.parametrize("choose, expected", [("better", 0.9), ("worse", 0.1)])
def test_a_principle_for_the_worse_is_inverted_once(choose, expected):
    constitution = constitution_with(choose)
    pairwise = PairwiseJudge(Scripted(oracle), constitution, 0.1)
    assert judged(pairwise, "gold", "lead", constitution).p_a == pytest.approx(expected)

    def logprob(prompt, response):  # "gold" is likelier under the principle
        return -1.0 if "gold" in response and "Be good." in prompt else -2.0

    contrast = ContrastJudge(Scripted(logprob=logprob), constitution, math.log(9))
    assert judged(contrast, "gold", "lead", constitution).p_a == pytest.approx(expected)
    ((_, score),) = contrast.scores([("k", "q", "gold", constitution.principles[0])])
    assert score == pytest.approx(1.0 if choose == "better" else -1.0)


def test_contrast_ignores_length_and_order():
    def logprob(prompt, response):
        return -1.0 if "helpful" not in response else -1.5

    judge = ContrastJudge(Scripted(logprob=logprob), constitution_with("better"), 20.0)
    assert judged(judge, "short", "a much, much longer response").p_a == pytest.approx(0.5)


def test_verdicts_follow_the_responses():
    """A judge (or a bug) that ignores what it reads gives one value everywhere; real input must not."""
    judge = PairwiseJudge(FakeEngine(), HELPFUL, 0.1)
    labels = {judged(judge, f"response {i}", f"other {i}").p_a for i in range(20)}
    assert len(labels) > 15


def test_drawn_principles_do_not_depend_on_order():
    for i in range(20):
        one = choose_principles(HELPFUL, ("sample",), "q", f"a{i}", "b", seed=1)
        assert one == choose_principles(HELPFUL, ("sample",), "q", "b", f"a{i}", seed=1)
    drawn = {choose_principles(HELPFUL, ("sample",), "q", f"a{i}", "b", 1)[0].id for i in range(60)}
    assert len(drawn) > 3


def test_every_principle_counts_with_all():
    judge = PairwiseJudge(Scripted(oracle), HELPFUL, 0.1)
    judgement = judged(judge, "gold", "lead", principles=tuple(HELPFUL.principles))
    assert len(judgement.p_first) == 2 * len(HELPFUL.principles)
    assert judgement.p_a == pytest.approx(0.9)


class WordyTokenizer(FakeTokenizer):
    """No label is one token."""

    def text(self, text):
        return [0, *super().text(text)]


def test_labels_of_several_tokens_are_scored_as_continuations():
    engine = Scripted(logprob=lambda prompt, continuation: math.log(0.6 if "1" in continuation else 0.2) / 2)
    engine.tokenizer = WordyTokenizer()
    labels = Labels(engine.tokenizer, ("1", "2"))
    assert not labels.one_token
    judgement = judged(PairwiseJudge(engine, HELPFUL, 0.1), "x", "y")
    assert judgement.p_first[0] == pytest.approx(0.75)


def test_variants_of_a_label_add_up():
    class Variants(FakeTokenizer):
        def text(self, text):
            return {"1": [1], " 1": [11], "2": [2], " 2": [22]}.get(text) or super().text(text)

    class Engine(FakeEngine):
        def next_token_logprobs(self, requests, token_ids):
            assert list(token_ids) == [1, 11, 2, 22]
            for request in requests:
                yield request.key, [math.log(p) for p in (0.3, 0.3, 0.1, 0.1)]

    engine = Engine()
    engine.tokenizer = Variants()
    judgement = judged(PairwiseJudge(engine, HELPFUL, 0.1), "x", "y")
    assert judgement.mass == pytest.approx((0.8, 0.8))
    assert judgement.p_first == pytest.approx((0.75, 0.75))


CONFIG = LabelConfig(candidates="-", judge="fake", constitution="helpfulness")
ROW = Candidates.model_validate({"id": "r", "prompt": "q", "responses": ["gold", "lead"], "topic": "t"})


def test_a_preference_tells_everything_from_the_side_of_chosen():
    judge = PairwiseJudge(Scripted(oracle), HELPFUL, 0.1)
    for responses in (("gold", "lead"), ("lead", "gold")):
        row = Candidates.model_validate({"id": "r", "prompt": "q", "responses": list(responses), "topic": "t"})
        comparison = Comparison((row, 0, 1), row.prompt, *responses, (HELPFUL.principles[0],))
        ((_, judgement),) = judge.compare([comparison])
        written = preference(CONFIG, row, 0, 1, comparison, judgement)
        assert written.chosen_text == "gold"
        assert written.p_chosen == pytest.approx(0.9)
        assert written.judge.p_first == pytest.approx([0.9, 0.1])
        assert written.meta["topic"] == "t"


def test_a_tie_keeps_input_order():
    comparison = Comparison((ROW, 0, 1), "q", "gold", "lead", (HELPFUL.principles[0],))
    judge = PairwiseJudge(Scripted(lambda _: (0.4, 0.4)), HELPFUL, 0.1)
    ((_, judgement),) = judge.compare([comparison])
    written = preference(CONFIG, ROW, 0, 1, comparison, judgement)
    assert (written.chosen_text, written.p_chosen) == ("gold", 0.5)


@pytest.mark.parametrize(("rule", "count"), [("all", 6), ("chain", 3), ("random:2", 2), ("random:99", 6)])
def test_which_pairs_are_compared(rule, count):
    row = Candidates.model_validate({"prompt": "q", "responses": list("abcd")})
    assert len(set(pair_chooser(rule, 0)(row))) == count


def test_harmless_is_asked_either_way_round():
    def afraid_of_label_one(_):
        return (0.1, 0.8)

    judge = PairwiseJudge(Scripted(afraid_of_label_one), HELPFUL, 0.1)
    ((_, p, reason),) = judge.harmless([("k", "q", "r")])
    assert p == pytest.approx(0.5)
    assert reason is None


def test_a_response_shared_by_two_pairs_is_scored_once_and_counts_in_both():
    asked = []

    class Counting(Scripted):
        def score(self, requests):
            requests = list(requests)  # all in flight at once
            asked.extend(requests)
            yield from super().score(requests)

    judge = ContrastJudge(Counting(logprob=lambda p, r: -len(r) - ("good" in p)), constitution_with("better"), 1.0)
    principle = (constitution_with("better").principles[0],)
    pairs = [Comparison(i, "q", f"r{i}", f"r{i + 1}", principle) for i in range(3)]
    assert sorted(c.key for c, _ in judge.compare(pairs)) == [0, 1, 2]
    assert len(asked) == 4 * 2
