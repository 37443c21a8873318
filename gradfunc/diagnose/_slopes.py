"""Is the gradient the derivative? Central differences along random directions, and which layer is at fault.

Nothing here is a tolerance to be chosen. Differences at steps that shrink by 4 are extrapolated (Ridders, Accurate
computation of F'(x) and F'(x)F''(x), 1982), and say themselves how good they are: by how much the best entry of the
table differs from its neighbours, and by the noise of the function over the step (fourth differences of values
close together: More and Wild, Estimating computational noise, 2011). If the gradient is right it is off by that much,
if not by about the size of the slope; the line is the geometric mean of the two, as for rounding. A kink (ReLU at 0)
makes the two one-sided slopes differ however small the step: there it cannot be told.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._engines import gradients
from .._problem import Problem
from .._random import forked
from .._rounding import unit_roundoff
from .._stateless import Stateless, stateless
from .._tree import Tensors, dot, map_tensors, norm, tensors_of
from ..audit._case import Case, attempt, devices_of, run, value_of

STEPS = [2.0**-4 / 4**k for k in range(8)]  # 6e-2 to 4e-6 of the size of the parameters
DIRECTIONS = 3


@dataclass(frozen=True)
class Slope:
    """A derivative along one direction, as autograd claims it and as differences measure it.

    Attributes:
        claimed: by autograd.
        measured: by extrapolated central differences.
        uncertainty: of the measured one.
        verdict: "rounding" (they agree), "wrong" or "cannot tell".
    """

    claimed: float
    measured: float
    uncertainty: float
    verdict: str

    @property
    def scale(self) -> float:
        """The larger of the two."""
        return max(abs(self.claimed), abs(self.measured))


def slope(phi: Callable[[float], float | Tensor], claimed: float, size: float) -> Slope:
    """Compare a claimed derivative of `phi` at 0, in float64; slopes below half of the digits of `size` count as 0."""
    u = unit_roundoff(torch.float64)
    first = phi(0.0)
    here = float(first)
    ahead, behind = [float(phi(h)) for h in STEPS], [float(phi(-h)) for h in STEPS]
    if not all(map(math.isfinite, (here, claimed, *ahead, *behind))):
        return Slope(claimed, math.nan, math.nan, "cannot tell")
    central = [(a - b) / (2 * h) for a, b, h in zip(ahead, behind, STEPS, strict=True)]
    noise = _noise([float(phi(STEPS[-1] * j / 4)) for j in range(-3, 4)])
    if isinstance(first, Tensor) and first.dtype != torch.float64:
        # A model in float64 whose loss is float32 all the same: values so close together round to one.
        noise = max(noise, unit_roundoff(first.dtype) * abs(here))
    measured, uncertainty = _extrapolated(central, noise)
    found = Slope(claimed, measured, uncertainty, "rounding")
    off, scale = abs(measured - claimed), found.scale
    if off <= uncertainty or scale <= math.sqrt(u) * size:
        return found
    allowed = math.sqrt(uncertainty / scale) * scale
    if off <= allowed:
        return found if uncertainty <= math.sqrt(u) * scale else Slope(claimed, measured, uncertainty, "cannot tell")
    # One-sided slopes differ in proportion to the step, but at a kink they differ however small the step. Kinks of many
    # units may cancel in that difference, so its size is no bound on what they explain: where there is one, nothing is
    # claimed. (64 and 1 are the ratios to be told apart, the noise and the whole difference the sizes.)
    gaps = [abs(a - 2 * here + b) / h for a, b, h in zip(ahead, behind, STEPS, strict=True)]
    floor = max(noise, u * abs(here)) / STEPS[-1]
    kinked = gaps[-1] > gaps[-4] / 8 and gaps[-1] > math.sqrt(floor * off)
    # A kink between two steps spoils the table but not the smallest step: all of the last ones have to disagree.
    everywhere = min(abs(value - claimed) for value in central[-3:])
    told = "wrong" if everywhere > max(gaps[-1], allowed) and not kinked else "cannot tell"
    return Slope(claimed, measured, uncertainty, told)


def _extrapolated(central: list[float], noise: float) -> tuple[float, float]:
    """The entry of Ridders' table with the smallest error estimate, and that estimate."""
    best, error = central[-1], math.inf
    before: list[float] = []
    for value, step in zip(central, STEPS, strict=True):
        row = [value]
        for j, above in enumerate(before):
            row.append(row[j] + (row[j] - above) / (16.0 ** (j + 1) - 1))
            estimate = max(abs(row[j + 1] - row[j]), abs(row[j + 1] - above)) + noise / step
            if estimate < error:
                best, error = row[j + 1], estimate
        before = row
    return best, error


def _noise(values: list[float]) -> float:
    """The standard deviation of rounding in values that lie close together."""
    fourth = values
    for _ in range(4):
        fourth = [b - a for a, b in itertools.pairwise(fourth)]
    return math.sqrt(sum(value**2 for value in fourth) / len(fourth) / 70)  # 70 = 8! / 4!^2


# --- a whole model, group by group --------------------------------------------------------------------------------


def groups(problem: Problem) -> dict[str, list[str]]:
    """Parameters by the layer that holds them."""
    root = problem.model.module
    own = type(root).__name__ if root is not None else "the model"
    out: dict[str, list[str]] = {}
    for name in problem.model.params:
        out.setdefault(name.rpartition(".")[0] or own, []).append(name)
    return out


