"""The servers that answer requests: which one is asked, how often, and when one, or all of them, cannot be used.

Requests go out side by side; the official client waits and tries again (back-off with jitter, `Retry-After`). What
fails for good comes back as `Failed` and stops nobody else; a server that answers nothing at all stops the run, and so
does one that refuses what every request has.

Of several servers each request goes to the one with the least in flight, and one that fails there goes to the next. A
server that answers nothing at all is left out from then on; the last one stops the run.
"""

from __future__ import annotations

import functools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from rlaif_cli.engines import server_answers as answers
from rlaif_cli.engines import server_errors as errors
from rlaif_cli.engines.base import Failed, Request, Usage
from rlaif_cli.engines.server_answers import SETTLED, Unusable
from rlaif_cli.engines.server_dialect import Dialect, sent_names
from rlaif_cli.errors import EngineError, MissingDependency
from rlaif_cli.ui.console import warn, warn_once

_SILENCE = 20  # failures in a row, with nothing done before or between, after which a server counts as dead
_ALIKE = 5  # requests that fail in the same way before any succeeds, after which every one is taken to fail so
_REFUSED = {401, 403, 404}  # status codes that a server will give to every request


@dataclass
class Server:
    """One server.

    Attributes:
        max_length: its context, tokens; 0: not told.
        failures: in a row.
        fault: why it is left out.
    """

    client: Any
    where: str
    dialect: Dialect = field(default_factory=Dialect)
    max_length: int = 0
    in_flight: int = 0
    failures: int = 0
    fault: EngineError | None = None


class Doubtful(Exception):
    """A fault that is either this request's own or every request's: what others bring decides.

    Args:
        reason: why the request failed, if it is its own fault.
        error: what ends the run, if it is every request's.
        own: whether it is known to be the request's own; told whether all others are done.
    """

    def __init__(self, reason: str, error: EngineError, own: Callable[[bool], bool]) -> None:
        super().__init__(reason)
        self.reason, self.error, self.own = reason, error, own


Ask = Callable[[Server, Request], Any]


