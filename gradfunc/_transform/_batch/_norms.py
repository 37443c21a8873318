"""Norms of gradients that neither overflow nor underflow, and what is done where one is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..._errors import message
from ..._swap import levels
from ..._tree import row_norms
from .._stage import How

POLICIES = ("raise", "skip", "zero", "keep")


def parameter_norm(value: Tensor) -> Tensor:
    """Of one tensor, in float64, in which squares of the smaller types neither overflow nor underflow."""
    if value.dtype == torch.float64:
        return row_norms({"": value[None]})[0]
    norm: Tensor = torch.linalg.vector_norm(value, dtype=torch.float64)
    return norm


def measured(
    call: str,
    values: Mapping[str, Tensor],
    how: How,
    nonfinite: str,
    norm_of: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients that may be overwritten and their norms, by the policy for what is not finite ("zero", "raise")."""
    out = how.own(values.values())
    if nonfinite == "zero":
        zero_entries(out)
    norms = [norm_of(value) for value in out]
    if nonfinite == "raise":
        check_finite(call, dict(zip(values, norms, strict=True)))
    return out, norms


def of_norms(norms: Sequence[Tensor]) -> Tensor:
    """The norm of all of what these are the norms of."""
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    together = torch.stack([norm.to(norms[0].device) for norm in norms])
    return row_norms({"": together[None]})[0]


def unit_norms(value: Tensor) -> Tensor:
    """Of each output unit, the first dimension of a matrix or kernel, `[units, 1, ...]`; a vector or scalar is one."""
    rows = value if value.dim() > 1 else value.reshape(1, -1)
    norms = row_norms({"": rows}).double()
    return norms.reshape(-1, *[1] * (value.dim() - 1)) if value.dim() > 1 else norms.reshape(())


def shrinking(norm: Tensor, limit: float | Tensor, eps: float = 0.0) -> Tensor:
    """`min(1, C / (n + eps))`; 1 where n is not finite. Of float64 norms, in float64."""
    length = norm + eps
    changed = (length > limit) & norm.isfinite()
    return torch.where(changed, limit / torch.where(changed, length, 1.0), 1.0)


def multiply(values: Sequence[Tensor], factor: Tensor) -> None:
    """Every entry times one number, in place, in the tensor's own dtype."""
    if values and not levels() and all(value.device == factor.device for value in values):
        torch._foreach_mul_(list(values), factor)
    else:
        for value in values:
            value.mul_(factor.to(value.device))


def all_finite(values: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether every entry is, as a 0-dim tensor on this device: one pass, nothing stored."""
    norms = [_length(value) for value in values if value.numel()]
    if not norms:
        return torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([norm.isfinite().to(device) for norm in norms]).all()


def zero_entries(values: Iterable[Tensor]) -> None:
    """Entries that are inf or NaN become 0, in place."""
    for value in values:
        value.nan_to_num_(0.0, 0.0, 0.0)


def zero_unless(kept: Tensor, values: Iterable[Tensor]) -> None:
    """All entries become 0 unless `kept`, in place and without asking what it is."""
    for value in values:
        value.masked_fill_(~kept.to(value.device), 0.0)


def check_finite(call: str, norms: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a norm is not finite: the one host synchronisation of `nonfinite="raise"`."""
    if not norms:
        return
    device = next(iter(norms.values())).device
    if bool(torch.stack([norm.isfinite().all().to(device) for norm in norms.values()]).all()):
        return
    names = ", ".join(f"'{name}'" for name, norm in norms.items() if not bool(norm.isfinite().all()))
    raise ValueError(
        message(
            call,
            got=f"a gradient whose norm is not finite in {names}",
            expected="finite norms",
            do="Pass nonfinite='skip' for a step of zeros, 'zero' for zeros in place of such entries, or 'keep'.",
        )
    )


def _length(value: Tensor) -> Tensor:
    """A norm that is finite if all entries are: the Euclidean one is quicker, where float64 holds all squares."""
    if value.dtype != torch.float64:
        return parameter_norm(value)
    largest: Tensor = torch.linalg.vector_norm(value, torch.inf)
    return largest
