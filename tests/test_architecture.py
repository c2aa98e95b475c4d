"""Imports point downwards through the layers; read from the source, nothing is imported.

`train` and `stages` stand side by side. Imports under `if TYPE_CHECKING` count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "rlaif_cli"
HEAVY = {"vllm", "ray", "openai", "torch", "transformers", "peft"}

# From the bottom up: a module may import from its own layer and from those above it in this list.
LAYERS = [
    {"__init__", "errors", "machine", "config.naming"},
    {"ui"},
    {"config"},
    {"stats"},
    {"data"},
    {"models"},
    {"engines"},
    {"judge"},
    {"stages", "train"},
    {"evaluation"},
    {"pipeline"},
    {"report"},
    {"registry"},
    {"api"},
    {"cli"},
    {"__main__", "worker"},
]


class Import(NamedTuple):
    """`module` uses `target`; `inside`: within a function, so not before it is called."""

    module: str
    target: str
    inside: bool
    line: int


def modules() -> list[str]:
    return [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in sorted(PACKAGE.rglob("*.py"))]


def imports(module: str) -> Iterator[Import]:
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text("utf-8"))

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(module, name.name, inside, child.lineno) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{path}:{child.lineno}: imports are absolute"
                # `from rlaif_cli import models` means the module rlaif_cli.models
                names = [f"{child.module}.{name.name}" for name in child.names]
                found = [name if is_module(name) else child.module for name in names]
                yield from (Import(module, name, inside, child.lineno) for name in dict.fromkeys(found))
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside or function)

    return walk(tree, False)


def is_module(name: str) -> bool:
    parts = name.split(".")
    if parts[0] != "rlaif_cli":
        return False
    path = PACKAGE.joinpath(*parts[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def layer(module: str) -> int:
    """The place of a module (without `rlaif_cli.`) in LAYERS: its own, else its package's."""
    for name in (module, module.split(".")[0]):
        for place, names in enumerate(LAYERS):
            if name in names:
                return place
    raise AssertionError(f"{module} stands in no layer: say in LAYERS where it belongs")


ALL = [found for module in modules() for found in imports(module)]
OWN = [
    found._replace(target=found.target.removeprefix("rlaif_cli").lstrip(".") or "__init__")
    for found in ALL
    if found.target.split(".")[0] == "rlaif_cli"
]


def describe(found: list[Import]) -> list[str]:
    return [f"{i.module}.py:{i.line} imports {i.target}" for i in found]


def test_there_is_something_to_read() -> None:
    assert len(OWN) > 150 and {"cli.app", "train.math.kl", "engines.vllm"} <= set(modules())
    assert any(i[:3] == ("train.math.kl", "torch", False) for i in ALL)


@pytest.mark.parametrize("module", modules())
def test_imports_point_downwards(module: str) -> None:
    upwards = [i for i in OWN if i.module == module and layer(i.target) > layer(module)]
    if module == "__init__":  # the names of the API, for type checkers alone
        upwards = [i for i in upwards if i.target != "api"]
    assert not describe(upwards)


def test_trainers_and_stages_do_not_know_each_other() -> None:
    crossing = [i for i in OWN if {i.module.split(".")[0], i.target.split(".")[0]} == {"train", "stages"}]
    assert not describe(crossing), "what needs both belongs to evaluation or the registry"


def test_only_sessions_open_engines_for_a_judge() -> None:
    """A judge knows the protocol; what opens the engines of a config is in three files."""
    opening = {i.module for i in OWN if i.module.startswith("judge.") and i.target.startswith("engines")}
    beyond = {
        i.module for i in OWN if i.module in opening and i.target.startswith("engines") and i.target != "engines.base"
    }
    assert beyond <= {"judge.compare", "judge.context_budget", "judge.session"}


def test_stages_know_no_torch_and_no_typer() -> None:
    known = [i for i in ALL if i.module.startswith("stages") and i.target.split(".")[0] in HEAVY | {"typer", "rich"}]
    assert not describe(known)


def test_stages_and_trainers_print_nothing() -> None:
    for module in modules():
        if module.split(".")[0] in ("stages", "train", "engines"):
            tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
            calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
            assert not [c.lineno for c in calls if isinstance(c, ast.Name) and c.id == "print"], module


def test_the_mathematics_imports_torch_alone() -> None:
    targets = {i.target for i in ALL if i.module.startswith("train.math.")}
    own = {target for target in targets if target.startswith("rlaif_cli.train.math")}
    standard = {"__future__", "collections.abc", "dataclasses", "math", "typing"}
    assert {target.split(".")[0] for target in targets - own - standard} == {"torch"}


def test_statistics_import_numpy_alone() -> None:
    targets = {i.target.split(".")[0] for i in ALL if i.module.startswith("stats.")}
    assert targets <= {
        "__future__",
        "collections",
        "dataclasses",
        "functools",
        "math",
        "numpy",
        "re",
        "rlaif_cli",
        "statistics",
        "unicodedata",
        "typing",
    }


def test_config_imports_pydantic_alone() -> None:
    targets = {i.target for i in ALL if i.module.startswith("config.")}
    assert {t for t in targets if t.startswith("rlaif_cli")} <= {
        f"rlaif_cli.{m}" for m in modules() if m.startswith("config.")
    }


def test_no_file_grows_beyond_400_lines() -> None:
    long = {
        module: len(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8").splitlines())
        for module in modules()
    }
    assert not {module: lines for module, lines in long.items() if lines > 400}


def test_heavy_packages_are_imported_when_they_are_needed() -> None:
    at_once = [
        i
        for i in ALL
        if i.target.split(".")[0] in HEAVY
        and not i.inside
        and i.module.split(".")[0] not in ("train", "engines")
        and i.module != "pipeline.plan.measure_training"  # itself imported when it is called
    ]
    assert not describe(at_once)
    # vllm, ray and openai are optional: nobody may need them merely by being imported.
    optional = [i for i in ALL if i.target.split(".")[0] in ("vllm", "ray", "openai") and not i.inside]
    assert not describe(optional)


def test_commands_wait_with_all_that_is_heavy() -> None:
    """`rlaif --help` imports every command, so none may import an engine, a stage or a trainer at once."""
    at_once = [
        i
        for i in OWN
        if i.module.split(".")[0] == "cli"
        and i.target.split(".")[0] in ("engines", "stages", "stats", "evaluation", "report", "pipeline", "registry")
        and not i.inside
    ]
    assert not describe(at_once)
