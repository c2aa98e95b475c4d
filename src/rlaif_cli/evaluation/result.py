"""The result of an evaluation: JSON with n and interval for every number, and a file of per-item rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rlaif_cli import __version__
from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.data.atomic import open_for_writing, write_json
from rlaif_cli.data.compression import content_sha256
from rlaif_cli.data.inputs import files, names_records
from rlaif_cli.data.messages import Message, prompt_text, shared_prompt
from rlaif_cli.data.paths import beside, file_of, sidecar
from rlaif_cli.data.records import Candidates, HumanPair
from rlaif_cli.engines.server_account import discard
from rlaif_cli.engines.server_kept import kept_usage
from rlaif_cli.errors import InputError
from rlaif_cli.judge.provenance import judging_hashes
from rlaif_cli.stages.manifest import priced


def prompts_of_both(
    a: Mapping[str, Candidates], b: Mapping[str, Candidates], names: tuple[str, str]
) -> dict[str, list[Message]]:
    """The prompts that are in both files, by id, in the order of `a`.

    Raises:
        InputError: the files have no id in common, or an id has different prompts.
    """
    where = ", ".join(names)
    prompts = {key: shared_prompt(a[key].prompt, b[key].prompt) for key in a if key in b}
    if not prompts:
        hint = "rows are matched by id and prompt: generate both sides from the same prompts file"
        raise InputError("the two sides have no prompt id in common", where=where, hint=hint)
    found = {key: prompt for key, prompt in prompts.items() if prompt is not None}
    if different := [key for key in prompts if key not in found]:
        shown = [f"id '{key}': {_start(a[key])} | {_start(b[key])}" for key in different]
        what = f"{len(different)} of {len(prompts)} ids have different prompts in the two files"
        hint = "generate both sides from the same prompts file"
        raise InputError(what, where=where, errors=shown, hint=hint)
    return found


def _start(row: Candidates) -> str:
    text = prompt_text(row.prompt)
    return json.dumps(text if len(text) <= 60 else f"{text[:60]}…", ensure_ascii=False)


def save(config: StageConfig, result: dict[str, Any], items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write the result, its per-item rows and its manifest, unless it goes to stdout, which the caller does."""
    output: str = config.output  # type: ignore[attr-defined]  # every evaluation's config has one
    path = file_of(output)
    if path is not None:
        result = result | {"items": _save_items(output, result["metric"], items)}
        write_json(path, result)
        manifest = {"rlaif": __version__, "stage": f"eval {result['metric']}", "settings": _settings(config)}
        manifest |= {"sha256": content_sha256(path)}
        if (usage := kept_usage(path)) is not None:
            assert isinstance(config, EngineConfig)
            manifest["usage"] = priced(dict(vars(usage)), config)
        write_json(sidecar(path, "manifest.json"), manifest)
        discard(path)
    return result


def _settings(config: StageConfig) -> dict[str, Any]:
    """The settings, with the hashes of the files that they name."""
    settings = config.deciding()
    names = [
        name for name in config.data_fields() if isinstance(settings.get(name), str) and names_records(settings[name])
    ]
    settings |= {f"{name}_sha256": content_sha256(*(file.path for file in files(settings[name]))) for name in names}
    return settings | judging_hashes(config)


def planned(metric: str, count: int) -> dict[str, Any]:
    """The result of a dry run: the number of items that would be scored."""
    return {"metric": metric, "n": count}


def check_preferences(pairs: Iterable[HumanPair], where: str) -> None:
    """Raises: InputError: every pair is a human tie."""
    if all(pair.human_fraction_a == 0.5 for pair in pairs):
        raise InputError("no pair has a preference to agree with", where=where)


def nothing_scored(config: Any, metric: str, what: str, where: str, items: Iterable[dict[str, Any]]) -> InputError:
    """The error for an evaluation without any scored item; per-item rows are saved with their reasons."""
    output = config.output
    if file_of(output) is None:
        reasons = {str(reason) for item in items if (reason := item.get("reason")) is not None}
        return InputError(what, where=where, errors=sorted(reasons))
    return InputError(what, where=where, hint=f"{_save_items(output, metric, items)} has the reasons")


def _save_items(output: str, metric: str, items: Iterable[dict[str, Any]]) -> str:
    path = beside(output, metric, "items")
    with open_for_writing(path, "w") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    return path.name
