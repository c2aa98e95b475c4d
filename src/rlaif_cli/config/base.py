"""What all stage configs share: how a field is declared, and which fields name files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from rlaif_cli.config.naming import SettingError, as_option, option

Precision = Literal["auto", "bf16", "fp32"]


# Any number of names; a single one is serialized as a plain string.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda names: (names,) if isinstance(names, str) else names, json_schema_input_type=str | tuple[str, ...]
    ),
    PlainSerializer(lambda names: names[0] if len(names) == 1 else list(names)),
]


def address_fault(text: str) -> str | None:
    """Why a text is not a server address; None if it is one."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and text.isprintable()
    except ValueError:  # a port that is not a number, or brackets without an IPv6 address
        usable = False
    return None if usable and " " not in text else f"{text!r} is not a server address: http://host:port/v1"


def shown_address(url: str) -> str:
    """A URL without user name, password and query, which may be secrets."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return "…"


def name_and_address(text: str) -> tuple[str, str | None]:
    """A model with its own server, NAME@URL; a name may contain @ itself."""
    place = min((found for scheme in ("@http://", "@https://") if (found := text.find(scheme)) > 0), default=-1)
    return (text, None) if place < 0 else (text[:place], text[place + 1 :])


def _shown(value: Any) -> Any:
    """A model or an address, or several, without what may be secret."""
    if not isinstance(value, str):
        return [_shown(each) for each in value]
    name, address = name_and_address(value)
    if address:
        return f"{name}@{shown_address(address)}"
    return shown_address(value) if value.startswith(("http://", "https://")) else value


def _addresses(given: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an empty address (an unset shell variable): the client would fall back to its own default server."""
    for text in given:
        if fault := address_fault(text):
            raise ValueError(fault)
    return given


Addresses = Annotated[Names, AfterValidator(_addresses)]


# Fields that name Python functions; their files are executed.
FUNCTION_FIELDS = ("reward_function", "eval_function")


def function_place(spec: str) -> tuple[str, str]:
    """ "a/gold.py:tone" -> ("a/gold.py", "tone")"""
    file, _, name = spec.rpartition(":")
    return file, name


def _functions(specs: tuple[str, ...]) -> tuple[str, ...]:
    for spec in specs:
        file, name = function_place(spec)
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError(f"'{spec}' does not name a function: FILE.py:NAME")
    if twice := sorted({spec for spec in specs if specs.count(spec) > 1}):
        raise ValueError(f"'{twice[0]}' is given twice")
    return specs


Functions = Annotated[Names, AfterValidator(_functions)]


# Any number of numbers; a single one may be given as a scalar.
Numbers = Annotated[
    tuple[float, ...],
    BeforeValidator(
        lambda given: given if isinstance(given, list | tuple) else (given,),
        json_schema_input_type=float | tuple[float, ...],
    ),
]


