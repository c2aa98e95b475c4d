"""A Ray cluster: actors that each run an ordinary engine, driven from this process.

Requests are sent in batches, in stream order, to whichever replica is free, and results come back batch by batch. So
everything above the engine (judging, resuming, order, files) is the same as on one machine. If a replica is lost, its
batches are reassigned and a new replica is requested from the cluster.

Ray actors rather than Ray Data: there the data set owns the stream, and every stage (principles, reasoning, panels,
revisions after critiques) would have to be rewritten as its transformations.
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

from rlaif_cli.config.naming import option
from rlaif_cli.engines.base import Completion, Failed, Request, Sampling
from rlaif_cli.errors import EngineError, MissingDependency, RlaifError
from rlaif_cli.models.metadata import context_length
from rlaif_cli.models.tokenizer import AnyTokenizer, ChatTokenizer, FakeTokenizer
from rlaif_cli.ui import console

_FIRST_BATCH = 16  # requests; doubled up to the full size, so that a short input is spread over all replicas
_BATCHES_PER_REPLICA = 2  # one that it computes, and one queued so that it never idles
_MAX_LOSSES = 3  # replicas that may die on one batch before the batch is considered the cause
_WARN_SECONDS = 60.0  # without a replica before the user is warned
_FORWARDED = ("VLLM_", "HF_", "TRANSFORMERS_", "TORCH_")  # environment variables forwarded to replicas

Batch = list[Request]


class RayEngine:
    """See `Engine`.

    Args:
        path: a checkpoint folder, the same path on every node; None: replicas run the fake engine.
        replicas: how many; None: as many as fit the cluster when it is opened.
        gpus_per_replica: None: `options["tensor_parallel_size"]` where the cluster has GPUs, else 0 (CPUs only).
        address: of the cluster; None: RAY_ADDRESS, else one running on this machine, else a new local one.
        sharing: how many models share the cluster, including this one.
        batch: requests sent to a replica together; these are recomputed if it is lost.
        options: of the engine in each replica, see `VllmEngine`.

    Raises:
        MissingDependency: Ray is not installed.
        EngineError: the cluster cannot be reached, or none of its nodes can start the engine.
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
        share = _allocate(total, self._ray.nodes(), replicas, gpus_per_replica, sharing)
        environment = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
        self._worker = self._ray.remote(Worker).options(
            num_gpus=gpus_per_replica, num_cpus=share.cpus, runtime_env={"env_vars": environment}
        )
        self._resources = f"{gpus_per_replica:g} GPUs and {share.cpus} CPUs"
        if total.get("GPU", 0) < gpus_per_replica or total.get("CPU", 0) < share.cpus:
            console.warn(
                f"a replica needs {self._resources}, but the whole cluster has {total.get('GPU', 0):g} and "
                f"{total.get('CPU', 0):g}: waiting for it to grow"
            )
        self._worker_args = (path, options)
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
        """Requests are pulled as replicas become free, so memory use here does not grow with their number."""
        work = _BatchQueue(iter(requests), self._batch)
        in_flight: dict[Any, tuple[Replica, Batch]] = {}  # in flight: Ray's reference -> (replica, batch)
        while True:
            for replica in [each for each in self._replicas if each.ready]:
                while len(replica.in_flight) < _BATCHES_PER_REPLICA and (batch := work.next(replica)):
                    asked = [replace(request, key=place) for place, request in enumerate(batch)]
                    name = replica.actor.run.remote(call, asked, *args)
                    in_flight[name] = (replica, batch)
                    replica.in_flight.add(name)
            if not in_flight and work.ended:
                return
            for name in self._next_done([*in_flight]):
                replica, batch = in_flight.pop(name)
                replica.in_flight.discard(name)
                results = self._results(name, replica)
                if results is None:
                    work.lost(batch)
                else:
                    yield from ((batch[place].key, result) for place, result in results)

    def _next_done(self, in_flight: list[Any]) -> list[Any]:
        """Wait for batches in flight and return the finished ones; marks replicas that have started as ready."""
        starting = {each.started: each for each in self._replicas if not each.ready}
        while True:
            done, _ = self._ray.wait([*in_flight, *starting], num_returns=1, timeout=_WARN_SECONDS)
            if done:
                break
            if not in_flight:
                console.warn(
                    f"no replica has started yet; each needs {self._resources} of the cluster (`ray status` shows what "
                    "it has). Waiting; Ctrl-C keeps finished work"
                )
        for name in done:
            if name in starting:
                self._on_started(starting[name])
        return [name for name in done if name not in starting]

    def _results(self, name: Any, replica: Replica) -> list[tuple[int, Any]] | None:
        """The results of a batch; None: the replica was lost and is replaced."""
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
        actor = self._worker.remote(*self._worker_args)
        return Replica(actor, actor.ready.remote())

    def _wait_for_one(self) -> None:
        while not any(each.ready for each in self._replicas):
            self._next_done([])

    def _on_started(self, replica: Replica) -> None:
        """Mark a replica as ready; if it failed to start, continue without it, unless it was the last."""
        try:
            self._ray.get(replica.started)
            replica.ready = True
        except self._ray.exceptions.RayTaskError as error:
            self._replicas.remove(replica)
            cause = _cause(error)
            if not self._replicas:
                raise cause from error
            console.warn(f"a replica cannot start; continuing with the other {len(self._replicas)}: {cause}")
        except self._ray.exceptions.RayError as error:
            self._replace(replica, error)

    def _replace(self, replica: Replica, error: Exception) -> None:
        if replica not in self._replicas:
            return  # already replaced, reported by its other batch
        self._replicas.remove(replica)
        self._replicas.append(self._start())
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        console.warn(f"a replica was lost; its batches are reassigned ({reason.strip()})")


