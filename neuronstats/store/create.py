"""What is laid down once when a run is created: tokens, and the metadata of every array.

It is built in memory, so that it can be built again to put right what was damaged.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import obstore
import yaml
import zarr
from numpy.typing import NDArray
from obstore.store import MemoryStore
from zarr.codecs import ZstdCodec
from zarr.storage import ObjectStore

from neuronstats import bits
from neuronstats.corpus.corpus import Corpus
from neuronstats.errors import UserError
from neuronstats.hashing import checksum
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import OBJECT_BYTES, RUN_FILE, ZARR, Layout
from neuronstats.store.run import FORMAT, Run, info_checksum


def laid_down(corpus: Corpus, layout: Layout) -> dict[str, bytes]:
    """Return every object of a new run's Zarr group, by its key; the same bytes each time."""
    store = MemoryStore()
    root = zarr.create_group(ObjectStore(store), attributes={"format": FORMAT})
    _array(root, "tokens", corpus.tokens.shape, corpus.tokens.dtype, ("sequence", "position"))
    root["tokens"][:] = corpus.tokens
    columns: dict[str, NDArray[Any]] = {"domain": corpus.domain, "row": corpus.row}
    for name, values in columns.items():
        _array(root, name, values.shape, values.dtype, ("sequence",))
        root[name][:] = values
    root["domain"].attrs["domains"] = list(corpus.domains)
    _create_layers(root, layout)
    keys = sorted(item["path"] for batch in obstore.list(store) for item in batch)
    return {key: bytes(obstore.get(store, key).bytes()) for key in keys}


def checksums(objects: Mapping[str, bytes]) -> dict[str, list[Any]]:
    """Return size and checksum of each object, as run.yaml has them."""
    return {key: [len(data), checksum(data)] for key, data in objects.items()}


def put_right(run: Run, damaged: Mapping[str, str], inputs: Callable[[], Corpus]) -> None:
    """Write again what was laid down at first.

    Args:
        run: the run.
        damaged: the objects, by key.
        inputs: reads the corpus anew; called where the run's own copy is damaged too.

    Raises:
        UserError: what was laid down cannot be made again.
    """
    for source in (run.corpus, inputs):
        try:
            corpus = source()
        except UserError:
            if source is inputs:
                raise
            continue
        objects = laid_down(corpus, run.layout)
        if corpus.fingerprint == run.about.tokens_fingerprint and (
            not run.laid_down or checksums(objects) == run.laid_down
        ):
            for key in damaged:
                if key in objects:
                    run.folder.write(f"{ZARR}/{key}", objects[key])
                else:
                    run.folder.remove(f"{ZARR}/{key}")
            return
    raise UserError(
        f"{run.folder.location}: {', '.join(sorted(damaged)[:3])} cannot be made again: the input"
        " has other tokens than the run, or this version of zarr writes other metadata than"
        f" {run.info.get('versions', {}).get('zarr')}. Collect into another run folder (run=)."
    )


def _array(
    root: Any, name: str, shape: tuple[int, ...], dtype: Any, names: tuple[str, ...], **layout: Any
) -> None:
    codec = ZstdCodec(level=1, checksum=True)
    root.create_array(
        name,
        shape=shape,
        dtype=dtype,
        dimension_names=names,
        compressors=codec,
        fill_value=0,
        **layout,
    )


def _create_layers(root: Any, layout: Layout) -> None:
    width = bits.packed_bytes(layout.num_positions)
    tail = (layout.shard_sequences, width)
    chunk, whole = layout.neurons_per_chunk, layout.neurons_per_object
    for layer in range(layout.num_bitmaps):
        _array(
            root,
            f"bitmaps/{layer:03d}",
            (layout.num_neurons, len(layout.shards), *tail),
            np.uint8,
            ("neuron", "shard", "sequence", "byte"),
            chunks=(chunk, 1, *tail),
            shards=(whole, 1, *tail) if whole > chunk else None,
        )
    for layer in range(layout.num_layers):
        _array(
            root,
            f"position_counts/{layer:03d}",
            (len(layout.shards), layout.num_positions, layout.num_neurons),
            layout.count_dtype,
            ("shard", "position", "neuron"),
            chunks=(1, layout.num_positions, layout.neurons_per_count_object),
        )
    kinds = {"sums": ("quantity", layout.sums), "token_sums": ("token", layout.sum_tokens)}
    for kind, (axis, rows) in kinds.items():
        for layer in range(layout.num_layers if rows else 0):
            block = max(1, min(layout.num_neurons, OBJECT_BYTES // 8 // len(rows)))
            _array(
                root,
                f"{kind}/{layer:03d}",
                (len(layout.shards), len(rows), layout.num_neurons),
                np.int64,
                ("shard", axis, "neuron"),
                chunks=(1, len(rows), block),
            )


def new_run(folder: RunFolder, corpus: Corpus, layout: Layout, info: Mapping[str, Any]) -> Run:
    """Lay down all metadata and the tokens; run.yaml is written last and makes the run exist.

    Raises:
        UserError: nothing can be written, or run.yaml was lost from a run with shards.
    """
    if folder.sizes(f"{ZARR}/records"):
        raise UserError(
            f"{folder.location} holds committed shards, but its {RUN_FILE} is gone: put it"
            " back, or give another run folder (run=)."
        )
    folder.clear(f"{ZARR}/")  # the remains of a creation that was cut off: there is no run.yaml
    objects = laid_down(corpus, layout)
    for key, data in objects.items():
        folder.write(f"{ZARR}/{key}", data)
    described = {k: v for k, v in asdict(layout).items() if v or k not in ("sums", "sum_tokens")}
    full = {"format": FORMAT, **info, "layout": described, "objects": checksums(objects)}
    full = json.loads(json.dumps(full))
    full["checksum"] = info_checksum(full)
    if not folder.create(RUN_FILE, yaml.safe_dump(full, sort_keys=False).encode()):
        raise UserError(f"{folder.location}/{RUN_FILE} appeared meanwhile: is another job on it?")
    return Run(folder, full)
