"""What a collect run was asked for, resolved: model, corpus, plan, identity; opened or created."""

import dataclasses
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash

from neuronstats.cluster.nodes import Node, Workers, place
from neuronstats.collect import plan as planning
from neuronstats.collect.plan import Plan, Work
from neuronstats.collect.settings import CollectJob
from neuronstats.console import Console
from neuronstats.corpus.corpus import Corpus
from neuronstats.corpus.documents import content_fingerprint
from neuronstats.corpus.files import find_files
from neuronstats.corpus.packing import read_corpus
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError, UserError
from neuronstats.machine import free_disk_bytes
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.config import BOS_ALWAYS, bos_id, separator_id
from neuronstats.model.decoder import Decoder, check_weights
from neuronstats.model.settings import Dtype
from neuronstats.model.shape import num_first_layers
from neuronstats.model.source import is_here, locate
from neuronstats.store import run as store
from neuronstats.store.create import new_run
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, NGRAMS, PARTIAL, TABLES, ZARR, Layout, make_shards
from neuronstats.store.run import Run

OWN_NAMES = {LOCK, LOGS, ZARR, NGRAMS, TABLES, PARTIAL, "report"}
ESTIMATE_FROM_BYTES = 64 << 20  # a plan of more text than this guesses its tokens
LONG = 8192  # positions; of a model with more, the length of sequences must be given
NO_LIMIT = 1 << 20  # positions of a model that sets none
BYTES_PER_TOKEN = 4.0  # of English text under OPT's vocabulary, for such a guess
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


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
        here = is_here(settings.model)  # if not, gigabytes are fetched once the plan fits
        self.checkpoint = Checkpoint(self._folder(weights=here), weights=here)
        self.decoder = Decoder(self.checkpoint)
        self.shape = self.decoder.shape
        self.num_layers = num_first_layers(
            settings.collect.layers, self.shape.num_layers, "collect.layers"
        )
        if self.num_layers == 0:
            raise SettingsError(f"collect.layers={settings.collect.layers}: no layer would be run.")
        wanted = num_first_layers(
            settings.collect.bitmaps, self.shape.num_layers, "collect.bitmaps"
        )
        self.num_bitmaps = min(wanted, self.num_layers)
        if here:
            check_weights(self.decoder, self.num_layers)

    def _folder(self, *, weights: bool) -> Path:
        """Return the model's folder; for a plan without the hub, one with what is stated."""
        try:
            return locate(self.settings.model, weights=weights)
        except SettingsError:
            raise
        except UserError as error:
            if not self.settings.plan or self.settings.model.sizes is None:
                raise
            self.console.say(f"planned by model.sizes: {error}")
        folder = Path(tempfile.mkdtemp(prefix="neuronstats-"))
        (folder / "config.json").write_text(json.dumps(self.settings.model.sizes))
        return folder

    def fetch_weights(self) -> None:
        """Fetch the weights from the hub where they are not here.

        Raises:
            UserError: the hub does not give them, or they are not the model's.
        """
        if not is_here(self.settings.model):
            self.console.say(f"fetching the weights of {self.settings.model.path}")
            self.checkpoint = Checkpoint(locate(self.settings.model))
            self.decoder = Decoder(self.checkpoint)
            check_weights(self.decoder, self.num_layers)

    def _existing(self) -> dict[str, Any] | None:
        if "://" not in self.location and not Path(self.location).exists():
            return None
        folder = RunFolder(self.location)
        info = store.read_info(folder)
        if info is None:
            foreign = folder.names() - OWN_NAMES
            if foreign:
                raise SettingsError(
                    f"run={self.location} holds other files ({', '.join(sorted(foreign)[:3])}) and"
                    " no run: give a new or empty folder."
                )
        return info

    def corpus(self) -> Corpus:
        """Read the corpus that the settings ask for."""
        config, model = self.checkpoint.config, self.settings.model
        longest = self.shape.positions or NO_LIMIT
        data = self.settings.data
        if data.kind != "tokens" and not data.sequence_length and longest > LONG:
            raise SettingsError(
                f"data.sequence_length is not set, and the model takes {longest} positions:"
                f" above {LONG} give a length, for memory and position counts grow with it."
            )
        return read_corpus(
            self.settings.data,
            tokenizer=str(self.checkpoint.folder),
            revision=model.revision,
            bos_id=bos_id(config),
            separator_id=separator_id(config),
            vocab_size=config.vocab_size,
            max_positions=longest,
            bos_always=config.model_type in BOS_ALWAYS,
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
        positions = data.sequence_length or min(self.shape.positions or LONG, LONG)
        tokens = float(data.max_tokens or 0)
        if data.kind == "local":
            guess = _text_bytes(self.settings) / BYTES_PER_TOKEN
            tokens = min(tokens, guess) if tokens else guess
        num_domains = max(1, len(data.sources))
        return planning.Corpus(
            (max(1, int(tokens / positions / num_domains)),) * num_domains, positions
        )

    def choose(self, nodes: Sequence[Node], corpus: planning.Corpus) -> tuple[Plan, Workers]:
        """Make the plan; what the settings leave open is taken from the run, if there is one."""
        settings = self.settings.collect
        on_gpu = place(self.settings.ray, nodes).gpus > 0
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
            shards_left=self._shards_left(),
        )
        return planning.choose(
            work,
            self.settings.ray,
            nodes,
            free_disk_bytes(self.location),
            shard_sequences=self._open_choice(settings.shard_sequences, "collect.shard_sequences"),
            batch_sequences=self._open_choice(settings.batch_sequences, "collect.batch_sequences"),
        )

    def _shards_left(self) -> int | None:
        """Count the shards that the run still lacks; None where there is no run."""
        if self.info is None:
            return None
        run = Run(RunFolder(self.location), self.info)
        return len(run.layout.shards) - len(run.record_keys())

    def _open_choice(self, value: int | str, key: str) -> int | None:
        if value == "auto":
            return int(self.info["identity"][key]) if self.info else None
        return int(value)

    def dtype(self, *, on_gpu: bool) -> torch.dtype:
        """Resolve model.dtype."""
        chosen = self.settings.model.dtype
        if chosen is not Dtype.auto:
            return getattr(torch, chosen.value)
        if self.info is not None:
            return getattr(torch, self.info["identity"]["model.dtype"])
        return self.checkpoint.dtype if on_gpu else torch.float32

    def identity(self, plan: Plan) -> dict[str, Any]:
        """All that decides the numbers, by the settings' names; the tokens' hash comes later."""
        data, work = self.settings.data, plan.work
        return {
            "model.weights": self.checkpoint.fingerprint(),
            "model.dtype": str(self.dtype(on_gpu=work.on_gpu)).removeprefix("torch."),
            "model.tokenizer": None
            if data.kind == "tokens"
            else _tokenizer_hash(self.checkpoint.folder),
            "data.kind": data.kind,
            "data.content": _content(data),
            "data.text": data.text if data.kind == "local" else None,
            "data.domain": data.domain if data.kind == "local" else None,
            "data.sequence_length": work.corpus.positions,
            "data.max_tokens": data.max_tokens,
            "data.packing": data.packing,
            "data.bos": None if data.bos == "auto" else data.bos,
            "data.shares": data.shares,
            "collect.layers": self.num_layers,
            "collect.bitmaps": self.num_bitmaps,
            "collect.shard_sequences": work.shard_sequences,
            "collect.batch_sequences": work.batch_sequences,
        }

    def open_run(self, folder: RunFolder, plan: Plan, corpus: Corpus | None) -> Run:
        """Open the run, or create it; under its folder's lock.

        Raises:
            SettingsError: the run was made by other settings; says which.
        """
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
        return new_run(folder, corpus, layout, self._info(identity, corpus))

    def _info(self, identity: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)
        settings["model"]["dtype"] = self.settings.model.dtype.value
        text = json.dumps(identity, sort_keys=True)
        return {
            "fingerprint": xxhash.xxh3_128_hexdigest(text.encode()),
            "identity": identity,
            "model": {
                **dataclasses.asdict(self.shape),
                "bos_token_id": corpus.bos_id,
                "separator_id": separator_id(self.checkpoint.config),
                "has_positions": self.decoder.has_positions(),
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
            f"{location} was made by other settings:\n  "
            + "\n  ".join(differences)
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


def _tokenizer_hash(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return str(digest.hexdigest())


def _text_bytes(settings: CollectJob) -> int:
    assert settings.data.path is not None
    return sum(path.stat().st_size for _, path in find_files(settings.data.path))


def versions() -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    names = ("neuronstats", "torch", "transformers", "tokenizers", "numpy", "zarr", "ray")
    return {
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in names},
    }


def is_small(settings: CollectJob) -> bool:
    """Tell whether the corpus can be read for a plan, rather than guessed."""
    kind = settings.data.kind
    return kind in ("sample", "tokens") or (
        kind == "local" and _text_bytes(settings) <= ESTIMATE_FROM_BYTES
    )
