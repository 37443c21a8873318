"""Probes of the batch as a whole: coupling, modes, noise, reductions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ... import audit
from ..._per_sample import per_sample_grads
from ...audit._case import attempt
from ...quantities import gradient_noise_scale
from . import _limits
from ._case import Case
from ._finding import Finding, NotRun


def modes(case: Case) -> Iterator[Finding]:
    """Dropout and batch norms in eval mode."""
    if case.module is None:
        raise NotRun("the model is no nn.Module")
    layers = [(n, m) for n, m in case.module.named_modules() if isinstance(m, (_BatchNorm, _DropoutNd))]
    off = [name for name, layer in layers if not layer.training]
    if off:
        severity = "warning" if not case.module.training else "note"
        text = f"{len(off)} of {len(layers)} layers of dropout and batch norm; 0 are expected in training"
        yield Finding("eval_mode", severity, text, "model.train()", "certain", ", ".join(off[:5]))


def coupling(case: Case) -> Iterator[Finding]:
    """Whether a sample's loss depends on other samples, and in which layer; batch norms do by design."""
    _ = case.first
    if case.module is None:
        raise NotRun("the model is no nn.Module")
    yield from _few(case)
    if any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in case.module.modules()):
        raise NotRun("batch norms in train mode couple samples by design")
    found = case.independence
    if found.independent is None:
        raise NotRun(found.why)
    if found.independent is False:
        text = f"{found.why}; 0 may"
        fix = "# x.softmax(-1), not over dimension 0; x.flatten(1), not view(-1, ...)"
        named = dict(case.module.named_modules())
        chain = [(found.layer or "").rsplit(".", k)[0] for k in range(3)]
        first = next((name for name in chain if getattr(named.get(name), "batch_first", True) is False), None)
        if first is not None:
            fix = f"model.get_submodule({first!r}).batch_first = True  # nn.{type(named[first]).__name__}(..., "
            fix += "batch_first=True): samples come first in what it is given"
        yield Finding("batch_coupling", "severe", text, fix, "certain", found.layer or "")


def _few(case: Case) -> Iterator[Finding]:
    """Batch norms over a few values."""
    assert case.module is not None
    vectors = [n for n, m in case.module.named_modules() if isinstance(m, nn.BatchNorm1d) and m.training]
    if vectors and 1 < case.problem.size <= _limits.FEW and case.inputs.dim() == 2:
        text = f"{case.problem.size} values a channel, {_limits.FEW} or fewer"
        fix = "# nn.GroupNorm(groups, channels), or a larger batch"
        yield Finding("small_batch_norm", "warning", text, fix, "certain", ", ".join(vectors[:5]))


def noisy(case: Case) -> str:
    """The symptom: the batch's gradient is no larger than chance alone makes it, by the difference of its halves."""
    _ = case.first
    if case.criterion.form in ("whole", "scalar"):
        return ""
    whole, chance = case.halves
    return "" if whole > chance else f"|gradient|^2 is {whole:.3g}, no more than the {chance:.3g} of chance"


def noise(case: Case) -> Iterator[Finding]:
    """The simple noise scale against the batch."""
    _ = case.first
    if case.criterion.form in ("whole", "scalar"):
        raise NotRun("the criterion gives no losses of samples")
    norms = case.module is not None and any(isinstance(m, _BatchNorm) for m in case.module.modules())
    if not norms and case.independence.independent is False:
        raise NotRun("samples are coupled: a gradient of one alone says nothing")
    model, criterion = case.problem.model, case.criterion

    def losses(params: Any, args: Any, kwargs: Any, target: Any) -> Tensor:
        output = model(params, *args, **kwargs)
        rows = criterion.reduced(output, target, "none") if criterion.form == "reducible" else None
        return (
            criterion.rows(output, target).numerator
            if rows is None
            else rows.flatten(1).mean(1)
            if rows.dim() > 1
            else rows
        )

    # one pass; the loop, which a model may need, would be one a sample
    f = per_sample_grads(losses, batched=True, seed=case.seed, engine="factored", verify=False)
    case.count.backward += 6  # the pass, and whose row is whose
    problem = case.problem
    found, failed = attempt(lambda: gradient_noise_scale(f(model.params, problem.args, problem.kwargs, problem.target)))
    if found is None:
        raise NotRun(f"no per-sample gradients: {failed}")
    scale, n = float(found.scale), problem.size
    if float(found.squared_norm) <= 0:
        raise NotRun("noise prevails: its scale cannot be told from one batch")
    if scale > _limits.NOISE * n:
        text = f"noise scale {scale:.3g}, batch {n}: {scale / n:.3g} times, above {_limits.NOISE:g}"
        yield Finding("noisy_batch", "note", text, f"# batch_size={int(scale)}, or a smaller rate", "possible")


def disagree(case: Case) -> str:
    """The symptom: the criterion's mean is not that of its own losses, beyond weights and element counts."""
    criterion = case.criterion
    if criterion.form != "reducible" or case.kind or criterion.option("weight") is not None:
        return ""  # torch's own, whose weights are declared
    with torch.no_grad():
        found, _ = attempt(lambda: criterion.reduced(case.output, case.problem.target, "none"))
    if not isinstance(found, Tensor) or not found.dim() or criterion.option("reduction") not in (None, "mean"):
        return ""
    close = 100 * torch.finfo(found.dtype).eps * float(found.abs().mean())  # rounding of a sum
    means = {float(found.sum()) / size for size in (found.numel(), len(found))}
    if min(abs(mean - case.loss) for mean in means) <= close:
        return ""
    return f"the criterion's mean is {case.loss:.4g}, that of its losses {float(found.mean()):.4g}"


def reductions(case: Case) -> Iterator[Finding]:
    """`gf.audit.reductions` of the first samples."""
    _ = case.first
    size = min(case.problem.size, 8)
    found, failed = attempt(
        lambda: audit.reductions(
            case.problem.model, case.criterion, case.problem.batch, batch_size=size, seed=case.seed
        )
    )
    case.count.backward += 8 * size
    if found is None:
        raise NotRun(f"the audit fails: {failed}")
    if any(pair.fault for pair in found.pairs):
        names = ", ".join(found.causes)
        text = f"closed forms that match to rounding: {names}" if names else "no closed form that is known explains it"
        fix = "# g = gf.per_sample_grads(loss)(params, x, y).mean(): one weighted mean"
        yield Finding("reductions_disagree", "note", text, fix, "certain" if names else "possible", names)
