"""Check, before a judge is started, that prompts and responses fit its context; truncate them if requested."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_cli.config.judge import CompareConfig, JudgeConfig
from rlaif_cli.config.naming import option
from rlaif_cli.data.messages import Message
from rlaif_cli.engines.base import Request
from rlaif_cli.engines.tokenizer import too_long
from rlaif_cli.errors import InputError
from rlaif_cli.judge import Comparison, Judge, Single
from rlaif_cli.judge.constitution import Constitution
from rlaif_cli.judge.session import JudgeSession
from rlaif_cli.judge.truncate import truncate
from rlaif_cli.models.tokenizer import AnyTokenizer


class ContextBudget:
    """The context budget of a config's judges, measured without an engine; `--truncate` cuts texts to fit them.

    Attributes:
        session: the judges, which are asked in the end with the questions that are measured here.
    """

    def __init__(self, config: JudgeConfig, constitution: Constitution) -> None:
        self.session = JudgeSession(config, constitution)
        judges = zip(self.session.members, self.session.tokenizers, self.session.limits, strict=True)
        self._budgets = [_JudgeBudget(config, constitution, *judge) for judge in judges]

    def check(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        """Why the two longest responses cannot be compared; None if they can."""
        return next((error for budget in self._budgets if (error := budget.check(prompt, responses))), None)

    def check_single(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        """Why the longest response cannot be judged by itself; None if it can."""
        return next((error for budget in self._budgets if (error := budget.check_single(prompt, responses))), None)

    def check_length(self, prompt: str | list[Message], tokens: int) -> str | None:
        """Why a response of this many tokens, not yet sampled, could not be judged by itself; None if it could."""
        return next((error for budget in self._budgets if (error := budget.check_length(prompt, tokens))), None)

    def fit(self, comparison: Comparison) -> Comparison:
        """The comparison, truncated to fit all judges.

        Raises:
            InputError: it cannot be truncated to fit.
        """
        for budget in self._budgets:
            comparison = budget.fit(comparison)
        return comparison


class _JudgeBudget:
    """The tokens that comparisons need with one judge, and its context length."""

    def __init__(
        self,
        config: JudgeConfig,
        constitution: Constitution,
        judge: Judge,
        tokenizer: AnyTokenizer,
        limit: int | None,
    ) -> None:
        self._judge, self._tokenizer, self._limit = judge, tokenizer, limit
        compared = config if isinstance(config, CompareConfig) else None
        self._cut = compared.truncate if compared else "refuse"
        self._reasoning = compared.rationale_tokens if compared and compared.cot else 0
        self._longest_principle = max(constitution.principles, key=lambda p: len(p.text) + len(p.for_ or ""))

    def tokens_needed(self, comparison: Comparison) -> int:
        return self._tokens(self._judge.requests(comparison))

    def _tokens(self, asked: Sequence[Request]) -> int:
        return max(len(request.prompt) + len(request.continuation) for request in asked) + 1 + self._reasoning

    def check(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        if self._limit is None:  # a server, which alone knows its limit
            return None
        a, b = sorted(responses, key=len)[-2:]
        comparison = Comparison(None, prompt, a, b, (self._longest_principle,))
        if self._cut == "refuse":
            error = too_long(self.tokens_needed(comparison), self._limit, "the prompt and the responses to compare")
            return error and f"{error}; use {option('truncate')} to cut them"
        fits = truncate(comparison, self.tokens_needed, self._limit, self._tokenizer, self._cut) is not None
        return None if fits else f"cannot be truncated to fit {self._limit} tokens"

    def check_single(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        if self._limit is None:
            return None
        item = Single(None, prompt, max(responses, key=len), (self._longest_principle,))
        return too_long(self._tokens(self._judge.approval_requests(item)), self._limit, "the prompt and its response")

    def check_length(self, prompt: str | list[Message], tokens: int) -> str | None:
        if self._limit is None:
            return None
        item = Single(None, prompt, "", (self._longest_principle,))
        needed = self._tokens(self._judge.approval_requests(item)) + tokens
        what = f"the judge's question, the prompt and a response of {option('max_tokens')} {tokens} tokens"
        error = too_long(needed, self._limit, what)
        return (
            error and f"{error}: use a lower {option('max_tokens')}, a shorter prompt or a judge with a longer context"
        )

    def fit(self, comparison: Comparison) -> Comparison:
        if self._limit is None or self._cut == "refuse":
            return comparison
        found = truncate(comparison, self.tokens_needed, self._limit, self._tokenizer, self._cut)
        if found is None:
            raise InputError("a pair cannot be truncated to fit the judge's context", where=f"row {comparison.key}")
        return found
