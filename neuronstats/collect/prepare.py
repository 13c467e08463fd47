"""From a run's inputs to its plan, its identity, and the opened run."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash

from neuronstats.bits import quantities
from neuronstats.cluster.nodes import Node, Workers, place
from neuronstats.collect.choose import choose
from neuronstats.collect.inspect import Inputs, read_text
from neuronstats.collect.plan import CorpusSize, Plan, Work
from neuronstats.corpus.corpus import Corpus
from neuronstats.corpus.documents import content_fingerprint
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError
from neuronstats.machine import gpu_name, installed_version
from neuronstats.model.config import bos_id, separator_id
from neuronstats.store import run as store
from neuronstats.store.create import new_run
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import Layout, make_shards
from neuronstats.store.run import Run

ABSENT = {"collect.threshold": 0.0}  # what an identity says by leaving a setting out
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


def make_choices(
    inputs: Inputs, nodes: Sequence[Node], size: CorpusSize, free_disk: int | None
) -> tuple[Plan, Workers]:
    """Make the plan; what the settings leave open is taken from the run, if there is one.

    Raises:
        SettingsError: it does not fit the machines.
    """
    settings = inputs.settings
    on_gpu = place(settings.ray, nodes).gpus > 0
    work = Work(
        shape=inputs.shape,
        corpus=size,
        num_layers=inputs.num_layers,
        num_bitmaps=inputs.num_bitmaps,
        shard_sequences=1,
        batch_sequences=1,
        dtype_bytes=inputs.dtype(on_gpu=on_gpu).itemsize,
        stored_bytes=inputs.checkpoint.dtype.itemsize,
        on_gpu=on_gpu,
        shards_left=_shards_left(inputs),
        sum_tokens=inputs.sum_tokens,
    )
    return choose(
        work,
        settings.ray,
        nodes,
        free_disk,
        shard_sequences=_length(inputs, "shard_sequences"),
        batch_sequences=_length(inputs, "batch_sequences"),
    )


def _shards_left(inputs: Inputs) -> int | None:
    """Count the shards that the run still lacks; None where there is no run."""
    if inputs.info is None:
        return None
    run = Run(RunFolder(inputs.settings.location), inputs.info)
    return len(run.layout.shards) - len(run.record_keys())


def _length(inputs: Inputs, name: str) -> int | None:
    """Return what is asked for, else what the run has; None: to be chosen."""
    value = getattr(inputs.settings.collect, name)
    if value == "auto":
        return int(inputs.info["identity"][f"collect.{name}"]) if inputs.info else None
    return int(value)


def identity(inputs: Inputs, plan: Plan) -> dict[str, Any]:
    """Return all that decides the numbers, by the settings' names; the tokens' hash comes later."""
    data, work = inputs.settings.data, plan.work
    tokens, local = data.kind == "tokens", data.kind == "local"
    return {
        "model.weights": inputs.checkpoint.fingerprint(),
        "model.dtype": str(inputs.dtype(on_gpu=work.on_gpu)).removeprefix("torch."),
        "model.tokenizer": None if tokens else _tokenizer_hash(inputs.checkpoint.folder),
        "data.kind": data.kind,
        "data.content": _content(data),
        "data.text": data.text if local else None,
        "data.domain": data.domain if local else None,
        "data.sequence_length": work.corpus.positions,
        "data.max_tokens": data.max_tokens,
        "data.packing": data.packing,
        "data.bos": None if data.bos == "auto" else data.bos,
        "data.separator": None if data.separator == "auto" else data.separator,
        "data.shares": data.shares or None,
        "collect.layers": work.num_layers,
        "collect.bitmaps": work.num_bitmaps,
        "collect.shard_sequences": work.shard_sequences,
        "collect.batch_sequences": work.batch_sequences,
        **({} if work.sum_tokens is None else {"collect.sum_tokens": work.sum_tokens}),
        **({} if (above := work.shape.activation.threshold) == 0 else {"collect.threshold": above}),
    }


def text_key(inputs: Inputs) -> str:
    """Return all that decides the tokens, as text."""
    data, config = inputs.settings.data, inputs.checkpoint.config
    decisive = (dataclasses.asdict(data), _content(data), _tokenizer_hash(inputs.checkpoint.folder))
    model = (bos_id(config), separator_id(config), config.vocab_size, inputs.shape.positions)
    return json.dumps([decisive, model], sort_keys=True)


def open_run(inputs: Inputs, folder: RunFolder, plan: Plan, corpus: Corpus | None) -> Run:
    """Open the run, or create it; under its folder's lock.

    Raises:
        SettingsError: the run was made by other settings; says which.
    """
    asked = identity(inputs, plan)
    info = store.read_info(folder)
    if info is not None:
        refuse_differences(folder.location, info["identity"], asked)
        return Run(folder, info)
    corpus = corpus if corpus is not None else read_text(inputs)
    asked["data.tokens"] = corpus.fingerprint
    number, gated = inputs.sum_tokens, inputs.shape.activation.gated
    layout = Layout(
        num_layers=inputs.num_layers,
        num_bitmaps=inputs.num_bitmaps,
        num_neurons=inputs.shape.neurons,
        num_positions=corpus.tokens.shape[1],
        shard_sequences=plan.work.shard_sequences,
        domains=corpus.domains,
        shards=make_shards(corpus, plan.work.shard_sequences),
        sums=() if number is None else quantities.names(gated=gated),
        sum_tokens=() if number is None else corpus.most_frequent(number),
    )
    return new_run(folder, corpus, layout, _new_info(inputs, plan, asked, corpus))


def _new_info(
    inputs: Inputs, plan: Plan, identity: Mapping[str, Any], corpus: Corpus
) -> dict[str, Any]:
    """Return what run.yaml says of a new run, its layout excepted."""
    settings = dataclasses.asdict(inputs.settings)
    settings["model"]["dtype"] = inputs.settings.model.dtype.value
    text = json.dumps(identity, sort_keys=True)
    return {
        "fingerprint": xxhash.xxh3_128_hexdigest(text.encode()),
        "identity": identity,
        "model": {
            **dataclasses.asdict(inputs.shape),
            "family": inputs.checkpoint.config.model_type,
            "bos_token_id": corpus.bos_id,
            "separator_id": corpus.separator_id,
            "has_positions": inputs.decoder.has_positions(),
        },
        "settings": settings,
        "versions": versions(on_gpu=plan.work.on_gpu),
    }


def refuse_differences(location: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise SettingsError naming every setting in which a run differs from what is asked for."""
    known = [key for key in {**new, **old} if key != "data.tokens"]  # which are read later
    values = [(key, old.get(key, ABSENT.get(key)), new.get(key, ABSENT.get(key))) for key in known]
    differences = [
        f"{key}: {_difference(before, now)}" for key, before, now in values if before != now
    ]
    if differences:
        raise SettingsError(
            f"{location} was made by other settings:\n  "
            + "\n  ".join(differences)
            + "\nGive these settings again, or another run folder (run=)."
        )


