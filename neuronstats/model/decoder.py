"""OPT by parts: its embeddings, and one decoder layer at a time.

The mathematics is transformers' own: OPTDecoderLayer, built without weights and filled from the
checkpoint. What is recorded is the input of its activation function.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import OPTConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from neuronstats.errors import UserError
from neuronstats.model.checkpoint import Checkpoint

POSITION_OFFSET = 2  # OPT stores position p in row p + 2


class Embeddings:
    """Token ids -> the residual stream before the first layer.

    Args:
        checkpoint: where the embeddings are; the rows of a batch's tokens alone are read.
        dtype: of the result.
        device: where the result goes.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        config = checkpoint.config
        self._tokens = _shaped(
            checkpoint, "embed_tokens.weight", config.vocab_size, config.word_embed_proj_dim
        )
        rows = config.max_position_embeddings + POSITION_OFFSET
        positions = _shaped(checkpoint, "embed_positions.weight", rows, config.hidden_size)
        self._positions = positions[POSITION_OFFSET:].to(device, dtype)
        self._project: Tensor | None = None
        if config.word_embed_proj_dim != config.hidden_size:
            project = _shaped(
                checkpoint, "project_in.weight", config.hidden_size, config.word_embed_proj_dim
            )
            self._project = project.to(device, dtype)
        self._dtype, self._device = dtype, device

    def __call__(self, tokens: Tensor) -> Tensor:
        """Embed int64 [sequence, position] -> [sequence, position, d]."""
        hidden = nn.functional.embedding(tokens, self._tokens).to(self._device, self._dtype)
        if self._project is not None:
            hidden = nn.functional.linear(hidden, self._project)
        return hidden + self._positions[: tokens.shape[1]]


def _shaped(checkpoint: Checkpoint, name: str, *shape: int) -> Tensor:
    tensor = checkpoint.tensor(name)
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{checkpoint.folder}: {name} has shape {tuple(tensor.shape)}, its config.json says"
            f" {shape}."
        )
    return tensor


def has_positions(checkpoint: Checkpoint) -> bool:
    """Tell whether a model has position embeddings: they are there and not all zero (sec. 5.4)."""
    return bool(checkpoint.tensor("embed_positions.weight").any())


def check_weights(checkpoint: Checkpoint, num_layers: int) -> None:
    """Find out before anything starts whether the first layers can be built.

    Raises:
        UserError: a tensor is missing or has another shape than the configuration says.
    """
    Embeddings(checkpoint, checkpoint.dtype, torch.device("meta"))
    layer = Layer(checkpoint.config)
    for index in range(num_layers):
        layer.check(checkpoint.layer(index), f"layer {index} of {checkpoint.folder}")
    checkpoint.release()


class _Stop(Exception):
    pass


class Layer:
    """One decoder layer, whose FFN input of the ReLU is handed to whoever listens.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: OPTConfig) -> None:
        self._config = config
        try:
            with torch.device("meta"):
                self._module = OPTDecoderLayer(config, layer_idx=0).eval()
        except Exception as error:  # whatever a number that makes no sense leads to
            raise UserError(f"the model's config.json cannot be used: {error!r}") from error
        self._module.activation_fn = _Tap()
        self._expected = {name: tuple(p.shape) for name, p in self._module.state_dict().items()}

    def check(self, weights: dict[str, Tensor], where: str) -> None:
        """Hold weights against the configuration; of mapped ones no byte is read.

        Raises:
            UserError: a tensor is missing or has another shape than the configuration says.
        """
        for name, shape in self._expected.items():
            if name not in weights:
                raise UserError(f"{where} lacks {name}: is the checkpoint complete?")
            if tuple(weights[name].shape) != shape:
                raise UserError(
                    f"{where}: {name} has shape {tuple(weights[name].shape)}, config.json says"
                    f" {shape}."
                )

    def allocate(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Give the layer memory of its own; it computes with whatever is written there.

        Returns:
            The weights by name, not yet filled.
        """
        weights = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, shape in self._expected.items()
        }
        self._module.load_state_dict(weights, assign=True)
        return weights

    def __call__(
        self, hidden: Tensor, listen: Callable[[Tensor], None], *, with_output: bool = True
    ) -> Tensor | None:
        """Run the layer over a batch.

        Args:
            hidden: [sequence, position, d].
            listen: is called once with fc1's output, [sequence * position, neuron], and puts the
                ReLU's in its place (a pass over memory less than a ReLU of its own).
            with_output: False where no layer follows; what comes after fc1 is then left out.

        Returns:
            [sequence, position, d], or None without output.
        """
        tap: _Tap = self._module.activation_fn
        tap.listen, tap.stop = listen, not with_output
        mask = create_causal_mask(
            config=self._config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
        )
        try:
            output: Tensor = self._module(hidden, attention_mask=mask)
        except _Stop:
            return None
        return output


class _Tap(nn.Module):
    """In the place of the activation function: whoever listens has applied it."""

    def __init__(self) -> None:
        super().__init__()
        self.listen: Callable[[Tensor], None] | None = None
        self.stop = False

    def forward(self, fc1_output: Tensor) -> Tensor:
        assert self.listen is not None
        self.listen(fc1_output)
        if self.stop:
            raise _Stop
        return fc1_output
