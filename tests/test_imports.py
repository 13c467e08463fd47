"""The arrows of the layout: folders import from folders above them; Ray and Hydra have one door."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "neuronstats"
# A folder (or module) imports from those before it, and any settings module.
ORDER = (
    *("errors", "units", "console", "machine", "hashing", "bits", "cluster", "corpus", "model"),
    *("store", "stats", "collect", "reduce", "check", "report", "training", "cli"),
)
PATHS = sorted((ROOT / PACKAGE).rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
LIGHT = ("errors", "units")  # besides the standard library, what a settings module may import


def name_of(path: Path) -> str:
    """A file's module, dotted, without the package's name."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PATHS}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions and for types alone as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def ours(path: Path) -> set[str]:
    """The package's modules that a file imports."""
    names = (name.removeprefix(f"{PACKAGE}.") for name in imported(path) if PACKAGE in name)
    return {name for name in names if name in MODULES and name}


def is_settings(name: str) -> bool:
    """Whether a module holds settings, which every folder may import."""
    return name.split(".")[-1] == "settings"


def test_folders_import_from_folders_above():
    wrong = []
    for name, path in MODULES.items():
        folder = name.split(".")[0]
        for other in ours(path):
            above = other.split(".")[0]
            if name and not is_settings(other) and ORDER.index(above) > ORDER.index(folder):
                wrong.append(f"{name} -> {other}")
    assert wrong == []


def test_no_circle():
    arrows = {name: ours(path) - {name} for name, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize(("library", "owner"), [("ray", "cluster"), ("hydra", "cli")])
def test_one_importer(library, owner):
    found = {
        name.split(".")[0]
        for name, path in [*MODULES.items(), *((path.name, path) for path in JOBS)]
        if any(n.split(".")[0] == library for n in imported(path))
    }
    assert found == {owner}


def test_jobs_import_nothing_of_each_other():
    for path in JOBS:
        assert not any(name.split(".")[0] == "jobs" for name in imported(path)), path.name


def test_the_architecture_page_lists_every_file():
    from tools import tree

    assert tree.page() == tree.PAGE.read_text(), "run: python tools/tree.py"