def function_names(field: str, specs: Sequence[str], others: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of functions in results: NAME of FILE.py:NAME, prefixed with the file's stem where two are equal.

    Args:
        field: the setting that has them.
        others: names already taken in the same results.

    Raises:
        SettingError: two names are equal even with the prefix.
    """
    places = [function_place(spec) for spec in specs]
    plain = [*others, *(name for _, name in places)]
    found = [name if plain.count(name) == 1 else f"{Path(file).stem}.{name}" for file, name in places]
    if twice := [name for name in found if [*others, *found].count(name) > 1]:
        what = f"two functions would both be called {twice[0]} in the results; rename one of them or its file"
        raise SettingError(f"{option(field)}: {what}")
    return tuple(found)


# The sections of `--help`, in order: a command's own options first.
OWN = "Options"
REWARDS = "Rewards"
EVALUATION = "Evaluation during training"
JUDGING = "Judging"
ENGINE = "Model and engine"
TRAINING = "Training"
OUTPUT = "Output and resuming"
SECTIONS = (OWN, REWARDS, EVALUATION, JUDGING, ENGINE, TRAINING, OUTPUT)


def setting(
    default: Any = ...,
    help: str = "",
    *,
    argument: bool = False,
    short: str | None = None,
    flag: str | None = None,
    section: str | None = None,
    output: bool = True,
    records: bool = False,
    **limits: Any,
) -> Any:
    """A field with its help text; `limits` are pydantic's (ge, le, gt, lt, min_length).

    Args:
        flag: the option's name if it differs from the field's.
        section: the section of `--help`, if it differs from that of the class that declares the field.
        output: whether the setting affects the output, so that a resumed run must have the same value.
        records: whether it names a file of records, an input.
    """
    extra: dict[str, Any] = {"argument": argument, "output": output}
    optional = {"short": short, "flag": flag, "section": section, "records": records}
    extra |= {name: value for name, value in optional.items() if value}
    return Field(default, description=help, json_schema_extra=extra, **limits)


# What an input argument accepts; see data/inputs.py.
HUMAN_PAIRS = "response pairs with human preferences (response_a, response_b, human_fraction_a; see docs/inputs.md)"
FROM = "a file, a 'pattern-*', a folder, - (stdin), hf:org/name:split, or a URL (s3://…)"
ORDERED = "Write rows in input order; a finished row waits for the rows before it."


class StageConfig(BaseModel):
    """The settings of a stage.

    `class JudgeConfig(EngineConfig, section=JUDGING)` puts the fields that the class declares in that section of the
    `--help` of every command that inherits them.
    """

    examples: ClassVar[tuple[str, ...]] = ()  # for `--help` and docs/commands
    _section: ClassVar[str] = OWN

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    seed: int = setting(0, "Random seed.", ge=0, lt=2**31)
    overwrite: bool = setting(False, "Discard an existing output and start over.", section=OUTPUT, output=False)
    dry_run: bool = setting(
        False, "Check the inputs and print the plan without running anything.", section=OUTPUT, output=False
    )

    def __init_subclass__(cls, section: str = OWN, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._section = section

    @classmethod
    def _declared_by(cls, field_name: str) -> type[StageConfig]:
        """The class that declares a field first."""
        return [base for base in cls.__mro__ if issubclass(base, StageConfig) and field_name in base.model_fields][-1]

    @classmethod
    def section(cls, field_name: str) -> str:
        """The section of `--help` for a field: its own, or that of the class that declares it first."""
        declared_by = cls._declared_by(field_name)
        extra = declared_by.model_fields[field_name].json_schema_extra
        own = extra.get("section") if isinstance(extra, dict) else None
        return str(own or declared_by._section)

    @classmethod
    def fields_own_first(cls) -> list[str]:
        """The names of all fields: those of the class itself, then inherited ones, then those of every stage."""
        declared_by = {name: cls._declared_by(name) for name in cls.model_fields}
        return sorted(
            cls.model_fields, key=lambda name: (declared_by[name] is not cls, declared_by[name] is StageConfig)
        )

    @classmethod
    def data_fields(cls) -> list[str]:
        """The fields that name files of records."""
        fields = cls.model_fields.items()
        return [name for name, field in fields if (field.json_schema_extra or {}).get("records")]  # type: ignore[union-attr]

    @classmethod
    def option_name(cls, field_name: str) -> str:
        """A setting as the command line spells it: `-o`, `--max-tokens`, or PROMPTS if it is an argument."""
        if field_name not in cls.model_fields:  # that of another command
            return as_option(field_name)
        extra = cls.model_fields[field_name].json_schema_extra
        assert isinstance(extra, dict)
        if extra["argument"]:
            return field_name.upper()
        return str(extra.get("short") or extra.get("flag") or as_option(field_name))

    def shown(self) -> dict[str, Any]:
        """All settings, to be printed or recorded: addresses without user name, password and query."""
        values = self.model_dump(mode="json")
        return values | {name: _shown(values[name]) for name in ("base_url", "judge") if values.get(name)}

    def deciding(self) -> dict[str, Any]:
        """The settings that affect the output; a resumed run must have the same values."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if (fields[name].json_schema_extra or {}).get("output", True)  # type: ignore[union-attr]
        }


class InputConfig(StageConfig, section=OUTPUT):
    skip_invalid: bool = setting(False, "Skip invalid lines; they are saved in NAME.rejected.jsonl next to the output.")


def result_output() -> Any:
    return setting(
        "-",
        "Output file for the result (JSON); - is stdout. Per-item results are written next to it.",
        short="-o",
        section=OUTPUT,
        output=False,
    )
