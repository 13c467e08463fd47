"""Any causal decoder by parts: its way to the first layer, one layer at a time, its head.

The mathematics is transformers' own. The model is built without weights; its forward is run with
recorders in place of the layers (record.py), which shows what each layer is called with; then each
layer's own module is run with weights that the caller holds. The neurons are found by structure
(ffn.py). What is not understood is refused by name.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from neuronstats.errors import SettingsError, UserError
from neuronstats.model.checkpoint import Checkpoint
from neuronstats.model.config import max_positions
from neuronstats.model.ffn import META, NotFound, copies, find_ffn, has_exact_zeros
from neuronstats.model.layer import Layer
from neuronstats.model.record import Call, NotReplayable, first_hidden, record
from neuronstats.model.shape import Activation, Shape
from neuronstats.model.skeleton import (
    build,
    find_layers,
    norms_after,
    resolve_names,
    restore_buffers,
)

PROBE = (2, 7)  # sequences and positions of the tokens that show a model's structure
CPU = torch.device("cpu")


class Decoder:
    """A model whose layers are filled and run one at a time.

    Args:
        checkpoint: the model's files; without weights only its structure is known.
        dtype: to compute in.
        device: to compute on.
        table_on_device: keep the token embeddings there; else the rows of a batch's tokens alone
            are read from the checkpoint.

    Raises:
        SettingsError: the model is of a kind that is not understood.
        UserError: a weight is missing or has another shape than config.json says.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        *,
        table_on_device: bool = False,
    ) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self._where = str(checkpoint.folder)
        self._model = build(checkpoint.config, dtype, self._where)
        self._path, layers = find_layers(self._model, self._where)
        self._layers = list(layers)
        self._base: Any = self._model.base_model
        stored = checkpoint.names()
        self._stored = resolve_names(self._model, stored, self._where) if stored else None
        self._own = {key: value.shape for key, value in self._model.state_dict().items()}
        self._fill_front(table_on_device=table_on_device)
        self._calls: list[Call] = []
        self._size: tuple[int, ...] = ()
        with self._named():
            with norms_after(self._model, self._layers) as self._final_norms:
                hidden = self.front(torch.zeros(PROBE, dtype=torch.int64)).to(META)
            self.ffns = [
                find_ffn(layer, call, hidden)
                for layer, call in zip(self._layers, self._calls, strict=True)
            ]
        if len({ffn.neurons for ffn in self.ffns}) > 1:
            raise SettingsError(f"{self._where} has layers of different numbers of neurons.")
        self.shape = self._measure(hidden)
        for layer in self._layers:
            restore_buffers(self._model, layer.named_modules(), device)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the model in the error that refuses it."""
        try:
            yield
        except (NotReplayable, NotFound) as error:
            kind = self._model.config.model_type
            raise SettingsError(
                f"{self._where}: a {kind} model is not understood: it {error}."
            ) from error

    # Weights.

    def _weight(self, name: str) -> Tensor:
        """Return a weight as stored, by the model's own name of it.

        Raises:
            UserError: it is missing, or has another shape than config.json says.
        """
        if self._stored is None:  # no byte is known: of one zero, seen everywhere
            return torch.zeros(()).expand(self._own[name])
        if name not in self._stored:
            raise UserError(f"{self._where} lacks the weight {name}: is the checkpoint complete?")
        found = self.checkpoint.tensor(self._stored[name])
        if found.shape != self._own[name]:
            raise UserError(
                f"{self._where}: {name} has shape {tuple(found.shape)}, its config.json says"
                f" {tuple(self._own[name])}."
            )
        return found

    def _embedding_name(self) -> str:
        """Return the name of the input embedding's stored weight, which may be the head's."""
        name, head = self._name_of(self._base.get_input_embeddings()), self._head_name()
        stored = self._stored or {}
        tied = self._model.config.tie_word_embeddings
        return head if tied and name not in stored and head in stored else name

    def _name_of(self, module: nn.Module) -> str:
        return next(n for n, m in self._model.named_modules() if m is module) + ".weight"

    def _head_name(self) -> str:
        return self._name_of(self._model.get_output_embeddings())

    def _fill_front(self, *, table_on_device: bool) -> None:
        """Fill all that is neither a layer nor the head.

        Of the token embedding all rows, or those of each batch's tokens when it comes.
        """
        embedding = self._base.get_input_embeddings()
        outside = ((n, m) for n, m in self._model.named_modules() if not self._is_inside(n))
        restore_buffers(self._model, list(outside), self.device)
        table = self._weight(self._embedding_name())
        for name, _ in list(self._base.named_parameters(prefix=self._base_prefix())):
            if not self._is_inside(name) and name != self._name_of(embedding):
                self._set(self._model, name, self._weight(name).to(self.device, self.dtype))

        if table_on_device:  # first there, then in its type: no second copy on the host
            self._set(embedding, "weight", table.to(self.device).to(self.dtype))
            return

        def look_up(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            ids = args[0]
            rows = nn.functional.embedding(ids.cpu(), table).flatten(0, -2)
            self._set(module, "weight", rows.to(self.device, self.dtype))
            return (torch.arange(ids.numel(), device=self.device).view(ids.shape),)

        def drop(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            rows: Any = module.weight  # of a batch; they would stay until the next is embedded
            self._set(module, "weight", rows.new_empty((0, rows.shape[1])))

        embedding.register_forward_pre_hook(look_up)
        embedding.register_forward_hook(drop)

    def _is_inside(self, name: str) -> bool:
        """Return whether a module or weight is a layer's."""
        return name.startswith(f"{self._path}.")

    def _base_prefix(self) -> str:
        return next(n for n, m in self._model.named_modules() if m is self._base)

    @staticmethod
    def _set(module: nn.Module, name: str, value: Tensor) -> None:
        owner, _, key = name.rpartition(".")
        module.get_submodule(owner)._parameters[key] = nn.Parameter(value, requires_grad=False)

    def layer_shapes(self, index: int) -> dict[str, torch.Size]:
        """Return the shapes of a layer's weights, by their names in it."""
        return {name: w.shape for name, w in self._layers[index].state_dict().items()}

    def stored_layer(self, index: int) -> dict[str, Tensor]:
        """Return a layer's weights as stored, by their names in it; mapped ones are not read yet.

        Raises:
            UserError: one is missing, or has another shape than config.json says.
        """
        prefix = f"{self._path}.{index}."
        return {name: self._weight(prefix + name) for name in self.layer_shapes(index)}

    # The forward pass.

    def front(self, tokens: Tensor) -> Tensor:
        """Carry int64 [sequence, position] to the first layer's input [sequence, position, d].

        The layers' calls are recorded for this size, if they are not yet.
        """
        tokens = tokens.to(self.device)
        if tuple(tokens.shape) != self._size:
            with torch.inference_mode(mode=False), self._named():
                self._calls = record(self._base, self._layers, tokens)
            self._size = tuple(tokens.shape)
        return first_hidden(self._base, self._layers, tokens)

    def layer(self, index: int, weights: dict[str, Tensor]) -> Layer:
        """Return a layer that computes with whatever is written into these weights."""
        module = self._layers[index]
        module.load_state_dict(weights, assign=True)
        module.requires_grad_(requires_grad=False)
        return Layer(module, self.ffns[index], lambda: self._calls[index])

    # The way to the vocabulary.

    def output_embedding(self) -> tuple[Tensor, Tensor | None]:
        """Return what logits are made with, as stored.

        Returns:
            The output embedding [token, width], and the projection to its width [width, d] where
            the model has one.
        """
        name = self._embedding_name() if self._is_tied() else self._head_name()
        embedding = self._weight(name)
        width, d = embedding.shape[1], self.shape.hidden
        if width == d:
            return embedding, None
        found = [
            key
            for key, module in self._model.named_modules()
            if isinstance(module, nn.Linear) and not self._is_inside(key)
            if module.weight.shape == (width, d)
        ]
        if len(found) != 1:
            raise SettingsError(f"{self._where}: no projection from {d} to {width} is understood.")
        return embedding, self._weight(f"{found[0]}.weight")

    def _is_tied(self) -> bool:
        """Return whether the head is the embedding; not where both are stored and differ."""
        if not self._model.config.tie_word_embeddings:
            return False
        names = self._embedding_name(), self._head_name()
        if self._stored is None or any(name not in self._stored for name in names):
            return True
        return torch.equal(self._weight(names[0]), self._weight(names[1]))

    def updates(self, index: int) -> Tensor:
        """Return what a layer's neurons write, as stored: [channel, neuron].

        Where a norm follows, in float32 after its weight; what it divides by changes no direction.
        """
        name, norm = self.ffns[index].down, self.ffns[index].norm
        weight = self._weight(f"{self._path}.{index}.{name}.weight")
        if isinstance(self._layers[index].get_submodule(name), Conv1D):
            weight = weight.T
        if norm is None:
            return weight
        scale, _ = self._norm_effect(f"{self._path}.{index}.{norm}")
        return scale[:, None] * weight.float()

    def final_norm(self) -> tuple[Tensor, bool] | None:
        """Return what the norm before the output embedding does to each channel; None without one.

        Returns:
            What it multiplies each channel by, float32 [channel], and whether it takes the
            channels' mean off first.
        """
        return self._norm_effect(self._final_norms[0]) if self._final_norms else None

    def _norm_effect(self, name: str) -> tuple[Tensor, bool]:
        """Return what a norm multiplies channels by (some add 1 to their weight); if it centres."""
        module = self._model.get_submodule(name)
        stored = {
            key: self._weight(f"{name}.{key}").float() for key, _ in module.named_parameters()
        }
        ones = torch.ones(self.shape.hidden)
        signs = ones * (-1) ** torch.arange(len(ones))  # of length 1 in each channel, and mean 0
        up, down = (functional_call(module, stored, (side * signs,)) for side in (1, -1))
        scale = (up - down) / 2 * signs
        same, less = (functional_call(module, stored, (side * ones,)) for side in (1, -1))
        return scale, not torch.allclose((same - less) / 2, scale, atol=1e-3)

    # Sizes.

    def _measure(self, hidden: Tensor) -> Shape:
        config, ffn = self._model.config, self.ffns[0]
        activation = self._layers[0].get_submodule(ffn.activation)
        weights = [
            sum(s.numel() for s in self.layer_shapes(i).values()) for i in range(len(self.ffns))
        ]
        head = self._own[self._head_name()]
        embedding = self._name_of(self._base.get_input_embeddings())
        heads = getattr(config, "num_attention_heads", 0)
        front = [
            p.numel()
            for name, p in self._base.named_parameters(prefix=self._base_prefix())
            if not self._is_inside(name) and name != embedding
        ]
        return Shape(
            num_layers=len(self._layers),
            hidden=hidden.shape[-1],
            neurons=ffn.neurons,
            heads=heads,
            vocabulary=config.vocab_size,
            embedding=head[1],
            positions=max_positions(config) or 0,
            layer_weights=max(weights),
            front_weights=sum(front),
            activation=Activation(
                name=type(activation).__name__,
                gated=ffn.gated,
                exact_zeros=has_exact_zeros(activation),
                copies=0 if ffn.in_place else copies(activation),
            ),
            score_heads=heads if config._attn_implementation == "eager" else 0,
        )

    def has_positions(self) -> bool:
        """Return whether the model has positions: learned ones that are not all zero (sec. 5.4).

        Where positions are not learned, they are rotary or the like, and there.
        """
        token = self._base.get_input_embeddings()
        learned = [
            name
            for name, module in self._base.named_modules(prefix=self._base_prefix())
            if isinstance(module, nn.Embedding)
            and module is not token
            and not self._is_inside(name)
        ]
        return not learned or any(bool(self._weight(f"{n}.weight").any()) for n in learned)


def check_weights(decoder: Decoder, num_layers: int) -> None:
    """Find out before anything starts whether the first layers can be filled.

    Raises:
        UserError: a tensor is missing or has another shape than the configuration says.
    """
    for index in range(num_layers):
        decoder.stored_layer(index)
    decoder.checkpoint.release()
