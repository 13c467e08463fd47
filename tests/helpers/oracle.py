"""Every number of the tables, counted the slow way: loops, Counter, whole numbers, nothing shared.

    rows = tables(bits, tokens, domains, bos=2, embedding=E, fc2=[W0, W1], project_out=None)
    rows["neurons"], rows["ngrams"], rows["triggers"], rows["domains"], rows["layers"],
    rows["suppression"]

Each table is a list of dicts, its rows in the order of their keys: layer; neuron; n; n-grams by
falling activations, then rising ids; domains by their names. None stands for null. The definitions
are those of the method; this module imports nothing from the package that it judges. Position types
are not here; `positional` in "neurons" says which neurons have one.
"""

import math
from dataclasses import dataclass, field

from helpers.oracle_ngrams import (
    Ngram,
    Row,
    count_ngrams,
    count_triggers,
    detect,
    falling,
    ngram_rows,
)
from helpers.oracle_updates import project, suppression_row, vocabulary_row

NUM_TRIGGERS = 10


@dataclass
class Settings:
    """The settings of the reduction that decide these numbers, by the names of the contract."""

    ngrams: tuple[int, ...] = (1, 2, 3)
    cover_share: float = 0.95
    detect_rate: float = 0.95
    max_cover: dict[int, int] = field(default_factory=lambda: {1: 5, 2: 50, 3: 50})
    min_count: int = 1
    positional_mi: float = 0.05
    few_occurrences: int = 10
    centred: bool = False
    vocabulary_kurtosis: float = 7.0
    vocabulary_variance: float = 4.0


def tables(
    bits,
    tokens,
    domains,
    *,
    bos: int,
    settings: Settings | None = None,
    bitmap_layers: int | None = None,
    embedding=None,
    fc2=None,
    project_out=None,
    vocabulary: bool = False,
) -> dict[str, list[Row]]:
    """Count everything.

    Args:
        bits: for each layer bool [neuron, sequence, position].
        tokens: ids [sequence, position].
        domains: a name for each sequence.
        bos: the begin-of-sequence token's id.
        settings: thresholds; the paper's where None.
        bitmap_layers: n-grams are counted in so many first layers, all where None. In the others
            what needs them is None, and the tables of n-grams have no rows.
        embedding: the output embedding [token, channel].
        fc2: for each layer the second FFN matrix [channel, neuron], as PyTorch stores it.
        project_out: [embedding channel, channel] where the model has one.
        vocabulary: the moments of all neurons' projections too; slow.

    Without `embedding`, what needs it (suppression) is None.
    """
    settings = settings or Settings()
    tokens = _lists(tokens)
    layers = [_lists(layer) for layer in bits]
    with_ngrams = len(layers) if bitmap_layers is None else bitmap_layers
    occurrences = {n: count_ngrams(tokens, bos, n) for n in settings.ngrams}

    found: dict[str, list[Row]] = {
        name: [] for name in ("neurons", "ngrams", "triggers", "domains")
    }
    found |= {"layers": [], "suppression": []}
    detected_before: list[dict[int, set[Ngram]]] = []
    for number, layer in enumerate(layers):
        detected_here: dict[int, set[Ngram]] = {n: set() for n in settings.ngrams}
        loose_here = dict.fromkeys(settings.ngrams, 0)
        few_here = dict.fromkeys(settings.ngrams, 0)
        rows = []
        for neuron, fires in enumerate(layer):
            key = {"layer": number, "neuron": neuron}
            row = key | neuron_row(fires, settings)
            found["domains"] += [key | r for r in domain_rows(fires, domains)]
            for n in settings.ngrams:
                row |= {f"cover_{n}": None, f"detector_{n}": None}
            row |= {"suppresses": None, "trigger_projection": None}
            if number < with_ngrams:
                for n in settings.ngrams:
                    counts = count_triggers(fires, tokens, bos, n)
                    result = detect(counts, occurrences[n], n, settings)
                    row |= {f"cover_{n}": len(result.cover), f"detector_{n}": result.detector}
                    loose_here[n] += result.detector_loose
                    top = ngram_rows(falling(counts)[:NUM_TRIGGERS], counts, occurrences[n])
                    found["triggers"] += [key | {"n": n} | r for r in top]
                    if result.detector:
                        detected_here[n] |= set(result.detected)
                        evidence = sum(occurrences[n][ids] for ids in result.detected)
                        few_here[n] += evidence < settings.few_occurrences
                        kept = ngram_rows(result.detected, counts, occurrences[n])
                        found["ngrams"] += [key | {"n": n} | r for r in kept]
                    if result.detector and n == 1 and embedding is not None:
                        projection = project(
                            [r[neuron] for r in _lists(fc2[number])],
                            _lists(embedding),
                            None if project_out is None else _lists(project_out),
                            centred=settings.centred,
                        )
                        values = [projection[ids[0]] for ids in result.detected]
                        mean = math.fsum(values) / len(values)
                        row |= {"suppresses": mean < 0, "trigger_projection": mean}
                        triggers = [ids[0] for ids in result.detected]
                        found["suppression"].append(key | suppression_row(projection, triggers))
            if vocabulary:
                column = [r[neuron] for r in _lists(fc2[number])]
                out = None if project_out is None else _lists(project_out)
                row |= vocabulary_row(column, _lists(embedding), out, settings)
            rows.append(row)
        found["neurons"] += rows
        summary = {"layer": number} | layer_row(rows, settings)
        for n in settings.ngrams:
            if number < with_ngrams:
                below = [layer_below[n] for layer_below in detected_before]
                summary |= ngram_summary(rows, n, detected_here[n], below)
                summary[f"detectors_loose_{n}"] = loose_here[n]
                summary[f"detectors_few_{n}"] = few_here[n]
                alive = [row for row in rows if not row["dead"]]
                summary[f"cover_bins_{n}"] = cover_bins([row[f"cover_{n}"] for row in alive])
            else:
                summary |= dict.fromkeys(_summary_names(n))
        if vocabulary:
            kinds = [row["vocabulary_type"] for row in rows]
            for kind in ("prediction", "suppression", "partition"):
                summary[f"{kind}_neurons"] = kinds.count(kind)
        detected_before.append(detected_here)
        found["layers"].append(summary)
    return found


