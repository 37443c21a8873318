"""Cheap checks for every step of a training, and the deep look where one of them fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import POSITIVE, check_number, kind_of, message
from .._stateless import PureModel, Stateless, stateless
from .._tree import Tensors, wide
from ._nonfinite import NonfiniteReport, find_nonfinite
from ._step import step_report

CALL = "gf.diagnose.watch(model, criterion)"


@dataclass(frozen=True)
class Watcher:
    """Looks at every step; see `gf.diagnose.watch`. It keeps nothing from one step to the next.

    Attributes:
        model: to look deeper with, at the parameters of the step; None for no deep look.
        criterion: likewise.
        largest: update / weight (root mean squares over all parameters) above which a step is a fault.

    Example:
        >>> import torch, gradfunc as gf
        >>> check = gf.diagnose.watch(torch.nn.Linear(2, 1), gf.whole(lambda model, x: model(x).log().mean()))
        >>> type(check).__name__
        'Watcher'
    """

    model: Stateless | None
    criterion: Any
    largest: float

    def __call__(self, snapshot: Any) -> str | None:
        """A callback for `gf.train.fit(callbacks=[...])`: None, or the reason to stop. One wait for the device.

        Args:
            snapshot: a `gf.train.Snapshot`, whose loss takes `(*inputs, target)` or a mapping with a "target".
        """
        pairs = [(value, snapshot.next_params[name]) for name, value in snapshot.params.items()]
        weight, update = _lengths(pairs)
        loss = float(snapshot.loss)
        if not all(map(_is_finite, (loss, weight, update))):
            found = self._deep(snapshot.params, self._batch(snapshot))
            if found is not None and not found.ok:
                return found.line
            if not _is_finite(loss):
                return "a loss is not finite"
            broken = [name for name, value in snapshot.next_params.items() if not bool(value.isfinite().all())]
            if broken:
                return f"an update is not finite; parameters {', '.join(broken[:8])}"
        if weight and update > self.largest * weight:
            return f"an update of {update / weight:.3g} times the weights"
        return None

    def capture(self, snapshot: Any) -> dict[str, float]:
        """A capture for `gf.train.fit(capture={...})`: update / weight of each layer, and the share that moved."""
        moved = step_report(snapshot.params, snapshot.next_params)
        entries = sum(layer.entries for layer in moved.layers)
        share = sum(layer.moved * layer.entries for layer in moved.layers) / max(entries, 1)
        ratios = {f"ratio/{layer.layer}": layer.ratio or 0.0 for layer in moved.layers}
        return {**ratios, "moved": share}

    def step(
        self, loss: Tensor, batch: Any = None, grads: Mapping[str, Tensor | None] | None = None
    ) -> NonfiniteReport | None:
        """For a loop of your own, between the backward pass and the step: None, or what was found.

        Args:
            loss: of the batch.
            batch: `(*inputs, target)` or a mapping, for the deep look.
            grads: the gradients by name, where you want them checked: `.grad` is not read here.

        Raises:
            TypeError: a loss that is no tensor, gradients without names.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(message("check.step(loss)", got=kind_of(loss), expected="the loss, a tensor"))
        if grads is not None and not isinstance(grads, Mapping):
            raise TypeError(
                message("check.step(loss, batch, grads)", got=kind_of(grads), expected="{name: gradient}, or None")
            )
        params = {} if self.model is None else self.model.params
        given = {name: grad for name, grad in (grads or {}).items() if grad is not None}
        sums = [_sum(value) for value in (loss, *params.values(), *given.values())]
        if all(map(_is_finite, torch.stack([value.to(loss.device) for value in sums]).tolist())):
            return None
        bad = tuple(name for name, grad in given.items() if not bool(grad.isfinite().all()))
        weights = any(not bool(value.isfinite().all()) for value in params.values())
        what = "gradient" if bool(loss.isfinite().all()) else "loss"
        if what == "gradient" and not bad and not weights:
            return None  # a sum overflowed, no entry did
        found = None if batch is None else self._deep(params, batch)
        if found is not None and not found.ok:
            return found
        dtype = str(loss.dtype).removeprefix("torch.")
        return NonfiniteReport(0, dtype, what=what, alone=False, parameters=bad[:8])

    def _deep(self, params: Tensors, batch: Any) -> NonfiniteReport | None:
        if self.model is None or self.criterion is None:
            return None
        return find_nonfinite(dataclasses.replace(self.model, params=dict(params)), self.criterion, batch)

    def _batch(self, snapshot: Any) -> Any:
        if snapshot.kwargs:
            return snapshot.kwargs
        return snapshot.args if len(snapshot.args) > 1 else snapshot.args[0]


def watch(
    model: nn.Module | PureModel | Stateless | None = None, criterion: Any = None, *, largest_ratio: float = 1.0
) -> Watcher:
    """Cheap checks for every step: finite loss, gradients and parameters, and no update larger than the weights.

    What it gives is a callback for `gf.train.fit`, with a `capture` of update / weight, and `step(loss, batch, grads)`
    for a loop of your own. A check reads every number once and waits for the device once. Where one fails, the model is
    looked at with `gf.diagnose.find_nonfinite`. `gf.train.fit` itself stops before what is not finite, unless it is
    told `on_nonfinite="ignore"`.

    Args:
        model: for the deep look; its parameters are those of the moment. None for none.
        criterion: likewise, as in `find_nonfinite`.
        largest_ratio: the largest update / weight (root mean squares over all parameters) of a step in `fit`. Above 1
            nothing is left of the weights there were.

    Raises:
        TypeError: a model of another form.
        ValueError: `largest_ratio` not above 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> check = gf.diagnose.watch(model, gf.whole(lambda model, x: model(x).abs().log().mean()))
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
        >>> found = check.step(model(x).abs().log().mean(), x)
        >>> found.samples, found.pattern
        ((1,), 'log of 0')
    """
    check_number(CALL, "largest_ratio", largest_ratio, POSITIVE)
    return Watcher(None if model is None else stateless(model), criterion, float(largest_ratio))


def _sum(value: Tensor) -> Tensor:
    """NaN or inf where an entry is; it may overflow besides."""
    value = value.detach()
    value = value._values() if value.is_sparse else value
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return value.sum(dtype=wide(value.dtype)).to(torch.float64)


def _lengths(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Norms of all weights before a step, and of what it added: one wait for the device."""
    if not pairs:
        return 0.0, 0.0
    device = pairs[0][0].device
    rows = [torch.stack([_square(before), _square(after - before)]).to(device) for before, after in pairs]
    weight, update = torch.stack(rows).sum(0).sqrt().tolist()
    return weight, update


def _square(value: Tensor) -> Tensor:
    value = value.detach().abs()
    return value.to(wide(value.dtype)).square().sum(dtype=torch.float64)


def _is_finite(value: float) -> bool:
    return value - value == 0
