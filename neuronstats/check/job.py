"""The check job: all that a run holds is compared with what was committed, and put right."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from neuronstats.check.settings import CheckJob
from neuronstats.cluster.settings import RaySettings
from neuronstats.collect.job import collect
from neuronstats.collect.settings import CollectJob, CollectSettings
from neuronstats.console import Console
from neuronstats.corpus.settings import DataSettings, Source
from neuronstats.errors import DONE, SettingsError, UserError
from neuronstats.model.settings import Dtype, ModelSettings
from neuronstats.reduce import ngram_cache
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store import tables
from neuronstats.store.layout import NGRAMS, RUN_FILE, TABLES, ZARR, Record
from neuronstats.store.manifest import Manifest
from neuronstats.store.run import Run

Built = TypeVar("Built")


@dataclass
class Damage:
    """What is wrong, by the object's key in the run folder."""

    collected: dict[str, str] = field(default_factory=dict)
    """What collect writes."""
    reduced: dict[str, str] = field(default_factory=dict)
    """What reduce writes."""

    @property
    def all(self) -> dict[str, str]:
        """Everything, in the order of the keys."""
        return dict(sorted((self.collected | self.reduced).items()))


def find_damage(run: Run) -> Damage:
    """Read every byte of a run and name what is not as it was committed."""
    damage = Damage()
    found = {f"{ZARR}/{key}": what for key, what in run.damaged_layout().items()}
    try:
        run.corpus()
    except UserError as error:
        found = found or {f"{ZARR}/tokens": str(error)}
    records = run.records(found)
    broken = run.damaged(records.values())
    for record in records.values():
        key = f"{ZARR}/{Record.key(record.shard.index)}"
        counted = [
            int(next(run.read_position_counts(layer, slice(None), [record.shard]))[1].sum())
            for layer in range(run.layout.num_layers)
            if not found and record.shard.index not in broken
        ]
        if run.folder.read(key) != record.dumps() or counted not in ([], record.activations):
            found[key] = "has changed"
    for index, what in broken.items():
        found[f"{ZARR}: {run.layout.shards[index]}"] = what
    damage.collected = found
    damage.reduced = {
        f"{NGRAMS}/{key}": what for key, what in ngram_cache.damaged(run.folder).items()
    }
    damage.reduced |= {f"{TABLES}/{key}": what for key, what in _damaged_tables(run).items()}
    return damage


def _damaged_tables(run: Run) -> dict[str, str]:
    if not run.folder.sizes(f"{TABLES}/"):
        return {}  # not reduced
    try:
        manifest = Manifest.read(run.folder)
        if manifest.objects is None:
            manifest.require(tables.table_metadata(tables.read_table(run.folder, "neurons")))
    except Exception as error:  # noqa: BLE001 - whatever a damaged file leads to
        return {"": str(error).split("\n")[0]}
    return manifest.damaged()


def check(settings: CheckJob, console: Console) -> int:
    """Do the job; return its exit code.

    Raises:
        SettingsError: there is no run.
        UserError: something is damaged, and was not or cannot be put right.
    """
    if settings.run is None:
        raise SettingsError("run= is missing: expected a run folder that jobs/collect.py wrote.")
    run = Run.open(settings.run)
    damage = find_damage(run)
    for key, what in damage.all.items():
        console.say(f"damaged: {key}: {what}")
    if damage.all and settings.repair:
        _repair(run, damage, settings.ray, console)
        damage = find_damage(run)
    if damage.all:
        key, what = next(iter(damage.all.items()))
        raise UserError(
            f"{run.folder.location} is damaged in {len(damage.all)} place(s), such as"
            f" {key}: {what}."
            + ("" if settings.repair else " Run again with repair=true to put right what can be.")
        )
    missing = len(run.layout.shards) - len(run.record_keys())
    unfinished = (
        f", {missing} of {len(run.layout.shards)} shards not collected yet" if missing else ""
    )
    console.say(
        f"checked: {len(run.folder.sizes())} objects, {RUN_FILE} included, are what was"
        f" committed{unfinished}: {run.folder.location}"
    )
    return DONE


def _repair(run: Run, damage: Damage, ray: RaySettings, console: Console) -> None:
    reduction = _reduction(run)
    if damage.collected:
        collect(_collect_job(run, ray), console)
    if damage.reduced:
        run.folder.clear(f"{NGRAMS}/")
        job = ReduceJob(
            run=run.folder.location,
            reduce=_build(ReduceSettings, reduction.get("settings", {})),
            layers=reduction.get("layers", "all"),
            partial=not reduction.get("complete", True),
            ray=ray,
        )
        reduce(job, console)


def _reduction(run: Run) -> dict[str, Any]:
    """Return what made the tables: by their manifest, else by the first that can be read."""
    try:
        found = Manifest.read(run.folder).reduction
    except UserError:
        found = {}
    for name in ("neurons", "layers", "domains", "triggers"):
        try:
            found = found or tables.table_metadata(tables.read_table(run.folder, name))
        except Exception:  # noqa: BLE001 - whatever a damaged file leads to
            continue
    if "max_cover" in found.get("settings", {}):  # JSON has no numbers for keys
        cover = found["settings"]["max_cover"]
        found["settings"]["max_cover"] = {int(n): most for n, most in cover.items()}
    return found


def _collect_job(run: Run, ray: RaySettings) -> CollectJob:
    """Return the job that made a run, to repair it."""
    made = run.info["settings"]
    model, data = dict(made["model"]), dict(made["data"])
    model["dtype"] = Dtype(model["dtype"])
    data["sources"] = [_build(Source, source) for source in data["sources"]]
    return CollectJob(
        model=_build(ModelSettings, model),
        data=_build(DataSettings, data),
        collect=_build(CollectSettings, made["collect"]),
        ray=ray,
        run=run.folder.location,
        repair=True,
    )


def _build(kind: type[Built], values: Mapping[str, Any]) -> Built:
    """Make settings of what was stored, without what they no longer have."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in known})
