"""Any rule of torch.optim as a pure stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._errors import kind_of, message
from ..._swap import levels
from ..._tree import Tensors
from .._chain import Rule
from .._landing import Landing
from .._numbers import NOT_NEGATIVE, Number, at, check_number, count_of, shown
from .._protocol import State, Updates
from .._stage import How, check_grads, check_params, picked

REFUSED = {
    "LBFGS": "it evaluates the loss again within a step",
    "SparseAdam": "it takes sparse gradients alone, and these are dense",
}


@dataclass(frozen=True, repr=False)
class TorchOptim(Rule):
    """Made by `gf.from_torch_optim`, which has the meanings."""

    rule: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    lr: Number | None

    @property
    def name(self) -> str:
        """That of torch's class."""
        return self.rule.__name__

    def init(self, params: Tensors, /) -> State:
        """What the optimizer will remember, all of it 0: found by a step of zeros on copies.

        `updates` counts a parameter's updates; before the first the optimizer makes its own beginning.
        """
        fresh = {name: value.detach().clone() for name, value in params.items()}
        optimizer, leaves = self._made(fresh, {"count": 0})
        before = _numbers(optimizer)
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)
        optimizer.step()
        kept = {name: _plain(self, name, optimizer.state[leaf]) for name, leaf in leaves.items()}
        after = _numbers(optimizer)
        return {
            "count": 0,
            "updates": dict.fromkeys(params, 0),
            "state": {name: {key: _zero(value) for key, value in one.items()} for name, one in kept.items()},
            "group": {key: _zero(value) for key, value in after.items() if _moved(before.get(key), value)},
        }

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Updates, State]:
        """A step of a fresh optimizer on copies of the parameters."""
        values, given = check_grads(self, grads), check_params(self, params)
        if levels():
            got, do = "a transform of torch.func around it", "Our own rules, such as gf.adam, can be differentiated."
            call = f"{self!r}.update(grads, state, params)"
            raise RuntimeError(message(call, got=got, expected="a step outside: an optimizer writes in place", do=do))
        before = dict(zip(values, picked(self, given, values), strict=True))
        seen = dict(zip(values, picked(self, state["updates"], values), strict=True))
        if not values:
            return Updates(Landing({}, {})), {**state, "count": count_of(state) + 1}
        optimizer, leaves = self._made({name: value.detach().clone() for name, value in before.items()}, state)
        for (name, leaf), gradient in zip(leaves.items(), how.own(values.values()), strict=True):
            leaf.grad = gradient.detach().to(leaf.dtype)
            if seen[name]:
                optimizer.state[leaf] = {key: _own(how, value) for key, value in state["state"][name].items()}
        group = optimizer.param_groups[0]
        if count_of(state):
            group.update({key: _own(how, value) for key, value in state["group"].items()})
        unmoved = _numbers(optimizer)
        with torch.no_grad():
            optimizer.step()
        kept = {name: _plain(self, name, optimizer.state[leaf]) for name, leaf in leaves.items()}
        after = _numbers(optimizer)
        known, found = set(state["group"]), {k for k, value in after.items() if _moved(unmoved.get(k), value)}
        if found - known:
            got = f"an optimizer that changes {sorted(found - known)} of its group, as its first step did not"
            raise RuntimeError(
                message(f"{self!r}.update(grads, state, params)", got=got, expected="the same each step")
            )
        landing = Landing(before, {name: leaf.detach() for name, leaf in leaves.items()})
        state = {
            "count": count_of(state) + 1,
            "updates": {**state["updates"], **{name: int(times) + 1 for name, times in seen.items()}},
            "state": {**state["state"], **kept},
            "group": {key: after[key] for key in state["group"]},
        }
        return Updates(landing), state

    def _made(self, fresh: Tensors, state: State) -> tuple[torch.optim.Optimizer, dict[str, torch.nn.Parameter]]:
        """An optimizer as the user would make it, on these tensors."""
        leaves = {name: torch.nn.Parameter(value) for name, value in fresh.items()}
        options: dict[str, Any] = {
            key: value.clone() if isinstance(value, Tensor) else value for key, value in self.options.items()
        }
        if self.lr is not None:
            options["lr"] = at(repr(self), "lr", self.lr, NOT_NEGATIVE, state)
        return self.rule(list(leaves.values()), **options), leaves

    def __repr__(self) -> str:
        options = dict(self.options) if self.lr is None else {"lr": self.lr, **self.options}
        shows = [f"{key}={shown(value)}" for key, value in options.items()]
        return f"from_torch_optim({', '.join([self.name, *shows])})"


