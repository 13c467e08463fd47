"""Tables of gated models: a planted one, whose every neuron is known, and a brute-force oracle."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import families, planted_gated
from helpers.hooked import hooked
from helpers.planted_gated import DIRECTION, NEURONS, NORMED, SUPPRESSES, WIDTH
from helpers.serial import make_run

from neuronstats.stats.settings import ReduceSettings

UNIT = 2.0**-24
DOMAINS = ["a"] * 7 + ["b"] * 5


def reduced(folder, model, tokens, **settings):
    """A reduced run's tables, by name."""
    model.save_pretrained(folder / "model")
    cut = {"collect__shard_sequences": 4, "collect__batch_sequences": 4, "collect__bitmaps": "all"}
    reduction = ReduceSettings(**settings)
    make_run(folder / "run", folder / "model", tokens, DOMAINS, reduction, **cut)
    tables = (folder / "run" / "tables").glob("*.parquet")
    return {path.stem: pq.read_table(path).to_pylist() for path in tables}


@pytest.fixture(scope="module", params=["silu", "relu"])
def planted(request, tmp_path_factory):
    model = planted_gated.planted_gated(request.param)
    tokens = planted_gated.corpus()
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, tokens, reduced(folder, model, tokens)


def test_planted_sign_cases_are_exact(planted):
    _, tokens, tables = planted
    domain = np.array(DOMAINS)
    for row in tables["contributions"]:
        neuron = NEURONS[row["neuron"]]
        wanted = planted_gated.cases(neuron, tokens[domain == row["domain"]])
        names = ("open_positive", "open_negative", "closed_positive", "closed_negative")
        assert [row[name] for name in names] == wanted
        assert row["tokens"] == sum(wanted)
    assert len(tables["contributions"]) == 2 * 2 * len(NEURONS)


def value(act, neuron, token):
    g = neuron.g(token)
    f = max(g, 0.0) if act == "relu" else g / (1 + math.exp(-g))
    return f * neuron.u(token)


def test_planted_amounts_and_one_signedness(planted):
    act, tokens, tables = planted
    words = tokens[:, 1:].ravel().tolist()
    rows = [row for row in tables["neurons"] if row["layer"] == 0]
    for row, neuron in zip(rows, NEURONS, strict=True):
        values = [value(act, neuron, token) for token in words]
        absolute = math.fsum(map(abs, values))
        is_open = [neuron.g(token) > 0 for token in words]
        from_open = math.fsum(abs(v) for v, here in zip(values, is_open, strict=True) if here)
        close = {"rel": 1e-12, "abs": 0} if act == "relu" else {"rel": 1e-5, "abs": 1e-7}
        near = lambda wanted, close=close: pytest.approx(wanted, **close)  # noqa: E731
        assert row["mean_a"] == near(math.fsum(values) / len(words))
        assert row["mean_abs_a"] == near(absolute / len(words))
        assert row["rms_a"] == near(math.sqrt(math.fsum(v * v for v in values) / len(words)))
        assert row["max_abs_a"] == near(max(map(abs, values)))
        length = planted_gated.SCALE * math.sqrt(sum(v * v for v in neuron.writes.values()))
        assert row["contribution"] == near(length * absolute / len(words))
        if not absolute:  # behind a ReLU that is never above 0
            assert row["open_write_share"] is None
            assert row["one_signedness"] is None
            continue
        assert row["open_write_share"] == near(from_open / absolute)
        assert row["one_signedness"] == near(abs(math.fsum(values)) / absolute)
    assert rows[5]["one_signedness"] == 1  # always open, up always positive
    assert rows[6]["one_signedness"] < 0.5
    never = "dead" if act == "relu" else "never_open"
    assert [row[never] for row in rows] == [index == 4 for index in range(len(NEURONS))]


