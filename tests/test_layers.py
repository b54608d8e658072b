"""The package's shape, read from its source: imports go down, never round, and names come from one place."""

import ast
import importlib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import manyhands

ROOT = Path(manyhands.__file__).parent

BELOW = {
    "_version": set(),
    "errors": set(),
    "core": {"_version", "errors"},
    "sharing": {"core", "errors"},
    "checkpoints": {"core", "sharing", "errors"},
    "exchange": {"core", "sharing", "errors"},
    "hub": {"core", "sharing", "checkpoints", "exchange", "errors", "_version"},
    "worker": {"core", "sharing", "checkpoints", "exchange", "errors", "_version"},
    "frameworks": {"core", "sharing", "exchange", "worker", "errors"},
    "engines": {"core", "sharing", "checkpoints", "exchange", "worker", "errors"},
    "testing": {"core", "sharing", "exchange", "worker", "errors", "_version"},
    "cli": {
        "core",
        "sharing",
        "checkpoints",
        "exchange",
        "hub",
        "worker",
        "frameworks",
        "engines",
        "errors",
        "_version",
    },
    "__main__": {"cli"},
}
"""What each part of the package may import. Only the table of public names, `__init__`, may import any."""

LOOKED_UP = {"manyhands.worker.driving", "manyhands.worker.datasets"}
"""Who finds the frameworks by name: nothing else may, or the table above would mean nothing."""


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("manyhands", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imports(name: str, *, at_run_time: bool = False) -> set[str]:
    """Our modules that this one imports, wherever in it; those for types only are left out `at_run_time`."""
    tree = modules()[name]
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: {ast.unparse(node)}"
            assert node.module
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules())
            found |= inside or {node.module}
    return {each for each in found if each.partition(".")[0] == "manyhands"}


def part(name: str) -> str:
    """The part of the package that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def test_every_part_of_the_package_has_its_place_in_the_layers() -> None:
    assert {part(name) for name in modules()} == {*BELOW, "__init__"}


@pytest.mark.parametrize("layer", BELOW)
def test_imports_go_down_only(layer: str) -> None:
    up = [
        f"{name} imports {other}"
        for name in modules()
        if part(name) == layer
        for other in imports(name)
        if part(other) not in BELOW[layer] | {layer}
    ]
    assert not up


def test_the_hub_and_the_worker_never_import_each_other() -> None:
    for one, other in (("hub", "worker"), ("worker", "hub")):
        reached, new = set[str](), {name for name in modules() if part(name) == one}
        while new:
            reached |= new
            new = {found for name in new for found in imports(name) if found in modules()} - reached
        assert not {name for name in reached if part(name) == other}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: imports(name, at_run_time=True) & set(modules()) - {"manyhands"} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"the modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_the_core_imports_no_clock_no_thread_no_socket_and_no_tensor() -> None:
    effects = {"time", "threading", "socket", "asyncio", "selectors", "subprocess", "logging", "torch"}
    for name, tree in modules().items():
        if part(name) == "core":
            found = {
                alias.name.partition(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in (
                    node.names if isinstance(node, ast.Import) else [ast.alias(str(node.module), None)]
                )
            }
            assert not found & effects, f"{name} imports {found & effects}"


def test_only_the_search_for_frameworks_imports_by_name() -> None:
    by_name = {
        name
        for name, tree in modules().items()
        if name != "manyhands"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in ("import_module", "__import__")
    }
    assert by_name == LOOKED_UP


def test_public_names_are_exported_in_one_place() -> None:
    elsewhere = [
        name
        for name, tree in modules().items()
        if name != "manyhands"
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__"
    ]
    assert not elsewhere
    packages = {name for name in modules() if (ROOT.parent / Path(*name.split(".")) / "__init__.py").exists()}
    for name in packages - {"manyhands", "manyhands.frameworks.torch"}:
        assert not imports(name), f"{name} passes on names of other modules"


def test_every_public_name_is_there_and_is_itself_where_it_lives() -> None:
    for name in manyhands.__all__:
        value = getattr(manyhands, name)
        if name != "__version__":
            assert getattr(importlib.import_module(manyhands._HOMES[name]), name) is value
    assert {*manyhands._HOMES, "__version__"} == set(manyhands.__all__)
