"""What a collect run works on: its model, its text, and the run that is there already."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuronstats.collect.plan import CorpusSize
from neuronstats.collect.settings import CollectJob
from neuronstats.corpus.corpus import Corpus
from neuronstats.corpus.files import find_files
from neuronstats.corpus.packing import Keeper, read_corpus
from neuronstats.errors import SettingsError, UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.config import BOS_ALWAYS, bos_id, separator_id
from neuronstats.model.decoder import Decoder, check_weights
from neuronstats.model.settings import Dtype
from neuronstats.model.shape import Activation, Shape, num_first_layers
from neuronstats.model.source import is_here, locate
from neuronstats.store import run as store
from neuronstats.store.faults import storage_errors
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, NGRAMS, PARTIAL, TABLES, TOKENS, ZARR

OWN_NAMES = {LOCK, LOGS, ZARR, NGRAMS, TABLES, PARTIAL, TOKENS, "report"}
ESTIMATE_FROM_BYTES = 64 << 20  # a plan of more text than this guesses its tokens
LONG = 8192  # positions; of a model with more, the length of sequences must be given
NO_LIMIT = 1 << 20  # positions of a model that sets none
BYTES_PER_TOKEN = 4.0  # of English text under OPT's vocabulary, for such a guess


@dataclass(frozen=True)
class Inputs:
    """A collect run's inputs, before anything is chosen."""

    settings: CollectJob
    info: Mapping[str, Any] | None
    """run.yaml of the run that is there already."""
    decoder: Decoder
    num_layers: int
    """Layers to run."""
    num_bitmaps: int
    """Layers whose bitmaps are kept."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The model's files."""
        return self.decoder.checkpoint

    @property
    def shape(self) -> Shape:
        """The model's sizes, and the threshold that its gates are compared with."""
        shape = self.decoder.shape
        threshold = self.settings.collect.threshold
        activation = dataclasses.replace(shape.activation, threshold=threshold)
        return dataclasses.replace(shape, activation=activation)

    @property
    def sum_tokens(self) -> int | None:
        """Tokens whose values are summed by themselves; None where no sums are taken."""
        collect = self.settings.collect
        takes_sums = collect.sums and not self.shape.activation.is_relu_like
        return collect.sum_tokens if takes_sums else None

    def dtype(self, *, on_gpu: bool) -> torch.dtype:
        """Resolve model.dtype."""
        chosen = self.settings.model.dtype
        if chosen is not Dtype.auto:
            return getattr(torch, chosen.value)
        if self.info is not None:
            return getattr(torch, self.info["identity"]["model.dtype"])
        stored = self.checkpoint.dtype
        return stored if on_gpu and stored is not torch.float64 else torch.float32


def inspect(settings: CollectJob, on_message: Callable[[str], None]) -> Inputs:
    """Look at the run folder and the model; read no weights and no text.

    Args:
        settings: the job's settings.
        on_message: called with a line for the user.

    Raises:
        SettingsError: the folder holds something else, or the model is not understood.
        UserError: the model cannot be had, or its weights are not those of its configuration.
    """
    info = _existing_run(settings.location)
    here = is_here(settings.model)  # if not, gigabytes are fetched once the plan fits
    with tempfile.TemporaryDirectory(prefix="neuronstats-") as spare:
        folder = _model_folder(settings, Path(spare), on_message, weights=here)
        decoder = Decoder(Checkpoint(folder, weights=here))
    _check_threshold(settings.collect.threshold, decoder.shape.activation)
    total = decoder.shape.num_layers
    num_layers = num_first_layers(settings.collect.layers, total, "collect.layers")
    if num_layers == 0:
        raise SettingsError(f"collect.layers={settings.collect.layers}: no layer would be run.")
    num_bitmaps = num_first_layers(settings.collect.bitmaps, total, "collect.bitmaps")
    if here:
        check_weights(decoder, num_layers)
    return Inputs(settings, info, decoder, num_layers, min(num_bitmaps, num_layers))


def with_weights(inputs: Inputs) -> Inputs:
    """Return the inputs with the model's weights, which were fetched before.

    Raises:
        UserError: they are not there, or are not the model's.
    """
    model = inputs.settings.model
    if is_here(model):
        return inputs
    decoder = Decoder(Checkpoint(locate(model, cached=True)))
    check_weights(decoder, inputs.num_layers)
    return dataclasses.replace(inputs, decoder=decoder)


