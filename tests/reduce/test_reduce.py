"""collect and reduce together, against the planted truth and the brute-force oracle."""

import numpy as np
import pytest
import torch
import zarr
from helpers import models, oracle, planted
from helpers.reduced import COLLECT_ALL, TABLES, assert_equals_oracle, assert_same, read, run_jobs
from helpers.serial import collect_job, save_tokens
from transformers import OPTForCausalLM

from neuronstats.collect.settings import CollectJob, CollectSettings
from neuronstats.corpus.settings import DataSettings
from neuronstats.model.settings import ModelSettings
from neuronstats.model.source import EMBEDDED
from neuronstats.stats.curves import TYPES, classify
from neuronstats.stats.dead import interleave_domains
from neuronstats.stats.positions import mutual_information
from neuronstats.stats.settings import ReduceSettings
from neuronstats.store import tables


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
