"""What all stages that ask a judge have to know first: whether its principles can be asked, and whether texts fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif_cli.config import HarmlessRateConfig, JudgeConfig
from rlaif_cli.constitution import Constitution
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.judge import Comparison, make_judge
from rlaif_cli.judge.truncate import truncate
from rlaif_cli.records import Message
from rlaif_cli.stages.files import open_tokenizer, too_long


def check_principles(config: JudgeConfig | HarmlessRateConfig, constitution: Constitution) -> None:
    """Find out before compute is spent whether the principles exist and can be asked with the method."""
    wanted = tuple(config.principles)
    selected = constitution if wanted in (("sample",), ("all",)) else constitution.select(list(wanted))
    for principle in selected.principles:
        if config.method == "contrast":
            principle.contrast_prompts()
        if (found := len(constitution.exemplars_for(principle))) < config.shots:
            raise UsageError(
                f"--shots {config.shots}: {found} exemplars of '{constitution.name}' fit the principle '{principle.id}'"
            )


class Room:
    """How many tokens a comparison needs of its judge, and how many there are; measured without an engine."""

    def __init__(self, config: JudgeConfig, constitution: Constitution) -> None:
        self._tokenizer, self._limit = open_tokenizer(config, config.judge)
        self._cut = config.truncate
        self._reasoning = config.rationale_tokens if config.cot else 0
        self._longest_principle = max(constitution.principles, key=lambda p: len(p.text) + len(p.for_ or ""))
        engine: Any = type("Measure", (), {"tokenizer": self._tokenizer})
        self._judge = make_judge(config, constitution, engine)

    def need(self, comparison: Comparison) -> int:
        asked = self._judge.requests(comparison)
        return max(len(request.prompt) + len(request.continuation) for request in asked) + 1 + self._reasoning

    def check(self, prompt: str | list[Message], responses: Sequence[str]) -> str | None:
        """Why the two longest of these responses cannot be compared; None if they can."""
        if self._limit is None:  # only the server knows
            return None
        a, b = sorted(responses, key=len)[-2:]
        comparison = Comparison(None, prompt, a, b, (self._longest_principle,))
        if self._cut == "refuse":
            fault = too_long(self.need(comparison), self._limit, "the prompt and the responses that are compared")
            return fault and f"{fault}; --truncate cuts them"
        fits = truncate(comparison, self.need, self._limit, self._tokenizer, self._cut) is not None
        return None if fits else f"does not fit {self._limit} tokens, whatever is cut"

    def fit(self, comparison: Comparison) -> Comparison:
        """The comparison as the judge will see it: with `--truncate` cut to fit.

        Raises:
            InputError: it does not fit, whatever is cut.
        """
        if self._limit is None or self._cut == "refuse":
            return comparison
        found = truncate(comparison, self.need, self._limit, self._tokenizer, self._cut)
        if found is None:
            raise InputError("a pair does not fit the judge's context, whatever is cut", where=f"row {comparison.key}")
        return found
