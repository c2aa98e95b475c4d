"""rlaif lineage"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer

from rlaif_cli.cli.options import command
from rlaif_cli.config.report import LineageConfig
from rlaif_cli.errors import EXIT_FAILED
from rlaif_cli.ui.console import Console

_STYLE = {"as recorded": "green", "changed": "bold red", "missing": "bold red"}


def run(config: LineageConfig, console: Console) -> int:
    from rlaif_cli.pipeline.lineage import lineage

    root = lineage(config)
    if config.as_json:
        console.records.write(json.dumps(asdict(root), ensure_ascii=False) + "\n")
    else:
        from rich.tree import Tree

        console.show(_grow(Tree(_shown(root)), root))
    wrong = [node for node in root.walk() if node.state in ("changed", "missing")]
    for node in wrong:
        console.warn(f"{node.name}: {node.state}")
    return EXIT_FAILED if wrong else 0


def _shown(node: Any) -> Any:
    from rich.text import Text

    line = Text(f"{node.role}: " if node.role else "", style="dim").append(node.name, style="default")
    line.append(f"  {node.state}", style=_STYLE.get(node.state, "yellow"))
    made = [f"by rlaif {node.stage}"] if node.stage else []
    return line.append("  " + ", ".join([*made, *([node.sha256[:12]] if node.sha256 else [])]), style="dim")


def _grow(tree: Any, node: Any) -> Any:
    for part in node.inputs:
        _grow(tree.add(_shown(part)), part)
    return tree


def register(app: typer.Typer) -> None:
    command(app, "lineage", LineageConfig, run)
