"""Any OpenAI-compatible chat server: `vllm serve`, hosted APIs.

Limits of such servers, and how we handle them:

- They list log-probs only for the most likely next tokens. A label that is not listed gets an upper bound: it cannot
  be more likely than the last token listed (`server_labels.py`).
- They cannot score a given text (contrast judges), and return no token ids.
- Most cannot continue a reply that we prefill. vLLM can; for others the prefill is omitted, since the question already
  asks for the number only (`server_dialect.py`).

`server_fleet.py` sends requests to the servers. `server_answers.py` reads their answers as untrusted data, and
`server_errors.py` decides whether a refusal is due to the request, the server or the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rlaif_cli.config.chat import template_arguments as parse_arguments
from rlaif_cli.config.naming import option, spelled
from rlaif_cli.engines import server_answers as answers
from rlaif_cli.engines.base import Completion, Failed, Request, Sampling
from rlaif_cli.engines.server_account import Account
from rlaif_cli.engines.server_answers import Unusable
from rlaif_cli.engines.server_client import AmbiguousFailure, Server
from rlaif_cli.engines.server_dialect import MAX_TOP_LOGPROBS
from rlaif_cli.engines.server_fleet import Fleet
from rlaif_cli.engines.server_labels import LabelShares
from rlaif_cli.errors import EngineError, UsageError
from rlaif_cli.models.tokenizer import RemoteTokenizer

_NEGLIGIBLE = 0.002  # share of unclear answers that is not worth resolving by continuing them
_MAX_RESAMPLES = 16  # sampled replies to find one that shows what follows an unclear label


class OpenAIEngine:
    """See `Engine`. Prompts and "tokens" are those of `RemoteTokenizer`: a token is its text.

    Args:
        model: its name on the servers.
        base_url, concurrency, retries, timeout: see `Fleet`.
        template_arguments: NAME=VALUE, variables of the model's chat template.

    Raises:
        MissingDependency, UsageError, EngineError: see `Fleet`.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        *,
        base_url: Sequence[str] = (),
        concurrency: int,
        retries: int,
        timeout: float,
        template_arguments: Sequence[str] = (),
    ) -> None:
        self.tokenizer = RemoteTokenizer()
        self._fleet = Fleet(
            model,
            base_url=base_url,
            concurrency=concurrency,
            retries=retries,
            timeout=timeout,
            template_arguments=parse_arguments(template_arguments),
        )
        self.usage, self.max_length = self._fleet.usage, self._fleet.max_length
        self.identity = self._fleet.identity
        self._returns_logprobs = False  # if so, an answer without them is an error of that answer, not of the server
        self._single_token: set[str] = set()  # labels of several digits that were seen as one token

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        """A completion without text says why; if none has text, the result is `Failed`."""

        def ask(server: Server, request: Request) -> list[Completion]:
            found: list[Completion] = []
            while (
                missing := sampling.n - len(found)
            ) > 0:  # some servers do not accept `n` and return one answer per call
                answer = self._fleet.create(
                    server,
                    request,
                    n=missing,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    stop=list(sampling.stop) or None,
                    response_format=_one_number(sampling.numbers) if sampling.numbers else None,
                    seed=None if request.seed is None else request.seed + len(found),
                )
                found += [answers.completion(choice) for choice in answers.choices(answer, missing)]
            if all(completion.no_text for completion in found):
                raise Unusable(found[0].no_text, retryable=False)
            return found

        return self._fleet.run_concurrently(ask, requests)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        """Labels that the server does not list get a `Bound`."""

        def ask(server: Server, request: Request) -> list[float]:
            if request.continuation:
                raise UsageError(
                    f"a chat server cannot return the log-probs of a given text, which {option('method')} "
                    "contrast needs",
                    hint=f"use {option('method')} pairwise or score, or {option('engine')} vllm",
                )
            shares = LabelShares(request.choices, self._single_token)
            self._read_reply(server, request, [shares])
            if server.dialect.continues_prefill:
                self._continue_unclear(server, request, shares)
            elif not shares.settled():
                shares = self._resample_unclear(server, request, shares)
            if problem := shares.problem():
                raise Unusable(problem, retryable=False)
            return shares.logprobs()

        return self._fleet.run_concurrently(ask, requests)

    def _read_reply(self, server: Server, request: Request, targets: Sequence[LabelShares], before: str = "") -> int:
        """Request one reply for each of `targets`, and add each reply to one; returns how many replies came."""
        options = {
            "max_tokens": targets[0].tokens,
            "temperature": 1.0,
            "logprobs": True,
            "top_logprobs": MAX_TOP_LOGPROBS,
        }
        if len(targets) > 1:
            options["n"] = len(targets)
        found = answers.choices(self._fleet.create(server, request, **options), len(targets))
        for choice, shares in zip(found, targets, strict=False):
            reply = answers.completion(choice, may_be_empty=True)
            if reply.no_answer:
                raise Unusable(reply.no_answer, retryable=False)
            positions = answers.positions(choice)
            if not positions:
                raise self._no_logprobs(server, reply, answers.has_logprobs(choice))
            self._returns_logprobs = True
            shares.add(positions, reply.text, before)
            self._single_token = self._single_token | {label for label in shares.single_token if len(label) > 1}
        return len(found)

    def _no_logprobs(self, server: Server, reply: Completion, given: bool) -> AmbiguousFailure:
        """An error of this answer alone if other answers have log-probs, else a limit of the server."""
        what = "log-probs that cannot be read" if given else "no log-probs"
        hint = f"{option('samples')} N counts sampled answers instead"
        return AmbiguousFailure(
            f"the answer has {what} (finish reason: {reply.finish_reason or 'not given'}); {spelled(hint)}",
            EngineError(f"the server returns {what}", where=server.where, hint=hint),
            own=lambda done: done or self._returns_logprobs,
        )

    def _continue_unclear(self, server: Server, request: Request, shares: LabelShares) -> None:
        """Have the server continue each unclear text, the most likely first, until a negligible share is unclear."""
        *turns, (role, prefill) = request.prompt
        if role != "prefill":
            turns, prefill = list(request.prompt), ""
        while not shares.settled(_NEGLIGIBLE):
            text = max(shares.unclear, key=shares.unclear.__getitem__)
            joined = (prefill.rstrip() if text[:1].isspace() else prefill) + text
            self._read_reply(server, replace(request, prompt=(*turns, ("prefill", joined))), [shares], text)
            if not server.dialect.continues_prefill:  # then it was a new reply, not a continuation
                raise Unusable("the server does not continue a prefilled reply", retryable=True)

    def _resample_unclear(self, server: Server, request: Request, shares: LabelShares) -> LabelShares:
        """Sample replies until one begins with the unclear text and shows what follows it."""
        left = _MAX_RESAMPLES
        while left > 0 and not shares.settled():
            targets = [LabelShares(request.choices, self._single_token) for _ in range(left)]
            left -= self._read_reply(server, request, targets)
            shares = next((target for target in targets if any(target.known.values()) and target.settled()), shares)
        return shares

    def attach(self, account: Account | None) -> None:
        """Work for an output that has an account, until called again."""
        self._fleet.attach(account)

    def close(self) -> None:
        self._fleet.close()


def _one_number(numbers: Sequence[int]) -> dict[str, Any]:
    """The `response_format` for one of these numbers (https://platform.openai.com/docs/guides/structured-outputs)."""
    schema = {
        "type": "object",
        "properties": {"number": {"type": "integer", "enum": list(numbers)}},
        "required": ["number"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
