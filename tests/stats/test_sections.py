"""The paper's sections as any other: what they declare is what they return and what pages say."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import columns, models

from neuronstats.errors import UserError
from neuronstats.model.shape import Activation
from neuronstats.reduce.rows import block_tables
from neuronstats.stats import (
    contributions,
    dead,
    ngrams,
    positions,
    signed,
    suppression,
    vocabulary,
)
from neuronstats.stats.ngram_ids import build_ngram_ids
from neuronstats.stats.output_embedding import OutputEmbedding
from neuronstats.stats.sections import SECTIONS, TABLES
from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import BlockView, Column, LayerTotals, Section, Weights

ROOT = Path(__file__).parents[2]
LENGTHS = [1, 2, 3]


def make_view(seed=0, has_bits=True, gated=False):
    """Five neurons of a layer on random tokens of two domains, in three shards."""
    rng = np.random.default_rng(seed)
    tokens = models.random_tokens(12, 24, seed=seed)
    active = rng.random((5, 12, 24)) < np.linspace(0, 1, 24)
    active[2] = False
    shards = [slice(0, 5), slice(5, 8), slice(8, 12)]
    own = [active[:, :8], active[:, 8:]]
    return BlockView(
        layer=3,
        neurons=range(10, 15),
        counts=np.stack([part.sum(axis=1).T for part in own]).astype(np.int64),
        domains=("a", "b"),
        sequences=np.array([8, 4]),
        shard_counts=np.stack([active[:, part].sum(axis=(1, 2)) for part in shards]),
        shard_domains=("a", "a", "b"),
        read_tokens=lambda: tokens,
        read_bits=(lambda: np.packbits(active, axis=2, bitorder="little")) if has_bits else None,
        ngram_ids=build_ngram_ids(tokens, models.BOS, LENGTHS) if has_bits else {},
        text=lambda ids: " ".join(map(str, ids)),
        read_weights=lambda: Weights(
            OutputEmbedding(rng.normal(size=(40, 6))), rng.normal(size=(6, 5))
        ),
        activation=Activation("SiLU", gated=True, exact_zeros=False) if gated else Activation(),
        read_sums=(lambda: rng.integers(1, 1 << 30, (2, 10, 5))) if gated else None,
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("has_bits", [True, False])
def test_what_sections_return_is_what_they_declare(has_bits, gated):
    view = make_view(has_bits=has_bits, gated=gated)
    found = [section(view, ReduceSettings()) for section in SECTIONS]
    declared = [
        ((*dead.COLUMNS[:-1], dead.NEVER_OPEN), dead.OPEN_LAYER_COLUMNS)
        if gated
        else (dead.COLUMNS, dead.LAYER_COLUMNS),
        (ngrams.columns(LENGTHS), ngrams.layer_columns(LENGTHS)),
        (suppression.COLUMNS, suppression.LAYER_COLUMNS),
        (positions.COLUMNS, positions.LAYER_COLUMNS),
        (vocabulary.COLUMNS, vocabulary.LAYER_COLUMNS),
        (contributions.COLUMNS, contributions.LAYER_COLUMNS) if gated else ((), ()),
        (signed.COLUMNS, signed.LAYER_COLUMNS) if gated else ((), ()),
    ]
    for section, (own, by_layer) in zip(found, declared, strict=True):
        assert tuple(section.columns) == own
        totals = LayerTotals(section.layer_sums, section.layer_sets, {}, {})
        assert tuple(section.layer_columns(totals)) == by_layer
    tables = block_tables(view, found)
    for name in ("ngrams", "triggers", "domains"):
        assert tables[name].column_names == [column.name for column in TABLES[name][1]]
    assert tables["neurons"]["neuron"].to_pylist() == list(range(10, 15))
    assert (tables["neurons"]["cover_1"].null_count == 5) is not has_bits


def test_nothing_is_read_unless_asked_for():
    view = make_view()
    dead.section(view, ReduceSettings())
    positions.section(view, ReduceSettings())
    vocabulary.section(view, ReduceSettings(vocabulary=False))
    assert {"bits", "tokens", "weights"} & set(vars(view)) == set()


def test_columns_say_what_they_mean():
    tables = block_tables(make_view(), [dead.section(make_view(), ReduceSettings())])
    assert tables["neurons"].schema.field("dead").metadata == {
        b"meaning": dead.DEAD.meaning.encode()
    }


@pytest.mark.parametrize(
    "second",
    [
        Section({dead.DEAD: np.zeros(5, bool)}),
        Section({Column("dead", "int64", "another"): np.zeros(5, int)}),
    ],
)
def test_two_columns_of_one_name_are_refused(second):
    view = make_view()
    with pytest.raises(UserError, match=r"two sections have .* column dead"):
        block_tables(view, [dead.section(view, ReduceSettings()), second])


def test_two_tables_of_one_name_are_refused():
    view = make_view()
    own = positions.section(view, ReduceSettings())
    with pytest.raises(UserError, match="two sections have a table domains"):
        block_tables(view, [own, Section({}, tables={"domains": own.tables["domains"]})])


def test_the_format_page_lists_the_declared_columns():
    text = columns.FORMAT.read_text()
    assert text == columns.replaced(text), "run python tests/helpers/columns.py"


@pytest.mark.parametrize("page", ["README.md", "docs/method.md"])
def test_pages_name_declared_columns_alone(page):
    declared = {name: {c.name for c in found} for name, (_, found) in TABLES.items()}
    text = (ROOT / page).read_text()
    for line in text.splitlines():  # a row per table: its name, then its columns
        if row := re.match(r"\| `(\w+)` \|[^|]*\|(.*)\|", line):
            named = set(re.findall(r"`(\w+)`", row[2]))
            assert named <= declared.get(row[1], set()), line
    for table, column in re.findall(r"`(\w+)\.(\w+)`", text):
        if table in declared:
            assert column in declared[table], f"{table}.{column}"


def test_the_method_page_defines_every_column():
    text = (ROOT / "docs" / "method.md").read_text()
    for table in ("neurons", "layers"):
        for column in TABLES[table][1][1:]:
            name = column.name
            kind = name.removesuffix("_strong")
            defined = f"`{name}`" in text or f".{name}`" in text
            assert defined or kind in positions.TYPES or name in ("neurons", "neuron"), name