def _lists(array) -> list:
    return array.tolist() if hasattr(array, "tolist") else [list(row) for row in array]


# Frequencies and positions.


def neuron_row(fires: list[list[bool]], settings: Settings) -> Row:
    """Frequency, death and position of one neuron; fires[sequence][position]."""
    num_sequences, num_positions = len(fires), len(fires[0])
    num_tokens = num_sequences * num_positions
    activations = sum(bit for sequence in fires for bit in sequence)
    information = position_information(fires)
    bias = (num_positions - 1) / (2 * num_sequences * num_positions)
    return {
        "tokens": num_tokens,
        "activations": activations,
        "frequency": activations / num_tokens,
        "dead": activations == 0,
        "position_mi": information,
        "position_mi_corrected": information - bias,
        "positional": information > settings.positional_mi,
    }


def position_information(fires: list[list[bool]]) -> float:
    """The mutual information of position and activation, in nats."""
    counts = [sum(sequence[p] for sequence in fires) for p in range(len(fires[0]))]
    return information(counts, len(fires))


def information(counts: list[int], num_sequences: int) -> float:
    """The same from the sequences in which the neuron was activated at each position."""
    mean = sum(counts) / (num_sequences * len(counts))
    terms = []
    for count in counts:
        here = count / num_sequences
        if count > 0:
            terms.append(here * math.log(here / mean))
        if count < num_sequences:
            terms.append((1 - here) * math.log((1 - here) / (1 - mean)))
    return math.fsum(terms) / len(counts)


def domain_rows(fires: list[list[bool]], domains) -> list[Row]:
    rows = []
    for domain in sorted(set(domains)):
        members = [fires[i] for i in range(len(fires)) if domains[i] == domain]
        num_tokens = sum(len(sequence) for sequence in members)
        activations = sum(bit for sequence in members for bit in sequence)
        rows.append(
            {
                "domain": domain,
                "tokens": num_tokens,
                "activations": activations,
                "frequency": activations / num_tokens,
                "position_mi": position_information(members),
            }
        )
    return rows


# Layers.


def layer_row(rows: list[Row], settings: Settings) -> Row:
    dead = sum(row["dead"] for row in rows)
    alive = [row["frequency"] for row in rows if not row["dead"]]
    known = [row["suppresses"] for row in rows if row["suppresses"] is not None]
    return {
        "neurons": len(rows),
        "dead": dead,
        "dead_share": dead / len(rows),
        "alive_frequency": math.fsum(alive) / len(alive) if alive else None,
        "suppressing_share": sum(known) / len(known) if known else None,
        "positional": sum(row["positional"] for row in rows),
    }


def ngram_summary(rows: list[Row], n: int, here: set[Ngram], below: list[set[Ngram]]) -> Row:
    """Detectors of a layer, the n-grams they detect, and which of these are new.

    `below` are the sets of the layers below, the lowest first. New overall: in none of them; new to
    the previous layer: not in the last of them.
    """
    all_below = set().union(*below)
    just_below = below[-1] if below else set()
    return {
        f"detectors_{n}": sum(row[f"detector_{n}"] for row in rows),
        f"detected_{n}": len(here),
        f"detected_cumulative_{n}": len(here | all_below),
        f"new_overall_{n}": len(here - all_below),
        f"new_to_previous_{n}": len(here - just_below),
    }


def cover_bins(covers: list[int]) -> list[int]:
    """Alive neurons by covering number: 0 (only BOS), to 5, to 50, to 500, to 5000, more."""
    ranges = [(0, 0), (1, 5), (6, 50), (51, 500), (501, 5000), (5001, math.inf)]
    return [sum(low <= cover <= high for cover in covers) for low, high in ranges]


def _summary_names(n: int) -> list[str]:
    names = (
        "detectors detectors_loose detectors_few detected detected_cumulative new_overall"
        " new_to_previous cover_bins"
    )
    return [f"{name}_{n}" for name in names.split()]
