"""An engine without a model, whose answers depend only on the request; for dry runs and tests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

from rlaif_cli.engines.base import Completion, Request, Sampling
from rlaif_cli.models.tokenizer import FakeTokenizer

_TEXT = "a the good plan first then because small clear step answer question list of with and more less yes no"
_WORDS = _TEXT.split()


class FakeEngine:
    """See `Engine`."""

    name = "fake"
    max_length = 1 << 20

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Any, list[Completion]]]:
        for request in requests:
            digests = (_digest(request.prompt, request.seed, index) for index in range(sampling.n))
            yield request.key, [self._completion(digest, sampling.max_tokens) for digest in digests]

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float]]]:
        for request in requests:
            yield request.key, self._choices(request) if request.choices else self._continuation(request)

    def _choices(self, request: Request) -> list[float]:
        shares = [1 + byte for byte in _digest(request.prompt)[: len(request.choices)]]
        return [math.log(0.9 * share / sum(shares)) for share in shares]

    def _continuation(self, request: Request) -> list[float]:
        digest = _digest(request.prompt, tuple(request.continuation))
        return [-1 - digest[index % 32] / 255 for index in range(len(request.continuation))]

    def close(self) -> None:
        pass

    def _completion(self, digest: bytes, max_tokens: int) -> Completion:
        words = [_WORDS[byte % len(_WORDS)] for byte in digest[: 4 + digest[0] % 24]]
        ids = self.tokenizer.response(" ".join(words))[:max_tokens]
        return Completion(self.tokenizer.decode(ids), ids, [-1.0] * len(ids), "stop" if ids[-1] == 256 else "length")


def _digest(*parts: Any) -> bytes:
    return hashlib.sha256(repr([list(p) if isinstance(p, tuple) else p for p in parts]).encode()).digest()
