"""How a run's neurons are cut into tasks."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from neuronstats.reduce import block

POSITIONS, DOMAINS = 128, ("a", "b")
NEURON_BYTES = 16 * POSITIONS * (1 + len(DOMAINS))  # and its bits


@given(
    layers=st.integers(1, 9),
    neurons=st.integers(1, 700),
    chunk=st.integers(1, 300),
    tokens=st.sampled_from([1000, 10**6, 10**7, 10**8, 10**9]),
    workers=st.integers(1, 40),
)
def test_blocks_are_all_neurons_in_order_in_whole_parts(layers, neurons, chunk, tokens, workers):
    layout = SimpleNamespace(
        num_neurons=neurons,
        neurons_per_chunk=min(chunk, neurons),
        num_positions=POSITIONS,
        domains=DOMAINS,
    )
    part = block.part_neurons(layout, tokens)
    assert part == neurons or part % layout.neurons_per_chunk == 0
    assert part <= chunk or part * (tokens // 8 + NEURON_BYTES) <= block.PART_BYTES
    blocks = block.cut_blocks(layout, layers, tokens, workers)
    places = [(b.layer, n) for b in blocks for n in range(b.first, b.last)]
    assert places == [(layer, n) for layer in range(layers) for n in range(neurons)]
    parts = [list(b.parts(part)) for b in blocks]
    assert [p for own in parts for p in own] == [
        p for layer in range(layers) for p in block.Block(layer, 0, neurons).parts(part)
    ]
    most = block.most_parts(layout, tokens)
    for number, own in enumerate(parts):
        assert len(own) <= most
        width = own[-1].last - own[0].first
        assert len(own) == 1 or width * (tokens // 8 + NEURON_BYTES) <= block.BLOCK_BYTES
        left = sum(map(len, parts[number:]))  # for others to do while one worker is at this
        assert len(own) == 1 or len(own) * block.BLOCKS_LEFT * workers <= left
