"""Losses of real numbers: squared and absolute errors, and what lies between."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .._weights import Weighted
from ._rows import check_number, check_same, per_element_or_sample


def mse(output: Tensor, target: Tensor, *, per: str = "element", batched: bool = False) -> Weighted:
    """Squared error (o - t)^2.

    Args:
        output: any shape; batched `[B, ...]`.
        target: the same shape. Broadcasting is refused: `(n, 1)` against `(n,)` is n x n errors.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of (o - t)^2 | number of elements |
    | `per="sample"` (torch's sum over n) | the same | 1 |

    Raises:
        ValueError: other shapes; an unknown `per`.

    Example:
        >>> mse(torch.tensor([1.0, 3.0]), torch.zeros(2))
        Weighted(numerator=tensor(10.), weight=tensor(2.))
        >>> mse(torch.tensor([1.0, 3.0]), torch.zeros(2), per="sample")
        Weighted(numerator=tensor(10.), weight=tensor(1.))
    """
    call = "gf.losses.mse(output, target)"
    check_same(call, batched, output=output, target=target)
    return per_element_or_sample(call, F.mse_loss(output, target, reduction="none"), per, batched)


def l1(output: Tensor, target: Tensor, *, per: str = "element", batched: bool = False) -> Weighted:
    """Absolute error |o - t|; its derivative at o = t is 0, as torch takes it.

    Args:
        output: any shape; batched `[B, ...]`.
        target: the same shape.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of \\|o - t\\| | number of elements |
    | `per="sample"` (torch's sum over n) | the same | 1 |

    Raises:
        ValueError: other shapes; an unknown `per`.

    Example:
        >>> l1(torch.tensor([1.0, -3.0]), torch.zeros(2))
        Weighted(numerator=tensor(4.), weight=tensor(2.))
    """
    call = "gf.losses.l1(output, target)"
    check_same(call, batched, output=output, target=target)
    return per_element_or_sample(call, F.l1_loss(output, target, reduction="none"), per, batched)


def huber(
    output: Tensor, target: Tensor, *, delta: float = 1.0, per: str = "element", batched: bool = False
) -> Weighted:
    """Huber's loss h(o - t): r^2 / 2 up to |r| = delta, then delta (|r| - delta / 2).

    Source: Huber, "Robust Estimation of a Location Parameter" (1964).

    Args:
        output: any shape; batched `[B, ...]`.
        target: the same shape.
        delta: where the square ends, > 0.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of h(o - t) | number of elements |
    | `per="sample"` (torch's sum over n) | the same | 1 |

    Raises:
        ValueError: other shapes; an unknown `per`; `delta` not positive.

    Example:
        >>> huber(torch.tensor([1.0, 3.0]), torch.zeros(2), delta=2.0)    # 1/2 and 2 (3 - 1)
        Weighted(numerator=tensor(4.5000), weight=tensor(2.))
    """
    call = "gf.losses.huber(output, target)"
    check_same(call, batched, output=output, target=target)
    check_number(call, "delta", delta, delta > 0, "> 0")
    return per_element_or_sample(call, F.huber_loss(output, target, delta=delta, reduction="none"), per, batched)


def smooth_l1(
    output: Tensor, target: Tensor, *, beta: float = 1.0, per: str = "element", batched: bool = False
) -> Weighted:
    """Smooth L1, s(o - t): r^2 / (2 beta) below |r| = beta, then |r| - beta / 2. It is `huber` over beta, with
    delta = beta; beta = 0 is `l1`.

    Source: Girshick, "Fast R-CNN" (2015), equation 3.

    Args:
        output: any shape; batched `[B, ...]`.
        target: the same shape.
        beta: where the square ends, >= 0.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of s(o - t) | number of elements |
    | `per="sample"` (torch's sum over n) | the same | 1 |

    Raises:
        ValueError: other shapes; an unknown `per`; a negative `beta`.

    Example:
        >>> smooth_l1(torch.tensor([1.0, 3.0]), torch.zeros(2), beta=2.0)    # 1/4 and 3 - 1
        Weighted(numerator=tensor(2.2500), weight=tensor(2.))
    """
    call = "gf.losses.smooth_l1(output, target)"
    check_same(call, batched, output=output, target=target)
    check_number(call, "beta", beta, beta >= 0, ">= 0")
    return per_element_or_sample(call, F.smooth_l1_loss(output, target, beta=beta, reduction="none"), per, batched)
