"""Send requests to one or several servers: load balancing, retries, and dropping servers that fail.

Requests run concurrently; the official client retries (back-off with jitter, `Retry-After`). A request that fails for
good is yielded as `Failed` and does not affect others; a server that does not answer at all, or refuses what every
request contains, ends the run.

With several servers, each request goes to the one with the fewest in flight, and if it fails there to the next. A
server that does not answer at all is dropped; when the last one is dropped, the run ends.
"""

from __future__ import annotations

import functools
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from rlaif_cli.config.base import shown_address
from rlaif_cli.config.naming import option
from rlaif_cli.engines import server_answers as answers
from rlaif_cli.engines import server_errors as errors
from rlaif_cli.engines.base import Failed, Request, Usage
from rlaif_cli.engines.server_account import Account
from rlaif_cli.engines.server_answers import PERMANENT, Unusable
from rlaif_cli.engines.server_batch import Attempts
from rlaif_cli.engines.server_budget import NotNow
from rlaif_cli.engines.server_client import AmbiguousFailure, Server, Stop, import_openai
from rlaif_cli.engines.server_dialect import Dialect, sent_names
from rlaif_cli.errors import EngineError
from rlaif_cli.ui import messages

_MAX_FAILURES = 20  # consecutive failures after which a server counts as dead
_MAX_IDENTICAL_FAILURES = 5  # of the first requests, after which all are assumed to fail
_MAX_IDENTITIES = 40  # different values that are counted one by one
_REFUSES_ALL = {401, 403, 404, 501}  # status codes that a server would return for every request


Ask = Callable[[Server, Request], Any]
Check = Callable[[dict[str, Any]], object]
CountTokens = Callable[[dict[str, Any]], tuple[int | None, int | None]]


