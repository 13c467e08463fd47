"""The collect job: text -> tokens -> shards -> sweep -> commit, resumed where it stopped."""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from neuronstats import plan as planning
from neuronstats import store
from neuronstats.checkpoint import Checkpoint, Dtype, ModelSettings, absolute, is_here, locate
from neuronstats.cluster import Pool, Workers, connect, local_workers
from neuronstats.config import INTERRUPTED, CollectJob
from neuronstats.console import Console, duration, short
from neuronstats.corpus import Corpus
from neuronstats.errors import SettingsError, UserError
from neuronstats.folder import LOCK, RunFolder
from neuronstats.machine import Machine, free_disk_bytes, peak_host_bytes, probe
from neuronstats.opt import Shape, check_weights, num_first_layers
from neuronstats.plan import Plan, Work, size
from neuronstats.store import Layout, Run, Shard, make_shards
from neuronstats.sweep import Sweep
from neuronstats.text import DataSettings, content_fingerprint
from neuronstats.textfiles import find_files
from neuronstats.tokens import read_corpus

log = logging.getLogger(__name__)

LOGS = "logs"
ESTIMATE_FROM_BYTES = 64 << 20  # a plan of more text than this guesses its tokens
BYTES_PER_TOKEN = 4.0  # of English text under OPT's vocabulary, for such a guess
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class ShardSummary:
    """What a worker says of a shard that it has committed."""

    tokens: int
    seconds: float
    writer_wait_seconds: float
    peak_bytes: int


class ShardWorker:
    """One worker: keeps the model over shards, writes and commits each.

    Args:
        location: the run.
        model: where the checkpoint is.
        work: the sizes, with every choice made.
    """

    def __init__(self, location: str, model: ModelSettings, work: Work) -> None:
        _log_to_file(location)
        try:
            self._run = Run.open(location)
        except SettingsError as error:
            raise UserError(
                f"{error} The worker on {platform.node()} looked for it: on a cluster the run must be"
                " an object-store URL, or a folder that every machine sees."
            ) from error
        checkpoint = Checkpoint(locate(model))
        identity = self._run.info["identity"]
        if checkpoint.fingerprint() != identity["model.weights"]:
            raise UserError(f"{checkpoint.folder} on {platform.node()} holds other weights than the run's.")
        self._tokens = self._run.corpus().tokens
        self._sweep = Sweep(
            checkpoint,
            num_layers=work.num_layers,
            num_bitmaps=work.num_bitmaps,
            batch_sequences=work.batch_sequences,
            dtype=getattr(torch, identity["model.dtype"]),
            device=torch.device("cuda" if work.on_gpu else "cpu"),
            resident=work.resident,
            hidden_on_device=work.hidden_on_device,
        )
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def __call__(self, shard: Shard) -> ShardSummary:
        """Run, write and commit one shard."""
        start, waited = time.monotonic(), 0.0
        log.info("%s: start", shard)
        writer = self._run.writer(shard)
        pending: Future[None] | None = None
        for record in self._sweep(self._tokens[shard.sequences], str(shard)):
            waiting = time.monotonic()
            if pending is not None:  # one layer is written while the next is computed, no more
                pending.result()
            waited += time.monotonic() - waiting
            pending = self._writing.submit(
                writer.write_layer, record.layer, record.bitmap, record.position_counts
            )
            del record
        assert pending is not None
        pending.result()
        writer.commit()
        tokens = shard.num_sequences * self._tokens.shape[1]
        summary = ShardSummary(tokens, time.monotonic() - start, waited, peak_host_bytes())
        log.info("%s: committed, %s", shard, summary)
        return summary


def _log_to_file(location: str) -> None:
    """Send a worker's log to the run folder; on an object store it stays with ray's own."""
    if "://" in location:
        return
    folder = Path(location) / LOGS
    folder.mkdir(exist_ok=True)
    logging.basicConfig(
        filename=folder / f"{platform.node()}-{time.strftime('%Y%m%d-%H%M%S')}.log",
        level=logging.INFO,
        format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s",
        force=True,
    )


