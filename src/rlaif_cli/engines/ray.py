"""A cluster: Ray actors that each hold an ordinary engine, fed from here.

Requests leave in batches, in the order of the stream, to whichever replica has room, and come back as each batch is
done. So everything above an engine (judging, resume, order, files) is the same as on one machine. A replica that is
lost costs the batches it had; they are given to another, and a new replica is asked of the cluster in its place.

Ray's actors rather than Ray Data: there the data set owns the stream, and every stage (principles, reasoning, panels,
revisions that follow critiques) would have to be written a second time as its transformations.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif_cli.engines.base import Completion, Failed, Request, Sampling
from rlaif_cli.errors import EngineError, MissingDependency, RlaifError
from rlaif_cli.models.metadata import context_length
from rlaif_cli.models.tokenizer import AnyTokenizer, ChatTokenizer, FakeTokenizer
from rlaif_cli.ui import console

_FIRST_BATCH = 16  # requests; doubled up to the whole size, so that a short input is spread over all replicas
_AHEAD = 2  # batches a replica has at once: one it works on, and one that waits so that it never idles
_LOSSES = 3  # so many replicas may die over one batch before it is taken for the cause
_PATIENCE = 60.0  # seconds without a replica before the user is told
_PASSED_ON = ("VLLM_", "HF_", "TRANSFORMERS_", "TORCH_")  # settings of the environment that replicas get too

Batch = list[Request]


class RayEngine:
    """See `Engine`.

    Args:
        path: a checkpoint folder, at the same place on every node; None: replicas hold the fake engine.
        replicas: how many; None: as many as the cluster has room for when it is opened.
        gpus_per_replica: None: `options["tensor_parallel_size"]` where the cluster has GPUs, else 0 (it runs on CPUs).
        address: of the cluster; None: RAY_ADDRESS, else one that runs on this machine, else a new one here.
        sharing: how many models share the cluster, this one among them.
        batch: requests that a replica gets at once; what a lost one costs.
        options: of the engine that each replica holds, see `VllmEngine`.

    Raises:
        MissingDependency: Ray is not installed.
        EngineError: there is no such cluster, or none of its nodes can start the engine.
    """

    name = "ray"

    def __init__(
        self,
        path: Path | None,
        *,
        replicas: int | None = None,
        gpus_per_replica: float | None = None,
        address: str | None = None,
        batch: int = 256,
        sharing: int = 1,
        **options: Any,
    ) -> None:
        self._ray = _connect(address)
        self.tokenizer: AnyTokenizer = ChatTokenizer(path) if path else FakeTokenizer()
        self.max_length: int = options.get("max_length") or (context_length(path) if path else 1 << 20)
        self._batch = batch
        total = self._ray.cluster_resources()
        if gpus_per_replica is None:
            gpus_per_replica = options.get("tensor_parallel_size", 1) if total.get("GPU") else 0
        share = _share(total, self._ray.nodes(), replicas, gpus_per_replica, sharing)
        environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        self._worker = self._ray.remote(Worker).options(
            num_gpus=gpus_per_replica, num_cpus=share.cpus, runtime_env={"env_vars": environment}
        )
        self._asks = f"{gpus_per_replica:g} GPUs and {share.cpus} CPUs"
        if total.get("GPU", 0) < gpus_per_replica or total.get("CPU", 0) < share.cpus:
            console.warn(
                f"a replica needs {self._asks}, and the whole cluster has {total.get('GPU', 0):g} and "
                f"{total.get('CPU', 0):g}: waiting for it to grow"
            )
        self._of = (path, options)
        self._replicas = [self._start() for _ in range(share.replicas)]
        self._wait_for_one()

    def generate(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[tuple[Any, list[Completion] | Failed]]:
        return self._run("generate", requests, sampling)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float] | Failed]]:
        return self._run("logprobs", requests)

    def close(self) -> None:
        for replica in self._replicas:
            self._ray.kill(replica.actor)
        self._replicas = []

    # ------------------------------------------------------------------------------------------ the stream

    def _run(self, call: str, requests: Iterable[Request], *args: Any) -> Iterator[tuple[Any, Any]]:
        """Requests are pulled as replicas have room for them, so memory here does not grow with their number."""
        work = _Work(iter(requests), self._batch)
        given: dict[Any, tuple[Replica, Batch]] = {}  # what is under way: Ray's name for it -> whose, and what
        while True:
            for replica in [each for each in self._replicas if each.ready]:
                while len(replica.given) < _AHEAD and (batch := work.next(replica)):
                    asked = [replace(request, key=place) for place, request in enumerate(batch)]
                    name = replica.actor.run.remote(call, asked, *args)
                    given[name] = (replica, batch)
                    replica.given.add(name)
            if not given and work.ended:
                return
            for name in self._next_done([*given]):
                replica, batch = given.pop(name)
                replica.given.discard(name)
                results = self._results(name, replica)
                if results is None:
                    work.lost(batch)
                else:
                    yield from ((batch[place].key, result) for place, result in results)

    def _next_done(self, given: list[Any]) -> list[Any]:
        """What is done of that which is under way; replicas that have started since are ready after it."""
        starting = {each.started: each for each in self._replicas if not each.ready}
        while True:
            done, _ = self._ray.wait([*given, *starting], num_returns=1, timeout=_PATIENCE)
            if done:
                break
            if not given:
                console.warn(
                    f"no replica has started yet; each needs {self._asks} of the cluster (`ray status` says what there "
                    "is). Waiting; Ctrl-C keeps what was done"
                )
        for name in done:
            if name in starting:
                self._welcome(starting[name])
        return [name for name in done if name not in starting]

    def _results(self, name: Any, replica: Replica) -> list[tuple[int, Any]] | None:
        """None: the replica was lost; another takes its place."""
        try:
            found: list[tuple[int, Any]] = self._ray.get(name)
            return found
        except self._ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except self._ray.exceptions.RayError as error:
            self._replace(replica, error)
            return None

    # ------------------------------------------------------------------------------------------ the replicas

    def _start(self) -> Replica:
        actor = self._worker.remote(*self._of)
        return Replica(actor, actor.ready.remote())

    def _wait_for_one(self) -> None:
        while not any(each.ready for each in self._replicas):
            self._next_done([])

    def _welcome(self, replica: Replica) -> None:
        """A replica has started, or cannot: then the others go on without it, unless it was the last."""
        try:
            self._ray.get(replica.started)
            replica.ready = True
        except self._ray.exceptions.RayTaskError as error:
            self._replicas.remove(replica)
            cause = _cause(error)
            if not self._replicas:
                raise cause from error
            console.warn(f"a replica cannot start, {len(self._replicas)} go on without it: {cause}")
        except self._ray.exceptions.RayError as error:
            self._replace(replica, error)

    def _replace(self, replica: Replica, error: Exception) -> None:
        if replica not in self._replicas:
            return  # the other batch it had said so before
        self._replicas.remove(replica)
        self._replicas.append(self._start())
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        console.warn(f"a replica was lost; what it had is done again by another ({reason.strip()})")


class Worker:
    """What stands behind a replica, in a process of its own on some node: an ordinary engine."""

    def __init__(self, path: Path | None, options: dict[str, Any]) -> None:
        from rlaif_cli.engines import FAKE, open_engine

        self._failed: RlaifError | None = None
        # Several replicas may share a machine's cores: Ray says by OMP_NUM_THREADS how many this one has.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        try:
            if path is not None and not path.is_dir():
                node = os.uname().nodename
                raise EngineError(
                    f"the checkpoint {path} is not on the node {node}", hint="put it where every node sees it"
                )
            self._engine = open_engine("vllm", path, **options) if path else open_engine(FAKE, None)
        except RlaifError as error:  # told by `ready`: an actor whose start fails says little
            self._failed = error

    def ready(self) -> None:
        if self._failed:
            raise self._failed

    def run(self, call: str, requests: Batch, *args: Any) -> list[tuple[int, Any]]:
        return list(getattr(self._engine, call)(requests, *args))


@dataclass(eq=False)
class Replica:
    """The driver's side of one."""

    actor: Any
    started: Any  # Ray's name for the answer that it has
    ready: bool = False
    batches: int = 0  # given to it so far
    given: set[Any] = field(default_factory=set)


