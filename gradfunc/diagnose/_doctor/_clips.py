"""Probes of clips: in the user's own step, and by what a chain said at earlier steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..._tree import Tensors, dot, norm, scale, subtract
from . import _limits
from ._case import Case
from ._finding import Finding, NotRun
from ._trial import enlarged


def loose(case: Case, seen: Tensors) -> Iterator[Finding]:
    """A clip whose bound is far above the gradient."""
    times = _limits.ENLARGED
    larger = enlarged(case, times) if norm(seen) else None
    if larger is None or not math.isfinite(norm(larger)) or norm(larger) > times / 2 * norm(seen):
        return  # what the optimiser sees grows with the gradient: nothing clips, or beyond any number
    whole = multiple(larger, seen) is not None
    bound, here = norm(larger), norm(seen)
    if not whole:
        bound, here = largest(larger), largest(seen)
        clipped = {name: (times * value).clamp(-bound, bound) for name, value in seen.items()}
        if norm(subtract(clipped, larger)) > _limits.SAME * norm(larger):
            return
    if bound > _limits.LOOSE * here:
        what = "norm" if whole else "largest entry"
        text = f"gradients {times:.0f} times as large are clipped to a {what} of {bound:.3g}; now it is {here:.3g}: "
        text += f"{bound / here:.3g} times below, {_limits.LOOSE:g} is in use"
        name = "norm" if whole else "value"
        fix = f"torch.nn.utils.clip_grad_{name}_(model.parameters(), {10 * here:.1g})  # or no clip"
        yield Finding("clips_never", "note", text, fix, "likely")


def said(case: Case) -> Iterator[Finding]:
    """What the clips of a chain did at every step of which the user has the report."""
    if not case.reports:
        raise NotRun("no reports of a chain were given")
    shares: dict[str, list[float]] = {}
    factors: dict[str, list[float]] = {}
    for report in case.reports:
        for stage, facts in report.stages:
            if "clipped" in facts:
                shares.setdefault(stage, []).append(float(facts["clipped"]))
            for fact in ("factor", "factor_max"):
                if fact in facts:
                    factors.setdefault(stage, []).append(float(facts[fact]))
    if not shares:
        raise NotRun("no stage of the chain clips")
    for stage, share in shares.items():
        if len(share) < _limits.CLIPS:
            raise NotRun(f"fewer than {_limits.CLIPS} reports")
        if max(share) == 0:
            text = f"0 gradients were clipped in {len(share)} steps"
            yield Finding("clips_never", "note", text, f"# gf.{stage} with a smaller bound, or none", "possible", stage)
        elif min(share) == 1 and max(factors.get(stage, [1.0])) < 1 / _limits.SIZE:
            text = f"all gradients were clipped in {len(share)} steps, to {max(factors[stage]):.2g} of themselves or "
            text += f"less, below {1 / _limits.SIZE:g}"
            fix = f"# gf.{stage} with a larger bound; it makes the rate that of a normalised gradient"
            yield Finding("clips_always", "warning", text, fix, "likely", stage)


def late(seen: Tensors, after: Tensors) -> Iterator[Finding]:
    """A clip that comes after the optimiser's step."""
    if not norm(after):
        return
    c, bound = multiple(after, seen), largest(after)
    whole = c is not None and c < 1 - _limits.SAME
    by_value = {name: value.clamp(-bound, bound) for name, value in seen.items()}
    entries = c is None and norm(subtract(by_value, after)) <= _limits.SAME * norm(after)
    if whole or entries:
        text = f"the optimiser's step sees a gradient of norm {norm(seen):.3g}; when yours returns it is clipped to "
        text += f"{norm(after):.3g}"
        fix = (
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), {norm(after):.2g}); optimizer.step()  # in this order"
        )
        yield Finding("clips_never", "warning", text, fix, "certain")


def multiple(a: Tensors, b: Tensors, same: float = _limits.SAME) -> float | None:
    """c where a = c b to a share of it; None where it is no multiple."""
    if not norm(b) or not norm(a):
        return None
    c = dot(a, b) / dot(b, b)
    return c if norm(subtract(a, scale(b, c))) <= same * norm(a) else None


def largest(gradients: Tensors) -> float:
    """Of all entries."""
    return max(float(value.abs().max()) for value in gradients.values() if value.numel())
