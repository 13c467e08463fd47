"""How a run's neurons are cut into tasks."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from neuronstats.reduce import block


@given(
    layers=st.integers(1, 9),
    neurons=st.integers(1, 700),
    part=st.integers(1, 800),
    workers=st.integers(1, 40),
)
def test_blocks_are_all_neurons_in_order_in_whole_parts(layers, neurons, part, workers):
    part = min(part, neurons)
    layout = SimpleNamespace(num_neurons=neurons)
    blocks = block.cut_blocks(layout, layers, part, workers)
    places = [(b.layer, n) for b in blocks for n in range(b.first, b.last)]
    assert places == [(layer, n) for layer in range(layers) for n in range(neurons)]
    assert all(b.first % part == 0 for b in blocks)
    parts = [list(b.parts(part)) for b in blocks]
    assert max(map(len, parts)) <= block.MOST_PARTS
    for number, own in enumerate(parts):  # what one worker is at while the others have nothing
        left = sum(map(len, parts[number:]))
        assert len(own) * block.BLOCKS_LEFT * workers <= max(left, block.BLOCKS_LEFT * workers)
    assert [p for own in parts for p in own] == [
        p for whole in range(layers) for p in block.Block(whole, 0, neurons).parts(part)
    ]
