"""What the page shows of the tables' columns: which, in what order and words, by which bits.

Columns, their types and their meanings are those that the statistics declare (stats/). The page
reads all that is decided here from data/info.js: its script knows no class and no bit of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronstats.stats import dead, ngrams, positions, suppression, vocabulary
from neuronstats.stats.curves import TYPES
from neuronstats.stats.ngrams import WORDS
from neuronstats.stats.view import LAYER, NEURON, Column

ARRAYS = {"float64": "<f4", "int64": "<f8", "int32": "<i4"}  # of a column, in the page's data
CLASS = Column("class", "string", "what the statistics call it")
DETECTS = Column("detects", "string", "n-grams that it detects, tokens found among its triggers")


@dataclass(frozen=True, slots=True)
class Shown:
    """A column as the page shows it."""

    column: Column
    title: str
    format: str = "text"
    """How its values are written: one of page.js's FORMATS."""
    of: str = ""
    """Column that this one is a part of, where the format is ratio."""
    known: str = ""
    """Field of a neuron's flags that is set where the value is known; empty: it always is."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the table's column."""

    def for_page(self) -> dict[str, Any]:
        """Return what page.js reads."""
        return {
            "field": self.column.name,
            "title": self.title,
            "meaning": self.column.meaning,
            "format": self.format,
            "of": self.of,
            "known": self.known,
            "layout": self.layout,
        }


def neuron_columns(lengths: Sequence[int]) -> tuple[Shown, ...]:
    """Return the columns of the list of neurons, where n-grams of these lengths were counted."""
    narrow = {"minWidth": 190, "headerSort": False}
    wide = {"minWidth": 160, "widthGrow": 2, "headerSort": False}
    covers = (
        Shown(ngrams.cover(n), f"{WORDS[n]}s that cover it", "count", known="counted",
              layout={"width": 125}) for n in lengths
    )  # fmt: skip
    return (
        Shown(LAYER, "layer", layout={"width": 85, "headerSortTristate": True}),
        Shown(NEURON, "neuron", "link", layout={"width": 105}),
        Shown(CLASS, "class", layout=narrow),
        Shown(dead.FREQUENCY, "frequency", "percent", layout={"width": 130}),
        Shown(DETECTS, "detects", layout=wide),
        *covers,
        Shown(positions.MI, "nats of position", "nats", layout={"width": 120}),
    )


DOMAIN_COLUMNS = (
    Shown(positions.DOMAIN, "domain"),
    Shown(positions.DOMAIN_FREQUENCY, "frequency", "percent"),
    Shown(positions.DOMAIN_TOKENS, "tokens", "count"),
    Shown(positions.DOMAIN_MI, "nats of position", "nats"),
)


def ngram_columns(n: int) -> tuple[Shown, ...]:
    """Return the columns of a neuron's top n-grams."""
    return (
        Shown(ngrams.TEXT, WORDS[n], "visible"),
        Shown(ngrams.ACTIVATIONS, "activates it in", "ratio", of=ngrams.OCCURRENCES.name),
        Shown(ngrams.SHARE, "of its activations", "percent"),
    )


