"""Measure this machine for a plan: each model with each set of options, in a separate process."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rlaif_cli.errors import EngineError
from rlaif_cli.machine import GIB
from rlaif_cli.pipeline.plan import throughput
from rlaif_cli.pipeline.plan.throughput import Rate
from rlaif_cli.ui import messages
from rlaif_cli.ui.console import Console


def calibrate(work: Iterable[Any]) -> None:
    """Measure and store the rates of `Work` that are not known yet.

    Raises:
        EngineError: a measurement failed.
    """
    from rlaif_cli.engines import CLUSTER

    known = throughput.known()
    here = [each for each in work if each.engine != CLUSTER]
    for each in {each.key: each for each in here if each.key not in known}.values():
        messages.say(f"measuring {each.key}")
        throughput.remember(each.key, _measure_in_process(each))


def _measure_in_process(work: Any) -> Rate:
    """In a separate process, so that peak memory is its own and everything is freed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(work, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = "the process died"
    process.join()
    if isinstance(found, str):
        raise EngineError(f"measurement failed: {found}", where=work.key, hint="run the stage by itself first")
    return found


def _measure(work: Any, answer: Any) -> None:
    try:
        console = Console(sys.stdout, sys.stderr)
        console.guard_stdout()
        with messages.reported_to(console):
            rate = _training(work) if work.trains else _engine(work)
        answer.send(replace(rate, memory=round(_peak_gib(), 2)))
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")


def _engine(work: Any) -> Rate:
    from rlaif_cli.models.resolve import resolve_model
    from rlaif_cli.pipeline.plan.measure_engine import measure

    return measure(work.engine, resolve_model(work.model), **dict(work.options))


def _training(work: Any) -> Rate:
    from rlaif_cli.pipeline.plan.measure_training import measure

    return measure(work.model, **dict(work.options))


def _peak_gib() -> float:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
