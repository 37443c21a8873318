"""What a model's outputs say of its targets: the Fisher matrix in the outputs, as a root and as draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIKELIHOODS = ("categorical", "bernoulli", "gaussian")


def _categorical_root(out: Tensor) -> Tensor:
    p = out.softmax(0)
    return (torch.eye(len(p), dtype=p.dtype, device=p.device) - p[:, None]) * p.sqrt()


def _categorical_residual(out: Tensor) -> Tensor:
    noise = -(-torch.rand_like(out).log()).log()  # Gumbel: the argmax is a draw of softmax
    drawn = (out + noise).argmax(0)
    return out.softmax(0) - (torch.arange(len(out), device=out.device) == drawn).to(out)


def _bernoulli_root(out: Tensor) -> Tensor:
    p = out.sigmoid()
    return torch.diag((p * (1 - p)).sqrt())


def _bernoulli_residual(out: Tensor) -> Tensor:
    p = out.sigmoid()
    return p - (torch.rand_like(out) < p).to(out)


def _gaussian_root(out: Tensor) -> Tensor:
    return torch.eye(len(out), dtype=out.dtype, device=out.device)


# S `[K, K]` of outputs `[K]`, with `S S^T` the Fisher matrix of the likelihood in them.
ROOTS: dict[str, Callable[[Tensor], Tensor]] = {
    "categorical": _categorical_root,
    "bernoulli": _bernoulli_root,
    "gaussian": _gaussian_root,
}
# The gradient of the negative log-likelihood in the outputs, at a target drawn from the model.
RESIDUALS: dict[str, Callable[[Tensor], Tensor]] = {
    "categorical": _categorical_residual,
    "bernoulli": _bernoulli_residual,
    "gaussian": torch.randn_like,
}
