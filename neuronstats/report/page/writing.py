"""How much a neuron writes and which way, for the page: some columns of neurons.parquet, as rows.

Only runs whose sweep took sums have them. Their meanings are the columns' own (stats/).
"""

from collections.abc import Sequence
from typing import Any

from neuronstats.report.notebook import LoadedRun
from neuronstats.stats import contributions, signed

PERCENT, NUMBER = "percent", "number"  # how page.js writes a value
SHOWN = (
    (contributions.OPEN_SHARE, "from open gates", PERCENT),
    (contributions.ONE_SIGNEDNESS, "one-signedness", NUMBER),
    (contributions.CONTRIBUTION, "mean contribution", NUMBER),
    (signed.TRIGGERS, "triggers that count", NUMBER),
    (signed.PROJECTION, "on its triggers", NUMBER),
    (signed.NORMED, "on its triggers, with the final norm", NUMBER),
)


def writing(run: LoadedRun, rows: Sequence[int]) -> list[list[dict[str, Any]]]:
    """Return what the page shows of each of some rows of neurons.parquet; unknown values are null.

    Empty where the run has none of these columns.
    """
    shown = [each for each in SHOWN if run.has(each[0].name)]
    if not shown:
        return []
    table = run.neurons.take(list(rows)).select([column.name for column, _, _ in shown])
    return [
        [
            {
                "title": title,
                "value": None if (value := found[column.name]) is None else float(f"{value:.4g}"),
                "format": form,
                "meaning": column.meaning,
            }
            for column, title, form in shown
        ]
        for found in table.to_pylist()
    ]
