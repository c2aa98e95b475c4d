"""How much more likely does a principle make a response than its opposite does?

After Liu et al. 2024 ("DLMA"). No question is asked, so there is no position bias and nothing to parse. score = mean
per-token log p(response | prompt under a system prompt that embodies the principle) - the same under its opposite;
p = sigmoid(k (score_a - score_b)). For judges that are too small to answer questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from rlaif_cli.engines.base import Engine, Failed, Request, gather
from rlaif_cli.judge import prompts
from rlaif_cli.judge.base import Approval, Comparison, Judgement, NoReward, Prompt, Single, direction, mean, sigmoid
from rlaif_cli.judge.constitution import Principle


class ContrastJudge:
    """See `Judge`.

    Args:
        scale: k in p = sigmoid(k (score_a - score_b)); per nat per token.

    Raises:
        ModelError: the judge's chat template has no system turn.
    """

    method = "contrast"

    def __init__(self, engine: Engine, scale: float) -> None:
        engine.tokenizer.require_system("which is the only difference between the two sides of a contrast judge")
        self._engine = engine
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
        for comparison, logprobs in gather(self._engine.logprobs, jobs):
            pairs = zip(logprobs[0::2], logprobs[1::2], strict=True)
            scores = [_contrast(*pair) for pair in pairs]  # a and b in turn, for each principle
            signs = [direction(principle) for principle in comparison.principles]
            a = [sign * score for sign, score in zip(signs, scores[0::2], strict=True)]
            b = [sign * score for sign, score in zip(signs, scores[1::2], strict=True)]
            yield comparison, self._judgement(a, b)

    def rewards(self, items: Iterable[tuple[Any, Prompt, str, Principle]]) -> Iterator[tuple[Any, float]]:
        """k times the score: differences of this are the logits of preferences."""
        jobs = (
            ((key, principle), self._sides(prompt, response, principle)) for key, prompt, response, principle in items
        )
        for (key, principle), sides in gather(self._engine.logprobs, jobs):
            failed = next((side for side in sides if isinstance(side, Failed)), None)
            reward = self._scale * direction(principle) * _contrast(*sides)
            yield key, reward if math.isfinite(reward) else NoReward(failed.reason if failed else NOT_FINITE)

    def approve(self, items: Iterable[Single]) -> Iterator[tuple[Single, Approval]]:
        """P = sigmoid(k score): above 0.5 if the response fits the principle better than its opposite."""
        for item, logprobs in gather(self._engine.logprobs, ((item, self.approval_requests(item)) for item in items)):
            scores = [_contrast(*pair) for pair in zip(logprobs[0::2], logprobs[1::2], strict=True)]
            if not all(map(math.isfinite, scores)):
                yield item, Approval(reason=NOT_FINITE)
                continue
            logits = [self._scale * direction(of) * score for of, score in zip(item.principles, scores, strict=True)]
            yield item, Approval(tuple(map(sigmoid, logits)))

    def approval_requests(self, item: Single) -> list[Request]:
        return [
            request for principle in item.principles for request in self._sides(item.prompt, item.response, principle)
        ]

    def _sides(self, prompt: Prompt, response: str, principle: Principle) -> list[Request]:
        tokenizer = self._engine.tokenizer
        continuation = tokenizer.response(response)
        sides = principle.contrast_prompts()
        return [
            Request(None, tokenizer.chat(prompts.contrast(side, prompt)), continuation=continuation) for side in sides
        ]

    def _judgement(self, a: list[float], b: list[float]) -> Judgement:
        """a, b: the scores of the two responses, per principle."""
        if not all(math.isfinite(score) for score in (*a, *b)):
            return Judgement(None, NOT_FINITE, scores=(*a, *b))
        p = tuple(sigmoid(self._scale * (score_a - score_b)) for score_a, score_b in zip(a, b, strict=True))
        return Judgement(mean(p), by_principle=p, scores=(mean(a), mean(b)))


NOT_FINITE = "the judge's log-probs are not finite"


def _contrast(favoured: list[float] | Failed, opposed: list[float] | Failed) -> float:
    if isinstance(favoured, Failed) or isinstance(opposed, Failed):
        return math.nan  # engines that can score a text never return these
    return mean(favoured) - mean(opposed)
