"""The collect job: text -> tokens -> shards -> sweep -> commit, resumed where it stopped."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import torch

from neuronstats.cluster.nodes import Node
from neuronstats.cluster.pool import Pool
from neuronstats.cluster.start import connect, this_node
from neuronstats.collect.inspect import (
    Inputs,
    corpus_size,
    inspect,
    is_small,
    read_text,
    with_weights,
)
from neuronstats.collect.kept import KeptTokens
from neuronstats.collect.plan import Plan
from neuronstats.collect.prepare import make_choices, open_run, other_arithmetic, text_key
from neuronstats.collect.settings import CollectJob
from neuronstats.collect.show import show_plan
from neuronstats.collect.worker import ShardSummary, ShardWorker, describe, matmul_flops
from neuronstats.console import Console
from neuronstats.corpus.corpus import Corpus
from neuronstats.errors import DONE, INTERRUPTED, GoneError, SettingsError, UserError
from neuronstats.machine import free_disk_bytes, probe
from neuronstats.model.fetch import fetch_here, fetch_on_nodes
from neuronstats.model.source import absolute, is_here
from neuronstats.store.create import put_right
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import ZARR, Shard
from neuronstats.store.run import Run
from neuronstats.units import duration, short, size


def collect(settings: CollectJob, console: Console) -> int:
    """Do the job; return its exit code."""
    return collect_all([settings], console)


def collect_all(jobs: Sequence[CollectJob], console: Console) -> int:
    """Do several runs, one after another, in one Ray.

    A run that is refused or fails does not keep the others from being done.

    Args:
        jobs: with the same settings of Ray.
        console: where it tells the user.

    Returns:
        The exit code of the first run that did not end well, or 0.

    Raises:
        SettingsError: the settings of Ray or the report differ, or the only run's are refused.
        UserError: the only run cannot be done.
        GoneError: the cluster or the store went away.
    """
    for name in ("ray", "report"):
        if any(getattr(job, name) != getattr(jobs[0], name) for job in jobs):
            what = "ray.*" if name == "ray" else name
            raise SettingsError(f"{what} differs from run to run: expected one value for all.")
    codes = []
    with contextlib.ExitStack() as stack:

        @functools.cache
        def pool() -> Pool:
            return stack.enter_context(connect(jobs[0].ray, on_message=console.say))

        @functools.cache  # a worker of the run before holds memory that the next one will have
        def here() -> list[Node]:
            return [this_node(jobs[0].ray, probe())]

        for job in jobs:
            try:
                codes.append(_collect(job, pool, here, console))
            except UserError as error:
                if len(jobs) == 1 or isinstance(error, GoneError):
                    raise
                console.say(f"error: {job.location}: {error}")
                codes.append(error.code)
            if codes[-1] == INTERRUPTED:
                break
    if len(jobs) > 1 and not (jobs[0].plan or jobs[0].report or any(codes)):
        runs = ",".join(job.location for job in jobs)
        console.say(
            f"next: reduce runs=[{runs}], then report runs=[{runs}]; or this command again with"
            " report=DIR, which does both"
        )
    return next((code for code in codes if code), DONE)


def _collect(
    settings: CollectJob,
    connected: Callable[[], Pool],
    here: Callable[[], list[Node]],
    console: Console,
) -> int:
    settings = dataclasses.replace(settings, model=absolute(settings.model))
    inputs = inspect(settings, console.say)
    exact = inputs.info is not None or not settings.plan or is_small(settings)
    corpus = _read_or_go_on(inputs) if inputs.info is None and exact else None
    local = settings.ray.address is None
    pool = None if local else connected()
    nodes = here() if pool is None else pool.nodes
    free_disk = free_disk_bytes(settings.location)
    plan, workers = make_choices(inputs, nodes, corpus_size(inputs, corpus), free_disk)
    if pool is not None:
        pool.workers = workers
    flops = settings.ray.flops
    if flops is None and settings.plan:
        flops = _measured_flops(pool, inputs.dtype(on_gpu=plan.work.on_gpu), plan)
    download = not is_here(settings.model)
    show_plan(plan, workers, console, exact=exact, flops=flops, download=download)
    if settings.plan:
        return DONE
    fetch_here(settings.model, console)
    inputs = with_weights(inputs)
    folder = RunFolder(settings.location, create=True)
    with folder.lock():
        run = open_run(inputs, folder, plan, corpus)
        KeptTokens.clear(folder)  # they are in the run now
        check_layout(run, inputs, console)
        todo = remaining(run, settings, console)
        if todo and (note := other_arithmetic(run, on_gpu=plan.work.on_gpu)):
            console.say(note)
        if todo and pool is None:
            pool = connected()
        elif todo and pool is not None:
            fetch_on_nodes(settings.model, pool, console)
        return _run_shards(run, todo, pool, settings, plan, console)


def _read_or_go_on(inputs: Inputs) -> Corpus:
    """Read the text; of much of it keep the domains that are done, and go on where it stopped."""
    settings = inputs.settings
    if settings.plan or is_small(settings):
        return read_text(inputs)
    folder = RunFolder(settings.location, create=True)
    with folder.lock():
        return read_text(inputs, KeptTokens(folder, text_key(inputs)))


def check_layout(run: Run, inputs: Inputs, console: Console) -> None:
    """Check what was laid down when the run was created; with repair, put it right.

    Raises:
        UserError: it is damaged, and repair was not asked for or is not possible.
    """
    settings = inputs.settings
    damage = run.damaged_layout(contents=settings.collect.verify)
    try:
        run.corpus()
    except UserError as error:
        damage = damage or {"tokens/zarr.json": str(error)}
    if not damage:
        return
    key, reason = next(iter(sorted(damage.items())))
    if not settings.repair:
        raise UserError(
            f"{run.folder.location}/{ZARR}/{key} {reason}: of the tokens and metadata that a run"
            " begins with. Run again with repair=true to write it again."
        )
    console.say(f"repairing {len(damage)} object(s): {ZARR}/{key} {reason}")
    put_right(run, damage, lambda: read_text(inputs))


class _Flops:
    """Measures the machine that it is on."""

    def __call__(self, work: tuple[torch.dtype, bool]) -> float:
        dtype, on_gpu = work
        return matmul_flops(dtype, torch.device("cuda" if on_gpu else "cpu"))


def _measured_flops(pool: Pool | None, dtype: torch.dtype, plan: Plan) -> float:
    """Measure what a worker could reach at most: here, or on one of the cluster's machines."""
    task = (dtype, plan.work.on_gpu)
    if pool is None:
        return _Flops()(task)
    [(_, flops)] = pool.run(_Flops, (), [task])
    return float(flops)


