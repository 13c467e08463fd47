"""The only importer of hydra: conf/ and the command line -> plain settings; exit codes.

Settings are dataclasses that live beside what they set; here they are put together for each job.
"""

import ast
import contextlib
import difflib
import inspect
import itertools
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neuronstats.blocks import ReduceSettings
from neuronstats.checkpoint import ModelSettings
from neuronstats.cluster import RaySettings
from neuronstats.errors import SettingsError, UserError
from neuronstats.pieces import ReportSettings
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
            if value != "auto" and (type(value) is not int or value < 1):
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
        location = self.run or f"runs/{self.model.name}-{self.data.name}"
        return location if "://" in location else str(Path(location).expanduser())


@dataclass(kw_only=True, slots=True)
class ReduceJob:
    """Merge a run's bitmaps and counts into tables."""

    run: str | None = None
    """The run folder, or an object-store URL."""
    runs: list[str] = field(default_factory=list)
    """Several instead, reduced one after another and compared: [DIR,DIR2]."""
    reduce: ReduceSettings = field(default_factory=ReduceSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    layers: int | str = "all"
    """Layers to reduce, of those collected: all, first_half or a number of first layers."""
    partial: bool = False
    """Go on although shards are missing; the tables are marked."""
    plan: bool = False
    """Print what it would take, and reduce nothing."""


@dataclass(kw_only=True, slots=True)
class ReportJob:
    """Make figures and a page, which opens from disk, of one reduced run or several."""

    runs: list[str] = field(default_factory=list)
    """Run folders, or object-store URLs: [DIR,DIR2]."""
    out: str | None = None
    """Folder for figures and page; null: report/ in the first run."""
    serve: bool = False
    """Serve the page on this machine alone, with every neuron's detail, until interrupted."""
    port: int = 8000
    """Port of serve=true; 0: any free one."""
    report: ReportSettings = field(default_factory=ReportSettings)


@dataclass(kw_only=True, slots=True)
class BenchSettings:
    """What is measured, and on how much."""

    parts: list[str] = field(
        default_factory=lambda: ["forward", "pack", "reduce", "merge", "stream", "start"]
    )
    """forward: bare models, hooks, the sweep, the store; pack: packing and counting alone; reduce:
    the n-grams; merge: a whole synthetic run reduced; stream: weights that do not fit in memory;
    start: jobs/collect.py on the embedded model; flips: bits that float16 and bfloat16 flip against
    float32; page: a report of half a million neurons, opened in a browser."""
    run: str | None = None
    """A collected run: its model and sequences from all over its text are taken instead."""
    short: bool = False
    """Smaller sizes where none are given: two minutes."""
    shape: str = "opt-125m"
    """Without a model: random weights in this shape; "tiny" is one too."""
    layers: int | None = None
    """Of the random weights; null: all of the shape's, in the short form 2."""
    active: float = 0.05
    """Of the random weights: share of tokens on which a neuron is activated, about."""
    sequences: int | None = None
    """Of the shard, filled up to whole batches; null: 8, in the short form 4, 32 times
    as many on a GPU."""
    positions: int = 512
    """Of a sequence; a multiple of 8."""
    batch_sequences: int | None = None
    """Of the sweep and of hooks; null: what a collect run would take."""
    reduce_tokens: int | None = None
    """Of the reduction's corpus; null: 5 million, in the short form 500 thousand."""
    reduce_neurons: int | None = None
    """Of the reduction, a multiple of 20; null: 120, about a block of so many tokens, in the short
    form 20."""
    merge_layers: int | None = None
    """Of the run that is merged, at least 2; null: 6, in the short form 3."""
    merge_neurons: int | None = None
    """Of each of its layers; null: 3072 (as in opt-125m), in the short form 100."""
    start_tokens: int | None = None
    """Of the embedded text; null: 200 thousand, in the short form 50 thousand."""
    rounds: int = 5
    """Rounds that count; in each, every way is taken once."""
    warmups: int = 1
    """Rounds before, at least 1, which do not count."""
    threads: int = 1
    """Of torch's operations."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is a GPU."""

    def __post_init__(self) -> None:
        """Refuse sizes that are no sizes."""
        sizes = ["layers", "sequences", "batch_sequences", "positions", "rounds", "warmups"]
        sizes += ["threads", "reduce_tokens", "reduce_neurons", "merge_neurons", "start_tokens"]
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"bench.{name}={value}: expected a number from 1.")
        if self.reduce_neurons is not None and self.reduce_neurons % 20:
            raise SettingsError(
                f"bench.reduce_neurons={self.reduce_neurons}: expected a multiple of 20."
            )
        if self.merge_neurons is not None and self.merge_neurons < 20:
            raise SettingsError(f"bench.merge_neurons={self.merge_neurons}: expected at least 20.")
        if self.merge_layers is not None and self.merge_layers < 2:  # the first one warms up
            raise SettingsError(f"bench.merge_layers={self.merge_layers}: expected at least 2.")
        if not 0 < self.active < 1:
            raise SettingsError(f"bench.active={self.active}: expected a share between 0 and 1.")