class Worker:
    """The remote side of a replica: an ordinary engine in its own process on some node."""

    def __init__(self, path: Path | None, options: dict[str, Any]) -> None:
        from rlaif_cli.engines import FAKE, open_engine

        self._failed: RlaifError | None = None
        # Several replicas may share a machine's cores: Ray sets OMP_NUM_THREADS to this one's number.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        try:
            if path is not None and not path.is_dir():
                node = os.uname().nodename
                raise EngineError(
                    f"the checkpoint {path} is not on the node {node}",
                    hint="put it on storage that every node can read",
                )
            self._engine = open_engine("vllm", path, **options) if path else open_engine(FAKE, None)
        except RlaifError as error:  # reported by `ready`: Ray hides the reason if an actor's constructor fails
            self._failed = error

    def ready(self) -> None:
        if self._failed:
            raise self._failed

    def run(self, call: str, requests: Batch, *args: Any) -> list[tuple[int, Any]]:
        return list(getattr(self._engine, call)(requests, *args))


@dataclass(eq=False)
class Replica:
    """The driver's side of a replica."""

    actor: Any
    started: Any  # Ray's reference to the result of `ready`
    ready: bool = False
    batches: int = 0  # sent to it so far
    in_flight: set[Any] = field(default_factory=set)


class _BatchQueue:
    """Splits the stream into batches; those of lost replicas come first."""

    def __init__(self, requests: Iterator[Request], size: int) -> None:
        self._requests, self._size = requests, size
        self._lost_batches: deque[Batch] = deque()
        self._losses: dict[int, int] = {}
        self.ended = False

    def next(self, replica: Replica) -> Batch | None:
        if self._lost_batches:
            return self._lost_batches.popleft()
        batch = list(islice(self._requests, min(self._size, _FIRST_BATCH << min(replica.batches, 20))))
        replica.batches += 1
        self.ended = not batch
        return batch or None

    def lost(self, batch: Batch) -> None:
        """Put a batch of a lost replica back. Raises: EngineError: several replicas died on it."""
        self._lost_batches.append(batch)
        self._losses[id(batch)] = losses = self._losses.get(id(batch), 0) + 1
        if losses >= _MAX_LOSSES:
            raise EngineError(
                f"{losses} replicas died one after another on the same {len(batch)} requests",
                hint="finished work is kept; see Ray's logs on the nodes (memory? try "
                f"{option('engine_memory')}, {option('max_length')})",
            )
        self.ended = False


@dataclass(frozen=True)
class _Allocation:
    replicas: int
    cpus: int


def _allocate(
    total: dict[str, float], nodes: list[Any], replicas: int | None, gpus: float, sharing: int
) -> _Allocation:
    """The number of replicas and the cores of each: on CPUs they share all cores, with GPUs each gets one core."""
    alive = sum(bool(node.get("Alive")) for node in nodes) or 1
    capacity = int(total.get("GPU", 0) // gpus) if gpus else alive
    count = replicas or max(1, capacity // sharing)
    return _Allocation(count, 1 if gpus else max(1, int(total.get("CPU", 1) // (count * sharing))))


def _cause(error: Any) -> Exception:
    """The exception of a replica if it is an RlaifError; else its last line."""
    if isinstance(error.cause, RlaifError):
        return error.cause
    last = [line for line in str(error).splitlines() if line.strip()][-1]
    return EngineError(
        f"a replica failed: {last.strip()}", hint="finished work is kept; rerun the same command to resume"
    )


def _connect(address: str | None) -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a future default
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(f"Ray is not installed ({error})", hint="pip install 'rlaif[ray]'") from error
    if ray.is_initialized():
        return ray
    try:
        _check_reachable(address or os.environ.get("RAY_ADDRESS") or "")
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=None)
    except Exception as error:  # Ray raises many types: ConnectionError, RuntimeError, ValueError, …
        what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineError(
            f"no Ray cluster can be reached or started: {what}",
            where=address or os.environ.get("RAY_ADDRESS"),
            hint="run `ray start --head` on one machine and `ray start --address HEAD:6379` on the others, then use "
            f"{option('ray_address')} HEAD:6379; if the cluster needs a token, set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN",
        ) from error
    return ray


def _check_reachable(address: str) -> None:
    """Fail early, since Ray itself retries for minutes. Raises: OSError: nothing listens at the address."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
