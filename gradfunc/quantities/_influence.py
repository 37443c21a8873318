"""Which training samples moved a prediction, from gradients alone: grad-dot, grad-cos, TracIn, TRAK."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._errors import NOT_NEGATIVE, check_number, kind_of, message
from .._per_sample import PerSampleGrads
from ._read import check_value
from ._similarity import cosine_similarity


def grad_dot(train: PerSampleGrads, test: PerSampleGrads) -> Tensor:
    """`<g_i, h_j>`, `[n, m]`: how fast a step on training sample i lowers the loss of test sample j.

    Charpiat et al. 2019, "Input similarity from the neural network perspective" (arXiv 2102.05262). Positive
    where i helps j (a proponent), negative where it harms it. TracIn of one checkpoint with a learning rate of 1.

    Bias: none; it is no estimate. Cost: `train.gram(test)`.

    Raises:
        TypeError, ValueError: as `g.gram(other)`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> p = {"w": torch.zeros(2)}
        >>> gf.quantities.grad_dot(f(p, torch.tensor([[1.0, 2.0]])), f(p, torch.tensor([[3.0, 0.0], [0.0, -1.0]])))
        tensor([[ 3., -2.]])
    """
    call = "gf.quantities.grad_dot(train, test)"
    return check_value(call, train, "train").gram(check_value(call, test, "test"))


def grad_cos(train: PerSampleGrads, test: PerSampleGrads) -> Tensor:
    """The same as a cosine, `[n, m]`: without the advantage of samples of large gradient (Charpiat et al. 2019).

    Bias, cost and errors: as `gf.quantities.cosine_similarity(train, test)`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> p = {"w": torch.zeros(2)}
        >>> gf.quantities.grad_cos(f(p, torch.tensor([[3.0, 4.0]])), f(p, torch.tensor([[2.0, 0.0]])))
        tensor([[0.6000]])
    """
    check_value("gf.quantities.grad_cos(train, test)", test, "test")
    return cosine_similarity(train, test)


def tracin(train: Sequence[PerSampleGrads], test: Sequence[PerSampleGrads], learning_rates: Sequence[float]) -> Tensor:
    """TracIn over checkpoints: `sum_t eta_t <g_i(t), h_j(t)>`, `[n, m]`.

    Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent" (arXiv 2002.08484,
    TracInCP). Positive for proponents.

    Bias: to first order in the learning rate it is the loss that steps on i took from j, if each epoch between two
    checkpoints visits i once and gradients hold meanwhile; of plain SGD, not of momentum or Adam. Cost: one
    rectangular Gram matrix a checkpoint.

    Args:
        train: per-sample gradients of the training samples at each checkpoint.
        test: of the test samples, likewise.
        learning_rates: of the epoch at each checkpoint, >= 0.

    Raises:
        TypeError: something else.
        ValueError: lists of other lengths, or empty ones; a learning rate below 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum().square() / 2)
        >>> at = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}]
        >>> rows = [f(p, torch.tensor([[1.0]])) for p in at]
        >>> gf.quantities.tracin(rows, rows, [0.5, 0.25])
        tensor([[1.5000]])
    """
    call = "gf.quantities.tracin(train, test, learning_rates)"
    _check_checkpoints(call, learning_rates, train=train, test=test)
    parts = [lr * grad_dot(a, b) for a, b, lr in zip(train, test, learning_rates, strict=True)]
    return torch.stack(parts).sum(0)


def self_influence(train: Sequence[PerSampleGrads], learning_rates: Sequence[float]) -> Tensor:
    """The diagonal of TracIn, `sum_t eta_t |g_i(t)|^2`, `[n]`: large where only the sample itself teaches its label.

    Pruthi et al. 2020 (arXiv 2002.08484), by which they find mislabelled samples. Cost: norms.

    Args, Raises: as `gf.quantities.tracin`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> gf.quantities.self_influence([f({"w": torch.zeros(1)}, torch.tensor([[1.0], [3.0]]))], [0.5])
        tensor([0.5000, 4.5000])
    """
    call = "gf.quantities.self_influence(train, learning_rates)"
    _check_checkpoints(call, learning_rates, train=train)
    return torch.stack([lr * g.norms().square() for g, lr in zip(train, learning_rates, strict=True)]).sum(0)


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """The log odds of a label, `log p_y - log (1 - p_y)`: the output whose gradients TRAK projects.

    Park et al. 2023 (arXiv 2303.14186), computed as the label's logit less the logsumexp of the others.

    Args:
        logits: `[K]`, or with dimensions of samples before.
        label: `[]`, or those dimensions.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.quantities.margin(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        tensor([ 1., -3.])
    """
    own = logits.gather(-1, label[..., None])
    others = torch.arange(logits.shape[-1], device=logits.device) != label[..., None]
    return own[..., 0] - torch.where(others, logits, -torch.inf).logsumexp(-1)


def trak(
    train: Tensor | Sequence[Tensor],
    test: Tensor | Sequence[Tensor],
    residuals: Tensor | Sequence[Tensor] | None = None,
    *,
    damping: float = 0.0,
) -> Tensor:
    """TRAK: influence by linearised regression on projected gradients, `[n, m]`.

    With features `Phi` `[n, k]`, `phi` `[m, k]` (gradients of `margin`, by `g.project(projection)`) and
    `Q = diag(1 - p_i)`: `phi (Phi^T Phi + damping)^-1 Phi^T Q`; of several models, the mean of the kernels times the
    mean of the Q (Park et al. 2023, "TRAK: attributing model behavior at scale", arXiv 2303.14186,
    without the soft threshold). Positive for proponents.

    Bias: the projection keeps inner products on average, with an error of about `1 / root k`; it should have far fewer
    numbers than there are samples (`k < n`, or a damping), or the fit is exact and scores are those of noise. Cost:
    one k x k system a model.

    Args:
        train: features of the training samples, or one tensor for each model.
        test: those of the test samples.
        residuals: `1 - p_i`, `[n]`, or one for each model; by default ones.
        damping: a multiple of the identity, added, >= 0.

    Raises:
        TypeError, ValueError: other shapes, or other numbers of models.
        torch.linalg.LinAlgError: features of less than full rank, without damping.

    Example:
        >>> import torch, gradfunc as gf
        >>> phi = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> gf.quantities.trak(phi, torch.tensor([[3.0, 2.0]]))
        tensor([[3.],
                [1.],
                [0.]])
    """
    call = "gf.quantities.trak(train, test, residuals)"
    check_number(call, "damping", damping, NOT_NEGATIVE)
    left, right = ([t] if isinstance(t, Tensor) else list(t) for t in (train, test))
    weights = [torch.ones(len(one)) for one in left] if residuals is None else residuals
    weights = [weights] if isinstance(weights, Tensor) else list(weights)
    if not len(left) == len(right) == len(weights) or not left:
        got = f"{len(left)}, {len(right)} and {len(weights)} models"
        raise ValueError(message(call, got=got, expected="features of the same models, at least one"))
    kernels, faults = [], []
    for phi, other, q in zip(left, right, weights, strict=True):
        if phi.dim() != 2 or other.dim() != 2 or phi.shape[1] != other.shape[1] or q.shape != phi.shape[:1]:
            got = f"features of shapes {tuple(phi.shape)} and {tuple(other.shape)}, residuals {tuple(q.shape)}"
            raise ValueError(message(call, got=got, expected="[n, k], [m, k] and [n]"))
        eye = torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
        kernels.append(phi @ torch.linalg.solve(phi.T @ phi + damping * eye, other.T))
        faults.append(q.to(phi))
    return torch.stack(kernels).mean(0) * torch.stack(faults).mean(0)[:, None]


def _check_checkpoints(call: str, learning_rates: Sequence[float], **values: Sequence[PerSampleGrads]) -> None:
    for name, given in values.items():
        if isinstance(given, PerSampleGrads) or not isinstance(given, Sequence):
            do = "Pass one value for each checkpoint."
            raise TypeError(message(call, got=f"{kind_of(given)} as {name}", expected="a list of values", do=do))
        for one in given:
            check_value(call, one, name)
        if len(given) != len(learning_rates) or not given:
            got = f"{len(given)} values as {name} and {len(learning_rates)} learning rates"
            raise ValueError(message(call, got=got, expected="as many, at least one"))
    for lr in learning_rates:
        check_number(call, "learning_rates", lr, NOT_NEGATIVE)
