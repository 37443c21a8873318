"""From values back to a module: gradients for an optimiser of torch, parameters to be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ._errors import kind_of, message
from ._stateless import unwrapped


def assign_grads(
    module: nn.Module, grads: Mapping[str, Tensor], *, unused: Iterable[str] = (), scale: float | Tensor | None = None
) -> None:
    """Overwrite `.grad` of the module's parameters: the bridge to torch's optimisers, schedulers and `GradScaler`.

    Every parameter that `grads` does not name gets None, as from `optimizer.zero_grad()`: nothing is accumulated.
    Wrappers (DistributedDataParallel, DataParallel, compiled modules) are taken off; no process communicates. What is
    assigned is a copy in the parameter's dtype and on its device: an optimiser that clips in place writes to it alone.

    Args:
        module: whose parameters an optimiser holds.
        grads: `{name: tensor}` with keys of `module.named_parameters()`, such as `g.mean()` or `gf.make_step` give.
        unused: names that get None all the same, such as `g.unused`: their gradient is exactly 0, and an optimiser
            with weight decay or momentum moves a parameter whose gradient is 0 but not one without.
        scale: multiplied in, for an optimiser stepped by a scaler: `scaler.get_scale()`, which `scaler.step` takes out.
            A scaler is ready once it has scaled something: call `scaler.scale(torch.zeros(()))` before the first step.

    Raises:
        TypeError: not a module, not a mapping of tensors, complex numbers for real ones, a scale that is no number.
        KeyError: a name that the module does not have, the second name of a tied parameter, or a frozen one.
        ValueError: another shape. Nothing has been assigned then.

    Example:
        >>> import torch, gradfunc as gf
        >>> module = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> model = gf.stateless(module)
        >>> def loss(params, x, y):
        ...     return gf.losses.mse(model.sample(params, x), y)
        >>> g = gf.per_sample_grads(loss)(model.params, torch.ones(4, 3), torch.ones(4, 1))
        >>> gf.assign_grads(module, g.mean(), unused=g.unused)
        >>> optimizer.step()
    """
    call = "gf.assign_grads(module, grads)"
    named = _named(call, module, grads)
    number = isinstance(scale, (int, float)) or (isinstance(scale, Tensor) and scale.numel() == 1)
    if scale is not None and not number:
        raise TypeError(message(call, got=f"scale={scale!r}", expected="one number, such as scaler.get_scale()"))
    if frozen := [name for name in grads if not named[name].requires_grad]:
        do = "Leave it out (wrt= selects parameters), or set requires_grad."
        raise KeyError(message(call, got=f"'{frozen[0]}', which is frozen", expected="trainable parameters", do=do))
    absent = _known(call, named, unused)
    copies = {
        name: _copied(grad if scale is None else grad * float(scale), named[name])
        for name, grad in grads.items()
        if name not in absent
    }
    for name, parameter in named.items():
        parameter.grad = copies.get(name)  # what this function is for: an optimiser of torch reads it there


def load_params(module: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Write parameters into the module, in place, so that its optimisers and wrappers go on with them.

    Wrappers are taken off as in `gf.assign_grads`. Parameters that are not named stay as they are, as do `.grad` and
    buffers. Note that `model.params` of a `gf.stateless(module)` share storage with the module: they change too.

    Args:
        module: whose parameters are written to.
        params: `{name: tensor}` with keys of `module.named_parameters()`, such as `gf.make_step` returns.

    Raises:
        TypeError: not a module, not a mapping of tensors, or complex numbers for real ones.
        KeyError: a name that the module does not have, or the second name of a tied parameter.
        ValueError: another shape. Nothing has been written then.

    Example:
        >>> import torch, gradfunc as gf
        >>> module = torch.nn.Linear(2, 1)
        >>> gf.load_params(module, {"bias": torch.ones(1)})
        >>> module.bias
        Parameter containing:
        tensor([1.], requires_grad=True)
    """
    named = _named("gf.load_params(module, params)", module, params)
    own = {parameter.untyped_storage().data_ptr() for parameter in named.values()}
    with torch.no_grad():
        # a value may be a view of another parameter, which would be written before it is read
        values = {
            name: value.clone() if value.untyped_storage().data_ptr() in own else value
            for name, value in params.items()
        }
        for name, value in values.items():
            named[name].copy_(value)


def _copied(grad: Tensor, like: Tensor) -> Tensor:
    """A dense tensor of its own, in the type of a parameter and where that is."""
    whole = grad.detach() if grad.layout == torch.strided else grad.detach().to_dense()
    return whole.to(like.device, like.dtype, copy=True)


def _named(call: str, module: nn.Module, given: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The parameters by name, once all that was given fits them."""
    if not isinstance(module, nn.Module):
        raise TypeError(message(call, got=kind_of(module), expected="an nn.Module"))
    if not isinstance(given, Mapping) or not all(isinstance(value, Tensor) for value in given.values()):
        raise TypeError(message(call, got=kind_of(given), expected="a dict {name: tensor}"))
    inner = unwrapped(call, module)
    named = dict(inner.named_parameters())
    first = {id(parameter): name for name, parameter in named.items()}
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        if name in given and name not in named:
            do = f"Use the key '{first[id(parameter)]}', to which it is tied."
            raise KeyError(message(call, got=f"'{name}'", expected="one key a parameter", do=do))
    _known(call, named, given)
    for name, value in given.items():
        if value.is_complex() and not named[name].is_complex():
            raise TypeError(message(call, got=f"'{name}' of {value.dtype}", expected="real numbers, as there"))
        if value.shape != named[name].shape:
            got = f"'{name}' of shape {tuple(value.shape)}"
            raise ValueError(message(call, got=got, expected=f"{tuple(named[name].shape)}"))
    return named


def _known(call: str, named: Mapping[str, nn.Parameter], names: Iterable[str]) -> set[str]:
    wanted = set(names)
    if unknown := sorted(wanted - named.keys()):
        some = ", ".join(f"'{name}'" for name in [*named][:5]) + (", ..." if len(named) > 5 else "")
        raise KeyError(message(call, got=f"'{unknown[0]}'", expected=f"names of the module's parameters: {some}"))
    return wanted
