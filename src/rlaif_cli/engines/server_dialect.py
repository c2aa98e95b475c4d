"""Adapt requests to what one server accepts.

The first request follows OpenAI's documentation. If a server refuses a part that can be expressed in another way with
the same meaning, later requests use that way, with one warning. If not, the run ends with the server's message. A
refused `seed` is omitted: that does not change the distribution, but samples are not reproducible, and the warning
says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlaif_cli.engines.base import Request

MAX_TOP_LOGPROBS = 20  # the most that servers return
NUMBER_ALONE = "Reply with the number alone."


@dataclass
class Dialect:
    """What a server is known to accept.

    Attributes:
        continues_prefill: it continues a reply that we begin.
        no_system_turn: it does not accept a system turn.
        max_tokens_name: its parameter for the maximum tokens of a reply.
        one_choice_only: it does not accept `n`.
        max_top_logprobs: how many next tokens it lists at most.
        omitted: parameters that it does not accept, which are omitted.
        template_arguments: variables of the model's chat template, which every request sets.
    """

    continues_prefill: bool = False
    no_system_turn: bool = False
    max_tokens_name: str = "max_tokens"
    one_choice_only: bool = False
    max_top_logprobs: int = MAX_TOP_LOGPROBS
    omitted: set[str] = field(default_factory=set)
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def body(self, request: Request, options: dict[str, Any]) -> dict[str, Any]:
        """The request's JSON: the turns, and the options that are set, with the server's names."""
        wanted = {name: value for name, value in options.items() if value is not None and name not in self.omitted}
        if "max_tokens" in wanted:
            wanted[self.max_tokens_name] = wanted.pop("max_tokens")
        if "top_logprobs" in wanted:
            wanted["top_logprobs"] = min(wanted["top_logprobs"], self.max_top_logprobs)
        if self.one_choice_only:
            wanted.pop("n", None)
        turns, extra = self._turns(request)
        arguments = dict(self.template_arguments)
        if "reasoning_effort" in arguments:  # a parameter of its own in OpenAI's API
            wanted["reasoning_effort"] = arguments.pop("reasoning_effort")
        if arguments:
            extra["chat_template_kwargs"] = arguments
        return {"messages": turns, **wanted, **({"extra_body": extra} if extra else {})}

    def _turns(self, request: Request) -> tuple[list[dict[str, str]], dict[str, Any]]:
        turns, prefill = [*request.prompt], None
        if turns[-1][0] == "prefill":
            prefill = turns.pop()[1]
        if self.no_system_turn and turns[0][0] == "system" and len(turns) > 1:
            (_, system), (role, first), *rest = turns
            turns = [(role, f"{system}\n\n{first}"), *rest]
        extra: dict[str, Any] = {}
        if prefill and self.continues_prefill:
            turns.append(("assistant", prefill))
            extra = {"continue_final_message": True, "add_generation_prompt": False}
        elif prefill and (reasoning := prefill.rpartition("\n")[0]):  # before the last line is the judge's reasoning
            turns += [("assistant", reasoning), ("user", NUMBER_ALONE)]
        return [{"role": role, "content": content} for role, content in turns], extra

    def adapt(self, name: str, body: dict[str, Any], words: str) -> str | None:
        """Switch to an equivalent request after a refusal.

        Args:
            name: the refused parameter; "system" for the system turn.
            body: the refused request.
            words: the server's message.

        Returns:
            What is done instead; None if there is no equivalent.
        """
        value = body.get(name)
        if name == "system" and not self.no_system_turn and body["messages"][0]["role"] == "system":
            self.no_system_turn = True
            return "no system turn is accepted: instructions go before the question in the user's turn"
        if name in ("continue_final_message", "add_generation_prompt") and self.continues_prefill:
            self.continues_prefill = False
            return "replies cannot be prefilled: only the question is sent"
        if (
            name == "max_tokens"
            and self.max_tokens_name == name
            and ("max_completion_tokens" in words or "unsupported" in words)
        ):
            self.max_tokens_name = "max_completion_tokens"
            return "'max_tokens' is not accepted: using 'max_completion_tokens'"
        if name == "n" and (value or 1) > 1:
            self.one_choice_only = True
            return "one answer per request: each sample is requested separately"
        if name == "top_logprobs" and (fewer := _number_below(words, self.max_top_logprobs)):
            self.max_top_logprobs = fewer
            return f"log-probs of at most {fewer} tokens: rarer labels are bounded by the last one listed"
        if name == "response_format":
            self.omitted.add(name)
            return "'response_format' is not accepted: answers are read as plain text"
        if name == "seed" or (name in ("temperature", "top_p") and value == 1):
            self.omitted.add(name)
            if name == "seed":
                return "'seed' is not accepted: samples are not reproducible"
            return f"'{name}' is not accepted: its default is assumed to be 1, as requested"
        return None


def _number_below(words: str, current: int) -> int | None:
    """The limit that a refusal names; 5 if it names none."""
    named = [int(number) for number in re.findall(r"(?<![\d.])\d{1,2}(?![\d.]*\d)", words)]
    below = [number for number in named if 1 < number < current]
    return max(below) if below else 5 if current > 5 else None


def sent_names(body: dict[str, Any]) -> Iterable[str]:
    """The parameters of a request that a server could refuse."""
    return [name for name in (*body, *body.get("extra_body", ())) if name not in ("messages", "extra_body")]
