"""rlaif doctor"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from rlaif_cli.cli.options import Debug, SectionedCommand, epilog
from rlaif_cli.config.base import OUTPUT
from rlaif_cli.errors import EXIT_FAILED
from rlaif_cli.ui.console import Console

_STYLE = {"ok": "green", "note": "yellow", "missing": "bold red"}


def _as_json(finding: Any) -> dict[str, str]:
    """The key of `fix` is older than its name."""
    return {"mend" if name == "fix" else name: value for name, value in asdict(finding).items()}


def register(app: typer.Typer) -> None:
    @app.command("doctor", cls=SectionedCommand, epilog=epilog("rlaif doctor", "rlaif doctor --json"))
    def _doctor(
        context: typer.Context,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the findings as one JSON object.", rich_help_panel=OUTPUT)
        ] = False,
        debug: Debug = False,
    ) -> None:
        """Check what this machine can run."""
        from rich.table import Table
        from rich.text import Text

        from rlaif_cli.cli.diagnose import can_run, examine

        console: Console = context.obj
        console.debug = debug
        console.guard_stdout()
        findings = examine()
        if as_json:
            console.records.write(json.dumps({"checks": [_as_json(each) for each in findings]}) + "\n")
        else:
            table = Table("check", "", "finding", box=None, pad_edge=False)
            for each in findings:
                says = Text(each.says).append(f"\n-> {each.fix}" if each.fix else "", style="bold")
                table.add_row(each.what, Text(each.level, style=_STYLE[each.level]), says)
            console.show(table)
        if not can_run(findings):
            console.say("doctor: the demo cannot run here yet", style="bold red")
            raise typer.Exit(EXIT_FAILED)
        console.say("doctor: `rlaif demo` can run here", style="green")
