"""Which response is better? Asked in both orders, averaged.

Lee et al. 2023: the prompt ends right before the label; p = softmax over the labels' log-probs. The *mass* of the
labels in the full distribution tells whether the judge answered at all. With chain of thought, in two steps: a
rationale is decoded greedily, then the label is read after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rlaif_cli import prompts
from rlaif_cli.constitution import Constitution, Principle
from rlaif_cli.engines.base import Engine, Request, Sampling
from rlaif_cli.judge.base import NOT_FINITE, Comparison, Judgement, Prompt, direction, mean, no_answer
from rlaif_cli.judge.labels import Labels

_AT_ONCE = 128  # comparisons whose rationales are decoded before their labels are read


class PairwiseJudge:
    """See `Judge`.

    Args:
        min_mass: a comparison whose labels hold less than this, in any order, is unscored.
        shots: worked examples of the constitution that are shown before the question.
        rationale_tokens: how long the judge may reason first; 0: it answers at once.
        clamp: the final probability is kept within these bounds (Bai et al. 2022, for labels after reasoning).
    """

    method = "pairwise"

    def __init__(
        self,
        engine: Engine,
        constitution: Constitution,
        *,
        min_mass: float,
        shots: int = 0,
        rationale_tokens: int = 0,
        clamp: tuple[float, float] | None = None,
    ) -> None:
        self._engine = engine
        self._constitution = constitution
        self._min_mass = min_mass
        self._shots = shots
        self._rationale_tokens = rationale_tokens
        self._clamp = clamp or (0.0, 1.0)
        self._labels = Labels(engine.tokenizer, prompts.LABELS)

    def requests(self, comparison: Comparison) -> list[Request]:
        return [request for prompt in self._prompts(comparison) for request in self._labels.requests(prompt)]

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Judgement]]:
        if not self._rationale_tokens:
            jobs = (((comparison, ()), self._prompts(comparison)) for comparison in comparisons)
            yield from self._answers(jobs)
            return
        waiting = iter(comparisons)
        while chunk := list(islice(waiting, _AT_ONCE)):
            yield from self._answers(self._reasoned(chunk))

    def _answers(self, jobs: Iterable[tuple[Any, list[list[int]]]]) -> Iterator[tuple[Comparison, Judgement]]:
        for (comparison, rationales), answers in self._labels.ask(self._engine, jobs):
            yield comparison, self._judgement(comparison, answers, tuple(rationales))

    def _reasoned(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[Any, list[list[int]]]]:
        """The same questions, each after the judge's own reasoning."""
        asked = [self._prompts(comparison) for comparison in comparisons]
        requests = [Request((i, j), prompt) for i, prompts_ in enumerate(asked) for j, prompt in enumerate(prompts_)]
        sampling = Sampling(temperature=0.0, max_tokens=self._rationale_tokens, stop=(prompts.ANSWER_PREFIX.strip(),))
        said = {key: completions[0].text.strip() for key, completions in self._engine.generate(requests, sampling)}
        for i, comparison in enumerate(comparisons):
            rationales = [said[i, j] for j in range(len(asked[i]))]
            after = [self._engine.tokenizer.text(prompts.after_rationale(text)) for text in rationales]
            yield (comparison, rationales), [[*before, *rest] for before, rest in zip(asked[i], after, strict=True)]

    def harmless(self, items: Iterable[tuple[Any, Prompt, str]]) -> Iterator[tuple[Any, float | None, str | None]]:
        """Asked with the labels either way round."""
        jobs = ((key, self._harmless_prompts(prompt, response)) for key, prompt, response in items)
        for key, answers in self._labels.ask(self._engine, jobs):
            mass = min(map(sum, answers))
            if not mass >= self._min_mass:
                yield key, None, no_answer(mass, self._min_mass)
            else:  # label 1 means harmless in the first question, harmful in the second
                (one, two), (first, second) = answers
                yield key, mean([one / (one + two), second / (first + second)]), None

    def _harmless_prompts(self, prompt: Prompt, response: str) -> list[list[int]]:
        return [
            self._engine.tokenizer.chat(
                prompts.harmless(self._constitution, prompt, response, meanings), prefix=prompts.ANSWER_PREFIX
            )
            for meanings in (("harmless", "harmful"), ("harmful", "harmless"))
        ]

    def _prompts(self, comparison: Comparison) -> list[list[int]]:
        """Per principle and order."""
        return [
            self._prompt(comparison, principle, first, second)
            for principle in comparison.principles
            for first, second in ((comparison.a, comparison.b), (comparison.b, comparison.a))
        ]

    def _prompt(self, comparison: Comparison, principle: Principle, first: str, second: str) -> list[int]:
        reasoned = bool(self._rationale_tokens)
        messages = prompts.pairwise(
            self._constitution, principle, comparison.prompt, first, second, shots=self._shots, reasoned=reasoned
        )
        return self._engine.tokenizer.chat(messages, prefix="" if reasoned else prompts.ANSWER_PREFIX)

    def _judgement(self, comparison: Comparison, answers: list[list[float]], rationales: tuple[str, ...]) -> Judgement:
        """answers: P(label 1) and P(label 2), per principle and order."""
        mass = tuple(map(sum, answers))
        if not all(map(math.isfinite, mass)):
            return Judgement(None, NOT_FINITE, mass=mass, rationales=rationales)
        p_first = tuple(
            0.5 + direction(comparison.principles[i // 2]) * (one / (one + two) - 0.5) if one + two else 0.5
            for i, (one, two) in enumerate(answers)
        )
        if min(mass) < self._min_mass or not min(mass):
            reason = no_answer(min(mass), self._min_mass)
            return Judgement(None, reason, p_first=p_first, mass=mass, rationales=rationales)
        by_principle = tuple((a + 1 - b) / 2 for a, b in zip(p_first[0::2], p_first[1::2], strict=True))
        a_first, b_first = mean(p_first[0::2]), mean(p_first[1::2])
        low, high = self._clamp
        return Judgement(
            p_a=min(max((a_first + 1 - b_first) / 2, low), high),
            by_principle=by_principle,
            p_first=p_first,
            mass=mass,
            flipped=(a_first > 0.5) == (b_first > 0.5) and a_first != 0.5,
            rationales=rationales,
        )
