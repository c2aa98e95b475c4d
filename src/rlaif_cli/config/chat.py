"""Settings of how a model's conversations are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, field_validator

from rlaif_cli.config.base import ENGINE, InputConfig, setting

# What `rlaif` itself passes to a template.
_RESERVED = ("messages", "add_generation_prompt", "tokenize", "tools", "continue_final_message")


def template_arguments(assignments: Sequence[str]) -> dict[str, Any]:
    """`enable_thinking=false` as `{"enable_thinking": False}`; a value that is not JSON is text."""
    return {name: _value(text) for name, _, text in (each.partition("=") for each in assignments)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _as_assignments(given: Any) -> Any:
    """A mapping, as a pipeline file may have it, as NAME=VALUE texts; a single text as one of several."""
    if isinstance(given, Mapping):
        return tuple(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items())
    return (given,) if isinstance(given, str) else given


def _checked(assignments: tuple[str, ...]) -> tuple[str, ...]:
    names = [each.partition("=")[0] for each in assignments]
    for each, name in zip(assignments, names, strict=True):
        if "=" not in each or not name.isidentifier():
            raise ValueError(f"'{each}' is not NAME=VALUE")
        if name in _RESERVED:
            raise ValueError(f"'{name}' is not a setting: rlaif passes it itself")
        if names.count(name) > 1:
            raise ValueError(f"'{name}' is given twice")
    return assignments


TemplateArguments = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_assignments, json_schema_input_type=str | tuple[str, ...] | dict[str, Any]),
    AfterValidator(_checked),
]

TEMPLATE_HELP = "NAME=VALUE, a variable of {} chat template, such as enable_thinking=false. Repeatable."


class ChatConfig(InputConfig, section=ENGINE):
    """How the conversations of the stage's model are written."""

    chat_template_arg: TemplateArguments = setting((), TEMPLATE_HELP.format("the model's"))
    reasoning_marks: tuple[str, str] | None = setting(
        None, "OPEN CLOSE, the marks before and after the model's reasoning. Default: taken from its chat template."
    )

    @field_validator("reasoning_marks")
    @classmethod
    def _two_marks(cls, marks: tuple[str, str] | None) -> tuple[str, str] | None:
        if marks and (not all(mark.strip() for mark in marks) or marks[0] == marks[1]):
            raise ValueError("needs two different texts: the one before the reasoning and the one after it")
        return marks

    @property
    def chat_format(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The fields of a `ChatFormat`."""
        return self.chat_template_arg, self.reasoning_marks or ()
