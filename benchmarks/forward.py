"""Ways to run a model over tokens and record its activations: Hugging Face's, hooks, and ours."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import OPTForCausalLM

from benchmarks.subject import Subject
from neuronstats.collect.sweep import Sweep
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder

Bitmaps = list[NDArray[np.uint8]]  # of each layer, [neuron, sequence, byte]


class Bare:
    """Hugging Face's own model, as one would load and call it."""

    def __init__(self, subject: Subject) -> None:
        """Load the model."""
        self._subject = subject
        self._model: Any = load_model(subject)
        self.base: nn.Module = self._model.model

    @torch.inference_mode()
    def forward(self, batch_sequences: int, *, head: bool = False) -> None:
        """Run over all tokens, without the output embedding or with it."""
        model = self._model if head else self.base
        for ids in batches(self._subject, batch_sequences):
            model(input_ids=ids, use_cache=False)

    def hooked(self, *, counts: bool) -> Bitmaps:
        """Run with a hook on every fc1 that keeps packed bits.

        Args:
            counts: also count activations of each neuron, and of each neuron at each position.
        """
        hooks = [_Hook(self._subject.tokens.shape[1], counts=counts) for _ in self._layers]
        handles = [
            layer.fc1.register_forward_hook(hook)
            for layer, hook in zip(self._layers, hooks, strict=True)
        ]
        try:
            self.forward(self._subject.batch_sequences)
        finally:
            for handle in handles:
                handle.remove()
        return [np.concatenate(hook.bitmaps, axis=1) for hook in hooks]

    @property
    def _layers(self) -> Any:
        return self._model.model.decoder.layers


class _Hook:
    """What one writes in an afternoon: booleans, packbits of the transpose, sums."""

    def __init__(self, num_positions: int, *, counts: bool) -> None:
        self._num_positions, self._counts = num_positions, counts
        self.bitmaps: Bitmaps = []
        self.activations: Tensor | int = 0  # [neuron]
        self.by_position: Tensor | int = 0  # [position, neuron]

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        fired = output > 0  # [sequence * position, neuron]
        packed = np.packbits(fired.cpu().numpy().T, axis=1, bitorder="little")
        num_sequences = len(fired) // self._num_positions
        self.bitmaps.append(packed.reshape(len(packed), num_sequences, -1))
        if self._counts:
            by_sequence = fired.view(num_sequences, self._num_positions, -1)
            self.activations = self.activations + fired.sum(0)
            self.by_position = self.by_position + by_sequence.sum(0)


def load_model(subject: Subject) -> Any:
    """Load the model with its output embedding, the way Hugging Face does."""
    model = OPTForCausalLM.from_pretrained(
        subject.folder, dtype=subject.dtype, attn_implementation="sdpa", local_files_only=True
    )
    return model.eval().to(subject.device)


def batches(subject: Subject, batch_sequences: int) -> list[Tensor]:
    """Cut the tokens into batches of int64 [sequence, position] on the device."""
    ids = torch.from_numpy(subject.tokens.astype(np.int64))
    starts = range(0, len(ids), batch_sequences)
    return [ids[start : start + batch_sequences].to(subject.device) for start in starts]


class Swept:
    """Our sweep."""

    def __init__(
        self, subject: Subject, *, num_layers: int | None = None, resident: bool = True
    ) -> None:
        """Make ready.

        Args:
            subject: model and tokens.
            num_layers: run and record only the first layers; None for all.
            resident: keep the layers in memory; otherwise each is read from disk for the shard.
        """
        self._subject = subject
        self.num_layers = num_layers or subject.shape.num_layers
        checkpoint = Checkpoint(subject.folder)
        table = subject.on_gpu  # token embeddings there, as a collect run has them
        decoder = Decoder(checkpoint, subject.dtype, subject.device, table_on_device=table)
        self._embed = decoder.front
        self.sweep = Sweep(
            checkpoint,
            num_layers=self.num_layers,
            num_bitmaps=self.num_layers,
            batch_sequences=subject.batch_sequences,
            dtype=subject.dtype,
            device=subject.device,
            resident=resident,
            table_on_device=table,
        )

    def record(self) -> Bitmaps:
        """Run and record: bits, counts by position, and of each neuron; return the bits."""
        bitmaps = []
        for record in self.sweep(self._subject.tokens):
            record.position_counts.sum(0, dtype=np.int64)
            assert record.bitmap is not None
            bitmaps.append(record.bitmap)
        return bitmaps

    @torch.inference_mode()
    def carry(self) -> None:
        """Run the same layers over the same batches, and record nothing."""
        batch = self._subject.batch_sequences
        hidden = [self._embed(ids) for ids in batches(self._subject, batch)]
        for index, layer in enumerate(self.sweep.layers):
            for part in hidden:
                output = layer(part, _relu, with_output=index + 1 < self.num_layers)
                if output is not None:
                    part.copy_(output)


def _relu(fc1_output: Tensor) -> None:
    fc1_output.relu_()


def mismatches(bitmaps: Bitmaps, reference: Bitmaps) -> int:
    """Count the bits that differ in the layers that both have."""
    pairs = zip(bitmaps, reference, strict=False)
    return sum(int(np.bitwise_count(ours ^ theirs).sum(dtype=np.int64)) for ours, theirs in pairs)