def test_planted_signed_suppression(planted):
    _, _, tables = planted
    for layer in (0, 1):
        rows = [row for row in tables["neurons"] if row["layer"] == layer]
        detectors = [index for index, row in enumerate(rows) if row["detector_1"]]
        assert detectors == list(SUPPRESSES)
        for index in detectors:
            assert (rows[index]["signed_projection"] < 0) is SUPPRESSES[index]
            assert (rows[index]["signed_projection_normed"] < 0) is NORMED[index]
            assert rows[index]["suppresses"] is None  # no verdict from the direction alone
        summary = tables["layers"][layer]
        assert summary["signed_suppressing_share"] == sum(SUPPRESSES.values()) / 5
        assert summary["signed_suppressing_normed_share"] == sum(NORMED.values()) / 5
        assert summary["suppressing_share"] is None
    assert DIRECTION != SUPPRESSES


def test_planted_signed_projections_are_exact(planted):
    act, _, tables = planted
    if act != "relu":
        pytest.skip("values are not sums of powers of 2")
    triggers = {(r["layer"], r["neuron"]): [] for r in tables["triggers"]}
    for row in tables["triggers"]:
        if row["n"] == 1:
            triggers[row["layer"], row["neuron"]].append(row["token_ids"][0])
    detected = {0: [4], 1: [5], 2: [6], 3: [7, 8], 7: [9, 10]}
    for row in [row for row in tables["neurons"] if row["layer"] == 0]:
        index = row["neuron"]
        own = detected.get(index, triggers.get((0, index), []))
        if not own:
            assert row["signed_projection"] is None
            continue
        assert row["signed_triggers"] == len(own)
        neuron = NEURONS[index]
        written = {t: planted_gated.SCALE * v for t, v in neuron.writes.items()}
        effects = [value(act, neuron, token) * written.get(token, 0.0) for token in own]
        assert row["signed_projection"] == math.fsum(effects) / len(own)
        flipped = [
            -e if t == planted_gated.FLIPPED else e for t, e in zip(own, effects, strict=True)
        ]
        assert row["signed_projection_normed"] == math.fsum(flipped) / len(own)


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory):
    kind, settings, activation, down = families.FAMILIES["llama"]
    model = families.build(kind, settings)
    tokens = np.random.default_rng(5).integers(3, families.VOCABULARY, (12, 24))
    tables = reduced(tmp_path_factory.mktemp("llama"), model, tokens, top_triggers=4)
    return model, tokens, hooked(model, activation, down, "mlp.up_proj", tokens, 4), tables


def test_contributions_equal_brute_force(random_llama):
    model, _, layers, tables = random_llama
    domain = np.array(DOMAINS)
    rows = {(r["layer"], r["neuron"], r["domain"]): r for r in tables["contributions"]}
    for number, here in enumerate(layers):
        whole = whole_open = one_signed = 0
        down = families.layers_of(model)[number].mlp.down_proj.weight.detach().double().numpy()
        for n in range(families.NEURONS):
            every = []
            for name in ("a", "b"):
                g, a, u = (here[key][domain == name][:, 1:, n].ravel().tolist() for key in "gau")
                row = rows[number, n, name]
                fixed = [round(v / UNIT) for v in a]
                opened = [q for q, gate in zip(fixed, g, strict=True) if gate > 0]
                assert row["sum_a"] == sum(fixed) * UNIT
                assert row["sum_abs_a"] == sum(map(abs, fixed)) * UNIT
                assert row["sum_abs_a_open"] == sum(map(abs, opened)) * UNIT
                assert row["max_abs_a"] == max(map(abs, fixed)) * UNIT
                assert row["sum_square_a"] == pytest.approx(math.fsum(v * v for v in a), rel=1e-9)
                signs = [0, 0, 0, 0]
                for gate, by in zip(g, u, strict=True):
                    signs[2 * (gate <= 0) + (by <= 0)] += 1
                names = ("open_positive", "open_negative", "closed_positive", "closed_negative")
                assert [row[name] for name in names] == signs
                every += list(zip(fixed, g, strict=True))
            row = next(r for r in tables["neurons"] if (r["layer"], r["neuron"]) == (number, n))
            absolute = sum(abs(q) for q, _ in every)
            from_open = sum(abs(q) for q, gate in every if gate > 0)
            assert row["open_write_share"] == from_open / absolute
            assert row["one_signedness"] == abs(sum(q for q, _ in every)) / absolute
            length = math.sqrt(math.fsum(v * v for v in down[:, n].tolist()))
            contribution = length * absolute * UNIT / len(every)
            assert row["contribution"] == pytest.approx(contribution, rel=1e-12)
            whole, whole_open = whole + absolute, whole_open + from_open
            one_signed += row["one_signedness"] >= 0.95
        assert tables["layers"][number]["open_write_share"] == whole_open / whole
        assert tables["layers"][number]["one_signed"] == one_signed