class Collect:
    """One call of the job: what was asked for, resolved step by step.

    Args:
        settings: the job's settings.
        console: where it tells the user.
    """

    def __init__(self, settings: CollectJob, console: Console) -> None:
        self.settings, self.console = settings, console
        self.location = settings.location
        self.info = self._existing()
        weights = not settings.plan or is_here(settings.model)  # a plan does not fetch gigabytes
        self.checkpoint = Checkpoint(locate(settings.model, weights=weights), weights=weights)
        self.shape = Shape.of(self.checkpoint.config)
        self.num_layers = num_first_layers(settings.collect.layers, self.shape.num_layers, "collect.layers")
        if self.num_layers == 0:
            raise SettingsError(f"collect.layers={settings.collect.layers}: no layer would be run.")
        wanted = num_first_layers(settings.collect.bitmaps, self.shape.num_layers, "collect.bitmaps")
        self.num_bitmaps = min(wanted, self.num_layers)
        if weights:
            check_weights(self.checkpoint, self.num_layers)

    def _existing(self) -> dict[str, Any] | None:
        if "://" not in self.location and not Path(self.location).exists():
            return None
        folder = RunFolder(self.location)
        info = store.read_info(folder)
        if info is None:
            foreign = folder.names() - {LOCK, LOGS, store.ZARR}
            if foreign:
                raise SettingsError(
                    f"run={self.location} holds other files ({', '.join(sorted(foreign)[:3])}) and no"
                    " run: give a new or empty folder."
                )
        return info

    def corpus(self) -> Corpus:
        """Read the corpus that the settings ask for."""
        config, model = self.checkpoint.config, self.settings.model
        return read_corpus(
            self.settings.data,
            tokenizer=str(self.checkpoint.folder),
            revision=model.revision,
            bos_id=config.bos_token_id,
            separator_id=_separator(config),
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
        )

    def corpus_size(self, corpus: Corpus | None) -> planning.Corpus:
        """Return the corpus's size; without a corpus that of the run, or an estimate."""
        if corpus is not None:
            counts = [int((corpus.domain == i).sum()) for i in range(len(corpus.domains))]
            return planning.Corpus(tuple(counts), corpus.tokens.shape[1])
        if self.info is not None:
            counts_by_domain: dict[str, int] = {}
            for shard in self.info["layout"]["shards"]:
                name, count = shard["domain"], shard["num_sequences"]
                counts_by_domain[name] = counts_by_domain.get(name, 0) + count
            positions = self.info["layout"]["num_positions"]
            return planning.Corpus(tuple(counts_by_domain.values()), positions)
        data = self.settings.data
        positions = data.sequence_length or self.shape.positions
        tokens = float(data.max_tokens or 0)
        if data.kind == "local":
            guess = _text_bytes(self.settings) / BYTES_PER_TOKEN
            tokens = min(tokens, guess) if tokens else guess
        num_domains = max(1, len(data.sources))
        return planning.Corpus((max(1, int(tokens / positions / num_domains)),) * num_domains, positions)

    def choose(self, machine: Machine, workers: Workers, corpus: planning.Corpus) -> Plan:
        """Make the plan; what the settings leave open is taken from the run, if there is one."""
        settings = self.settings.collect
        on_gpu = workers.gpus > 0
        dtype = self.dtype(on_gpu=on_gpu)
        work = Work(
            shape=self.shape,
            corpus=corpus,
            num_layers=self.num_layers,
            num_bitmaps=self.num_bitmaps,
            shard_sequences=1,
            batch_sequences=1,
            dtype_bytes=dtype.itemsize,
            stored_bytes=self.checkpoint.dtype.itemsize,
            on_gpu=on_gpu,
            workers=workers.count,
        )
        return planning.choose(
            work,
            machine,
            free_disk_bytes(self.location),
            shard_sequences=self._open_choice(settings.shard_sequences, "collect.shard_sequences"),
            batch_sequences=self._open_choice(settings.batch_sequences, "collect.batch_sequences"),
        )

    def _open_choice(self, value: int | str, key: str) -> int | None:
        if value == "auto":
            return int(self.info["identity"][key]) if self.info else None
        return int(value)

    def dtype(self, *, on_gpu: bool) -> torch.dtype:
        """Resolve model.dtype."""
        chosen = self.settings.model.dtype
        if chosen is not Dtype.auto:
            return getattr(torch, chosen.value)  # type: ignore[no-any-return]
        if self.info is not None:
            return getattr(torch, self.info["identity"]["model.dtype"])  # type: ignore[no-any-return]
        return self.checkpoint.dtype if on_gpu else torch.float32

    def identity(self, plan: Plan) -> dict[str, Any]:
        """All that decides the numbers, by the settings' names; the tokens' own hash comes later."""
        data, work = self.settings.data, plan.work
        return {
            "model.weights": self.checkpoint.fingerprint(),
            "model.dtype": str(self.dtype(on_gpu=work.on_gpu)).removeprefix("torch."),
            "model.tokenizer": None if data.kind == "tokens" else _tokenizer_hash(self.checkpoint.folder),
            "data.kind": data.kind,
            "data.content": _content(data),
            "data.text": data.text if data.kind == "local" else None,
            "data.domain": data.domain if data.kind == "local" else None,
            "data.sequence_length": work.corpus.positions,
            "data.max_tokens": data.max_tokens,
            "data.packing": data.packing,
            "data.shares": data.shares,
            "collect.layers": self.num_layers,
            "collect.bitmaps": self.num_bitmaps,
            "collect.shard_sequences": work.shard_sequences,
            "collect.batch_sequences": work.batch_sequences,
        }

    def open_run(self, plan: Plan, corpus: Corpus | None) -> Run:
        """Open the run, or create it; under its lock.

        Raises:
            SettingsError: the run was made by other settings; says which.
        """
        folder = RunFolder(self.location)
        identity = self.identity(plan)
        info = store.read_info(folder)
        if info is not None:
            refuse_differences(folder.location, info["identity"], identity)
            return Run(folder, info)
        corpus = corpus if corpus is not None else self.corpus()
        identity["data.tokens"] = corpus.fingerprint
        layout = Layout(
            num_layers=self.num_layers,
            num_bitmaps=self.num_bitmaps,
            num_neurons=self.shape.neurons,
            num_positions=corpus.tokens.shape[1],
            shard_sequences=plan.work.shard_sequences,
            domains=corpus.domains,
            shards=make_shards(corpus, plan.work.shard_sequences),
        )
        return Run.create(folder, corpus, layout, self._info(identity))

    def _info(self, identity: dict[str, Any]) -> dict[str, Any]:
        config = self.checkpoint.config
        settings = dataclasses.asdict(self.settings)
        settings["model"]["dtype"] = self.settings.model.dtype.value
        text = json.dumps(identity, sort_keys=True)
        return {
            "fingerprint": xxhash.xxh3_128_hexdigest(text.encode()),
            "identity": identity,
            "model": {
                **dataclasses.asdict(self.shape),
                "bos_token_id": config.bos_token_id,
                "has_positions": True,
            },
            "settings": settings,
            "versions": versions(),
        }