class Fleet:
    """Servers that know one model.

    Args:
        model: the name under which they know it.
        base_url: "http://host:port/v1" of each server; none: the client's own default.
        concurrency: requests in flight at the same time at each server.
        retries, timeout: of one request; seconds.

    Attributes:
        usage: what they counted.
        max_length: the smallest of their contexts, tokens; 0: not told.

    Raises:
        MissingDependency: the package `openai` is not installed.
        UsageError: the environment names a key, an address or a proxy that cannot be used.
        EngineError: a server does not answer, or does not know the model.
    """

    def __init__(self, model: str, *, base_url: Sequence[str], concurrency: int, retries: int, timeout: float) -> None:
        self._openai = _import_openai()
        self.usage = Usage()
        self._model = model
        self._retries = retries
        # A key is read from the environment alone; servers of one's own need none, and the client insists on some.
        key = os.environ.get(errors.KEY) or ("none" if base_url else None)
        if key is None:
            raise EngineError(
                f"{errors.KEY} is not set", hint="export it, or give --base-url for a server without keys"
            )
        errors.check_environment(bool(base_url))
        self._lock = threading.Lock()
        self._answered = False  # until then, what is refused may be refused to every request
        connect = functools.partial(self._openai.OpenAI, api_key=key, max_retries=retries, timeout=timeout)
        try:
            self._servers = [
                Server(connect(base_url=address), errors.shown_address(address) if address else "the default server")
                for address in (*base_url,) or (None,)
            ]
        except Exception as error:  # of the HTTP library, which knows no common one: proxies, certificates
            raise errors.no_connection(error) from error
        self._concurrency = concurrency * len(self._servers)
        for server in self._servers:
            server.fault = self._look_at_the_model(server)
        if any(server.fault for server in self._servers):
            raise self._faults()
        self.max_length = min((server.max_length for server in self._servers if server.max_length), default=0)

    def _faults(self) -> EngineError:
        """What is wrong with all the servers that fail."""
        faults = [server.fault for server in self._servers if server.fault is not None]
        if len(faults) == 1:
            return faults[0]
        what = f"{len(faults)} of {len(self._servers)} servers are failing"
        return EngineError(what, hint=faults[-1].hint, faults=[str(fault) for fault in faults])

    def _look_at_the_model(self, server: Server) -> EngineError | None:
        """Whether it has the model; where it has no list that can be read, the first request will tell."""
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
                f"the server does not know the model '{self._model}'",
                where=server.where,
                hint=f"it has: {', '.join(sorted(listed)[:10])}",
            )
        server.dialect.begins_replies = found.get("owned_by") == "vllm"
        server.max_length = answers.context_length(found)
        return None

    def close(self) -> None:
        for server in self._servers:
            server.client.close()

    def create(self, server: Server, request: Request, **options: Any) -> dict[str, Any]:
        """The JSON of an answer.

        Raises:
            Unusable: it is none. EngineError: the server refuses a part that no request can do without.
        """
        while True:
            body = server.dialect.body(request, options)
            try:
                sent = server.client.chat.completions.with_raw_response.create(model=self._model, **body)
                break
            except self._openai.APIStatusError as error:
                if error.status_code not in SETTLED:
                    raise
                self._refused(server, request, options, body, error)
        answer = answers.parsed(sent.http_response.content)
        answers.choices(answer)
        with self._lock:
            server.failures = 0
            self._answered = True
            self.usage.add(*answers.usage(answer))
        return answer

    def _refused(
        self, server: Server, request: Request, options: dict[str, Any], body: dict[str, Any], error: Exception
    ) -> None:
        """Returns where the same can be asked in another way.

        Raises:
            EngineError: no server takes what was refused. Exception: `error`, where it is this request's own.
        """
        name = errors.refused_parameter(error, sent_names(body))
        with self._lock:
            if server.dialect.body(request, options) != body:
                return  # another thread has learned it meanwhile
            instead = server.dialect.learn(name, body, errors.words_of(error)) if name else None
        if name is None or (name == "system" and instead is None):
            raise error
        if instead is None:
            raise _Stop(errors.refusal(server.where, name, error)) from error
        warn_once(f"{server.where}: {instead}")

    def _guarded(self, ask: Ask, request: Request) -> Any:
        """What a server answers; where one fails that another might not, of the next."""
        found: Any = Failed("no server is left", True)
        tried: list[Server] = []
        while (server := self._least_busy(tried)) is not None:
            try:
                found = self._asked(ask, server, request)
            finally:
                with self._lock:
                    server.in_flight -= 1
            if not (isinstance(found, Failed) and found.again):
                break
            tried.append(server)
        return found

    def _least_busy(self, tried: Sequence[Server]) -> Server | None:
        with self._lock:
            left = [server for server in self._servers if server.fault is None and server not in tried]
            server = min(left, key=lambda each: each.in_flight, default=None)
            if server is not None:
                server.in_flight += 1
            return server

    def _asked(self, ask: Ask, server: Server, request: Request) -> Any:
        for attempt in range(self._retries + 1):
            try:
                return self._tried(ask, server, request)
            except Unusable as error:
                if not error.again or attempt == self._retries:
                    return self._failed(server, error, again=error.again)
            time.sleep(min(8.0, 0.5 * 2**attempt) * (1 - 0.25 * random.random()))  # as the client waits
        raise AssertionError

    def _tried(self, ask: Ask, server: Server, request: Request) -> Any:
        try:
            return ask(server, request)
        except Doubtful as fault:
            return fault
        except _Stop as stop:
            with self._lock:
                return self._leave_out(server, stop.error)
        except self._openai.APIStatusError as error:
            reason = f"the server: {errors.told(error)}"
            if errors.is_own(error) and error.status_code in SETTLED | {403}:
                return Failed(reason, False)
            if error.status_code in _REFUSED:
                with self._lock:
                    return self._leave_out(server, errors.failing(server.where, error))
            if error.status_code in SETTLED:
                what = f"the server refuses every request: {errors.told(error)}"
                return Doubtful(reason, EngineError(what, where=server.where), own=lambda _: self._answered)
            return self._failed(server, error, again=True)
        except self._openai.APIConnectionError as error:  # timeouts are among these
            return self._failed(server, error, again=True)

    def _failed(self, server: Server, error: Exception, again: bool) -> Failed:
        if again:
            with self._lock:
                server.failures += 1
                if server.failures >= _SILENCE:
                    return self._leave_out(server, errors.failing(server.where, error))
        return Failed(f"the server: {errors.told(error)}", again)

    def _leave_out(self, server: Server, fault: EngineError) -> Failed:
        """Raises: EngineError: it was the last one."""
        known = server.fault is not None
        server.fault = server.fault or fault
        if all(each.fault for each in self._servers):
            raise self._faults() from fault
        if not known:
            warn(f"{server.where} is left out: {fault.what}")
        return Failed(fault.what, True)

    def side_by_side(self, ask: Ask, requests: Iterable[Request]) -> Iterator[tuple[Any, Any]]:
        """Keep `concurrency` requests in flight at each server; yield what is done, as it is done."""
        waiting, running = iter(requests), dict[Future[Any], Request]()
        held: list[tuple[Any, Doubtful]] = []
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="rlaif-openai")
        try:
            while True:
                while len(running) < self._concurrency and (request := next(waiting, None)) is not None:
                    running[pool.submit(self._guarded, ask, request)] = request
                if not running:
                    yield from self._released(held, done=True)
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    request, found = running.pop(future), future.result()
                    if isinstance(found, Doubtful):
                        held.append((request.key, found))
                    else:
                        yield request.key, found
                yield from self._released(held, done=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _released(self, held: list[tuple[Any, Doubtful]], done: bool) -> Iterator[tuple[Any, Failed]]:
        """Those of the requests held back whose fault is known to be their own.

        Raises:
            EngineError: every request would fail like those that are left.
        """
        sorted_out = [(key, fault, fault.own(done)) for key, fault in held]
        held[:] = [(key, fault) for key, fault, own in sorted_out if not own]
        yield from ((key, Failed(fault.reason, False)) for key, fault, own in sorted_out if own)
        if held:
            alike = {re.sub(r"\d+", "", fault.reason) for _, fault in held}
            if done or len(held) >= (_ALIKE if len(alike) == 1 else _SILENCE):
                raise held[-1][1].error


class _Stop(Exception):
    """A server takes no request as it must be."""

    def __init__(self, error: EngineError) -> None:
        super().__init__(str(error))
        self.error = error


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingDependency(
            f"the package openai is not installed ({error})", hint="pip install 'rlaif[openai]'"
        ) from error
    return openai