def remaining(run: Run, settings: CollectJob, console: Console) -> list[Shard]:
    """Return the shards without a commit; with repair also those whose bytes have changed.

    Raises:
        UserError: a committed shard's bytes have changed, and repair was not asked for.
    """
    broken: dict[str, str] | None = {} if settings.repair else None
    records = run.records(broken)
    for key, reason in (broken or {}).items():
        console.say(f"repairing {key}: it {reason}")
        run.folder.remove(key)
    damage = run.damaged(records.values(), contents=settings.collect.verify)
    if damage and not settings.repair:
        index, reason = next(iter(sorted(damage.items())))
        raise UserError(
            f"{len(damage)} committed shard(s) of {run.folder.location} have changed:"
            f" {run.layout.shards[index]}: {reason}. Run again with repair=true to compute"
            f" shard(s) {', '.join(map(str, sorted(damage)))} again."
        )
    for index in damage:
        run.forget(run.layout.shards[index])
        console.say(f"repairing {run.layout.shards[index]}: {damage[index]}")
    done = set(records) - set(damage)
    if done:
        console.say(f"{len(done)} of {len(run.layout.shards)} shards are committed already")
    left = [shard for shard in run.layout.shards if shard.index not in done]
    return sorted(left, key=lambda shard: -shard.num_sequences)  # so that workers end together


def _run_shards(
    run: Run,
    todo: list[Shard],
    pool: Pool | None,
    settings: CollectJob,
    plan: Plan,
    console: Console,
) -> int:
    start = time.monotonic()
    location = run.folder.location
    positions = run.layout.num_positions
    finished: list[ShardSummary] = []
    if todo:
        assert pool is not None
        total = sum(shard.num_sequences for shard in todo) * positions
        with console.progress("collect", total, "tokens") as advance:
            args = (location, settings.model, plan.work)
            layer_tokens = {
                str(shard): shard.num_sequences * positions / plan.work.num_layers for shard in todo
            }

            def tick(tokens: int = 0) -> None:
                run.folder.check_lock()
                underway = sum(layer_tokens[name] * n for name, n in pool.reached.items())
                advance(tokens, f"{len(finished)}/{len(todo)} shards", underway)

            for _, summary in pool.run(ShardWorker, args, todo, tick=tick):
                finished.append(summary)
                tick(summary.tokens)
    seconds = time.monotonic() - start
    if len(finished) < len(todo):
        console.say(
            f"stopped: {len(todo) - len(finished)} shards are left. The same command goes on:"
            f" {location}"
        )
        return INTERRUPTED
    tokens = sum(summary.tokens for summary in finished)
    words = f"{short(tokens)} tokens in {len(finished)} shards, {duration(seconds)}"
    if finished:
        console.say(f"speed: {describe(finished, plan.work)}")
        peak = max(summary.peak_bytes for summary in finished)
        words += f", peak memory {size(peak)} of {size(plan.host_bytes)} planned"
    console.say(f"collected: {words}: {location}")
    return DONE
