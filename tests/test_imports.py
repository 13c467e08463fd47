"""The arrows of the layout: imports go downwards, and Ray and Hydra each have one door."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "neuronstats"
MODULES = {path.stem: path for path in sorted((ROOT / PACKAGE).glob("*.py"))}
JOBS = sorted((ROOT / "jobs").glob("*.py"))
# The jobs' bodies, which take their settings.
DRIVERS = {"collect", "prepare", "reduce", "report", "bench", "bench_page"}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions and for types alone as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def below(path: Path) -> set[str]:
    """The package's modules that a file imports."""
    parts = (name.split(".") for name in imported(path))
    return {p[1] for p in parts if p[0] == PACKAGE and len(p) > 1 and p[1] in MODULES}


def test_imports_go_downwards():
    arrows = {name: below(path) for name, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize(("library", "owner"), [("ray", "cluster"), ("hydra", "config")])
def test_one_importer(library, owner):
    paths = [*MODULES.values(), *JOBS]
    found = {p.name for p in paths if any(n.split(".")[0] == library for n in imported(p))}
    assert found == {f"{owner}.py"}


def test_only_jobs_know_the_configuration():
    found = {name for name, path in MODULES.items() if "config" in below(path)}
    assert found <= DRIVERS


def test_jobs_import_nothing_of_each_other():
    for path in JOBS:
        assert not any(name.split(".")[0] == "jobs" for name in imported(path)), path.name
