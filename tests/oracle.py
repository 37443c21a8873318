"""What gradfunc is measured against: one plain autograd call a sample, and the error scales of its quantities.

Nothing here uses gradfunc's own arithmetic, nor does what it takes from `gradfunc.testing`. The scales: a gradient
entry or a norm is compared on that sample's whole gradient norm, `dot` on |g_i||v|, Gram on |g_i||g_j|, sums on
sum |c_i||g_i|. "Relative" entry by entry would mean nothing where the true value is 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import gradfunc as gf
from gradfunc.testing import _oracle
from gradfunc.testing._oracle import Truth as Truth
from gradfunc.testing._oracle import split as split
from gradfunc.testing._purity import results_of
from gradfunc.testing._purity import same_bits as same_bits
from gradfunc.testing._purity import storages as storages

results = results_of

# float64 on the scales above, for every model here.
TOLERANCE = 1e-12


def at(tree: Any, i: int) -> Any:
    """Sample i of a nested batch."""
    if isinstance(tree, torch.Tensor):
        return tree[i]
    if isinstance(tree, dict):
        return {key: at(value, i) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(at(value, i) for value in tree)
    return tree


def truth(loss, params, size: int, args=(), kwargs=None) -> Truth:
    """One autograd call a sample."""
    each = ((at(tuple(args), i), at(kwargs or {}, i)) for i in range(size))
    return _oracle.truth(loss, params, each)


def truth_batched(losses, params, args=()) -> Truth:
    """One autograd call a row of losses, the whole batch in place."""
    return _oracle.truth_batched(losses, params, args, {})


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
