"""The Typer app: registers commands and maps errors to exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import IO, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from rlaif_cli import __version__
from rlaif_cli.cli import annotate, audit, constitution, data, defaults, doctor, lineage, plan, run
from rlaif_cli.cli.options import command
from rlaif_cli.cli.stage import command_of
from rlaif_cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, Paused, RlaifError
from rlaif_cli.registry import GROUPS, STAGES
from rlaif_cli.ui import messages
from rlaif_cli.ui.console import Console

MAX_ERRORS_SHOWN = 20
# The subcommands that are no stage of a pipeline, by the stage that they follow in `--help`.
_OTHERS = {
    "": ("demo", "run", "plan"),
    "label": ("audit", "annotate"),
    "report": ("lineage", "data", "constitution", "doctor"),
}


def order() -> list[str]:
    """The subcommands in order of use."""
    shown = ["", *dict.fromkeys(name.split()[0] for name in STAGES)]
    return [each for name in shown for each in (name, *_OTHERS.get(name, ())) if each]


class ErrorMappingGroup(TyperGroup):
    """Maps errors to exit codes: Typer bundles its own click, so a real `click.ClickException` would be a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In order of use; Typer would list groups last."""
        known = order()
        return [*known, *(name for name in super().list_commands(ctx) if name not in known)]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RlaifError as error:
            if ctx.obj.debug and error.what:
                raise
            show_error(ctx.obj, error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say_interrupted(ctx.obj)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(EXIT_DONE) from None


def say_interrupted(console: Console) -> None:
    console.say(
        "interrupted: finished work is saved; rerun the same command to resume (trainers: from the last checkpoint)",
        style="yellow",
    )


def show_error(console: Console, error: RlaifError) -> None:
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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlaif {__version__}")
        raise typer.Exit()


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.default_map = defaults.load(context)


def build() -> typer.Typer:
    """The command line: a subcommand for every stage of `registry.py`, and the others."""
    program = typer.Typer(
        name="rlaif",
        cls=ErrorMappingGroup,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Reinforcement learning from AI feedback: prompts and a written constitution in, an aligned model out.",
        context_settings={"auto_envvar_prefix": "RLAIF"},
    )
    program.callback()(_root)
    groups = {group: typer.Typer(help=text, no_args_is_help=True) for group, text in GROUPS.items()}
    for name, stage in STAGES.items():
        group, _, own = name.rpartition(" ")
        command(groups[group] if group else program, own, stage.config_class, command_of(name))
    for name, commands in (groups | {"data": data.app, "constitution": constitution.app}).items():
        program.add_typer(commands, name=name)
    for other in (audit, annotate, run, plan, lineage, doctor):
        other.register(program)
    return program


app = build()


def main(
    argv: Sequence[str] | None = None,
    *,
    stdin: IO[str] | None = None,
    stdout: IO[str] | None = None,
    stderr: IO[str] | None = None,
    program: typer.Typer = app,
) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the arguments after the program's name; default: those of this process.
        stdin, stdout, stderr: default: those of this process. During the call they are also Python's `sys.stdin`, …,
            which all threads share, so there can be one call at a time.
    """
    with _standard_streams(stdin, stdout, stderr):
        console = Console(sys.stdout, sys.stderr)
        with messages.reported_to(console):
            return _close(console, _run(program, argv, console))


@contextlib.contextmanager
def _standard_streams(stdin: IO[str] | None, stdout: IO[str] | None, stderr: IO[str] | None) -> Iterator[None]:
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _run(program: typer.Typer, argv: Sequence[str] | None, console: Console) -> int:
    """Run a command, with an error message for whatever goes wrong; returns the exit code."""
    try:
        typer.main.get_command(program)(args=argv, prog_name="rlaif", obj=console)
    except SystemExit as stop:  # also how a command that succeeds ends
        code = stop.code or EXIT_DONE
        return code if isinstance(code, int) else EXIT_FAILED
    except Exception as error:
        if "KeyboardInterrupt" in str(error):  # Ctrl-C inside pydantic raises an error of its own
            say_interrupted(console)
            return EXIT_INTERRUPTED
        if console.debug:
            traceback.print_exc()
        elif console.first_to_fail():
            console.quiet = False
            console.say(f"error: a bug in rlaif: {type(error).__name__}: {error}", style="bold red")
            console.say("hint: rerun with --debug and report the traceback")
    return EXIT_FAILED


def _close(console: Console, code: int) -> int:
    try:
        console.close()
    except OSError as error:
        if not code:  # otherwise an error was shown already, most likely this one
            console.say(f"error: stdout: cannot be written: {error.strerror}", style="bold red")
            code = EXIT_FAILED
    if (inputs := sys.modules.get("rlaif_cli.data.inputs")) is not None:  # otherwise no file was opened
        inputs.remove_temporary_files()
    return code


def exit_with(code: int) -> NoReturn:
    """End the process. What libraries print while Python exits is no data, so stdout becomes stderr before."""
    with contextlib.suppress(OSError):  # stderr may be closed
        os.dup2(2, 1)
    sys.exit(code)
