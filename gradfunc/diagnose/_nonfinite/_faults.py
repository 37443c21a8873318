"""What is recognised: a table of names, evidence and safe forms. The first entry that fits is the one.

Domains are those of the real functions; what a fault's operation read decides, never its name alone. Derivatives that
are infinite at the end of a domain (sqrt at 0) are told from values that are (log of 0) by the pass that broke.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..._nonfinite import Origin

_LOGS = {"log": 0.0, "log2": 0.0, "log10": 0.0, "log1p": -1.0, "xlogy": 0.0}  # where their domain ends
_ENDS = {"acos", "asin", "atanh", "erfinv"}  # of [-1, 1]
_SPECTRAL = {"linalg_eigh", "_linalg_eigh", "linalg_eig", "_linalg_svd", "linalg_svd", "linalg_qr"}
_SOLVERS = {"_linalg_slogdet", "_linalg_det", "linalg_inv_ex", "_linalg_solve_ex", "linalg_cholesky_ex"}
_NORMS = {"linalg_vector_norm", "norm", "_cdist_forward", "_pdist_forward", "dist"}


@dataclass(frozen=True)
class Fault:
    """A way in which numbers stop being finite.

    Attributes:
        name: in words.
        fits: whether an origin is of this kind; the second argument is whether the loss is finite, so that only the
            gradient is not.
        why: what happens.
        safe: a line of code that does not.

    Example:
        >>> import torch, gradfunc as gf
        >>> mine = gf.diagnose.Fault("digamma at a pole", lambda origin, late: origin.name == "digamma",
        ...                          "digamma is infinite at 0, -1, -2, ...", "torch.digamma(x.clamp_min(1e-3))")
        >>> criterion = gf.whole(lambda model, batch: torch.digamma(model(batch) * 0).sum())
        >>> found = gf.diagnose.find_nonfinite(torch.nn.Linear(2, 1), criterion, torch.ones(3, 2),
        ...                                    faults=(mine, *gf.diagnose.FAULTS))
        >>> found.pattern
        'digamma at a pole'
    """

    name: str
    fits: Callable[[Origin, bool], bool]
    why: str
    safe: str


def recognized(origin: Origin | None, late: bool, faults: Sequence[Fault]) -> Fault | None:
    """The first fault that fits."""
    return None if origin is None else next((fault for fault in faults if fault.fits(origin, late)), None)


def _low(origin: Origin, at: int = 0) -> float:
    return origin.inputs[at].low if len(origin.inputs) > at else math.nan


def _zero(origin: Origin, at: int = 0) -> bool:
    return len(origin.inputs) > at and origin.inputs[at].zero


def _empty_mask(origin: Origin, late: bool) -> bool:
    if "no entries" in origin.facts:
        return True
    if origin.backward or "zero over zero" not in origin.facts or len(origin.inputs) < 2:
        return False
    above, below = origin.inputs[:2]
    return not below.differentiable and above.shape == below.shape and len(below.shape) <= 1


def _where(origin: Origin, late: bool) -> bool:
    return late and "masked" in origin.facts and (not origin.backward or "zero cotangent" in origin.facts)


def _square_sum(origin: Origin, late: bool) -> bool:
    by = origin.made_by
    root = origin.name == "sqrt" or origin.kernel.startswith("aten.pow")
    summed = len(by) > 1 and by[0].startswith(("SumBackward", "MeanBackward"))
    squares = summed and by[1].startswith(("PowBackward", "MulBackward"))
    dot = bool(by) and by[0].startswith("DotBackward")
    return late and ((root and _zero(origin) and (squares or dot)) or origin.name in _NORMS)


def _log_of(node: str) -> Callable[[Origin, bool], bool]:
    return lambda origin, late: origin.name in _LOGS and bool(origin.made_by) and origin.made_by[0].startswith(node)


def _log(origin: Origin, negative: bool) -> bool:
    end = _LOGS.get(origin.name)
    if end is None:
        return False
    return _low(origin) < end if negative else _low(origin) == end


def _divides(origin: Origin, late: bool) -> bool:
    at = {"div": 1, "true_divide": 1, "reciprocal": 0, "rsqrt": 0, "remainder": 1, "fmod": 1, "addcdiv": 2}
    return (origin.name in at and _zero(origin, at[origin.name])) or origin.name == "_weight_norm_interface"


def _outside(origin: Origin, low: float, high: float) -> bool:
    """Whether it read an end of an interval, or beyond."""
    return bool(origin.inputs) and (origin.inputs[0].low <= low or origin.inputs[0].high >= high)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "parameter not finite",
        lambda o, late: o.given.startswith(("parameter", "frozen", "buffer")),
        "an earlier update made it so: this batch is not to blame",
        "step = gf.clip_by_global_norm(1.0) >> gf.skip_nonfinite() >> rule  # and start from a checkpoint before it",
    ),
    Fault(
        "input not finite",
        lambda o, late: bool(o.given),
        "the data are not finite",
        "batch = batch[batch.isfinite().all(dim=-1)]",
    ),
    Fault(
        "all targets ignored",
        lambda o, late: o.name in ("nll_loss_forward", "nll_loss2d_forward") and "no entries" not in o.facts,
        "the mean over targets that are not ignored is 0/0 where all are",
        'F.cross_entropy(out, y, reduction="sum") / (y != -100).sum().clamp(min=1)  # or gf.losses.cross_entropy',
    ),
    Fault(
        "empty attention mask",
        lambda o, late: "empty slice" in o.facts or ("attention" in o.name and "sees infinity" in o.facts),
        "a softmax over -inf alone is 0/0",
        "scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask.any(-1, keepdim=True)",
    ),
    Fault(
        "empty mask",
        _empty_mask,
        "the mean over an empty selection is 0/0",
        "(x * mask).sum() / mask.sum().clamp(min=1)  # x: losses with reduction='none', or features",
    ),
    Fault(
        "where",
        _where,
        "the branch that is not taken is differentiated too, and 0 times its infinite derivative is NaN",
        "torch.where(mask, f(torch.where(mask, x, torch.ones_like(x))), other)",
    ),
    Fault(
        "deviation of one entry",
        lambda o, late: o.name in ("std", "var", "std_mean", "var_mean") and not o.backward,
        "the unbiased variance of one entry is 0/0",
        "x.std(correction=0)",
    ),
    Fault(
        "norm at 0",
        _square_sum,
        "the derivative of the square root of a sum of squares is infinite at 0, and its product with 0 is NaN",
        "torch.linalg.vector_norm(x, dim=-1)  # its gradient at 0 is 0",
    ),
    Fault(
        "sqrt of a negative",
        lambda o, late: o.name in ("sqrt", "rsqrt") and _low(o) < 0,
        "a rounding error below 0 is enough",
        "x.clamp_min(torch.finfo(x.dtype).tiny).sqrt()",
    ),
    Fault(
        "sqrt at 0",
        lambda o, late: o.name == "sqrt" and _zero(o) and late,
        "the derivative of sqrt is infinite at 0",
        "(x + torch.finfo(x.dtype).eps).sqrt()",
    ),
    Fault(
        "log of a softmax",
        _log_of("SoftmaxBackward"),
        "a probability rounds to 0",
        "F.log_softmax(logits, dim=-1)",
    ),
    Fault(
        "log of a sigmoid",
        _log_of("SigmoidBackward"),
        "a probability rounds to 0",
        "F.logsigmoid(logits)  # or F.binary_cross_entropy_with_logits",
    ),
    Fault(
        "log of a negative",
        lambda o, late: _log(o, negative=True),
        "log is not defined there",
        "x.clamp_min(torch.finfo(x.dtype).tiny).log()",
    ),
    Fault(
        "log of 0",
        lambda o, late: _log(o, negative=False),
        "log is infinite at the end of its domain",
        "x.clamp_min(torch.finfo(x.dtype).tiny).log()",
    ),
    Fault(
        "exp overflow",
        lambda o, late: o.name in ("exp", "expm1", "exp2", "sinh", "cosh") and "made infinity" in o.facts,
        "exp leaves the range of its type: above 88.7 in float32 and bfloat16, 11.1 in float16, 709.8 in float64",
        "(x - x.amax(-1, keepdim=True)).exp()  # or torch.logsumexp, softmax",
    ),
    Fault(
        "division by 0",
        _divides,
        "a divisor is exactly 0",
        "a / torch.where(b == 0, torch.ones_like(b), b)",
    ),
    Fault(
        "power of a negative",
        lambda o, late: o.name == "pow" and _low(o) < 0 and "made infinity" not in o.facts,
        "a fractional power is not defined below 0",
        "x.clamp_min(torch.finfo(x.dtype).eps).pow(p)",
    ),
    Fault(
        "power at 0",
        lambda o, late: o.name == "pow" and _zero(o),
        "the derivative of a power below 1 is infinite at 0, as is a negative power",
        "x.clamp_min(torch.finfo(x.dtype).eps).pow(p)",
    ),
    Fault(
        "end of [-1, 1]",
        lambda o, late: o.name in _ENDS and _outside(o, -1, 1),
        "the function or its derivative is infinite there",
        "f(x.clamp(-1 + torch.finfo(x.dtype).eps, 1 - torch.finfo(x.dtype).eps))",
    ),
    Fault(
        "end of [0, 1]",
        lambda o, late: o.name == "logit" and _outside(o, 0, 1),
        "the logit is infinite there",
        "torch.logit(x, eps=torch.finfo(x.dtype).eps)",
    ),
    Fault(
        "end of [1, inf)",
        lambda o, late: o.name == "acosh" and _outside(o, 1, math.inf),
        "the derivative of acosh is infinite there",
        "x.clamp_min(1 + torch.finfo(x.dtype).eps).acosh()",
    ),
    Fault(
        "equal eigenvalues",
        lambda o, late: o.name in _SPECTRAL and late,
        "the derivatives of eigenvectors and singular vectors divide by differences of eigenvalues",
        "torch.linalg.eigvalsh(a)  # eigenvalues alone have derivatives there",
    ),
    Fault(
        "singular matrix",
        lambda o, late: o.name in _SOLVERS,
        "a determinant is 0",
        "torch.linalg.slogdet(a + 1e-6 * torch.eye(a.shape[-1]))",
    ),
    Fault(
        "no alignment",
        lambda o, late: o.name.startswith("_ctc_loss"),
        "a target needs more steps than its input has, one more for each repeated label: its probability is 0",
        "F.ctc_loss(log_probs, targets, input_lengths, target_lengths, zero_infinity=True)",
    ),
    Fault(
        "custom backward",
        lambda o, late: bool(o.operation) and "." not in o.operation,
        "a torch.autograd.Function of yours makes it",
        "gf.testing.check_gradients(model, criterion, batch)  # then look at its backward",
    ),
    Fault(
        "infinity as a constant",
        lambda o, late: "sees infinity" in o.facts or o.name in ("masked_fill", "where", "full", "fill"),
        "infinity that was put in on purpose meets another operation, or reaches the loss",
        "scores.masked_fill(~mask, torch.finfo(scores.dtype).min)",
    ),
    Fault(
        "pole",
        lambda o, late: "pole" in o.facts,
        "the function or its derivative is infinite there, in any type, and not beside it",
        "f(x.clamp_min(torch.finfo(x.dtype).eps))  # or off the pole otherwise",
    ),
    Fault(
        "overflow",
        lambda o, late: bool({"made infinity", "narrow"} & o.facts),
        "a result, or a sum on the way to it, leaves the range of its type",
        "f(x.float())  # a wider type (float64 beyond float32), or a smaller scale of x or of the loss",
    ),
)
"""Ways in which numbers stop being finite, each with a safe form, in the order in which they are tried."""
