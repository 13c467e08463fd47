"""The only importer of hydra: conf/ and the command line -> plain settings; exit codes.

Settings are dataclasses that live beside what they set; here they are put together for each job.
"""

import ast
import inspect
import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuronstats.checkpoint import ModelSettings
from neuronstats.cluster import RaySettings
from neuronstats.errors import SettingsError, UserError
from neuronstats.ngrams import NgramSettings
from neuronstats.text import DataSettings

CONF = Path(__file__).parent.parent / "conf"
DONE, FAILED, WRONG_SETTINGS, INTERRUPTED = 0, 1, 2, 130

Settings = TypeVar("Settings")


@dataclass(kw_only=True, slots=True)
class CollectSettings:
    """What is recorded, and in which portions."""

    layers: int | str = "all"
    """Layers to run: all, first_half or a number of first layers."""
    bitmaps: int | str = "first_half"
    """Layers whose bitmaps are kept: first_half, all, none or a number of first layers."""
    shard_sequences: int | str = "auto"
    """Sequences in a shard, the unit of work and loss; auto: by the plan."""
    batch_sequences: int | str = "auto"
    """Sequences in a batch; auto: by the plan."""
    verify: bool = True
    """When going on with a run, read every committed object and compare its checksum."""

    def __post_init__(self) -> None:
        """Refuse lengths that are no lengths."""
        for name in ("shard_sequences", "batch_sequences"):
            value = getattr(self, name)
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise SettingsError(f"collect.{name}={value}: expected auto or a number from 1.")


@dataclass(kw_only=True, slots=True)
class CollectJob:
    """Run a model over text and record which neurons are activated on which tokens."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    run: str | None = None
    """The run folder, or an object-store URL; null: runs/MODEL-DATA under the current folder."""
    plan: bool = False
    """Print what it would take, and run nothing."""
    repair: bool = False
    """Compute committed shards again whose bytes have changed."""

    @property
    def location(self) -> str:
        """The run folder."""
        return self.run or f"runs/{self.model.name}-{self.data.name}"


@dataclass(kw_only=True)
class ReduceSettings(NgramSettings):
    """Thresholds: they can be changed without running the model again."""

    positional_mi: float = 0.05
    """Mutual information with position, in nats, above which a neuron is positional."""


@dataclass(kw_only=True, slots=True)
class ReduceJob:
    """Merge a run's bitmaps and counts into tables."""

    run: str = MISSING
    """The run folder, or an object-store URL."""
    reduce: ReduceSettings = field(default_factory=ReduceSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    partial: bool = False
    """Go on although shards are missing; the tables are marked."""


def job(name: str, schema: type[Settings]) -> Callable[[Callable[[Settings], int | None]], Callable[[], None]]:
    """Make a function of settings the main of a job.

    Args:
        name: its file in conf/.
        schema: the job's settings.

    Returns:
        A decorator; what it returns reads the command line and ends the process with the
        contract's exit code: 0 done, 1 failed, 2 wrong settings, 130 interrupted.
    """

    def decorate(function: Callable[[Settings], int | None]) -> Callable[[], None]:
        def main() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):
                sys.stdout.write(explain(name, schema))
                sys.exit(DONE)
            ConfigStore.instance().store(name=f"base_{name}", node=schema)
            entered = False

            def call(config: Any) -> None:
                nonlocal entered
                entered = True
                sys.exit(_finish(function, config, schema))

            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(call)()
            except SystemExit as end:
                # Hydra ends with 1 on an override that it refuses, which is a wrong setting.
                sys.exit(WRONG_SETTINGS if not entered and end.code == 1 else end.code)

        return main

    return decorate


def _finish(function: Callable[[Settings], int | None], config: Any, schema: type[Settings]) -> int:
    """Call a job's function; turn what it raises into a message and an exit code."""
    try:
        return function(to_settings(config, schema)) or DONE
    except SettingsError as error:
        return _complain(error, WRONG_SETTINGS)
    except UserError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        sys.stderr.write(
            "interrupted: what was committed stays. The same command goes on where it stopped.\n"
        )
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 - a defect: say where, and still end in one line
        traceback.print_exc()
        sys.stderr.write(f"error: this is a defect of neuronstats ({error!r}); what was committed stays.\n")
        return FAILED


def _complain(error: Exception, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


def to_settings(config: Any, schema: type[Settings]) -> Settings:
    """Resolve Hydra's configuration into plain dataclasses.

    Raises:
        SettingsError: a value is missing or of the wrong type.
    """
    try:
        settings = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise SettingsError(str(error).split("\n")[0]) from error
    assert isinstance(settings, schema)
    return settings


def explain(name: str, schema: type[Any]) -> str:
    """Write the help of a job: every setting with its default and meaning, and the groups."""
    lines = [f"python jobs/{name}.py [SETTING=VALUE ...]", "", inspect.getdoc(schema) or "", ""]
    lines += _explain_fields(schema, "")
    groups = sorted(path for path in CONF.iterdir() if path.is_dir())
    used = {f.name for f in fields(schema)}
    for group in groups:
        if group.name in used:
            names = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
            lines += ["", *textwrap.wrap(f"{group.name}= {names}", 100, subsequent_indent="    ")]
    lines += ["", "--cfg job prints the settings as they stand."]
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
        lines += textwrap.wrap(meanings.get(item.name, ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def field_docstrings(schema: type[Any]) -> dict[str, str]:
    """Return the strings that stand under a dataclass's fields."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    meanings = {}
    for item, following in zip(body, body[1:], strict=False):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            text = getattr(getattr(following, "value", None), "value", None)
            if isinstance(text, str):
                meanings[item.target.id] = " ".join(text.split())
    return meanings
