"""Defaults of one's own: `rlaif.toml` in the working folder, and the environment.

The command line goes before `RLAIF_<COMMAND>_<OPTION>`, that before `rlaif.toml`, and that before what the help says:

    engine = "transformers"          # for every command that has the option
    [label]
    judge = "smollm2-135m"
    [eval.alignment]
    method = "contrast"

Pipeline files say everything themselves and take no defaults from here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import FUNCTION_FIELDS
from rlaif_cli.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path("rlaif.toml")
MAX_BYTES = 1 << 20
# A folder that somebody else made must not say where an API key is sent, what is to be replaced, or what code is run.
_CODE = "the command line or a pipeline file that you run, because it names Python code that is run"
_NOT_HERE = {
    "base_url": "the environment or the command line",
    "overwrite": "the command line",
    **dict.fromkeys(FUNCTION_FIELDS, _CODE),
}


# What these run says everything itself.
_ON_THEIR_OWN = ("run", "demo", "doctor", "constitution")


def load(context: Any) -> dict[str, Any]:
    """The file's defaults by command, as click's `default_map`; {} if there is no file.

    Args:
        context: click's, of the group of all commands.

    Raises:
        InputError: it is no TOML, names commands or options that are not there, or gives them what they cannot be.
    """
    group = context.command
    if not FILE.is_file():
        return {}
    try:
        with open(FILE, "rb") as file:
            content = tomllib.loads(file.read(MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # tomllib's and Unicode's errors are ValueErrors
        raise InputError(f"cannot be read: {error}", where=str(FILE)) from None
    faults: list[str] = []
    found = _of_group(context, group, content, {}, "", faults)
    everywhere = {key for key, value in content.items() if not isinstance(value, dict)}
    faults += [f"no command has the option '{key}'" for key in sorted(everywhere - _all_options(group))]
    if faults := sorted(set(faults)):
        raise InputError(f"{len(faults)} settings cannot be used", where=str(FILE), errors=faults)
    return found


def _of_group(
    context: Any, group: Any, table: dict[str, Any], inherited: dict[str, Any], place: str, faults: list[str]
) -> dict[str, Any]:
    """What a table says for the commands of a group; its plain settings are for all of them that have the option."""
    shared = inherited | {key: value for key, value in table.items() if not isinstance(value, dict)}
    for key in sorted(table.keys() - shared.keys() - group.commands.keys()):
        faults.append(f"[{place}{key}] is no command")
    found = {}
    for name, command in group.commands.items():
        own = table.get(name, {})
        if name in _ON_THEIR_OWN or not isinstance(own, dict):
            if own:
                faults.append(f"[{place}{name}] takes no defaults")
            continue
        if hasattr(command, "commands"):
            found[name] = _of_group(context, command, own, shared, f"{place}{name}.", faults)
            continue
        found[name] = _of_command(context, command, own, shared, f"{place}{name}", faults)
    return found


def _of_command(
    context: Any, command: Any, own: dict[str, Any], shared: dict[str, Any], place: str, faults: list[str]
) -> dict[str, Any]:
    options = _options(command)
    faults += [f"[{place}] has no option '{key}'" for key in sorted(own.keys() - options.keys())]
    found = {key: value for key, value in {**shared, **own}.items() if key in options}
    for key, value in found.items():
        if options[key].multiple and not isinstance(value, list):
            found[key] = value = [value]
        if key in _NOT_HERE:
            faults.append(f"'{key}' may only come from {_NOT_HERE[key]}")
        elif fault := _fault(context, options[key], value):
            faults.append(fault)
    return found


def _fault(context: Any, option: Any, value: Any) -> str | None:
    """Why an option cannot have this value, where its type alone says so."""
    try:
        option.process_value(context, value)
    except Exception as error:  # click's own kinds, of the click that Typer carries
        return f"'{option.name}' cannot be {value!r}: {getattr(error, 'message', error)}"
    return None


def _options(command: Any) -> dict[str, Any]:
    """By the name of their field: `max_tokens`."""
    return {parameter.name: parameter for parameter in command.params if parameter.name not in ("debug", "help")}


def _all_options(group: Any) -> set[str]:
    return {
        name
        for command in group.commands.values()
        for name in (_all_options(command) if hasattr(command, "commands") else _options(command))
    }
