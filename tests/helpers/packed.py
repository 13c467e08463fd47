"""Values, and their packed bits by plain NumPy, never eight at a time."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronstats import bits
from neuronstats.bits import tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
THRESHOLDS = [0.0, -0.0, 0.1, -0.1, 1.0, -1.0, 3.0, -1e-30, 1e-30, -65504.0]


def make_values(
    seed: int, shape: tuple[int, int], dtype: torch.dtype, padding: int = 0, device: str = "cpu"
) -> Tensor:
    """Draw [row, neuron] with zeros of both signs, subnormals and infinities; rows strided."""
    info = torch.finfo(dtype)
    least = torch.tensor([1], dtype=torch.int32 if dtype.itemsize == 4 else torch.int16).view(dtype)
    special = [0.0, -0.0, least.item(), -least.item(), info.tiny, -info.tiny, info.max, info.min]
    special += [float("inf"), float("-inf"), 1.0, -1.0]
    rng = np.random.default_rng(seed)
    wide = (shape[0], shape[1] + padding)
    drawn = np.where(rng.random(wide) < 0.5, rng.choice(special, wide), rng.normal(size=wide))
    return torch.from_numpy(drawn).to(dtype).to(device)[:, : shape[1]]


def expected_activations(
    values: Tensor, num_positions: int, threshold: float = 0.0
) -> NDArray[np.bool_]:
    """Give bool [sequence, position, neuron], compared in double precision."""
    exact = values.double().cpu().numpy()
    rounded = torch.tensor([threshold], dtype=values.dtype).double().item()
    return (exact > rounded).reshape(-1, num_positions, exact.shape[1])


def expected_rows(activations: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Set bit p % 8 of byte p // 8, position by position: [sequence, byte, neuron]."""
    num_sequences, num_positions, num_neurons = activations.shape
    rows = np.zeros((num_sequences, (num_positions + 7) // 8, num_neurons), np.uint8)
    for p in range(num_positions):
        rows[:, p // 8] += activations[:, p].astype(np.uint8) << (p % 8)
    return rows


def packed(values: Tensor, num_positions: int, threshold: float = 0.0) -> Tensor:
    """Call pack_rows on an output that is full of ones."""
    num_sequences = values.shape[0] // num_positions
    shape = (num_sequences, bits.packed_bytes(num_positions), values.shape[1])
    rows = torch.full(shape, 255, dtype=torch.uint8, device=values.device)
    tensors.pack_rows(values, num_positions, rows, threshold)
    return rows


def random_rows(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def unpacked(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Give bits 0 and 1 as [sequence, position, neuron] from [sequence, byte, neuron]."""
    by_bit = np.stack([rows.astype(np.int64) // 2**j % 2 for j in range(8)], axis=2)
    return by_bit.reshape(rows.shape[0], 8 * rows.shape[1], rows.shape[2])
