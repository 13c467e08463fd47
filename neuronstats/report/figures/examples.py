"""The table of examples (5): what token detectors detect, promote and suppress."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from neuronstats.report.figures.frame import Draw, Drawing, NamedRun, NoDataError
from neuronstats.report.figures.layers import DETECTED_BY

EXAMPLES = 12  # rows of each run
WORDS = 8  # tokens of a cell
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def examples(runs: Sequence[NamedRun]) -> Drawing:
    """Fig. 5: what token detectors detect, promote and suppress."""
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
    title = "What token detectors promote and suppress"
    made_by = (*DETECTED_BY, "centred")
    return Drawing("5", title, caption, notes, rows=[head, *rows], settings=made_by)


def _examples(named: NamedRun) -> list[Sequence[str]]:
    updates, neurons = named.run.table("suppression"), named.run.neurons
    if updates is None or not named.run.has("detector_1"):
        return []
    detectors = neurons.filter(pc.fill_null(neurons["detector_1"], False))  # noqa: FBT003
    order = [("activations", "descending"), ("layer", "ascending"), ("neuron", "ascending")]
    rows: list[Sequence[str]] = []
    for neuron in detectors.sort_by(order).slice(0, EXAMPLES).to_pylist():
        for update in _of_neuron(updates, neuron["layer"], neuron["neuron"]).to_pylist():
            words = named.run.words(update["triggers"])
            ranks = zip(words, update["trigger_rank"], strict=True)
            detected = ", ".join(f"{quoted(word)} ({rank})" for word, rank in ranks)
            promoted, suppressed = (
                ", ".join(map(quoted, named.run.words(update[side][:WORDS])))
                for side in ("promoted", "suppressed")
            )
            place = (named.label, str(neuron["layer"]), str(neuron["neuron"]))
            rows.append((*place, detected, promoted, suppressed))
    return rows


def _of_neuron(table: pa.Table, layer: int, neuron: int) -> pa.Table:
    return table.filter(pc.and_(pc.equal(table["layer"], layer), pc.equal(table["neuron"], neuron)))


def quoted(text: object) -> str:
    """Return a token in quotes, its spaces visible."""
    shown = str(text).replace("\n", "⏎").replace("\t", "⇥")
    return "“" + CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", shown) + "”"


CATALOGUE: dict[str, tuple[Draw, str]] = {
    "5": (examples, "What token detectors promote and suppress"),
}
