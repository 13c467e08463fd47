"""The table of examples (5): what token detectors detect, promote and suppress."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from neuronstats.drawing import Draw, Drawing, NamedRun, NoDataError, basis

EXAMPLES = 12  # rows of each run


def examples(runs: Sequence[NamedRun]) -> Drawing:
    """Fig. 5: what token detectors detect, promote and suppress."""
    head = ("model", "layer", "neuron", "detected tokens", "top promoted", "top suppressed")
    rows: list[Sequence[str]] = []
    for named in runs:
        rows += _examples(named)
    if not rows:
        raise NoDataError(
            "no run has a token detector whose update was projected on the vocabulary"
        )
    caption = (
        "Token detectors, the most often activated of each run: the tokens detected, and those"
        " whose projections of the neuron's update on the output embedding are highest (promoted)"
        f" and lowest (suppressed). {basis(runs)}"
    )
    return Drawing("5", "What token detectors promote and suppress", caption, rows=[head, *rows])


def _examples(named: NamedRun) -> list[Sequence[str]]:
    updates = named.run.table("suppression")
    if updates is None or not {"promoted", "suppressed"} <= set(updates.column_names):
        return []
    neurons = named.run.neurons
    detectors = neurons.filter(pc.fill_null(neurons["detector_1"], False))  # noqa: FBT003
    order = [("activations", "descending"), ("layer", "ascending"), ("neuron", "ascending")]
    rows: list[Sequence[str]] = []
    for neuron in detectors.sort_by(order).slice(0, EXAMPLES).to_pylist():
        key = (neuron["layer"], neuron["neuron"])
        found = of_neuron(updates, *key).to_pylist()
        detected = named.run.rows("ngrams", key[0], key[1], key[1] + 1)
        assert detected is not None
        words = [quoted(row["text"]) for row in detected.to_pylist() if row["n"] == 1]
        if found:
            sides = (
                ", ".join(map(quoted, named.run.words(found[0][side][:8])))
                for side in ("promoted", "suppressed")
            )
            rows.append((named.label, str(key[0]), str(key[1]), ", ".join(words), *sides))
    return rows


def of_neuron(table: pa.Table, layer: int, neuron: int) -> pa.Table:
    """Return a table's rows of one neuron."""
    return table.filter(pc.and_(pc.equal(table["layer"], layer), pc.equal(table["neuron"], neuron)))


def quoted(text: object) -> str:
    """Write a token so that its spaces are seen."""
    return "“" + str(text).replace("\n", "⏎").replace("\t", "⇥") + "”"


CATALOGUE: dict[str, tuple[Draw, str]] = {
    "5": (examples, "What token detectors promote and suppress"),
}
