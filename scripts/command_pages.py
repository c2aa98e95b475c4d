#!/usr/bin/env python3
"""Pages for every command, from what the command line itself says: `docs/commands/*.md`, and `docs/rlaif.1` for man.

`make docs` runs this; a test fails where the pages are not what it would write.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "commands"
MAN = ROOT / "docs" / "rlaif.1"
NOTE = "<!-- Made by scripts/command_pages.py from the command line itself: change the code, then `make docs`. -->"


def commands(group: Any, before: str = "") -> list[tuple[str, Any]]:
    """("eval alignment", its click command), in the order of `--help`."""
    found = []
    for name in group.list_commands(None):
        command = group.commands[name]
        deeper = hasattr(command, "commands")
        found += commands(command, f"{before}{name} ") if deeper else [(f"{before}{name}", command)]
    return found


def page(name: str, command: Any) -> str:
    from rlaif_cli.cli.options import flag

    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([f"rlaif {name}", *(p.name.upper() for p in arguments), "[OPTIONS]"])
    lines = [NOTE, "", f"# rlaif {name}", "", " ".join((command.help or "").split()), "", f"    {usage}", ""]
    if command.epilog:
        examples = command.epilog.split("Examples:\n")[1].splitlines()
        lines += ["Examples:", "", *(f"    {example.strip()}" for example in examples), ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{p.name.upper()}` | {_cell(p.help)} |" for p in arguments] + [""]
    lines += ["| option | default | |", "|---|---|---|"]
    for option in options:
        names = ", ".join(f"`{text}`" for text in sorted(option.opts or [flag(option.name)], key=len, reverse=True))
        lines.append(f"| {names} | {_default(option)} | {_cell(option.help)} |")
    return "\n".join(lines) + "\n"


def _default(option: Any) -> str:
    if option.required:
        return "needed"
    value = option.default
    if value is None or value is False or value in ("", (), []) or callable(value):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def pages() -> dict[str, str]:
    """File name -> text; the index is `README.md`."""
    import typer

    from rlaif_cli.cli.app import app

    found = {
        f"{name.replace(' ', '-')}.md": page(name, command) for name, command in commands(typer.main.get_command(app))
    }
    listed = [
        f"| [`rlaif {name}`]({name.replace(' ', '-')}.md) | {_cell(command.help).split('. ')[0].rstrip('.')} |"
        for name, command in commands(typer.main.get_command(app))
    ]
    found["README.md"] = (
        "\n".join([NOTE, "", "# Commands", "", "| command | what it does |", "|---|---|", *listed]) + "\n"
    )
    return found


def man_page() -> str:
    """All commands as one page for `man rlaif`."""
    import typer

    from rlaif_cli.cli.app import app

    group = typer.main.get_command(app)
    lines = ['.\\" Made by scripts/command_pages.py: change the code, then `make docs`.', ".TH RLAIF 1", ".SH NAME"]
    lines += [_roff(f"rlaif - {_cell(group.help)}"), ".SH SYNOPSIS", ".B rlaif", "COMMAND [ARGUMENTS] [OPTIONS]"]
    lines += [".SH COMMANDS"]
    for name, command in commands(group):
        arguments = "".join(f" {p.name.upper()}" for p in command.params if p.param_type_name == "argument")
        lines += [f".SS {_roff(f'rlaif {name}{arguments}')}", _roff(" ".join((command.help or "").split()))]
        for parameter in (p for p in command.params if p.name != "help"):
            names = ", ".join(sorted(parameter.opts, key=len)) if parameter.param_type_name == "option" else ""
            default = _default(parameter).strip("`") if names else ""
            told = " ".join((parameter.help or "").split()) + (f" [{default}]" if default else "")
            lines += [".TP", f".B {_roff(names or parameter.name.upper())}", _roff(told)]
    lines += [".SH EXIT STATUS"]
    for code, meaning in (
        ("0", "done"),
        ("1", "failed"),
        ("2", "wrong usage"),
        ("3", "done, but some rows could not be used, or audit --strict found a reason to stop"),
        ("130", "interrupted; the same command goes on"),
    ):
        lines += [".TP", f".B {code}", meaning]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    """Plain text for troff: no escape, request or hyphen of its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def main() -> int:
    PAGES.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for old in PAGES.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (PAGES / name).write_text(text, encoding="utf-8")
    MAN.write_text(man_page(), encoding="utf-8")
    print(f"docs: {len(wanted)} pages in {PAGES.relative_to(ROOT)}/, and {MAN.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