class Fleet:
    """Servers of one model.

    Args:
        model: its name on the servers.
        base_url: "http://host:port/v1" of each server; empty: the client's default.
        concurrency: requests in flight at each server.
        retries, timeout: of one request; seconds.
        template_arguments: variables of the model's chat template.

    Attributes:
        usage: the tokens that they reported.
        identity: how many answers had which `model` and `system_fingerprint`, by (field, value).
        max_length: the smallest of their contexts, tokens; 0: not reported.

    Raises:
        MissingDependency: the package `openai` is not installed.
        UsageError: the environment has an invalid key, address or proxy.
        EngineError: a server does not answer, or does not have the model.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: Sequence[str],
        concurrency: int,
        retries: int,
        timeout: float,
        template_arguments: Mapping[str, Any],
    ) -> None:
        self._openai = import_openai()
        self.usage = Usage()
        self.identity: Counter[tuple[str, str]] = Counter()
        self._model = model
        self._retries = retries
        # The key is only read from the environment; self-hosted servers need none, but the client requires one.
        key = os.environ.get(errors.KEY) or ("none" if base_url else None)
        if key is None:
            raise EngineError(
                f"{errors.KEY} is not set",
                hint=f"export it, or set {option('base_url')} for a server that needs no key",
            )
        errors.check_environment(bool(base_url))
        self._lock = threading.Lock()
        self._account: Account | None = None
        self._attempts = Attempts()
        self._answered = False  # until then, a refusal may apply to every request
        connect = functools.partial(self._openai.OpenAI, api_key=key, max_retries=retries, timeout=timeout)
        try:
            self._servers = [
                Server(
                    connect(base_url=address),
                    shown_address(address) if address else "the default server",
                    Dialect(template_arguments=template_arguments),
                )
                for address in (*base_url,) or (None,)
            ]
        except Exception as error:  # the HTTP library has no common base class: proxies, certificates
            raise errors.no_connection(error) from error
        self._concurrency = concurrency * len(self._servers)
        for server in self._servers:
            server.failure = self._check_model(server)
        if any(server.failure for server in self._servers):
            raise self._failures()
        self.max_length = min((server.max_length for server in self._servers if server.max_length), default=0)

    def _failures(self) -> EngineError:
        """One error for all servers that fail."""
        failed = [server.failure for server in self._servers if server.failure is not None]
        if len(failed) == 1:
            return failed[0]
        what = f"{len(failed)} of {len(self._servers)} servers are failing"
        return EngineError(what, hint=failed[-1].hint, errors=[str(failure) for failure in failed])

    def _check_model(self, server: Server) -> EngineError | None:
        """Check that a server has the model; without a readable list, the first request will show it."""
        try:
            listed = answers.model_list(server.client.models.with_raw_response.list().http_response.content)
        except self._openai.APIConnectionError as error:
            return errors.failing(server.where, error)
        except self._openai.OpenAIError:
            return None
        if listed is None:
            return None
        found = listed.get(self._model, listed.get(f"models/{self._model}"))
        if found is None:
            return EngineError(
                f"the server does not have the model '{self._model}'",
                where=server.where,
                hint=f"it has: {', '.join(sorted(listed)[:10])}",
            )
        server.dialect.continues_prefill = found.get("owned_by") == "vllm"
        server.max_length = answers.context_length(found)
        return None

    def attach(self, account: Account | None) -> None:
        """Work for an output that has an account, until called again."""
        self._account = account
        if account is not None:
            first = self._servers[0]  # batches have one server
            account.connect(self._model, first.client, first.where, self._attempts, self._identify)

    def close(self) -> None:
        for server in self._servers:
            server.client.close()

    def create(self, server: Server, request: Request, **options: Any) -> dict[str, Any]:
        """Send a request; returns the JSON of the answer.

        Raises:
            Unusable: the answer is invalid. EngineError: the server refuses a part that every request needs.
        """
        while True:
            body = server.dialect.body(request, options)
            try:
                answer = self._answer(server, request, body)
                break
            except self._openai.APIStatusError as error:
                if error.status_code not in PERMANENT:
                    raise
                self._refused(server, request, options, body, error)
        self._works(server)
        return answer

    def post(self, server: Server, path: str, body: dict[str, Any], check: Check) -> dict[str, Any]:
        """Send a decision to a path of a server; returns the JSON of the answer.

        Args:
            check: raises `Unusable` if this is no answer.
        """
        from httpx import Response

        sent = server.client.post(path, cast_to=Response, body={"model": self._model, **body})
        answer = self._read(sent.content, check, answers.decision_usage)
        self._works(server)
        return answer

    def _works(self, server: Server) -> None:
        with self._lock:
            server.failures = 0
            self._answered = True

    def _answer(self, server: Server, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            sent = server.client.chat.completions.with_raw_response.create(model=self._model, **body)
            return self._read(sent.http_response.content, answers.choices, answers.usage)

        if self._account is None:
            return send()
        return self._account.answer(self._model, server.where, body, request.seed, send)

    def _read(self, content: bytes, check: Check, usage: CountTokens) -> dict[str, Any]:
        """The JSON of a new answer, which is counted."""
        answer = answers.parsed(content)
        check(answer)
        with self._lock:
            self.usage.add(*usage(answer))
        self._identify(answer)
        return answer

    def _identify(self, answer: dict[str, Any]) -> None:
        """Count what a new answer says of its server."""
        with self._lock:
            for name, value in answers.identity(answer).items():
                known = (name, value) in self.identity or len(self.identity) < _MAX_IDENTITIES
                self.identity[name, value if known else "others"] += 1

    def _refused(
        self, server: Server, request: Request, options: dict[str, Any], body: dict[str, Any], error: Exception
    ) -> None:
        """Return if an equivalent request can be sent.

        Raises:
            EngineError: the refused part has no equivalent. Exception: `error`, if it concerns only this request.
        """
        name = errors.refused_parameter(error, sent_names(body))
        with self._lock:
            if server.dialect.body(request, options) != body:
                return  # another thread has adapted it meanwhile
            instead = server.dialect.adapt(name, body, errors.all_text(error)) if name else None
        if name is None or (name == "system" and instead is None):
            raise error
        if instead is None:
            raise Stop(errors.refusal(server.where, name, error)) from error
        messages.warn_once(f"{server.where}: {instead}")

    def _try_servers(self, ask: Ask, request: Request) -> Any:
        """The answer of a server; on a failure that another might not have, of the next one."""
        found: Any = Failed("no server is left", True)
        tried: list[Server] = []
        while (server := self._least_busy(tried)) is not None:
            try:
                found = self._ask_with_retries(ask, server, request)
            finally:
                with self._lock:
                    server.in_flight -= 1
            if not (isinstance(found, Failed) and found.retryable):
                break
            tried.append(server)
        return found

    def _least_busy(self, tried: Sequence[Server]) -> Server | None:
        with self._lock:
            left = [server for server in self._servers if server.failure is None and server not in tried]
            server = min(left, key=lambda each: each.in_flight, default=None)
            if server is not None:
                server.in_flight += 1
            return server

    def _ask_with_retries(self, ask: Ask, server: Server, request: Request) -> Any:
        for attempt in range(self._retries + 1):
            try:
                return self._ask_once(ask, server, request)
            except Unusable as error:
                if error.retryable:
                    self._discard()
                if not error.retryable or attempt == self._retries:
                    return self._failed(server, error, retryable=error.retryable)
            time.sleep(min(8.0, 0.5 * 2**attempt) * (1 - 0.25 * random.random()))  # the client's own back-off
        raise AssertionError

    def _ask_once(self, ask: Ask, server: Server, request: Request) -> Any:
        if self._account is not None:
            self._account.kept.begin()
        try:
            return ask(server, request)
        except NotNow as missing:
            return Failed(str(missing), True)
        except AmbiguousFailure as failure:
            return self._with_keys(failure)
        except Stop as stop:
            if self._account is not None:
                self._account.kept.discard_refusals()
            with self._lock:
                return self._drop(server, stop.error)
        except self._openai.APIStatusError as error:
            reason = f"the server: {errors.describe(error)}"
            if errors.is_own(error) and error.status_code in PERMANENT | {403}:
                return Failed(reason, False)
            if error.status_code in _REFUSES_ALL:
                with self._lock:
                    return self._drop(server, errors.failing(server.where, error))
            if error.status_code in PERMANENT:
                what = f"the server refuses every request: {errors.describe(error)}"
                every = EngineError(what, where=server.where)
                return self._with_keys(AmbiguousFailure(reason, every, own=lambda _: self._answered))
            return self._failed(server, error, retryable=True)
        except self._openai.APIConnectionError as error:  # timeouts are among these
            return self._failed(server, error, retryable=True)

    def _with_keys(self, failure: AmbiguousFailure) -> AmbiguousFailure:
        if self._account is not None:
            failure.keys = self._account.kept.asked()
        return failure

    def _discard(self) -> None:
        """Request again what this thread was answered last, which was unusable."""
        if self._account is not None:
            self._account.kept.discard(self._account.kept.asked()[-1:])

    def _failed(self, server: Server, error: Exception, retryable: bool) -> Failed:
        if retryable:
            with self._lock:
                server.failures += 1
                if server.failures >= _MAX_FAILURES:
                    return self._drop(server, errors.failing(server.where, error))
        return Failed(f"the server: {errors.describe(error)}", retryable)

    def _drop(self, server: Server, failure: EngineError) -> Failed:
        """Stop using a server. Raises: EngineError: it was the last one."""
        known = server.failure is not None
        server.failure = server.failure or failure
        if all(each.failure for each in self._servers):
            raise self._failures() from failure
        if not known:
            messages.warn(f"{server.where} is no longer used: {failure.what}")
        return Failed(failure.what, True)

    def run_concurrently(self, ask: Ask, requests: Iterable[Request]) -> Iterator[tuple[Any, Any]]:
        """Keep `concurrency` requests in flight at each server; yield results as they finish."""
        waiting, running = iter(requests), dict[Future[Any], Request]()
        held: list[tuple[Any, AmbiguousFailure]] = []
        pool = ThreadPoolExecutor(
            self._concurrency, "rlaif-openai", initializer=messages.report_to, initargs=(messages.current(),)
        )
        try:
            while True:
                while len(running) < self._concurrency and (request := next(waiting, None)) is not None:
                    running[pool.submit(self._try_servers, ask, request)] = request
                if not running:
                    yield from self._decided(held, done=True)
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    request, found = running.pop(future), future.result()
                    if isinstance(found, AmbiguousFailure):
                        held.append((request.key, found))
                    else:
                        yield request.key, found
                yield from self._decided(held, done=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _decided(self, held: list[tuple[Any, AmbiguousFailure]], done: bool) -> Iterator[tuple[Any, Failed]]:
        """Yield the held requests that are known to fail on their own.

        Raises:
            EngineError: every request would fail like the remaining ones.
        """
        checked = [(key, failure, failure.own(done)) for key, failure in held]
        held[:] = [(key, failure) for key, failure, own in checked if not own]
        yield from ((key, Failed(failure.reason, False)) for key, failure, own in checked if own)
        if held:
            alike = {re.sub(r"\d+", "", failure.reason) for _, failure in held}
            if done or len(held) >= (_MAX_IDENTICAL_FAILURES if len(alike) == 1 else _MAX_FAILURES):
                if self._account is not None:
                    self._account.kept.discard_refusals()
                    self._account.kept.discard([key for _, failure in held for key in failure.keys])
                raise held[-1][1].error
