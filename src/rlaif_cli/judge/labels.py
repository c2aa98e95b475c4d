"""The probabilities of a closed set of answers, whatever tokens a judge writes them in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rlaif_cli.chat import AnyTokenizer
from rlaif_cli.engines.base import Engine, Request, gather

Job = TypeVar("Job")


class Labels:
    """The labels of one question, in the tokens of one judge.

    A label that is one token counts in all its one-token variants ("1", " 1"), read off the next token's
    distribution. One that is several tokens is scored as a continuation. Where a label begins like a longer one
    ("1" and "10"), what leads on to the longer one is taken off it.
    """

    def __init__(self, tokenizer: AnyTokenizer, labels: Sequence[str]) -> None:
        variants = [[tokenizer.text(text) for text in (label, " " + label)] for label in labels]
        self._single = [sorted({ids[0] for ids in found if len(ids) == 1}) for found in variants]
        self._choices = [token for ids in self._single for token in ids]
        self._whole = {
            place: tuple(found[0]) for place, found in enumerate(variants) if not self._single[place]
        }  # place of a label -> its tokens

    def requests(self, prompt: Sequence[int]) -> list[Request]:
        """What has to be asked after a prompt."""
        asked = [Request(None, prompt, choices=self._choices)] if self._choices else []
        return asked + [Request(None, prompt, continuation=tokens) for tokens in self._whole.values()]

    def ask(
        self, engine: Engine, jobs: Iterable[tuple[Job, Sequence[Sequence[int]]]]
    ) -> Iterator[tuple[Job, list[list[float]]]]:
        """For each job the probabilities of all labels, after every one of its prompts."""
        asked = ((job, [request for prompt in prompts for request in self.requests(prompt)]) for job, prompts in jobs)
        width = bool(self._choices) + len(self._whole)
        for job, found in gather(engine.logprobs, asked):
            yield job, [self._probabilities(found[i : i + width]) for i in range(0, len(found), width)]

    def _probabilities(self, found: Sequence[Sequence[float]]) -> list[float]:
        """found: the log-probs of the choices, then those of each longer label's tokens."""
        choices = iter(found[0] if self._choices else ())
        p = [sum(math.exp(next(choices)) for _ in ids) for ids in self._single]
        longer = found[1:] if self._choices else found
        for (place, tokens), logprobs in zip(self._whole.items(), longer, strict=True):
            p[place] = math.exp(sum(logprobs))
            for other, ids in enumerate(self._single):
                if tokens[0] in ids:
                    p[other] = max(0.0, p[other] - p[place])
        return p
