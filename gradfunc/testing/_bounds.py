"""What a stage bounds: norms, and what one sample can move, held to what it says, with the rounding it may have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._per_sample import PerSampleGrads
from .._rounding import gamma, unit_roundoff
from .._transform import Guarantee, chain, clip_per_sample, mean
from .._transform import sum as sum_
from .._transform._guarantee import SAMPLES
from .._transform._protocol import guarantee_after
from .._tree import Tensors, norm, subtract, wide
from ._claims import Claim, norms, rows
from ._error_bounds import clip_factor
from ._staged import Staged, content, of_rows, takes_rows

MANY = 8  # samples that are left out, one after the other


def bounded(b: Staged, bound: float, per_unit_weight: bool) -> Iterator[Claim]:
    """No norm exceeds the bound by more than rounding may."""
    out = b.first()
    if isinstance(out, PerSampleGrads):
        none = out.materialize()
        sizes, entries = norms(none), sum(math.prod(value.shape[1:]) for value in none.values())
        limit = bound * (out.weights.double() if per_unit_weight else torch.ones_like(sizes))
    else:
        values = content(out)
        sizes, entries = torch.tensor([norm(values)]), sum(value.numel() for value in values.values())
        limit = torch.full_like(sizes, bound)
    _hold(sizes, limit, clip_factor(entries, b.dtype), entries, b.dtype, isinstance(out, PerSampleGrads))
    yield from ()


def _hold(sizes: Tensor, limit: Tensor, factor: float, entries: int, dtype: torch.dtype, samples: bool) -> None:
    info = torch.finfo(dtype)
    allowed = limit * (1 + factor) + math.sqrt(entries) * info.smallest_normal * info.eps
    within = sizes <= allowed  # False for NaN
    if bool(within.all()):
        return
    i = int((sizes / allowed).nan_to_num(nan=math.inf).masked_fill(within, -1).argmax())
    where = f"sample {i}: " if samples else ""
    norm_, most, over = float(sizes[i]), float(limit[i]), float(allowed[i] - limit[i])
    why = f"(1 + gamma_{2 * entries + 18})(1 + gamma_2) - 1 of it for {entries} entries"
    raise AssertionError(
        f"{where}a norm of {norm_:.17g}, {norm_ - most:.2e} over {most:.17g}; allowed {over:.2e}: {why}"
    )


# --- guarantees -----------------------------------------------------------------------------------------------------


def guaranteed_bounds_hold(b: Staged) -> Iterator[Claim]:
    """No row of the output is longer than is said."""
    for own, said in stages_of(b):
        if said.bound is not None and isinstance(own.first(), PerSampleGrads):
            yield from bounded(own, said.bound, said.per_unit_weight)


def guaranteed_rows_are_independent(b: Staged) -> Iterator[Claim]:
    """Row i is what it was with other samples beside it."""
    for own, said in stages_of(b):
        if said.per_sample_independent:
            yield from independent(own)


def guaranteed_sensitivity_holds(b: Staged) -> Iterator[Claim]:
    """One sample left out, or another one in its place, moves a reduction by no more than is said."""
    for own, said in stages_of(b):
        _moved(own, said)
    yield from ()


GUARANTEES = [guaranteed_bounds_hold, guaranteed_rows_are_independent, guaranteed_sensitivity_holds]


def stages_of(b: Staged) -> list[tuple[Staged, Guarantee]]:
    """The stage behind samples that may be anything, and behind a clip; what it guarantees there."""
    stage, limit = b.transformation, _middle(norms(b.value.materialize()))
    clip, n = clip_per_sample(limit), max(b.value.batch_size, 1)
    if not takes_rows(stage):
        every: list[Any] = [chain(clip, sum_(), stage), chain(clip, mean(denominator=float(n)), stage)]
    else:
        every = [stage, chain(clip, stage)]
        if isinstance(b.first(), PerSampleGrads):
            every += [chain(stage, sum_()), chain(clip, stage, sum_())]
    return [(dataclasses.replace(b, transformation=one), guarantee_after(SAMPLES, one)) for one in every]


def independent(b: Staged) -> Iterator[Claim]:
    """Some rows and their weights, with other samples beside them and alone."""
    g, n = b.value, b.value.batch_size
    none, state = g.materialize(), b.transformation.init(b.params)
    out, _ = b.given(g, state)
    if not isinstance(out, PerSampleGrads):
        return
    for i in some(n) if n > 1 else ():
        kept = torch.arange(n) == i
        others = {name: _other(value, kept) for name, value in none.items()}
        losses, weights = (torch.where(kept.to(v.device), v, v.flip(0) * 2 + 1) for v in (g.losses, g.weights))
        moved, _ = b.given(of_rows(others, losses, weights), state)
        assert isinstance(moved, PerSampleGrads)
        what = f"with other samples beside sample {i}, its"
        one, other = ({k: v[[i]] for k, v in each.materialize().items()} for each in (out, moved))
        yield from rows(f"{what} row", other, one)
        yield Claim(f"{what} weight", moved.weights[i], out.weights[i], out.weights[i].double().abs())


def _moved(b: Staged, said: Guarantee) -> None:
    """One sample left out, or another one in its place, moves a reduction by no more than is said.

    Of a stage that waits for several batches, a sample is in the first of them.
    """
    g, n = b.value, b.value.batch_size
    state = b.transformation.init(b.params)
    limits = said.sensitivity
    known = limits.add_remove is not None or limits.replace_one is not None
    counted = limits.over_n is not None and bool((g.weights == 1).all())
    if not n or not (known or counted):
        return
    none = g.materialize()
    whole = content(b.given(g, state)[0])
    for i in some(n):
        if limits.add_remove is not None and n > 1:
            rest = g.select(torch.arange(n) != i)
            _hold_moved(b, whole, content(b.given(rest, state, g)[0]), limits.add_remove, f"sample {i} left out", n)
        bounds = [limits.replace_one] if limits.replace_one is not None else []
        bounds += [limits.over_n / n] if counted and limits.over_n is not None else []
        for least in bounds:
            for what, changed in _replacements(none, i):
                moved = of_rows(changed, g.losses, g.weights)
                _hold_moved(b, whole, content(b.given(moved, state, g)[0]), least, f"sample {i} replaced by {what}", n)


def _replacements(none: Tensors, i: int) -> Iterator[tuple[str, Tensors]]:
    """Rows with another one in place of row i."""
    kept = torch.arange(len(next(iter(none.values())))) != i
    # a half type may have no room for a thousand of them
    top = max((float(value.detach().abs().max()) for value in none.values() if value.numel()), default=0.0)
    room = all(top * 1000 < torch.finfo(value.dtype).max for value in none.values())
    far = ("a thousand of the next", 1000.0) if room or not math.isfinite(top) else ("the next", 1.0)
    for what, factor in (("its opposite, three times", -3.0), ("0", 0.0), far):
        changed = {}
        for name, value in none.items():
            source = value if factor < 0 else value.roll(-1, 0)
            each = kept.to(value.device).reshape(-1, *[1] * (value.dim() - 1))
            changed[name] = torch.where(each, value, source * factor if factor else torch.zeros_like(value))
        yield what, changed


def _hold_moved(b: Staged, whole: Tensors, other: Tensors, limit: float, what: str, n: int) -> None:
    """Each row is within its own rounding of its bound, and n of them are added on either side."""
    entries = sum(value.numel() for value in whole.values())
    by = norm(subtract(whole, other))
    u = unit_roundoff(wide(b.dtype))
    k = n + 2 * entries + 18
    slack = 2 * gamma(k, u) * (n * limit + norm(whole)) + 2 * gamma(4, unit_roundoff(b.dtype)) * (
        norm(whole) + norm(other)
    )
    if not by <= limit + slack:  # also for NaN
        raise AssertionError(
            f"{what}: the output of {b.transformation} moves by {by:.17g}, {by - limit:.2e} over the guaranteed "
            f"{limit:.17g}; allowed {slack:.2e}: 2 gamma_{k} of {n} such rows and the output, and casts"
        )


def some(n: int) -> Iterable[int]:
    """Positions of at most `MANY` samples, the first and the last among them."""
    return sorted(set(torch.linspace(0, n - 1, min(n, MANY)).long().tolist()))


def _other(value: Tensor, kept: Tensor) -> Tensor:
    """Rows that have nothing to do with these but for those that are kept."""
    size = value.abs().max().nan_to_num() if value.numel() else value.new_zeros(())
    moved = value.roll(1, 0) / -2 + torch.where(size > 0, size / 2, torch.ones_like(size))
    return torch.where(kept.to(value.device).reshape(-1, *[1] * (value.dim() - 1)), value, moved)


def _middle(sizes: Tensor) -> float:
    """The median of the norms that are finite numbers > 0; 1 where there is none."""
    usable = sizes[(sizes > 0) & sizes.isfinite()]
    return float(usable.median()) if len(usable) else 1.0
