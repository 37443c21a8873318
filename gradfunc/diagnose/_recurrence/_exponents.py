"""Lyapunov exponents by QR (Benettin et al. 1980; Shimada and Nagashima 1979).

k tangent vectors are pushed through every step and made orthonormal again; the mean logarithm of what QR takes off each
of them, `log |R_ii|`, is an exponent. Without the QR all of them would turn to the direction that grows most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._jacobians import Jacobians


def exponents(jacobians: Jacobians, count: int, warmup: int, seed: int) -> Tensor:
    """The `count` largest, per step, descending: `[count]`; the first `warmup` steps only turn the vectors."""
    like = jacobians.like
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(jacobians.size, count, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(start)[0].to(like.device)
    total = q.new_zeros(count)
    for t in range(jacobians.steps):
        q, r = torch.linalg.qr(jacobians.push(t, q.to(like.dtype)).double())
        if t >= warmup:
            total = total + r.diagonal().abs().log()
    found: Tensor = (total / (jacobians.steps - warmup)).sort(descending=True).values.cpu()
    return found
