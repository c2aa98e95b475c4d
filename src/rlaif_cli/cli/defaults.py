"""User defaults: `rlaif.toml` in the working directory, and environment variables.

Precedence: command line, then `RLAIF_<COMMAND>_<OPTION>`, then `rlaif.toml`, then the built-in default. For example:

    engine = "transformers"          # for every command that has the option
    [label]
    judge = "smollm2-135m"
    [eval.alignment]
    method = "contrast"
    [prices."gpt-x"]                 # of a model on a server, USD per million tokens
    in = 0.15
    out = 0.6

These defaults do not apply to pipeline files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import FUNCTION_FIELDS, name_and_address
from rlaif_cli.config.engine import SERVERS
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.ui.console import Console
from rlaif_cli.ui.text import counted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path("rlaif.toml")
MAX_BYTES = 1 << 20
# A folder from somebody else must not decide where an API key is sent, what is overwritten, or which code is executed.
_CODE = "the command line or a pipeline file, because it names Python code to execute"
_FORBIDDEN = {
    "base_url": "the environment or the command line",
    "overwrite": "the command line",
    **dict.fromkeys(FUNCTION_FIELDS, _CODE),
}


_PRICES = "rlaif.prices"  # the key of `context.meta`, which the contexts of all commands share
# Commands without defaults.
_WITHOUT_DEFAULTS = ("run", "demo", "doctor", "constitution")


def load(context: Any) -> dict[str, Any]:
    """The file's defaults by command, as click's `default_map`; {} if there is no file.

    Args:
        context: the click context of the top-level group; its `meta` gets the prices (in, out) by model.

    Raises:
        InputError: the file is not valid TOML, or names unknown commands or options, or gives invalid values.
    """
    group = context.command
    if not FILE.is_file():
        return {}
    try:
        with open(FILE, "rb") as file:
            content = tomllib.loads(file.read(MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # tomllib's and Unicode's errors are ValueErrors
        raise InputError(f"cannot be read: {error}", where=str(FILE)) from None
    errors: list[str] = []
    context.meta[_PRICES] = _prices(content.pop("prices", {}), errors)
    found = _of_group(context, group, content, {}, "", errors)
    everywhere = {key for key, value in content.items() if not isinstance(value, dict)}
    errors += [f"no command has the option '{key}'" for key in sorted(everywhere - _all_options(group))]
    if errors := sorted(set(errors)):
        raise InputError(counted(len(errors), "invalid setting"), where=str(FILE), errors=errors)
    return found


def _prices(table: Any, errors: list[str]) -> dict[str, tuple[float, float]]:
    """The prices (in, out) by model; what is invalid is added to `errors`."""
    found = dict[str, tuple[float, float]]()
    for model, each in (table if isinstance(table, dict) else {"MODEL": None}).items():
        prices: list[Any] = [each.get("in"), each.get("out")] if isinstance(each, dict) and len(each) == 2 else []
        numbers = [float(price) for price in prices if type(price) in (int, float) and 0 <= price < 1e9]
        if len(numbers) == 2:
            found[model] = (numbers[0], numbers[1])
        else:
            errors.append(f'[prices."{model}"] needs two numbers, in and out: USD per million tokens')
    return found


def add_prices(values: dict[str, Any], context: Any, console: Console) -> None:
    """Add the prices of a command's models to the values of its options, unless they are given.

    Raises:
        UsageError: the judges of a panel have different prices, which one cost cannot be computed from.
    """
    prices: dict[str, tuple[float, float]] = context.meta.get(_PRICES, {})
    given = values.get("price_in") is not None or values.get("price_out") is not None
    if not prices or given or "price_in" not in values or values.get("engine") not in SERVERS:
        return
    named = values.get("model") or values.get("judge") or ()
    models = [name_and_address(each)[0] for each in ([named] if isinstance(named, str) else named)]
    found = {prices.get(model) for model in models}
    if found <= {None}:
        return
    if len(found) > 1:
        what = f"{FILE} has different prices, or none, for {', '.join(models)}"
        raise UsageError(what, hint="give --price-in and --price-out")
    values["price_in"], values["price_out"] = prices[models[0]]
    shown = f"{values['price_in']:g} in, {values['price_out']:g} out"
    console.say(f"prices from {FILE}: {shown} per million tokens of {', '.join(models)}")


def _of_group(
    context: Any, group: Any, table: dict[str, Any], inherited: dict[str, Any], place: str, errors: list[str]
) -> dict[str, Any]:
    """The defaults that a table sets for the commands of a group; a plain key applies to all that have the option."""
    shared = inherited | {key: value for key, value in table.items() if not isinstance(value, dict)}
    for key in sorted(table.keys() - shared.keys() - group.commands.keys()):
        errors.append(f"[{place}{key}] is not a command")
    found = {}
    for name, command in group.commands.items():
        own = table.get(name, {})
        if name in _WITHOUT_DEFAULTS or not isinstance(own, dict):
            if own:
                errors.append(f"[{place}{name}] takes no defaults")
            continue
        if hasattr(command, "commands"):
            found[name] = _of_group(context, command, own, shared, f"{place}{name}.", errors)
            continue
        found[name] = _of_command(context, command, own, shared, f"{place}{name}", errors)
    return found


def _of_command(
    context: Any, command: Any, own: dict[str, Any], shared: dict[str, Any], place: str, errors: list[str]
) -> dict[str, Any]:
    options = _options(command)
    errors += [f"[{place}] has no option '{key}'" for key in sorted(own.keys() - options.keys())]
    found = {key: value for key, value in {**shared, **own}.items() if key in options}
    for key, value in found.items():
        if options[key].multiple and not isinstance(value, list):
            found[key] = value = [value]
        if key in _FORBIDDEN:
            errors.append(f"'{key}' may only come from {_FORBIDDEN[key]}")
        elif key == "judge" and any(name_and_address(str(each))[1] for each in value):
            errors.append(f"'{key}' with an address may only come from the command line")
        elif error := _error(context, options[key], value):
            errors.append(error)
    return found


def _error(context: Any, option: Any, value: Any) -> str | None:
    """Why an option cannot have this value, as far as its type tells."""
    try:
        option.process_value(context, value)
    except Exception as error:  # Typer bundles its own click, with its own exception classes
        return f"'{option.name}' cannot be {value!r}: {getattr(error, 'message', error)}"
    return None


def _options(command: Any) -> dict[str, Any]:
    """Options by field name, such as `max_tokens`."""
    return {parameter.name: parameter for parameter in command.params if parameter.name not in ("debug", "help")}


def _all_options(group: Any) -> set[str]:
    return {
        name
        for command in group.commands.values()
        for name in (_all_options(command) if hasattr(command, "commands") else _options(command))
    }
