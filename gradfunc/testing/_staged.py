"""What laws of transformations are asked of: a stage, what it takes, parameters; at any precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._engines import Block, KeptSource
from .._errors import kind_of, message
from .._factors import Gradients, from_rows
from .._per_sample import PerSampleGrads
from .._per_sample._chunks import Chunks
from .._per_sample._scales import Scales
from .._transform import Transformation
from .._transform._chain import name_of, places
from .._transform._stage import AnyStage
from .._tree import Tensors, cast
from ._purity import flags_now

Outcome = PerSampleGrads | Tensors | None
MOST = 64  # updates that a stage may wait before it gives something


def value_of(gradients: Gradients, losses: Tensor, weights: Tensor, shapes: Tensors) -> PerSampleGrads:
    """Rows that no loss made, kept; `shapes` has a tensor of each parameter's shape and type."""
    unused = torch.tensor([[not gradient.factors for gradient in gradients.values()]] * len(losses))
    block = Block(gradients, losses, weights, unused.reshape(len(losses), len(gradients)))
    return PerSampleGrads(
        names=tuple(gradients),
        batch_size=len(losses),
        engine="factored",
        _losses=losses,
        _weights=weights,
        _aux=None,
        _source=KeptSource(block, None),
        _shapes=shapes,
        _scales=Scales(),
        _chunks=Chunks.choose(None, shapes, len(losses), whole=True),
        _reason="synthetic",
        _uses=dict.fromkeys(gradients, ()),
        _slow=set(),
        _watched=(),
    )


def of_rows(rows: Tensors, losses: Tensor, weights: Tensor) -> PerSampleGrads:
    """Rows as they are, `{name: [B, *shape]}`."""
    shapes = {name: value.new_zeros(value.shape[1:]) for name, value in rows.items()}
    return value_of(from_rows(rows), losses, weights, shapes)


def content(out: Outcome) -> dict[str, Any]:
    """All that an output says, as tensors."""
    if out is None:
        return {}
    if isinstance(out, PerSampleGrads):
        return {"rows": out.materialize(), "losses": out.losses, "weights": out.weights}
    return dict(out)