def judged(case: Case, gradient: Tensors, names: list[str], seed: int) -> Slope:
    """The derivative along some parameters, in the first direction in which it can be told."""
    params = case.problem.model.params
    for attempt_number in range(DIRECTIONS):
        generator = torch.Generator().manual_seed(seed * DIRECTIONS + attempt_number)
        v = _directions(case.problem.model, {name: params[name] for name in names}, generator)

        def phi(t: float, v: Tensors = v) -> Tensor:
            moved = {name: value + t * v[name] if name in v else value for name, value in params.items()}
            leaves = {name: value.detach().requires_grad_() for name, value in moved.items()}
            with torch.enable_grad(), forked(case.seed, 0, devices=devices_of(case.problem)):
                return value_of(run(case.problem, leaves)).detach().sum()

        found = slope(phi, dot({name: gradient[name] for name in names}, v), norm(gradient) * norm(v))
        if found.verdict != "cannot tell":
            break
    return found


def _directions(model: Stateless, at: Tensors, generator: torch.Generator) -> Tensors:
    """A direction for each tensor, but not along rows for padding: an embedding's gradient stops there by design."""
    v = {name: _direction(value, generator) for name, value in at.items()}
    for path, layer in model.module.named_modules() if model.module is not None else ():
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.padding_idx is not None:
            name = f"{path}.weight".lstrip(".")
            name = model.aliases.get(name, name)
            if name in v:
                v[name][layer.padding_idx] = 0
    return v


def _direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random, of the size of the tensor: steps are relative to it."""
    size = float(like.square().mean().sqrt()) if like.numel() else 0.0
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device) * (size or 1.0)


# --- which layer --------------------------------------------------------------------------------------------------


def culprits(problem: Problem, seed: int) -> Iterator[tuple[str, Slope]]:
    """Layers whose own backward pass is not the derivative of their own forward pass, the innermost ones."""
    if problem.model.module is None:
        return
    seen = _seen(problem, seed)
    guilty: list[str] = []
    for name, (layer, args, kwargs) in reversed(seen.items()):  # children come after their parents
        if any(other.startswith(f"{name}." if name else "") for other in guilty):
            continue
        found, _ = attempt(partial(_own_slope, layer, args, kwargs, seed))
        if found is not None and found.verdict == "wrong":
            guilty.append(name)
            yield f"{name} ({type(layer).__name__})".strip() if name else type(layer).__name__, found


def _seen(problem: Problem, seed: int) -> dict[str, tuple[nn.Module, Any, Any]]:
    """Every layer of a copy with the inputs of its first call, parents first."""
    module = copy.deepcopy(problem.model.module)
    assert module is not None
    module.to(next(iter(problem.model.params.values())).dtype)
    inputs: dict[str, tuple[Any, Any]] = {}

    def note(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.setdefault(name, map_tensors(lambda tensor: tensor.detach().clone(), (args, kwargs)))

    # on the copy made above: the user's module gets no hook
    handles = [
        layer.register_forward_pre_hook(partial(note, name), with_kwargs=True, prepend=True)
        for name, layer in module.named_modules()
    ]
    with torch.enable_grad(), forked(seed, 0, devices=devices_of(problem)):
        run(problem.on(module), {k: value.detach().requires_grad_() for k, value in problem.model.params.items()})
    for handle in handles:
        handle.remove()
    return {name: (layer, *inputs[name]) for name, layer in module.named_modules() if name in inputs}


def _own_slope(layer: nn.Module, args: Any, kwargs: Any, seed: int) -> Slope | None:
    """The derivative of a random functional of a layer's output along its inputs and parameters."""
    model = stateless(layer, batch_stats="batch")
    generator = torch.Generator().manual_seed(seed)
    floating = [tensor for tensor in tensors_of((args, kwargs)) if tensor.is_floating_point()]
    at = {**model.params, **{f" {i}": tensor for i, tensor in enumerate(floating)}}
    if not at:
        return None
    v = _directions(model, at, generator)
    weights: list[Tensor] = []

    def functional(values: Tensors) -> Tensor:
        given = iter([values[f" {i}"] for i in range(len(floating))])
        # A layer may write to its input, which must not be a leaf.
        a, k = map_tensors(lambda t: next(given).clone() if t.is_floating_point() else t.clone(), (args, kwargs))
        with torch.enable_grad(), forked(seed, 0, devices={value.device for value in values.values()}):
            out = model({name: values[name] for name in model.params}, *a, **k)
        outputs = [tensor for tensor in tensors_of(out) if tensor.is_floating_point()]
        if not weights:
            weights.extend(torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in outputs)
        return torch.stack([(w * t).sum() for w, t in zip(weights, outputs, strict=True)]).sum()

    def leaves(t: float) -> Tensors:
        return {name: (value + t * v[name]).detach().requires_grad_() for name, value in at.items()}

    here = leaves(0.0)
    found = {name: g for name, g in gradients(functional(here), here).items() if g is not None}
    claimed = dot(found, {name: v[name] for name in found})
    return slope(lambda t: functional(leaves(t)).detach(), claimed, norm(found) * norm(v))
