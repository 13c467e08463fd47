"""What one would write instead: forward hooks, NumPy, collections.Counter.

python benchmarks/by_hand.py MODEL TOKENS.npy OUT.npz
"""

import sys
from collections import Counter

import numpy as np
import torch
from transformers import AutoModelForCausalLM

BATCH, LENGTHS, SHARE = 8, (1, 2, 3), (19, 20)


def activated(model, tokens):
    """Counts [layer, position, neuron], and bits [layer] -> uint8 [token / 8, neuron]."""
    layers, width = model.model.decoder.layers, model.config.ffn_dim
    half, num_positions = len(layers) // 2, tokens.shape[1]
    counts = np.zeros((len(layers), num_positions, width), np.int64)
    bits = [[] for _ in range(half)]

    def hook(layer, _module, _inputs, output):
        on = (output > 0).reshape(-1, num_positions, width).numpy()
        counts[layer] += on.sum(axis=0)
        if layer < half:
            bits[layer].append(np.packbits(on.reshape(-1, width), axis=0))

    for number, layer in enumerate(layers):
        layer.fc1.register_forward_hook(lambda *args, number=number: hook(number, *args))
    with torch.no_grad():
        for start in range(0, len(tokens), BATCH):
            model.model(torch.from_numpy(tokens[start : start + BATCH].astype(np.int64)))
    return counts, [np.concatenate(parts) for parts in bits]


def information(counts, num_sequences):
    """Mutual information of position and activation, nats [layer, neuron]."""
    at, mean = counts / num_sequences, counts.mean(axis=1, keepdims=True) / num_sequences
    with np.errstate(divide="ignore", invalid="ignore"):
        on = np.where(at > 0, at * np.log(at / mean), 0)
        off = np.where(at < 1, (1 - at) * np.log((1 - at) / (1 - mean)), 0)
    return (on + off).mean(axis=1)


def covers(bits, tokens, bos):
    """Fewest n-grams that make 95 % of a neuron's activations, by length [length, neuron]."""
    position = np.tile(np.arange(tokens.shape[1]), len(tokens))
    flat, vocabulary = tokens.ravel().astype(np.int64), int(tokens.max()) + 1
    keys = {n: sum(np.roll(flat, i) * vocabulary**i for i in range(n)) for n in LENGTHS}
    # No n-gram reaches back to the first token, or holds the one that begins sequences.
    counted = {
        n: (position >= n) & ~np.any([np.roll(flat == bos, i) for i in range(n)], axis=0)
        for n in LENGTHS
    }
    out = np.zeros((len(LENGTHS), bits.shape[1]), np.int64)
    for neuron in range(bits.shape[1]):
        on = np.flatnonzero(np.unpackbits(bits[:, neuron]))
        for row, n in enumerate(LENGTHS):
            inside = on[counted[n][on]]
            falling = sorted(Counter(keys[n][inside].tolist()).values(), reverse=True)
            if falling:
                need = np.cumsum(falling) * SHARE[1] >= len(inside) * SHARE[0]
                out[row, neuron] = int(need.argmax()) + 1
    return out


if __name__ == "__main__":
    folder, tokens_file, out_file = sys.argv[1:]
    token_ids = np.load(tokens_file)
    decoder = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    position_counts, bitmaps = activated(decoder, token_ids)
    bos_id = decoder.config.bos_token_id
    np.savez(
        out_file,
        activations=position_counts.sum(axis=1),
        position_mi=information(position_counts, len(token_ids)),
        covers=np.stack([covers(layer, token_ids, bos_id) for layer in bitmaps]),
    )
