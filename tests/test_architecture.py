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
    {"registry"},
    {"stats"},
    {"data"},
    {"models"},
    {"engines"},
    {"judge"},
    {"stages", "train"},
    {"evaluation"},
    {"pipeline"},
    {"report"},
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
    assert not describe(crossing), "what needs both belongs to evaluation"


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


# The only files that use the internals of other packages, and a documented function whose name has an underscore.
INTERNALS = {"engines.vllm_internals", "models.torch_internals", "models.transformers_internals"}
DOCUMENTED = {"sys._getframe", "os._exit"}


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.endswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """The private names that a module itself defines: functions, classes, and attributes of its classes and objects."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def foreign_private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name of another module: imported, `x._name`, or `getattr(x, "_name")`."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = [*str(node.module).split("."), *(name.name for name in node.names)]
            yield from ((node.lineno, part) for part in parts if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if (name := ast.unparse(node)) not in DOCUMENTED:
                yield node.lineno, name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in own:
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("module", modules())
def test_no_module_uses_the_private_names_of_another(module: str) -> None:
    """Private names of other packages are gathered in one file per package, which says what happens without them."""
    tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    found = list(foreign_private_names(tree))
    assert bool(found) == (module in INTERNALS - {"engines.vllm_internals"}), found


def test_no_module_patches_another_package() -> None:
    """`vllm.x.y = …` replaces a name of another package, private or not."""
    patching = set()
    for module in modules():
        tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
        packages = {
            name.asname or name.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            and (getattr(node, "module", None) or node.names[0].name).split(".")[0] in HEAVY | {"typer", "rich"}
            for name in node.names
        }
        stored = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
        if any(isinstance(n.value, ast.Name) and n.value.id in packages for n in stored):
            patching.add(module)
    assert patching == {"engines.vllm_internals"}


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
        and i.target.split(".")[0] in ("engines", "stages", "stats", "evaluation", "report", "pipeline")
        and not i.inside
    ]
    assert not describe(at_once)
