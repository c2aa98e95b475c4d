"""An engine that is started later: prompts can be prepared, and inputs checked, before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rlaif_cli.engines.base import Completion, Engine, Failed, Request, Sampling
from rlaif_cli.models.tokenizer import AnyTokenizer


class DeferredEngine:
    """See `Engine`. It has only a tokenizer until `start` is called; then the started engine answers.

    Args:
        tokenizer: that of the engine's model.
    """

    def __init__(self, tokenizer: AnyTokenizer) -> None:
        self.tokenizer = tokenizer
        self._engine: Engine | None = None

    def start(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def started(self) -> Engine:
        assert self._engine is not None, "the engine has not been started"
        return self._engine

    @property
    def name(self) -> str:
        return self.started.name

    @property
    def max_length(self) -> int:
        return self.started.max_length

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        return self.started.generate(requests, sampling)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        return self.started.logprobs(requests)

    def close(self) -> None:
        self.started.close()
