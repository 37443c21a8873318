"""torch's random numbers by name (rand, randn, randint, bernoulli, normal, ..., in place or not) on keyed ones.

Handlers as in `_dropout`. Size, type, device and errors are torch's: read off an empty tensor that torch makes of the
same arguments, or left to torch with a call that it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._random import Draw
from ._dropout import Drawer


def _made(like: Tensor, values: Tensor, options: dict[str, Any]) -> Tensor:
    """What a factory returns: `values`, or `like` filled with them where torch made it to special order."""
    values = values.to(like.dtype)
    if options.get("out") is not None or options.get("pin_memory"):
        with torch.no_grad():
            return like.copy_(values)
    return values.requires_grad_() if options.get("requires_grad") else values


def _drawn(kind: Callable[..., Tensor], draw: Drawer, like: Tensor, options: dict[str, Any]) -> Any:
    """Numbers of one kind, of the shape, type and device of `like`."""
    if not _known(like.dtype) or like.numel() == 0:
        return NotImplemented
    return _made(like, kind(draw(), like.shape, like.dtype, like.device), options)


def _known(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def rand(draw: Drawer, *size: Any, **options: Any) -> Any:
    """`torch.rand`."""
    return _drawn(Draw.uniform, draw, torch.empty(*size, **options), options)


def randn(draw: Drawer, *size: Any, **options: Any) -> Any:
    """`torch.randn`."""
    return _drawn(Draw.normal, draw, torch.empty(*size, **options), options)


def randint(draw: Drawer, *given: Any, low: int | None = None, high: int | None = None, **options: Any) -> Any:
    """`torch.randint([low,] high, size)`."""
    numbers = list(given)
    size = options.pop("size") if "size" in options else numbers.pop() if numbers else None
    high = numbers.pop() if high is None and numbers else high
    low = numbers.pop() if low is None and numbers else low or 0
    if size is None or high is None or numbers:
        return NotImplemented
    if options.get("dtype") is None and options.get("out") is None:
        options["dtype"] = torch.int64
    return _integers(draw, torch.empty(size, **options), low, high, options)


def _integers(draw: Drawer, like: Tensor, low: Any, high: Any, options: dict[str, Any]) -> Any:
    whole = isinstance(low, int) and isinstance(high, int)
    if (
        not whole
        or not 0 < high - low < 2**63
        or like.numel() == 0
        or like.dtype.is_complex
        or not _fits(like, low, high)
    ):
        return NotImplemented
    return _made(like, draw().integers(like.shape, low, high, like.device), options)


def _fits(like: Tensor, low: int, high: int) -> bool:
    if like.dtype.is_floating_point:
        return True
    limits = (0, 1) if like.dtype == torch.bool else (torch.iinfo(like.dtype).min, torch.iinfo(like.dtype).max)
    return limits[0] <= low and high - 1 <= limits[1]


def rand_like(draw: Drawer, input: Tensor, **options: Any) -> Any:
    """`torch.rand_like`."""
    return _drawn(Draw.uniform, draw, torch.empty_like(input, **options), options)


def randn_like(draw: Drawer, input: Tensor, **options: Any) -> Any:
    """`torch.randn_like`."""
    return _drawn(Draw.normal, draw, torch.empty_like(input, **options), options)


def randint_like(
    draw: Drawer, input: Tensor, *given: Any, low: int | None = None, high: int | None = None, **options: Any
) -> Any:
    """`torch.randint_like(input, [low,] high)`."""
    numbers = list(given)
    high = numbers.pop() if high is None and numbers else high
    low = numbers.pop() if low is None and numbers else low or 0
    if numbers:
        return NotImplemented
    return _integers(draw, torch.empty_like(input, **options), low, high, options)


def randperm(draw: Drawer, n: int, **options: Any) -> Any:
    """`torch.randperm`."""
    if options.get("dtype") is None and options.get("out") is None:
        options["dtype"] = torch.int64
    if n < 2:
        return NotImplemented
    like = torch.empty(n, **options)
    return _made(like, draw().permutation(n, like.device), options)


def bernoulli(draw: Drawer, input: Tensor, p: float | None = None, *, out: Tensor | None = None) -> Any:
    """`torch.bernoulli` and `Tensor.bernoulli`: of the entries of `input`, or of p in its shape."""
    if not input.is_floating_point() or input.numel() == 0 or not (p is None or 0 <= p <= 1):
        return NotImplemented
    hits = draw().bernoulli(input) if p is None else ~draw().keep(input.shape, p, input.device)
    return hits.to(input.dtype) if out is None else out.resize_(input.shape).copy_(hits)


def bernoulli_(draw: Drawer, self: Tensor, p: float | Tensor = 0.5) -> Any:
    """`Tensor.bernoulli_`."""
    if self.numel() == 0 or self.dtype.is_complex:
        return NotImplemented
    if isinstance(p, Tensor):
        if not p.is_floating_point():
            return NotImplemented
        return self.copy_(draw().bernoulli(p.to(self.device).expand(self.shape)))
    if not 0 <= p <= 1:
        return NotImplemented
    return self.copy_(~draw().keep(self.shape, p, self.device))


def uniform_(draw: Drawer, self: Tensor, *bounds: float, **named: float) -> Any:
    """`Tensor.uniform_(from=0, to=1)`."""
    low, high = (*bounds, *(0.0, 1.0)[len(bounds) :])
    low, high = named.pop("from", low), named.pop("to", high)
    if named:
        return NotImplemented
    return _written(self, low <= high, lambda: draw().uniform(self.shape, self.dtype, self.device), high - low, low)


def normal_(draw: Drawer, self: Tensor, mean: float = 0.0, std: float = 1.0) -> Any:
    """`Tensor.normal_`."""
    return _written(self, std >= 0, lambda: draw().normal(self.shape, self.dtype, self.device), std, mean)


def exponential_(draw: Drawer, self: Tensor, lambd: float = 1.0) -> Any:
    """`Tensor.exponential_`."""
    valid = lambd > 0 and not self.dtype.is_complex
    return _written(self, valid, lambda: draw().exponential(self.shape, self.dtype, self.device), 1 / (lambd or 1), 0)


def _written(self: Tensor, valid: bool, values: Callable[[], Tensor], scale: float, shift: float) -> Any:
    if not valid or not _known(self.dtype) or self.numel() == 0:
        return NotImplemented
    made = values()
    if scale != 1:
        made = made.mul_(scale)
    return self.copy_(made.add_(shift) if shift else made)


def normal(
    draw: Drawer,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    size: Any = None,
    *,
    out: Tensor | None = None,
    **options: Any,
) -> Any:
    """`torch.normal`, all overloads; mean and std are constants to autograd, as there."""
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        if size is not None or options or not (isinstance(std, Tensor) or std >= 0):
            return NotImplemented
        tensors = [t.detach() for t in (mean, std) if isinstance(t, Tensor)]
        like, dtype = tensors[-1], tensors[0].dtype
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    else:
        if std < 0 or size is None:
            return NotImplemented
        like = torch.empty(size, **options) if out is None else out.resize_(size)
        shape, dtype = like.shape, like.dtype
    if not _known(dtype) or not torch.Size(shape).numel():
        return NotImplemented
    unit = draw().normal(shape, dtype, like.device)
    values = (unit * _constant(std) + _constant(mean)).to(dtype)
    if out is not None:
        return out.resize_(shape).copy_(values)
    return _made(like, values, options)


def _constant(value: float | Tensor) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else value


HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.rand: rand,
    torch.randn: randn,
    torch.randint: randint,
    torch.rand_like: rand_like,
    torch.randn_like: randn_like,
    torch.randint_like: randint_like,
    torch.randperm: randperm,
    torch.normal: normal,
    torch.bernoulli: bernoulli,
    torch.Tensor.bernoulli: bernoulli,
    torch.Tensor.bernoulli_: bernoulli_,
    torch.Tensor.uniform_: uniform_,
    torch.Tensor.normal_: normal_,
    torch.Tensor.exponential_: exponential_,
}
