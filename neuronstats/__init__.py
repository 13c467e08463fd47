"""What the FFN neurons of a language model do: dead, n-gram detecting, positional."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuronstats.report.notebook import LoadedRun


def load(run: str) -> "LoadedRun":
    """Open a reduced run for a notebook: its tables, and each neuron's bits, curve and text.

    Args:
        run: the run folder, or an object-store URL.

    Returns:
        The run; ``.neurons.to_pandas()``, ``.table("ngrams")``, ``.activated(layer, neuron)`` and
        ``.curve(layer, neuron)`` are where to start.

    Raises:
        SettingsError: there is no run.
        UserError: it was not reduced.
    """
    from neuronstats.report.notebook import (
        LoadedRun,  # torch and its fellows take seconds to import
    )

    return LoadedRun(run)
