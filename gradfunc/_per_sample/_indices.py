"""Reading what users pass to name samples (`[b]` positions) and to weigh them (`[B]` coefficients)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._errors import kind_of, message
from .._swap import levels
from ._live import readable

RESCALED = "g.rescaled(c)"


def indices(call: str, index: Any, size: int) -> Tensor:
    """Positions `[b]` among `size` samples, on the CPU.

    Raises:
        TypeError: no sequence of ints, mask or slice.
        IndexError: a position that is not there, or a mask of another length.
    """
    if isinstance(index, slice):
        return torch.tensor(range(size)[index], dtype=torch.int64)  # torch's own slices take no negative step
    given = _one_dimension(call, index, "positions, a mask or a slice")
    if given.dtype == torch.bool:
        if len(given) != size:
            raise IndexError(message(call, got=f"a mask of {len(given)} samples", expected=f"one of {size}"))
        return given.nonzero()[:, 0]
    if bad := [i for i in given.tolist() if not -size <= i < size]:
        raise IndexError(message(call, got=f"position {bad[0]}", expected=f"one of a batch of {size} samples"))
    return torch.where(given < 0, given + size, given)


def sample_ids(call: str, index: Any, size: int) -> Tensor:
    """Ids of the samples, `[B]` integers of any value; their positions if `index` is None.

    Raises:
        TypeError: no sequence of ints.
        ValueError: not one for each sample.
    """
    if index is None:
        return torch.arange(size)
    ids = _one_dimension(call, index, "one integer a sample")
    if ids.dtype == torch.bool:
        raise TypeError(message(call, got="bools as index", expected="one integer a sample"))
    if len(ids) != size:
        raise ValueError(
            message(call, got=f"index of {len(ids)} samples", expected=f"one id for each of {size} samples")
        )
    return ids


def coefficients(call: str, c: Any, losses: Tensor, *, negative: bool = True) -> Tensor:
    """One finite number a sample, `[B]` in float64, where `losses` are; values that a vmap maps over go unseen.

    Raises:
        TypeError: `c` is not a tensor.
        ValueError: another shape; an entry that is not finite, or negative where that is not allowed.
    """
    if not isinstance(c, Tensor):
        raise TypeError(message(call, got=kind_of(c), expected=f"a tensor of shape [{len(losses)}]"))
    if c.shape != losses.shape or c.is_complex():
        raise ValueError(
            message(call, got=f"c of shape {tuple(c.shape)}", expected=f"one number a sample: [{len(losses)}]")
        )
    factors: Tensor = c.to(losses.device, torch.float64)
    bad = ~(factors.isfinite() if negative else factors.isfinite() & (factors >= 0))
    if not (levels() and not readable(bad)) and bool(bad.any()):
        i = int(bad.nonzero()[0])
        expected = "finite coefficients" if negative else "finite coefficients >= 0"
        raise ValueError(
            message(call, got=f"coefficient {float(factors[i].detach())} for sample {i}", expected=expected)
        )
    return factors


@dataclass(frozen=True)
class ByNorms:
    """A user's function of norms, `[b]`, and what it gives checked; of equal functions equal."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, norms: Tensor, given: Tensor) -> Tensor:
        """One finite number a row, `[b]` in float64; `given` is not for users.

        Raises:
            TypeError: it gives no tensor.
            ValueError: another shape, or an entry that is not finite.
        """
        c = self.function(norms)
        if not isinstance(c, Tensor):
            raise TypeError(message(RESCALED, got=f"a function that gives {kind_of(c)}", expected="a tensor"))
        if c.shape != norms.shape or c.is_complex():
            got = f"a function that gives shape {tuple(c.shape)} for norms of shape {tuple(norms.shape)}"
            raise ValueError(message(RESCALED, got=got, expected="one number a row"))
        factors = c.to(norms.device, torch.float64)
        bad = ~factors.isfinite()
        if not (levels() and not readable(bad)) and bool(bad.any()):
            i = int(bad.nonzero()[0])
            got = f"a function that gives {float(factors[i].detach())} for a norm of {float(norms[i].detach())}"
            do = "Say what it is there, as by torch.where, or leave such samples out by g.weighted(mask) first."
            raise ValueError(message(RESCALED, got=got, expected="finite coefficients", do=do))
        return factors


def _one_dimension(call: str, index: Any, expected: str) -> Tensor:
    if not isinstance(index, (Tensor, np.ndarray, list, tuple, range)):
        raise TypeError(message(call, got=kind_of(index), expected=expected))
    given = torch.as_tensor(list(index) if isinstance(index, (list, tuple, range)) else index).detach().cpu()
    if given.numel() == 0:
        given = given.long().reshape(-1)
    if given.dim() != 1 or given.is_floating_point() or given.is_complex():
        got = f"index of shape {tuple(given.shape)} and dtype {given.dtype}"
        raise TypeError(message(call, got=got, expected=f"{expected}, in one dimension"))
    return given.to(torch.bool if given.dtype == torch.bool else torch.int64)
