"""What gradfunc is measured against: one plain autograd call a sample, and the error scales of its quantities.

Nothing here uses gradfunc's own arithmetic. The scales: a gradient entry or a norm is compared on that sample's
whole gradient norm, `dot` on |g_i||v|, Gram on |g_i||g_j|, sums on sum |c_i||g_i|. "Relative" entry by entry would
mean nothing where the true value is 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

import gradfunc as gf

# float64 on the scales above, for every model here.
TOLERANCE = 1e-12


class Truth(NamedTuple):
    """Rows `{name: [B, *shape]}`, numerators `[B]`, weights `[B]`."""

    rows: dict[str, torch.Tensor]
    losses: torch.Tensor
    weights: torch.Tensor


def at(tree: Any, i: int) -> Any:
    """Sample i of a nested batch."""
    if isinstance(tree, torch.Tensor):
        return tree[i]
    if isinstance(tree, dict):
        return {key: at(value, i) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(at(value, i) for value in tree)
    return tree


def split(out: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerator and weight of what a loss returned."""
    if isinstance(out, gf.Weighted):
        return out.numerator, torch.as_tensor(out.weight, dtype=torch.float64, device=out.numerator.device)
    return out, torch.ones_like(out, dtype=torch.float64)


def truth(loss, params, size: int, args=(), kwargs=None) -> Truth:
    """One autograd call a sample."""
    rows = {name: [] for name in params}
    losses, weights = [], []
    for i in range(size):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        numerator, weight = split(loss(leaves, *at(tuple(args), i), **at(kwargs or {}, i)))
        _append(rows, numerator, leaves)
        losses.append(numerator.detach())
        weights.append(weight)
    return _stacked(rows, losses, weights, params)


def truth_batched(losses, params, args=()) -> Truth:
    """One autograd call a row of losses, the whole batch in place."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    numerators, weights = split(losses(leaves, *args))
    rows = {name: [] for name in params}
    for numerator in numerators:
        _append(rows, numerator, leaves)
    return _stacked(rows, list(numerators.detach()), list(weights), params)


def _append(rows, numerator, leaves) -> None:
    grads = [None] * len(leaves)
    if numerator.requires_grad:
        grads = torch.autograd.grad(numerator, list(leaves.values()), retain_graph=True, allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        rows[name].append(torch.zeros_like(leaf) if grad is None else grad)


def _stacked(rows, losses, weights, params) -> Truth:
    full = {k: torch.stack(v) if v else params[k].new_zeros((0, *params[k].shape)) for k, v in rows.items()}
    some = next(iter(params.values()))
    none = some.new_zeros(0)
    return Truth(full, torch.stack(losses) if losses else none, torch.stack(weights) if weights else none.double())


def flat(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """All entries of each row, `[B, P]`, in float64."""
    return torch.cat([v.double().reshape(len(v), math.prod(v.shape[1:])) for v in rows.values()], 1)


def close(
    got: torch.Tensor, want: torch.Tensor, scale: torch.Tensor | float, what: str, tolerance: float = TOLERANCE
) -> None:
    """Assert |got - want| <= tolerance * scale, entry by entry; a NaN is never close."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    scale = torch.as_tensor(scale, dtype=torch.float64, device=want.device)
    error = (got.double() - want.double()).abs()
    assert bool((error <= tolerance * scale).all()), f"{what}: {(error / scale.clamp_min(1e-300)).max():.2e} off"


def close_rows(
    got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], what: str = "rows", tolerance: float = TOLERANCE
) -> None:
    """Rows on the scale of each sample's whole gradient norm."""
    assert list(got) == list(want)
    norms = flat(want).norm(dim=1)
    for name, value in want.items():
        close(got[name], value, norms.reshape(-1, *[1] * (value.dim() - 1)), f"{what} of {name}", tolerance)


def close_sum(
    got: dict[str, torch.Tensor],
    c: torch.Tensor,
    rows: dict[str, torch.Tensor],
    what: str,
    tolerance: float = TOLERANCE,
) -> None:
    """`sum_i c_i g_i` on the scale `sum |c_i||g_i|`."""
    scale = (c.double().abs() * flat(rows).norm(dim=1)).sum()
    for name, value in rows.items():
        close(got[name], torch.tensordot(c.double(), value.double(), 1), scale, f"{what} of {name}", tolerance)


def check_queries(g: gf.PerSampleGrads, want: Truth, tolerance: float = TOLERANCE) -> None:
    """Every query of `g` against the oracle; `tolerance` is what a lower precision inside the loss leaves."""
    rows, size = want.rows, len(want.losses)
    whole, device = flat(rows), want.losses.device
    norms = whole.norm(dim=1)
    generator = torch.Generator().manual_seed(size)
    v = {k: torch.randn(r.shape[1:], dtype=torch.float64, generator=generator).to(device) for k, r in rows.items()}
    c = torch.randn(size, dtype=torch.float64, generator=generator).to(device)

    assert g.batch_size == size
    assert g.names == tuple(rows)
    assert not any(t.requires_grad for t in (g.losses, g.weights, *g.sum().values(), *g.materialize().values()))
    close(g.losses, want.losses, want.losses.abs() + 1, "losses", tolerance)
    close(g.weights, want.weights, want.weights, "weights", tolerance)
    close_rows(g.materialize(), rows, tolerance=tolerance)
    close(g.norms(), norms, norms, "norms", tolerance)
    for name, value in g.norms(per_parameter=True).items():
        close(value, flat({name: rows[name]}).norm(dim=1), norms, f"norms of {name}", tolerance)
    close(g.gram(), whole @ whole.T, norms[:, None] * norms, "gram", tolerance)
    for name, value in g.gram(per_parameter=True).items():
        own = flat({name: rows[name]})
        close(value, own @ own.T, norms[:, None] * norms, f"gram of {name}", tolerance)
    direction = torch.cat([value.flatten() for value in v.values()])
    close(g.dot(v), whole @ direction, norms * direction.norm(), "dot", tolerance)
    close_sum(g.sum(), torch.ones_like(c), rows, "sum", tolerance)
    close_sum(g.weighted_sum(c), c, rows, "weighted_sum", tolerance)
    total = want.weights.sum()
    if total > 0:
        close_sum(g.mean(), torch.ones_like(c) / total, rows, "mean", tolerance)
        close(g.mean_loss, want.losses.double().sum() / total, want.losses.abs().sum() / total, "mean_loss", tolerance)


def storages(tree: Any) -> set[int]:
    """Addresses of the storages of all tensors in a nest."""
    if isinstance(tree, torch.Tensor):
        return {tree.untyped_storage().data_ptr()} if tree.numel() else set()
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return set().union(*(storages(value) for value in values))


def results(g: gf.PerSampleGrads) -> dict[str, Any]:
    """Everything `g` answers with, each asked once."""
    c = torch.linspace(-1, 1, g.batch_size, dtype=torch.float64, device=g.losses.device)
    sums = g.sum()
    return {
        "losses": g.losses,
        "weights": g.weights,
        "norms": g.norms(),
        "norms per parameter": g.norms(per_parameter=True),
        "gram": g.gram(),
        "gram per parameter": g.gram(per_parameter=True),
        "dot": g.dot(sums),
        "sum": sums,
        "weighted_sum": g.weighted_sum(c),
        "mean": g.mean(on_zero_weight="zero"),
        "none": g.materialize(),
        "none again": g.materialize(),
    }


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nests hold bitwise equal tensors (NaN equal to NaN)."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_bits(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
