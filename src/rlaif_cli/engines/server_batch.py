"""Requests to one model through a server's Batch API, in the form that OpenAI documents.

https://developers.openai.com/api/reference/resources/batches: a file with one request per line is uploaded (`purpose:
batch`), a batch of it is created for `/v1/chat/completions`, and hours later its answers are in an output file and its
failures in an error file, in any order, under the `custom_id` of their requests. A batch that expires or is cancelled
has the answers that were finished. A file has at most 50,000 requests, 200 MB and one model.

A request that fails or expires is simply still wanted when the stage runs again, and goes into the next batch.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.engines import server_answers as answers
from rlaif_cli.engines import server_errors as errors
from rlaif_cli.engines.server_answers import PERMANENT, Unusable, field
from rlaif_cli.engines.server_budget import Budget, NotNow, most_tokens
from rlaif_cli.engines.server_journal import Batch, Journal
from rlaif_cli.engines.server_kept import OK, KeptAnswers
from rlaif_cli.errors import EngineError, UsageError
from rlaif_cli.ui.messages import warn

_ENDPOINT = "/v1/chat/completions"
_MAX_BYTES = 100 << 20  # of a file: half of what is allowed
_ENDED = ("completed", "expired", "cancelled")
_SETTLED = 10.0  # seconds after which a batch whose creation was interrupted is on the server's list, or nowhere
_LISTED = 1000  # batches of the server's list that are searched, newest first


@dataclass
class Attempts:
    """What this process has tried; it outlives a queue.

    Attributes:
        submitted: how often each request was in a batch.
        failure: why requests last failed.
    """

    submitted: Counter[str] = dataclasses.field(default_factory=Counter)
    failure: str = ""


class BatchQueue:
    """The requests to one model, and their batches. Thread-safe.

    Args:
        client: the official client of the server.
        where: the server's address.
        size: requests of a batch at most.
        retries: how often this process asks again for a request that failed, before it leaves that to the next one.
        on_answer: called with each answer.
        budget: what a batch may cost at most is reserved in it.

    Raises:
        UsageError: the open batches are at another server.
        EngineError: the server has no Batch API, or refuses a batch.
    """

    def __init__(
        self,
        model: str,
        client: Any,
        where: str,
        *,
        size: int,
        retries: int,
        attempts: Attempts,
        on_answer: Callable[[dict[str, Any]], None],
        journal: Journal,
        kept: KeptAnswers,
        budget: Budget | None,
    ) -> None:
        import openai

        self._openai = openai
        self._model, self._client, self._where = model, client, where
        self._size, self._retries, self._attempts = size, retries, attempts
        self._on_answer = on_answer
        self._journal, self._kept, self._budget = journal, kept, budget
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[bytes, int, int]] = {}  # key -> line, most tokens in and out
        self._bytes = 0  # of those lines
        self._in_flight: set[str] = set()
        for batch in self.open:
            if batch.server != where:
                raise UsageError(
                    f"a batch of this output is at {batch.server}, not at {where}",
                    hint=f"set {option('base_url')} to collect it",
                )
            self._take(batch)
        self.collect()

    @property
    def open(self) -> list[Batch]:
        return self._journal.open(self._model)

    def want(self, key: str, body: dict[str, Any]) -> NotNow:
        """Take a request for the next batch, unless a batch has it already; returns why its answer is not there."""
        with self._lock:
            stopped = self._budget is not None and self._budget.exhausted
            if not stopped and key not in self._wanted and key not in self._in_flight:
                if self._attempts.submitted[key] > self._retries:
                    return NotNow(self._attempts.failure or "its answer cannot be used")
                line = self._line(key, body)
                self._wanted[key] = (line, *most_tokens(body))
                self._bytes += len(line)
                if len(self._wanted) >= self._size or self._bytes >= _MAX_BYTES:
                    self._submit()
        return NotNow("its answer comes with a batch")

    def _line(self, key: str, body: dict[str, Any]) -> bytes:
        plain = {name: value for name, value in body.items() if name != "extra_body"}
        request = {"model": self._model, **plain, **body.get("extra_body", {})}
        return json.dumps({"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": request}).encode() + b"\n"

    # -------------------------------------------------------------------------------------------------- submit

    def submit(self) -> None:
        """Submit what is wanted, as far as the budget allows.

        Raises:
            EngineError: the server refuses it, or cannot be reached.
        """
        with self._lock:
            self._submit()

    def _submit(self) -> None:
        keys, most_in, most_out = self._affordable()
        if not keys:
            return
        batch = self._journal.submitting(self._model, self._where, keys, most_in, most_out)
        self._take(batch)
        self._attempts.submitted.update(keys)
        content = b"".join(self._wanted.pop(key)[0] for key in keys)
        self._bytes -= len(content)
        try:
            file = self._client.files.create(file=(f"rlaif-{batch.name}.jsonl", content), purpose="batch").id
        except self._openai.OpenAIError as error:
            self._drop(batch, "the upload failed")
            raise self._failing(error) from error
        self._journal.uploaded(batch, file)
        self._create(batch, file)

    def _affordable(self) -> tuple[list[str], int, int]:
        """The first of the wanted requests that the budget allows together, and the most tokens they can have."""
        keys, most_in, most_out = list[str](), 0, 0
        for key, (_, each_in, each_out) in self._wanted.items():
            if self._budget and not self._budget.fits(self._cost(most_in + each_in, most_out + each_out)):
                self._budget.exhausted = True
                break
            keys.append(key)
            most_in, most_out = most_in + each_in, most_out + each_out
        return keys, most_in, most_out

    def _cost(self, most_in: int, most_out: int) -> float:
        assert self._budget is not None
        return self._budget.prices.cost(most_in * self._journal.rate, most_out)

    def _create(self, batch: Batch, file: str) -> None:
        """Not retried: whether a failed call has created the batch is found out by the next run."""
        try:
            created = self._client.with_options(max_retries=0).batches.create(
                input_file_id=file, endpoint=_ENDPOINT, completion_window="24h", metadata={"rlaif": batch.name}
            )
        except self._openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code != 408:
                self._drop(batch, "it was refused")
            raise self._failing(error) from error
        except self._openai.OpenAIError as error:
            raise self._failing(error) from error
        self._journal.submitted(batch, created.id)

    def _take(self, batch: Batch) -> None:
        """Count a batch's requests as in flight."""
        self._in_flight.update(batch.keys)
        if self._budget:
            batch.reserved = self._cost(batch.most_in, batch.most_out)
            self._budget.reserve(batch.reserved)

    def _release(self, batch: Batch) -> None:
        self._in_flight.difference_update(batch.keys)
        if self._budget:
            self._budget.release(batch.reserved)

    def _drop(self, batch: Batch, reason: str) -> None:
        self._journal.dropped(batch, reason)
        self._release(batch)

    # ------------------------------------------------------------------------------------------------- collect

    def collect(self) -> bool:
        """Keep the answers of all batches that have ended; returns whether there was one.

        Raises:
            EngineError: the server refused a batch, does not know it any more, or answered none of its requests.
        """
        ended = False
        with self._lock:
            for batch in self.open:
                if batch.id is None and not self._found(batch):
                    self._drop(batch, "it was never created")
                    continue
                remote = self._retrieved(batch)
                if remote.status == "failed":
                    self._drop(batch, "the server refused it")
                    raise self._refused(batch, remote)
                if remote.status in _ENDED:
                    self._collect(batch, remote)
                    ended = True
        return ended

    def _found(self, batch: Batch) -> bool:
        """Look for a batch whose creation was interrupted in the server's list."""
        while True:
            asked = time.time()
            try:
                for place, remote in enumerate(self._client.batches.list(limit=100)):
                    named = (remote.metadata or {}).get("rlaif") == batch.name
                    if named or (batch.file is not None and remote.input_file_id == batch.file):
                        self._journal.submitted(batch, remote.id)
                        return True
                    if place >= _LISTED:
                        break
            except self._openai.OpenAIError as error:
                raise self._failing(error) from error
            if asked - batch.started >= _SETTLED:
                return False
            time.sleep(max(0.1, min(_SETTLED, batch.started + _SETTLED - asked)))

    def _retrieved(self, batch: Batch) -> Any:
        try:
            return self._client.batches.retrieve(batch.id)
        except self._openai.OpenAIError as error:
            raise self._failing(error) from error

    def _collect(self, batch: Batch, remote: Any) -> None:
        before, keys, failed = vars(self._kept.usage).copy(), set(batch.keys), Counter[str]()
        for file in filter(None, (remote.output_file_id, remote.error_file_id)):
            for line in self._lines(file):
                key = line.get("custom_id")
                if key in keys and key not in self._kept and (why := self._keep(key, line)):
                    failed[why] += 1
        missing = [key for key in batch.keys if key not in self._kept]
        after = vars(self._kept.usage)
        counted = len(keys) - len(missing) - (after["uncounted"] - before["uncounted"])
        self._journal.collected(batch, counted, after["tokens_in"] - before["tokens_in"], len(missing))
        self._release(batch)
        if missing:
            reason = failed.most_common(1)[0][0] if failed else f"the batch is {remote.status}"
            self._attempts.failure = reason
            what = f"{len(missing)} of {len(keys)} requests of batch {batch.id} failed"
            if remote.status == "completed" and not any(after.values()):  # nothing was ever answered
                raise EngineError(f"{what}: {reason}", where=self._where)
            warn(f"{what} and go into the next batch; the most common reason: {reason}")

    def _lines(self, file: str) -> Iterator[dict[str, Any]]:
        try:
            content = self._client.files.content(file).content
        except self._openai.OpenAIError as error:
            raise self._failing(error) from error
        for text in content.split(b"\n"):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):  # its request counts as failed
                continue
            if isinstance(line, dict):
                yield line

    def _keep(self, key: str, line: dict[str, Any]) -> str | None:
        """Keep the answer in a line of the output or error file; returns why there is none."""
        status, body = field(line, "response", "status_code"), field(line, "response", "body")
        if status == OK and isinstance(body, dict):
            try:
                answers.choices(answers.parsed(json.dumps(body).encode()))
            except Unusable as error:
                return str(error)
        elif status not in PERMANENT or not isinstance(body, dict):
            said = errors.server_text(line.get("error")) or errors.server_text(body) or "no reason given"
            return said if status in (None, OK) else f"Error code: {status} - {said}"
        self._kept.add(key, status, body)
        if status == OK:
            self._on_answer(body)
        return None

    def _refused(self, batch: Batch, remote: Any) -> EngineError:
        data = getattr(remote.errors, "data", None) or []
        said = [f"{each.message} ({each.code})" for each in data if each.message]
        hint = f"finished work is kept; lower {option('batch_requests')} if the server limits queued tokens"
        return EngineError(
            f"the server refused batch {batch.id}: {said[0] if said else 'no reason given'}",
            where=self._where,
            hint=hint,
        )

    def _failing(self, error: Exception) -> EngineError:
        status = getattr(error, "status_code", None)
        hint = (
            "the server may have no Batch API: it needs /v1/files and /v1/batches"
            if status in (404, 405, 501)
            else "finished work is kept; rerun the same command to resume"
        )
        return EngineError(f"the Batch API is failing: {errors.describe(error)}", where=self._where, hint=hint)