@dataclass(kw_only=True, slots=True)
class BenchJob:
    """Measure how fast it is here, as ratios against what one would use instead."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(name="random"))
    bench: BenchSettings = field(default_factory=BenchSettings)
    out: str = "runs/bench"
    """Folder for bench.json and bench.md, and while it runs for the weights and the run written."""
    page: str | None = None
    """A Markdown page, such as docs/performance.md, whose sections of these parts are replaced."""


def job(
    name: str, schema: type[Settings]
) -> Callable[[Callable[[Settings], int | None]], Callable[[], None]]:
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
            sys.exit(_finish(function, name, schema))

        return main

    return decorate


def _finish(function: Callable[[Settings], int | None], name: str, schema: type[Settings]) -> int:
    """Call a job's function; turn what it raises into a message and an exit code."""
    try:
        config = _compose(name, schema)
        return DONE if config is None else function(to_settings(config, schema)) or DONE
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
        sys.stderr.write(
            f"error: this is a defect of neuronstats ({error!r}); what was committed stays.\n"
        )
        return FAILED


def _complain(error: Exception, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


def _compose(name: str, schema: type[Any]) -> Any:
    """Let Hydra read conf/ and the command line; None where it only prints, as with --cfg job.

    Raises:
        SettingsError: the command line is refused.
    """
    arguments = sys.argv[1:]
    if {"--multirun", "-m"} & set(arguments):
        raise SettingsError("--multirun: a command does one run; give one command for each.")
    ConfigStore.instance().store(name=f"base_{name}", node=schema)
    found: list[Any] = []

    def keep(config: Any) -> None:
        found.append(config)

    try:
        with _errors_let_through():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(keep)()
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(_refusal(error, schema)) from error
    return found[0] if found else None


@contextlib.contextmanager
def _errors_let_through() -> Iterator[None]:
    """Have Hydra raise its errors; by itself it prints them and ends with exit code 1."""
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
    """Say which override is wrong, what there is, and what to do."""
    for override in sys.argv[1:]:
        key, _, value = override.lstrip("+~").partition("=")
        reason = None if override.startswith("-") else _unknown(key, value, schema)
        if reason:
            return reason
    reason = _first_line(error.__cause__ or error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read ({reason}). Expected KEY=VALUE; a value with signs"
            """ that mean something to Hydra goes into two kinds of quotes: 'KEY="VALUE"'."""
        )
    merging = "Error merging override "
    if not str(error).startswith(merging):
        return reason
    override = _first_line(error).removeprefix(merging)
    meaning = _meaning(override.lstrip("+~").partition("=")[0], schema)
    return f"{override}: {reason}. {meaning}".rstrip()


def _unknown(key: str, value: str, schema: type[Any]) -> str | None:
    """Say what there is instead, if there is no such setting or no such choice of a group."""
    choices = _groups(schema).get(key)
    if choices is not None:
        if not value or value in choices or "," in value:
            return None
        return f"{key}={value}: there is none of that name; choose one of {', '.join(choices)}."
    at, prefix = schema, ""
    for part in key.split("."):
        there = [item.name for item in fields(at)]
        if part == "hydra" and not prefix:
            return None
        if part not in there:
            near = difflib.get_close_matches(part, there, 1)
            hint = f"did you mean {prefix}{near[0]}? " if near else ""
            known = ", ".join(prefix + name for name in there)
            return f"{key}: there is no such setting; {hint}There are {known}."
        inner = getattr(at(), part)
        if not is_dataclass(inner):
            return None
        at, prefix = type(inner), f"{prefix}{part}."
    return None


def _groups(schema: type[Any]) -> dict[str, list[str]]:
    """The groups of conf/ that a job has, with the names that may be chosen."""
    used = {item.name for item in fields(schema)}
    folders = [path for path in sorted(CONF.iterdir()) if path.is_dir() and path.name in used]
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def _meaning(key: str, schema: type[Any]) -> str:
    """What stands under a setting in its dataclass."""
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
    lines = [f"python jobs/{name}.py [SETTING=VALUE ...]", "", inspect.getdoc(schema) or "", ""]
    lines += _explain_fields(schema, "")
    for group, names in _groups(schema).items():
        text = f"{group}= {', '.join(names)}"
        lines += ["", *textwrap.wrap(text, 100, subsequent_indent="    ")]
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
