"""What the page's search looks through: detected n-grams, and the tokens of top triggers.

data/rR/search.js   the n-grams that neurons detect
data/rR/tLLL.js     the tokens of one layer's top triggers, neuron by neuron
data/rR/words.js    those tokens' texts
"""

import base64
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats.report.notebook import LoadedRun
from neuronstats.report.output import Output
from neuronstats.stats.ngrams import TOKEN_IDS, N
from neuronstats.stats.view import LAYER, NEURON

COLUMNS = [column.name for column in (LAYER, NEURON, N, TOKEN_IDS)]  # that are read
NGRAM_ROWS = 200_000  # detected n-grams of a run that can be searched for
TRIGGER_TOKENS = 60  # of a neuron, at most: those of ten tokens, bigrams and trigrams
TRIGGER_BYTES = 40_000_000  # of a run's trigger tokens on the page, about, at most


def script(function: str, *values: Any) -> bytes:
    """Return a call of one of the page's functions; the text is ASCII, whatever the values hold."""
    words = ",".join(json.dumps(value, separators=(",", ":"), allow_nan=False) for value in values)
    return f"{function}({words});\n".encode("ascii")


def encoded(columns: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
    """Return arrays as their types and the base64 of their little-endian bytes."""
    return {
        name: [values.dtype.str, base64.b64encode(values.tobytes()).decode()]
        for name, values in columns.items()
    }


def tokens_kept(run: LoadedRun) -> int:
    """Return how many tokens of each neuron's top triggers are searched: all, where they fit."""
    analysed = run.bitmap_layers * run.layout.num_neurons
    return int(min(TRIGGER_TOKENS, TRIGGER_BYTES * 3 // 4 // (2 * max(1, analysed))))


def trigger_tokens(
    triggers: pa.Table, num_neurons: int, most: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the distinct tokens of each neuron's top n-grams, shorter and higher ones first.

    Args:
        triggers: rows of one layer: neuron, n, token_ids, the highest first for each n.
        num_neurons: of the layer.
        most: tokens kept of each neuron, at most 255.

    Returns:
        How many each neuron has, uint8 [neuron], and the token ids one neuron after another.
    """
    triggers = triggers.take(pc.sort_indices(triggers, [(N.name, "ascending")]))  # which is stable
    lengths = pc.list_value_length(triggers[TOKEN_IDS.name]).to_numpy()
    neuron = np.repeat(triggers[NEURON.name].to_numpy(), lengths).astype(np.int64)
    tokens = pc.list_flatten(triggers[TOKEN_IDS.name]).to_numpy().astype(np.int64)
    order = np.argsort(neuron, kind="stable")
    neuron, tokens = neuron[order], tokens[order]
    _, first = np.unique(neuron << 32 | tokens, return_index=True)
    first.sort()
    neuron, tokens = neuron[first], tokens[first]
    counts = np.bincount(neuron, minlength=num_neurons)
    rank = np.arange(len(neuron)) - (np.cumsum(counts) - counts)[neuron]
    return np.minimum(counts, most).astype(np.uint8), tokens[rank < most]


def write_search(folder: Output, run: LoadedRun, number: int) -> dict[str, Any]:
    """Write all that a run's search needs.

    Returns:
        What the page must know of it: how many detected n-grams were left out (`unsearchable`),
        how many tokens of a neuron's triggers are searched (`trigger_tokens`), in which layers.
    """
    content, left_out = ngram_script(run, number)
    folder.write(f"data/r{number}/search.js", content)
    most = tokens_kept(run)
    layers = run.bitmap_layers if run.ngrams and most else 0
    used: set[int] = set()
    for layer in range(layers):
        rows = run.rows("triggers", layer, 0, run.layout.num_neurons, COLUMNS)
        if rows is None:
            layers = 0
            break
        counts, tokens = trigger_tokens(rows, run.layout.num_neurons, most)
        used.update(np.unique(tokens).tolist())
        small = tokens.astype("<u2" if not len(tokens) or tokens.max() < 1 << 16 else "<i4")
        content = script("NS.triggers", number, layer, encoded({"count": counts, "token": small}))
        folder.write(f"data/r{number}/t{layer:03d}.js", content)
    words = {str(token): run.texts([token]) for token in sorted(used)}
    folder.write(f"data/r{number}/words.js", script("NS.words", number, words))
    return {"unsearchable": left_out, "trigger_tokens": most, "trigger_layers": layers}


def ngram_script(run: LoadedRun, number: int) -> tuple[bytes, int]:
    """Return the script of the n-grams searched, and how many were left out."""
    rows: list[list[Any]] = []
    left_out = 0
    for piece in run.batches("ngrams", COLUMNS):
        room = NGRAM_ROWS - len(rows)
        left_out += max(0, len(piece) - room)
        for row in piece.slice(0, max(0, room)).to_pylist():
            ids = row.pop(TOKEN_IDS.name)
            rows.append([*row.values(), run.texts(ids)])
    return script("NS.search", number, rows), left_out
