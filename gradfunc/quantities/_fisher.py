"""Fisher matrices: second moments of rows. Which rows, says which Fisher matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import check_int, one_of
from .._per_sample import PerSampleGrads, concatenate, per_sample_grads
from .._tree import Tensors, splatted
from .._weights import Weighted
from ._kernels import by_output, check_options, flat_output, interleaved
from ._likelihood import LIKELIHOODS, RESIDUALS, ROOTS
from ._read import check_samples, check_value, per_unit, shares
from ._variance import second_moment


def fisher_rows(
    outputs: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    likelihood: str = "categorical",
    samples: int | None = None,
    seed: int = 0,
    **options: Any,
) -> PerSampleGrads:
    """Rows whose second moment is the true Fisher matrix, `mean_i J_i^T L_i J_i`: targets are the model's own.

    The Fisher matrix is `E_x E_{y ~ p(y | x)} grad log p(y | x) grad log p(y | x)^T`; with labels of the data in the
    place of y it is the empirical one, whose rows are `gf.per_sample_grads(loss)` of a negative log-likelihood
    (Kunstner, Balles, Hennig 2019, "Limitations of the empirical Fisher approximation", arXiv 1905.12558). Ask
    `second_moment`, `fisher_diagonal`, `fisher_product` or `gradient_spectrum(centered=False)` of either.

    | likelihood    | outputs of a sample             | L = S S^T, the Fisher matrix in the outputs |
    |---------------|---------------------------------|---------------------------------------------|
    | "categorical" | K logits                        | `diag(p) - p p^T`                           |
    | "bernoulli"   | K logits of independent yes, no | `diag(p (1 - p))`                           |
    | "gaussian"    | K means, variance 1             | the identity                                |

    Where the loss is that negative log-likelihood this is the generalised Gauss-Newton matrix (Martens 2020, "New
    insights and perspectives on the natural gradient method", arXiv 1412.1193).

    Bias: exact (`samples=None`), none; rows `root K S_k^T J_i` of weight 1/K, K a sample. With `samples` targets drawn
    from the model, unbiased, its error falling as the root of their number.

    Cost: K forward and backward passes of the batch, or `samples`.

    Args:
        outputs, params, batch, options: as `gf.quantities.output_grads`.
        likelihood: "categorical", "bernoulli" or "gaussian".
        samples: how many targets are drawn for each sample; None for the exact expectation.
        seed: of the draws, which are named by it, by the sample and by their ordinal.

    Raises:
        TypeError, ValueError: as `gf.quantities.output_grads`; another likelihood or number.

    Example:
        >>> import torch, gradfunc as gf
        >>> rows = gf.quantities.fisher_rows(lambda p, x: p["w"] * x, {"w": torch.zeros(2)}, torch.ones(3, 2))
        >>> gf.quantities.second_moment(rows)["w"]    # p (1 - p)
        tensor([0.2500, 0.2500], dtype=torch.float64)
    """
    call = "gf.quantities.fisher_rows(outputs, params, batch)"
    one_of(call, "likelihood", likelihood, LIKELIHOODS)
    check_int(call, "seed", seed, 0)
    options = {**options, "seed": seed}
    if samples is None:
        return interleaved(*by_output(call, outputs, root_part(likelihood), params, batch, options))
    check_int(call, "samples", samples, 1)
    check_options(call, options)
    f = per_sample_grads(drawn_loss(call, outputs, likelihood), **options)
    args, kwargs = splatted(batch)
    each = [f.at(step)(params, *args, **kwargs) for step in range(samples)]
    return concatenate([one.weighted(torch.full_like(one.weights, 1 / samples)) for one in each])


def root_part(likelihood: str) -> Callable[[Tensor, int], Weighted]:
    """The loss of outputs `[K]` whose gradient, times K, is the k-th row of a sample."""
    root = ROOTS[likelihood]

    def part(out: Tensor, k: int) -> Weighted:
        count = len(out)
        column = root(out.detach())[:, k]
        return Weighted((column * out).sum() / math.sqrt(count), torch.full((), 1 / count, dtype=out.dtype))

    return part


def drawn_loss(call: str, outputs: Callable[..., Tensor], likelihood: str) -> Callable[..., Tensor]:
    """The loss of a sample whose gradient is that of the negative log-likelihood of a target drawn from the model."""
    residual = RESIDUALS[likelihood]

    def loss(p: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        out = flat_output(call, outputs, p, args, kwargs)
        return (residual(out.detach()) * out).sum()

    return loss


def fisher_diagonal(g: PerSampleGrads) -> Tensors:
    """The diagonal of the Fisher matrix of rows, `sum p_i u_i^2`: `{name: tensor}`, float64.

    Empirical where `g` is of the data's labels, true where it is of `fisher_rows`. Source, bias and cost as
    `gf.quantities.second_moment`, whose entries it is.

    Raises:
        TypeError: `g` is something else.
        ValueError: no sample of weight above 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> gf.quantities.fisher_diagonal(f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [3.0, 2.0]])))["w"]
        tensor([5., 2.], dtype=torch.float64)
    """
    found = second_moment(check_value("gf.quantities.fisher_diagonal(g)", g))
    assert isinstance(found, dict)
    return found


def fisher_product(g: PerSampleGrads, direction: Mapping[str, Tensor], *, damping: float = 0.0) -> Tensors:
    """The Fisher matrix of rows times a direction, `sum p_i u_i <u_i, v> + damping v`: `{name: tensor}`.

    Empirical where `g` is of the data's labels, true where it is of `fisher_rows`.

    Bias: as an estimate of the population's matrix, none. Cost: one `dot` and one `weighted_sum`; nothing is
    materialised.

    Args:
        g: per-sample gradients.
        direction: `{name: tensor}` of the parameters' shapes.
        damping: a multiple of the identity, added.

    Raises:
        TypeError, ValueError: as `g.dot(direction)`; no sample of weight above 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        >>> gf.quantities.fisher_product(g, {"w": torch.tensor([1.0, 0.0])})["w"]
        tensor([5., 3.])
    """
    call = "gf.quantities.fisher_product(g, direction)"
    check_samples(call, check_value(call, g), 1)
    along = g.dot(direction)
    c = torch.where(g.weights > 0, along.double() * shares(g) * per_unit(g).square(), 0.0)
    return {name: v + damping * direction[name].to(v) for name, v in g.weighted_sum(c).items()}
