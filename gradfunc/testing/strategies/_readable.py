"""How drawn values print: as what makes them again."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from hypothesis.vendor.pretty import for_type_by_name, pretty
from torch import Tensor

MOST = 1000  # entries that are printed; of more, how the tensor looks


class Readable:
    """A frozen dataclass that prints the fields which are not at their default."""

    def __repr__(self) -> str:
        given = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # of a subclass
            value, default = getattr(self, field.name), field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if field.repr and (type(value) is not type(default) or value != default):
                given.append(f"{field.name}={pretty(value)}")
        return f"{type(self).__name__}({', '.join(given)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis asks first."""
        printer.text(repr(self))


def spelt(tensor: Tensor) -> str:
    """The call that makes a tensor again, to the last bit; of a large one, how it looks.

    Example:
        >>> spelt(torch.tensor([0.1, -0.0, 1e-45]))
        'torch.tensor([0.1, -0.0, 1e-45], dtype=torch.float32)'
    """
    if tensor.numel() > MOST or tensor.is_complex() or tensor.layout != torch.strided:
        return repr(tensor)
    place = f"dtype={tensor.dtype}" + ("" if tensor.device.type == "cpu" else f", device={str(tensor.device)!r}")
    if not tensor.numel():
        return f"torch.empty({tuple(tensor.shape)}, {place})"
    return f"torch.tensor({_nested(tensor.detach().cpu())}, {place})"


def _nested(tensor: Tensor) -> str:
    if tensor.dim():
        return f"[{', '.join(map(_nested, tensor))}]"
    if not tensor.is_floating_point():
        return repr(tensor.item())
    value = float(tensor)
    if not math.isfinite(value):
        return f"float('{value}')"
    # The fewest digits that give these bits back; torch reads bfloat16 by way of float32.
    kinds: dict[torch.dtype, Any] = {torch.float64: np.float64, torch.float16: np.float16}
    return str(kinds.get(tensor.dtype, np.float32)(value))


def _printed(tensor: Tensor, printer: Any, cycle: bool) -> None:
    printer.text(spelt(tensor))


# torch prints four digits, from which no example can be made again. This is a table of hypothesis; torch is untouched.
for_type_by_name("torch", "Tensor", _printed)
