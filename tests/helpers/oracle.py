"""Every number of the tables, counted the slow way: loops, Counter, whole numbers, nothing shared.

    rows = tables(bits, tokens, domains, bos=2, embedding=E, fc2=[W0, W1], project_out=None)
    rows["neurons"], rows["ngrams"], rows["triggers"], rows["domains"], rows["layers"],
    rows["suppression"]

Each table is a list of dicts, its rows in the order of their keys: layer; neuron; n; n-grams by
falling activations, then rising ids; domains by their names. None stands for null. The definitions
are those of the method; this module imports nothing from the package that it judges. Position types
are not here; `positional` in "neurons" says which neurons have one.
"""

import functools
import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

NUM_TRIGGERS = 10

Row = dict[str, object]
Ngram = tuple[int, ...]


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
    num_sequences, num_positions = len(fires), len(fires[0])
    counts = [sum(sequence[p] for sequence in fires) for p in range(num_positions)]
    mean = sum(counts) / (num_sequences * num_positions)
    terms = []
    for count in counts:
        here = count / num_sequences
        if count > 0:
            terms.append(here * math.log(here / mean))
        if count < num_sequences:
            terms.append((1 - here) * math.log((1 - here) / (1 - mean)))
    return math.fsum(terms) / num_positions


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


# N-grams.


def ngram_ending_at(sequence: list[int], position: int, n: int, bos: int) -> Ngram | None:
    """The n-gram that ends here; None before the n-th position, or where it holds BOS."""
    if position < n - 1:
        return None
    ids = tuple(sequence[position - n + 1 : position + 1])
    return None if bos in ids else ids


def count_ngrams(tokens: list[list[int]], bos: int, n: int) -> Counter[Ngram]:
    """How often each n-gram occurs."""
    counts: Counter[Ngram] = Counter()
    for sequence in tokens:
        for position in range(len(sequence)):
            ids = ngram_ending_at(sequence, position, n, bos)
            if ids is not None:
                counts[ids] += 1
    return counts


def count_triggers(
    fires: list[list[bool]], tokens: list[list[int]], bos: int, n: int
) -> Counter[Ngram]:
    """How often each n-gram triggered the neuron: the activations that count."""
    counts: Counter[Ngram] = Counter()
    for i, sequence in enumerate(tokens):
        for position in range(len(sequence)):
            if fires[i][position]:
                ids = ngram_ending_at(sequence, position, n, bos)
                if ids is not None:
                    counts[ids] += 1
    return counts


def falling(counts: Counter[Ngram]) -> list[Ngram]:
    """N-grams by falling activations, equal ones by rising token ids."""
    return sorted(counts, key=lambda ids: (-counts[ids], ids))


@functools.cache
def _exact(share: float) -> Fraction:
    return Fraction(str(share))


def at_least(part: int, whole: int, share: float) -> bool:
    """Whether part / whole >= share, exactly: 0.95 is 19/20, not the float next to it."""
    exact = _exact(share)
    return part * exact.denominator >= whole * exact.numerator


@dataclass
class Detection:
    """What the three steps find: `detected` is what step 2 keeps of the cover."""

    cover: list[Ngram]
    detected: list[Ngram]
    detector: bool
    detector_loose: bool


def cover(counts: Counter[Ngram], share: float) -> list[Ngram]:
    """The fewest n-grams, the most active first, that account for the share of the activations."""
    total, part = counts.total(), 0
    taken: list[Ngram] = []
    for ids in falling(counts):
        if at_least(part, total, share):
            break
        taken.append(ids)
        part += counts[ids]
    return taken


def detect(
    counts: Counter[Ngram], occurrences: Counter[Ngram], n: int, settings: Settings
) -> Detection:
    """The three steps of section 4.

    `detector_loose` is by the other reading of step 2: from all n-grams that triggered the neuron.
    """
    total = counts.total()

    def is_detected(ids: Ngram) -> bool:
        often = occurrences[ids] >= settings.min_count
        return often and at_least(counts[ids], occurrences[ids], settings.detect_rate)

    def enough(kept: list[Ngram]) -> bool:
        part = sum(counts[ids] for ids in kept)
        return at_least(part, total, settings.cover_share)

    covering = cover(counts, settings.cover_share)
    kept = [ids for ids in covering if is_detected(ids)]
    if not 0 < len(covering) <= settings.max_cover[n]:
        return Detection(covering, kept, detector=False, detector_loose=False)
    kept_loose = [ids for ids in counts if is_detected(ids)]
    return Detection(covering, kept, enough(kept), enough(kept_loose))


def ngram_rows(
    ngrams: list[Ngram], counts: Counter[Ngram], occurrences: Counter[Ngram]
) -> list[Row]:
    total = counts.total()
    return [
        {
            "token_ids": list(ids),
            "occurrences": occurrences[ids],
            "activations": counts[ids],
            "rate": counts[ids] / occurrences[ids],
            "share": counts[ids] / total,
        }
        for ids in ngrams
    ]


# Suppression.


def project(
    column: list[float],
    embedding: list[list[float]],
    project_out: list[list[float]] | None = None,
    *,
    centred: bool = False,
) -> list[float]:
    """A neuron's update (its column of fc2) on the vocabulary: a value for each token."""
    if project_out is not None:
        column = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for row in project_out]
    values = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for row in embedding]
    mean = math.fsum(values) / len(values) if centred else 0.0
    return [value - mean for value in values]


def suppression_row(projection: list[float], triggers: list[int], num_top: int = 20) -> Row:
    """A token detector's triggers among all tokens, and the ends of its projection."""
    rising = sorted(range(len(projection)), key=lambda token: (projection[token], token))
    fallen = sorted(range(len(projection)), key=lambda token: (-projection[token], token))
    promoted, suppressed = fallen[:num_top], rising[:num_top]
    return {
        "triggers": triggers,
        "trigger_rank": [rising.index(token) for token in triggers],
        "promoted": promoted,
        "promoted_projection": [projection[token] for token in promoted],
        "suppressed": suppressed,
        "suppressed_projection": [projection[token] for token in suppressed],
    }


# Prediction, suppression and partition neurons.


def vocabulary_row(
    column: list[float],
    embedding: list[list[float]],
    project_out: list[list[float]] | None,
    settings: Settings,
) -> Row:
    """The moments of a neuron's projection, and what kind of neuron they make it."""
    values = project(column, embedding, project_out)
    mean, variance = _mean_and_variance(values)
    if project_out is not None:
        column = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for row in project_out]
    channels = [_mean_and_variance(channel)[1] for channel in zip(*embedding, strict=True)]
    random = math.fsum(x * x for x in column) * math.fsum(channels) / len(channels)
    third, fourth = (
        math.fsum((value - mean) ** power for value in values) / len(values) for power in (3, 4)
    )
    skewness, kurtosis = third / variance**1.5, fourth / variance**2 - 3
    ratio, kind = variance / random, None
    if kurtosis > settings.vocabulary_kurtosis and skewness:
        kind = "prediction" if skewness > 0 else "suppression"
    elif kurtosis <= settings.vocabulary_kurtosis and ratio > settings.vocabulary_variance:
        kind = "partition"
    return {
        "vocabulary_mean": mean,
        "vocabulary_variance": variance,
        "vocabulary_skewness": skewness,
        "vocabulary_kurtosis": kurtosis,
        "vocabulary_variance_ratio": ratio,
        "vocabulary_type": kind,
    }


def _mean_and_variance(values) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)


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
