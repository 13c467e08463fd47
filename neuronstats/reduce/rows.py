"""Arrays of the sections -> Arrow tables, by the columns' declarations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from neuronstats.errors import UserError
from neuronstats.stats.view import LAYER, NEURON, BlockView, Column, Lists, Section
from neuronstats.store.tables import MEANING


def arrow_type(kind: str) -> pa.DataType:
    """Return the Arrow type of a declared kind."""
    if kind.startswith("list<"):
        return pa.list_(arrow_type(kind[len("list<") : -1]))
    return pa.type_for_alias(kind)


def to_table(columns: Mapping[Column, Any]) -> pa.Table:
    """Build a table from columns; each field's metadata has the column's meaning.

    Args:
        columns: values [row] of each: an array, a masked array where some are not known, Lists, or
            a list of Python's values.

    Raises:
        UserError: two columns have one name.
    """
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two sections have a column {name}: expected another name for one.")
    arrays = [_array(arrow_type(column.kind), values) for column, values in columns.items()]
    fields = [
        pa.field(c.name, arrow_type(c.kind), metadata={MEANING: c.meaning.encode()})
        for c in columns
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def _array(kind: pa.DataType, values: Any) -> pa.Array:
    if isinstance(values, Lists):
        offsets = np.concatenate([[0], np.cumsum(values.lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(values.items, kind.value_type))
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, kind, mask=np.ma.getmaskarray(values))
    return pa.array(values, kind)


def block_tables(view: BlockView, sections: Sequence[Section]) -> dict[str, pa.Table]:
    """Build a block's rows of all tables: those of neurons, and those of the sections' own.

    Raises:
        UserError: two sections have a column or a table of one name.
    """
    neurons: dict[Column, Any] = _key(view, np.arange(view.num_neurons))
    for section in sections:
        for column, values in section.columns.items():
            if column in neurons:
                raise UserError(f"two sections have the column {column.name}.")
            neurons[column] = values
    tables = {"neurons": to_table(neurons)}
    for section in sections:
        for name, columns in section.tables.items():
            if name in tables:
                raise UserError(f"two sections have a table {name}: expected another name for one.")
            own = {key: values for key, values in columns.items() if key != NEURON}
            rows = to_table(_key(view, np.asarray(columns[NEURON])) | own)
            order = np.argsort(rows["neuron"].to_numpy(), kind="stable")
            tables[name] = rows.take(order)
    return tables


def _key(view: BlockView, neurons: Any) -> dict[Column, Any]:
    return {
        LAYER: np.full(len(neurons), view.layer, np.int32),
        NEURON: (neurons + view.neurons.start).astype(np.int32),
    }
