"""One step of a training, as capture functions and callbacks see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from .._per_sample import PerSampleGrads
from .._transform import Grads, StepReport
from .._tree import Tensors
from ._history import History


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One step: what went in, what came out. What is not at hand is computed when it is asked, as it was.

    Attributes:
        step: number of the update, from 0; `epoch` likewise.
        epoch_ends: whether this batch is the last of its epoch; `validation` is then there.
        args: the batch, as the loss takes it; `kwargs` likewise.
        index: `[B]`, which samples of the data these are; None for batches of a loader.
        params: before the update; `next_params` after it.
        state: of the chain, before the update; `next_state` after it.
        losses: numerators `[B]`, at `params`; `weights` `[B]`.
        loss: the batch's mean loss, a number.
        validation: `{"loss": ..., metric: ...}` at `next_params`; empty where none was computed.

    Example:
        >>> import torch, gradfunc as gf
        >>> def sharpest(snapshot):
        ...     return {"norm": snapshot.grads["w"].norm(), "largest": snapshot.g.norms().max()}
        >>> fit = gf.train.fit(lambda p, x: (p["w"] - x).square(), gf.mean() >> gf.sgd(0.1), {"w": torch.zeros(())},
        ...                    torch.tensor([1.0, 3.0]), capture={"rows": sharpest})
        >>> fit.history["rows/norm"], fit.history["rows/largest"]
        (array([4.], dtype=float32), array([6.], dtype=float32))
    """

    step: int
    epoch: int
    epoch_ends: bool
    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    index: Tensor | None = field(repr=False)
    params: Tensors = field(repr=False)
    next_params: Tensors = field(repr=False)
    state: Any = field(repr=False)
    next_state: Any = field(repr=False)
    losses: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    loss: float
    validation: Mapping[str, float]
    _history: Callable[[], History] = field(repr=False)
    _rows: Callable[[], PerSampleGrads] = field(repr=False)
    _report: Callable[[], StepReport] = field(repr=False)

    @cached_property
    def g(self) -> PerSampleGrads:
        """The gradients of the batch's samples at `params`, before any stage."""
        return self._rows()

    @cached_property
    def grads(self) -> Grads:
        """Their mean, before any stage; zeros where the total weight is 0."""
        return Grads(self.g.mean(on_zero_weight="zero"))

    @cached_property
    def report(self) -> StepReport:
        """What the stages of the chain said of this update."""
        return self._report()

    @cached_property
    def history(self) -> History:
        """All that was recorded so far, this step's losses and captures included."""
        return self._history()
