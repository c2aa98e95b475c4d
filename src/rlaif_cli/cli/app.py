"""The Typer app: registers commands and maps errors to exit codes."""

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
from rlaif_cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, Paused, RlaifError
from rlaif_cli.ui import console

MAX_ERRORS_SHOWN = 20
_STAGES = ("generate", "revise", "label", "audit", "annotate", "sft", "train-rm", "ppo", "eval", "report")
ORDER = ("demo", "run", "plan", *_STAGES, "lineage", "data", "constitution", "doctor")


class ErrorMappingGroup(TyperGroup):
    """Maps errors to exit codes: Typer bundles its own click, so a real `click.ClickException` would be a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In order of use; Typer would list groups last."""
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
        "interrupted: finished work is saved; rerun the same command to resume (trainers: from the last checkpoint)",
        style="yellow",
    )


def show_error(error: RlaifError) -> None:
    """Print `error: place: what` (or `paused: …`), the list of errors and `hint: how to fix it`.

    Nothing is printed if another process has done so.
    """
    if not error.what or not console.first_to_fail():
        return
    console.quiet = False
    paused = isinstance(error, Paused)
    console.say(f"{'paused' if paused else 'error'}: {error}", style="yellow" if paused else "bold red")
    for each in error.errors[:MAX_ERRORS_SHOWN]:
        console.say(f"  {each}")
    if len(error.errors) > MAX_ERRORS_SHOWN:
        console.say(f"  … and {len(error.errors) - MAX_ERRORS_SHOWN} more")
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
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
        _exit(stop.code)
    except Exception as error:
        if "KeyboardInterrupt" in str(error):  # Ctrl-C inside pydantic raises an error of its own
            say_interrupted()
            _exit(EXIT_INTERRUPTED)
        if console.debug:
            raise
        if not console.first_to_fail():
            _exit(EXIT_FAILED)
        console.quiet = False
        console.say(f"error: a bug in rlaif: {type(error).__name__}: {error}", style="bold red")
        console.say("hint: rerun with --debug and report the traceback")
        _exit(EXIT_FAILED)


def _exit(code: Any) -> None:
    try:
        console.close_data_stream()
    except OSError as error:
        if not code:  # otherwise an error was shown already, most likely this one
            console.say(f"error: stdout: cannot be written: {error.strerror}", style="bold red")
            code = EXIT_FAILED
    if (inputs := sys.modules.get("rlaif_cli.data.inputs")) is not None:  # otherwise no file was opened
        inputs.remove_temporary_files()
    sys.exit(code)
