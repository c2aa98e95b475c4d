"""How one server wants to be asked.

A request begins as OpenAI documents it. Where a server refuses a part of it, the same is asked in another way if that
means the same: then it is said once. What would mean something else is the run's fault, which ends with the server's
words. `seed` is left out where it is refused: nobody's samples get another distribution by it, but they cannot be
repeated, and the warning says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rlaif_cli.engines.base import Request

LISTED = 20  # the most next tokens that servers list
NUMBER_ALONE = "Reply with the number alone."


@dataclass
class Dialect:
    """What is known of a server.

    Attributes:
        begins_replies: it continues a reply that was begun.
        folds_system: it takes no system turn.
        limit: its name for the most tokens of a reply.
        one_by_one: it takes no `n`.
        listed: how many next tokens it lists at most.
        without: parameters that it does not take and that are left out.
    """

    begins_replies: bool = False
    folds_system: bool = False
    limit: str = "max_tokens"
    one_by_one: bool = False
    listed: int = LISTED
    without: set[str] = field(default_factory=set)

    def body(self, request: Request, options: dict[str, Any]) -> dict[str, Any]:
        """What is sent: the turns, and those of the options that are set, by the server's names."""
        wanted = {name: value for name, value in options.items() if value is not None and name not in self.without}
        if "max_tokens" in wanted:
            wanted[self.limit] = wanted.pop("max_tokens")
        if "top_logprobs" in wanted:
            wanted["top_logprobs"] = min(wanted["top_logprobs"], self.listed)
        if self.one_by_one:
            wanted.pop("n", None)
        turns, extra = self._turns(request)
        return {"messages": turns, **wanted, **({"extra_body": extra} if extra else {})}

    def _turns(self, request: Request) -> tuple[list[dict[str, str]], dict[str, bool]]:
        turns, begun = [*request.prompt], None
        if turns[-1][0] == "begun":
            begun = turns.pop()[1]
        if self.folds_system and turns[0][0] == "system" and len(turns) > 1:
            (_, system), (role, first), *rest = turns
            turns = [(role, f"{system}\n\n{first}"), *rest]
        extra = {}
        if begun and self.begins_replies:
            turns.append(("assistant", begun))
            extra = {"continue_final_message": True, "add_generation_prompt": False}
        elif begun and (said := begun.rpartition("\n")[0]):  # what comes before the begun line was said by the judge
            turns += [("assistant", said), ("user", NUMBER_ALONE)]
        return [{"role": role, "content": content} for role, content in turns], extra

    def learn(self, name: str, body: dict[str, Any], words: str) -> str | None:
        """Ask in another way from now on, without another meaning.

        Args:
            name: what was refused; "system" for the system turn.
            body: what was sent.
            words: what the server said.

        Returns:
            What is done instead; None where there is no such way.
        """
        value = body.get(name)
        if name == "system" and not self.folds_system and body["messages"][0]["role"] == "system":
            self.folds_system = True
            return "it takes no system turn: instructions go before the question in the user's turn"
        if name in ("continue_final_message", "add_generation_prompt") and self.begins_replies:
            self.begins_replies = False
            return "it does not continue a reply that was begun: the question alone is asked"
        if name == "max_tokens" and self.limit == name and ("max_completion_tokens" in words or "unsupported" in words):
            self.limit = "max_completion_tokens"
            return "it takes no 'max_tokens': 'max_completion_tokens' says the same"
        if name == "n" and (value or 1) > 1:
            self.one_by_one = True
            return "it gives one answer a request: each sample is asked for by itself"
        if name == "top_logprobs" and (fewer := _number_below(words, self.listed)):
            self.listed = fewer
            return f"it lists the log-probs of {fewer} tokens at most: rarer labels are bounded by the last one listed"
        if name == "seed" or (name in ("temperature", "top_p") and value == 1):
            self.without.add(name)
            if name == "seed":
                return "it takes no 'seed': what is sampled cannot be repeated"
            return f"it takes no '{name}': its own is trusted to be the 1 that is asked for"
        return None


def _number_below(words: str, current: int) -> int | None:
    """The limit that a refusal names; 5 where it names none."""
    named = [int(number) for number in re.findall(r"(?<![\d.])\d{1,2}(?![\d.]*\d)", words)]
    below = [number for number in named if 1 < number < current]
    return max(below) if below else 5 if current > 5 else None


def sent_names(body: dict[str, Any]) -> Iterable[str]:
    """The parameters of a request that a server could refuse."""
    return [name for name in (*body, *body.get("extra_body", ())) if name not in ("messages", "extra_body")]
