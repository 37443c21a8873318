"""Clipping during the backward pass: the identity, whose cotangent is clipped on its way back.

A function of autograd rather than a hook: a hook on a tensor does not fire under `vmap(grad)`, and one on a parameter
sees the total gradient once, which is clipping afterwards. Its backward pass consists of plain operations, so that it
runs under every transform and can be differentiated again.

The backward pass of the graph is then no longer linear in the cotangent it starts from. Who owns what, and whether two
routes agree, is asked of it with that in mind: `clips` finds the nodes, `straight` has them pass cotangents on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._errors import kind_of, message
from ._tree import wide


def clip_cotangent(x: Tensor, *, value: float | None = None, norm: float | None = None, batch_dims: int = 0) -> Tensor:
    """x itself, whose cotangent is clipped in the backward pass: for use inside a model.

    On the hidden state of a recurrence at every step it clips during backpropagation through time, which keeps what one
    step sends back from growing over many; clipping the gradient afterwards cannot do that. On a parameter, used once,
    it is clipping afterwards. The result is a gradient of no function: gradfunc takes a sample's to be what one
    backward pass from that sample's loss gives, and every engine gives the same.

    Under a loss of one sample x is that sample's tensor, and the norm is over all its entries. In a model that runs the
    batch natively (`batched=True`, or plain torch) the leading `batch_dims` dimensions tell samples, or whatever else
    is to have a norm of its own, apart: `batch_dims=1` for `[B, ...]`.

    | cotangent c                 | `value=v`                  | `norm=C`                                  |
    |-----------------------------|----------------------------|-------------------------------------------|
    | within the limit            | itself                     | itself                                    |
    | beyond                      | -v or v in such entries    | c C / `|c|`                               |
    | 0                           | 0                          | 0                                         |
    | inf in some entry           | -v or v                    | itself: no factor would make it finite    |
    | NaN in some entry           | NaN there                  | itself                                    |
    | limit inf                   | itself                     | itself                                    |

    Second derivatives are those of the clipped cotangent: 0 through entries that `value` has clamped; through a norm
    that was clipped, of `c C / |c|`. Forward mode has no cotangents, and raises. Where losses are scaled
    (`loss_scale=`, a GradScaler), so is the cotangent that comes.

    Args:
        x: any floating tensor.
        value: entries are clamped to [-value, value].
        norm: each norm is clipped at this number.
        batch_dims: leading dimensions that tell norms apart.

    Raises:
        TypeError, ValueError: x is no tensor; not just one of `value` and `norm`; a limit not above 0; `batch_dims`
            below 0 or above the dimensions of x.

    Example:
        >>> import torch, gradfunc as gf
        >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> (10 * gf.clip_cotangent(x, norm=1.0)).sum().backward()
        >>> x.grad
        tensor([0.7071, 0.7071])
    """
    call = "gf.clip_cotangent(x, ...)"
    if not isinstance(x, Tensor):
        raise TypeError(message(call, got=f"{kind_of(x)} as x", expected="a tensor"))
    if (value is None) == (norm is None):
        got = f"value={value!r} and norm={norm!r}"
        raise ValueError(message(call, got=got, expected="one of them"))
    limit, name = (norm, "norm") if value is None else (value, "value")
    if not isinstance(limit, (int, float)) or isinstance(limit, bool):
        raise TypeError(message(call, got=f"{name}={limit!r}", expected="a number"))
    if not limit > 0:
        raise ValueError(message(call, got=f"{name}={limit!r}", expected="a number > 0", do="inf clips nothing."))
    if not isinstance(batch_dims, int) or isinstance(batch_dims, bool):
        raise TypeError(message(call, got=f"batch_dims={batch_dims!r}", expected="an integer"))
    if not 0 <= batch_dims <= x.dim():
        got, expected = f"batch_dims={batch_dims!r}", f"0 to {x.dim()}, the dimensions of x"
        raise ValueError(message(call, got=got, expected=expected))
    # torch's stubs leave `apply` untyped
    out: Tensor = ClipCotangent.apply(x, float(limit), None if norm is None else batch_dims)  # type: ignore[no-untyped-call]
    return out


class ClipCotangent(Function):
    """`(x, limit, lead)`: norms over all but the `lead` first dimensions; None clamps entries."""

    @staticmethod
    def forward(x: Tensor, limit: float, lead: int | None) -> Tensor:
        """The identity."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int | None], output: Tensor) -> None:
        """Numbers only: nothing of x is kept."""
        _, ctx.limit, ctx.lead = inputs
        ctx.straight = False

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Clipped, unless the graph is asked who owns what."""
        return (grad if ctx.straight else clipped(grad, ctx.limit, ctx.lead)), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, limit: float, lead: int | None
    ) -> tuple[Tensor, int | None]:
        """The mapped dimension is one more that tells norms apart."""
        if in_dims[0] is None:
            # as above
            return ClipCotangent.apply(x, limit, lead), None  # type: ignore[no-untyped-call]
        more = None if lead is None else lead + 1
        return ClipCotangent.apply(x.movedim(in_dims[0], 0), limit, more), 0  # type: ignore[no-untyped-call]


def clipped(grad: Tensor, limit: float, lead: int | None) -> Tensor:
    """A cotangent, entry by entry or by norms over all but the first dimensions; never written to."""
    if lead is None:
        return grad.clamp(-limit, limit)
    if not grad.numel():
        return grad
    flat = grad.reshape(*grad.shape[:lead], math.prod(grad.shape[lead:])).to(wide(grad.dtype))
    with torch.no_grad():  # (not detach, for which a vmap over cotangents has no rule)
        largest = flat.abs().amax(-1, keepdim=True)
        unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)  # so that squares do not overflow
    # |c| / unit: of a zero vector torch's derivative of the norm is 0
    length = torch.linalg.vector_norm(flat / unit, dim=-1, keepdim=True)
    beyond = (unit * length > limit) & largest.isfinite()
    factor = torch.where(beyond, (limit / unit) / torch.where(beyond, length, 1.0), 1.0)
    return torch.where(beyond, flat * factor, flat).to(grad.dtype).reshape(grad.shape)


def is_clip(node: Any) -> bool:
    """Whether a node of autograd's graph is one of ours."""
    return hasattr(node, "straight") and node.name() == f"{ClipCotangent.__name__}Backward"


@contextmanager
def straight(nodes: Iterable[Any]) -> Iterator[None]:
    """Let the clips among these nodes pass cotangents on as they are."""
    ours = [node for node in nodes if is_clip(node)]
    try:
        for node in ours:
            node.straight = True
        yield
    finally:
        for node in ours:
            node.straight = False


def clips(outputs: Tensor) -> bool:
    """Whether a clip is anywhere in the graph behind a tensor."""
    pending = [outputs.grad_fn] if outputs.grad_fn is not None else []
    seen = set(pending)
    for node in pending:  # grows while it is walked
        if is_clip(node):
            return True
        below = {edge for edge, _ in node.next_functions if edge is not None} - seen
        seen |= below
        pending += below
    return False
