"""What holds the tables together while blocks arrive: order, memory, a stranger's section."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import models
from helpers.serial import make_run, quiet, serial

from neuronstats.errors import UserError
from neuronstats.reduce.block import BlockResult, _neuron_bytes, most_parts, part_neurons
from neuronstats.reduce.gather import Gather, in_order, memory_terms
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.stats.dead import NUM_DEAD
from neuronstats.stats.sections import SECTIONS
from neuronstats.stats.settings import ReduceSettings
from neuronstats.stats.view import Column, Section
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import Layout, Shard
from neuronstats.store.reduced import ReducedRun
from neuronstats.store.run import Run
from neuronstats.store.tables import GROUP_ROWS, TableFiles

METHOD = Path(__file__).parents[2] / "docs" / "method.md"


@pytest.fixture
def collected(tiny_checkpoint, tmp_path):
    tokens, domains = models.random_tokens(8, 24, seed=2), ["a", "b"] * 4
    return make_run(tmp_path / "run", tiny_checkpoint("pre"), tokens, domains, collect__bitmaps=1)


def test_the_method_page_s_section_is_reduced_with_the_paper_s(collected, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", METHOD.read_text(), re.DOTALL)
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected), quiet()) == 0
        alone = ReducedRun(collected)
        exec(example.replace("runs/mine", collected).replace("Console()", "quiet()"), globals())
    run = ReducedRun(collected)
    assert run.neurons.column_names[:-1] == alone.neurons.column_names
    assert run.layers.column_names[:-1] == alone.layers.column_names
    assert run.neurons.drop_columns(["main_domain_share"]).equals(alone.neurons)
    by_domain = np.array(run.table("domains")["activations"]).reshape(-1, 2)
    share = by_domain.max(axis=1) / by_domain.sum(axis=1).clip(1)
    np.testing.assert_array_equal(run.neurons["main_domain_share"], share)
    loyal = (share > 0.5).reshape(len(run.layers), -1).sum(axis=1)
    assert run.layers["loyal_to_a_domain"].to_pylist() == loyal.tolist()
    assert run.meanings()["main_domain_share"] == "share of its activations in its main domain"


def test_a_section_may_have_a_table_of_its_own_and_read_bits_and_tokens(collected, monkeypatch):
    from neuronstats.stats.view import NEURON

    last = Column("last_token", "int32", "the last token that activated it")

    def mine(view, settings):
        if view.bits is None:
            return Section({})
        on = np.unpackbits(view.bits, axis=2, bitorder="little")[:, :, : view.num_positions]
        neuron, sequence, position = np.nonzero(on)
        return Section(
            {}, tables={"lasts": {NEURON: neuron, last: view.tokens[sequence, position]}}
        )

    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected), quiet(), sections=(*SECTIONS, mine)) == 0
    run = ReducedRun(collected)
    table = run.table("lasts")
    assert len(table) == sum(run.neurons["activations"].to_numpy()[: run.layout.num_neurons])
    assert table["neuron"].to_pylist() == sorted(table["neuron"].to_pylist())


def test_an_error_in_a_section_leaves_the_old_tables(collected, monkeypatch):
    def wrong(view, settings):
        raise UserError("no")

    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected), quiet()) == 0
        before = ReducedRun(collected).neurons
        with pytest.raises(UserError, match="no"):
            reduce(ReduceJob(run=collected), quiet(), sections=(wrong,))
    assert ReducedRun(collected).neurons.equals(before)


NEURONS = 256
LAYOUT = Layout(10**6, 0, NEURONS, 8, 1, ("a",), (Shard(0, "a", 0, 1),))


def block_result(layer):
    columns = {"layer": np.full(NEURONS, layer, np.int32), "neuron": np.arange(NEURONS)}
    wide = pa.table({**columns, "values": [[1.0] * 100] * NEURONS})
    return BlockResult({"neurons": wide}, [Section({}, {NUM_DEAD: 1})], 0)


@pytest.fixture
def files(tmp_path):
    files = TableFiles(RunFolder(str(tmp_path / "run"), create=True), {"made": "here"})
    yield files
    files.close()


def test_memory_does_not_grow_with_layers(files):
    gather = Gather(files, LAYOUT, np.ones(1, np.int64))
    held = []
    for layer in range(40):
        gather.add(block_result(layer))
        held.append(pa.total_allocated_bytes())
    one = block_result(0).tables["neurons"].nbytes
    assert max(held) - held[0] < 2 * one  # of forty
    gather.finish()
    assert pa.total_allocated_bytes() - held[0] < 2 * one
    files.finish()
    files.close()


def test_early_blocks_wait_on_disk_and_come_in_order(files, tmp_path):
    before = pa.total_allocated_bytes()
    results = ((layer, block_result(layer)) for layer in (3, 2, 1, 0, 5, 4))
    one = block_result(0).tables["neurons"]
    came = []
    for layer, result in in_order(results, range(6), files):
        came.append(layer)
        assert result.tables["neurons"]["layer"][0].as_py() == layer
        assert result.tables["neurons"].num_columns == one.num_columns
        assert pa.total_allocated_bytes() - before < 5 * one.nbytes
    assert came == list(range(6))
    assert list((tmp_path / "run" / "tables.partial").iterdir()) == []


def test_a_file_is_the_same_however_its_rows_came(tmp_path):
    """Written in other pieces, a dictionary of a column would be full at another row."""
    values = np.random.default_rng(0).integers(0, 1 << 60, 5 * (GROUP_ROWS + 999))
    offsets = np.arange(0, len(values) + 1, 5, dtype=np.int32)
    rows = pa.table({"a": pa.ListArray.from_arrays(offsets, pa.array(values))})
    found = []
    for step in (len(rows), 777, GROUP_ROWS + 1):
        files = TableFiles(RunFolder(str(tmp_path / str(step)), create=True), {})
        for first in range(0, len(rows), step):
            files.append("mine", rows.slice(first, step))
        files._complete()
        found.append((tmp_path / str(step) / "tables.partial" / "mine.parquet").read_bytes())
        files.close()
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_a_full_disk_is_said(files, tmp_path):
    (tmp_path / "run" / "tables.partial" / "mine.parquet").symlink_to("/dev/full")
    noise = np.random.default_rng(0).random(1 << 20)
    with pytest.raises(UserError, match=r"cannot write .*tables\.partial.*[Nn]o space"):
        files.append("mine", pa.table({"a": noise}))
    files.close()


def test_an_object_store_gets_whole_files(tmp_path, monkeypatch):
    """What is not local is sent at the end, from a temporary folder that then is gone."""
    folder = RunFolder(str(tmp_path / "run"), create=True)
    folder.is_local = False
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = TableFiles(folder, {"made": "here"})
    files.append("mine", pa.table({"a": [1, 2]}))
    files.append("mine", pa.table({"a": [3]}))
    sent = tmp_path / "run" / "tables.partial"
    assert not sent.exists()
    files._complete()
    files.close()
    assert [path.name for path in sent.iterdir()] == ["mine.parquet"]
    assert pq.read_table(sent / "mine.parquet")["a"].to_pylist() == [1, 2, 3]
    assert not list(tmp_path.glob("neuronstats-*"))


def test_rows_are_written_in_groups_and_found_there(collected, monkeypatch):
    """Few groups, since each is looked at to find a neuron's rows; the same rows in any."""
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected), quiet()) == 0
        whole = {name: ReducedRun(collected).table(name) for name in ("triggers", "domains")}
        for name in whole:
            assert pq.ParquetFile(f"{collected}/tables/{name}.parquet").num_row_groups == 1
        monkeypatch.setattr("neuronstats.store.tables.GROUP_ROWS", 50)
        assert reduce(ReduceJob(run=collected), quiet()) == 0
    run = ReducedRun(collected)
    for name, table in whole.items():
        file = pq.ParquetFile(f"{collected}/tables/{name}.parquet")
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert len(sizes) > 1
        assert set(sizes[:-1]) == {50}
        assert sizes[-1] <= 50
        assert pa.concat_tables(run.batches(name)).equals(table)
        for layer, first, last in ((0, 0, 3), (0, 5, 6), (1, 2, 9), (1, 9, 9)):
            keys = (table["layer"].to_numpy() == layer, table["neuron"].to_numpy())
            wanted = table.filter(keys[0] & (keys[1] >= first) & (keys[1] < last))
            assert run.rows(name, layer, first, last).equals(wanted)