@dataclass(frozen=True, eq=False)
class Staged:
    """A transformation and what it is given."""

    call: str
    transformation: Transformation[Any, Any]
    grads: PerSampleGrads | Tensors
    params: Tensors
    flags: dict[str, Any] = field(default_factory=flags_now)  # before the first update

    @classmethod
    def of(cls, call: str, transformation: Any, grads: Any, params: Any, *, any_place: bool = False) -> Staged:
        """Read the call; with `any_place`, rows may be for a stage that takes gradients.

        Raises:
            TypeError: no object with init and update, no gradients, not those that it says it takes, no parameters.
            ValueError: gradients of parameters that are not there, or of other shapes.
        """
        check_transformation(call, transformation)
        tensors = isinstance(grads, Mapping) and all(isinstance(value, Tensor) for value in grads.values())
        if not isinstance(grads, PerSampleGrads) and not tensors:
            expected = "per-sample gradients, or gradients {name: tensor}"
            raise TypeError(message(call, got=f"{kind_of(grads)} as grads", expected=expected))
        rows = isinstance(grads, PerSampleGrads)
        if not any_place and not (takes_rows if rows else takes_gradients)(transformation):
            do = "Pass g.mean()." if rows else "Pass the value of gf.per_sample_grads."
            got = f"{kind_of(grads)} for {name_of(transformation)}"
            expected = "gradients {name: tensor}" if rows else "per-sample gradients"
            raise TypeError(message(call, got=got, expected=f"{expected}, which it takes", do=do))
        if not isinstance(params, Mapping) or not all(isinstance(value, Tensor) for value in params.values()):
            raise TypeError(message(call, got=f"{kind_of(params)} as params", expected="a dict {name: tensor}"))
        shapes = grads._shapes if isinstance(grads, PerSampleGrads) else grads
        for name, like in shapes.items():
            if name not in params or params[name].shape != like.shape:
                came = tuple(params[name].shape) if name in params else "no parameter"
                got, expected = f"gradients of '{name}' {tuple(like.shape)}, and {came}", "the parameter's own shape"
                raise ValueError(message(call, got=got, expected=expected))
        return cls(call, transformation, grads if isinstance(grads, PerSampleGrads) else dict(grads), dict(params))

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest of the gradients."""
        shapes = self.grads._shapes if isinstance(self.grads, PerSampleGrads) else self.grads
        floating = [value.dtype for value in shapes.values()] or [torch.get_default_dtype()]
        return max(floating, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def device(self) -> str:
        """The type of device."""
        some = self.grads.losses if isinstance(self.grads, PerSampleGrads) else next(iter(self.grads.values()), None)
        return "cpu" if some is None else some.device.type

    @property
    def value(self) -> PerSampleGrads:
        """The rows, where these are what is given."""
        assert isinstance(self.grads, PerSampleGrads)
        return self.grads

    def to(self, dtype: torch.dtype | None) -> Staged:
        """Gradients and parameters cast; None for as they are."""
        if dtype is None:
            return self
        g = self.grads
        if isinstance(g, PerSampleGrads):
            g = of_rows(*cast((g.materialize(), g.losses, g.weights), dtype))
        else:
            g = cast(g, dtype)
        return dataclasses.replace(self, grads=g, params=cast(self.params, dtype))

    def of_others(self, fn: Callable[[Tensor], Tensor]) -> PerSampleGrads | Tensors:
        """Gradients whose every entry went through a function of entries."""
        if isinstance(self.grads, PerSampleGrads):
            rows = {name: fn(value) for name, value in self.grads.materialize().items()}
            return of_rows(rows, self.grads.losses, self.grads.weights)
        return {name: fn(value) for name, value in self.grads.items()}

    def update(self, grads: Any, state: Any) -> tuple[Outcome, Any]:
        """One update.

        Raises:
            AssertionError: what comes is no pair of an output and a state.
        """
        given = self.transformation.update(grads, state, self.params)
        if not isinstance(given, tuple) or len(given) != 2:
            raise AssertionError(f"update gives {kind_of(given)}, not a pair (output, state)")
        out, state = given
        if out is not None and not isinstance(out, (PerSampleGrads, Mapping)):
            raise AssertionError(f"update gives {kind_of(out)}, not per-sample gradients, a dict or None")
        return (dict(out) if isinstance(out, Mapping) else out), state

    def given(self, grads: Any, state: Any, then: Any = None) -> tuple[Outcome, Any]:
        """The first output that is not None, and the state then: of these gradients, and then of others or the same."""
        out = None
        for k in range(MOST):
            out, state = self.update(grads if k == 0 or then is None else then, state)
            if out is not None:
                return out, state
        raise AssertionError(f"update has given None {MOST} times")

    def first(self, grads: Any = None) -> Outcome:
        """The first output from the first state."""
        return self.given(self.grads if grads is None else grads, self.transformation.init(self.params))[0]


def takes_rows(stage: Transformation[Any, Any]) -> bool:
    """Whether a stage takes per-sample gradients, or does not say what it takes."""
    if isinstance(stage, AnyStage) and stage.transparent:
        return PerSampleGrads in stage.acts_on
    return places(stage)[0] in (None, PerSampleGrads)


def takes_gradients(stage: Transformation[Any, Any]) -> bool:
    """Whether a stage takes gradients or updates, or does not say what it takes."""
    return places(stage)[0] is not PerSampleGrads


def check_transformation(call: str, transformation: Any) -> None:
    """Raise TypeError unless this is an object with two methods."""
    if isinstance(transformation, type) or not isinstance(transformation, Transformation):
        got = f"the class {transformation.__name__}" if isinstance(transformation, type) else kind_of(transformation)
        expected = "an object with init(params) and update(grads, state, params)"
        raise TypeError(message(call, got=got, expected=expected))
