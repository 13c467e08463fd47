"""One decoder layer, run on its own: its neurons' inputs, and what they hand on, can be seen."""

from collections.abc import Callable

from torch import Tensor, nn

from neuronstats.model.ffn import Ffn
from neuronstats.model.record import Call


class _Stop(Exception):
    pass


class Layer:
    """One decoder layer, whose neurons' inputs are handed to whoever listens.

    Args:
        module: the layer, filled.
        ffn: where its neurons are.
        call: returns what it is called with.
    """

    def __init__(self, module: nn.Module, ffn: Ffn, call: Callable[[], Call]) -> None:
        self._module, self._ffn, self._call = module, ffn, call
        self._activation = module.get_submodule(ffn.activation)
        self._down = module.get_submodule(ffn.down)
        self.in_place = ffn.in_place

    def __call__(
        self,
        hidden: Tensor,
        listen: Callable[[Tensor], None],
        *,
        with_output: bool = True,
        weigh: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    ) -> Tensor | None:
        """Run the layer over a batch of the size that the model's front was last given.

        Args:
            hidden: [sequence, position, d].
            listen: is called once with the activation's input, [sequence * position, neuron], rows
                contiguous. Where the layer is `in_place` and has an output, it puts the ReLU's in
                its place (a pass over memory less than a ReLU of its own); else it changes nothing.
            with_output: False where no layer follows; what comes after the input is then left out.
            weigh: is called once, after `listen`, with the activation's input and output and what
                the down projection reads, each [sequence * position, neuron]; changes nothing.

        Returns:
            [sequence, position, d], or None without output.
        """

        seen: list[Tensor] = []

        def tap(gate: Tensor) -> Tensor:
            rows = _rows(gate)
            listen(rows)
            if not with_output and weigh is None:
                raise _Stop
            if self.in_place:
                return gate
            output: Tensor = type(self._activation).forward(self._activation, gate)
            if weigh is not None:
                seen.extend((rows, _rows(output)))
            return output

        def tap_down(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert weigh is not None
            weigh(seen[0], seen[1], _rows(args[0]))
            if not with_output:
                raise _Stop

        call = self._call()
        self._activation.forward = tap
        down = self._down.register_forward_pre_hook(tap_down) if weigh else None
        try:
            output = self._module(hidden, *call.args, **call.kwargs)
        except _Stop:
            return None
        finally:
            del self._activation.forward
            if down is not None:
                down.remove()
        return output[0] if isinstance(output, tuple) else output


def _rows(values: Tensor) -> Tensor:
    """Return values as [sequence * position, neuron], rows contiguous."""
    rows = values.reshape(-1, values.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
