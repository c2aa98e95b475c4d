"""rlaif run, and rlaif demo, which runs a shipped pipeline file"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlaif_cli.cli.options import SET_HELP, Debug, SectionedCommand, epilog
from rlaif_cli.config.base import OUTPUT
from rlaif_cli.errors import UsageError
from rlaif_cli.train.parallel import launch
from rlaif_cli.ui.console import Console
from rlaif_cli.ui.progress import ProgressCallback

DEMO = "demo"


def run_pipeline(
    console: Console,
    path: str,
    folder: Path,
    *,
    overwrite: bool,
    dry_run: bool = False,
    measure: bool = False,
    recorded: bool = False,
    run_code: bool = False,
    changed: Mapping[str, str] = {},
    only: Sequence[str] = (),
    start: str | None = None,
) -> int:
    """Run a pipeline file or some of its stages; with `recorded`, rerun what made the output at `path`.

    Args:
        folder: where the outputs go.
        run_code: whether recorded stages may execute Python functions.
    """
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.pipeline import file, preflight, reproduce, runner
    from rlaif_cli.pipeline.stage import run_stage
    from rlaif_cli.registry import STAGES

    if launch.launched_processes() > 1:
        raise UsageError("a pipeline starts its own processes", hint="set num_processes in the stages that train")
    console.guard_stdout()
    with EnginePool() as engines:
        overrides = {"overwrite": True} if overwrite else {}
        if recorded:
            plan, steps = reproduce.reproduce(path, folder, STAGES, run_code=run_code, **overrides)
        else:
            plan, steps = file.load(path, folder, STAGES, changed, **overrides)
        wanted = runner.select(steps, only, start)
        preflight.check(path, steps, wanted)
        if dry_run:
            show_plan(console, steps, wanted, measure)
            return 0

        one_output = recorded and len(steps) == 1  # without a run folder around it
        with _stage_progress(console, plan.name, steps, wanted) as stage:
            if one_output:
                with stage(0, steps[0]) as progress:
                    run_stage(steps[0].kind, steps[0].config, engines=engines, progress=progress)
            else:
                run_one = functools.partial(run_stage, engines=engines)
                summary = runner.run(plan, steps, wanted, folder, run_one, stage, time.monotonic)
    if one_output:
        console.say(f"reproduced: {folder}")
        return 0
    show_summary(console, summary, folder)
    return 0


def show_plan(console: Console, steps: list[Any], wanted: list[Any], measure: bool) -> None:
    """Print each step: what it runs, where its output goes, and the estimated tokens, cost, time and memory."""
    from rlaif_cli.pipeline.plan import throughput
    from rlaif_cli.pipeline.plan.calibrate import calibrate
    from rlaif_cli.pipeline.plan.counts import plan
    from rlaif_cli.pipeline.plan.work import timed
    from rlaif_cli.registry import STAGES

    planned = [(number, step, found) for number, (step, found) in enumerate(plan(steps), start=1) if step in wanted]
    if measure:
        calibrate(each for _, _, found in planned for each in found.work or ())
    known = throughput.known()
    every = timed([found for _, _, found in planned], known)
    for (number, step, found), seconds in zip(planned, every, strict=True):
        parts = [
            f"{value:,} {words}" if isinstance(value, int) else f"{value:g} {words}"
            for value, words in (
                (found.rows, "rows"),
                (found.calls, "optimizer steps" if STAGES[step.kind].trains else "calls"),
                (found.tokens_in, "tokens in"),
                (found.tokens_out, "tokens out at most"),
                (found.cost, "cost at most"),
            )
            if value is not None
        ]
        if found.work and seconds is not None:
            parts.append(f"{seconds / 60:.1f} minutes, {found.memory(known):.1f} GiB")
        console.say(f"{number}. {step.name}: rlaif {step.kind} -> {step.output}")
        if parts:
            console.say(f"     about {', '.join(parts)}")
    total = sum(seconds or 0.0 for seconds in every)
    if None in every:
        hint = (
            "the time of a server or cluster cannot be estimated"
            if measure
            else "use --calibrate to measure this machine, about a minute per model"
        )
        console.say(f"time: unknown for some steps; {hint}")
    elif total:
        console.say(f"time: about {total / 60:.1f} minutes in all")


StageProgress = Callable[[int, Any], contextlib.AbstractContextManager[ProgressCallback]]


@contextlib.contextmanager
def _stage_progress(
    console: Console, title: str, steps: Sequence[Any], wanted: Sequence[Any]
) -> Iterator[StageProgress]:
    """Yield `stage(index, step)`, a context to run a step in. A live screen on a terminal, plain lines elsewhere."""

    @contextlib.contextmanager
    def announced(index: int, step: Any) -> Iterator[ProgressCallback]:
        console.say(f"[{index + 1}/{len(steps)}] {step.name}: rlaif {step.kind}", style="bold")
        with console.progress(step.name) as callback:
            yield callback

    if not console.terminal().is_terminal:
        yield announced
        return
    from rlaif_cli.ui.live import Screen

    stages = [(step.name, step.kind) for step in steps]
    with Screen(console.terminal(), title, stages, [step.name for step in wanted]) as screen:
        yield lambda index, step: screen.stage(step.name)


def show_summary(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """Print the run's summary: a line for each check, time and memory, and where the report is."""
    from rlaif_cli.report import report_path, summary_lines
    from rlaif_cli.report.run_folder import Run

    run = Run.of_summary(summary, folder)
    title, *checks = summary_lines(run, console.terminal().encoding)
    console.say("")
    console.say(title, style="bold")
    for check in checks:
        console.say(check)
    minutes = sum(stage.seconds for stage in run.stages) / 60
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(each).ru_maxrss for each in processes) / 2**20
    console.say(f"{minutes:.1f} minutes, {peak:.1f} GiB peak memory; the outputs are in {folder}/")
    if report := report_path(run):
        console.say(f"open {report}")