def _content(data: DataSettings) -> Any:
    if data.kind == "hub":
        sources = [dataclasses.asdict(source) for source in data.sources]
        # Runs of before there was this setting have no word of it.
        return [{k: v for k, v in s.items() if k != "files" or v is not None} for s in sources]
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


def versions(*, on_gpu: bool) -> dict[str, str]:
    """Return the versions of what computes the numbers, and what it computes them on."""
    names = ("neuronstats", "torch", "transformers", "tokenizers", "numpy", "zarr", "ray")
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "python": platform.python_version(),
        **{name: installed_version(name) for name in names},
        "device": gpu_name() if on_gpu else f"{platform.machine()} {capability}",
    }


def other_arithmetic(run: Run, *, on_gpu: bool) -> str:
    """Return how this machine's arithmetic differs from what the run was begun with; empty if not.

    The first machine's is compared: its kind of processor or GPU, and its torch.
    """
    before, now = run.about.versions, versions(on_gpu=on_gpu)
    changed = [
        f"{name} {before[name]}, here {now[name]}"
        for name in ("device", "torch")
        if name in before and before[name] != now[name]
    ]
    if not changed:
        return ""
    return (
        f"note: this run was begun with {'; '.join(changed)}: bits of inputs near zero may differ"
        " from one shard to another."
    )
