"""Gradients that are not finite: the whole step left out, or the entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._errors import message
from ..._tree import Tensors
from .._chain import BatchStage
from .._guarantee import SAMPLES, Guarantee, times
from .._protocol import Grads, State
from .._stage import How, check_grads, gathered
from ._norms import all_finite, zero_entries, zero_unless


@dataclass(frozen=True, repr=False)
class SkipNonfinite(BatchStage):
    """Made by `gf.skip_nonfinite`, which has the meanings."""

    max_consecutive: int | None
    name = "skip_nonfinite"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """Of finite gradients it is the identity, and what a clip has bounded is finite."""
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """How many steps were skipped, and how many since the last that was not."""
        some = next(iter(params.values()), None)
        zero = torch.zeros((), dtype=torch.int64, device=None if some is None else some.device)
        return {"skipped": zero, "consecutive": zero.clone()}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """All of it, or zeros."""
        values = check_grads(self, grads)
        finite = all_finite((value.detach() for value in values.values()), state["skipped"].device)
        out = how.own(values.values())
        zero_unless(finite, out)
        skipped = state["skipped"] + (~finite).long()
        consecutive = torch.where(finite, 0, state["consecutive"] + 1)
        if self.max_consecutive is not None and int(consecutive) > self.max_consecutive:
            names = [name for name, value in values.items() if not bool(value.isfinite().all())]
            raise RuntimeError(
                message(
                    f"{self!r}.update(grads, state)",
                    got=f"{int(consecutive)} steps in a row whose gradients are not finite, this one in {names}",
                    expected=f"at most {self.max_consecutive}",
                    do="Lower the learning rate or clip; gf.testing.certify shows whether the gradients are right.",
                )
            )
        how.say(self.name, lambda: {"skipped": skipped, "nonfinite": (~finite).double()})
        return gathered(values, out), {"skipped": skipped, "consecutive": consecutive}

    def __repr__(self) -> str:
        return f"skip_nonfinite({'' if self.max_consecutive is None else f'max_consecutive={self.max_consecutive}'})"


def skip_nonfinite(max_consecutive: int | None = None) -> SkipNonfinite:
    """A gradient that is not finite in some entry becomes 0 in all: a stage on gradients.

    What is behind sees a gradient of 0: momentum and weight decay still act, and counts go on. The number of skipped
    steps is in the state, in tensors, and in the report as `skipped`; the device is never asked.

    | gradient                  | becomes                 | counts                               |
    |---------------------------|-------------------------|--------------------------------------|
    | finite                    | itself, bit by bit      | `consecutive` becomes 0              |
    | inf or NaN in some entry  | 0 for all parameters    | `skipped` and `consecutive` up by 1  |
    | no entries                | itself                  | as finite                            |

    Args:
        max_consecutive: raise once more steps than this were skipped in a row, which asks the device once a step; None
            for never.

    Raises:
        TypeError, ValueError: `max_consecutive` is no integer >= 0.
        RuntimeError: in an update, more skipped steps in a row than that.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.skip_nonfinite()
        >>> g = {"w": torch.tensor([1.0, torch.inf]), "b": torch.tensor([2.0])}
        >>> out, state = stage.update(g, stage.init(g))
        >>> out, int(state["skipped"])
        ({'w': tensor([0., 0.]), 'b': tensor([0.])}, 1)
    """
    call = "gf.skip_nonfinite(max_consecutive)"
    if max_consecutive is not None:
        if not isinstance(max_consecutive, int) or isinstance(max_consecutive, bool):
            raise TypeError(message(call, got=f"max_consecutive={max_consecutive!r}", expected="an integer or None"))
        if max_consecutive < 0:
            raise ValueError(message(call, got=f"max_consecutive={max_consecutive!r}", expected="an integer >= 0"))
    return SkipNonfinite(max_consecutive)


@dataclass(frozen=True, repr=False)
class ZeroNonfinite(BatchStage):
    """Made by `gf.zero_nonfinite`."""

    name = "zero_nonfinite"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """Of finite gradients it is the identity, and what a clip has bounded is finite."""
        return times(before, 1.0)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Entry by entry."""
        values = check_grads(self, grads)
        if how.said is not None:
            odd = [(~value.detach().isfinite()).sum() for value in values.values()]
            how.say(self.name, lambda: {"nonfinite": _total(odd)})
        out = how.own(values.values())
        zero_entries(out)
        return gathered(values, out), state

    def __repr__(self) -> str:
        return "zero_nonfinite()"


def zero_nonfinite() -> ZeroNonfinite:
    """Entries that are inf or NaN become 0, all others stay: a stage on gradients.

    The direction of such a step means little; `gf.skip_nonfinite` leaves it out as a whole. The report has their number
    as `nonfinite`.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.zero_nonfinite().update({"w": torch.tensor([1.0, torch.inf, torch.nan])}, ())[0]
        {'w': tensor([1., 0., 0.])}
    """
    return ZeroNonfinite()


def _total(counts: list[Tensor]) -> Tensor | float:
    """On the first one's device, which is not asked."""
    return torch.stack([count.to(counts[0].device) for count in counts]).sum() if counts else 0.0
