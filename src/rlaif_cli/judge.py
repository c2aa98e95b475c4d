"""Token log-probs -> preference distributions: both orders, principles, and the reasons a pair stays unscored.

Two methods:

- pairwise (Lee et al. 2023): the prompt ends right before the label; p = softmax over the labels' log-probs, averaged
  over both orders. The *mass* of the labels in the full distribution tells whether the judge answered at all.
- contrast (after Liu et al. 2024, "DLMA"): no question is asked. score = mean per-token log p(response | prompt under
  a system prompt that embodies the principle) - the same under its opposite; p = sigmoid(k (score_a - score_b)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlaif_cli import prompts
from rlaif_cli.chat import AnyTokenizer
from rlaif_cli.config import JudgeConfig
from rlaif_cli.constitution import Constitution, Principle
from rlaif_cli.engines.base import Engine, Request, gather
from rlaif_cli.records import Message, content_id


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, and the principles they are judged by."""

    key: Any
    prompt: str | list[Message]
    a: str
    b: str
    principles: tuple[Principle, ...]


@dataclass(frozen=True)
class Judgement:
    """What a judge made of a comparison.

    Attributes:
        p_a: P(the judge prefers `a`); None if unscored.
        reason: why it is unscored.
        p_first: per principle and order, P(the response shown first wins); a is first, then b is.
        mass: for each of `p_first`, the labels' share of the full distribution.
        scores: contrast: the scores of a and b, nats per token, averaged over the principles.
        flipped: the same *position* won in both orders (averaged over the principles).
    """

    p_a: float | None
    reason: str | None = None
    p_first: tuple[float, ...] = ()
    mass: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    flipped: bool = False


class Judge(Protocol):
    method: str

    def requests(self, comparison: Comparison) -> list[Request]:
        """All that the engine is asked for one comparison."""
        ...

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        """Judge a stream of comparisons, in any order."""
        ...


def choose_principles(
    constitution: Constitution, wanted: Sequence[str], prompt: Any, a: str, b: str, seed: int
) -> tuple[Principle, ...]:
    """The principles of one comparison.

    A drawn one depends on the seed and on what is compared alone: not on the row's place, nor on which response
    comes first, so that swapping two responses swaps their label.
    """
    if tuple(wanted) == ("sample",):
        return (constitution.draw(content_id(prompt, sorted([a, b])), seed),)
    if tuple(wanted) == ("all",):
        return tuple(constitution.principles)
    return tuple(constitution.select(list(wanted)).principles)


def make_judge(config: JudgeConfig, constitution: Constitution, engine: Engine) -> PairwiseJudge | ContrastJudge:
    if config.method == "contrast":
        return ContrastJudge(engine, constitution, config.contrast_scale)
    return PairwiseJudge(engine, constitution, config.min_mass)


def direction(principle: Principle) -> float:
    """+1, or -1 where a principle asks for the *worse* response: the one place where answers are inverted.

    A silent-bug trap (Lee et al. ask for the more harmful response and invert the label). Whatever a judge measures
    as a difference around zero is multiplied by this, once.
    """
    return -1.0 if principle.choose == "worse" else 1.0


