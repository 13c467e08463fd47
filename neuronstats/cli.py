"""The only importer of hydra: conf/ and the command line -> plain settings; exit codes.

Settings are dataclasses that live beside what they set; here they are put together for each job.
"""

import argparse
import ast
import contextlib
import difflib
import inspect
import itertools
import os
import runpy
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuronstats.errors import DONE, FAILED, INTERRUPTED, SettingsError, UserError

PACKAGE = Path(__file__).parent
# In a wheel jobs/ and conf/ are inside the package; in a checkout they lie beside it.
HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF, JOBS = HOME / "conf", HOME / "jobs"

Settings = TypeVar("Settings")


def command() -> None:
    """Run `neuronstats NAME SETTING=VALUE ...`, the same as `python jobs/NAME.py ...`."""
    names = sorted(path.stem for path in JOBS.glob("*.py"))
    usage = f"neuronstats {'|'.join(names)} [SETTING=VALUE ...]; neuronstats NAME --help explains"
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in ("--help", "-h"):
        sys.stdout.write(f"{usage}\n")
        sys.exit(DONE)
    if name not in names:
        got = "no job was named" if name is None else f"{name}: there is no such job"
        sys.exit(_complain(SettingsError(f"{got}; expected {usage}")))
    del sys.argv[1]
    runpy.run_path(str(JOBS / f"{name}.py"), run_name="__main__")


def job(
    name: str, schema: type[Any], *, several: bool = False
) -> Callable[[Callable[..., int | None]], Callable[[], None]]:
    """Make a function of settings the main of a job.

    Args:
        name: its file in conf/.
        schema: the job's settings.
        several: whether the function takes all runs that -m (--multirun) asks for, as arguments;
            else it is called for each, up to the first that does not end well.

    Returns:
        A decorator; what it returns reads the command line and ends the process with the
        contract's exit code: 0 done, 1 failed, 2 wrong settings, 75 the cluster or the
        store went away, 130 interrupted.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[[], None]:
        def main() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):
                sys.stdout.write(explain(name, schema))
                sys.exit(DONE)
            code = _finish(function, name, schema, several=several)
            _drop_unread_output()
            sys.exit(code)

        return main

    return decorate


def _finish(
    function: Callable[..., int | None], name: str, schema: type[Any], *, several: bool
) -> int:
    """Call a job's function; turn what it raises into a message and an exit code."""
    try:
        runs = [to_settings(config, schema) for config in _compose(name, schema)]
        if several and runs:
            return function(*runs) or DONE
        for settings in runs:  # all were looked at before the first is touched
            if code := function(settings):
                return code
        return DONE
    except UserError as error:
        return _complain(error)
    except KeyboardInterrupt:
        sys.stderr.write(
            "interrupted: what was committed stays. The same command goes on where it stopped.\n"
        )
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    except Exception as error:  # noqa: BLE001 - a defect: say where, and still end in one line
        traceback.print_exc()
        sys.stderr.write(
            f"error: this is a defect of neuronstats ({error!r}); what was committed stays.\n"
        )
        return FAILED


def _drop_unread_output() -> None:
    """Drop what a closed pipe does not take: Python's last flush would change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(error: UserError) -> int:
    sys.stderr.write(f"error: {error}\n")
    return error.code


def _compose(name: str, schema: type[Any]) -> list[Any]:
    """Read conf/ and the command line with Hydra.

    Returns:
        The configuration; with --multirun those of all combinations of values separated by commas;
        none where Hydra only prints, as with --cfg job.

    Raises:
        SettingsError: the command line is refused.
    """
    ConfigStore.instance().store(name=f"base_{name}", node=schema)
    found: list[Any] = []
    try:
        with _hydra_errors_raised(), _new_keys_allowed(schema), _sweep_files_dropped():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(found.append)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # flags at odds: the last
        raise SettingsError(_refusal(error, schema)) from error
    return found


@contextlib.contextmanager
def _new_keys_allowed(schema: type[Any]) -> Iterator[None]:
    """Allow Hydra to set new keys of a dictionary, such as data.shares={a: 1}."""
    before = sys.argv
    sys.argv = ["++" * _in_dictionary(word.partition("=")[0], schema) + word for word in before]
    try:
        yield
    finally:
        sys.argv = before


def _in_dictionary(key: str, schema: type[Any]) -> bool:
    """Return whether a setting is a dictionary, or a key of one."""
    at: Any = schema()
    for part in key.split("."):
        at = at if isinstance(at, dict) else getattr(at, part, None)
    return isinstance(at, dict)


@contextlib.contextmanager
def _sweep_files_dropped() -> Iterator[None]:
    """Send what Hydra writes of a --multirun to a folder that is then removed."""
    before = sys.argv
    given = [argument for argument in before[1:] if argument not in ("--multirun", "-m")]
    if len(given) == len(before) - 1:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        # Hydra's flags must not stand between overrides.
        at = next((i for i, word in enumerate(given) if "=" in word), len(given))
        own = f"hydra.sweep.dir={folder}"
        sys.argv = [before[0], "--multirun", *given[:at], own, *given[at:]]
        try:
            yield
        finally:
            sys.argv = before


@contextlib.contextmanager
def _hydra_errors_raised() -> Iterator[None]:
    """Make Hydra raise its errors; by itself it prints them and ends with exit code 1."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _refusal(error: Exception, schema: type[Any]) -> str:
    """Write which override is wrong, what there is, and what to do."""
    for override in sys.argv[1:]:
        key, _, value = override.lstrip("+~").partition("=")
        is_flag = override.startswith("-") or "=" not in override  # or a flag's value
        reason = None if is_flag else _unknown(key, value, schema)
        if reason:
            return reason
    reason = _first_line(error.__cause__ or error)
    if "Ambiguous value" in reason:
        return f"{reason}: one run takes one value; -m does a run for each."
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read ({reason}). Expected KEY=VALUE; a value with signs"
            """ that mean something to Hydra goes into two kinds of quotes: 'KEY="VALUE"'."""
        )
    merging = "Error merging override "
    if not str(error).startswith(merging):
        return reason
    override = _first_line(error).removeprefix(merging)
    key, _, value = override.lstrip("+~").partition("=")
    if "is not a ListConfig" in reason:
        reason = f"expected a list, {key}=[{value}]"
    return f"{override}: {reason}. {_meaning(key, schema)}".rstrip()


