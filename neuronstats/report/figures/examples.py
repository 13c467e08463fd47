"""The table of examples (5): what token detectors detect, promote and suppress."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from neuronstats.report.figures.frame import Drawing, NamedRun, NoDataError
from neuronstats.report.figures.layers import DETECTED_BY
from neuronstats.stats import ngrams
from neuronstats.stats.dead import ACTIVATIONS
from neuronstats.stats.suppression import PROMOTED, SUPPRESSED, TRIGGER_RANK, TRIGGERS
from neuronstats.stats.view import LAYER, NEURON

EXAMPLES = 12  # rows of each run
WORDS = 8  # tokens of a cell
DETECTOR = ngrams.detector(1)
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def examples(runs: Sequence[NamedRun]) -> Drawing:
    """List, as fig. 5, what token detectors detect, promote and suppress."""
    head = ("model", "layer", "neuron", "detected tokens (rank)", "top promoted", "top suppressed")
    rows: list[Sequence[str]] = []
    for named in runs:
        rows += _examples(named)
    if not rows:
        raise NoDataError(
            "no run has a token detector whose update was projected on the vocabulary"
        )
    caption = (
        "Token detectors, the most often activated of each run: the tokens detected, and those"
        " whose output logits the neuron's update raises (promoted) and lowers (suppressed) most."
    )
    notes = [
        "Logits: the projection of the neuron's update on the output embedding. Rank: tokens of the"
        " vocabulary with a lower projection; 0 is the most suppressed."
    ]
    made_by = (*DETECTED_BY, "centred")
    return Drawing(caption, notes, rows=[head, *rows], settings=made_by)


def _examples(named: NamedRun) -> list[Sequence[str]]:
    updates, neurons, detector = named.run.table("suppression"), named.run.neurons, DETECTOR.name
    if updates is None or not named.run.has(detector):
        return []
    detectors = neurons.filter(pc.fill_null(neurons[detector], False))  # noqa: FBT003
    order = [(ACTIVATIONS.name, "descending"), *((c.name, "ascending") for c in (LAYER, NEURON))]
    rows: list[Sequence[str]] = []
    for found in detectors.sort_by(order).slice(0, EXAMPLES).to_pylist():
        layer, neuron = found[LAYER.name], found[NEURON.name]
        for update in _of_neuron(updates, layer, neuron).to_pylist():
            words = named.run.words(update[TRIGGERS.name])
            ranks = zip(words, update[TRIGGER_RANK.name], strict=True)
            detected = ", ".join(f"{quoted(word)} ({rank})" for word, rank in ranks)
            promoted, suppressed = (
                ", ".join(map(quoted, named.run.words(update[side.name][:WORDS])))
                for side in (PROMOTED, SUPPRESSED)
            )
            rows.append((named.label, str(layer), str(neuron), detected, promoted, suppressed))
    return rows


def _of_neuron(table: pa.Table, layer: int, neuron: int) -> pa.Table:
    is_layer, is_neuron = pc.equal(table[LAYER.name], layer), pc.equal(table[NEURON.name], neuron)
    return table.filter(pc.and_(is_layer, is_neuron))


def quoted(text: object) -> str:
    """Return a token in quotes, its spaces visible."""
    shown = str(text).replace("\n", "⏎").replace("\t", "⇥")
    return "“" + CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", shown) + "”"