class PairwiseJudge:
    """Which is better? Asked in both orders.

    Args:
        min_mass: a comparison whose labels hold less than this, in any order, is unscored.
    """

    method = "pairwise"

    def __init__(self, engine: Engine, constitution: Constitution, min_mass: float) -> None:
        self._engine = engine
        self._constitution = constitution
        self._min_mass = min_mass
        self._labels = Labels(engine.tokenizer, prompts.LABELS)

    def requests(self, comparison: Comparison) -> list[Request]:
        return [
            Request(None, self._prompt(comparison, principle, first, second))
            for principle in comparison.principles
            for first, second in ((comparison.a, comparison.b), (comparison.b, comparison.a))
        ]

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        jobs = ((comparison, self.requests(comparison)) for comparison in comparisons)
        for comparison, answers in self._labels.ask(self._engine, jobs):
            yield comparison, self._judgement(comparison, answers)

    def harmless(
        self, items: Iterable[tuple[Any, str | list[Message], str]]
    ) -> Iterator[tuple[Any, float | None, str | None]]:
        """P(a response is harmless), asked with the labels either way round. Items: (key, prompt, response).

        Yields (key, p, None), or (key, None, reason) for an unscored one.
        """
        jobs = ((key, self._harmless_requests(prompt, response)) for key, prompt, response in items)
        for key, answers in self._labels.ask(self._engine, jobs):
            mass = min(math.exp(one) + math.exp(two) for one, two in answers)
            if not mass >= self._min_mass:
                yield key, None, f"the labels hold {mass:.3g} of the judge's answer, less than {self._min_mass:g}"
            else:  # label 1 means harmless in the first question, harmful in the second
                (one, two), (first, second) = answers
                yield key, _mean([_sigmoid(one - two), _sigmoid(second - first)]), None

    def _harmless_requests(self, prompt: str | list[Message], response: str) -> list[Request]:
        tokenizer, constitution = self._engine.tokenizer, self._constitution
        return [
            Request(
                None,
                tokenizer.chat(
                    prompts.harmless(constitution, prompt, response, meanings), prefix=prompts.ANSWER_PREFIX
                ),
            )
            for meanings in (("harmless", "harmful"), ("harmful", "harmless"))
        ]

    def _prompt(self, comparison: Comparison, principle: Principle, first: str, second: str) -> list[int]:
        messages = prompts.pairwise(self._constitution, principle, comparison.prompt, first, second)
        return self._engine.tokenizer.chat(messages, prefix=prompts.ANSWER_PREFIX)

    def _judgement(self, comparison: Comparison, answers: list[list[float]]) -> Judgement:
        """answers: the log-probs of labels 1 and 2, per principle and order."""
        p_first, mass = [], []
        for index, (one, two) in enumerate(answers):
            principle = comparison.principles[index // 2]
            mass.append(math.exp(one) + math.exp(two))
            p_first.append(_sigmoid(direction(principle) * (one - two)))
        if not all(math.isfinite(value) for value in (*p_first, *mass)):
            return Judgement(None, "the judge's log-probs are not finite", tuple(p_first), tuple(mass))
        if min(mass) < self._min_mass:
            reason = f"the labels hold {min(mass):.3g} of the judge's answer, less than {self._min_mass:g}"
            return Judgement(None, reason, tuple(p_first), tuple(mass))
        a_first, b_first = _mean(p_first[0::2]), _mean(p_first[1::2])
        flipped = (a_first > 0.5) == (b_first > 0.5) and a_first != 0.5
        return Judgement((a_first + 1 - b_first) / 2, None, tuple(p_first), tuple(mass), (), flipped)


class ContrastJudge:
    """How much likelier does a principle make a response than its opposite does?

    Args:
        scale: k in p = sigmoid(k (score_a - score_b)); per nat per token.
    """

    method = "contrast"

    def __init__(self, engine: Engine, constitution: Constitution, scale: float) -> None:
        self._engine = engine
        self._constitution = constitution
        self._scale = scale

    def requests(self, comparison: Comparison) -> list[Request]:
        return [
            request
            for principle in comparison.principles
            for response in (comparison.a, comparison.b)
            for request in self._sides(comparison.prompt, response, principle)
        ]

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        jobs = ((comparison, self.requests(comparison)) for comparison in comparisons)
        for comparison, logprobs in gather(self._engine.score, jobs):
            pairs = zip(logprobs[0::2], logprobs[1::2], strict=True)
            scores = [_contrast(*pair) for pair in pairs]  # a and b in turn, for each principle
            signs = [direction(principle) for principle in comparison.principles]
            a = [sign * score for sign, score in zip(signs, scores[0::2], strict=True)]
            b = [sign * score for sign, score in zip(signs, scores[1::2], strict=True)]
            yield comparison, self._judgement(a, b)

    def scores(self, items: Iterable[tuple[Any, str | list[Message], str, Principle]]) -> Iterator[tuple[Any, float]]:
        """Scores of single responses, toward the better: a direct reward. Items: (key, prompt, response, principle)."""
        jobs = (
            ((key, principle), self._sides(prompt, response, principle)) for key, prompt, response, principle in items
        )
        for (key, principle), (favoured, opposed) in gather(self._engine.score, jobs):
            yield key, direction(principle) * _contrast(favoured, opposed)

    def harmless(
        self, items: Iterable[tuple[Any, str | list[Message], str]]
    ) -> Iterator[tuple[Any, float | None, str | None]]:
        """P = sigmoid(k score): above one half where the principles favour the response over their opposites."""
        principles = self._constitution.principles
        total: dict[Any, list[float]] = {}
        every = (
            ((key, principle.id), prompt, response, principle)
            for key, prompt, response in items
            for principle in principles
        )
        for (key, _), score in self.scores(every):
            found = total.setdefault(key, [])
            found.append(score)
            if len(found) == len(principles):
                mean = _mean(total.pop(key))
                yield (
                    (key, _sigmoid(self._scale * mean), None)
                    if math.isfinite(mean)
                    else (key, None, "the judge's log-probs are not finite")
                )

    def _sides(self, prompt: str | list[Message], response: str, principle: Principle) -> list[Request]:
        tokenizer = self._engine.tokenizer
        continuation = tokenizer.response(response)
        sides = principle.contrast_prompts()
        return [
            Request(None, tokenizer.chat(prompts.contrast(side, prompt)), continuation=continuation) for side in sides
        ]

    def _judgement(self, a: list[float], b: list[float]) -> Judgement:
        """a, b: the scores of the two responses, per principle."""
        if not all(math.isfinite(score) for score in (*a, *b)):
            return Judgement(None, "the judge's log-probs are not finite", scores=(*a, *b))
        p = [_sigmoid(self._scale * (score_a - score_b)) for score_a, score_b in zip(a, b, strict=True)]
        return Judgement(_mean(p), scores=(_mean(a), _mean(b)))


class Labels:
    """The label tokens of one tokenizer, checked when the judge starts.

    Each label counts in all its one-token variants ("1", " 1"). Where a label has none, labels are scored as
    continuations instead.
    """

    def __init__(self, tokenizer: AnyTokenizer, labels: Sequence[str]) -> None:
        variants = [[tokenizer.text(text) for text in (label, " " + label)] for label in labels]
        self._single = [sorted({ids[0] for ids in found if len(ids) == 1}) for found in variants]
        self._whole = [found[0] for found in variants]
        self.one_token = all(self._single)

    def ask(
        self, engine: Engine, jobs: Iterable[tuple[Any, Sequence[Request]]]
    ) -> Iterator[tuple[Any, list[list[float]]]]:
        """For each job the log-probs of all labels, after every one of its prompts."""
        if self.one_token:
            ids = [token for variants in self._single for token in variants]
            for job, found in gather(lambda requests: engine.next_token_logprobs(requests, ids), jobs):
                yield job, [self._add_variants(logprobs) for logprobs in found]
        else:
            for job, found in gather(engine.score, ((job, self._continued(asked)) for job, asked in jobs)):
                totals = [sum(logprobs) for logprobs in found]
                width = len(self._whole)
                yield job, [totals[i : i + width] for i in range(0, len(totals), width)]

    def _continued(self, requests: Sequence[Request]) -> list[Request]:
        return [Request(None, request.prompt, continuation=label) for request in requests for label in self._whole]

    def _add_variants(self, logprobs: Sequence[float]) -> list[float]:
        added, start = [], 0
        for variants in self._single:
            added.append(_logsumexp(logprobs[start : start + len(variants)]))
            start += len(variants)
        return added


def _contrast(favoured: Sequence[float], opposed: Sequence[float]) -> float:
    return _mean(favoured) - _mean(opposed)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if math.isfinite(top) else top
