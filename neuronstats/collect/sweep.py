"""The sweep: a shard's sequences carried layer by layer; bits and counts taken on the way.

Layers outside, the shard inside: each layer's weights are read once for all of a shard's batches.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronstats import bits
from neuronstats.bits import quantities, tensors
from neuronstats.bits.sums import LEFT_OUT, NO_SLOT, Sums
from neuronstats.collect import transfer
from neuronstats.collect.weights import LayerSource
from neuronstats.errors import UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.decoder import Decoder
from neuronstats.model.layer import Layer


@dataclass(frozen=True)
class LayerRecord:
    """What one layer did on one shard."""

    layer: int
    bitmap: NDArray[np.uint8] | None
    """uint8 [neuron, sequence, byte]; None where no bitmap was asked for."""
    position_counts: NDArray[np.integer[Any]]
    """Sequences in which each neuron was activated, [position, neuron]."""
    sums: NDArray[np.int64] | None = None
    """What bits.sums adds up, [quantity, neuron]; None where it was not asked for."""
    token_sums: NDArray[np.int64] | None = None
    """Its sums by token, [token, neuron]."""


class Sweep:
    """One worker's forward passes over shards of tokens.

    Args:
        checkpoint: the model.
        num_layers: the first layers to run and record.
        num_bitmaps: the first layers whose bitmaps are wanted.
        batch_sequences: sequences per batch; every batch has this many, the last is filled up,
            since a matrix product may round differently at another shape.
        dtype: to compute in.
        device: to compute on.
        resident: keep all layers on the device.
        hidden_on_device: keep a shard's hidden states on the device; else in host memory.
        table_on_device: keep the token embeddings on the device; else a batch's rows are sent.
        sum_tokens: take the sums of bits.sums, and those by token of these ids, int64 [token];
            None: take none.
        threshold: a bit is set where the activation function's input is above it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        num_layers: int,
        num_bitmaps: int,
        batch_sequences: int,
        dtype: torch.dtype,
        device: torch.device,
        resident: bool = True,
        hidden_on_device: bool = True,
        table_on_device: bool = False,
        sum_tokens: NDArray[np.int64] | None = None,
        threshold: float = 0.0,
    ) -> None:
        self._num_layers, self._num_bitmaps = num_layers, num_bitmaps
        self._batch = batch_sequences
        self._dtype, self._device = dtype, device
        self._hidden_on_device = hidden_on_device
        self._table_on_device = table_on_device
        self._decoder = Decoder(checkpoint, dtype, device, table_on_device=table_on_device)
        checkpoint.release()  # a layer read through the embeddings' mapping would stay mapped
        self._neurons = self._decoder.shape.neurons
        self._width = self._decoder.shape.hidden
        self._gated = self._decoder.shape.activation.gated
        self._sum_tokens, self._threshold = sum_tokens, tensors.rounded(threshold, dtype)
        self._streams = transfer.Streams(device) if transfer.has_copy_streams(device) else None
        self.layers = LayerSource(self._decoder, num_layers, resident=resident)

    def __call__(
        self, tokens: NDArray[np.integer[Any]], name: str = "shard"
    ) -> Iterator[LayerRecord]:
        """Run the layers over a shard.

        Args:
            tokens: ids [sequence, position].
            name: the shard, for messages.

        Yields:
            One record a layer, from the first.

        Raises:
            UserError: after the last record: NaN or infinity in the hidden states, says layer and
                sequence; or sums too large to be exact.
        """
        layers = iter(self.layers)
        hidden = self._embedded(tokens)
        made = self._made(layers, hidden, tokens.shape, self._slots(tokens))
        del hidden  # `made` alone holds it: `_refuse` makes another
        if self._streams is not None:
            made = transfer.to_host(made, self._streams)
        wrong: str | None = None
        finite: Tensor
        for index, (counts, *rest) in enumerate(made):
            if index + 1 == self._num_layers:
                finite = rest.pop()
            arrays = [tensor.numpy() for tensor in rest]
            bitmap = arrays.pop(0) if index < self._num_bitmaps else None
            unsigned = counts.numpy().view(f"u{counts.element_size()}")
            record = LayerRecord(index, bitmap, unsigned, *arrays)
            if record.sums is not None:
                wrong = wrong or _inexact(record.sums, tokens.size, index, name)
            yield record
        if not bool(finite.all()):
            self._refuse(finite, tokens, name)
        if wrong:
            raise UserError(wrong)

    def _slots(self, tokens: NDArray[np.integer[Any]]) -> Tensor | None:
        """Return for each token where bits.sums adds it, int64 [sequence, position]."""
        if self._sum_tokens is None:
            return None
        slots = np.full(tokens.shape, NO_SLOT, np.int64)
        for slot, token in enumerate(self._sum_tokens.tolist()):
            slots[tokens == token] = slot
        slots[:, : quantities.first_position(tokens.shape[1])] = LEFT_OUT
        return torch.from_numpy(slots).to(self._device)

    def _made(
        self,
        layers: Iterator[Layer],
        hidden: Tensor,
        shape: tuple[int, ...],
        slots: Tensor | None = None,
        *,
        look: bool = False,
    ) -> Iterator[Sequence[Tensor]]:
        """Yield each layer's position counts and, where wanted, neuron-major bits, sums, `finite`.

        The last layer's input alone is looked at: what is not finite stays in the residual stream,
        and a norm makes NaN of it.

        Args:
            layers: filled, in order.
            hidden: the shard's residual stream, changed in place.
            shape: of the tokens.
            slots: see `_slots`; None: no sums.
            look: look at every layer's output.
        """
        num_sequences, num_positions = shape
        size = (num_sequences, bits.packed_bytes(num_positions), self._neurons)
        rows = torch.empty(size, dtype=torch.uint8, device=self._device)
        batches: Iterable[Tensor] = torch.split(hidden, self._batch)
        if not self._hidden_on_device:
            assert self._streams is not None
            batches = transfer.HostHiddenStates(hidden, self._batch, self._device, self._streams)
        for index, layer in enumerate(layers):
            last = index + 1 == self._num_layers
            weighed = None if slots is None else (self._new_sums(), slots)
            finite = self._run_layer(
                layer, batches, rows, num_positions, weighed, last=last, look=look
            )
            counts = tensors.narrow(tensors.position_sums(rows, num_positions), num_sequences)
            bitmap = [tensors.neuron_major(rows)] if index < self._num_bitmaps else []
            beside = [weighed[0].values, weighed[0].by_token] if weighed else []
            yield counts, *bitmap, *beside, *([finite] if last or look else [])

    def _new_sums(self) -> Sums:
        assert self._sum_tokens is not None
        size = (self._neurons, len(self._sum_tokens))
        return Sums(*size, gated=self._gated, device=self._device, threshold=self._threshold)

    @torch.inference_mode()
    def _embedded(self, tokens: NDArray[np.integer[Any]]) -> Tensor:
        """Embed a shard, filled up to whole batches with its first sequence."""
        num_sequences, num_positions = tokens.shape
        whole = -(-num_sequences // self._batch) * self._batch
        shape = (whole, num_positions, self._width)
        if self._hidden_on_device:
            hidden = torch.empty(shape, dtype=self._dtype, device=self._device)
        else:
            assert self._streams is not None
            hidden = self._streams.host(shape, self._dtype, "hidden states")
        for start in range(0, whole, self._batch):
            chosen = np.arange(start, start + self._batch)
            chosen[chosen >= num_sequences] = 0
            batch = torch.from_numpy(tokens[chosen].astype(np.int64))
            if self._table_on_device and self._streams is not None:
                batch = transfer.inward(batch, self._device)
            part = hidden[start : start + self._batch]
            part.copy_(self._decoder.front(batch), non_blocking=True)
        return hidden

    @torch.inference_mode()
    def _run_layer(
        self,
        layer: Layer,
        batches: Iterable[Tensor],
        rows: Tensor,
        num_positions: int,
        weighed: tuple[Sums, Tensor] | None = None,
        *,
        last: bool,
        look: bool,
    ) -> Tensor:
        """Carry all batches through one layer, in place.

        Returns:
            A bool per sequence: of the last layer, whether its neurons' inputs are finite; else
            whether its output is, if it is to be looked at.
        """
        num_sequences = rows.shape[0]
        finite = torch.empty(num_sequences, dtype=torch.bool, device=self._device)
        for number, batch in enumerate(batches):
            start = number * self._batch
            valid = min(self._batch, num_sequences - start)

            def listen(gate: Tensor, start: int = start, valid: int = valid) -> None:
                real, rest = gate.tensor_split([valid * num_positions])
                out = rows[start : start + valid]
                if layer.in_place and not last:
                    tensors.relu_pack_rows_(real, num_positions, out)
                    rest.relu_()
                    return
                tensors.pack_rows(real, num_positions, out, self._threshold)
                if last:
                    # There is no output to look at: NaN and infinity show in the extremes.
                    extremes = torch.stack(torch.aminmax(real.reshape(valid, -1), dim=1))
                    finite[start : start + valid] = torch.isfinite(extremes).all(0)

            def weigh(
                gate: Tensor, act: Tensor, value: Tensor, start: int = start, valid: int = valid
            ) -> None:
                assert weighed is not None
                real = slice(valid * num_positions)
                slots = weighed[1][start : start + valid].flatten()
                weighed[0].add(gate[real], act[real], value[real], slots)
                if last:
                    extremes = torch.stack(torch.aminmax(value[real].reshape(valid, -1), dim=1))
                    finite[start : start + valid] &= torch.isfinite(extremes).all(0)

            output = layer(batch, listen, with_output=not last, weigh=weigh if weighed else None)
            if output is not None:
                if look:
                    finite[start : start + valid] = torch.isfinite(output[:valid]).flatten(1).all(1)
                batch.copy_(output)
        return finite

    def _refuse(self, finite: Tensor, tokens: NDArray[np.integer[Any]], name: str) -> None:
        """Carry a shard through the layers again, and name the first that fails."""
        layer, number = self._num_layers - 1, int((~finite).nonzero()[0])
        hidden = self._embedded(tokens)
        made = self._made(iter(self.layers), hidden, tokens.shape, look=True)
        for index, (*_, found) in enumerate(made):
            if not bool(found.all()):
                layer, number = index, int((~found).nonzero()[0])
                break
        raise UserError(
            f"NaN or infinity in layer {layer}, sequence {number} of {name}: these are never"
            f" counted. The type is {str(self._dtype).removeprefix('torch.')}: try"
            " model.dtype=float32 (or bfloat16); if it stays, the weights are damaged."
        )


def _inexact(values: NDArray[np.int64], num_tokens: int, layer: int, name: str) -> str | None:
    """Return why sums may not have been exact; None where they are."""
    most = quantities.largest(values)
    if most < quantities.LIMIT and num_tokens <= quantities.MAX_TOKENS:
        return None
    return (
        f"layer {layer} of {name}, {num_tokens} tokens: a neuron hands on {most:.6g}; sums are"
        f" exact below {quantities.LIMIT} and up to {quantities.MAX_TOKENS} tokens a shard. Give"
        " collect.sums=false, or a smaller collect.shard_sequences."
    )
