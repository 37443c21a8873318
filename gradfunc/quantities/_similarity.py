"""How alike the gradients of samples are: cosines, coherence, diversity, duplicates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._errors import FINITE, check_int, check_number
from .._per_sample import PerSampleGrads
from ._kernels import gram_blocks
from ._read import check_samples, check_value, shares, square_of, unit_norms


def cosine_similarity(g: PerSampleGrads, other: PerSampleGrads | None = None) -> Tensor:
    """Cosine of the angle between gradients of samples, `<g_i, h_j> / (|g_i| |h_j|)`: `[B, B']`, within [-1, 1].

    A gradient of 0 has cosine 0 with everything, as in scikit-learn's. Losses scaled by positive numbers give the same.

    Bias: none; it is no estimate. Cost: a Gram matrix and norms; nothing is materialised.

    Args:
        g: per-sample gradients.
        other: those of another batch at the same parameters; by default `g` itself.

    Raises:
        TypeError, ValueError: as `g.gram(other)`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[2.0, 0.0], [0.0, 0.0], [3.0, 4.0]]))
        >>> gf.quantities.cosine_similarity(g)
        tensor([[1.0000, 0.0000, 0.6000],
                [0.0000, 0.0000, 0.0000],
                [0.6000, 0.0000, 1.0000]])
    """
    call = "gf.quantities.cosine_similarity(g, other)"
    check_value(call, g)
    right = g if other is None else check_value(call, other, "other")
    return _cosines(g.gram(other), g.norms(), right.norms())


def coherence(g: PerSampleGrads) -> Tensor:
    """The share of a sample's squared gradient that all samples have in common: `|m|^2 / sum p_i |u_i|^2`, `[]`.

    Of rows `u_i = g_i / w_i` with shares `p_i = w_i / sum w` and mean m: 1 where all agree, 1/n (`sum p_i^2`) where
    they are orthogonal and of one length, 0 where they cancel. Divided by `sum p_i^2` it is the m-coherence of
    Chatterjee and Zielinski 2020, "Making coherence out of nothing at all" (arXiv 2008.01217): the number of
    samples that one sample's step helps.

    Bias: of `|E u|^2 / E |u|^2`, the numerator is too large by `sum p_i^2` times the trace of the covariance, so it
    does not fall below about 1/n; `gradient_noise_scale` has both parts without bias.

    Cost: norms and one sum. Float64.

    Raises:
        TypeError: `g` is something else.
        ValueError: no sample of weight above 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> gf.quantities.coherence(f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
        tensor(0.5000, dtype=torch.float64)
    """
    call = "gf.quantities.coherence(g)"
    check_samples(call, check_value(call, g), 1)
    total = g.weights.double().sum()
    common = square_of({name: v.double() / total.to(v.device) for name, v in g.sum(wide=True).items()})
    norms = unit_norms(g)
    return common / (shares(g).to(norms.device) * norms.square()).sum()


def diversity(g: PerSampleGrads) -> Tensor:
    """Gradient diversity, `sum |g_i|^2 / |sum g_i|^2`, `[]`: 1/n where all agree, 1 where they are orthogonal.

    Yin et al. 2018, "Gradient diversity: a key ingredient for scalable distributed learning" (arXiv 1706.05699); n
    times it is their bound on the batch size up to which steps of a batch are as good as steps of single samples. The
    reciprocal of the m-coherence (see `coherence`). Of numerators: it needs no weights.

    Bias: of `n E |g|^2 / |n E g|^2`, too small where noise prevails, as in `coherence`. Cost: norms and one sum.
    Float64; inf where the gradients cancel.

    Raises:
        TypeError: `g` is something else.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> gf.quantities.diversity(f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
        tensor(0.5000, dtype=torch.float64)
    """
    check_value("gf.quantities.diversity(g)", g)
    return g.norms().double().square().sum() / square_of(g.sum(wide=True))


class Duplicates(NamedTuple):
    """Pairs of samples of similar gradients.

    Attributes:
        pairs: `[K, 2]` positions, the most similar pair first; `i < j` within one batch.
        cosine: `[K]`.
    """

    pairs: Tensor
    cosine: Tensor


def near_duplicates(
    g: PerSampleGrads, other: PerSampleGrads | None = None, *, threshold: float = 0.99, block_size: int = 256
) -> Duplicates:
    """Pairs of samples whose gradients have a cosine of `threshold` at least: duplicates, seen by the model.

    Gradients of one input under another label can be alike up to their sign (`threshold` is not of magnitudes), and
    samples that the model has learnt are alike in little but noise: compare before it has.

    Bias: none; it is no estimate. Cost: the Gram matrix, in blocks: `block_size^2` cosines and the pairs are held. Rows
    that are not kept are computed once for each block of the others.

    Args:
        g: per-sample gradients.
        other: of another batch, such as the test set whose leaks are sought; by default pairs within `g`.
        threshold: the least cosine.
        block_size: samples on each side of a block.

    Raises:
        TypeError, ValueError: an argument of another type or range.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]))
        >>> gf.quantities.near_duplicates(g).pairs
        tensor([[0, 2]])
    """
    call = "gf.quantities.near_duplicates(g, other)"
    check_value(call, g)
    right = g if other is None else check_value(call, other, "other")
    check_number(call, "threshold", threshold, FINITE)
    check_int(call, "block_size", block_size, 1)
    norms, theirs = g.norms().double(), right.norms().double()
    pairs, cosines = [torch.zeros(0, 2, dtype=torch.int64)], [torch.zeros(0, dtype=torch.float64)]
    for rows, columns, values in gram_blocks(g, other, block_size=block_size):
        found = _cosines(values.double(), norms[rows], theirs[columns]).cpu()
        alike = found >= threshold
        if other is None and rows == columns:
            alike = alike.triu(1)
        at = alike.nonzero()
        pairs.append(at + torch.tensor([rows.start, columns.start]))
        cosines.append(found[at[:, 0], at[:, 1]])
    index, cosine = torch.cat(pairs), torch.cat(cosines)
    order = cosine.argsort(descending=True, stable=True)
    return Duplicates(index[order], cosine[order])


def _cosines(gram: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Divided twice: the product of two norms may overflow."""
    left, right = (torch.where(norms > 0, norms, torch.inf).to(gram) for norms in (left, right))
    return (gram / left[:, None] / right).clamp(-1, 1)
