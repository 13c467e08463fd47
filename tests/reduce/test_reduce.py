"""collect and reduce together, against the planted truth and the brute-force oracle."""

import dataclasses
import io
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from helpers import models, oracle, planted
from helpers.serial import collect_job, quiet, save_tokens, serial
from transformers import OPTForCausalLM

from neuronstats.collect.job import collect
from neuronstats.collect.settings import CollectJob, CollectSettings
from neuronstats.console import Console
from neuronstats.corpus.settings import DataSettings
from neuronstats.errors import SettingsError, UserError
from neuronstats.machine import Machine, Term
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import EMBEDDED
from neuronstats.reduce.job import reduce
from neuronstats.reduce.settings import ReduceJob
from neuronstats.report.notebook import LoadedRun
from neuronstats.stats.curves import TYPES, classify
from neuronstats.stats.dead import interleave_domains
from neuronstats.stats.positions import mutual_information
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store import tables
from neuronstats.store.run import Run

TABLES = ("neurons", "domains", "ngrams", "triggers", "layers", "suppression")
COLLECT_ALL = {"collect__bitmaps": "all"}


def run_jobs(monkeypatch, job, reverse=False, **reduce_settings):
    partial = reduce_settings.pop("partial", False)
    with serial(monkeypatch, reverse):
        assert collect(job, quiet()) == 0
        settings = ReduceSettings(**reduce_settings)
        assert reduce(ReduceJob(run=job.run, reduce=settings, partial=partial), quiet()) == 0
    return Run.open(job.run)


def read(run, name):
    return pq.read_table(f"{run.folder.location}/tables/{name}.parquet")


def assert_same(found, expected, keys):
    """Every column of the oracle's rows, floats to rounding."""
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        for key in keys:
            value, want = row[key], wanted[key]
            floats = want if isinstance(want, list) else [want]
            if floats and all(isinstance(number, float) for number in floats):
                values = value if isinstance(want, list) else [value]
                pairs = zip(values, floats, strict=True)
                close = all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)
                assert close, (key, row, wanted)
            else:
                value = tuple(value) if isinstance(value, list) else value
                want = tuple(want) if isinstance(want, list) else want
                assert value == want, (key, row, wanted)


def assert_equals_oracle(run, expected, skip=()):
    by = {"domains": lambda row: (row["layer"], row["neuron"], row["domain"])}
    for name in TABLES:
        rows = read(run, name).to_pylist()
        wanted = expected[name]
        if name in by:
            rows, wanted = sorted(rows, key=by[name]), sorted(wanted, key=by[name])
        assert_same(rows, wanted, [k for k in (wanted or [{}])[0] if k not in skip])