def refuse_differences(location: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise SettingsError naming every setting in which a run differs from what is asked for."""
    differences = [
        f"{key}: {_difference(old.get(key), value)}"
        for key, value in new.items()
        if old.get(key) != value
    ]
    if differences:
        raise SettingsError(
            f"{location} was made by other settings:\n  " + "\n  ".join(differences)
            + "\nGive these settings again, or another run folder (run=)."
        )


def _content(data: DataSettings) -> Any:
    if data.kind == "hub":
        return [dataclasses.asdict(source) for source in data.sources]
    return json.loads(json.dumps(content_fingerprint(data)))


def _difference(old: Any, new: Any) -> str:
    if not all(isinstance(value, dict) and "files" in value for value in (old, new)):
        return f"the run has {old!r}, asked for is {new!r}"
    before, now = ({file["name"]: file for file in value["files"]} for value in (old, new))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    kinds = {(True, True): "has changed", (False, True): "is new", (True, False): "is gone"}
    words = [f"{name} {kinds[name in before, name in now]}" for name in changed[:3]]
    return ", ".join(words) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _separator(config: Any) -> int:
    """The token between documents: the end of sequence, which OPT was trained with."""
    end = config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    return int(config.bos_token_id if end is None else end)


def _tokenizer_hash(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return str(digest.hexdigest())


def _text_bytes(settings: CollectJob) -> int:
    assert settings.data.path is not None
    return sum(path.stat().st_size for path in find_files(settings.data.path))


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    names = ("neuronstats", "torch", "transformers", "tokenizers", "numpy", "zarr", "ray")
    return {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in names}}


def show_plan(plan: Plan, machine: Machine, console: Console, *, exact: bool) -> None:
    """Print what the run will take."""
    work = plan.work
    about = "" if exact else "about "
    batches = f"{work.batch_sequences} sequences a batch"
    rows = [
        ("tokens", f"{about}{short(work.corpus.tokens)} in {work.corpus.sequences} sequences of {work.corpus.positions}"),
        ("layers", f"{work.num_layers} of {work.shape.num_layers}, bitmaps of {work.num_bitmaps}; {work.shape.neurons} neurons each"),
        ("shards", f"{work.num_shards} of up to {work.shard_sequences} sequences, {batches}"),
        ("workers", f"{work.workers}, {'one GPU each' if work.on_gpu else 'CPU'}"),
        ("weights", "stay in memory" if work.resident else f"read once per shard, {size(plan.weight_bytes)} in all"),
        ("work", f"{short(plan.flop)} FLOP"),
    ]
    if plan.device:
        rows.append(("GPU memory, each worker", _sum(plan.device, plan.device_bytes)))
    rows.append(("host memory, each worker", _sum(plan.host, plan.host_bytes)))
    rows.append(("disk, expected", _sum(plan.disk, plan.disk_bytes)))
    console.table("plan", rows)


def _sum(terms: tuple[planning.Term, ...], total: int) -> str:
    parts = [f"{term.name} {size(term.bytes)}" for term in sorted(terms, key=lambda t: -t.bytes) if term.bytes]
    return f"{size(total)} = {' + '.join(parts)}"


def collect(settings: CollectJob, console: Console) -> int:
    """Do the job; return its exit code."""
    settings = dataclasses.replace(settings, model=absolute(settings.model))
    job = Collect(settings, console)
    exact = job.info is not None or not settings.plan or _is_small(settings)
    corpus = job.corpus() if job.info is None and exact else None
    with contextlib.ExitStack() as stack:
        pool: Pool | None = None
        if settings.ray.address is not None:
            pool = stack.enter_context(connect(settings.ray, tell=console.say))
            [(_, machine)] = pool.run(_Probe, (), ["probing a worker's machine"])
            workers = pool.workers
        else:
            machine = probe()
            workers = local_workers(settings.ray, machine)
        plan = job.choose(machine, workers, job.corpus_size(corpus))
        show_plan(plan, machine, console, exact=exact)
        if settings.plan:
            return 0
        stack.enter_context(RunFolder(job.location, create=True).lock())
        run = job.open_run(plan, corpus)
        todo = remaining(run, settings, console)
        if todo and pool is None:
            pool = stack.enter_context(connect(settings.ray, tell=console.say))
        return _run_shards(run, todo, pool, settings, plan, console)


class _Probe:
    """Looks at the machine that a worker is on."""

    def __call__(self, _: str) -> Machine:
        return probe()


def _is_small(settings: CollectJob) -> bool:
    kind = settings.data.kind
    return kind in ("sample", "tokens") or (
        kind == "local" and _text_bytes(settings) <= ESTIMATE_FROM_BYTES
    )


def remaining(run: Run, settings: CollectJob, console: Console) -> list[Shard]:
    """Return the shards without a commit; with repair also those whose bytes have changed.

    Raises:
        UserError: a committed shard's bytes have changed, and repair was not asked for.
    """
    records = run.records()
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
    return [shard for shard in run.layout.shards if shard.index not in done]


def _run_shards(
    run: Run, todo: list[Shard], pool: Pool | None, settings: CollectJob, plan: Plan, console: Console
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
            tick = _ticker(advance, finished, len(todo))
            for _, summary in pool.run(ShardWorker, args, todo, tick=tick):
                finished.append(summary)
                advance(summary.tokens, f"{len(finished)}/{len(todo)} shards")
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
        busy = sum(summary.seconds for summary in finished)
        peak = max(summary.peak_bytes for summary in finished)
        words += f", {short(tokens / busy)} tokens/s a worker, peak memory {size(peak)} of {size(plan.host_bytes)}"
    console.say(f"collected: {words}: {location}")
    return 0


def _ticker(
    advance: Callable[[int, str], None], finished: list[ShardSummary], total: int
) -> Callable[[], None]:
    return lambda: advance(0, f"{len(finished)}/{total} shards")
