"""The interface of inference engines: token ids in; sampled tokens or log-probs out. No chat, no judging.

Two streaming calls: requests are pulled as the engine can take them, and results are yielded as they finish, in any
order, with their request's key. So memory use stays flat and results reach the disk immediately.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from rlaif_cli.config.naming import option
from rlaif_cli.data.records import has_answer
from rlaif_cli.models.reasoning import first_mark
from rlaif_cli.models.tokenizer import AnyTokenizer, ChatTokenizer

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for an engine.

    Attributes:
        key: the caller's name for it, returned with the result.
        prompt: token ids, or whatever the engine's tokenizer makes of a conversation.
        seed: makes sampling reproducible, independent of the rest of the batch.
        continuation: `logprobs` returns the log-prob of each of these token ids, one after another.
        choices: alternatively, `logprobs` returns the log-prob of each of these token ids as the next token.
    """

    key: Any
    prompt: Sequence[Any]
    seed: int | None = None
    continuation: Sequence[Any] = ()
    choices: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()  # a server that can is to constrain the answer to one of these, as {"number": 1}


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response.

    Attributes:
        text: decoded, without the end-of-turn token and without the reasoning; empty if it ended inside its reasoning.
        reasoning: what the model thought before its answer; None if it did not.
        reasoning_tokens: how many of the tokens are before the answer, where that is known.
        token_ids: with the end-of-turn token, if the model ended the response.
        logprobs: of each token, nats. At temperature 1 these are the model's own; otherwise see the engine's
            `logprobs` argument.
        finish_reason: "stop" (end token or stop text) or "length"; from a server also "refusal" (`text` is the
            refusal), another value, or None.
        no_text: from a server: why the text is empty.

    `no_answer` says why it cannot be used as a judge's answer, `no_response` why not as a response; else empty.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = "stop"
    no_text: str = ""
    reasoning: str | None = None
    reasoning_tokens: int = 0

    @property
    def answered(self) -> bool:
        return has_answer(self.text, self.reasoning)

    @property
    def reply(self) -> str:
        """The text as it is stored: without surrounding white space."""
        return self.text.strip()

    @property
    def answer(self) -> str | None:
        """The text as it is judged and scored; None if the reply ended inside its reasoning."""
        return self.reply if self.answered else None

    @property
    def no_answer(self) -> str:
        if self.finish_reason == "refusal":
            return f"the judge refused to answer: {self.text}"
        return self.no_text or ("" if self.answered else "the judge's reply ended inside its reasoning")

    @property
    def no_response(self) -> str:
        mark = first_mark(self.text)
        unknown = (
            f"the answer contains a mark of reasoning ({mark}) that does not belong to this model; "
            f"{option('reasoning_marks')} OPEN CLOSE says how it marks its reasoning"
        )
        return self.no_text or (unknown if mark else "")


def completion(
    tokenizer: ChatTokenizer, ids: list[int], logprobs: list[float], *, ended: bool, stop: Sequence[str] = ()
) -> Completion:
    """Sampled tokens as a completion.

    Args:
        ended: by the model or a stop text, not by the maximum length.
        stop: texts that end the answer and do not belong to it; in the reasoning they mean nothing.
    """
    reply = tokenizer.reply(ids)
    text = reply.answer or ""
    for each in stop:
        text, found, _ = text.partition(each)
        ended = ended or bool(found)
    reason = "stop" if ended else "length"
    return Completion(text, ids, logprobs, reason, reasoning=reply.reasoning, reasoning_tokens=reply.reasoning_tokens)


@dataclass(frozen=True, slots=True)
class Failed:
    """A request without a result: why, and whether a retry may help (else the request itself is the problem)."""

    reason: str
    retryable: bool


UNSEEN = 0.05  # answers of unknown probability may have at most this share of the probability of the known ones


class Bound(float):
    """An upper bound for an unknown log-prob; the bounds of a request bound its unknown probabilities together."""


class Relative(float):
    """A log-prob among the choices alone: how much the model puts on anything else is unknown."""


@dataclass
class Usage:
    """Token counts reported by a server; `uncounted`: answers without counts."""

    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0

    def add(self, tokens_in: int | None, tokens_out: int | None) -> None:
        """Add one answer's counts; None: not reported."""
        self.tokens_in += tokens_in or 0
        self.tokens_out += tokens_out or 0
        self.uncounted += tokens_in is None or tokens_out is None


class Engine(Protocol):
    """An inference engine. Only servers return `Failed` results."""

    @property
    def name(self) -> str: ...

    @property
    def max_length(self) -> int:
        """Prompt and response together, tokens; 0: unknown."""
        ...

    @property
    def tokenizer(self) -> AnyTokenizer: ...

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        """Sample `sampling.n` completions for every prompt; `Failed` if none of them has a text."""
        ...

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        """Log-probs in nats, in the full distribution after `request.prompt`.

        Of each token of `request.continuation` in turn, or of each of `request.choices` as the next token.
        """
        ...

    def close(self) -> None:
        """Free memory and stop processes."""
        ...


def request_seed(*parts: object) -> int:
    """A seed made from what identifies a request, so that samples do not depend on their position in the file."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def gather(
    call: Callable[[Iterable[Request]], Iterator[tuple[Any, Result]]],
    jobs: Iterable[tuple[Job, Sequence[Request]]],
) -> Iterator[tuple[Job, list[Result]]]:
    """Run jobs of several requests each through one engine call; yield each job with its results when complete.

    Requests equal to one in flight are sent once: neighbouring pairs of a row share a response. The requests' own
    keys are ignored.
    """
    waiting: dict[Any, list[tuple[Job, list[Result | None], int]]] = {}

    def requests() -> Iterator[Request]:
        for job, wanted in jobs:
            results: list[Result | None] = [None] * len(wanted)
            for place, request in enumerate(wanted):
                key = (tuple(request.prompt), tuple(request.continuation), tuple(request.choices), request.seed)
                first = key not in waiting
                waiting.setdefault(key, []).append((job, results, place))
                if first:
                    yield replace(request, key=key)

    for key, result in call(requests()):
        for job, results, place in waiting.pop(key):
            results[place] = result
            if all(found is not None for found in results):
                yield job, results  # type: ignore[misc]