@pytest.fixture(scope="module")
def planted_run(planted_checkpoint, planted_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    tokens, domains = planted_corpus
    file = save_tokens(folder / "tokens.npy", tokens, domains)
    job = collect_job(
        folder / "run", planted_checkpoint, file, collect__shard_sequences=7, **COLLECT_ALL
    )
    with pytest.MonkeyPatch.context() as patch:
        return run_jobs(patch, job)


@pytest.fixture(scope="module")
def planted_oracle(planted_model, planted_corpus):
    tokens, domains = planted_corpus
    layers = range(planted_model.config.num_hidden_layers)
    decoder = planted_model.model.decoder
    return oracle.tables(
        [planted.expected_bits(layer, tokens) for layer in layers],
        tokens,
        domains,
        bos=models.BOS,
        embedding=decoder.embed_tokens.weight.detach().numpy(),
        fc2=[decoder.layers[layer].fc2.weight.detach().numpy() for layer in layers],
    )


def test_planted_tables_equal_the_oracle(planted_run, planted_oracle):
    assert_equals_oracle(
        planted_run,
        planted_oracle,
        skip=("positional",),
    )


def test_planted_position_counts_are_exact(planted_run, planted_corpus):
    tokens, domains = planted_corpus
    folder = f"{planted_run.folder.location}/tables/positions.zarr"
    root = zarr.open_group(folder, mode="r")
    for layer in range(planted_run.layout.num_layers):
        bits = planted.expected_bits(layer, tokens)
        assert (root["counts"][layer] == bits.sum(axis=1).T).all()
        by_domain = root["counts_by_domain"]
        for index, domain in enumerate(by_domain.attrs["domains"]):
            chosen = np.array(domains) == domain
            assert (by_domain[index, layer] == bits[:, chosen].sum(axis=1).T).all()
            assert by_domain.attrs["sequences"][index] == chosen.sum()
        # The domains add up to the whole.
        assert (by_domain[:, layer].sum(axis=0) == root["counts"][layer]).all()


def test_planted_classes_are_found_and_none_invented(planted_run):
    rows = {(r["layer"], r["neuron"]): r for r in read(planted_run, "neurons").to_pylist()}
    detected = {}
    for row in read(planted_run, "ngrams").to_pylist():
        key = (row["layer"], row["neuron"], row["n"])
        detected.setdefault(key, set()).add(tuple(row["token_ids"]))
    for truth in planted.NEURONS:
        row = rows[truth.layer, truth.neuron]
        assert row["dead"] == truth.dead, truth
        assert (row["position_mi"] > 0.05) == (truth.position_type is not None), truth
        assert row["position_type"] == truth.position_type, truth
        assert row["position_strong"] == truth.position_strong, truth
        assert row["suppresses"] == truth.suppresses, truth
        if truth.n:
            assert detected[truth.layer, truth.neuron, truth.n] == set(truth.ngrams), truth
        else:
            assert not any(row[f"detector_{n}"] for n in (1, 2, 3)), truth


def test_the_dead_curve_ends_at_the_dead(planted_run):
    curve = read(planted_run, "dead_curve").to_pylist()
    layers = read(planted_run, "layers").to_pylist()
    for layer in layers:
        own = [row for row in curve if row["layer"] == layer["layer"]]
        dead = [row["dead"] for row in own]
        assert dead == sorted(dead, reverse=True)
        assert dead[-1] == layer["dead"]
        assert own[-1]["tokens"] == read(planted_run, "neurons")["tokens"][0].as_py()
        assert layer["dead_frequency_bound"] == 3 / own[-1]["tokens"]


def test_the_dead_curve_is_counted_shard_by_shard(planted_run, planted_corpus):
    tokens, _ = planted_corpus
    corpus = planted_run.corpus()
    order = interleave_domains([shard.domain for shard in planted_run.layout.shards])
    assert sorted(order) == list(range(len(planted_run.layout.shards)))
    curve = iter(read(planted_run, "dead_curve").to_pylist())
    for layer in range(planted_run.layout.num_layers):
        bits = planted.expected_bits(layer, corpus.tokens)
        seen, awake = 0, set()
        for index in order:
            shard = planted_run.layout.shards[index]
            seen += shard.num_sequences * tokens.shape[1]
            own = bits[:, shard.sequences]
            awake |= {neuron for neuron in range(len(own)) if own[neuron].any()}
            row = next(curve)
            assert (row["layer"], row["tokens"], row["dead"]) == (
                layer,
                seen,
                len(own) - len(awake),
            )
    assert next(curve, None) is None


def test_positions_hold_in_every_domain_and_the_waves_cover_what_they_say(
    planted_run, planted_corpus
):
    settings = ReduceSettings()
    root = zarr.open_group(f"{planted_run.folder.location}/tables/positions.zarr", mode="r")
    sequences = np.array(root["counts_by_domain"].attrs["sequences"])
    neurons = read(planted_run, "neurons").to_pylist()
    width = planted_run.layout.num_neurons
    waves = 0
    for row in read(planted_run, "layers").to_pylist():
        layer = row["layer"]
        own = neurons[layer * width : (layer + 1) * width]
        positional = [r for r in own if r["position_type"] is not None]
        assert all(r["position_consistency"] is None for r in own if r["position_type"] is None)
        for r in positional:
            holds = []
            for domain, count in enumerate(sequences):
                counts = root["counts_by_domain"][domain, layer][:, [r["neuron"]]]
                (kind,), _ = classify(counts, count, settings)
                (mi,) = mutual_information(counts, count)
                corrected = mi - (len(counts) - 1) / (2 * count * len(counts))
                if count >= settings.min_domain_sequences:
                    holds.append(TYPES[kind] == r["position_type"] and corrected > 0.05)
            assert r["position_consistency"] == (np.mean(holds) if holds else None)
        strong = [r for r in positional if r["position_type"] == "oscillatory"]
        strong = [r["neuron"] for r in strong if r["position_strong"]]
        assert (row["oscillatory_coverage"] is None) == (not strong)
        if strong:
            curves = root["counts"][layer][1:, strong] / sequences.sum()
            low, high = np.quantile(curves, [0.05, 0.95], axis=0)
            above = curves > (low + high) / 2  # the planted waves are square: no smoothing
            share = above.any(axis=1).mean()
            waves += 1
            assert row["oscillatory_coverage"] == pytest.approx(share, abs=0.1)
            redundancy = above.sum(axis=1)[above.any(axis=1)].mean()
            assert row["oscillatory_redundancy"] == pytest.approx(redundancy, abs=0.15)
    assert waves


def test_any_neuron_s_update_can_be_asked_for(planted_run, planted_model):
    loaded = LoadedRun(planted_run.folder.location)
    embedding = planted_model.model.decoder.embed_tokens.weight.detach().numpy().tolist()
    fc2 = planted_model.model.decoder.layers[1].fc2.weight.detach().numpy()
    values = oracle.project(fc2[:, 5].tolist(), embedding)
    assert loaded.projection(1, [5])[:, 0] == pytest.approx(values)
    row = oracle.suppression_row(values, [])
    found = loaded.update(1, 5, top=3)
    for side in ("promoted", "suppressed"):
        wanted = [(f"w{token}", values[token]) for token in row[side][:3]]
        assert [word for word, _ in found[side]] == [word for word, _ in wanted]
        assert [x for _, x in found[side]] == pytest.approx([x for _, x in wanted])


def test_texts_are_the_tokens(planted_run):
    for row in read(planted_run, "triggers").to_pylist()[:50]:
        assert row["text"].split() == [f"w{token}" for token in row["token_ids"]]


def test_metadata_names_what_made_the_tables(planted_run):
    for name in (*TABLES, "dead_curve"):
        metadata = tables.table_metadata(read(planted_run, name))
        assert metadata["fingerprint"] == planted_run.fingerprint
        assert metadata["settings"]["cover_share"] == 0.95
        assert metadata["complete"] is True


@pytest.mark.parametrize("positions", [16, 21])
def test_random_models_equal_the_oracle(order, positions, tiny_model, tiny_checkpoint, tmp_path):
    rng = np.random.default_rng(positions)
    tokens = rng.choice(np.arange(3, 30), (12, positions), p=None)
    tokens[:, 0] = models.BOS
    tokens[3, 5] = models.BOS
    domains = ["b"] * 5 + ["a"] * 7
    file = save_tokens(tmp_path / "tokens.npy", tokens, domains)
    job = collect_job(
        tmp_path / "run",
        tiny_checkpoint(order),
        file,
        collect__bitmaps=2,
        collect__shard_sequences=3,
        collect__batch_sequences=2,
    )
    settings = {"ngrams": [1, 2], "min_count": 2, "detect_rate": 0.4, "cover_share": 0.6}
    settings |= {"vocabulary_kurtosis": 0.2, "vocabulary_variance": 1.1}
    settings["max_cover"] = {1: 8, 2: 20}
    with pytest.MonkeyPatch.context() as patch:
        run = run_jobs(patch, job, **settings)
    model = tiny_model(order)
    decoder = model.model.decoder
    project = None if decoder.project_out is None else decoder.project_out.weight.detach().numpy()
    expected = oracle.tables(
        models.fire_bits(models.hf_fc1_outputs(model, tokens)),
        tokens,
        domains,
        bos=models.BOS,
        settings=oracle.Settings(**(settings | {"ngrams": (1, 2)})),
        bitmap_layers=2,
        embedding=decoder.embed_tokens.weight.detach().numpy(),
        fc2=[layer.fc2.weight.detach().numpy() for layer in decoder.layers],
        project_out=project,
        vocabulary=True,
    )
    kinds = {row["vocabulary_type"] for row in expected["neurons"]}
    assert kinds == {"prediction", "suppression", "partition", None}
    assert any(row["detector_1"] for row in expected["neurons"])
    assert_equals_oracle(run, expected, skip=("positional",))


def test_a_slice_of_opt_mini_equals_the_oracle(tmp_path, monkeypatch):
    job = CollectJob(
        model=ModelSettings(name="opt-mini", path="embedded:opt-mini"),
        data=DataSettings(
            name="sample", kind="sample", domain="domain", sequence_length=48, max_tokens=480
        ),
        collect=CollectSettings(bitmaps=1, shard_sequences=4),
        run=str(tmp_path / "run"),
    )
    run = run_jobs(monkeypatch, job, max_cover={1: 5, 2: 50, 3: 50}, detect_rate=0.9)
    corpus = run.corpus()
    assert len(corpus.domains) == 5
    model = OPTForCausalLM.from_pretrained(EMBEDDED / "opt-mini", dtype=torch.float32)
    decoder = model.model.decoder
    bits = models.fire_bits(models.hf_fc1_outputs(model, corpus.tokens))[:1]
    expected = oracle.tables(
        [layer[:300] for layer in bits],
        corpus.tokens,
        [corpus.domains[index] for index in corpus.domain],
        bos=model.config.bos_token_id,
        settings=oracle.Settings(detect_rate=0.9),
        embedding=decoder.embed_tokens.weight.detach().numpy(),
        fc2=[layer.fc2.weight.detach().numpy()[:, :300] for layer in decoder.layers[:1]],
    )
    assert len(expected["ngrams"]) > 100
    for name in ("neurons", "domains", "ngrams", "triggers", "suppression"):
        rows = [r for r in read(run, name).to_pylist() if r["layer"] == 0 and r["neuron"] < 300]
        by_key = sorted(rows, key=lambda r: (r["neuron"], r.get("domain", "")))
        wanted = sorted(expected[name], key=lambda r: (r["neuron"], r.get("domain", "")))
        assert_same(by_key, wanted, [key for key in wanted[0] if key != "positional"])


def test_shards_batches_blocks_and_order_change_nothing(
    tiny_checkpoint, planted_run, tmp_path, monkeypatch
):
    tokens = models.random_tokens(10, 24, seed=7)
    file = save_tokens(tmp_path / "tokens.npy", tokens, ["x", "y"] * 5)
    found = []
    for index, (shard, reverse, block) in enumerate(
        [(10, False, 96 << 20), (1, True, 1), (3, True, 2000)]
    ):
        monkeypatch.setattr("neuronstats.reduce.block.BLOCK_BYTES", block)
        monkeypatch.setattr("neuronstats.store.layout.CHUNK_BYTES", 64)
        job = collect_job(
            tmp_path / f"run{index}",
            tiny_checkpoint("pre"),
            file,
            collect__shard_sequences=shard,
            **COLLECT_ALL,
        )
        run = run_jobs(monkeypatch, job, reverse)
        found.append({name: read(run, name).replace_schema_metadata(None) for name in TABLES})
    for other in found[1:]:
        for name in TABLES:
            assert other[name].equals(found[0][name]), name


def test_reduce_again_replaces_the_tables(tiny_checkpoint, tmp_path, monkeypatch):
    file = save_tokens(tmp_path / "tokens.npy", models.random_tokens(6, 16))
    job = collect_job(tmp_path / "run", tiny_checkpoint("pre"), file)
    run = run_jobs(monkeypatch, job)
    (tmp_path / "run" / "tables" / "stale.parquet").write_bytes(b"")
    run_jobs(monkeypatch, job, positional_mi=0.5)
    assert not (tmp_path / "run" / "tables" / "stale.parquet").exists()
    metadata = tables.table_metadata(read(run, "neurons"))
    assert metadata["settings"]["positional_mi"] == 0.5
    assert not (tmp_path / "run" / "tables.partial").exists()


def test_unfinished_run(tiny_checkpoint, tmp_path, monkeypatch):
    tokens = models.random_tokens(6, 16)
    file = save_tokens(tmp_path / "tokens.npy", tokens)
    job = collect_job(tmp_path / "run", tiny_checkpoint("pre"), file, collect__shard_sequences=2)
    with serial(monkeypatch):
        collect(job, quiet())
        run = Run.open(job.run)
        run.forget(run.layout.shards[1])
        with pytest.raises(UserError, match=r"1 of 3 shards \(33 %\) are missing.*partial=true"):
            reduce(ReduceJob(run=job.run), quiet())
        assert reduce(ReduceJob(run=job.run, partial=True), quiet()) == 0
    neurons = read(run, "neurons")
    assert neurons["tokens"][0].as_py() == 4 * 16
    assert tables.table_metadata(neurons)["complete"] is False
    with serial(monkeypatch):  # what is there is not done again
        collect(job, quiet())
    assert sorted(run.records()) == [0, 1, 2]


def test_changed_bits_are_never_counted(tiny_checkpoint, tmp_path, monkeypatch):
    file = save_tokens(tmp_path / "tokens.npy", models.random_tokens(6, 16))
    job = collect_job(tmp_path / "run", tiny_checkpoint("pre"), file)
    with serial(monkeypatch):
        collect(job, quiet())
        run = Run.open(job.run)
        array = run.zarr(writable=True)["bitmaps/000"]
        neuron = int(np.argmax(array[:].sum(axis=(1, 2, 3))))
        values = array[neuron]
        array[neuron] = np.where(
            values == values.max(), values - 1, values
        )  # valid, but other bits
        with pytest.raises(UserError, match=r"(changed|committed|bytes).*repair=true"):
            reduce(ReduceJob(run=job.run), quiet())
        with pytest.raises(UserError, match="repair=true"):
            collect(job, quiet())
        collect(dataclasses.replace(job, repair=True), quiet())
        assert reduce(ReduceJob(run=job.run), quiet()) == 0


@pytest.fixture
def collected(tiny_checkpoint, tmp_path, monkeypatch):
    file = save_tokens(tmp_path / "tokens.npy", models.random_tokens(8, 24, seed=2))
    jobs = [
        collect_job(tmp_path / f"run{i}", tiny_checkpoint(order), file, **COLLECT_ALL)
        for i, order in enumerate(("pre", "post"))
    ]
    with serial(monkeypatch):
        for job in jobs:
            assert collect(job, quiet()) == 0
    return [job.run for job in jobs]


def test_the_first_layers_alone_are_the_whole_s_first_rows(collected, monkeypatch):
    run = Run.open(collected[0])
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected[0]), quiet()) == 0
        whole = {name: read(run, name) for name in (*TABLES, "dead_curve")}
        assert reduce(ReduceJob(run=collected[0], layers=1), quiet()) == 0
    for name, table in whole.items():
        rows = [row for row in table.to_pylist() if row["layer"] == 0]
        found = read(run, name)
        assert found.to_pylist() == rows, name
        assert tables.table_metadata(found)["layers"] == 1
    loaded = LoadedRun(collected[0])
    assert (loaded.num_layers, loaded.depth.tolist()) == (1, [0.0])
    assert loaded.curve(0, 3).tolist() == loaded.activated(0, 3).mean(axis=0).tolist()


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({}, "run= is missing"),
        ({"run": "a", "runs": ["b"]}, "run=a, runs=['b']"),
        ({"runs": ["a", "a"]}, "expected different runs"),
    ],
)
def test_which_runs(job, says):
    with pytest.raises(SettingsError, match=re.escape(says)):
        reduce(ReduceJob(**job), quiet())


