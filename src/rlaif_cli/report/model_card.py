"""Model cards: how a checkpoint was trained, by which judge, and what was measured.

The front matter is for the Hugging Face hub. What a run does not know (the licence, the intended use) is left to the
owner, and the card says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlaif_cli import __version__
from rlaif_cli.data.atomic import open_for_writing
from rlaif_cli.pipeline.lineage import manifest_of
from rlaif_cli.registry import Makes
from rlaif_cli.report.advice import caution, headline
from rlaif_cli.report.chain import chains
from rlaif_cli.report.findings import found_in
from rlaif_cli.report.numbers import as_text
from rlaif_cli.report.run_folder import Run, Stage

# kind of model: (task for the hub, description)
_KINDS: dict[Makes | None, tuple[str, str]] = {
    "policy": ("text-generation", "a policy, tuned by {stage}"),
    "fine-tuned model": ("text-generation", "a fine-tuned model"),
    "reward model": ("text-classification", "a reward model: one number for a conversation, higher is better"),
}
# The settings to list; the manifest has all of them.
_SETTINGS = (
    *(
        "model",
        "reward_model",
        "reward_function",
        "reward_weights",
        "judge",
        "method",
        "constitution",
        "principles",
        "hard_labels",
        "ties",
        "patience",
        "advantage",
        "steps",
    ),
    *("epochs", "lr", "kl_coef", "lora_rank", "seed"),
)


def write_cards(run: Run) -> list[Path]:
    """Write `README.md` into every checkpoint of the run that still exists; returns the written files."""
    written = []
    for stage in run.stages:
        folder = run.locate(stage.settings.get("output")) if stage.makes in _KINDS else None
        if folder is not None and folder.is_dir():
            path = folder / "README.md"
            with open_for_writing(path, "w") as file:
                file.write(card(run, stage, folder))
            written.append(path)
    return written


def card(run: Run, stage: Stage, folder: Path) -> str:
    task, words = _KINDS[stage.makes]
    words = words.format(stage=stage.title)
    judged = bool(run.making("preferences") or stage.settings.get("judge"))
    front = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "base_model": stage.settings.get("model"),
        "tags": ["rlaif", "reward-model"] if stage.makes == "reward model" else ["rlaif"],
    }
    manifest = manifest_of(folder) or {}
    hashes = {key: value for key, value in manifest.items() if key.endswith("sha256")}
    hashes |= {key: value for key, value in manifest.get("settings", {}).items() if key.endswith("sha256")}
    settings = {key: value for key in _SETTINGS if (value := stage.settings.get(key)) not in (None, False, [], 0)}
    found = chains(run)
    lines = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=True)}" for key, value in front.items()),  # JSON is YAML
        "---",
        "",
        f"# {as_text(run.name)}: {as_text(stage.name)}",
        "",
        f"This is {words}, made by `rlaif {stage.kind}` {__version__} in the run '{as_text(run.name)}'."
        + (" Its preferences came from a language model that judged by written principles, not from people." * judged),
        "",
        *_section("What was found", [headline(found), caution(found[0]), *found_in(run)]),
        *_table("How it was made", settings),
        *_table("Inputs (sha256)", hashes),
        "## What this card does not cover",
        "",
        "The licence follows from the base model and the prompts. The intended use and its tests are up to its owner.",
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, sentences: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {as_text(sentence)}" for sentence in sentences if sentence), ""]


def _table(title: str, rows: dict[str, Any]) -> list[str]:
    if not rows:
        return []
    cells = [f"| {as_text(key.replace('_', ' '))} | {as_text(value)} |" for key, value in rows.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *cells, ""]
