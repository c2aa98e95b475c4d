"""Decision endpoints: servers that answer a typed question with the probability of every option, and write no text.

`decision_formats.py` has the wire formats. Sending, retries and errors are those of chat servers (`server_fleet.py`).

The probabilities are normalised over the options. What the model would rather have said, the label mass, is known only
where a server reports it; elsewhere log-probs are `Relative`, no mass is recorded and `--min-mass` does not apply.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlaif_cli.config.naming import option, spelled
from rlaif_cli.data.messages import Asked, Message
from rlaif_cli.engines import server_errors as errors
from rlaif_cli.engines.base import Completion, Failed, Relative, Request, Sampling
from rlaif_cli.engines.decision_formats import FORMATS, Decision, Format
from rlaif_cli.engines.server_client import Server
from rlaif_cli.engines.server_fleet import Fleet
from rlaif_cli.errors import UsageError
from rlaif_cli.models.tokenizer import RemoteTokenizer, Spellings
from rlaif_cli.ui.messages import warn_once

# Status codes of a server that does not know the path or the fields of a format, or has no model for it.
_ANOTHER_FORMAT = {400, 404, 405, 422, 501}


class DecisionTokenizer(RemoteTokenizer):
    """A prompt is one `Decision`, and a token is a label."""

    reasons: bool | None = False

    def answers(
        self, messages: Sequence[Message], prefill: str, labels: Sequence[str], reasoning: str | None = None
    ) -> tuple[list[Any], Spellings]:
        *before, asked = messages
        if not isinstance(asked, Asked) or len(asked.options) != len(labels):
            raise UsageError(f"{option('engine')} decisions can only answer questions with a closed set of options")
        preamble = [message.content for message in before if message.role == "system"]
        decision = Decision(asked.material, "\n\n".join([*preamble, asked.question]), asked.options, asked.scale)
        return [decision], tuple(((label,),) for label in labels)


class DecisionsEngine:
    """See `Engine`. Prompts are those of `DecisionTokenizer`.

    Args:
        model: its name on the servers.
        decision_format: a key of `FORMATS`; None: found by trying, once for each server.
        base_url, concurrency, retries, timeout: see `Fleet`.

    Raises:
        MissingDependency, UsageError, EngineError: see `Fleet`.
    """

    name = "decisions"

    def __init__(self, model: str, *, decision_format: str | None = None, **options: Any) -> None:
        self.tokenizer = DecisionTokenizer()
        self._fleet = Fleet(model, template_arguments={}, **options)
        self.usage, self.max_length = self._fleet.usage, self._fleet.max_length
        self.identity = self._fleet.identity
        self._candidates = [FORMATS[decision_format]] if decision_format else list(FORMATS.values())
        self._found: dict[str, Format] = {}  # of each server
        self._finding = threading.Lock()

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        raise UsageError(f"{option('engine')} decisions writes no text: it only answers questions with given options")

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        """Of each choice among the choices, `Relative` unless the server reports their total."""

        def ask(server: Server, request: Request) -> list[float]:
            (decision,) = request.prompt
            form, answer = self._answer(server, decision)
            shares, mass = form.read(answer, decision)
            if mass is None:
                return [Relative(_log(share)) for share in shares]
            return [_log(share * mass) for share in shares]

        return self._fleet.run_concurrently(ask, requests)

    def _answer(self, server: Server, decision: Decision) -> tuple[Format, dict[str, Any]]:
        form = self._found.get(server.where)
        if form is None:
            with self._finding:  # the others wait for the first request, which finds the format
                form = self._found.get(server.where)
                if form is None:
                    return self._find_format(server, decision)
        return form, self._send(server, form, decision)

    def _send(self, server: Server, form: Format, decision: Decision) -> dict[str, Any]:
        return self._fleet.post(server, form.path, form.body(decision), form.answer)

    def _find_format(self, server: Server, decision: Decision) -> tuple[Format, dict[str, Any]]:
        """The first format that the server accepts. Raises: the most telling refusal, if it accepts none."""
        refusals: list[Exception] = []
        for form in self._candidates:
            try:
                answer = self._send(server, form, decision)
            except Exception as error:
                if getattr(error, "status_code", None) not in _ANOTHER_FORMAT or errors.is_own(error):
                    raise
                refusals.append(error)
                continue
            self._found[server.where] = form
            if refusals:
                why = errors.describe(refusals[0])
                using = spelled(f"using {option('decision_format')} {form.name}")
                warn_once(f"{server.where}: {using}, since {self._candidates[0].name}: {why}")
            return form, answer
        raise next((error for error in refusals if getattr(error, "status_code", None) != 404), refusals[0])

    def close(self) -> None:
        self._fleet.close()


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf
