"""Gradients through time: of every sample's loss with respect to every state; and of the parameters, clipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._cotangent import clip_cotangent
from ..._transform import Grads, Transformation, clip_by_global_norm, clip_by_parameter_norm, clip_by_value
from ..._tree import Tensors, norm
from ._system import System
from ._tape import Tap, Tape

Hook = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Clip:
    """A limit: of entries ("value"), or of norms ("norm")."""

    kind: str
    limit: float


@dataclass(frozen=True)
class Clipped:
    """The gradient of the mean loss under one way to clip it.

    Attributes:
        how: "none", "after", "on parameters" or "on the state".
        norm: over all parameters.
        angle: to the gradient that is not clipped, in degrees.
        share: the part of the squared norm in the dominating direction; None where there is none to name.
        equals: whose gradient it has, bit by bit.
    """

    how: str
    norm: float
    angle: float
    share: float | None
    equals: str | None


def through_time(system: System) -> tuple[Tensor, list[Tensor]]:
    """`dL_i / dh_t` of every sample: their norms `[B, T + 1]` in float64, and the cotangents `[B, n]` themselves."""
    tape = Tape(lambda z: z if z.requires_grad else z.detach().requires_grad_())
    with torch.enable_grad():
        out = system.run({name: value.detach() for name, value in system.params.items()}, tape)
    assert out is not None  # a criterion was given
    found = torch.autograd.grad(out.numerator.sum(), tape.states, allow_unused=True, materialize_grads=True)
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in found], 1)
    return norms.cpu(), list(found)


def gradient(system: System, *, tap: Tap | None = None, hooks: dict[str, Hook] | None = None) -> Tensors:
    """Of the mean loss, with hooks on leaves of our own."""
    leaves = {name: value.detach().requires_grad_() for name, value in system.params.items()}
    for name, hook in (hooks or {}).items():
        leaves[name].register_hook(hook)
    with torch.enable_grad():
        out = system.run(leaves, Tape(tap))
        assert out is not None  # a criterion was given
        loss = out.numerator.sum() / out.weight.sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def clippings(system: System, clip: Clip, share: Callable[[Tensors], float] | None = None) -> tuple[Clipped, ...]:
    """None, after the backward pass, by hooks on parameters, on every state; what is not finite stays so."""
    limit, by_value = clip.limit, clip.kind == "value"
    plain = gradient(system)

    def own(g: Tensor) -> Tensor:
        stage = clip_by_value(limit) if by_value else clip_by_parameter_norm(limit, nonfinite="keep")
        grads = Grads({"g": g})
        return stage.update(grads, stage.init(grads))[0]["g"]

    def after(stage: Transformation[Grads, Grads]) -> Tensors:
        return stage.update(Grads(plain), stage.init(plain))[0]

    def tap(z: Tensor) -> Tensor:
        if by_value:
            return clip_cotangent(z, value=limit)
        return clip_cotangent(z, norm=limit, batch_dims=1)

    found = {"none": plain}
    if by_value:
        found["after"] = after(clip_by_value(limit))
    else:
        found["after"] = after(clip_by_global_norm(limit, nonfinite="keep"))
        found["after, each parameter"] = after(clip_by_parameter_norm(limit, nonfinite="keep"))
    found["on parameters"] = gradient(system, hooks=dict.fromkeys(system.params, own))
    found["on the state"] = gradient(system, tap=tap)
    rows: list[Clipped] = []
    for how, g in found.items():
        same = [other for other, h in found.items() if other != how and all(torch.equal(g[k], h[k]) for k in g)]
        first = next((row.how for row in rows if row.how in same), None)
        rows.append(Clipped(how, norm(g), angle(g, plain), None if share is None else share(g), first))
    return tuple(rows)


def angle(a: Tensors, b: Tensors) -> float:
    """In degrees; NaN if one of them is 0 or not finite."""
    if not all(0 < norm(x) < math.inf for x in (a, b)):
        return math.nan
    units = [{k: v.double() / norm(x) for k, v in x.items()} for x in (a, b)]
    # 2 atan2(|a - b|, |a + b|) of unit vectors is exact near 0 and 180 degrees, where acos loses half of the digits
    apart = norm({k: units[0][k] - units[1][k] for k in a})
    along = norm({k: units[0][k] + units[1][k] for k in a})
    return math.degrees(2 * math.atan2(apart, along))
