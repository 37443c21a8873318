"""The arguments of torch's recurrent operators, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ._cell import Cell, State


class Options(NamedTuple):
    """The operator's options after the tensors, in its order."""

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool

    @property
    def drops(self) -> bool:
        """Whether there is dropout between layers."""
        return self.dropout > 0 and self.train and self.num_layers > 1


class Call(NamedTuple):
    """The arguments of one of the operators; `sizes` where it was packed."""

    x: Tensor
    sizes: list[int] | None
    state: State
    params: Sequence[Tensor]
    options: Options
    batch_first: bool = False

    @property
    def cells(self) -> list[Cell]:
        """Layer by layer, both directions of each."""
        count = self.options.num_layers * (2 if self.options.bidirectional else 1)
        each, biases = len(self.params) // count, self.options.has_biases
        cells = []
        for k in range(count):
            own = list(self.params[k * each : (k + 1) * each])
            b_ih, b_hh = own[2:4] if biases else (None, None)
            cells.append(Cell(own[0], own[1], b_ih, b_hh, own[-1] if each > (4 if biases else 2) else None))
        return cells


def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """What an operator was called with."""
    packed = "batch_sizes" in kwargs or (len(args) > 3 and isinstance(args[3], list | tuple))
    return _packed(*args, **kwargs) if packed else _padded(*args, **kwargs)


def state(hx: Tensor | Sequence[Tensor]) -> State:
    """As a tuple."""
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _padded(input: Tensor, hx: Any, params: Sequence[Tensor], *options: Any, **named: Any) -> Call:
    batch_first = options[5] if len(options) == 6 else named.pop("batch_first")
    return Call(input, None, state(hx), params, Options(*options[:5], **named), batch_first)


def _packed(data: Tensor, batch_sizes: Tensor, hx: Any, params: Sequence[Tensor], *options: Any, **named: Any) -> Call:
    return Call(data, batch_sizes.tolist(), state(hx), params, Options(*options, **named))
