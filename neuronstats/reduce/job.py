"""The reduce job: bitmaps and counts of all shards -> tables, a (layer, neuron block) a task."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from neuronstats.cluster.nodes import Node, place
from neuronstats.cluster.pool import Pool
from neuronstats.cluster.start import connect
from neuronstats.console import Console
from neuronstats.errors import DONE, INTERRUPTED, SettingsError, UserError
from neuronstats.machine import PROCESS_BYTES, SPARE, Term, allocator, probe, total, written
from neuronstats.model.fetch import fetch_here, fetch_on_nodes
from neuronstats.model.shape import Shape, num_first_layers
from neuronstats.reduce.block import Block, cut_blocks, part_neurons
from neuronstats.reduce.block import memory_terms as block_memory
from neuronstats.reduce.compare import compare
from neuronstats.reduce.counts import Counts, LayerCounts, corrupt, create_positions
from neuronstats.reduce.counts import memory_terms as counts_memory
from neuronstats.reduce.gather import Gather, in_order
from neuronstats.reduce.gather import memory_terms as gather_memory
from neuronstats.reduce.match import match, num_layers_to_match
from neuronstats.reduce.match import memory_terms as match_memory
from neuronstats.reduce.ngram_cache import NgramStore
from neuronstats.reduce.project import memory_terms as projection_memory
from neuronstats.reduce.project import no_rows
from neuronstats.reduce.settings import ReduceJob
from neuronstats.reduce.signed import memory_terms as signed_memory
from neuronstats.reduce.worker import ReduceWorker, Result, Task
from neuronstats.stats import ngram_ids
from neuronstats.stats.dead import interleave_domains
from neuronstats.stats.sections import SECTIONS
from neuronstats.stats.view import Statistic
from neuronstats.store import manifest, tables
from neuronstats.store.faults import REPAIR, storage_errors
from neuronstats.store.layout import PARTIAL, TABLES, Shard
from neuronstats.store.run import Run
from neuronstats.units import duration, short, size

Do = Callable[[Sequence[Any]], Iterator[tuple[Any, Any]]]


def _tokens_seen(run: Run, shards: Sequence[Shard]) -> Counts:
    """Return the tokens seen after each shard, the domains evenly mixed, int64 [shard]."""
    order = interleave_domains([shard.domain for shard in shards])
    return np.cumsum([shards[i].num_sequences * run.layout.num_positions for i in order])


def committed_shards(run: Run, *, partial: bool) -> tuple[list[Shard], Counts]:
    """Return the shards that count and their records' activations, int64 [shard, layer].

    Raises:
        UserError: shards are missing and partial is False, or objects are missing or cut off.
    """
    records = run.records()
    missing = len(run.layout.shards) - len(records)
    if missing and (not partial or not records):
        share = 100 * missing / len(run.layout.shards)
        raise UserError(
            f"{run.folder.location} is not finished: {missing} of {len(run.layout.shards)} shards"
            f" ({share:.0f} %) are missing. Run collect again to the end"
            + ("." if not records else ", or reduce with partial=true, which marks the tables.")
        )
    damage = run.damaged(records.values(), contents=False)
    if damage:
        index, reason = next(iter(sorted(damage.items())))
        raise UserError(f"{run.layout.shards[index]}: {reason}; {REPAIR}.")
    shards = [run.layout.shards[index] for index in sorted(records)]
    activations = np.array([records[shard.index].activations for shard in shards], np.int64)
    return shards, activations


def reduce(settings: ReduceJob, console: Console, sections: Sequence[Statistic] = SECTIONS) -> int:
    """Do the job; return its exit code.

    Args:
        settings: runs and thresholds.
        console: for the plan, progress and what was found.
        sections: the statistics, in the order of their columns; docs/method.md adds one.
    """
    locations = [*settings.runs, *([] if settings.run is None else [settings.run])]
    if not locations:
        raise SettingsError(
            "run= is missing: expected a run folder that jobs/collect.py wrote, or"
            " runs=[DIR,DIR2] to compare several."
        )
    if settings.run and settings.runs:
        raise SettingsError(
            f"run={settings.run}, runs={settings.runs}: expected one run=DIR, or different"
            " runs=[DIR,DIR2] to compare."
        )
    reductions = [_Reduction(Run.open(place), settings, console, sections) for place in locations]
    runs = [reduction.opened for reduction in reductions]
    to_match = num_layers_to_match(runs) if settings.match_tokens else 0
    for reduction in reductions:  # all are looked at before the first is touched
        reduction.show_plan()
    if settings.plan and settings.ray.address is None:
        return DONE
    terms = [*(reduction.worker_terms for reduction in reductions)]
    if to_match:
        terms.append({"matching": match_memory(runs, settings.match_tokens)})
    most = max(total(one) for each in terms for one in each.values())
    with connect(settings.ray, on_message=console.say, worker_bytes=most) as pool:
        if settings.ray.address is not None:  # what it has is known now
            console.say(f"workers: {pool.workers}")
        if settings.plan:
            return DONE
        if not all(reduction.run(pool) for reduction in reductions):
            return INTERRUPTED
        if len(reductions) > 1:
            compare([run.folder for run in runs], console)
        if to_match and not match(runs, to_match, settings.match_tokens, pool, console):
            return INTERRUPTED
    return DONE


class _Reduction:
    """One run's reduction: what it takes, and its steps."""

    def __init__(
        self, run: Run, settings: ReduceJob, console: Console, sections: Sequence[Statistic]
    ) -> None:
        self.opened, self._settings, self._console = run, settings, console
        self._sections = sections
        self._shards, self._recorded = committed_shards(run, partial=settings.partial)
        self._shape = Shape.read(run.about.sizes)
        wanted = num_first_layers(settings.layers, self._shape.num_layers, "layers")
        if not wanted:
            raise SettingsError(f"layers={settings.layers}: expected at least one layer.")
        self._num_layers = min(wanted, run.layout.num_layers)
        self._num_sequences = sum(shard.num_sequences for shard in self._shards)
        self._num_tokens = self._num_sequences * run.layout.num_positions
        self._part_neurons = part_neurons(run.layout, self._num_tokens)
        self.worker_terms = self._bound_workers()

    def _bound_workers(self) -> dict[str, tuple[Term, ...]]:
        """Bound the memory of a worker, by its work."""
        layout, reduce = self.opened.layout, self._settings.reduce
        ids = ngram_ids.projected_bytes(self._num_sequences, layout.num_positions, reduce.ngrams)
        sizes = (self._part_neurons, reduce, ids["n-gram ids"], self._shape)
        terms = {
            "adding counts": counts_memory(layout, len(self._shards)),
            "merging": block_memory(layout, self._shards, *sizes),
        }
        if layout.num_bitmaps:
            terms["projecting"] = (
                signed_memory(self._shape, layout)
                if layout.sums
                else projection_memory(self._shape)
            )
        return terms

    @property
    def _is_projected(self) -> bool:
        """True where detectors are judged by what they write, which takes the model's weights."""
        return bool(self.opened.layout.num_bitmaps) and self._shape.activation.is_relu_like

    def _driver_terms(self) -> dict[str, tuple[Term, ...]]:
        """Bound the memory of this process, before the workers' time and beside them."""
        layout, reduce = self.opened.layout, self._settings.reduce
        numbering = ngram_ids.projected_bytes(
            self._num_sequences, layout.num_positions, reduce.ngrams
        )
        sizes = (self._num_layers, self._num_tokens, len(self._shards))
        work = {"gathering": gather_memory(layout, *sizes, reduce)}
        if layout.num_bitmaps:
            work["numbering n-grams"] = [Term(*term) for term in numbering.items()]
        process = Term("process", PROCESS_BYTES)
        return {
            what: (process, *terms, allocator([process, *terms])) for what, terms in work.items()
        }

    def show_plan(self) -> None:
        """Print what it will take.

        Raises:
            SettingsError: it does not fit this machine.
        """
        settings, machine = self._settings.ray, probe()
        rows = [
            ("run", self.opened.folder.location),
            ("tokens", f"{short(self._num_tokens)}, {self._num_sequences} sequences"),
            (
                "work",
                f"{self._num_layers} layers of {self.opened.layout.num_neurons} neurons,"
                f" {self._part_neurons} at a time",
            ),
        ]
        if settings.address is None:
            here = [Node.of(machine)]
            most = max(total(terms) for terms in self.worker_terms.values())
            workers = place(settings, here, memory=most, per_core=True)
            rows.append(("workers", str(workers)))
        driver = self._driver_terms()
        for what, terms in driver.items():
            needed = total(terms[1:])  # the process is here already
            if needed > SPARE * machine.host_bytes:
                raise SettingsError(
                    f"{what} takes {size(needed)} of memory here, in this process, and"
                    f" {size(int(SPARE * machine.host_bytes))} may be used: expected a machine with"
                    " more, or fewer lengths in reduce.ngrams."
                )
        rows += [(f"memory, {what}", written(terms)) for what, terms in self.worker_terms.items()]
        rows += [(f"memory here, {what}", written(terms)) for what, terms in driver.items()]
        self._console.table("plan", rows)

    def run(self, pool: Pool) -> bool:
        """Write the tables; return whether it came to the end."""
        start, run = time.monotonic(), self.opened
        lengths, num_shards = self._settings.reduce.ngrams, len(run.layout.shards)
        metadata = {
            "fingerprint": run.fingerprint,
            "settings": dataclasses.asdict(self._settings.reduce),
            "tokens": self._num_tokens,
            "shards": len(self._shards),
            "layers": self._num_layers,
            "complete": len(self._shards) == num_shards,
            **({"first_position": first} if (first := run.about.first_position) else {}),
            **({"threshold": above} if (above := run.about.threshold) else {}),
            **manifest.MARK,
        }
        with run.folder.lock(), contextlib.ExitStack() as stack:
            if self._is_projected and self._settings.ray.address is None:
                fetch_here(run.about.model, self._console)
            elif self._is_projected:
                fetch_on_nodes(run.about.model, pool, self._console)
            if run.layout.num_bitmaps:
                NgramStore(run, self._shards).prepare(lengths)
            files = stack.enter_context(contextlib.closing(tables.TableFiles(run.folder, metadata)))
            with storage_errors("write", f"{run.folder.location}/{PARTIAL}"):
                create_positions(run, self._shards, self._num_layers, self._part_neurons, metadata)
            merged = Gather(files, run.layout, _tokens_seen(run, self._shards))
            if not self._all_tasks(pool, files, merged):
                self._console.say(
                    "stopped; the old tables are as they were. The same command starts again."
                )
                return False
            merged.finish()
            files.finish()
        planned = max(total(terms) for terms in self.worker_terms.values())
        marked = ""
        if not metadata["complete"]:
            marked = f" of {len(self._shards)} of {num_shards} shards (partial)"
        self._console.say(
            f"reduced: {short(self._num_tokens)} tokens{marked}, {merged.summary()},"
            f" {duration(time.monotonic() - start)}, peak memory {size(merged.peak_bytes)} of"
            f" {size(planned)} planned: {run.folder.location}/{TABLES}"
        )
        return True

    def _all_tasks(self, pool: Pool, files: tables.TableFiles, merged: Gather) -> bool:
        """Do all tasks, each kind when the one before is done; return whether all were."""
        run = self.opened
        args = (
            run.folder.location,
            self._shards,
            self._settings.reduce,
            run.about.model,
            self._sections,
        )

        def do(tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
            return pool.run(ReduceWorker, args, tasks)

        blocks = cut_blocks(run.layout, self._num_layers, self._num_tokens, pool.workers.count)
        return (
            self._add(do)
            and self._merge(do, blocks, files, merged)
            and self._judge(do, files, merged)
        )

    def _add(self, do: Do) -> bool:
        """Add up all layers' position counts; compare their sums with the records."""
        tasks = [LayerCounts(layer) for layer in range(self._num_layers)]
        done = 0
        for task, activations in do(tasks):
            _check_records(activations, self._recorded[:, task.layer], task.layer, self._shards)
            done += 1
        return done == len(tasks)

    def _merge(
        self, do: Do, work: Sequence[Block], files: tables.TableFiles, merged: Gather
    ) -> bool:
        """Do all blocks, writing rows in their order."""
        total = sum(block.last - block.first for block in work)
        with self._console.progress("reduce", total, "neurons") as advance:
            done = 0
            for block, result in in_order(do(work), work, files):
                merged.add(result)
                done += 1
                advance(block.last - block.first, f"{done}/{len(work)} blocks")
        return done == len(work)

    def _judge(self, do: Do, files: tables.TableFiles, merged: Gather) -> bool:
        """Judge all layers' token detectors.

        None is judged where a neuron's direction alone does not say what it writes.
        """
        files.append("suppression", no_rows())
        activation = self._shape.activation
        if not activation.is_relu_like and not self.opened.layout.sums:
            gated = " gated" if activation.gated else ""
            self._console.say(
                f"no neuron is called suppressing: behind a{gated} {activation.name} it writes in"
                " either direction, open or not."
            )
            return True
        tasks = merged.layer_tokens
        done = 0
        for _, found in in_order(do(tasks), tasks, files):
            merged.add_suppression(found)
            done += 1
        return done == len(tasks)


def _check_records(found: Counts, recorded: Counts, layer: int, shards: Sequence[Shard]) -> None:
    """Compare a layer's activations, int64 [shard], with the records'."""
    for shard in np.array(shards, object)[found != recorded]:
        raise corrupt(f"position counts of layer {layer} of {shard}")