def read_text(inputs: Inputs, keeper: Keeper | None = None) -> Corpus:
    """Read the corpus that the settings ask for.

    Args:
        inputs: with the model's tokenizer.
        keeper: keeps the domains that are done.

    Raises:
        SettingsError: the length of sequences has to be given.
        UserError: the text cannot be read.
    """
    config, data = inputs.checkpoint.config, inputs.settings.data
    longest = inputs.shape.positions or NO_LIMIT
    if data.kind != "tokens" and not data.sequence_length and longest > LONG:
        raise SettingsError(
            f"data.sequence_length is not set, and the model takes {longest} positions:"
            f" above {LONG} give a length, for memory and position counts grow with it."
        )
    return read_corpus(
        data,
        tokenizer=str(inputs.checkpoint.folder),
        revision=inputs.settings.model.revision,
        bos_id=bos_id(config),
        separator_id=separator_id(config),
        vocab_size=config.vocab_size,
        max_positions=longest,
        bos_always=config.model_type in BOS_ALWAYS,
        keeper=keeper,
    )


def corpus_size(inputs: Inputs, corpus: Corpus | None) -> CorpusSize:
    """Return the corpus's size; without a corpus that of the run, or an estimate."""
    if corpus is not None:
        counts = [int((corpus.domain == i).sum()) for i in range(len(corpus.domains))]
        return CorpusSize(tuple(counts), corpus.tokens.shape[1])
    if inputs.info is not None:
        layout = inputs.info["layout"]
        by_domain: dict[str, int] = {}
        for shard in layout["shards"]:
            by_domain[shard["domain"]] = by_domain.get(shard["domain"], 0) + shard["num_sequences"]
        return CorpusSize(tuple(by_domain.values()), layout["num_positions"])
    data = inputs.settings.data
    positions = data.sequence_length or min(inputs.shape.positions or LONG, LONG)
    tokens = float(data.max_tokens or 0)
    if data.kind == "local":
        guess = _text_bytes(inputs.settings) / BYTES_PER_TOKEN
        tokens = min(tokens, guess) if tokens else guess
    num_domains = max(1, len(data.sources))
    return CorpusSize((max(1, int(tokens / positions / num_domains)),) * num_domains, positions)


def is_small(settings: CollectJob) -> bool:
    """Return whether the corpus can be read for a plan, rather than guessed."""
    kind = settings.data.kind
    return kind in ("sample", "tokens") or (
        kind == "local" and _text_bytes(settings) <= ESTIMATE_FROM_BYTES
    )


def _check_threshold(threshold: float, activation: Activation) -> None:
    """Refuse a threshold where the function itself says what is activated."""
    if threshold and activation.exact_zeros:
        raise SettingsError(
            f"collect.threshold={threshold:g}: the model's {activation.name} is 0 exactly where its"
            " input is not above 0, and a neuron is activated where it is not 0: expected 0."
        )


def _existing_run(location: str) -> Mapping[str, Any] | None:
    with storage_errors("open", location):
        if "://" not in location and not Path(location).exists():
            return None
    folder = RunFolder(location)
    info = store.read_info(folder)
    if info is None and (foreign := folder.names() - OWN_NAMES):
        raise SettingsError(
            f"run={location} holds other files ({', '.join(sorted(foreign)[:3])}) and"
            " no run: give a new or empty folder."
        )
    return info


def _model_folder(
    settings: CollectJob, spare: Path, on_message: Callable[[str], None], *, weights: bool
) -> Path:
    """Return the model's folder; for a plan without the hub, `spare` with what is stated."""
    try:
        return locate(settings.model, weights=weights)
    except SettingsError:
        raise
    except UserError as error:
        if not settings.plan or not settings.model.sizes:
            raise
        on_message(f"planned by model.sizes: {error}")
    (spare / "config.json").write_text(json.dumps(settings.model.sizes))
    return spare


def _text_bytes(settings: CollectJob) -> int:
    assert settings.data.path is not None
    return sum(path.stat().st_size for _, path in find_files(settings.data.path))
