"""rlaif plan"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rlaif_cli.cli.options import SET_HELP, Debug, SectionedCommand, epilog
from rlaif_cli.config.base import OUTPUT
from rlaif_cli.ui.console import Console

# What each phase of `cluster.Forecast` means, and how to shorten it.
LIMITS = {
    "start": "starting engines",
    "reading": "prefill: use shorter prompts, a smaller judge or more GPUs",
    "sampling": "decoding: use shorter or fewer responses, or more GPUs",
    "tokens": "decoding latency: use more --prompts-per-step and fewer --steps; more GPUs do not help",
    "learning": "training: use more GPUs, and steps large enough for them",
    "feeding": "the process that feeds the GPUs: use `data shard` and one process per shard (`drivers`)",
}


def run(
    console: Console,
    pipeline: str,
    cluster_file: Path,
    prompts: int | None,
    changed: list[str],
    measure: bool,
    as_json: bool,
) -> None:
    from rlaif_cli.cli.run import changed_values
    from rlaif_cli.errors import UsageError
    from rlaif_cli.pipeline.file import load, read
    from rlaif_cli.pipeline.plan import cluster as clusters
    from rlaif_cli.pipeline.plan.calibrate import calibrate
    from rlaif_cli.pipeline.plan.throughput import known
    from rlaif_cli.registry import STAGES

    console.guard_stdout()
    folder = Path("runs") / read(pipeline).name
    _, steps = load(pipeline, folder, STAGES, changed_values(changed))
    cluster = clusters.read(cluster_file)
    found = clusters.planned(steps, prompts)
    if measure and cluster.machines is None:
        raise UsageError("--calibrate measures this machine; this cluster file has `gpus`", hint="`machines: 1`")
    if measure:
        calibrate(work for _, each in found for work in each.work or ())
    stages = clusters.forecast(found, cluster, known())
    if as_json:
        forecasts = [asdict(each) | {"limit": each.limit} | _usage(each.seconds or 0.0, cluster) for each in stages]
        answer = {"cluster": cluster.name, "stages": forecasts} | _totals(stages, cluster)
        console.records.write(json.dumps(answer) + "\n")
    else:
        show(console, stages, cluster)


def _usage(seconds: float, cluster: Any) -> dict[str, Any]:
    """GPU hours (or machine hours), and their cost if the price is known."""
    hours = seconds / 3600 * cluster.units
    return {"unit_hours": hours, "cost": hours * cluster.price if cluster.price else None}


def _totals(stages: list[Any], cluster: Any) -> dict[str, Any]:
    seconds = sum(each.seconds or 0.0 for each in stages)
    slowest = max(stages, key=lambda each: each.seconds or 0.0)
    return {
        "seconds": seconds,
        **_usage(seconds, cluster),
        "bottleneck": slowest.name if slowest.seconds else None,
        "unknown": [each.name for each in stages if each.seconds is None],
    }


def show(console: Console, stages: list[Any], cluster: Any) -> None:
    from rich.table import Table

    unit = "GPU" if cluster.gpus else "machine"
    table = Table("stage", "rows", "time", f"{unit}-hours", "cost", "bottleneck", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # a truncated number is worse than none
    for each in stages:
        usage = _usage(each.seconds or 0.0, cluster)
        table.add_row(
            each.name,
            f"{each.rows:,}" if each.rows is not None else "",
            _span(each.seconds) if each.seconds is not None else "unknown",
            f"{usage['unit_hours']:,.1f}" if each.seconds else "",
            f"{usage['cost']:,.2f}" if usage["cost"] else "",
            each.limit or "",
        )
    console.show(table)
    totals = _totals(stages, cluster)
    cost = f", {totals['cost']:,.2f} " if cluster.price else ""
    console.say(f"{cluster.name}: {_span(totals['seconds'])}, {totals['unit_hours']:,.1f} {unit}-hours{cost}")
    for each in stages:
        _advise(console, each, each.name == totals["bottleneck"])
    if totals["unknown"]:
        console.say(f"not counted (runs on a server, or its input is missing): {', '.join(totals['unknown'])}")


def _advise(console: Console, each: Any, slowest: bool) -> None:
    if slowest and each.limit:
        console.say(f"{each.name} is the bottleneck; most of its time is {LIMITS[each.limit]}")
    for fault in each.too_large:
        console.warn(f"{each.name}: {fault}: use more GPUs (per copy: `gpus` of the model) or --lora-rank")
    if each.idle:
        console.say(f"{each.name}: {each.idle}: use a larger --batch-size or more --prompts-per-step")
    if each.split:
        console.say(
            f"{each.name}, rollouts and training in parallel, one step apart: fastest with {each.split.rollout} for "
            f"rollouts and {each.split.training} for training, {_span(each.split.seconds)}; alternating on all of them "
            f"(as `ppo` does): {_span(each.seconds)}"
        )


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def register(app: typer.Typer) -> None:
    @app.command(
        "plan",
        cls=SectionedCommand,
        epilog=epilog(
            "rlaif plan helpful --cluster cluster.yaml --prompts 1000000 --set model=org/policy --set judge=org/judge",
            "rlaif plan demo --cluster examples/clusters/this-machine.yaml --calibrate",
        ),
    )
    def _plan(
        context: typer.Context,
        pipeline: Annotated[str, typer.Argument(help="Pipeline file (YAML), or the name of a shipped one.")],
        cluster: Annotated[
            Path, typer.Option("--cluster", help="YAML file with the GPUs, their price and the sizes of models.")
        ],
        prompts: Annotated[
            int | None, typer.Option("--prompts", min=1, help="Assume this many rows of input for the first stage.")
        ] = None,
        changes: Annotated[
            list[str] | None,
            typer.Option("--set", help=SET_HELP),
        ] = None,
        measure: Annotated[
            bool,
            typer.Option("--calibrate", help="For a cluster of `machines`: measure the models on this machine first."),
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the forecast as one JSON object.", rich_help_panel=OUTPUT)
        ] = False,
        debug: Debug = False,
    ) -> None:
        """Estimate a pipeline's time and cost on a cluster. Nothing is run."""
        console: Console = context.obj
        console.debug = debug
        run(console, pipeline, cluster, prompts, changes or [], measure, as_json)
