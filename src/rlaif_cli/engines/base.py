"""What an inference engine is: token ids in; sampled tokens or log-probs out. It knows nothing of chat or judging.

Two narrow calls, each a stream: requests are pulled as the engine has room for them, and results come back as they
finish, in any order, named by their key. So memory stays flat and results reach the disk at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from rlaif_cli.models.chat_template import mark_of_thoughts
from rlaif_cli.models.tokenizer import AnyTokenizer

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for an engine.

    Attributes:
        key: the caller's name for it; comes back with the result.
        prompt: token ids, or whatever else the engine's own tokenizer makes of a conversation.
        seed: fixes what is sampled, whatever else is in the batch.
        continuation: token ids, one after the other, whose log-probs are asked for (`logprobs`).
        choices: or: token ids that could come next; the log-prob of each is asked for (`logprobs`).
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


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response.

    Attributes:
        text: decoded, without the end token.
        token_ids: with the end token, when the response ended by itself.
        logprobs: of each token, nats. At temperature 1 these are the model's own; otherwise see the engine's
            `logprobs` setting.
        finish_reason: "stop" (ended by itself or by a stop text) or "length"; of a server also "refusal" (the text is
            its words), its own word, or None where it does not say.
        no_text: of a server: why there is no response, only an empty text.

    `no_answer` says why it cannot be read as a judge's answer either, `no_response` why it is no response; empty where
    it can or is.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = "stop"
    no_text: str = ""

    @property
    def reply(self) -> str:
        """The text as files of responses hold it, and so as judges and reward models read it: white space around it
        is no part of a reply."""
        return self.text.strip()

    @property
    def no_answer(self) -> str:
        return self.no_text or (f"the judge refused to answer: {self.text}" if self.finish_reason == "refusal" else "")

    @property
    def no_response(self) -> str:
        mark = mark_of_thoughts(self.text)
        thoughts = f"the reply holds the model's thoughts ({mark}), and rlaif does not support thinking models yet"
        return self.no_text or (thoughts if mark else "")


@dataclass(frozen=True, slots=True)
class Failed:
    """A result that did not come: why, and whether asking again may help (else the request itself is at fault)."""

    reason: str
    again: bool


UNSEEN = 0.05  # answers whose probability is not known may hold at most this share of those whose is


class Bound(float):
    """A log-prob that is not known, but for what the sum of all such ones of a request cannot be above."""


@dataclass
class Usage:
    """Tokens that a server counted; `uncounted`: answers for which it did not."""

    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0

    def add(self, tokens_in: int | None, tokens_out: int | None) -> None:
        """None: not counted."""
        self.tokens_in += tokens_in or 0
        self.tokens_out += tokens_out or 0
        self.uncounted += tokens_in is None or tokens_out is None


class Engine(Protocol):
    """An inference engine. Only servers give `Failed` results."""

    name: str
    max_length: int  # prompt and response together, tokens; 0: not known

    @property
    def tokenizer(self) -> AnyTokenizer: ...

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        """Sample `sampling.n` completions for every prompt; `Failed` where none of them has a text."""
        ...

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        """log p, nats, in the full distribution after `request.prompt`.

        Of every token of `request.continuation` in its place; or of each of `request.choices` as the next token.
        """
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


def request_seed(*parts: object) -> int:
    """A seed made of what names a request, so that a sample does not depend on its place in the file or batch."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def gather(
    call: Callable[[Iterable[Request]], Iterator[tuple[Any, Result]]],
    jobs: Iterable[tuple[Job, Sequence[Request]]],
) -> Iterator[tuple[Job, list[Result]]]:
    """Run jobs of several requests each through one engine call; yield a job when all its results are there.

    A request equal to one that is under way is not asked again: neighbouring pairs of a row share a response. The
    requests' own keys are not used.
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
