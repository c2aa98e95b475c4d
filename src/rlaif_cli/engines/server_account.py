"""What an output pays servers for: its kept answers, its budget and its batches.

Every request of a fleet goes through the account of the output that it works for, if that has one (`--batch`,
`--max-cost`, or answers of an earlier run with them). The account answers from what is kept; what is missing is sent
at once, or taken for a batch. So a stage runs in the same way with batches: it just ends with rows that are not
answered yet, and the next run finds their answers kept.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.config.naming import option
from rlaif_cli.data.paths import file_of
from rlaif_cli.engines import server_answers as answers
from rlaif_cli.engines.base import Engine
from rlaif_cli.engines.server_batch import Attempts, BatchQueue
from rlaif_cli.engines.server_budget import Budget, Prices
from rlaif_cli.engines.server_journal import Batch, Journal, journal_path, open_batches
from rlaif_cli.engines.server_kept import OK, KeptAnswers, answers_path
from rlaif_cli.errors import EngineError, Paused, UsageError
from rlaif_cli.ui.text import counted

P = ParamSpec("P")
T = TypeVar("T")
_POLL_SECONDS = 30.0  # between two looks at a batch


class Account:
    """The account of one output. Thread-safe.

    Args:
        before: tokens and USD that the output cost without an account.

    Raises:
        UsageError: `--max-cost` cannot be kept, since earlier answers have no token count.
    """

    def __init__(self, config: EngineConfig, output: Path, before: Mapping[str, float]) -> None:
        self._config, self._output = config, output
        self.kept = KeptAnswers(answers_path(output))
        self._journal = Journal(journal_path(output)) if config.batch else None
        self._queues: dict[str, BatchQueue] = {}
        self._budget: Budget | None = None
        prices = prices_of(config)
        if config.max_cost is not None and prices is not None:
            if uncounted := int(before.get("uncounted", 0)) + self.kept.usage.uncounted:
                raise UsageError(
                    f"the cost of {uncounted} earlier answers is unknown, so {option('max_cost')} cannot be kept",
                    where=str(output),
                    hint=f"continue without {option('max_cost')}, or use {option('overwrite')} to start over",
                )
            spent = before.get("cost", prices.cost(before.get("tokens_in", 0), before.get("tokens_out", 0)))
            self._budget = Budget(config.max_cost, prices, spent, self.kept.usage)

    def connect(
        self, model: str, client: Any, where: str, attempts: Attempts, on_answer: Callable[[dict[str, Any]], None]
    ) -> None:
        """Collect the model's batches, and take new ones, if this account uses batches.

        Args:
            attempts: those of this process.
            on_answer: called with each answer that a batch brings.
        """
        if self._journal is not None:
            self._queues[model] = BatchQueue(
                model,
                client,
                where,
                size=self._config.batch_requests,
                retries=self._config.retries,
                attempts=attempts,
                on_answer=on_answer,
                journal=self._journal,
                kept=self.kept,
                budget=self._budget,
            )

    def answer(
        self, model: str, where: str, body: dict[str, Any], seed: int | None, send: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The answer to a request of the result that this thread works on (`KeptAnswers.begin`).

        Args:
            send: sends the request.

        Raises:
            NotNow: its answer comes with a batch, or it is too expensive for the budget.
            openai.APIStatusError: it was refused in a batch.
        """
        key = self.kept.key(model, body, seed)
        if (found := self.kept.get(key)) is not None:
            status, kept = found
            if status != OK:
                raise _refusal(status, kept)
            return kept
        if self._queues:
            raise self._queues[model].want(key, body)
        if self._budget is None:
            answer = send()
            self.kept.add(key, OK, answer)
            return answer
        with self._budget.reserved(body):
            answer = send()
            self.kept.add(key, OK, answer)
        if None in answers.usage(answer):
            raise EngineError(
                f"the server does not report how many tokens an answer has, which {option('max_cost')} needs",
                where=where,
                hint=f"continue without {option('max_cost')}",
            )
        return answer

    def check(self, rows: str) -> None:
        """Call this when a stage has unanswered rows, or may have.

        Args:
            rows: what the stage has done so far, e.g. "12 rows are done".

        Raises:
            Paused: they are waiting for a batch, or for a higher budget.
            EngineError: a batch cannot be submitted or collected.
        """
        for queue in self._queues.values():
            queue.submit()
        if ended := self._wait():
            raise Paused("batches have ended", hint="rerun the same command to collect them", again=ended)
        batches = [batch for queue in self._queues.values() for batch in queue.open]
        what, hints = list[str](), list[str]()
        if batches:
            what.append(f"{_size(batches)} at {batches[0].server}")
            hints.append(f"rerun the same command to collect the answers, without {option('overwrite')}")
        if self._budget is not None and self._budget.exhausted:
            what.append(f"the next request might pass {option('max_cost')} {self._budget.limit:g}")
            hints.append(f"a rerun with a higher {option('max_cost')} resumes")
        if what:
            spent = f"; {self._budget.spent:.6g} USD spent" if self._budget is not None else ""
            raise Paused(f"{', and '.join(what)}; {rows}{spent}", hint="; ".join(hints))

    def _wait(self) -> bool:
        """Wait for `--batch-wait` seconds at most; returns whether the answers of a batch were collected."""
        deadline = time.monotonic() + self._config.batch_wait
        interval = min(_POLL_SECONDS, self._config.batch_wait / 20)
        while (left := deadline - time.monotonic()) > 0 and any(queue.open for queue in self._queues.values()):
            time.sleep(min(interval, left))
            if any([queue.collect() for queue in self._queues.values()]):
                return True
        return False

    def close(self) -> None:
        self.kept.close()
        if self._journal is not None:
            self._journal.close()


