"""The documentation matches the program."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from helpers import ROOT
from rlaif_cli.cli.app import app
from rlaif_cli.cli.options import options_by_section

PAGES = ROOT / "docs" / "commands"


@pytest.fixture(scope="module")
def command_pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("command_pages", ROOT / "scripts" / "command_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_commands_are_up_to_date(command_pages: ModuleType) -> None:
    written = {path.name: path.read_text("utf-8") for path in PAGES.glob("*.md")}
    pages = command_pages.pages()
    assert written == pages, "`make docs` writes them"
    assert (ROOT / "mkdocs.yml").read_text("utf-8") == command_pages.site(pages), "`make docs` lists them"


def test_the_man_page_is_up_to_date_and_man_can_show_it(command_pages: ModuleType) -> None:
    page = (ROOT / "docs" / "rlaif.1").read_text("utf-8")
    assert page == command_pages.man_page(), "`make docs` writes it"
    known = ('.\\"', ".TH", ".SH", ".SS", ".PP", ".TP", ".B ", ".I ")
    assert all(line.startswith(known) for line in page.splitlines() if line.startswith((".", "'")))
    assert "\\-\\-constitution" in page and ".SS rlaif eval win\\-rate A B" in page
    if shutil.which("man"):
        shown = subprocess.run(
            ["man", "-l", "--warnings", str(ROOT / "docs" / "rlaif.1")], capture_output=True, text=True
        )
        assert shown.returncode == 0 and not shown.stderr, shown.stderr


def test_every_command_has_an_example_that_could_be_run(command_pages: ModuleType) -> None:
    group = typer.main.get_command(app)
    for name, command in command_pages.commands(group):
        examples = re.findall(r"^  (rlaif .*)$", command.epilog or "", re.MULTILINE)
        assert examples, name
        for example in examples:
            words = shlex.split(re.split(r" [|<>] ", example)[0])[1:]
            found: Any = group
            while hasattr(found, "commands"):
                found = found.commands[words.pop(0)]
            assert found is command or name in example, example
            found.make_context(name, words)  # raises where an option or argument is not known, or lacks


def test_help_shows_every_option_in_exactly_one_section_and_a_commands_own_first(command_pages: ModuleType) -> None:
    for name, command in command_pages.commands(typer.main.get_command(app)):
        sections = options_by_section(command)
        listed = [option.name for options in sections.values() for option in options]
        assert sorted(listed) == sorted(each.name for each in command.params if each.param_type_name == "option"), name
        text = command.get_help(command.make_context(name, [], resilient_parsing=True))
        shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
        assert len(shown) == len(set(shown)) == len(listed) + 1, name  # --help is Typer's


def test_help_has_a_heading_for_each_section(command_pages: ModuleType) -> None:
    for name, command in command_pages.commands(typer.main.get_command(app)):
        text = command.get_help(command.make_context(name, [], resilient_parsing=True))
        headings = re.findall(r"^(\w.*):$", text, re.MULTILINE)
        arguments = ["Arguments"] if any(each.param_type_name == "argument" for each in command.params) else []
        assert headings == [*arguments, *(options_by_section(command) or ["Options"])], name


@pytest.mark.parametrize("name", ["label", "ppo"])
def test_help_shows_a_commands_own_options_first(name: str) -> None:
    command: Any = typer.main.get_command(app)
    command = command.commands[name]
    text = command.get_help(command.make_context(name, [], resilient_parsing=True))
    own = "--pairs" if name == "label" else "--steps"
    places = [text.index(f"  {option} ") for option in (own, "--engine", "--dry-run")]
    assert places == sorted(places)


def links(path: Path) -> list[str]:
    text = re.sub(r"^(```.*?^```|    .*?$)", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
)
def test_no_link_leads_nowhere(path: Path) -> None:
    for link in links(path):
        target, _, _ = link.partition("#")
        assert not target or target.startswith("http") or (path.parent / target).exists(), f"{path}: {link}"


def test_the_page_about_ppo_says_where_each_detail_is() -> None:
    """Its last column: `train/ppo.py: sample_seeds` is a function or class of that file."""
    table = (ROOT / "docs" / "ppo.md").read_text("utf-8").partition("## The details")[2].partition("\n## ")[0]
    places = re.findall(r"`([\w/]+\.py): ([\w, ]+)`", table)
    assert len(places) > 20
    for file, names in places:
        source = (ROOT / "src" / "rlaif_cli" / file).read_text("utf-8")
        for name in names.split(", "):
            assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{file}: {name}"
