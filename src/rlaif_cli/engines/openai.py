"""Any OpenAI-compatible chat server: vLLM's own `serve`, hosted APIs.

Requests go out side by side; the official client waits and tries again (back-off with jitter, `Retry-After`). What
fails for good comes back as `Failed` and stops nobody else; a server that answers nothing at all stops the run.

Of several servers each request goes to the one with the least under way, and one that fails there goes to the next. A
server that answers nothing at all is left out from then on; the last one stops the run.

What such a server cannot do, and what is done about it:

- It lists the log-probs of its likeliest next tokens alone. A label that is not among them gets a bound, not a guess:
  it cannot be likelier than the last one listed.
- It cannot score a text that is given (contrast judges), and tells no token ids.
- Most cannot go on with a reply that was begun. vLLM's can, and is asked to; for others the begun reply is left out,
  since the question already asks for the number alone.
"""

from __future__ import annotations

import functools
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rlaif_cli.chat import RemoteTokenizer
from rlaif_cli.console import warn
from rlaif_cli.engines.base import Bound, Completion, Failed, Request, Sampling, Usage
from rlaif_cli.errors import EngineError, MissingDependency, UsageError

KEY = "OPENAI_API_KEY"
_LISTED = 20  # the most next tokens that servers list
_SILENCE = 20  # failures in a row, with nothing done before or between, after which a server counts as dead
_SETTLED = {400, 413, 422}  # the server will say the same to the same request
_REFUSED = {401, 403, 404}  # it will say the same to every request


@dataclass
class _Server:
    """One server.

    Attributes:
        begins_replies: it goes on with a reply that was begun.
        max_length: its context, tokens; 0: not told.
        failures: in a row.
        fault: why it is left out.
    """

    client: Any
    where: str
    begins_replies: bool = False
    max_length: int = 0
    under_way: int = 0
    failures: int = 0
    fault: EngineError | None = None


_Ask = Callable[[_Server, Request], Any]


