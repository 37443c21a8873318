"""Probes of the loss against its targets: kinds, shapes, ranges, and the best constant prediction."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import _limits
from ._case import Case
from ._finding import Finding, NotRun
from ._outputs import BINARY, CLASSES, RANGES, REGRESSION, squashed_twice


def _known(case: Case, *kinds: str) -> None:
    if case.kind not in kinds:
        raise NotRun(f"does not apply to {case.kind or 'this criterion'}, only to {', '.join(kinds)}")


def _without(case: Case, made: str) -> str:
    """A model without its last activation."""
    if isinstance(case.module, nn.Sequential):
        last = next(reversed(list(case.module)), None)
        if type(last).__name__.lower() == made.replace("_", ""):
            return "model = model[:-1]"
    return f"# drop {made} from the end of {type(case.module or case.problem.model).__name__}.forward"


def indices(case: Case) -> Iterator[Finding]:
    """Class indices that no output stands for."""
    _known(case, *CLASSES)
    yield from indices_out_of_range(case)
    yield from is_dimension(case)


def is_dimension(case: Case) -> Iterator[Finding]:
    """Classes in the last dimension of the output, where dimension 1 is theirs."""
    output = case.model_output
    if case.kind not in CLASSES or output is None or output.dim() < 3 or not isinstance(case.problem.target, Tensor):
        return
    y, classes = case.target, output.shape[-1]
    if y.is_floating_point() or y.shape != output.shape[:-1] or y.shape == (*output.shape[:1], *output.shape[2:]):
        return
    text = (
        f"output {tuple(output.shape)}, target {tuple(y.shape)} of values up to {int(y.max())}: the last dimension of "
    )
    text += f"the output is that of {classes} classes, and must be dimension 1"
    yield Finding(
        "class_dimension", "severe", text, "loss = criterion(model(x).movedim(-1, 1), y)", "certain", "output"
    )


def indices_out_of_range(case: Case) -> Iterator[Finding]:
    """Class indices that no output stands for."""
    if case.kind not in CLASSES or not isinstance(case.problem.target, Tensor) or case.target.is_floating_point():
        return
    output = case.model_output
    if output is None or output.dim() < 2 or list(is_dimension(case)):
        return
    classes = output.shape[1]
    y = case.targets[case.targets != int(case.criterion.option("ignore_index", -100))]
    bad = (y < 0) | (y >= classes)
    if bool(bad.any()):
        text = (
            f"{int(bad.sum())} of {y.numel()} are not within 0 and {classes - 1}: from {int(y.min())} to {int(y.max())}"
        )
        fix = (
            "y = y - y.min()" if int(y.max() - y.min()) < classes else f"# {int(y.max()) + 1} outputs in the last layer"
        )
        yield Finding("index_out_of_range", "severe", text, fix, "certain", "target")


def beyond(case: Case) -> Iterator[Finding]:
    """What binary cross entropy takes: outputs and targets within 0 and 1."""
    _known(case, *BINARY)
    yield from beyond_range(case)


def beyond_range(case: Case) -> Iterator[Finding]:
    """Outputs and targets beyond 0 and 1."""
    if case.kind not in BINARY or not isinstance(case.problem.target, Tensor):
        return
    y = case.targets
    if bool(((y < 0) | (y > 1)).any()):
        text = f"targets from {float(y.min()):.3g} to {float(y.max()):.3g}, not within 0 and 1"
        fix = "y = (y > 0).float()"
        yield Finding("target_out_of_range", "severe", text, fix, "certain", "target")
    output = case.model_output
    if output is not None and case.kind == "binary_cross_entropy" and bool(((output < 0) | (output > 1)).any()):
        text = f"outputs from {float(output.min()):.3g} to {float(output.max()):.3g}, not within 0 and 1"
        fix = "criterion = nn.BCEWithLogitsLoss()"
        if output.dim() == 2 and output.shape[1] > 1 and y.dim() == 1 and bool((y == y.round()).all()):
            fix = "criterion = nn.CrossEntropyLoss(); y = y.long()  # a class each, and an output a class"
        yield Finding("bce_on_logits", "severe", text, fix, "certain", "output")


def classes_as_numbers(case: Case) -> Iterator[Finding]:
    """Classes under a squared or absolute loss."""
    _known(case, *REGRESSION)
    yield from whole_numbers(case)


def whole_numbers(case: Case) -> Iterator[Finding]:
    """Targets that are classes, by their type, or by the shape of the output."""
    if case.kind not in REGRESSION or not isinstance(case.problem.target, Tensor):
        return
    y, output = case.target, case.model_output
    values = case.targets.unique()
    fix = "criterion = nn.CrossEntropyLoss(); y = y.long()  # and one output a class"
    told = f"targets of {y.dtype} with {len(values)} values under {case.kind}"
    if not y.is_floating_point() and y.dtype != torch.bool and len(values) >= 2:
        text = told + (f"; {case.error}" if case.error else "")
        sure = "certain" if case.error else "likely"
        yield Finding("classes_under_regression", "severe", text, fix, sure, "target")
    elif y.is_floating_point() and len(values) >= 2 and bool((values == torch.arange(len(values)).to(values)).all()):
        wide = output is not None and output.dim() == y.dim() + 1 and output.shape[0] == y.shape[0]
        if wide and output is not None and len(values) <= output.shape[1] > 1:
            text = f"output {tuple(output.shape)} has {output.shape[1]} numbers a sample, target {tuple(y.shape)} one: "
            text += f"whole numbers from 0 to {int(values.max())}, a class each"
            text += f"; {case.error}" if case.error else ""
            yield Finding("classes_under_regression", "severe", text, fix, "certain", "target")
        elif 3 <= len(values) <= 20 and case.made_by not in RANGES:  # or counts, or marks
            text = f"targets are the whole numbers from 0 to {len(values) - 1}, under {case.kind}"
            yield Finding("classes_under_regression", "warning", text, fix, "possible", "target")


def broadcast(case: Case) -> Iterator[Finding]:
    """Output and target of different shapes under a loss by elements."""
    _known(case, *REGRESSION)
    output, y = case.model_output, case.target
    if output is not None and output.shape != y.shape and not case.error and not list(whole_numbers(case)):
        shape = tuple(torch.broadcast_shapes(output.shape, y.shape))
        text = f"output {tuple(output.shape)} against target {tuple(y.shape)} gives losses of shape {shape}"
        fix = "y = y.squeeze(-1)" if output.dim() < y.dim() else "y = y.unsqueeze(-1)  # or model(x).squeeze(-1)"
        if output.numel() != y.numel():
            fix = f"# {output[0].numel()} targets a sample, or {y[0].numel()} outputs"
        yield Finding("broadcast_target", "severe", text, fix, "certain")


def outputs(case: Case) -> Iterator[Finding]:
    """Logits, probabilities or log-probabilities, and which of them the criterion takes."""
    if case.kind in ("", "nll_loss") and (made := squashed_twice(case.first.loss)):
        text = f"in the loss's graph {made} makes what log_softmax or a logistic loss takes"
        yield Finding("softmax_before_cross_entropy", "severe", text, _without(case, made), "certain", "the loss")
    _known(case, *CLASSES, *BINARY)
    out, made = case.output.detach().double(), case.made_by
    if case.kind == "binary_cross_entropy_with_logits" and made in ("sigmoid", "softmax"):
        text = f"the output is made by {made}"
        yield Finding("sigmoid_before_logits_loss", "severe", text, _without(case, made), "certain", "output")
    if case.kind != "binary_cross_entropy" and case.kind not in CLASSES[1:] and made == "relu":
        text = f"the output is made by relu: {float((out == 0).double().mean()):.0%} of logits are 0, none is below"
        yield Finding("relu_on_logits", "warning", text, _without(case, made), "certain", "output")
    if case.kind not in CLASSES or out.dim() < 2 or not bool(out.isfinite().all()):
        return
    if out.shape[1] == 1:
        column = "[:, None]" if case.target.dim() < out.dim() else ""
        fix = f"criterion = nn.BCEWithLogitsLoss(); y = y.float(){column}  # or one output a class"
        fix = fix if int(case.targets.max()) < 2 else "# one output a class"
        yield Finding("one_class", "severe", f"an output of shape {tuple(out.shape)}", fix, "certain", "output")
        return
    u = float(torch.finfo(case.output.dtype).eps)
    close = 10 * out.shape[1] * u  # rounding of a softmax and a sum
    positive = bool((out >= 0).all())
    probabilities = positive and bool(((out.sum(1) - 1).abs() <= close).all())
    if case.kind == "cross_entropy":
        if probabilities or made == "sigmoid":
            text = "outputs are >= 0 and sum to 1" if probabilities else "the output is made by sigmoid"
            fix = _without(case, made or "softmax")
            fix += ": cross_entropy takes logits" if fix.startswith("#") else "  # cross_entropy takes logits"
            sure = "certain" if made in ("softmax", "sigmoid") else "likely"
            yield Finding("softmax_before_cross_entropy", "severe", text, fix, sure, "output")
        return
    total = out.logsumexp(1)
    if probabilities:
        text, fix = "outputs are >= 0 and sum to 1", f"criterion = nn.CrossEntropyLoss(); {_without(case, 'softmax')}"
        yield Finding("nll_on_probabilities", "severe", text, fix, "certain", "output")
    elif made != "log_softmax" and bool((total.abs() > 100 * close).any()):
        text = f"the sum of exp(output) is not 1 but up to {float(total.max().exp()):.3g}"
        yield Finding("nll_on_logits", "severe", text, "criterion = nn.CrossEntropyLoss()", "certain", "output")


def reach(case: Case) -> Iterator[Finding]:
    """Whether the last activation can give the targets, and learns from being wrong."""
    _known(case, *REGRESSION)
    made, y = case.made_by, case.targets.double()
    if made not in RANGES:
        return
    low, high = RANGES[made]
    out = float(((y < low) | (y > high)).double().mean())
    if out > 0:
        text = f"{made} gives values within {low:g} and {high:g}; {out:.0%} of targets are not"
        yield Finding("target_out_of_reach", "severe", text, _without(case, made), "certain", "output")
    elif made in ("sigmoid", "softmax") and bool(((y == 0) | (y == 1)).all()):
        text = f"the output is made by {made}, targets are 0 and 1, the loss is {case.kind}"
        name = "CrossEntropyLoss" if made == "softmax" else "BCEWithLogitsLoss"
        fix = f"criterion = nn.{name}(); {_without(case, made)}"
        yield Finding("mse_on_sigmoid", "warning", text, fix, "certain", "output")


def size_of_target(case: Case) -> Iterator[Finding]:
    """Targets against outputs of unit size."""
    _known(case, *REGRESSION)
    y = case.targets
    if not y.is_floating_point() or case.made_by in RANGES:
        return
    size = float(y.double().square().mean().sqrt())
    if size > _limits.TARGET:
        severity = "severe" if size > _limits.TARGET**2 else "warning"
        text = f"root mean square {size:.3g} (mean {float(y.mean()):.3g}), above {_limits.TARGET:g}"
        yield Finding("unscaled_target", severity, text, "y = (y - y.mean()) / y.std()", "likely", "target")


def floor(case: Case) -> Iterator[Finding]:
    """The loss against that of the best constant prediction; outputs that do not follow the inputs."""
    best, loss = against_constant(case)
    spread = _spread(case)
    if (
        spread is not None
        and spread == 0
        and not any(case.problem.model.params[name].dim() > 1 for name in case.waiting)
    ):
        text = f"outputs of all samples are equal; the best constant has the loss {best:.4g}, yours {loss:.4g}"
        fix = "# is x read at all in forward? See the other findings too"
        yield Finding("constant_output", "severe", text, fix, "likely", "output")
    elif best > 0 and loss > _limits.WORSE * best and len(case.targets) >= _limits.CONSTANT:
        text = f"loss {loss:.4g}, best constant {best:.4g}: {loss / best:.3g} times, above {_limits.WORSE:g}"
        yield Finding("worse_than_constant", "warning", text, _constant(case), "possible", "output")


def against_constant(case: Case) -> tuple[float, float]:
    """The loss of the best constant prediction, and the user's, each a mean over entries."""
    best = _floor(case)
    return best, case.loss / case.target.numel() if case.criterion.option("reduction") == "sum" else case.loss


