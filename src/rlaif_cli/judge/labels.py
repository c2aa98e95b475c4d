"""The probabilities of a closed set of answers, however the judge's tokenizer writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from rlaif_cli.data.messages import Message
from rlaif_cli.engines.base import (
    UNSEEN,
    Bound,
    Completion,
    Engine,
    Failed,
    Relative,
    Request,
    Sampling,
    gather,
    request_seed,
)
from rlaif_cli.judge.prompts import ANSWER_PREFIX
from rlaif_cli.models.tokenizer import AnyTokenizer, Spellings

Job = TypeVar("Job")

# Maximum tokens of a sampled answer: enough for "Number: 10." written byte by byte and the end token, without which a
# reply counts as cut off. A longer reply is not just an answer.
ANSWER_TOKENS = 16
JSON_TOKENS = 48  # {"number": 10}, with white space


@dataclass(frozen=True)
class Answer:
    """A judge's answer to one question.

    Attributes:
        p: probability of each label in the full distribution; 0 if only an upper bound is known.
        unseen: upper bound for the total probability of the unknown labels.
        failed: set if there is no answer.
        relative: `p` is among the labels alone, so its sum says nothing.
    """

    p: tuple[float, ...] = ()
    unseen: float = 0.0
    failed: Failed | None = None
    relative: bool = False

    @property
    def mass(self) -> float:
        return sum(self.p)


def known_masses(answers: Sequence[Answer]) -> tuple[float, ...]:
    """The mass of each answer; empty if that of one is unknown."""
    return () if any(answer.relative for answer in answers) else tuple(answer.mass for answer in answers)


def unusable(answers: Sequence[Answer], min_mass: float) -> Failed | None:
    """Why these answers cannot be used; None if they can."""
    for answer in answers:
        if answer.failed is not None:
            return answer.failed
    masses = [1.0 if answer.relative else answer.mass for answer in answers]
    if not all(map(math.isfinite, masses)):
        return Failed("the judge's log-probs are not finite", False)
    if min(masses) < min_mass or not min(masses):
        return Failed(f"the labels hold only {min(masses):.3g} of the judge's answer, less than {min_mass:g}", False)
    for answer in answers:
        if answer.unseen > UNSEEN * answer.mass:
            missing = f"labels missing from the server's list of likely tokens may have up to {answer.unseen:.3g}"
            return Failed(f"{missing} of the probability; those on the list have {answer.mass:.3g}", False)
    return None


@dataclass(frozen=True)
class Question:
    """A question to one judge, tokenized.

    Attributes:
        prompt: everything before the label.
        spellings: for each label, the token sequences that write it.
    """

    prompt: Sequence[Any]
    spellings: Spellings

    @property
    def next_tokens(self) -> list[Any]:
        """Labels that are one token, in all variants ("1", " 1")."""
        return [ways[0] for label in self.spellings for ways in label if len(ways) == 1]

    @property
    def longer(self) -> list[tuple[Any, ...]]:
        """Labels that are several tokens."""
        return [tokens for label in self.spellings for tokens in label if len(tokens) > 1]

    def requests(self) -> list[Request]:
        asked = [Request(None, self.prompt, choices=self.next_tokens)] if self.next_tokens else []
        return asked + [Request(None, self.prompt, continuation=tokens) for tokens in self.longer]


class Labels:
    """The labels of one kind of question.

    One-token spellings are read from the next-token distribution, longer ones are scored as continuations. If a label
    is a prefix of a longer one ("1" and "10"), the longer one's probability is subtracted from it.

    Args:
        samples: sample this many answers and count them instead of reading log-probs.
        reasoning_tokens: maximum length of the reasoning before a sampled answer.
        seed: of those samples.
        structured: have the server constrain them to JSON.
    """

    def __init__(
        self,
        tokenizer: AnyTokenizer,
        labels: Sequence[str],
        *,
        samples: int = 0,
        reasoning_tokens: int = 0,
        seed: int = 0,
        structured: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._labels = list(labels)
        self._samples, self._seed = samples, seed
        self._structured = structured
        self._answer_tokens = (JSON_TOKENS if structured else ANSWER_TOKENS) + reasoning_tokens

    def question(self, messages: Sequence[Message], prefill: str, reasoning: str | None = None) -> Question:
        """A question up to the label.

        Args:
            prefill: the beginning of the reply before the label.
            reasoning: the model's own, before the reply.
        """
        prefill = "" if self._structured else prefill  # the reply is JSON from its first character
        return Question(*self._tokenizer.answers(messages, prefill, self._labels, reasoning))

    def requests(self, question: Question) -> list[Request]:
        if self._samples:
            return [Request(None, question.prompt, seed=request_seed(self._seed, *question.prompt))]
        return question.requests()

    def ask(self, engine: Engine, jobs: Iterable[tuple[Job, Sequence[Question]]]) -> Iterator[tuple[Job, list[Answer]]]:
        """Yield each job with the answers to its questions."""
        asked = (
            ((job, questions), [request for question in questions for request in self.requests(question)])
            for job, questions in jobs
        )
        if self._samples:
            numbers = tuple(map(int, self._labels)) if self._structured else ()
            sampling = Sampling(n=self._samples, max_tokens=self._answer_tokens, numbers=numbers)
            for (job, _), sampled in gather(lambda requests: engine.generate(requests, sampling), asked):
                yield job, [self._counted(completions) for completions in sampled]
            return
        for (job, questions), found in gather(engine.logprobs, asked):
            results = iter(found)
            yield job, [_read(question, list(islice(results, len(question.requests())))) for question in questions]

    def _counted(self, sampled: list[Completion] | Failed) -> Answer:
        if isinstance(sampled, Failed):
            return Answer(failed=sampled)
        if all(completion.no_answer for completion in sampled):
            return Answer(failed=Failed(sampled[0].no_answer, False))
        said = [sampled_label(completion, self._labels) for completion in sampled]
        return Answer(tuple(said.count(label) / len(sampled) for label in self._labels))


_ANSWER = re.compile(rf"(?:{re.escape(ANSWER_PREFIX.strip())}\s*)?([0-9]+)\.?")


def sampled_label(completion: Completion, labels: Sequence[str]) -> str | None:
    """The label that a reply, or its last line, consists of; None if a label only occurs somewhere in it.

    A label may have the answer prefix before it ("Number: 1") and a full stop after it; or the whole reply is JSON,
    {"number": 1}. A reply that was cut off has no last line, and a number in the reasoning is not an answer.
    """
    if completion.no_answer or completion.finish_reason == "length" or not completion.answered:
        return None
    lines = completion.reply.splitlines()
    answer = _ANSWER.fullmatch(lines[-1].strip()) if lines else None
    label = answer[1] if answer else _json_number(completion.reply)
    return label if label in labels else None


def _json_number(text: str) -> str | None:
    """The number of {"number": 1}, and nothing else."""
    found = re.fullmatch(r"\{\s*\"number\"\s*:\s*([0-9]+)\s*\}", text)
    return found[1] if found else None


def _read(question: Question, found: Sequence[list[float] | Failed]) -> Answer:
    """found: the log-probs of the next tokens, if any were requested, then those of each longer spelling's tokens."""
    known: list[list[float]] = []
    for logprobs in found:
        if isinstance(logprobs, Failed):
            return Answer(failed=logprobs)
        known.append(logprobs)
    choices = known.pop(0) if question.next_tokens else []
    # A `Bound` (from a server) is only an upper bound for a token's probability.
    single = iter([0.0 if isinstance(logprob, Bound) else math.exp(logprob) for logprob in choices])
    longer = iter([math.exp(sum(logprobs)) for logprobs in known])
    shares = [
        [(tokens, next(single) if len(tokens) == 1 else next(longer)) for tokens in ways] for ways in question.spellings
    ]
    spelled = [(place, tokens, share) for place, ways in enumerate(shares) for tokens, share in ways]
    p = [sum(share for _, share in ways) for ways in shares]
    for place, tokens, share in spelled:
        for other, shorter, _ in spelled:
            if other != place and len(shorter) < len(tokens) and tokens[: len(shorter)] == shorter:
                p[other] = max(0.0, p[other] - share)
    unseen = sum(math.exp(logprob) for logprob in choices if isinstance(logprob, Bound))
    return Answer(tuple(p), unseen, relative=any(isinstance(logprob, Relative) for logprob in choices))