@pytest.mark.parametrize("layers", [0, 99, "last"])
def test_layers_that_are_none(collected, layers, monkeypatch):
    with serial(monkeypatch), pytest.raises(SettingsError, match=f"layers={layers}: expected"):
        reduce(ReduceJob(run=collected[0], layers=layers), quiet())


def test_nothing_is_touched_where_one_of_several_runs_is_none(collected, tmp_path, monkeypatch):
    with serial(monkeypatch), pytest.raises(SettingsError, match="does not exist"):
        reduce(ReduceJob(runs=[collected[0], str(tmp_path / "none")]), quiet())
    assert not (Path(collected[0]) / "tables").exists()


def test_a_plan_reduces_nothing(collected, monkeypatch):
    said = io.StringIO()
    with serial(monkeypatch):
        assert reduce(ReduceJob(run=collected[0], plan=True), Console(said)) == 0
    assert "memory, merging" in said.getvalue()
    assert {path.name for path in Path(collected[0]).iterdir()} & {"tables", "ngrams"} == set()


def test_too_little_memory_is_said_before_anything_starts(collected, monkeypatch):
    machine = Machine(cores=2, host_bytes=600 << 20, gpus=0, gpu_bytes=0)
    monkeypatch.setattr("neuronstats.reduce.job.probe", lambda: machine)
    with serial(monkeypatch), pytest.raises(SettingsError, match="of memory each do not fit"):
        reduce(ReduceJob(run=collected[0]), quiet())
    assert not (Path(collected[0]) / "ngrams").exists()