def test_signed_suppression_equals_brute_force(random_llama):
    model, tokens, layers, tables = random_llama
    embedding = model.lm_head.weight.detach().double().numpy()
    normed = embedding * model.model.norm.weight.detach().double().numpy()
    words = tokens[:, 1:].ravel()
    for number, here in enumerate(layers):
        down = families.layers_of(model)[number].mlp.down_proj.weight.detach().double().numpy()
        tops = {n: [] for n in range(families.NEURONS)}
        chosen = {"ngrams": set(), "triggers": set()}
        for name in ("ngrams", "triggers"):
            for row in tables[name]:
                n = row["neuron"]
                if row["layer"] == number and row["n"] == 1 and n not in chosen["ngrams"]:
                    tops[n].append(row["token_ids"][0])
            chosen[name] = {n for n, own in tops.items() if own}
        detectors = chosen["ngrams"]
        tops = {n: own for n, own in tops.items() if own}
        values = here["a"][:, 1:].reshape(len(words), -1).astype(np.float64)
        rows = {r["neuron"]: r for r in tables["neurons"] if r["layer"] == number}
        for column, matrix in (
            ("signed_projection", embedding),
            ("signed_projection_normed", normed),
        ):

            def mean_effect(n, own, matrix=matrix, values=values, down=down):
                effects = [values[words == t, n].mean() * (matrix[t] @ down[:, n]) for t in own]
                return sum(effects) / len(own)

            found = {n: mean_effect(n, own) for n, own in tops.items()}
            for n, wanted in found.items():
                assert rows[n]["signed_triggers"] == len(tops[n])
                assert rows[n][column] == pytest.approx(wanted, rel=1e-5, abs=1e-8)
            layer = tables["layers"][number]
            infix = "_normed" if "normed" in column else ""
            others = [found[n] < 0 for n in found if n not in detectors]
            assert layer[f"signed_suppressing{infix}_control_share"] == np.mean(others)
            pairs = [mean_effect(n, tops[m]) < 0 for n in tops for m in tops if m != n]
            shuffled = layer[f"signed_suppressing{infix}_shuffled_share"]
            assert shuffled == pytest.approx(np.mean(pairs), abs=2 / len(pairs))


def test_planted_model_is_read_as_planted(tmp_path):
    """In its own forward, too, gates and up projections of layer 0 are exactly the rules'."""
    model, tokens = planted_gated.planted_gated(), planted_gated.corpus()
    [first, _] = hooked(model, "mlp.act_fn", "mlp.down_proj", "mlp.up_proj", tokens, 4)
    for index, neuron in enumerate(NEURONS):
        g = [[neuron.g(token) for token in row] for row in tokens.tolist()]
        u = [[neuron.u(token) for token in row] for row in tokens.tolist()]
        assert first["g"][..., index].tolist() == g
        assert first["u"][..., index].tolist() == u
    assert torch.equal(model.lm_head.weight, torch.eye(WIDTH))
