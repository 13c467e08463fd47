"""What a statistic is given and what it returns: the arrays of one block of neurons."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from neuronstats.model.shape import Activation
from neuronstats.stats.ngram_ids import NgramIds
from neuronstats.stats.output_embedding import AnyFloats, OutputEmbedding

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, declared once: the schema and the documents are made from it."""

    name: str
    kind: str
    """bool, int32, int64, float64, string, or a list of one of them, such as list<int32>."""
    meaning: str
    """One line for people, with its unit."""


LAYER = Column("layer", "int32", "layer, from 0")
NEURON = Column("neuron", "int32", "neuron of the layer, from 0")


@dataclass(frozen=True, slots=True)
class Lists:
    """A column whose values are lists: all their items one after another, and their lengths."""

    items: npt.NDArray[Any]
    """[item]"""
    lengths: Integers
    """[row]"""


@dataclass(frozen=True, eq=False)
class Weights:
    """What some neurons write, and what logits are made with."""

    embedding: OutputEmbedding
    updates: AnyFloats
    """[channel, neuron]: each neuron's column of the FFN's down projection, as stored."""


@dataclass(frozen=True, eq=False)
class BlockView:
    """Some neurons of one layer over the whole text, for a statistic to read."""

    layer: int
    neurons: range
    """Of the layer. All arrays count neurons from the first of these."""
    counts: Integers
    """[domain, position, neuron]: sequences in which the neuron was activated at the position."""
    domains: tuple[str, ...]
    """[domain]: names."""
    sequences: Integers
    """[domain]: sequences of each."""
    shard_counts: Integers
    """[shard, neuron]: activations."""
    shard_domains: tuple[str, ...]
    """[shard]: the domain of each."""
    read_tokens: Callable[[], npt.NDArray[np.integer]]
    """For `tokens`."""
    read_bits: Callable[[], npt.NDArray[np.uint8]] | None
    """For `bits`; None in a layer without bitmaps."""
    ngram_ids: Mapping[int, NgramIds]
    """The n-grams of the text, by length; empty in a layer without bitmaps."""
    text: Callable[[list[int]], str]
    """Writes token ids as text."""
    read_weights: Callable[[], Weights]
    """For `weights`."""
    first_position: int = 0
    """Positions before it are left out of what is said of positions."""
    activation: Activation = field(default_factory=Activation)
    """The function whose input decides: where it has no exact zeros, or the FFN is gated, a bit
    says less than in the paper (docs/method.md)."""
    read_sums: Callable[[], Integers] | None = None
    """For `sums`; None where the run has none."""

    @property
    def num_neurons(self) -> int:
        """Neurons of the block."""
        return len(self.neurons)

    @property
    def num_positions(self) -> int:
        """Positions of a sequence."""
        return self.counts.shape[1]

    @property
    def num_sequences(self) -> int:
        """Sequences of all domains."""
        return int(self.sequences.sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that every neuron was seen on."""
        return self.num_sequences * self.num_positions

    @cached_property
    def position_counts(self) -> Integers:
        """Counts of all domains together, int64 [position, neuron]."""
        return self.counts.sum(axis=0)

    @cached_property
    def activations(self) -> Integers:
        """Tokens on which each neuron was activated, int64 [neuron]."""
        return self.position_counts.sum(axis=0)

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8] | None:
        """Bits [neuron, sequence, byte], position p in bit p mod 8 of byte p div 8; read when used.

        None in a layer without bitmaps.
        """
        return None if self.read_bits is None else self.read_bits()

    @cached_property
    def tokens(self) -> npt.NDArray[np.integer]:
        """Token ids [sequence, position], sequences as in the bits; read when used."""
        return self.read_tokens()

    @cached_property
    def sums(self) -> Integers:
        """Read the sums beside the bits, int64 [domain, quantity, neuron].

        The quantities are those of `bits.quantities.names`, over all positions but the first.
        """
        assert self.read_sums is not None
        return self.read_sums()

    @cached_property
    def weights(self) -> Weights:
        """The output embedding and the neurons' updates; the checkpoint is read when used."""
        return self.read_weights()


def unknown(num_neurons: int, dtype: npt.DTypeLike) -> Any:
    """Return a column of which nothing is known, [neuron]: null in the table."""
    return np.ma.masked_array(np.zeros(num_neurons, dtype), np.ones(num_neurons, np.bool_))


@dataclass(frozen=True, slots=True)
class LayerTotals:
    """What the blocks of one layer add up to, for one section."""

    sums: Mapping[Any, Any]
    """By key of `Section.layer_sums`: the sums over the layer's blocks."""
    sets: Mapping[str, npt.NDArray[Any]]
    """By key of `Section.layer_sets`: the union over the layer's blocks, ascending."""
    previous: Mapping[str, npt.NDArray[Any]]
    """The layer just below's `sets`; empty for the first layer."""
    below: Mapping[str, npt.NDArray[Any]]
    """The union of the `sets` of all layers below."""


def nulls(columns: Sequence[Column], totals: LayerTotals) -> dict[Column, Any]:
    """Return a layer's columns of which nothing is known yet: null in the table."""
    return dict.fromkeys(columns)


def columns_of_sums(totals: LayerTotals) -> dict[Column, Any]:
    """Return the sums that are columns of layers.parquet as they are."""
    return {key: value for key, value in totals.sums.items() if isinstance(key, Column)}


@dataclass(frozen=True, slots=True)
class Section:
    """What one statistic finds in one block."""

    columns: Mapping[Column, Any]
    """For neurons.parquet: values [neuron], a masked array where some are not known."""
    layer_sums: Mapping[Column | str, Any] = field(default_factory=dict)
    """Integers and arrays of them, to be added up over a layer's blocks. One whose key is a column
    is written into layers.parquet; one whose key is a name is for `layer_columns`."""
    layer_sets: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Ids [id], to be united over a layer's blocks."""
    layer_columns: Callable[[LayerTotals], Mapping[Column, Any]] = columns_of_sums
    """Computes a layer's columns of layers.parquet from its totals."""
    tables: Mapping[str, Mapping[Column, Any]] = field(default_factory=dict)
    """Rows of tables of its own, by the table's name: columns [row], `NEURON` among them, counted
    from the block's first. They are sorted by neuron, else left in their order."""

    def with_next(self, other: "Section") -> "Section":
        """Return what this and the layer's next neurons add to it; columns and tables are left."""
        sums = {key: value + other.layer_sums[key] for key, value in self.layer_sums.items()}
        return replace(self, layer_sums=sums, layer_sets=unite(self.layer_sets, other.layer_sets))


def unite(
    first: Mapping[str, npt.NDArray[Any]], second: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Unite the ids of each name."""
    none = np.zeros(0, np.uint32)
    names = {**first, **second}
    return {name: np.union1d(first.get(name, none), second.get(name, none)) for name in names}


Statistic = Callable[[BlockView, Any], Section]
"""Is given a block and the reduce settings; see docs/method.md for one in ten lines."""
