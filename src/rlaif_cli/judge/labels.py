"""The probabilities of a closed set of answers, whatever tokens a judge writes them in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif_cli.chat import AnyTokenizer
from rlaif_cli.engines.base import Bound, Completion, Engine, Failed, Request, Sampling, gather, request_seed

Job = TypeVar("Job")

_UNSEEN = 0.05  # labels that a server does not list may hold at most this share of those that it lists


@dataclass(frozen=True)
class Answer:
    """What a judge answered to one question.

    Attributes:
        p: of each label, in the full distribution; 0 where it is only known to be small.
        unseen: how much the labels that are not known could hold together, at most.
        failed: instead of an answer.
    """

    p: tuple[float, ...] = ()
    unseen: float = 0.0
    failed: Failed | None = None

    @property
    def mass(self) -> float:
        return sum(self.p)


def unusable(answers: Sequence[Answer], min_mass: float) -> Failed | None:
    """Why nothing can be made of these answers; None if something can."""
    for answer in answers:
        if answer.failed is not None:
            return answer.failed
    masses = [answer.mass for answer in answers]
    if not all(map(math.isfinite, masses)):
        return Failed("the judge's log-probs are not finite", False)
    if min(masses) < min_mass or not min(masses):
        return Failed(f"the labels hold {min(masses):.3g} of the judge's answer, less than {min_mass:g}", False)
    for answer in answers:
        if answer.unseen > _UNSEEN * answer.mass:
            could = f"labels that the server does not list could hold {answer.unseen:.3g}"
            return Failed(f"{could} beside the {answer.mass:.3g} of those it lists", False)
    return None


class Labels:
    """The labels of one question, in the tokens of one judge.

    A label that is one token counts in all its one-token variants ("1", " 1"), read off the next token's
    distribution. One that is several tokens is scored as a continuation. Where a label begins like a longer one
    ("1" and "10"), what leads on to the longer one is taken off it.

    Args:
        samples: instead of reading log-probs, sample this many answers and count.
        seed: of those samples.
    """

    def __init__(self, tokenizer: AnyTokenizer, labels: Sequence[str], *, samples: int = 0, seed: int = 0) -> None:
        self._labels = list(labels)
        self._samples, self._seed = samples, seed
        variants: list[list[list[Any]]] = [
            [list(tokenizer.text(text)) for text in (label, " " + label)] for label in labels
        ]
        self._single = [sorted({ids[0] for ids in found if len(ids) == 1}) for found in variants]
        self._choices = [token for ids in self._single for token in ids]
        self._whole = {  # place of a label -> its tokens
            place: tuple(found[0]) for place, found in enumerate(variants) if not self._single[place]
        }

    def requests(self, prompt: Sequence[Any]) -> list[Request]:
        """What has to be asked after a prompt."""
        if self._samples:
            return [Request(None, prompt, seed=request_seed(self._seed, *prompt))]
        asked = [Request(None, prompt, choices=self._choices)] if self._choices else []
        return asked + [Request(None, prompt, continuation=tokens) for tokens in self._whole.values()]

    def ask(
        self, engine: Engine, jobs: Iterable[tuple[Job, Sequence[Sequence[Any]]]]
    ) -> Iterator[tuple[Job, list[Answer]]]:
        """For each job the answers to every one of its prompts."""
        asked = ((job, [request for prompt in prompts for request in self.requests(prompt)]) for job, prompts in jobs)
        if self._samples:
            sampling = Sampling(n=self._samples, max_tokens=8)
            for job, sampled in gather(lambda requests: engine.generate(requests, sampling), asked):
                yield job, [self._counted(completions) for completions in sampled]
            return
        width = bool(self._choices) + len(self._whole)
        for job, found in gather(engine.logprobs, asked):
            yield job, [self._read(found[i : i + width]) for i in range(0, len(found), width)]

    def _read(self, found: Sequence[list[float] | Failed]) -> Answer:
        """found: the log-probs of the choices, then those of each longer label's tokens."""
        told: list[list[float]] = []
        for logprobs in found:
            if isinstance(logprobs, Failed):
                return Answer(failed=logprobs)
            told.append(logprobs)
        choices = told[0] if self._choices else []
        # A `Bound` (of a server) says how likely a token can be at most, not how likely it is.
        known = iter([0.0 if isinstance(logprob, Bound) else math.exp(logprob) for logprob in choices])
        p = [sum(next(known) for _ in ids) for ids in self._single]
        unseen = sum(math.exp(logprob) for logprob in choices if isinstance(logprob, Bound))
        for (place, tokens), logprobs in zip(self._whole.items(), told[bool(self._choices) :], strict=True):
            p[place] = math.exp(sum(logprobs))
            for other, ids in enumerate(self._single):
                if tokens[0] in ids:
                    p[other] = max(0.0, p[other] - p[place])
        return Answer(tuple(p), unseen)

    def _counted(self, sampled: list[Completion] | Failed) -> Answer:
        if isinstance(sampled, Failed):
            return Answer(failed=sampled)
        said = [re.search(r"\d+", completion.text) for completion in sampled]
        numbers = [match[0] for match in said if match]
        return Answer(tuple(numbers.count(label) / len(sampled) for label in self._labels))