def _unknown(key: str, value: str, schema: type[Any]) -> str | None:
    """Return what there is instead, if there is no such setting, choice of a group, or value."""
    choices = _groups(schema).get(key)
    if choices is not None:
        wrong = [one for one in value.split(",") if one and one not in choices]
        if not wrong:
            return None
        return f"{key}={wrong[0]}: there is none of that name; choose one of {', '.join(choices)}."
    at, prefix = schema, ""
    for part in key.split("."):
        there = [item.name for item in fields(at)]
        if part == "hydra" and not prefix:
            return None
        if part not in there:
            near = difflib.get_close_matches(part, there, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else "."
            known = ", ".join(prefix + name for name in there)
            return f"{key}: there is no such setting{hint} There are {known}."
        inner = getattr(at(), part)
        if not is_dataclass(inner):
            return None
        at, prefix = type(inner), f"{prefix}{part}."
    if value.startswith("{"):
        return None
    own = ", ".join(prefix + item.name for item in fields(at))
    return f"{key}={value}: {key} has settings of its own: {own}."


def _groups(schema: type[Any]) -> dict[str, list[str]]:
    """Return a job's groups with the names that may be chosen, those of --config-dir included."""
    folders = [CONF, *_own_folders()]
    names = {
        item.name: sorted({p.stem for at in folders for p in (at / item.name).glob("*.yaml")})
        for item in fields(schema)
    }
    return {group: found for group, found in sorted(names.items()) if found}


def _own_folders() -> list[Path]:
    """Return the folder that --config-dir names, if it is given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[])
    found: list[Path] = parser.parse_known_args()[0].config_dir
    return found


def _meaning(key: str, schema: type[Any]) -> str:
    """Return what stands under a setting in its dataclass."""
    *outer, name = key.split(".")
    at: Any = schema
    for part in outer:
        at = type(getattr(at(), part, None))
        if not is_dataclass(at):
            return ""
    return field_docstrings(at).get(name, "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def to_settings(config: Any, schema: type[Settings]) -> Settings:
    """Resolve Hydra's configuration into plain dataclasses.

    Raises:
        SettingsError: a value is missing or of the wrong type.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise SettingsError(f"{missing[0]}= is missing. {_meaning(missing[0], schema)}".rstrip())
    try:
        settings = OmegaConf.to_object(config)
    except (OmegaConfBaseException, TypeError, AttributeError) as error:  # a field that is none
        raise SettingsError(_refusal(error, schema)) from error
    assert isinstance(settings, schema)
    return settings


def explain(name: str, schema: type[Any]) -> str:
    """Write the help of a job: every setting with its default and meaning, and the groups."""
    how = f"neuronstats {name} [SETTING=VALUE ...], or python jobs/{name}.py in a checkout"
    lines = [how, "", inspect.getdoc(schema) or "", ""]
    lines += _explain_fields(schema, "")
    for group, names in _groups(schema).items():
        text = f"{group}= {', '.join(names)}"
        lines += ["", *textwrap.wrap(text, 100, subsequent_indent="    ")]
    lines += ["", "--cfg job prints the settings as they stand; --config-dir DIR adds a folder of"]
    lines += ["your own beside conf/, such as DIR/model/mine.yaml for model=mine; -m runs once for"]
    lines += ["each of several values separated by commas, such as model.path=DIR,DIR2."]
    return "\n".join(lines) + "\n"


def _explain_fields(schema: type[Any], prefix: str) -> list[str]:
    meanings = field_docstrings(schema)
    lines = []
    default = schema()
    for item in fields(schema):
        value = getattr(default, item.name)
        if is_dataclass(value):
            lines += ["", *_explain_fields(type(value), f"{prefix}{item.name}.")]
            continue
        shown = getattr(value, "name", value)
        lines.append(f"  {prefix}{item.name}={'null' if shown is None else shown}")
        lines += textwrap.wrap(
            meanings.get(item.name, ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return lines


def field_docstrings(schema: type[Any]) -> dict[str, str]:
    """Return the strings that stand under a dataclass's fields, those that it inherits included."""
    meanings: dict[str, str] = {}
    for base in schema.__bases__:
        if is_dataclass(base):
            meanings |= field_docstrings(base)
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    for item, following in itertools.pairwise(body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            text = getattr(getattr(following, "value", None), "value", None)
            if isinstance(text, str):
                meanings[item.target.id] = " ".join(text.split())
    return meanings