def neuron_arrays(rows: pa.Table, lengths: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Return neurons' values as the page holds them, by column, and their `flags`."""
    columns = (dead.FREQUENCY, dead.ACTIVATIONS, positions.MI, *map(ngrams.cover, lengths))
    return {
        column.name: pc.fill_null(rows[column.name], 0).to_numpy().astype(ARRAYS[column.kind])
        for column in columns
    } | {"flags": flags(rows).astype("<u2")}


@dataclass(frozen=True, slots=True)
class Field:
    """Bits of a neuron's flags that say what is in a column."""

    columns: tuple[Column, ...]
    """Of which a run has one, or none: the bits are then 0."""
    shift: int
    """Bits below these."""
    values: tuple[str, ...] = ()
    """Of a column of words: the bits are the word's place, from 1."""
    is_known: bool = False
    """The bit is whether the column is not null; else, without words, whether it is true."""

    @property
    def mask(self) -> int:
        """The bits, shifted down."""
        return (1 << max(1, len(self.values).bit_length())) - 1

    def read(self, neurons: pa.Table) -> NDArray[np.uint16]:
        """Return the bits at their place, uint16 [neuron]."""
        found = np.zeros(len(neurons), np.uint16)
        for name in (column.name for column in self.columns):
            if name not in neurons.column_names:
                continue
            if self.values:
                places = pc.index_in(neurons[name], pa.array(self.values))
                bits = pc.add(pc.fill_null(places, -1), 1)
            elif self.is_known:
                bits = pc.is_valid(neurons[name])
            else:
                bits = pc.fill_null(neurons[name], False)  # noqa: FBT003
            found |= bits.to_numpy().astype(np.uint16) << self.shift
        return found


FIELDS = {
    "never": Field((dead.DEAD, dead.NEVER_OPEN), 0),
    **{f"detects_{n}": Field((ngrams.detector(n),), n) for n in WORDS},
    "judged": Field((suppression.SUPPRESSES,), 4, is_known=True),
    "suppresses": Field((suppression.SUPPRESSES,), 5),
    "positional": Field((positions.TYPE,), 6, is_known=True),
    "type": Field((positions.TYPE,), 7, TYPES),
    "strong": Field((positions.STRONG,), 10),
    "counted": Field((ngrams.cover(1),), 11, is_known=True),
    "writes": Field((vocabulary.TYPE,), 12, vocabulary.TYPES),
}


def flags(neurons: pa.Table) -> NDArray[np.uint16]:
    """Return what the table says of each neuron's classes, uint16 [neuron], as `FIELDS` have it."""
    found = np.zeros(len(neurons), np.uint16)
    for each in FIELDS.values():
        found |= each.read(neurons)
    return found


@dataclass(frozen=True, slots=True)
class Class:
    """A class of neurons that the list can be narrowed down to."""

    words: str
    mask: int
    value: int | None
    """What the masked flags are; None: any but 0."""


def _class(words: str, name: str, value: int = 1) -> Class:
    found = FIELDS[name]
    return Class(words, found.mask << found.shift, value << found.shift)


def words_of(value: str) -> str:
    """Return a type as people write it."""
    return value.replace("_", " ")


CLASSIFIED = sum(
    1 << FIELDS[name].shift for name in (*(f"detects_{n}" for n in WORDS), "positional")
)
CLASSES = {
    "": Class("any", 0, 0),
    "classified": Class("detectors and positional", CLASSIFIED, None),
    "dead": _class("dead, or never open", "never"),
    **{word: _class(f"{word} detector", f"detects_{n}") for n, word in WORDS.items()},
    "suppresses": _class("suppresses its triggers", "suppresses"),
    **{kind: _class(f"{kind} neuron", "writes", k) for k, kind in enumerate(vocabulary.TYPES, 1)},
    "positional": _class("positional", "positional"),
    **{words_of(kind): _class(words_of(kind), "type", k) for k, kind in enumerate(TYPES, 1)},
    "none": Class("none of these", CLASSIFIED | 1 << FIELDS["never"].shift, 0),
}


def for_page() -> dict[str, Any]:
    """Return what page.js reads of all runs' columns, flags and classes."""
    return {
        "words": WORDS,
        "fields": {
            name: {
                "shift": each.shift,
                "mask": each.mask,
                "values": list(map(words_of, each.values)),
            }
            for name, each in FIELDS.items()
        },
        "classes": {name: {"mask": c.mask, "value": c.value} for name, c in CLASSES.items()},
        "domain_columns": [shown.for_page() for shown in DOMAIN_COLUMNS],
        "ngram_columns": {n: [shown.for_page() for shown in ngram_columns(n)] for n in WORDS},
    }
