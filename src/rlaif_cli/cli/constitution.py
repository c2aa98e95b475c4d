"""rlaif constitution list | show | check"""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif_cli.cli.options import SectionedCommand, epilog
from rlaif_cli.config.base import OUTPUT
from rlaif_cli.ui.console import Console

if TYPE_CHECKING:  # each command imports it at run time
    from rlaif_cli.judge.constitution import Constitution

app = typer.Typer(
    name="constitution",
    help="List, show and check the principles of a judge.",
    no_args_is_help=True,
)


@app.command("list", cls=SectionedCommand, epilog=epilog("rlaif constitution list"))
def list_() -> None:
    """List the constitutions that ship with rlaif: name, number of principles, description."""
    from rlaif_cli.judge.constitution_files import load_constitution, shipped_constitutions

    constitutions = [load_constitution(name) for name in shipped_constitutions()]
    width = max(len(constitution.name) for constitution in constitutions)
    for constitution in constitutions:
        count = len(constitution.principles)
        typer.echo(f"{constitution.name:<{width}}  {count} principles  {constitution.description}")


@app.command(cls=SectionedCommand, epilog=epilog("rlaif constitution show helpfulness"))
def show(
    name: Annotated[str, typer.Argument(help="Name of a shipped constitution, or a YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Show a whole constitution: its framing, principles, contrast prompts and exemplars."""
    from rlaif_cli.judge.constitution_files import load_constitution

    constitution = load_constitution(name)
    if as_json:
        typer.echo(json.dumps(_as_data(constitution), ensure_ascii=False, indent=2))
    else:
        width = min(shutil.get_terminal_size().columns, 110)
        typer.echo("\n".join(_as_text(constitution, width)))


@app.command(cls=SectionedCommand, epilog=epilog("rlaif constitution check my.yaml"))
def check(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped constitution.")],
) -> None:
    """Check a constitution file and list all of its errors with line and field.

    Warnings point out what is allowed but probably unintended. Nothing is printed to stdout.
    """
    from rlaif_cli.judge.constitution_files import load_constitution

    console: Console = context.obj
    constitution = load_constitution(path)
    for warning in constitution.warnings():
        console.warn(f"{path}: {warning}")
    console.say(
        f"ok: {path}: '{constitution.name}', {len(constitution.principles)} principles, "
        f"{len(constitution.exemplars)} exemplars, sha256 {constitution.sha256[:12]}"
    )


def _as_data(constitution: Constitution) -> dict[str, object]:
    return {**constitution.model_dump(mode="json", by_alias=True), "sha256": constitution.sha256}


def _as_text(constitution: Constitution, width: int) -> list[str]:
    """The constitution as lines of plain text."""

    def block(label: str, text: str) -> list[str]:
        indent = " " * 14
        paragraphs = [
            textwrap.wrap(paragraph, max(width, 40), initial_indent=indent, subsequent_indent=indent) or [""]
            for paragraph in text.splitlines()
        ]
        lines = [line for paragraph in paragraphs for line in paragraph]
        return [f"  {label:<12}{lines[0].strip()}", *lines[1:]]

    out = [f"{constitution.name}: {constitution.description}", f"sha256 {constitution.sha256}", ""]
    out += textwrap.wrap(constitution.preamble, max(width, 40))
    total = sum(principle.weight for principle in constitution.principles)
    for number, principle in enumerate(constitution.principles, 1):
        notes = f"drawn {principle.weight / total:.1%} of the time"
        if principle.choose == "worse":
            notes += "; asks for the WORSE response, so the label is inverted"
        out += ["", f"Principle {number}: {principle.id} ({notes})", *block("text", principle.text)]
        if principle.for_ is not None and principle.against is not None:
            out += block("for", principle.for_) + block("against", principle.against)
    for number, exemplar in enumerate(constitution.exemplars, 1):
        out += ["", f"Exemplar {number}" + (f" (for {exemplar.principle})" if exemplar.principle else "")]
        out += block("prompt", exemplar.prompt)
        out += block("response 1", exemplar.response_1) + block("response 2", exemplar.response_2)
        out += block("rationale", exemplar.rationale) + block("answer", str(exemplar.answer))
    return out