def test_too_little_memory_for_the_driver_is_said_before_anything_starts(collected, monkeypatch):
    monkeypatch.setattr(
        "neuronstats.reduce.job.gather_memory", lambda *sizes: [Term("rows", 1 << 60)]
    )
    with (
        serial(monkeypatch),
        pytest.raises(SettingsError, match=r"gathering takes .* here, in"),
    ):
        reduce(ReduceJob(run=collected[0]), quiet())
    assert not (Path(collected[0]) / "ngrams").exists()


def test_several_runs_are_compared(collected, monkeypatch):
    said = io.StringIO()
    with serial(monkeypatch):
        settings = ReduceSettings(detect_rate=0.3, cover_share=0.3, positional_mi=0.02)
        assert reduce(ReduceJob(runs=collected, reduce=settings), Console(said)) == 0
    rows = pq.read_table(f"{collected[0]}/comparison.parquet").to_pylist()
    assert len(rows) == 2
    for row, location in zip(rows, collected, strict=True):
        assert row["location"] == location
        assert row["run"] in said.getvalue()
        neurons = read(Run.open(location), "neurons").to_pylist()
        assert row["neurons"] == len(neurons)
        assert row["dead_share"] == sum(r["dead"] for r in neurons) / len(neurons)
        for n in (1, 2, 3):
            assert row[f"detectors_{n}"] == sum(r[f"detector_{n}"] for r in neurons)
        judged = [r["suppresses"] for r in neurons if r["suppresses"] is not None]
        assert len(judged) == row["detectors_1"] > 0
        assert row["suppressing_share"] == sum(judged) / len(judged)
        kinds = [r["position_type"] for r in neurons if r["position_type"] is not None]
        assert row["positional"] == len(kinds) > 0
        assert {kind: row[kind] for kind in TYPES} == {k: kinds.count(k) for k in TYPES}
        shares = [
            (layer["suppressing_control_share"], layer["detectors_1"])
            for layer in read(Run.open(location), "layers").to_pylist()
            if layer["suppressing_control_share"] is not None
        ]
        mean = sum(share * count for share, count in shares) / sum(count for _, count in shares)
        assert row["suppressing_control_share"] == pytest.approx(mean)