def _size(batches: Sequence[Batch]) -> str:
    requests = counted(sum(len(batch.keys) for batch in batches), "request")
    names = ", ".join(batch.id or "being created" for batch in batches[:3])
    return f"{requests} in batch {names}" + (f" and {len(batches) - 3} more" if len(batches) > 3 else "")


def _refusal(status: int, body: dict[str, Any]) -> Exception:
    """A refusal in a batch, as the client would have raised it."""
    import openai

    # Versions of the client differ in their HTTP library, so this is only what an error reads of a response.
    response: Any = SimpleNamespace(status_code=status, request=None, headers={}, text=json.dumps(body))
    return openai.APIStatusError(f"Error code: {status}", response=response, body=body.get("error", body))


def prices_of(config: EngineConfig) -> Prices | None:
    if config.price_in is None or config.price_out is None:
        return None
    return Prices(config.price_in, config.price_out)


def start_over(config: EngineConfig) -> None:
    """With `--overwrite`, forget the answers of an earlier run; call this before the output is opened.

    Raises:
        UsageError: a batch is still at its server, and would be paid for without being used.
    """
    output = file_of(getattr(config, "output", "-"))
    if output is None or not config.overwrite:
        return
    if batches := open_batches(output):
        raise UsageError(
            f"{_size(batches)} at {batches[0].server} would be discarded by {option('overwrite')}",
            where=str(output),
            hint=f"run the command without {option('overwrite')} to collect; to give them up, delete "
            f"{journal_path(output)}",
        )
    discard(output)


def discard(output: Path) -> None:
    """Remove the answers and the journal of a finished output."""
    answers_path(output).unlink(missing_ok=True)
    journal_path(output).unlink(missing_ok=True)


@contextmanager
def open_account(config: EngineConfig, before: Mapping[str, float]) -> Iterator[Account | None]:
    """The account of a config's output; None if it needs none.

    Raises:
        UsageError: a batch is at its server, and `--batch` is missing.
    """
    output = file_of(getattr(config, "output", "-"))
    if output is None:
        yield None
        return
    if not config.batch and (batches := open_batches(output)):
        raise UsageError(
            f"{_size(batches)} at {batches[0].server} must be collected first",
            where=str(output),
            hint=f"add {option('batch')} to collect; to give them up, delete {journal_path(output)}",
        )
    if not (config.batch or config.max_cost is not None or answers_path(output).exists()):
        yield None
        return
    account = Account(config, output, before)
    try:
        yield account
    finally:
        account.close()


@contextmanager
def attached(engines: Sequence[Engine], account: Account | None) -> Iterator[None]:
    """Have the engines that ask servers work for an account."""
    servers = [attach for engine in engines if account is not None and (attach := getattr(engine, "attach", None))]
    try:
        for attach in servers:
            attach(account)
        yield
    finally:
        for attach in servers:
            attach(None)


def until_paused(stage: Callable[P, T]) -> Callable[P, T]:
    """Run a stage again as long as batches end while it waits for them (`--batch-wait`)."""

    @functools.wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return stage(*args, **kwargs)
            except Paused as paused:
                if not paused.again:
                    raise
                config: Any = args[0]
                args = (config.model_copy(update={"overwrite": False}), *args[1:])  # type: ignore[assignment]

    return run
