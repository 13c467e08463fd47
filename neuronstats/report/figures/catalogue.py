"""Tables -> figures: the list of them all, in the paper's order; no counting beyond grouping."""

from collections.abc import Sequence

from neuronstats.report.figures import contributions as figures_contributions
from neuronstats.report.figures import curves as figures_curves
from neuronstats.report.figures import dynamics as figures_dynamics
from neuronstats.report.figures import examples as figures_examples
from neuronstats.report.figures import layers as figures_layers
from neuronstats.report.figures import matches as figures_matches
from neuronstats.report.figures import neurons as figures_neurons
from neuronstats.report.figures import suppression as figures_suppression
from neuronstats.report.figures import vocabulary as figures_vocabulary
from neuronstats.report.figures.frame import Drawing, NamedRun, draw

CATALOGUE = (
    figures_layers.CATALOGUE
    | figures_neurons.CATALOGUE
    | figures_curves.CATALOGUE
    | figures_examples.CATALOGUE
    | figures_suppression.CATALOGUE
    | figures_vocabulary.CATALOGUE
    | figures_contributions.CATALOGUE
    | figures_matches.CATALOGUE
    | figures_dynamics.CATALOGUE
)
ORDER = ("1a", "1b", "2", "12", "13", "3", "14", "4", "15", "5", "7", "8", "9", "10", "dead_curve",
         "suppression", "domains", "vocabulary", "contributions", "matches",
         "dynamics")  # fmt: skip


def all_figures(runs: Sequence[NamedRun]) -> list[Drawing]:
    """Draw every figure of the paper, and ours beyond it."""
    return [draw(CATALOGUE[name][0], name, CATALOGUE[name][1], runs) for name in ORDER]