def from_torch_optim(rule: type[torch.optim.Optimizer], **options: Any) -> TorchOptim:
    """A class of `torch.optim`, or one like it, as a rule from gradients to updates; bit by bit the same steps.

    Each update makes an optimizer anew, on copies of the parameters and with the remembered state, and lets it step;
    the user's tensors are read alone, and no `.grad` is set on them. `gf.apply_updates` on the parameters that the
    update was given leads exactly to the optimizer's own result. A parameter without a gradient stays as it is, as one
    whose `.grad` is None. Several groups of options are several rules: `gf.partition`.

    The state is `{"count": updates, "updates": {name: updates of this one}, "state": {name: the optimizer's own},
    "group": what its steps change of its options}`, whose form is known by a step of zeros on copies in `init`.

    Args:
        rule: the class. It must do with gradients alone: `LBFGS` evaluates the loss again, `SparseAdam` takes sparse
            gradients, and both are refused.
        **options: its own, such as `foreach` and `fused`. `lr` may also be a schedule: a function from the count of
            updates before this one. `differentiable` is refused: the steps are taken on copies.

    Raises:
        TypeError: `rule` is no such class, or one of those two; in `init`, it remembers something else than tensors
            and numbers.
        ValueError: `differentiable=True`; in an update, no params, or gradients of others.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.from_torch_optim(torch.optim.Adagrad, lr=0.1)
        >>> params = {"w": torch.zeros(2)}
        >>> updates, state = step.update({"w": torch.tensor([3.0, -4.0])}, step.init(params), params)
        >>> gf.apply_updates(params, updates)
        {'w': tensor([-0.1000,  0.1000])}
    """
    call = "gf.from_torch_optim(rule, **options)"
    if not (isinstance(rule, type) and issubclass(rule, torch.optim.Optimizer)):
        got = rule.__name__ if isinstance(rule, type) else kind_of(rule)
        raise TypeError(message(call, got=got, expected="a class of torch.optim, such as torch.optim.SGD"))
    for base in rule.__mro__:
        if base.__module__.startswith("torch.optim") and base.__name__ in REFUSED:
            expected = "a rule that does with the gradient"
            raise TypeError(message(call, got=f"{rule.__name__}: {REFUSED[base.__name__]}", expected=expected))
    if options.get("differentiable"):
        do = "Our own rules, such as gf.adam, are differentiated as they are."
        raise ValueError(message(call, got="differentiable=True", expected="steps without a graph", do=do))
    lr = options.get("lr")
    if callable(lr):
        return TorchOptim(rule, {key: value for key, value in options.items() if key != "lr"}, lr)
    if lr is not None and not isinstance(lr, Tensor):
        check_number(call, "lr", lr, NOT_NEGATIVE)
    return TorchOptim(rule, options, None)


def _plain(stage: TorchOptim, name: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state as tensors and numbers; None is as good as absent."""
    out = {key: value.detach() if isinstance(value, Tensor) else value for key, value in kept.items()}
    for key, value in out.items():
        if value is not None and not isinstance(value, (Tensor, bool, int, float)):
            got = f"{kind_of(value)} as '{key}' of '{name}'"
            raise TypeError(message(f"{stage!r}.init(params)", got=got, expected="a state of tensors and numbers"))
    return {key: value for key, value in out.items() if value is not None}


def _numbers(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What of an optimizer's options may change as it steps, by value."""
    options = optimizer.param_groups[0].items()
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else value
        for key, value in options
        if isinstance(value, (Tensor, bool, int, float))
    }


def _moved(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return not torch.equal(before, after)
    return before is None or bool(before != after)


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) else type(value)(0)


def _own(how: How, value: Any) -> Any:
    return how.own_state([value])[0] if isinstance(value, Tensor) else value
