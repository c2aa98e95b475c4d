"""Training in several processes: started here for `--num-processes`, or by torchrun or `accelerate launch`.

The processes form one run: only one writes to the terminal, and if one fails, all end. torch's own launcher starts and
monitors them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import DATA_FIELDS
from rlaif_cli.config.naming import option
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EngineError, RlaifError, UsageError
from rlaif_cli.ui import console

RESUME_HINT = "the last saved state is kept; run the same command again to resume"
_GRACE = 15  # seconds that processes get to exit before they are killed


class AlreadyReported(RlaifError):
    """A process of the run failed and has printed why; `what` is anything still to add."""

    def __init__(self, exit_code: int, what: str = "") -> None:
        super().__init__(what)
        self.exit_code = exit_code


def launched_processes() -> int:
    """How many processes torchrun or accelerate has started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def silence_unless_main() -> None:
    """Only the main process writes to the terminal."""
    console.quiet = launched_processes() > 1 and os.environ["RANK"] != "0"


def run(stage: str, config: TrainConfig, work: Callable[[Any], int]) -> int:
    """Run `work(config)` in every process, starting them for `--num-processes`; returns its exit code.

    Raises:
        UsageError: the run cannot use this number of processes.
        AlreadyReported: one failed and printed why.
        EngineError: one was killed.
    """
    launched = launched_processes()
    if config.dry_run or max(launched, config.num_processes) == 1:
        return work(config)
    _check(config, launched)
    if launched == 1:
        start(stage, config)
        return 0
    return run_as_worker(config, work)


def _check(config: TrainConfig, launched: int) -> None:
    if launched > 1 and config.num_processes not in (1, launched):
        what = (
            f"{option('num_processes')} is {config.num_processes}, but {launched} processes have already been launched"
        )
        raise UsageError(what, hint=f"omit {option('num_processes')}")
    for name in DATA_FIELDS:
        if getattr(config, name, None) == "-":
            raise UsageError("several processes cannot share stdin", hint="give a file")
    if isinstance(config, PPOConfig) and config.prompts_per_step < max(launched, config.num_processes):
        what = "every process needs at least one prompt per step"
        raise UsageError(
            f"{what}: {option('prompts_per_step')} is below the number of processes", hint="use fewer processes"
        )


# ------------------------------------------------------------------------------------------------ in each process


def run_as_worker(config: TrainConfig, work: Callable[[Any], int], *, watched: bool = False) -> int:
    """Run `work(config)` as one of several processes.

    Args:
        watched: `start` launched this process and reports failures that it cannot report itself.
    """
    from rlaif_cli.train.parallel.distributed import Rendezvous, is_lost_peer, leave

    rendezvous = Rendezvous()
    console.first_to_fail = rendezvous.first_to_fail
    rendezvous.join()
    try:
        code = work(config)
        leave()
    except KeyboardInterrupt:
        if watched:
            raise AlreadyReported(EXIT_INTERRUPTED) from None
        raise
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        time.sleep(1)  # let the launcher notice the process that failed first
        if watched:
            raise AlreadyReported(EXIT_FAILED) from error
        raise EngineError("another process of this run has died", hint=RESUME_HINT) from error
    return code


# ------------------------------------------------------------------------------------------------ from outside


def start(stage: str, config: TrainConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Run a stage in `config.num_processes` processes on this machine; returns the summary's numbers.

    Args:
        quiet: print only errors.

    Raises:
        AlreadyReported: one failed and printed why.
        EngineError: one was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from rlaif_cli.data.atomic import read_json

    _check(config, 1)
    worker = ["-m", "rlaif_cli.worker", stage, config.model_dump_json(), str(int(quiet)), str(int(console.debug))]
    with tempfile.TemporaryDirectory(prefix="rlaif-") as logs, _launching(config.num_processes):
        launcher = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.num_processes,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            run_id=os.path.basename(logs),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            shutdown_timeout=_GRACE,
        )
        try:
            elastic_launch(launcher, sys.executable)(*worker)
        except ChildFailedError as error:
            raise _failure(failed.exitcode for failed in error.failures.values()) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise AlreadyReported(128 + error.sigval) from None
    return dict(read_json(Path(config.output) / "manifest.json", results=dict)["results"])


def _failure(codes: Iterator[int]) -> RlaifError:
    """The error for exit codes (negative: signals); SIGTERM is how the launcher ends the remaining processes."""
    found = [code for code in codes if code != -signal.SIGTERM]
    if killed := [-code for code in found if code < 0]:
        name = signal.Signals(killed[0]).name
        why = " (probably out of memory)" if killed[0] == signal.SIGKILL else ""
        return EngineError(f"a process of this run was killed by {name}{why}", hint=RESUME_HINT)
    return (
        AlreadyReported(max(found))
        if found
        else EngineError("the processes of this run were terminated", hint=RESUME_HINT)
    )


@contextmanager
def _launching(count: int) -> Iterator[None]:
    """Divide the CPU threads and silence the launcher's log; restore both, and its signal handlers, afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, (os.cpu_count() or 1) // count))
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        for number, handler in handlers.items():
            signal.signal(number, handler)
