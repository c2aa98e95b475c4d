"""Which response is better? Asked in both orders, averaged.

Lee et al. 2023: the prompt ends right before the label; p = softmax over the labels' log-probs. The *mass* of the
labels in the full distribution shows whether the judge answered at all. With chain of thought, in two steps: a
rationale is decoded greedily, then the label is read after it. The rationale of a model that reasons is its own
reasoning, which is closed where the budget ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rlaif_cli.data.messages import Message
from rlaif_cli.engines.base import Completion, Engine, Failed, Request, Sampling
from rlaif_cli.judge import prompts
from rlaif_cli.judge.base import Approval, Comparison, Judgement, Single, direction, mean, position_won
from rlaif_cli.judge.constitution import Constitution
from rlaif_cli.judge.labels import Answer, Labels, Question, known_masses, unusable

_CHUNK = 128  # comparisons whose rationales are decoded together before their labels are read


class PairwiseJudge:
    """See `Judge`.

    Args:
        min_mass: a comparison whose labels have less probability than this, in any order, is unscored.
        shots: exemplars of the constitution that are shown before the question.
        cot: the judge reasons before it answers.
        samples: count this many sampled answers instead of reading log-probs; with `cot`, each after its own reasoning.
        reasoning_tokens: maximum length of the judge's reasoning.
        structured: have the server constrain sampled answers to JSON.
        clamp: bounds for the final probability (Bai et al. 2022, for labels after reasoning).
    """

    method = "pairwise"

    def __init__(
        self,
        engine: Engine,
        constitution: Constitution,
        *,
        min_mass: float,
        shots: int = 0,
        cot: bool = False,
        clamp: tuple[float, float] | None = None,
        samples: int = 0,
        reasoning_tokens: int = 0,
        seed: int = 0,
        structured: bool = False,
    ) -> None:
        self._engine = engine
        self._constitution = constitution
        self._min_mass = min_mass
        self._shots = shots
        self._cot, self._samples, self._reasoning_tokens = cot, samples, reasoning_tokens
        self._clamp = clamp or (0.0, 1.0)
        self._labels = Labels(
            engine.tokenizer,
            prompts.LABELS,
            samples=samples,
            reasoning_tokens=reasoning_tokens,
            seed=seed,
            structured=structured,
        )

    def requests(self, comparison: Comparison) -> list[Request]:
        return [request for question in self._prompts(comparison) for request in self._labels.requests(question)]

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        if not self._cot or self._samples:
            jobs = (((comparison, ()), self._prompts(comparison)) for comparison in comparisons)
            yield from self._answers(jobs)
            return
        waiting = iter(comparisons)
        while chunk := list(islice(waiting, _CHUNK)):
            rationales = self._rationales(chunk)
            for place, texts in rationales.items():
                failed = next((text for text in texts if isinstance(text, Failed)), None)
                if failed is not None:
                    yield chunk[place], Judgement(None, failed.reason, failed.retryable)
            reasoned = [(chunk[place], texts) for place, texts in rationales.items() if _all_text(texts)]
            yield from self._answers(
                ((comparison, said), self._prompts(comparison, said)) for comparison, said in reasoned
            )

    def _answers(self, jobs: Iterable[tuple[Any, list[Any]]]) -> Iterator[tuple[Comparison, Judgement]]:
        for (comparison, rationales), answers in self._labels.ask(self._engine, jobs):
            yield comparison, self._judgement(comparison, answers, tuple(rationales))

    def _rationales(self, comparisons: Sequence[Comparison]) -> dict[int, list[Any]]:
        """The judge's reasoning before its answer, per comparison and question; `Failed` if there is no answer."""
        asked = [
            Request((place, index), self._engine.tokenizer.question(messages))
            for place, comparison in enumerate(comparisons)
            for index, messages in enumerate(self._questions(comparison))
        ]
        sampling = Sampling(temperature=0.0, max_tokens=self._reasoning_tokens, stop=(prompts.ANSWER_PREFIX.strip(),))
        said = {
            key: found if isinstance(found, Failed) else self._rationale(found[0])
            for key, found in self._engine.generate(asked, sampling)
        }
        found: dict[int, list[Any]] = {place: [] for place in range(len(comparisons))}
        for request in asked:
            found[request.key[0]].append(said[request.key])
        return found

    def approve(self, items: Iterable[Single]) -> Iterator[tuple[Single, Approval]]:
        """Ask whether a principle would pick the response, with both assignments of the labels."""
        jobs = ((item, self._approval_prompts(item)) for item in items)
        for item, answers in self._labels.ask(self._engine, jobs):
            failed = unusable(answers, self._min_mass)
            if failed is not None:
                yield item, Approval(reason=failed.reason)
                continue
            shares = [answer.p[0] / answer.mass for answer in answers]  # of label 1: first yes, then no
            yes = [0.5 + (one - two) / 2 for one, two in zip(shares[0::2], shares[1::2], strict=True)]
            yield (
                item,
                Approval(tuple(0.5 + direction(of) * (p - 0.5) for of, p in zip(item.principles, yes, strict=True))),
            )

    def approval_requests(self, item: Single) -> list[Request]:
        return [request for question in self._approval_prompts(item) for request in self._labels.requests(question)]

    def _approval_prompts(self, item: Single) -> list[Question]:
        return [
            self._labels.question(
                prompts.would_pick(self._constitution, principle, item.prompt, item.response, meanings),
                prompts.ANSWER_PREFIX,
            )
            for principle in item.principles
            for meanings in (("yes", "no"), ("no", "yes"))
        ]

    def _prompts(self, comparison: Comparison, rationales: Sequence[str] = ()) -> list[Question]:
        """The questions up to their labels, after the judge's reasoning if there is any."""
        questions = self._questions(comparison)
        if self._cot and self._samples:
            return [Question(self._engine.tokenizer.question(asked), ()) for asked in questions]
        said: list[str | None] = [*rationales] or [None] * len(questions)
        return [self._question(asked, rationale) for asked, rationale in zip(questions, said, strict=True)]

    def _question(self, asked: Sequence[Message], rationale: str | None) -> Question:
        if rationale is None or self._own_reasoning:
            return self._labels.question(asked, prompts.ANSWER_PREFIX, rationale or None)
        return self._labels.question(asked, prompts.after_rationale(rationale))

    @property
    def _own_reasoning(self) -> bool:
        """Whether the judge's model reasons by itself, so that it is not asked to explain."""
        return bool(self._engine.tokenizer.reasons)

    def _rationale(self, completion: Completion) -> str | Failed:
        if self._own_reasoning:  # wherever it ends, the label is read after it
            return completion.reasoning or ""
        return Failed(completion.no_answer, False) if completion.no_answer else completion.text.strip()

    def _questions(self, comparison: Comparison) -> list[list[Message]]:
        """The questions as messages, per principle and order."""
        return [
            prompts.pairwise(
                self._constitution,
                principle,
                comparison.prompt,
                first,
                second,
                shots=self._shots,
                reasoned=self._cot and not self._own_reasoning,
            )
            for principle in comparison.principles
            for first, second in ((comparison.a, comparison.b), (comparison.b, comparison.a))
        ]

    def _judgement(self, comparison: Comparison, answers: list[Answer], rationales: tuple[str, ...]) -> Judgement:
        """answers: per principle and order."""
        mass = known_masses(answers)
        p_first = tuple(
            0.5 + direction(comparison.principles[place // 2]) * (answer.p[0] / answer.mass - 0.5)
            for place, answer in enumerate(answers)
            if answer.mass
        )
        failed = unusable(answers, self._min_mass)
        if failed is not None:
            return Judgement(None, failed.reason, failed.retryable, p_first=p_first, mass=mass, rationales=rationales)
        # This form is exactly 0.5 for equal responses.
        by_principle = tuple(0.5 + (a - b) / 2 for a, b in zip(p_first[0::2], p_first[1::2], strict=True))
        a_first, b_first = mean(p_first[0::2]), mean(p_first[1::2])
        low, high = self._clamp
        return Judgement(
            p_a=min(max(0.5 + (a_first - b_first) / 2, low), high),
            by_principle=by_principle,
            p_first=p_first,
            mass=mass,
            flipped=position_won(p_first),
            rationales=rationales,
        )


def _all_text(said: Sequence[Any]) -> bool:
    return not any(isinstance(text, Failed) for text in said)
