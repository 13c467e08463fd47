"""conf/, the command line and the exit codes: every file composes, every setting becomes plain."""

import dataclasses
import importlib.util
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
import yaml
from helpers.run_job import JOBS, run_job
from omegaconf import Container, DictConfig, ListConfig

from neuronstats import cli as config
from neuronstats.collect.settings import CollectJob
from neuronstats.errors import SettingsError, UserError

NAMES = sorted(path.stem for path in JOBS.glob("*.py"))
GROUPS = sorted(
    (path.parent.name, path.stem)
    for path in config.CONF.glob("*/*.yaml")
    if path.parent.name != "job"
)


def schema_of(name):
    """The settings that a job's main takes."""
    spec = importlib.util.spec_from_file_location(f"schema_{name}", JOBS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.modules.pop(spec.name)
    found = [v for v in vars(module).values() if dataclasses.is_dataclass(v)]
    [schema] = [v for v in found if v.__name__.lower() == f"{name}job"]
    return schema


def settings_of(monkeypatch, name, *overrides):
    """What a job's function is called with."""
    taken, schema = [], schema_of(name)
    assert end_of(monkeypatch, taken.append, *overrides, name=name, schema=schema) == config.DONE
    [settings] = taken
    assert type(settings) is schema
    return settings


def end_of(monkeypatch, function, *arguments, name="collect", schema=CollectJob):
    """The exit code of a job that does what a function does."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as end:
        config.job(name, schema)(function)()
    return end.value.code


def assert_plain(value):
    """Nothing of Hydra's is left, down to the last value."""
    assert not isinstance(value, Container | DictConfig | ListConfig)
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            assert_plain(getattr(value, item.name))
    elif isinstance(value, dict):
        for item in [*value, *value.values()]:
            assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or isinstance(value, str | int | float | bool | Enum)


MANDATORY = {"reduce": ["run=somewhere"]}


def test_every_job_has_a_configuration():
    assert {path.stem for path in config.CONF.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_job_settings_are_plain(monkeypatch, name):
    assert_plain(settings_of(monkeypatch, name, *MANDATORY.get(name, [])))


NEEDED = {("data", "local"): ["data.path=x"], ("data", "tokens"): ["data.path=x"]}


@pytest.mark.parametrize(("group", "choice"), GROUPS)
def test_every_choice_of_a_group(monkeypatch, group, choice):
    overrides = [f"{group}={choice}", *NEEDED.get((group, choice), [])]
    settings = settings_of(monkeypatch, "collect", *overrides)
    assert_plain(settings)
    if group != "ray":
        assert getattr(settings, group).name == choice  # the name that overrides are given by


def test_values_reach_their_settings(monkeypatch):
    settings = settings_of(
        monkeypatch,
        *("collect", "collect.layers=2", "ray.workers=3", "model.dtype=float16", "plan=true"),
    )
    assert (settings.collect.layers, settings.ray.workers, settings.plan) == (2, 3, True)
    assert settings.model.dtype.value == "float16"
    settings = settings_of(
        monkeypatch,
        *("reduce", "run=x", "reduce.ngrams=[1,2]", "reduce.max_cover={1: 7, 2: 9}"),
    )
    assert settings.reduce.ngrams == [1, 2]
    assert settings.reduce.max_cover == {1: 7, 2: 9, 3: 50}


@pytest.mark.parametrize(
    "overrides",
    [["data.shares={a: 1, b: 2.5}"], ["data.shares.a=1", "+data.shares.b=2.5"]],
)
def test_keys_of_a_dictionary_that_are_not_there_yet(monkeypatch, overrides):
    base = ("collect", "data=local", "data.path=x", "data.max_tokens=64")
    settings = settings_of(monkeypatch, *base, *overrides)
    assert settings.data.shares == {"a": 1.0, "b": 2.5}
    settings = settings_of(monkeypatch, "reduce", "run=x", "reduce.max_cover={4: 9}")
    assert settings.reduce.max_cover == {1: 5, 2: 50, 3: 50, 4: 9}


def test_default_run_folder(monkeypatch):
    assert settings_of(monkeypatch, "collect").location == "runs/opt-mini-sample"
    other = settings_of(monkeypatch, "collect", "model=opt-125m", "data=paper")
    assert other.location == "runs/opt-125m-paper"
    bucket = settings_of(monkeypatch, "collect", "run=s3://bucket/a/b")
    assert bucket.location == "s3://bucket/a/b"
    home = settings_of(monkeypatch, "collect", 'run="~/a"')
    assert home.location == str(Path.home() / "a")


def all_settings(monkeypatch, *arguments):
    """What a job is called with, one time after another, and how it ends."""
    found = []
    code = end_of(monkeypatch, found.append, *arguments)
    return found, code


def test_multirun_is_one_run_for_each_value(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    several = ["-m", "model=local", "model.path=a/checkpoint-1,a/checkpoint-2"]
    found, code = all_settings(monkeypatch, *several, "run=runs/${model.path}")
    assert [settings.location for settings in found] == [
        "runs/a/checkpoint-1",
        "runs/a/checkpoint-2",
    ]
    assert code == 0
    assert list(tmp_path.iterdir()) == []  # Hydra would write a multirun.yaml
    for wrong, says in (
        ("model=opt-mini,nope", "model=nope: there is none of that name"),
        ("data.max_tokens=2,z", "data.max_tokens=z"),
        ("data.max_tokens=2,-1", "data.max_tokens=-1"),
        ("--cfg=job", "Only one of"),
    ):
        assert all_settings(monkeypatch, "-m", wrong) == ([], 2), wrong  # not one was run
        assert says in capsys.readouterr().err


def test_multirun_ends_with_the_first_failure(monkeypatch):
    def function(settings):
        asked.append(settings.run)
        return 130 if settings.run == "b" else 0

    asked = []
    assert end_of(monkeypatch, function, "--multirun", "run=a,b,c") == 130
    assert asked == ["a", "b"]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (None, config.INTERRUPTED, ""),  # the job's own exit code
        (SettingsError("wrong so"), 2, "error: wrong so\n"),
        (UserError("failed so"), 1, "error: failed so\n"),
        (KeyboardInterrupt(), 130, "what was committed stays"),
        (ZeroDivisionError("oh"), 1, "error: this is a defect of neuronstats (ZeroDivisionError"),
    ],
)
def test_exit_codes(monkeypatch, capsys, raised, code, message):
    def function(settings):
        if raised is not None:
            raise raised
        return code

    assert end_of(monkeypatch, function) == code
    last = capsys.readouterr().err.split("error: ")[-1]
    assert message.removeprefix("error: ") in last


def keys(settings, prefix=""):
    """The name of each setting, as it is given on the command line."""
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_setting(name, tmp_path):
    code, out, err = run_job(name, "--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert f"python jobs/{name}.py" in out
    lines = out.split("\n")
    for key in keys(schema_of(name)()):
        [at] = [i for i, line in enumerate(lines) if line.startswith(f"  {key}=")]
        assert lines[at + 1].startswith("      "), f"{key} is not explained"
    if name == "collect":
        assert "data= local, paper, sample, tokens" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_cfg_prints_the_settings(name, tmp_path):
    code, out, err = run_job(name, "--cfg", "job", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert set(yaml.safe_load(out)) == {f.name for f in dataclasses.fields(schema_of(name))}
    assert not list(tmp_path.iterdir())


# What starts quickly imports none of these: each takes seconds.
HEAVY = {"torch", "numba", "ray", "transformers", "pyarrow", "zarr", "matplotlib", "datasets"}


@pytest.mark.parametrize("name", NAMES)
def test_help_imports_nothing_heavy(name):
    """By the modules that are there afterwards; the seconds would depend on the machine."""
    script = "import runpy, sys\nsys.argv = ['job', '--help']\ntry:\n    "
    script += f"runpy.run_path({str(JOBS / name) + '.py'!r}, run_name='__main__')\n"
    script += "except SystemExit:\n    print('modules:', *sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = run.stdout.split("modules:")[1].split()
    assert "neuronstats.cli" in modules
    assert not HEAVY & set(modules)


def test_hydra_may_raise_as_it_likes_elsewhere(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    settings_of(monkeypatch, "collect")
    import os

    assert "HYDRA_FULL_ERROR" not in os.environ