class OpenAIEngine:
    """See `Engine`. Prompts are those of `RemoteTokenizer`; so are "tokens": the texts themselves.

    Args:
        model: the name under which the servers know it.
        base_url: "http://host:port/v1" of each server; none: the client's own default.
        concurrency: requests under way at the same time at each server.
        retries, timeout: of one request; seconds.

    Raises:
        MissingDependency: the package `openai` is not installed.
        EngineError: a server does not answer, or does not know the model.
    """

    name = "openai"

    def __init__(
        self, model: str, *, base_url: Sequence[str] = (), concurrency: int, retries: int, timeout: float
    ) -> None:
        self._openai = _import_openai()
        self.tokenizer = RemoteTokenizer()
        self.usage = Usage()
        self._model = model
        # A key is read from the environment alone; servers of one's own need none, and the client insists on some.
        key = os.environ.get(KEY) or ("none" if base_url else None)
        if key is None:
            raise EngineError(f"{KEY} is not set", hint="export it, or give --base-url for a server without keys")
        self._lock = threading.Lock()
        self._tells_logprobs = False  # then an answer without is that answer's fault, not the server's
        connect = functools.partial(self._openai.OpenAI, api_key=key, max_retries=retries, timeout=timeout)
        self._servers = [
            _Server(connect(base_url=address), shown_address(address) if address else "the default server")
            for address in (*base_url,) or (None,)
        ]
        self._concurrency = concurrency * len(self._servers)
        for server in self._servers:
            server.fault = self._look_at_the_model(server)
        if any(server.fault for server in self._servers):
            raise self._faults()
        self.max_length = min((server.max_length for server in self._servers if server.max_length), default=0)

    def _faults(self) -> EngineError:
        """What is wrong with all the servers that do not do their work."""
        faults = [server.fault for server in self._servers if server.fault is not None]
        if len(faults) == 1:
            return faults[0]
        what = f"{len(faults)} of {len(self._servers)} servers do not do their work"
        return EngineError(what, hint=faults[-1].hint, faults=[str(fault) for fault in faults])

    def _look_at_the_model(self, server: _Server) -> EngineError | None:
        try:
            listed = {model.id: model for model in server.client.models.list()}
        except self._openai.NotFoundError:
            return None  # a server without a list of models
        except self._openai.OpenAIError as error:
            return _dead(server, error)
        found = listed.get(self._model)
        if found is None:
            return EngineError(
                f"the server does not know the model '{self._model}'",
                where=server.where,
                hint=f"it has: {', '.join(sorted(listed)[:10])}",
            )
        server.begins_replies = found.owned_by == "vllm"
        server.max_length = int(getattr(found, "max_model_len", 0) or 0)
        return None

    # ------------------------------------------------------------------------------------------ the two calls

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        def ask(server: _Server, request: Request) -> list[Completion]:
            found: list[Completion] = []
            while (missing := sampling.n - len(found)) > 0:  # some servers take no `n` and give one answer a call
                answer = self._create(
                    server,
                    request,
                    n=missing,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    stop=list(sampling.stop) or None,
                    seed=None if request.seed is None else request.seed + len(found),
                )
                found += [
                    Completion(choice.message.content or "", finish_reason=_reason(choice.finish_reason))
                    for choice in answer.choices[:missing]
                ]
            return found

        return self._side_by_side(ask, requests)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        """Bounds of labels that the server does not list are in `Bound`."""

        def ask(server: _Server, request: Request) -> list[float]:
            if request.continuation:
                raise UsageError(
                    "a chat server does not tell the log-probs of a text that is given, which --method contrast needs",
                    hint="--method pairwise or score, or --engine vllm",
                )
            answer = self._create(server, request, max_tokens=1, temperature=1.0, logprobs=True, top_logprobs=_LISTED)
            content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
            if not content or not content[0].top_logprobs:
                if self._tells_logprobs or answer.choices[0].finish_reason == "content_filter":
                    reason = answer.choices[0].finish_reason
                    raise _Unusable(f"an answer without log-probs (finish reason: {reason})", again=False)
                raise EngineError(
                    "the server tells no log-probs",
                    where=server.where,
                    hint="--samples N counts sampled answers instead",
                )
            self._tells_logprobs = True
            return listed_logprobs([(t.token, t.logprob) for t in content[0].top_logprobs], request.choices)

        return self._side_by_side(ask, requests)

    def close(self) -> None:
        for server in self._servers:
            server.client.close()

    # ------------------------------------------------------------------------------------------ one request

    def _create(self, server: _Server, request: Request, **options: Any) -> Any:
        messages, begun = list(request.prompt), None
        if messages[-1][0] == "begun":
            begun = messages.pop()[1]
        turns = [{"role": role, "content": content} for role, content in messages]
        extra = {}
        if begun and server.begins_replies:
            turns.append({"role": "assistant", "content": begun})
            extra = {"continue_final_message": True, "add_generation_prompt": False}
        elif begun and (said := begun.rpartition("\n")[0]):  # what comes before the begun line was said by the judge
            turns += [
                {"role": "assistant", "content": said},
                {"role": "user", "content": "Reply with the number alone."},
            ]
        answer = server.client.chat.completions.create(
            model=self._model,
            messages=turns,
            extra_body=extra or None,
            **{k: v for k, v in options.items() if v is not None},
        )
        if not isinstance(answer, self._openai.types.chat.ChatCompletion) or not answer.choices:
            raise _Unusable("an answer without choices", again=True)
        with self._lock:
            server.failures = 0
            if answer.usage is not None:
                self.usage.add(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return answer

    def _guarded(self, ask: _Ask, request: Request) -> Any:
        """What a server answers; where one fails that another might not, of the next."""
        found: Any = Failed("no server is left", True)
        tried: list[_Server] = []
        while (server := self._least_busy(tried)) is not None:
            try:
                found = self._asked(ask, server, request)
            finally:
                with self._lock:
                    server.under_way -= 1
            if not (isinstance(found, Failed) and found.again):
                break
            tried.append(server)
        return found

    def _least_busy(self, tried: Sequence[_Server]) -> _Server | None:
        with self._lock:
            left = [server for server in self._servers if server.fault is None and server not in tried]
            server = min(left, key=lambda each: each.under_way, default=None)
            if server is not None:
                server.under_way += 1
            return server

    def _asked(self, ask: _Ask, server: _Server, request: Request) -> Any:
        try:
            return ask(server, request)
        except self._openai.APIStatusError as error:
            if error.status_code in _REFUSED:
                with self._lock:
                    return self._leave_out(server, error)
            return self._failed(server, error, again=error.status_code not in _SETTLED)
        except self._openai.APIConnectionError as error:  # timeouts are among these
            return self._failed(server, error, again=True)
        except json.JSONDecodeError as error:
            return self._failed(server, _Unusable(f"an answer that is no JSON ({error})", again=True), again=True)
        except _Unusable as error:
            return self._failed(server, error, again=error.again)

    def _failed(self, server: _Server, error: Exception, again: bool) -> Failed:
        if again:
            with self._lock:
                server.failures += 1
                if server.failures >= _SILENCE:
                    return self._leave_out(server, error)
        return Failed(f"the server: {_told(error)}", again)

    def _leave_out(self, server: _Server, error: Exception) -> Failed:
        """Raises: EngineError: it was the last one."""
        known = server.fault is not None
        server.fault = server.fault or _dead(server, error)
        if all(each.fault for each in self._servers):
            raise self._faults() from error
        if not known:
            warn(f"{server.where} does not do its work and is left out: {_told(error)}")
        return Failed(f"the server: {_told(error)}", True)

    def _side_by_side(self, ask: _Ask, requests: Iterable[Request]) -> Iterator[tuple[Any, Any]]:
        """Keep `concurrency` requests under way at each server; yield what is done, as it is done."""
        waiting, running = iter(requests), dict[Future[Any], Request]()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="rlaif-openai")
        try:
            while True:
                while len(running) < self._concurrency and (request := next(waiting, None)) is not None:
                    running[pool.submit(self._guarded, ask, request)] = request
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    request = running.pop(future)
                    yield request.key, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def listed_logprobs(listed: list[tuple[str, float]], choices: Iterable[Any]) -> list[float]:
    """The log-prob of each choice; of those that are not listed a `Bound`.

    None of these can be likelier than the least likely token that is listed, and all together not than what the listed
    ones leave over: so each gets its share of that, and the bounds add up to the bound of their sum.
    """
    found, wanted = dict(listed), list(choices)
    missing = sum(choice not in found for choice in wanted)
    left = max(0.0, 1.0 - sum(math.exp(logprob) for logprob in found.values()))
    share = min(math.exp(min(found.values())), left / max(1, missing))
    bound = Bound(math.log(share) if share > 0 else -math.inf)
    return [found.get(choice, bound) for choice in wanted]


def _dead(server: _Server, error: Exception) -> EngineError:
    return EngineError(
        f"the server does not do its work: {_told(error)}",
        where=server.where,
        hint="what was done is kept; mend the server and run the same command again to go on",
    )


def _reason(finish_reason: str | None) -> str:
    return finish_reason or "stop"


class _Unusable(Exception):
    """A reply that is no answer; `again`: asking again may help."""

    def __init__(self, message: str, again: bool) -> None:
        super().__init__(message)
        self.again = again


def shown_address(url: str) -> str:
    """Without a name, password or query, which may be secrets."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _told(error: Exception) -> str:
    """One line, and nothing that might hold a key."""
    text = " ".join(str(getattr(error, "message", error)).split())
    key = os.environ.get(KEY)
    return (text.replace(key, "…") if key else text)[:300]


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingDependency(
            f"the package openai is not installed ({error})", hint="pip install 'rlaif[openai]'"
        ) from error
    return openai
