"""Probes of parameters that get no gradient, or that the optimiser does not hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._stateless import Stateless
from ..._tree import Tensors
from ...audit._case import attempt
from ._case import Case
from ._finding import Finding, NotRun
from ._outputs import names_in

_SHOWN = 5
_TRIED = 8  # parameters that are moved one by one
_STEPS = {"Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn", "Heaviside"}


def all_frozen(model: Stateless) -> Finding:
    """No parameter to train."""
    text = f"0 trainable parameters, {len(model.frozen)} frozen"
    return Finding("all_frozen", "severe", text, "model.requires_grad_(True)", "certain")


def reached(case: Case) -> Iterator[Finding]:
    """Parameters without a gradient: whether the loss depends on them all the same."""
    yield from _flat(case)
    lost = [name for name, g in case.first.gradients.items() if g is None]
    if not lost:
        return
    cut = _cut(case, lost)
    unused = [name for name in lost if name not in cut]
    if cut:
        text = f"the loss moves with them, and autograd gives none: {len(cut)} of {len(lost)} without a gradient"
        fix = "# no detach(), .data, .item(), numpy() or no_grad() between parameter and loss"
        yield Finding("gradient_cut", "severe", text, fix, "certain", _listed(cut))
    if unused:
        text = f"{len(unused)} parameters have no gradient, and the loss does not move with them"
        fix = f"# use {unused[0].rpartition('.')[0] or unused[0]} in forward, or delete it"
        yield Finding("unused_parameter", "warning", text, fix, "likely", _listed(unused))


def without(case: Case) -> set[str]:
    """Parameters that no gradient comes to, or none but 0 through an operation that is constant in pieces."""
    return {name for name, g in case.first.gradients.items() if g is None} | set(_still(case))


def _still(case: Case) -> list[str]:
    if not names_in(case.first.loss) & _STEPS:
        return []
    return [name for name, g in case.first.gradients.items() if g is not None and not bool(g.any())]


def _flat(case: Case) -> Iterator[Finding]:
    """Gradients of exactly 0 behind an operation that is constant in pieces."""
    still, steps = _still(case), names_in(case.first.loss) & _STEPS
    if still:
        text = (
            f"the gradient of {len(still)} parameters is exactly 0: {', '.join(sorted(steps)).lower()} has derivative 0"
        )
        fix = "# straight-through: x + (x.round() - x).detach() is x.round() forward, and the identity backward"
        yield Finding("gradient_cut", "severe", text, fix, "certain", _listed(still))


def _cut(case: Case, lost: list[str]) -> list[str]:
    """Those that the loss moves with: all moved together first, then one by one."""

    def loss(params: Tensors) -> Tensor | None:
        found, _ = attempt(lambda: case.loss_of(case.problem, params)[1].detach())
        return found if isinstance(found, Tensor) else None

    def moves(names: list[str]) -> bool:
        params = dict(case.problem.model.params)
        generator = torch.Generator().manual_seed(case.seed)
        for name in names:
            noise = torch.randn(params[name].shape, generator=generator).to(params[name])
            params[name] = params[name] + (float(params[name].abs().max()) or 1.0) * noise
        here, there = loss(dict(case.problem.model.params)), loss(params)
        return here is not None and there is not None and not torch.equal(here, there)

    if not moves(lost):
        return []
    return [name for name in lost[:_TRIED] if moves([name])] or lost


def held(case: Case) -> Iterator[Finding]:
    """The optimiser's parameters against the model's."""
    if case.optimizer is None or case.module is None:
        raise NotRun("no optimizer was given" if case.optimizer is None else "the model is no nn.Module")
    own = {id(value): name for name, value in case.module.named_parameters()}
    groups = [value for group in case.optimizer.param_groups for value in group["params"]]
    there = {id(value) for value in groups}
    rate = f", lr={case.optimizer.param_groups[0]['lr']:g}" if "lr" in case.optimizer.param_groups[0] else ""
    kind = type(case.optimizer)
    home = "torch.optim." if kind.__module__.startswith("torch.optim") else ""
    fix = f"optimizer = {home}{kind.__name__}(model.parameters(){rate})  # after the model is made and moved"
    left_out = [name for key, name in own.items() if key not in there and name in case.problem.model.params]
    strangers = sum(id(value) not in own for value in groups)
    if not any(key in own for key in there):
        text = f"none of its {len(groups)} parameters is among the model's {len(own)}"
        yield Finding("other_parameters", "severe", text, fix, "certain")
    elif left_out:
        text = f"{len(left_out)} of {len(own)} trainable parameters are not in it"
        text += f"; {strangers} others are" if strangers else ""
        new = f"[p for n, p in model.named_parameters() if n in {left_out}]" if len(left_out) <= _SHOWN else ""
        fix = f"optimizer.add_param_group({{'params': {new}}})" if new and not strangers else fix
        severity = "severe" if strangers else "warning"
        yield Finding("parameters_left_out", severity, text, fix, "certain", _listed(left_out))
    frozen = [own.get(id(value), "?") for value in groups if not value.requires_grad]
    if frozen:
        text = f"{len(frozen)} of {len(groups)} do not require grad, and stay"
        fix = f"optimizer = {home}{kind.__name__}([p for p in model.parameters() if p.requires_grad]{rate})"
        yield Finding("frozen_in_optimizer", "note", text, fix, "certain", _listed(frozen))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
