"""What must hold between the answers of per-sample gradients, whatever engine gave them.

Every check compares two routes to one number and gives how far they are apart, on which scale, and where it is worst.
Whether a difference is rounding is told by precision (`verdict`).

(i)   One backward pass of `sum r_i loss_i`, r random, is `weighted_sum(r)`. Independent r catch what a plain sum does
      not: rows that are permuted, or each of which holds the total of the batch.
(ii)  Norms and Gram have code of their own: `r' gram r = |weighted_sum(r)|^2`, the diagonal of the Gram is the norms
      squared, and `|row i|` is `norms[i]` for a few random i.
(iii) So have `dot` and the rows themselves: on a random block, `dot(v)` is the rows times v, and the rows weighted by r
      add up to `weighted_sum(r)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ._rounding import is_rounding
from ._tree import Tensors, norm, row_norms, row_sum

WeightedGrad = Callable[[Tensor], Tensors]

CHECKS: dict[str, str] = {
    "weighted sum": "one backward pass of sum r_i loss_i, and weighted_sum(r)",
    "gram": "r' gram r, and |weighted_sum(r)|^2",
    "diagonal": "the diagonal of gram, and norms^2",
    "norms": "norms[i], and the norm of row i, for random i",
    "dot": "dot(v), and rows times v, on a random block",
    "rows": "rows weighted by r, and weighted_sum(r), on a random block",
}


class Queries(Protocol):
    """What is asked of per-sample gradients."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""

    @property
    def batch_size(self) -> int:
        """B."""

    @property
    def losses(self) -> Tensor:
        """Numerators, `[B]`."""

    def norms(self) -> Tensor:
        """Norms of the rows, `[B]`."""

    def gram(self) -> Tensor:
        """Their inner products, `[B, B]`."""

    def dot(self, direction: Tensors) -> Tensor:
        """Inner products with a direction, `[B]`."""

    def weighted_sum(self, c: Tensor, *, wide: bool = False) -> Tensors:
        """Sum of `c[i]` times row i."""

    def select(self, index: list[int]) -> Queries:
        """Some of the samples."""

    def materialize(self) -> Tensors:
        """Every row."""


class Difference(NamedTuple):
    """How far two routes to one quantity are apart, where that is worst.

    Attributes:
        size: the largest difference, relative to its scale.
        scale: the error scale there.
        parameter: where it is, if it is in one parameter.
        sample: the sample, if it is in one.
    """

    size: float
    scale: float
    parameter: str | None = None
    sample: int | None = None

    @property
    def relative(self) -> float:
        """The difference in units of its scale; NaN for one without a size."""
        if self.size == 0:
            return 0.0
        return self.size / self.scale if self.scale else math.copysign(math.inf, 1.0)


def coefficients(like: Tensor, seed: int) -> Tensor:
    """Random r, one for each entry of `like` and of its dtype: independent signs, sizes within [1/2, 3/2]."""
    generator = torch.Generator().manual_seed(seed)
    size, sign = torch.rand(2, like.numel(), generator=generator, dtype=torch.float64)
    r: Tensor = ((size + 0.5) * torch.where(sign < 0.5, -1.0, 1.0)).to(like)
    return r


def weighted_sum(g: Queries, weighted_grad: WeightedGrad, r: Tensor) -> Difference:
    """(i): an extra backward pass against `g.weighted_sum(r)`."""
    return compare(g.weighted_sum(r), weighted_grad(r), sum_scale(g, r))


def gram(g: Queries, r: Tensor) -> Difference:
    """(ii): the Gram matrix against the square of a weighted sum."""
    r64 = r.double()
    products = g.gram()
    quadratic = float(r64 @ products.double() @ r64)
    square = norm(g.weighted_sum(r, wide=True)) ** 2
    scale = _finite(sum_scale(g, r) ** 2, square)
    # products of rows may overflow where the rows do not
    return Difference(_apart(quadratic, square), scale if scale < torch.finfo(products.dtype).max else math.inf)


def diagonal(g: Queries) -> Difference:
    """(ii): the diagonal of the Gram matrix against the squares of the norms."""
    squares = g.norms().double().square()
    own = g.gram().diagonal().double()
    return worst_sample(own, squares, torch.maximum(own.abs(), squares))


def norms(g: Queries, samples: Iterable[int]) -> Difference:
    """(ii): norms of some samples against those of their rows, each taken out by a coefficient of 1."""
    claimed, chosen = g.norms(), list(samples)
    true = claimed.new_tensor([norm(g.weighted_sum(one_hot(g, i), wide=True)) for i in chosen])
    found = worst_sample(claimed[chosen].double(), true.double(), true.double())
    return found if found.sample is None else found._replace(sample=chosen[found.sample])


def dot(g: Queries, rows: Tensors, block: list[int], v: Tensors) -> Difference:
    """(iii): `dot(v)` against the rows of a block."""
    parts = [value.double().reshape(len(value), -1) @ v[name].double().flatten() for name, value in rows.items()]
    exact = torch.stack(parts).sum(0)
    found = worst_sample(g.dot(v)[block].double(), exact, row_norms(_double(rows)) * norm(v))
    return found if found.sample is None else found._replace(sample=block[found.sample])


