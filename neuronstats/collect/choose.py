"""What the settings leave open: the fastest placement and the longest shards that fit."""

from collections.abc import Sequence
from dataclasses import replace

from neuronstats.cluster.nodes import Node, Workers, place
from neuronstats.cluster.settings import RaySettings
from neuronstats.collect.plan import Plan, Work, make_plan
from neuronstats.errors import SettingsError

CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 16384
GPU_BATCH_VALUES = 1 << 26  # of a narrow model's batch: more tokens, or its kernels are too short
CPU_SHARD_TOKENS = 1 << 16
GPU_SHARD_TOKENS = 1 << 18  # above some 80k tokens, reading weights hides behind the work


def choose(
    work: Work,
    settings: RaySettings,
    nodes: Sequence[Node],
    free_disk: int | None,
    *,
    shard_sequences: int | None,
    batch_sequences: int | None,
) -> tuple[Plan, Workers]:
    """Resolve what is left to the plan, the fastest way that fits.

    The defaults depend on the model and the corpus alone; only machines with too little memory
    get smaller shards. Where not even these let every machine of a cluster work, those that can.

    Args:
        work: its shard and batch lengths and number of workers are replaced.
        settings: how many workers.
        nodes: the machines.
        free_disk: bytes, or None where unknown.
        shard_sequences: None to choose.
        batch_sequences: None to choose.

    Raises:
        SettingsError: no choice fits; says what is lacking.
    """
    positions = work.corpus.positions
    tokens = batch_tokens(work.shape.hidden, on_gpu=work.on_gpu)
    batch = batch_sequences or max(1, tokens // positions)
    longest = max(work.corpus.sequences_by_domain)
    if shard_sequences:
        shards = [shard_sequences]
        batch = batch_sequences or min(batch, shard_sequences)
    else:
        tokens = GPU_SHARD_TOKENS if work.on_gpu else CPU_SHARD_TOKENS
        target = min(max(batch, tokens // positions), -(-longest // batch) * batch)
        shards = _halvings(target // batch * batch, batch)
    wanted = place(settings, nodes)
    best: tuple[Plan, Workers] | None = None
    misfits: list[str] = []
    for length in shards:  # shorter ones last: weights that are read hide behind long shards
        for resident, near, table in _placements(on_gpu=work.on_gpu):
            choice = replace(
                work,
                workers=wanted.count,
                shard_sequences=length,
                batch_sequences=batch,
                resident=resident,
                hidden_on_device=near,
                table_on_device=table,
            )
            plan = make_plan(choice)
            misfits = _misfits(plan, wanted, free_disk)
            if not misfits:
                needs = replace(wanted, memory=plan.host_bytes, gpu_memory=plan.device_bytes)
                return plan, needs
            fewer = _fewer(plan, settings, nodes, free_disk)
            if fewer and (best is None or fewer.count > best[1].count):
                best = replace(plan, work=replace(choice, workers=fewer.count)), fewer
    if best is None:
        raise SettingsError("this does not fit here: " + "; ".join(misfits) + ".")
    return best


def batch_tokens(hidden: int, *, on_gpu: bool) -> int:
    """Return the tokens of a batch, where they are left open, at a width of the residual stream."""
    if not on_gpu:
        return CPU_BATCH_TOKENS
    return min(max(GPU_BATCH_TOKENS, GPU_BATCH_VALUES // hidden), GPU_SHARD_TOKENS)


def _misfits(plan: Plan, workers: Workers, free_disk: int | None) -> list[str]:
    """Return what does not fit on any of the machines; which machine, where there are several."""
    misfits = []
    for node, count in workers.by_node:
        on = f" on {node.name} with {count} workers" if len(workers.by_node) > 1 else ""
        misfits += [
            text.replace(": ", f"{on}: ", 1)
            for text in plan.misfits(node, count, free_disk)
            if count
        ]
    return misfits


def _fewer(
    plan: Plan, settings: RaySettings, nodes: Sequence[Node], free_disk: int | None
) -> Workers | None:
    """Place as many workers as fit, where their number is left open; None if none fits."""
    if isinstance(settings.workers, int) or (free_disk is not None and plan.disk_bytes > free_disk):
        return None
    try:
        return place(settings, nodes, memory=plan.host_bytes, gpu_memory=plan.device_bytes)
    except SettingsError:
        return None


def _placements(*, on_gpu: bool) -> Sequence[tuple[bool, bool, bool]]:
    """List what may be on the device, best first: layers, hidden states, token embeddings.

    Layers that are read for each shard hide behind the work; embeddings looked up on the host
    do not, nor all of the hidden states' way there and back.
    """
    if not on_gpu:
        return [(True, True, False), (False, True, False)]
    near = [(layers, True, table) for table in (True, False) for layers in (True, False)]
    return [*near, (False, False, True), (False, False, False)]


def _halvings(length: int, batch: int) -> list[int]:
    lengths = [length]
    while lengths[-1] > batch:
        lengths.append(max(batch, lengths[-1] // 2 // batch * batch))
    return lengths
