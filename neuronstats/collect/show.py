"""The plan as a table for people."""

from neuronstats.cluster.nodes import Workers
from neuronstats.collect.plan import Plan
from neuronstats.console import Console
from neuronstats.machine import written
from neuronstats.units import duration, short, size


def show_plan(
    plan: Plan,
    workers: Workers,
    console: Console,
    *,
    exact: bool,
    flops: float | None = None,
    download: bool = False,
) -> None:
    """Print what the run will take.

    Args:
        plan: what is shown.
        workers: by machine.
        console: where.
        exact: whether the corpus is known, and not guessed.
        flops: FLOP per second of one worker; None where not known.
        download: whether the weights are on the hub.
    """
    work = plan.work
    about, above = "" if exact else "about ", work.shape.activation.threshold
    corpus, batches = work.corpus, f"{work.batch_sequences} sequences a batch"
    layers = f"{work.num_layers} of {work.shape.num_layers}, bitmaps of {work.num_bitmaps}"
    rows = [
        (
            "tokens",
            f"{about}{short(corpus.tokens)}, {corpus.sequences} sequences of {corpus.positions}",
        ),
        ("layers", f"{layers}; {work.shape.neurons} neurons each"),
        *([] if not above else [("gate", f"open where its input is above {above:g}")]),
        ("shards", f"{work.num_shards} of up to {work.shard_sequences} sequences, {batches}"),
        ("workers", f"{workers}, {'one GPU each' if work.on_gpu else 'CPU'}"),
        (
            "weights",
            "stay in memory"
            if work.resident
            else f"read once per shard, {size(plan.weight_bytes)} in all",
        ),
        ("work", f"{short(plan.flop)} FLOP"),
    ]
    if flops is not None:
        shard = duration(plan.shard_seconds(flops))
        rate = f"{short(flops)}FLOP/s a worker"
        rows.append(("time, at least", f"{duration(plan.seconds(flops))}, {shard} a shard: {rate}"))
    if download:
        rows.append(("to fetch, if not cached", f"{size(plan.checkpoint_bytes)} of weights"))
    if plan.device:
        rows.append(("GPU memory, each worker", written(plan.device)))
    rows.append(("host memory, each worker", written(plan.host)))
    rows.append(("disk, expected", written(plan.disk)))
    console.table("plan", rows)
