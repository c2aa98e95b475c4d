"""Any OpenAI-compatible chat server: vLLM's own `serve`, hosted APIs.

What such a server cannot do, and what is done about it:

- It lists the log-probs of its likeliest next tokens alone. A label that is not among them gets a bound, not a guess:
  it cannot be likelier than the last one listed (`server_labels.py`).
- It cannot score a text that is given (contrast judges), and returns no token ids.
- Most cannot continue a reply that was begun. vLLM's can, and is asked to; for others the begun reply is left out,
  since the question already asks for the number alone (`server_dialect.py`).

How requests reach the servers is in `server_fleet.py`. What they answer is read as data that nobody vouches for
(`server_answers.py`), and what they refuse is sorted by whose fault it is (`server_errors.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rlaif_cli.engines import server_answers as answers
from rlaif_cli.engines.base import Completion, Failed, Request, Sampling
from rlaif_cli.engines.server_answers import Unusable
from rlaif_cli.engines.server_dialect import LISTED
from rlaif_cli.engines.server_fleet import Doubtful, Fleet, Server
from rlaif_cli.engines.server_labels import LabelShares
from rlaif_cli.errors import EngineError, UsageError
from rlaif_cli.models.tokenizer import RemoteTokenizer

_NEXT_TO_NOTHING = 0.002  # where a server continues a reply, more than this share of unclear answers is made clear
_LOOKS = 16  # how often a server may be asked for a reply that shows what follows an unclear label


class OpenAIEngine:
    """See `Engine`. Prompts are those of `RemoteTokenizer`; so are "tokens": the texts themselves.

    Args:
        model: the name under which the servers know it.
        base_url, concurrency, retries, timeout: see `Fleet`.

    Raises:
        MissingDependency, UsageError, EngineError: see `Fleet`.
    """

    name = "openai"

    def __init__(
        self, model: str, *, base_url: Sequence[str] = (), concurrency: int, retries: int, timeout: float
    ) -> None:
        self.tokenizer = RemoteTokenizer()
        self._fleet = Fleet(model, base_url=base_url, concurrency=concurrency, retries=retries, timeout=timeout)
        self.usage, self.max_length = self._fleet.usage, self._fleet.max_length
        self._returns_logprobs = False  # then an answer without is that answer's fault, not the server's
        self._whole: set[str] = set()  # labels of several digits that were seen as one token

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        """A completion without text says why; where none has one, the request has `Failed`."""

        def ask(server: Server, request: Request) -> list[Completion]:
            found: list[Completion] = []
            while (missing := sampling.n - len(found)) > 0:  # some servers take no `n` and give one answer a call
                answer = self._fleet.create(
                    server,
                    request,
                    n=missing,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    stop=list(sampling.stop) or None,
                    seed=None if request.seed is None else request.seed + len(found),
                )
                found += [answers.completion(choice) for choice in answers.choices(answer, missing)]
            if all(completion.no_text for completion in found):
                raise Unusable(found[0].no_text, again=False)
            return found

        return self._fleet.side_by_side(ask, requests)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        """Bounds of labels that the server does not list are in `Bound`."""

        def ask(server: Server, request: Request) -> list[float]:
            if request.continuation:
                raise UsageError(
                    "a chat server does not tell the log-probs of a text that is given, which --method contrast needs",
                    hint="--method pairwise or score, or --engine vllm",
                )
            shares = LabelShares(request.choices, self._whole)
            self._look(server, request, [shares])
            if server.dialect.begins_replies:
                self._look_further(server, request, shares)
            elif not shares.settled():
                shares = self._look_again(server, request, shares)
            if fault := shares.fault():
                raise Unusable(fault, again=False)
            return shares.logprobs()

        return self._fleet.side_by_side(ask, requests)

    def _look(self, server: Server, request: Request, looks: Sequence[LabelShares], before: str = "") -> int:
        """Ask for as many replies as there are looks, and count each of those that came in one."""
        options = {"max_tokens": looks[0].tokens, "temperature": 1.0, "logprobs": True, "top_logprobs": LISTED}
        if len(looks) > 1:
            options["n"] = len(looks)
        found = answers.choices(self._fleet.create(server, request, **options), len(looks))
        for choice, shares in zip(found, looks, strict=False):
            reply = answers.completion(choice, may_be_empty=True)
            if reply.no_answer:
                raise Unusable(reply.no_answer, again=False)
            positions = answers.positions(choice)
            if not positions:
                raise self._no_logprobs(server, reply, answers.has_logprobs(choice))
            self._returns_logprobs = True
            shares.add(positions, reply.text, before)
            self._whole = self._whole | {label for label in shares.whole if len(label) > 1}
        return len(found)

    def _no_logprobs(self, server: Server, reply: Completion, given: bool) -> Doubtful:
        """An answer that is at fault by itself if another one has log-probs, and else shows what the server does."""
        what = "log-probs that cannot be read" if given else "no log-probs"
        hint = "--samples N counts sampled answers instead"
        return Doubtful(
            f"an answer with {what} (finish reason: {reply.finish_reason or 'not given'}); {hint}",
            EngineError(f"the server returns {what}", where=server.where, hint=hint),
            own=lambda done: done or self._returns_logprobs,
        )

    def _look_further(self, server: Server, request: Request, shares: LabelShares) -> None:
        """Have the server continue each unclear text, the likeliest first, until next to nothing is unclear."""
        *turns, (role, begun) = request.prompt
        if role != "begun":
            turns, begun = list(request.prompt), ""
        while not shares.settled(_NEXT_TO_NOTHING):
            text = max(shares.unclear, key=shares.unclear.__getitem__)
            joined = (begun.rstrip() if text[:1].isspace() else begun) + text
            self._look(server, replace(request, prompt=(*turns, ("begun", joined))), [shares], text)
            if not server.dialect.begins_replies:  # then this was a reply of its own, and no continuation
                raise Unusable("it does not continue a reply that was begun", again=True)

    def _look_again(self, server: Server, request: Request, shares: LabelShares) -> LabelShares:
        """Sample replies until one begins with what was unclear and shows what follows it."""
        left = _LOOKS
        while left > 0 and not shares.settled():
            looks = [LabelShares(request.choices, self._whole) for _ in range(left)]
            left -= self._look(server, request, looks)
            shares = next((look for look in looks if any(look.known.values()) and look.settled()), shares)
        return shares

    def close(self) -> None:
        self._fleet.close()
