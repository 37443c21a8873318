"""Checks of what computing gradients leaves behind: dtypes, shared storage, the module, generators, repetition."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._certificate import Difference, compare_rows
from .._per_sample import PerSampleGrads
from .._tree import tensors_of
from ..audit._case import attempt
from ._agreement import measured, results_of
from ._report import CheckRow
from ._side import ENGINES, Side, Sides
from ._verdict import Judge

_RAN = "what other layers do to it is not known"


def dtypes(sides: Sides) -> CheckRow:
    """Gradients have the dtypes of their parameters, by every engine that runs."""
    params, wrong = sides.asked.problem.model.params, []
    ran = []
    for engine in ENGINES:
        g, _ = attempt(partial(sides.asked.function(engine), params, *sides.asked.tensors))
        if g is None:
            continue
        ran.append(engine)
        for what, grads in (("rows", g.materialize()), ("sum", g.sum())):
            wrong += [(name, f"{what} by {engine} {value.dtype}") for name, value in grads.items()
                      if value.dtype != params[name].dtype]  # fmt: skip
    compares = "the dtype of each gradient, and of its parameter"
    if not ran:
        return CheckRow("dtypes", compares, verdict="not run", cause="no engine runs")
    if wrong:
        name, what = wrong[0]
        return CheckRow("dtypes", compares, verdict="wrong", parameter=name, cause=f"{what}, not {params[name].dtype}.")
    return CheckRow("dtypes", compares)


def aliases(sides: Sides) -> CheckRow:
    """No result shares storage with parameters, batch or another result, by every engine that runs."""
    compares = "the storage of each result, and that of parameters, batch and other results"
    side, ran, why = sides.asked, False, ""
    params = side.problem.model.params
    for engine in ENGINES:
        g, failed = attempt(partial(side.function(engine), params, *side.tensors))
        if g is None:
            why = why or failed or ""
            continue
        ran = True
        if found := _shared(side, g):
            owner, what = found
            cause = f"{what} by {engine} shares it."
            return CheckRow("storage", compares, verdict="wrong", parameter=owner, cause=cause)
    return CheckRow("storage", compares) if ran else CheckRow("storage", compares, verdict="not run", cause=why)


def _shared(side: Side, g: PerSampleGrads) -> tuple[str, str] | None:
    """Who owns a storage that a result shares, and which result."""
    owners = {_storage(value): f"parameter {name}" for name, value in side.problem.model.params.items()}
    owners |= {_storage(tensor): "the batch" for tensor in side.tensors}
    results = results_of(g)  # held, so that no storage is used for a second one
    for what, result in results.items():
        for tensor in tensors_of(result):
            if tensor.numel() and (owner := owners.setdefault(_storage(tensor), what)) is not what:
                return owner, what
    return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def repetition(sides: Sides, judge: Judge) -> CheckRow:
    """Two calls give the same bits."""
    cause = "Two calls with the same seed differ: something draws outside of torch, or keeps a state."
    for engine in ENGINES:
        row = measured(sides, judge, "repetition", f"two calls of engine {engine}", partial(_twice, engine), cause)
        if row.verdict != "not run":
            return row
    return row


def _twice(engine: str, side: Side) -> Difference:
    return compare_rows(side.rows(engine), side.rows(engine))


# --- what is left behind ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A module, its batch and the generators, as they are at one time."""

    tensors: dict[str, tuple[Tensor, Tensor, int, Tensor | None, Tensor | None]]
    attributes: dict[str, Any]
    batch: list[tuple[Tensor, Tensor]]
    generators: dict[str, Any]
    grad_mode: bool

    @classmethod
    def of(cls, module: nn.Module | None, batch: Any) -> Snapshot:
        """Take one."""
        return cls(
            tensors=_tensors(module),
            attributes=_attributes(module),
            batch=[(tensor, tensor.detach().clone()) for tensor in tensors_of(batch)],
            generators=_generators(),
            grad_mode=torch.is_grad_enabled(),
        )

    def changed(self, module: nn.Module | None) -> Iterator[tuple[str, str]]:
        """`(name, what about it)` for all that is not as it was."""
        now = _tensors(module)
        for name, (tensor, values, version, grad, grad_values) in self.tensors.items():
            if name not in now or now[name][0] is not tensor:
                yield name, "is another tensor"
            elif not _same(tensor, values):
                yield name, "has other values"
            elif tensor._version != version:
                yield name, "was written to"
            elif now[name][3] is not grad or (grad is not None and not _same(grad, grad_values)):
                yield name, "has another .grad"
        yield from ((name, "is new") for name in now if name not in self.tensors)
        attributes = _attributes(module)
        for name in {**self.attributes, **attributes}:
            missing = object()
            if not _unchanged(self.attributes.get(name, missing), attributes.get(name, missing)):
                yield name, "changed"
        if not all(_same(tensor, values) for tensor, values in self.batch):
            yield "the batch", "has other values"
        generators = _generators()
        yield from (
            (name, "moved") for name, state in self.generators.items() if not _same_state(state, generators[name])
        )
        if self.grad_mode != torch.is_grad_enabled():
            yield "grad mode", "changed"


def purity(before: Snapshot, module: nn.Module | None) -> CheckRow:
    """Whether anything is left behind by all the runs of a check."""
    compares = "module, hooks, modes, attributes, .grad, batch, generators and grad mode before and after"
    found = list(before.changed(module))
    if not found:
        return CheckRow("purity", compares)
    name, what = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    cause = f"{name} {what}{more}. The model ran on copies of its modules: it changes what lies outside of them."
    return CheckRow("purity", compares, verdict="wrong", parameter=name, cause=cause)


def _tensors(module: nn.Module | None) -> dict[str, tuple[Tensor, Tensor, int, Tensor | None, Tensor | None]]:
    if module is None:
        return {}
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {
        name: (t, t.detach().clone(), t._version, t.grad, None if t.grad is None else t.grad.detach().clone())
        for name, t in held
    }


def _attributes(module: nn.Module | None) -> dict[str, Any]:
    """`__dict__` of every layer (modes, hooks and what a forward pass assigns), containers copied."""
    out = {}
    for name, layer in module.named_modules() if module is not None else ():
        for key, value in layer.__dict__.items():
            if key in ("_parameters", "_buffers"):  # compared as tensors
                continue
            copied = isinstance(value, (dict, list, set))
            out[f"{name}.{key}".lstrip(".")] = type(value)(value) if copied and type(value) in _COPIED else value
    return out


_COPIED = (dict, list, set, type(nn.Module()._forward_hooks))


def _unchanged(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_unchanged(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(_unchanged(x, y) for x, y in zip(a, b, strict=True))
    if a is b:
        return True
    plain = (bool, int, float, str, set, bytes, type(None))
    return isinstance(a, plain) and isinstance(b, plain) and a == b


def _generators() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch's generator": torch.get_rng_state(),
        "Python's generator": random.getstate(),
        "numpy's generator": np.random.get_state(legacy=False),
    }
    if torch.cuda.is_initialized():
        states |= {f"generator of cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_same_state(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    return bool(torch.equal(a, b)) if isinstance(a, Tensor) else bool(a == b)


def _same(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    a = a.detach()
    return bool(((a == b) | ((a != a) & (b != b))).all())
