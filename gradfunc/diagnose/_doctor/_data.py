"""Probes of the data: numbers, scales, copies, classes, and whether targets belong to inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._tree import tensors_of
from . import _limits
from ._case import Case
from ._finding import Finding, NotRun

_NORMS = ("batch_norm", "layer_norm", "instance_norm", "group_norm")


def finite(case: Case) -> Iterator[Finding]:
    """NaN or infinity in inputs or targets."""
    for k, batch in enumerate(case.batches):
        for tensor in tensors_of(batch.batch):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(1) if tensor.dim() else torch.ones(1).bool()
                rows = bad.nonzero().flatten()[:5].tolist()
                text = f"{int(bad.sum())} of {len(bad)} samples of batch {k}; none is allowed"
                name = "y" if tensor is batch.target else "x"
                all_of = ".flatten(1).all(1)" if tensor.dim() > 1 else ""
                fix = f"keep = {name}.isfinite(){all_of}; x, y = x[keep], y[keep]"
                yield Finding("nonfinite_data", "severe", text, fix, "certain", f"samples {rows}")
                return


def _features(case: Case) -> Tensor:
    """Finite inputs `[n, features]` in float64; channels of images."""
    x = case.inputs.double()
    x = x.movedim(1, -1) if x.dim() >= 4 else x
    x = x.reshape(-1, x.shape[-1])
    if not bool(x.isfinite().all()):
        raise NotRun("the inputs are not finite")
    return x


def scales(case: Case) -> Iterator[Finding]:
    """Sizes of features: against each other, and against 1."""
    x = _features(case)
    if len(x) < 2:
        raise NotRun("one sample has no spread")
    if _normalised(case):
        return
    sizes = x.abs().amax(0)
    used = sizes[sizes > 0]
    if not len(used):
        return
    quotient = float(used.max() / used.min())
    if quotient > _limits.FEATURES:
        small, large = int(torch.where(sizes > 0, sizes, torch.inf).argmin()), int(sizes.argmax())
        text = (
            f"feature {large} reaches {float(sizes[large]):.3g}, feature {small} {float(sizes[small]):.3g}: "
            f"{quotient:.3g} times, above {_limits.FEATURES:g}"
        )
        yield Finding("unscaled_features", "severe", text, _scaled(case, x), "likely", f"features {small}, {large}")
        return
    size = float(x.square().mean().sqrt())
    if size > _limits.SIZE or size < 1 / _limits.SIZE**2:
        text = (
            f"root mean square {size:.3g} (mean {float(x.mean()):.3g}), not within {1 / _limits.SIZE**2:g} and "
            f"{_limits.SIZE:g}"
        )
        severity = "severe" if size > _limits.SIZE else "warning"
        yield Finding("unscaled_inputs", severity, text, _scaled(case, x), "likely")


def _scaled(case: Case, x: Tensor) -> str:
    """Features or channels of mean 0 and variance 1; one that does not vary is only moved."""
    dims = case.inputs.dim()
    over = tuple(k for k in range(dims) if k != (1 if dims >= 4 else dims - 1))
    mean, scale = ("x.mean(0)", "x.std(0)") if dims == 2 else (f"x.{s}({over}, keepdim=True)" for s in ("mean", "std"))
    if bool((x.std(0) <= _limits.CONSTANT_STD * x.abs().amax(0)).any()):
        most = "x.abs().amax(0)" if dims == 2 else f"x.abs().amax({over}, keepdim=True)"
        scale = f"{scale}.where({scale} > {_limits.CONSTANT_STD:g} * {most}, 1)"
    return f"x = (x - {mean}) / {scale}  # with the statistics of the training set"


def _normalised(case: Case) -> bool:
    """Whether the first layer normalises each feature."""
    if case.error:
        return False
    rows = case.flow.rows
    return bool(rows) and any(norm in rows[0].function for norm in _NORMS)


def constants(case: Case) -> Iterator[Finding]:
    """Columns that do not vary, inputs that are all the same."""
    x = case.inputs.flatten(1)
    if len(x) < 2:
        raise NotRun("one sample has no spread")
    same = (x == x[:1]).all(0)
    if bool(same.all()):
        text = f"all {len(x)} samples are equal"
        yield Finding("identical_inputs", "severe", text, "# check the indexing of your dataset", "certain")
    elif len(x) >= _limits.CONSTANT and bool(same.any()) and case.inputs.dim() == 2:
        where = same.nonzero().flatten().tolist()
        text = f"{len(where)} of {x.shape[1]} features have one value in {len(x)} samples"
        fix = "x = x[:, (x != x[:1]).any(0)]  # and a first layer for as many"
        yield Finding("constant_features", "note", text, fix, "certain", f"features {where[:5]}")


def copies(case: Case) -> Iterator[Finding]:
    """Samples that are there twice; equal inputs with different targets."""
    x = case.inputs.flatten(1)
    distinct, group = torch.unique(x, dim=0, return_inverse=True)
    if len(distinct) in (1, len(x)):
        return
    share = 1 - len(distinct) / len(x)
    y = case.targets
    if len(y) == len(x):
        pairs = torch.unique(torch.cat([group[:, None].double(), y.reshape(len(y), -1).double()], 1), dim=0)
        clash = len(pairs) - len(distinct)
        if clash > _limits.DUPLICATES * len(x):
            text = f"{clash} more pairs of input and target than inputs, above {_limits.DUPLICATES:.0%} of {len(x)}"
            fix = "# which target is right? x.unique(dim=0, return_inverse=True)[1] numbers equal inputs alike"
            yield Finding("contradicting_labels", "severe", text, fix, "likely")
            return
    if share > _limits.DUPLICATES:
        text = f"{share:.0%} of {len(x)} samples repeat another, above {_limits.DUPLICATES:.0%}"
        fix = "x, at = x.unique(dim=0, return_inverse=True); "
        fix += "y = y.new_empty(len(x), *y.shape[1:]).index_copy_(0, at, y)"
        yield Finding("duplicates", "warning", text, fix, "certain")


def _classes(case: Case) -> Tensor:
    y = case.targets
    y = y.reshape(len(y), -1)
    if y.shape[1] != 1 or not bool((y == y.round()).all()):
        raise NotRun("targets are no classes, one a sample")
    distinct = len(y.unique())
    if distinct * 4 > len(y) or (y.is_floating_point() and distinct > 2):
        raise NotRun("targets are no classes, or too few samples of each")
    return y[:, 0].long()


def imbalance(case: Case) -> Iterator[Finding]:
    """One class prevails."""
    y = _classes(case)
    if any(case.criterion.option(weights) is not None for weights in ("weight", "pos_weight")):
        raise NotRun("the criterion weighs classes")
    values, counts = y.unique(return_counts=True)
    share = float(counts.max()) / len(y)
    if share > _limits.IMBALANCE and len(y) >= _limits.CONSTANT:
        text = f"{share:.1%} of {len(y)} samples are of class {int(values[counts.argmax()])}, above 90%"
        yield Finding("class_imbalance", "warning", text, _balanced(case), "certain")


def _balanced(case: Case) -> str:
    """The criterion with weights of classes."""
    output = case.model_output
    names = {"cross_entropy": "CrossEntropyLoss", "nll_loss": "NLLLoss"}
    if case.kind in names and output is not None and output.dim() > 1:
        counts = f"y.bincount(minlength={output.shape[1]}).clamp_min(1)"
        return f"criterion = nn.{names[case.kind]}(weight=len(y) / ({output.shape[1]} * {counts}))"
    if case.kind == "binary_cross_entropy_with_logits":
        return "criterion = nn.BCEWithLogitsLoss(pos_weight=(y == 0).sum() / (y == 1).sum())"
    return "# draw each class as often, or weigh losses by len(y) / how often their class is there"


def labels(case: Case) -> Iterator[Finding]:
    """Whether neighbours agree on the target more than chance has it, as given and one row off."""
    x, y = case.inputs.flatten(1).double(), case.targets
    if len(x) < _limits.NEIGHBOURS or len(y) != len(x):
        raise NotRun(f"fewer than {_limits.NEIGHBOURS} samples with a target each")
    if not bool(x.isfinite().all()) or not bool(y.isfinite().all()):
        raise NotRun("the data are not finite")
    x, y = x[: _limits.SAMPLES], y.reshape(len(y), -1)[: _limits.SAMPLES].double()
    if y.shape[1] != 1:
        raise NotRun("several targets a sample")
    if len(y.unique()) < 2:
        raise NotRun("one target for all")
    spread = x.std(0)
    x = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
    classes = case.targets.dtype in (torch.int64, torch.int32, torch.bool) or len(y.unique()) == 2
    near = _near(x)
    fitted = x if 2 * x.shape[1] < len(x) else x[:, :0]  # as many features as samples would fit anything
    ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    design = torch.linalg.qr(torch.cat([ones, fitted], 1)).Q
    generator = torch.Generator().manual_seed(case.seed)
    orders = torch.stack([torch.randperm(len(y), generator=generator) for _ in range(_limits.PERMUTATIONS)])
    shifts = torch.stack([torch.arange(len(y)).roll(k) for k in (0, 1, -1)])
    given = torch.cat([shifts, orders]).to(y.device)
    agree = _agreement(y[given, 0], near, design, classes)  # [orders, 2]
    # Each statistic against its own permutations; the better of two, hence twice the p-value.
    higher = agree[None, 3:] >= agree[:3, None]
    p = (2 * (1 + higher.sum(1)).double() / (_limits.PERMUTATIONS + 1)).amin(1).clamp(max=1.0).tolist()
    if p[0] <= _limits.UNRELATED:
        return
    for shift, value in ((1, p[1]), (-1, p[2])):
        if value <= 2 * _limits.RELATED:
            text = (
                f"rolled by {shift} targets fit their inputs (p = {value:.2g}); as given they do not (p = {p[0]:.2g})"
            )
            yield Finding("labels_shifted", "severe", text, f"y = y.roll({shift})", "likely")
            return
    text = (
        f"neighbours agree on targets, and a linear fit explains them, no better than permuted ones do: p = {p[0]:.2g} "
        f"above {_limits.UNRELATED:g}, {len(y)} samples"
    )
    fix = "# one order for both: order = torch.randperm(len(x)); x, y = x[order], y[order]"
    yield Finding("labels_unrelated", "warning", text, fix, "possible")


def _near(x: Tensor, k: int = 5) -> Tensor:
    """Indices of each row's nearest others."""
    far = torch.cdist(x, x)
    far.fill_diagonal_(torch.inf)
    return far.topk(k, largest=False).indices


def _agreement(y: Tensor, near: Tensor, design: Tensor, classes: bool) -> Tensor:
    """How neighbours agree, and how much of the targets `[orders, n]` a linear fit explains: `[orders, 2]`."""
    others = y[:, near]  # [orders, n, k]
    own = y[:, :, None]
    close = (others == own).double().mean((1, 2)) if classes else -(others.mean(2) - y).square().mean(1)
    return torch.stack([close, ((y - y.mean(1, keepdim=True)) @ design).square().sum(1)], 1)