def show_schema(console: Console) -> None:
    from rlaif_cli.pipeline.schema import schema
    from rlaif_cli.registry import STAGES

    console.guard_stdout()
    console.records.write(json.dumps(schema(STAGES), indent=2) + "\n")


def changed_values(given: Sequence[str]) -> dict[str, str]:
    """["model=x"] -> {"model": "x"}"""
    for text in given:
        if "=" not in text:
            raise UsageError(f"--set expects NAME=VALUE, got '{text}'")
    return dict(text.split("=", 1) for text in given)


def register(app: typer.Typer) -> None:
    @app.command(
        "run",
        cls=SectionedCommand,
        epilog=epilog(
            "rlaif run helpful --set model=org/model --set judge=org/judge",
            "rlaif run mine.yaml -o runs/mine --from rm",
            "rlaif run --from-manifest preferences.jsonl -o again.jsonl",
        ),
    )
    def _run(
        context: typer.Context,
        pipeline: Annotated[
            str | None, typer.Argument(help="Pipeline file (YAML), or the name of a shipped one.")
        ] = None,
        output: Annotated[
            Path | None,
            typer.Option(
                "--output",
                "-o",
                help="Folder of the run. Default: runs/NAME, with the name of the pipeline.",
                rich_help_panel=OUTPUT,
            ),
        ] = None,
        from_manifest: Annotated[
            str | None,
            typer.Option(
                "--from-manifest", help="Instead of a pipeline file: reproduce this output, or a whole run folder."
            ),
        ] = None,
        run_code: Annotated[
            bool,
            typer.Option(
                "--run-code",
                help="With --from-manifest: allow stages that execute Python functions, if their files are unchanged.",
                show_envvar=False,
            ),
        ] = False,
        changes: Annotated[
            list[str] | None,
            typer.Option("--set", help=SET_HELP),
        ] = None,
        only: Annotated[list[str] | None, typer.Option("--only", help="Run only this stage. Repeatable.")] = None,
        start: Annotated[
            str | None,
            typer.Option("--from", help="Run this stage and those after it; its inputs must exist."),
        ] = None,
        overwrite: Annotated[
            bool,
            typer.Option(
                "--overwrite", help="Discard the existing outputs of the stages that are run.", rich_help_panel=OUTPUT
            ),
        ] = False,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Check the file and print the plan without running anything.", rich_help_panel=OUTPUT
            ),
        ] = False,
        measure: Annotated[
            bool,
            typer.Option(
                "--calibrate",
                help="With --dry-run: measure the models on this machine to estimate time and memory.",
                rich_help_panel=OUTPUT,
            ),
        ] = False,
        schema: Annotated[
            bool, typer.Option("--schema", help="Print a JSON schema of pipeline files, for editors, and exit.")
        ] = False,
        debug: Debug = False,
    ) -> None:
        """Run a pipeline file, or some of its stages."""
        console: Console = context.obj
        console.debug = debug
        from rlaif_cli.pipeline.file import read

        if schema:
            if any((pipeline, output, from_manifest, changes, only, start, overwrite, dry_run, measure)):
                raise UsageError("--schema cannot be combined with other options")
            show_schema(console)
            return
        if pipeline is None and from_manifest is None:
            raise UsageError("a pipeline file or --from-manifest is needed")
        if pipeline is not None and from_manifest is not None:
            raise UsageError(f"a pipeline file ('{pipeline}') and --from-manifest cannot be combined")
        if from_manifest is not None and changes:
            raise UsageError("--set changes a pipeline file, so it cannot be combined with --from-manifest")
        if from_manifest is not None and output is None:
            raise UsageError("--from-manifest needs -o, the new output")
        if run_code and str(context.get_parameter_source("run_code")).endswith("ENVIRONMENT"):
            raise UsageError("--run-code may only come from the command line, not from the environment")
        if run_code and from_manifest is None:
            raise UsageError("--run-code needs --from-manifest: functions in a pipeline file run without it")
        if measure and not dry_run:
            raise UsageError("--calibrate needs --dry-run")
        folder = output or Path("runs") / read(str(pipeline)).name
        code = run_pipeline(
            console,
            str(from_manifest or pipeline),
            folder,
            overwrite=overwrite,
            dry_run=dry_run,
            measure=measure,
            recorded=from_manifest is not None,
            run_code=run_code,
            changed=changed_values(changes or []),
            only=only or (),
            start=start,
        )
        raise typer.Exit(code)

    @app.command("demo", cls=SectionedCommand, epilog=epilog("rlaif demo -o runs/demo"))
    def _demo(
        context: typer.Context,
        output: Annotated[
            Path, typer.Option("--output", "-o", help="Folder of the run.", rich_help_panel=OUTPUT)
        ] = Path("runs/demo"),
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Discard the existing outputs.", rich_help_panel=OUTPUT)
        ] = False,
        debug: Debug = False,
    ) -> None:
        """Run the whole pipeline on the built-in model, in minutes. With real prompts and human preferences."""
        console: Console = context.obj
        console.debug = debug
        raise typer.Exit(run_pipeline(console, DEMO, output, overwrite=overwrite))
