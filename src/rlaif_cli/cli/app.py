"""The Typer app: registers commands and maps errors to exit codes; no logic."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rlaif_cli import __version__
from rlaif_cli.cli import (
    annotate,
    audit,
    constitution,
    data,
    defaults,
    doctor,
    evaluate,
    generate,
    label,
    lineage,
    plan,
    ppo,
    report,
    revise,
    run,
    sft,
    train_rm,
)
from rlaif_cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, RlaifError
from rlaif_cli.ui import console

MAX_FAULTS_SHOWN = 20
_STAGES = ("generate", "revise", "label", "audit", "annotate", "sft", "train-rm", "ppo", "eval", "report")
ORDER = ("demo", "run", "plan", *_STAGES, "lineage", "data", "constitution", "doctor")


class ErrorMappingGroup(TyperGroup):
    """Typer carries its own click, so that a real `click.ClickException` would become a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of use; Typer would put groups last."""
        return [*ORDER, *(name for name in super().list_commands(ctx) if name not in ORDER)]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RlaifError as error:
            if console.debug and error.what:
                raise
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say_interrupted()
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(EXIT_DONE) from None


def say_interrupted() -> None:
    console.say(
        "interrupted: what was written is kept; run the same command again to go on (trainers: at the last checkpoint)",
        style="yellow",
    )


def show_error(error: RlaifError) -> None:
    """`error: place: what`, every fault, and `hint: how to mend it`; nothing where another process has told it."""
    if not error.what or not console.first_to_fail():
        return
    console.quiet = False
    console.say(f"error: {error}", style="bold red")
    for fault in error.errors[:MAX_FAULTS_SHOWN]:
        console.say(f"  {fault}")
    if len(error.errors) > MAX_FAULTS_SHOWN:
        console.say(f"  … and {len(error.errors) - MAX_FAULTS_SHOWN} more")
    if error.hint:
        console.say(f"hint: {error.hint}")


app = typer.Typer(
    name="rlaif",
    cls=ErrorMappingGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reinforcement learning from AI feedback: prompts and a written constitution in, an aligned model out.",
    context_settings={"auto_envvar_prefix": "RLAIF"},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlaif {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    context.default_map = defaults.load(context)


generate.register(app)
revise.register(app)
label.register(app)
audit.register(app)
annotate.register(app)
sft.register(app)
train_rm.register(app)
ppo.register(app)
app.add_typer(evaluate.app, name="eval")
report.register(app)
run.register(app)
plan.register(app)
lineage.register(app)
app.add_typer(data.app, name="data")
doctor.register(app)
app.add_typer(constitution.app, name="constitution")


def main(program: typer.Typer = app) -> None:
    try:
        program(standalone_mode=True)
    except SystemExit as stop:
        _leave(stop.code)
    except Exception as error:
        if "KeyboardInterrupt" in str(error):  # Ctrl-C inside of pydantic comes as an error of its own
            say_interrupted()
            _leave(EXIT_INTERRUPTED)
        if console.debug:
            raise
        if not console.first_to_fail():
            _leave(EXIT_FAILED)
        console.quiet = False
        console.say(f"error: a bug in rlaif: {type(error).__name__}: {error}", style="bold red")
        console.say("hint: run again with --debug and report the traceback")
        _leave(EXIT_FAILED)


def _leave(code: Any) -> None:
    try:
        console.close_data_stream()
    except OSError as error:
        if not code:  # else an error was shown, and most likely this one
            console.say(f"error: stdout: cannot be written: {error.strerror}", style="bold red")
            code = EXIT_FAILED
    if (inputs := sys.modules.get("rlaif_cli.data.inputs")) is not None:  # else no file was opened
        inputs.remove_temporary_files()
    sys.exit(code)