def _constant(case: Case) -> str:
    """The last layer set to the best constant, and a tenth of what it adds to it."""
    output, y = case.output, case.target
    last = next((row.layer for row in reversed(case.flow.rows) if row.parameters), "")
    layer = None if case.module is None else dict(case.module.named_modules()).get(last)
    bias = getattr(layer, "bias", None)
    start = {
        "mse_loss": "y.float().mean(0)",
        "cross_entropy": f"y.bincount(minlength={output.shape[-1]}).div(len(y)).clamp_min(1e-6).log()",
    }.get(case.kind, "y.float().mean(0).logit(1e-6)")
    if not isinstance(bias, Tensor) or output.dim() > 2 or y.dim() > 2 or bias.numel() != output[0].numel():
        return f"# start at the best constant: the bias of the last layer is {start}, its weight small"
    own = f"model.get_submodule({last!r})"
    return f"{own}.bias.data[:] = {start}; {own}.weight.data *= 0.1"


def _spread(case: Case) -> float | None:
    out = case.output.detach()
    same = [torch.equal(value, value[:1].expand_as(value)) for value in case.problem.args if isinstance(value, Tensor)]
    if len(out) < 2 or out.dim() < 1 or all(same):
        return None
    return float((out - out[:1]).abs().max())


def _floor(case: Case) -> float:
    y = case.targets
    if any(case.criterion.option(weights) is not None for weights in ("weight", "pos_weight")):
        raise NotRun("the criterion weighs its losses")
    if case.kind == "mse_loss":
        return float(y.double().var(0, correction=0).mean())
    if case.kind == "cross_entropy" and not y.is_floating_point() and y.dim() == 1:
        shares = y.unique(return_counts=True)[1].double() / len(y)
        return float(-(shares * shares.log()).sum())
    if case.kind in BINARY:
        p = y.double().mean(0).clamp(1e-12, 1 - 1e-12)
        return float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
    raise NotRun("the best constant of this criterion is not known in closed form")


def summed(case: Case) -> Iterator[Finding]:
    """A loss that grows with the batch."""
    if case.criterion.form != "reducible":
        raise NotRun("the criterion's reduction is its own")
    if case.criterion.option("reduction") == "sum" and case.problem.size > 1:
        grows = case.optimizer is not None and case.module is not None and not case.falls
        text = (
            f"reduction='sum' over {case.problem.size} samples: steps are {case.problem.size} times those of the mean"
        )
        text += "; the loss grows under them" if grows else ""
        module = isinstance(case.criterion.given, nn.Module)
        fix = "criterion.reduction = 'mean'" if module else "# reduction='mean'"
        yield Finding("sum_reduction", "severe" if grows else "warning", text, fix, "certain")
