"""Tables -> figures: the list of them all, in the paper's order; no counting beyond grouping."""

from collections.abc import Sequence
from functools import partial

from neuronstats.report.figures.contributions import contributions
from neuronstats.report.figures.curves import gallery, ranges
from neuronstats.report.figures.dynamics import dynamics
from neuronstats.report.figures.examples import examples
from neuronstats.report.figures.frame import Draw, Drawing, NamedRun, draw
from neuronstats.report.figures.layers import dead, dead_curve, detectors, frequency, new_ngrams
from neuronstats.report.figures.matches import matches
from neuronstats.report.figures.neurons import covers, domain_consistency, training, types
from neuronstats.report.figures.suppression import suppression
from neuronstats.report.figures.vocabulary import vocabulary

# By its name, the paper's number or a word: what draws it, and its title.
CATALOGUE: dict[str, tuple[Draw, str]] = {
    "1a": (dead, "Dead neurons by layer"),
    "1b": (frequency, "Mean frequency of the alive neurons by layer"),
    "2": (partial(covers, n=1), "Neurons by the number of tokens that cover them"),
    "12": (partial(covers, n=2), "Neurons by the number of bigrams that cover them"),
    "13": (partial(covers, n=3), "Neurons by the number of trigrams that cover them"),
    "3": (partial(detectors, lengths=(1,), name="3"), "Token detectors by layer"),
    "14": (
        partial(detectors, lengths=(2, 3), name="14"),
        "Detectors of bigrams and trigrams by layer",
    ),
    "4": (partial(new_ngrams, lengths=(1,), name="4"), "Detected tokens that are new in a layer"),
    "15": (
        partial(new_ngrams, lengths=(2, 3), name="15"),
        "Detected bigrams and trigrams that are new in a layer",
    ),
    "5": (examples, "What token detectors promote and suppress"),
    "7": (gallery, "Typical curves of positional neurons"),
    "8": (types, "Positional neurons by layer and type (figs. 8, 16)"),
    "9": (ranges, "Positions that oscillatory neurons indicate"),
    "10": (training, "Positional neurons of models trained alike (figs. 10, 11)"),
    "dead_curve": (dead_curve, "Dead neurons against tokens seen"),
    "suppression": (suppression, "Detectors that suppress their triggers"),
    "domains": (domain_consistency, "Do positional neurons keep to their type in every domain?"),
    "vocabulary": (vocabulary, "Neurons that predict, suppress or partition tokens"),
    "contributions": (contributions, "Open gates, and what neurons write on what triggers them"),
    "matches": (matches, "The same neuron in two runs"),
    "dynamics": (
        dynamics,
        "Dead neurons, detectors and positional neurons through training (sec. 5.4)",
    ),
}


def all_figures(runs: Sequence[NamedRun]) -> list[Drawing]:
    """Draw every figure of the paper, and ours beyond it."""
    return [draw(function, name, title, runs) for name, (function, title) in CATALOGUE.items()]
