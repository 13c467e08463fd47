"""The wheel: what it holds, and the jobs of an installed package, outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers.run_job import JOBS, WITHOUT_RAY

ROOT = JOBS.parent
NAMES = sorted(path.stem for path in JOBS.glob("*.py"))


def sources(*folders):
    """The files below folders of the checkout, by their names in it."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    files = (path.relative_to(ROOT) for path in found if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package installed from its wheel; the wheel lies beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("neuronstats", "jobs", "conf"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = ["wheel", *offline, "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run([*pip, *build], check=True)
    shutil.rmtree(folder / "source")
    [wheel] = folder.glob("*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", *offline, "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture
def neuronstats(installed, tmp_path):
    """neuronstats(words): the command of the installed package, in an empty folder."""

    def run(*words, code=0, through=(sys.executable, str(installed / "bin" / "neuronstats"))):
        done = subprocess.run(
            [*through, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return run


def test_it_holds_the_package_the_jobs_and_the_settings(installed):
    [wheel] = installed.parent.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    mapped = {f"neuronstats/{name}" for name in sources("jobs", "conf")}
    assert held == sources("neuronstats") | mapped


@pytest.mark.parametrize("name", NAMES)
def test_help(neuronstats, name):
    if name == "bench":
        _, err = neuronstats(name, "--help", code=2)
        assert err.startswith("error: bench needs a checkout")
        return
    out, err = neuronstats(name, "--help")
    assert f"neuronstats {name} [SETTING=VALUE ...]" in out
    assert err == ""


def test_the_command_without_a_job(neuronstats):
    out, _ = neuronstats("--help")
    assert "collect" in out
    for words in ([], ["colect"]):
        _, err = neuronstats(*words, code=2)
        assert err.startswith("error: ")
        assert "|".join(NAMES) in err


def test_jobs_with_a_folder_of_settings_of_ones_own(neuronstats, installed, tmp_path):
    (tmp_path / "own" / "model").mkdir(parents=True)
    mine = "name: mine\npath: embedded:opt-mini\n"
    (tmp_path / "own" / "model" / "mine.yaml").write_text(mine)
    own = ("--config-dir", "own")
    collect = ("collect", *own, "model=mine", "data.max_tokens=1024", "collect.layers=1")
    out, _ = neuronstats(*collect, through=WITHOUT_RAY)
    assert "runs/mine-sample" in out
    out, _ = neuronstats("reduce", "run=runs/mine-sample", through=WITHOUT_RAY)
    assert (tmp_path / "runs/mine-sample/tables/neurons.parquet").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"own", "runs"}
    out, _ = neuronstats("collect", *own, "--help")
    assert "mine" in out.split("model= ")[1]
    _, err = neuronstats("collect", *own, "model=yours", code=2)
    assert "local, mine, opt-1.3b" in err