def block_sum(g: Queries, rows: Tensors, block: list[int], r: Tensor) -> Difference:
    """(iii): the rows of a block, weighted, against the weighted sum with 0 for all others."""
    inside = torch.zeros_like(r)
    inside[block] = r[block]
    return compare(g.weighted_sum(inside), row_sum(rows, r[block]), sum_scale(g, inside))


def certificate(g: Queries, weighted_grad: WeightedGrad, *, seed: int = 0, count: int = 3) -> dict[str, Difference]:
    """Every check, by its name in `CHECKS`; `count` samples are taken where some are enough."""
    r = coefficients(g.losses, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    some = sorted(torch.randperm(g.batch_size, generator=generator)[:count].tolist())
    rows = g.select(some).materialize()
    v = {
        name: coefficients(value[0], seed + 2 + i).reshape(value[0].shape)
        for i, (name, value) in enumerate(rows.items())
    }
    return {
        "weighted sum": weighted_sum(g, weighted_grad, r),
        "gram": gram(g, r),
        "diagonal": diagonal(g),
        "norms": norms(g, some),
        "dot": dot(g, rows, some, v),
        "rows": block_sum(g, rows, some, r),
    }


def verdict(asked: Difference, u: float, other: Difference | None, u_other: float | None) -> str:
    """ "exact", "rounding", "wrong" or "cannot tell".

    With two precisions that differ, `is_rounding` decides; a difference that shrinks with the roundoff although it is
    large on its scale cannot be told: the gradient is what cancellation left of larger numbers. With one precision,
    more than `sqrt(u)` of the scale, half of the digits, is wrong; less cannot be told. Nor can one that is not finite.
    """
    if asked.size == 0 and (other is None or other.size == 0):
        return "exact"
    if not math.isfinite(asked.scale) or (other is not None and not math.isfinite(other.scale)):
        return "cannot tell"
    if other is None or u_other is None or u == u_other:
        within = asked.size <= math.sqrt(u) * asked.scale  # False for NaN
        return "cannot tell" if within else "wrong"
    low, high = (asked, other) if u > u_other else (other, asked)
    rounding = is_rounding(
        low=low.size,
        high=high.size,
        scale_low=low.scale,
        scale_high=high.scale,
        u_low=max(u, u_other),
        u_high=min(u, u_other),
    )
    if rounding:
        return "rounding"
    shrinks = math.isfinite(low.size) and high.size <= low.size * math.sqrt(min(u, u_other) / max(u, u_other))
    return "cannot tell" if shrinks else "wrong"


# --- differences --------------------------------------------------------------------------------------------------


def compare(a: Tensors, b: Tensors, scale: float) -> Difference:
    """Two gradients on one scale: the worst parameter. A parameter that one of them lacks is NaN off."""
    sizes = {name: _largest(a[name], b[name]) if name in a and name in b else math.nan for name in {**b, **a}}
    name = max(sizes, key=lambda name: math.inf if math.isnan(sizes[name]) else sizes[name])
    return Difference(sizes[name], _finite(scale, norm(b)), name if sizes[name] else None)


def compare_rows(a: Tensors, b: Tensors) -> Difference:
    """Rows `{name: [B, *shape]}` on the norms of those of `b`: the worst sample, and the parameter in which it is."""
    sizes = torch.stack([(_gap(a[name], value)).reshape(len(value), -1).amax(1) for name, value in b.items()])
    found = worst_sample(sizes.amax(0), torch.zeros_like(sizes[0]), row_norms(_double(b)))
    if found.sample is None:
        return found
    column = torch.nan_to_num(sizes[:, found.sample], nan=math.inf)
    return found._replace(parameter=list(b)[int(column.argmax())])


def worst_sample(a: Tensor, b: Tensor, scale: Tensor) -> Difference:
    """Values of samples, each on its own scale."""
    if not len(a):
        return Difference(0.0, 0.0)
    gap, scale = _gap(a, b), scale.double()
    relative = torch.where(gap == 0, gap, gap / scale).nan_to_num(nan=math.inf)
    i = int(relative.argmax())
    return Difference(float(gap[i]), float(scale[i]), sample=i if gap[i] != 0 else None)


def one_hot(g: Queries, i: int) -> Tensor:
    """The coefficients that leave only sample i."""
    c = torch.zeros_like(g.losses)
    c[i] = 1
    return c


def sum_scale(g: Queries, c: Tensor) -> float:
    """The error scale of a weighted sum: `sum |c_i| |g_i|`, over the samples that are in it."""
    kept = c != 0
    return float((c[kept].double().abs() * g.norms()[kept].double()).sum())


def _largest(a: Tensor, b: Tensor) -> float:
    gap = _gap(a, b)
    return float(gap.max()) if gap.numel() else 0.0


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """`|a - b|` in float64, 0 where both are the same infinity or NaN."""
    a, b = a.double(), b.double()
    return torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(b), (a - b).abs())


def _apart(a: float, b: float) -> float:
    return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b)


def _finite(scale: float, otherwise: float) -> float:
    """Norms that are wrong must not hide what is measured on them."""
    return scale if math.isfinite(scale) else otherwise


def _double(rows: Tensors) -> Tensors:
    return {name: value.double() for name, value in rows.items()}