class _Work:
    """The stream in batches; those of lost replicas come first."""

    def __init__(self, requests: Iterator[Request], size: int) -> None:
        self._requests, self._size = requests, size
        self._again: deque[Batch] = deque()
        self._losses: dict[int, int] = {}
        self.ended = False

    def next(self, replica: Replica) -> Batch | None:
        if self._again:
            return self._again.popleft()
        batch = list(islice(self._requests, min(self._size, _FIRST_BATCH << min(replica.batches, 20))))
        replica.batches += 1
        self.ended = not batch
        return batch or None

    def lost(self, batch: Batch) -> None:
        """Raises: EngineError: replica after replica died over it."""
        self._again.append(batch)
        self._losses[id(batch)] = losses = self._losses.get(id(batch), 0) + 1
        if losses >= _LOSSES:
            raise EngineError(
                f"{losses} replicas died, one after the other, over the same {len(batch)} requests",
                hint="what was done is kept; Ray's logs on the nodes say why (memory?): --engine-memory, --max-length",
            )
        self.ended = False


@dataclass(frozen=True)
class _Share:
    replicas: int
    cpus: int


def _share(total: dict[str, float], nodes: list[Any], replicas: int | None, gpus: float, sharing: int) -> _Share:
    """How many replicas, and the cores of each: on CPUs they share all there are, beside GPUs one feeds them."""
    alive = sum(bool(node.get("Alive")) for node in nodes) or 1
    room = int(total.get("GPU", 0) // gpus) if gpus else alive
    count = replicas or max(1, room // sharing)
    return _Share(count, 1 if gpus else max(1, int(total.get("CPU", 1) // (count * sharing))))


def _cause(error: Any) -> Exception:
    """What a replica raised, where it is one of ours; else its last line."""
    if isinstance(error.cause, RlaifError):
        return error.cause
    last = [line for line in str(error).splitlines() if line.strip()][-1]
    return EngineError(f"a replica failed: {last.strip()}", hint="what was done is kept; run the same command again")


def _connect(address: str | None) -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning about a default of tomorrow
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(f"Ray is not installed ({error})", hint="pip install 'rlaif[ray]'") from error
    if ray.is_initialized():
        return ray
    try:
        _knock(address or os.environ.get("RAY_ADDRESS") or "")
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=None)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, …: Ray raises whatever its layers raise
        what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineError(
            f"no Ray cluster can be reached or started: {what}",
            where=address or os.environ.get("RAY_ADDRESS"),
            hint="`ray start --head` on one machine, `ray start --address HEAD:6379` on the others, then "
            "--ray-address HEAD:6379; where the cluster has a token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ) from error
    return ray


def _knock(address: str) -> None:
    """Ray itself tries for minutes. Raises: OSError: nobody listens there."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
