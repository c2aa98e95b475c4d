"""What the settings of all stages have in common: how a field is declared, and which fields name files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

Precision = Literal["auto", "bf16", "fp32"]


# Names, any number of them; one is written as plain text.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda names: (names,) if isinstance(names, str) else names, json_schema_input_type=str | tuple[str, ...]
    ),
    PlainSerializer(lambda names: names[0] if len(names) == 1 else list(names)),
]


def address_fault(text: str) -> str | None:
    """Why a text is no address of a server; None if it is one."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and text.isprintable()
    except ValueError:  # a port that is no number, brackets without an address of IPv6
        usable = False
    return None if usable and " " not in text else f"{text!r} is no address of a server: http://host:port/v1"


def _addresses(given: tuple[str, ...]) -> tuple[str, ...]:
    """An empty one (an unset variable of a shell) must not become the client's own default, somebody else's server."""
    for text in given:
        if fault := address_fault(text):
            raise ValueError(fault)
    return given


Addresses = Annotated[Names, AfterValidator(_addresses)]


# The fields that name Python functions, whose files are run as code.
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
        raise ValueError(f"'{twice[0]}' is there twice")
    return specs


Functions = Annotated[Names, AfterValidator(_functions)]


# Numbers, any number of them; one is written as it is.
Numbers = Annotated[
    tuple[float, ...],
    BeforeValidator(
        lambda given: given if isinstance(given, list | tuple) else (given,),
        json_schema_input_type=float | tuple[float, ...],
    ),
]


def function_names(option: str, specs: Sequence[str], others: Sequence[str] = ()) -> tuple[str, ...]:
    """What functions are called in results: NAME of FILE.py:NAME, with the file's name before it where two are alike.

    Args:
        others: names that stand beside them.

    Raises:
        ValueError: two would have one name all the same.
    """
    places = [function_place(spec) for spec in specs]
    plain = [*others, *(name for _, name in places)]
    found = [name if plain.count(name) == 1 else f"{Path(file).stem}.{name}" for file, name in places]
    if twice := [name for name in found if [*others, *found].count(name) > 1]:
        raise ValueError(f"{option}: two are named {twice[0]} in the results; rename a function or its file")
    return tuple(found)


# The fields that name files of records.
DATA_FIELDS = ("prompts", "candidates", "preferences", "records", "pairs", "a", "b", "baseline", "human")


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
    **limits: Any,
) -> Any:
    """A field with its help text; `limits` are pydantic's (ge, le, gt, lt, min_length).

    Args:
        flag: the option's name where it is not the field's.
        section: the section of `--help`, where it is not that of the class that declares the field.
        output: whether the setting affects the output, so that a resumed run must have the same value.
    """
    extra: dict[str, Any] = {"argument": argument, "output": output}
    extra |= {name: value for name, value in (("short", short), ("flag", flag), ("section", section)) if value}
    return Field(default, description=help, json_schema_extra=extra, **limits)


# What may stand where an input is asked for; see `inputs`.
HUMAN_PAIRS = "response pairs with human preferences (response_a, response_b, human_fraction_a; see docs/inputs.md)"
FROM = "a file, a 'pattern-*', a folder, - (stdin), hf:org/name:split, or an address (s3://…)"
ORDERED = "Rows in the order of the input; one that is ready waits for those before it."


class StageConfig(BaseModel):
    """The settings of a stage.

    `class JudgeConfig(EngineConfig, section=JUDGING)` puts the fields that the class declares in that section of the
    `--help` of every command that inherits them.
    """

    examples: ClassVar[tuple[str, ...]] = ()  # for `--help` and docs/commands
    _section: ClassVar[str] = OWN

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    seed: int = setting(0, "Fixes everything that can be fixed.", ge=0, lt=2**31)
    overwrite: bool = setting(False, "Start anew, over an earlier output.", section=OUTPUT, output=False)
    dry_run: bool = setting(False, "Check everything, print the plan, start nothing.", section=OUTPUT, output=False)

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

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what the output is; a resumed run must have the same."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if (fields[name].json_schema_extra or {}).get("output", True)  # type: ignore[union-attr]
        }


class InputConfig(StageConfig, section=OUTPUT):
    skip_invalid: bool = setting(
        False, "Go on without lines that cannot be used; they go to NAME.rejected.jsonl beside the output."
    )


def result_output() -> Any:
    return setting(
        "-", "Where the result (JSON) goes; per-item results go beside it.", short="-o", section=OUTPUT, output=False
    )
