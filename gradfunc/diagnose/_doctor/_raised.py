"""Probes of errors that model or criterion raise: what shapes, types and indices say of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..._random import forked
from ..._tree import tensors_of
from ...audit._case import devices_of
from ._case import Case
from ._finding import Finding
from ._loss import beyond_range, indices_out_of_range, is_dimension, whole_numbers
from ._outputs import BINARY, CLASSES, REGRESSION


def runs(case: Case) -> Iterator[Finding]:
    """An error of model or criterion: what it comes from, as far as another probe does not say it."""
    if not case.error:
        return
    explained = (indices_out_of_range(case), beyond_range(case), is_dimension(case), whole_numbers(case))
    if any(list(findings) for findings in explained):
        return
    if case.model_output is None and case.criterion.form != "whole":
        yield from _model(case)
        return
    why, fix = _criterion(case)
    yield Finding("loss_fails", "severe", f"{why}{case.error}", fix, "certain", "the criterion")


def _criterion(case: Case) -> tuple[str, str]:
    """Words on what the criterion was given, and a fix."""
    output, y = case.model_output, case.problem.target
    if not isinstance(output, Tensor) or not isinstance(y, Tensor):
        return "", "# compare shapes and types of model(x) and y"
    given = f"output {tuple(output.shape)} of {_name(output)}, target {tuple(y.shape)} of {_name(y)}: "
    classes = not y.is_floating_point() or bool((y == y.round()).all())
    if case.kind in CLASSES:
        if y.shape == (len(output), 1):
            return given + "classes come without a dimension of their own; ", "y = y.squeeze(1)"
        if y.is_floating_point() and classes and y.shape != output.shape:
            return given + "classes are integers; ", "y = y.long()"
    if case.kind in BINARY and classes and output.dim() == 2 and output.shape[1] > 1 and y.dim() == 1:
        fix = "criterion = nn.CrossEntropyLoss(); y = y.long()  # or one output a sample"
        return given + f"{output.shape[1]} outputs a sample, and a class each; ", fix
    if case.kind in BINARY + REGRESSION and not y.is_floating_point():
        return given + "both must be of a floating type; ", "y = y.float()"
    if case.kind in BINARY + REGRESSION and output.shape != y.shape and output.numel() == y.numel():
        return given + "shapes must be equal; ", "y = y.view_as(output)"
    return given, "# compare shapes and types of model(x) and y"


def _model(case: Case) -> Iterator[Finding]:
    """The model itself fails: in which layer, and on what."""
    where, layer = _where(case)
    inputs = [tensor for value in (case.problem.args, case.problem.kwargs) for tensor in tensors_of(value)]
    if isinstance(layer, nn.Embedding):
        tokens = [tensor for tensor in inputs if not tensor.is_floating_point() and tensor.numel()]
        most = max((int(tensor.max()) for tensor in tokens), default=-1)
        if most >= layer.num_embeddings:
            text = f"indices go to {most}, its table has {layer.num_embeddings} rows"
            fix = f"# nn.Embedding({most + 1}, {layer.embedding_dim}), or a vocabulary of {layer.num_embeddings}"
            yield Finding("index_out_of_range", "severe", text, fix, "certain", where)
            return
    own = next(iter(case.problem.model.params.values())).dtype
    other = next((t for t in inputs if t.is_floating_point() and t.dtype != own), None)
    fix, text = "# compare what this layer takes with what it is given", case.error
    if other is not None:
        fix, text = f"x = x.to({own})", f"inputs of {_name(other)}, parameters of {str(own)[6:]}: {case.error}"
    yield Finding("loss_fails", "severe", text, fix, "certain", where or "the model")


def _where(case: Case) -> tuple[str, nn.Module | None]:
    """The innermost layer that was running when the model failed, by the frames of the error."""
    params = {name: value.detach() for name, value in case.problem.model.params.items()}
    case.count.forward += 1
    try:
        with torch.no_grad(), forked(case.seed, 0, devices=devices_of(case.problem)):
            case.problem.output(functools.partial(case.problem.model, params))
    except Exception as error:
        names: dict[nn.Module, str] = {}
        found: tuple[str, nn.Module | None] = "", None
        trace = error.__traceback__
        while trace is not None:
            own = trace.tb_frame.f_locals.get("self")
            if isinstance(own, nn.Module):
                if own not in names:
                    names |= {module: name for name, module in own.named_modules()}
                found = names[own], own
            trace = trace.tb_next
        return found
    return "", None


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
