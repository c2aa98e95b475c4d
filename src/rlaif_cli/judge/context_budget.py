"""What all stages that ask a judge have to know first: whether its principles can be asked, and whether texts fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif_cli.config.judge import CompareConfig, JudgeConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.engines.base import Request
from rlaif_cli.engines.tokenizer import open_tokenizer, too_long
from rlaif_cli.errors import InputError
from rlaif_cli.judge import Comparison, Single, make_judge
from rlaif_cli.judge.constitution import Constitution
from rlaif_cli.judge.truncate import truncate


class Room:
    """Whether what is judged fits the judges, measured without an engine; with `--truncate`, cut to fit all of them."""

    def __init__(self, config: JudgeConfig, constitution: Constitution) -> None:
        self._seats = [_Seat(config, constitution, name) for name in config.judge]

    def check(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        """Why the two longest of these responses cannot be compared; None if they can."""
        return next((fault for seat in self._seats if (fault := seat.check(prompt, responses))), None)

    def check_alone(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        """Why the longest of these responses cannot be judged by itself; None if it can."""
        return next((fault for seat in self._seats if (fault := seat.check_alone(prompt, responses))), None)

    def check_length(self, prompt: str | list[Message], tokens: int) -> str | None:
        """Why a response of so many tokens, which is yet to be sampled, could not be judged by itself."""
        return next((fault for seat in self._seats if (fault := seat.check_length(prompt, tokens))), None)

    def fit(self, comparison: Comparison) -> Comparison:
        """The comparison as the judges will see it.

        Raises:
            InputError: it does not fit, whatever is cut.
        """
        for seat in self._seats:
            comparison = seat.fit(comparison)
        return comparison


class _Seat:
    """How many tokens one judge needs, and how many it has."""

    def __init__(self, config: JudgeConfig, constitution: Constitution, name: str) -> None:
        self._tokenizer, self._limit = open_tokenizer(config, name)
        compared = config if isinstance(config, CompareConfig) else None
        self._cut = compared.truncate if compared else "refuse"
        self._reasoning = compared.rationale_tokens if compared and compared.cot else 0
        self._longest_principle = max(constitution.principles, key=lambda p: len(p.text) + len(p.for_ or ""))
        engine: Any = type("Measure", (), {"tokenizer": self._tokenizer})
        self._judge = make_judge(config, constitution, engine)

    def need(self, comparison: Comparison) -> int:
        return self._tokens(self._judge.requests(comparison))

    def _tokens(self, asked: Sequence[Request]) -> int:
        return max(len(request.prompt) + len(request.continuation) for request in asked) + 1 + self._reasoning

    def check(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        if self._limit is None:  # only the server knows
            return None
        a, b = sorted(responses, key=len)[-2:]
        comparison = Comparison(None, prompt, a, b, (self._longest_principle,))
        if self._cut == "refuse":
            fault = too_long(self.need(comparison), self._limit, "the prompt and the responses that are compared")
            return fault and f"{fault}; --truncate cuts them"
        fits = truncate(comparison, self.need, self._limit, self._tokenizer, self._cut) is not None
        return None if fits else f"does not fit {self._limit} tokens, whatever is cut"

    def check_alone(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        if self._limit is None:
            return None
        item = Single(None, prompt, max(responses, key=len), (self._longest_principle,))
        return too_long(self._tokens(self._judge.approval_requests(item)), self._limit, "the prompt and its response")

    def check_length(self, prompt: str | list[Message], tokens: int) -> str | None:
        if self._limit is None:
            return None
        item = Single(None, prompt, "", (self._longest_principle,))
        need = self._tokens(self._judge.approval_requests(item)) + tokens
        what = f"the judge's question, the prompt and a response of --max-tokens {tokens} tokens"
        fault = too_long(need, self._limit, what)
        return fault and f"{fault}: a lower --max-tokens, a shorter prompt or a judge with a longer context"

    def fit(self, comparison: Comparison) -> Comparison:
        if self._limit is None or self._cut == "refuse":
            return comparison
        found = truncate(comparison, self.need, self._limit, self._tokenizer, self._cut)
        if found is None:
            raise InputError("a pair does not fit the judge's context, whatever is cut", where=f"row {comparison.key}")
        return found