def test_gathering_holds_what_is_planned(collected, monkeypatch):
    """Arrow's memory while a real run is gathered, against the plan's terms of rows."""
    for owner in ("store.tables", "reduce.gather"):
        monkeypatch.setattr(f"neuronstats.{owner}.GROUP_ROWS", 64)
    run = Run.open(collected)
    settings, layers = ReduceSettings(), run.layout.num_layers
    terms = memory_terms(run.layout, layers, 8 * 24, len(run.layout.shards), settings)
    planned = sum(term.bytes for term in terms if "rows" in term.name or "neurons" in term.name)
    before, held = pa.total_allocated_bytes(), []
    add = Gather.add

    def watched(self, result):
        add(self, result)
        held.append(pa.total_allocated_bytes() - before)

    monkeypatch.setattr(Gather, "add", watched)
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected), quiet()) == 0
    assert len(held) == layers
    assert 0 < max(held) <= planned


def test_files_are_the_same_however_blocks_are_cut(tiny_checkpoint, tmp_path, monkeypatch):
    """A block is one part of a few neurons, several, or all of a layer."""
    monkeypatch.setattr("neuronstats.store.layout.CHUNK_BYTES", 64)
    tokens = models.random_tokens(8, 24, seed=2)
    checkpoint = tiny_checkpoint("pre")
    collected = make_run(tmp_path / "run", checkpoint, tokens, ["a", "b"] * 4, collect__bitmaps=1)
    monkeypatch.setattr("neuronstats.reduce.block.PART_BYTES", 1)
    monkeypatch.setattr("neuronstats.store.tables.GROUP_ROWS", 30)
    layout = Run.open(collected).layout
    part_bytes = part_neurons(layout, tokens.size) * _neuron_bytes(layout, tokens.size)
    found = []
    for parts, block_bytes in ((1, 1), (3, 3 * part_bytes), (layout.num_neurons, 1 << 30)):
        monkeypatch.setattr("neuronstats.reduce.block.BLOCK_BYTES", block_bytes)
        monkeypatch.setattr("neuronstats.reduce.block.BLOCKS_LEFT", 1)
        assert most_parts(layout, tokens.size) == parts
        with serial(monkeypatch):
            assert reduce(ReduceJob(run=collected), quiet()) == 0
        tables = Path(collected, "tables")
        files = [path for path in sorted(tables.rglob("*")) if path.is_file()]
        found.append({str(path.relative_to(tables)): path.read_bytes() for path in files})
    assert found[1] == found[0]
    assert found[2] == found[0]
