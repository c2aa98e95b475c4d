"""How good is this response, from 1 to 10? Each response is judged alone; the whole distribution counts.

Lee et al. 2023: the likelihoods of the ten scores are normalised, s = sum i P(i). As a preference,
p = P(score_a > score_b) + P(score_a = score_b) / 2; as a direct reward, (2 s - 11) / 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlaif_cli.engines.base import Engine, Request
from rlaif_cli.judge import prompts
from rlaif_cli.judge.base import Approval, Comparison, Judgement, NoReward, Prompt, Single, direction, mean
from rlaif_cli.judge.constitution import Constitution, Principle
from rlaif_cli.judge.labels import Answer, Labels, Question, known_masses, unusable


class ScoreJudge:
    """See `Judge`.

    Args:
        min_mass: a response whose ten scores have less probability than this is unscored.
        samples: count this many sampled answers instead of reading log-probs.
        reasoning_tokens: maximum length of the reasoning before each of them.
        structured: have the server constrain them to JSON.
    """

    method = "score"

    def __init__(
        self,
        engine: Engine,
        constitution: Constitution,
        *,
        min_mass: float,
        samples: int = 0,
        reasoning_tokens: int = 0,
        seed: int = 0,
        structured: bool = False,
    ) -> None:
        self._engine = engine
        self._constitution = constitution
        self._min_mass = min_mass
        self._labels = Labels(
            engine.tokenizer,
            prompts.SCORES,
            samples=samples,
            reasoning_tokens=reasoning_tokens,
            seed=seed,
            structured=structured,
        )

    def requests(self, comparison: Comparison) -> list[Request]:
        return [request for question in self._prompts(comparison) for request in self._labels.requests(question)]

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        jobs = ((comparison, self._prompts(comparison)) for comparison in comparisons)
        for comparison, answers in self._labels.ask(self._engine, jobs):
            yield comparison, self._judgement(comparison, answers)

    def rewards(self, items: Iterable[tuple[Any, Prompt, str, Principle]]) -> Iterator[tuple[Any, float]]:
        """(2 s - 11) / 9, from -1 to 1 (the paper states the range; the linear map is ours)."""
        jobs = (
            ((key, principle), [self._prompt(principle, prompt, response)])
            for key, prompt, response, principle in items
        )
        for (key, principle), answers in self._labels.ask(self._engine, jobs):
            failed = unusable(answers, self._min_mass)
            yield key, reward_of_scores(principle, answers[0].p) if failed is None else NoReward(failed.reason)

    def approve(self, items: Iterable[Single]) -> Iterator[tuple[Single, Approval]]:
        """The score, scaled to [0, 1]: above 0.5 means more for the response than against it."""
        jobs = ((item, self._approval_prompts(item)) for item in items)
        for item, answers in self._labels.ask(self._engine, jobs):
            failed = unusable(answers, self._min_mass)
            if failed is not None:
                yield item, Approval(reason=failed.reason)
                continue
            rewards = [reward_of_scores(of, answer.p) for of, answer in zip(item.principles, answers, strict=True)]
            yield item, Approval(tuple((reward + 1) / 2 for reward in rewards))

    def approval_requests(self, item: Single) -> list[Request]:
        return [request for question in self._approval_prompts(item) for request in self._labels.requests(question)]

    def _approval_prompts(self, item: Single) -> list[Question]:
        return [self._prompt(principle, item.prompt, item.response) for principle in item.principles]

    def _prompts(self, comparison: Comparison) -> list[Question]:
        return [
            self._prompt(principle, comparison.prompt, response)
            for principle in comparison.principles
            for response in (comparison.a, comparison.b)
        ]

    def _prompt(self, principle: Principle, prompt: Prompt, response: str) -> Question:
        messages = prompts.score(self._constitution, principle, prompt, response)
        return self._labels.question(messages, prompts.ANSWER_PREFIX)

    def _judgement(self, comparison: Comparison, answers: list[Answer]) -> Judgement:
        """answers: to the questions about a and b in turn, per principle."""
        mass = known_masses(answers)
        failed = unusable(answers, self._min_mass)
        if failed is not None:
            return Judgement(None, failed.reason, failed.retryable, mass=mass)
        p, scores = [], []
        for principle, a, b in zip(comparison.principles, answers[0::2], answers[1::2], strict=True):
            p.append(0.5 + direction(principle) * (p_higher(a.p, b.p) - 0.5))
            scores.append((expected_score(a.p), expected_score(b.p)))
        a_scores, b_scores = zip(*scores, strict=True)
        return Judgement(mean(p), by_principle=tuple(p), mass=mass, scores=(mean(a_scores), mean(b_scores)))


def reward_of_scores(principle: Principle, p: Sequence[float]) -> float:
    """The expected score on a scale of -1 to 1; of an inverted principle, with the other sign."""
    return direction(principle) * (2 * expected_score(p) - 11) / 9


def expected_score(p: Sequence[float]) -> float:
    """sum i P(i) over 1 … 10; `p` need not sum to 1."""
    return sum(score * share for score, share in enumerate(p, start=1)) / sum(p)


def p_higher(a: Sequence[float], b: Sequence[float]) -> float:
    """P(a draw from a is above one from b), equal draws counting one half. Need not sum to 1."""
    below, won = 0.0, 0.0
    for share_a, share_b in zip(a, b, strict=True):
        won += share_a * (below + share_b / 2)
        below += share_b
    return won / (sum(a) * sum(b))
