"""Build the options of a command from the fields of its config."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from rlaif_cli.cli import defaults
from rlaif_cli.config.base import FUNCTION_FIELDS, OUTPUT, OWN, SECTIONS, StageConfig
from rlaif_cli.config.naming import as_option
from rlaif_cli.config.refusal import refusal
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import EXIT_PARTIAL, UsageError, spelling
from rlaif_cli.train.parallel import launch
from rlaif_cli.ui.console import Console
from rlaif_cli.ui.text import counted

SET_HELP = "Override one of the file's `values` (NAME=VALUE) or a setting of a stage (STAGE.SETTING=VALUE). Repeatable."
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", show_envvar=False, rich_help_panel=OUTPUT),
]


def options_by_section(command: Any) -> dict[str, list[Any]]:
    """A click command's options by the section of `--help` that shows them, in order; empty sections are left out.

    Options without a section are listed in the first one.
    """
    found: dict[str, list[Any]] = {section: [] for section in SECTIONS}
    for option in command.params:
        if option.param_type_name == "option":
            found[getattr(option, "rich_help_panel", None) or OWN].append(option)
    return {section: options for section, options in found.items() if options}


class SectionedCommand(TyperCommand):
    """Plain `--help` with a heading for each section; Typer shows its panels only with Rich markup."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [each for each in self.params if each.param_type_name == "argument"]
        options = options_by_section(self) or {OWN: []}
        if (shown_help := self.get_help_option(ctx)) is not None:
            options[list(options)[-1]].append(shown_help)
        for section, parameters in {"Arguments": arguments, **options}.items():
            if records := [record for each in parameters if (record := each.get_help_record(ctx)) is not None]:
                with formatter.section(section):
                    formatter.write_dl(records)


def command(
    app: typer.Typer, name: str, config: type[StageConfig], run: Callable[[Any, Console], int], *, hidden: bool = False
) -> None:
    """Register `run(config, console) -> exit code` as a subcommand whose options are the fields of `config`."""

    def callback(**values: Any) -> None:
        context: typer.Context = values.pop("context")
        console: Console = context.obj
        console.debug = values.pop("debug")
        if issubclass(config, TrainConfig):
            console.quiet = not launch.is_main()
        say_sources(context)
        defaults.add_prices(values, context, console)
        settings = parse(config, {key: value for key, value in values.items() if value is not None})
        console.guard_stdout()
        if settings.dry_run:
            show_plan(console, name, settings)
        with spelling(config.option_name):
            trains = isinstance(settings, TrainConfig)
            code = launch.run(name, settings, run, console) if trains else run(settings, console)
        if code:
            raise typer.Exit(code)

    parameters = [
        _parameter(name, config.model_fields[name], config.section(name)) for name in config.fields_own_first()
    ]
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    parameters.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug))
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    callback.__doc__ = config.__doc__
    app.command(name, cls=SectionedCommand, hidden=hidden, epilog=epilog(*config.examples))(callback)


def epilog(*examples: str) -> str | None:
    """Examples for the end of `--help`; `\\b` stops click from rewrapping the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None


def say_sources(context: typer.Context) -> None:
    """Print which options come from `rlaif.toml` or the environment, and refuse those that must not."""
    for name, origin in (("DEFAULT_MAP", "rlaif.toml"), ("ENVIRONMENT", "the environment")):
        sources = {key: context.get_parameter_source(key) for key in context.params}
        if found := [as_option(key) for key, source in sources.items() if source is not None and source.name == name]:
            context.obj.say(f"from {origin}: {', '.join(found)}")
            if "--overwrite" in found:
                raise UsageError(f"--overwrite may only come from the command line, not from {origin}")
            if code := [name for name in map(as_option, FUNCTION_FIELDS) if name in found]:
                what = f"{code[0]} names Python code to execute, so it may not come from {origin}"
                raise UsageError(what, hint="give it on the command line, or in a pipeline file")


def parse(config: type[StageConfig], values: dict[str, Any]) -> Any:
    """Validate values as a config.

    Raises:
        UsageError: an option is invalid; the message names all of them.
    """
    from rlaif_cli.data.overlap import check_outputs  # imported late: `--help` reads no file

    try:
        return check_outputs(config.model_validate(values))
    except ValueError as error:  # pydantic's are ValueErrors too
        raise UsageError(refusal(error, config, config.option_name)) from None


def _parameter(name: str, field: FieldInfo, section: str) -> inspect.Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind = _cli_type(field.annotation)
    default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, tuple | list):
        default = list(default) or None
    if extra.get("argument"):
        shown: Any = typer.Argument(help=field.description, show_default=False, show_envvar=False)
    else:
        flags = [str(extra["short"])] if "short" in extra else []
        # A boolean that is off by default is a plain switch without a `--no-…` form.
        shown = typer.Option(
            str(extra.get("flag") or as_option(name)),
            *flags,
            help=field.description,
            show_default=default not in (None, False, ""),
            show_envvar=False,
            rich_help_panel=section,
        )
    annotation = Annotated[kind, shown]  # type: ignore[valid-type]  # built at run time for Typer
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=annotation,
    )


def _cli_type(annotation: Any) -> Any:
    """The type that Typer parses; the config does the rest of the validation."""
    origin = get_origin(annotation)
    if (origin is tuple and get_args(annotation)[-1] is Ellipsis) or origin is list:
        return list[get_args(annotation)[0]] | None  # type: ignore[misc]
    return annotation


def show_plan(console: Console, name: str, settings: StageConfig) -> None:
    """Print the resolved config of a `--dry-run` to stderr; the command adds the estimates."""
    console.say(f"{name}: resolved settings")
    shown = settings.shown()
    model = shown.get("model") or shown.get("judge")
    if "engine" in shown and model:
        from rlaif_cli.engines import engine_name

        several = model if isinstance(model, list) else [model]
        named = [engine_name(settings, name) for name in several]  # type: ignore[arg-type]  # it has the field
        shown["engine"] = named[0] if len(set(named)) == 1 else named
    console.say(json.dumps(shown, indent=2, ensure_ascii=False))


def partial(console: Console, unusable: int, where: str) -> int:
    """Warn about rows that could not be used, and return the exit code."""
    if not unusable:
        return 0
    console.warn(f"{counted(unusable, 'row')} could not be used; see {where} for the reasons")
    return EXIT_PARTIAL
