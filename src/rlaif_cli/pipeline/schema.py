"""A JSON schema of pipeline files, for editors: `rlaif run --schema > pipeline.schema.json`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from rlaif_cli.pipeline.file import PipelineFile
from rlaif_cli.registry import Stage

_REFERENCE = {"type": "string", "pattern": r"\$\{[^}]+\}"}


def schema(kinds: Mapping[str, Stage]) -> dict[str, Any]:
    """The schema of what `load` accepts: a stage has `run` and the settings of that command; each may be a reference.

    Args:
        kinds: the kinds of stages that `run:` may name.
    """
    configs = {kind.config_class for kind in kinds.values()}
    _, definitions = models_json_schema([(config, "validation") for config in sorted(configs, key=str)])
    of_config = definitions.pop("$defs")
    found = PipelineFile.model_json_schema()
    found["properties"]["stages"] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {
            "oneOf": [_stage(name, of_config[kind.config_class.__name__]) for name, kind in kinds.items()]
        },
    }
    others = {name: each for name, each in of_config.items() if name not in {config.__name__ for config in configs}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        **({"$defs": others} if others else {}),
    }


def _stage(name: str, config: dict[str, Any]) -> dict[str, Any]:
    stage = copy.deepcopy(config)
    settings = {
        key: {"anyOf": [value, _REFERENCE], **({"description": value["description"]} if "description" in value else {})}
        for key, value in stage["properties"].items()
    }
    stage["title"] = name
    stage["properties"] = {"run": {"const": name}, **settings}
    stage["required"] = ["run", *(key for key in stage.get("required", []) if key != "output")]
    return stage
