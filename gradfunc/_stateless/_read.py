"""`stateless`: what comes is read, wrappers taken off."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._batch_stats import check_running
from .._errors import kind_of, message, one_of
from .._tree import Tensors
from ._replica import BufferShell, Shell
from ._value import PureModel, Stateless, some

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def stateless(
    model: nn.Module | PureModel | Stateless, *, in_dims: Any = 0, out_dims: Any = 0, batch_stats: str = "error"
) -> Stateless:
    """Make a module a pure function of its parameters.

    Distributed, data-parallel and compiled wrappers are taken off; a pure model (with `init` and `apply`)
    and a `Stateless` pass through, the latter with those options changed that are not the default.

    Args:
        model: the model. It is referred to, not copied: its mode at the time of a call counts.
        in_dims: where the batch sits in each positional input, as in `torch.vmap`: an int, or a tuple with one
            entry an input (None: not batched). A keyword input follows an int, and is batched in 0 otherwise.
        out_dims: where the batch sits in the outputs.
        batch_stats: what to do where a BatchNorm layer would use the statistics of the batch, which makes one
            sample's gradient depend on the others. "error" names the layer. "frozen" normalises by the running
            statistics, as `.eval()` of these layers alone would; they are not updated. "batch" lets the whole batch run
            together, for losses with `batched=True`: row i is then the derivative of sample i's loss with the
            statistics of its batch, to which every sample contributes. Rows still sum to the gradient of the batch, but
            a sample's row changes with its neighbours: clipping rows bounds nothing that a sample does to the others.

    Raises:
        TypeError: not a module, a pure model or a `Stateless`.
            Or parameters that are shards of something larger (FSDP, DTensor).
        ValueError: an uninitialised (lazy) parameter, an unknown `batch_stats`, or "frozen" where a layer has no
            running statistics.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(torch.nn.Linear(3, 2))
        >>> sorted(model.params), model(model.params, torch.ones(5, 3)).shape
        (['bias', 'weight'], torch.Size([5, 2]))
    """
    call = "gf.stateless(model)"
    one_of(call, "batch_stats", batch_stats, ("error", "frozen", "batch"))
    if isinstance(model, Stateless):
        given = {"in_dims": (in_dims, 0), "out_dims": (out_dims, 0), "batch_stats": (batch_stats, "error")}
        changed = {key: value for key, (value, default) in given.items() if value != default}
        if changed and model.module is not None:
            options = {key: changed.get(key, getattr(model, key)) for key in given}
            return _from_module(call, model.module, **options)
        return dataclasses.replace(model, **changed) if changed else model
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(message(call, got="a jitted module", expected="the nn.Module it was made from"))
    if isinstance(model, nn.Module):
        return _from_module(call, unwrapped(call, model), in_dims, out_dims, batch_stats)
    if isinstance(model, PureModel):
        params = {name: value.detach() for name, value in model.init().items()}
        return Stateless(params, {}, {}, {}, in_dims, out_dims, batch_stats, None, model.apply)
    raise TypeError(
        message(
            call,
            got=kind_of(model),
            expected="an nn.Module, or a model with init() and apply(params, ...)",
        )
    )


def unwrapped(call: str, module: nn.Module) -> nn.Module:
    """The user's module inside of wrappers for data parallelism and compilation.

    Raises:
        TypeError: its parameters are shards.
    """
    while True:
        if isinstance(module, _WRAPPERS):
            module = module.module
        elif "torch._dynamo" in sys.modules and isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod  # asked only once it is loaded: loading it takes seconds
        else:
            break
    for name, layer in module.named_modules():
        if type(layer).__name__ == "FullyShardedDataParallel" and type(layer).__module__.startswith("torch."):
            raise _sharded(call, f"module '{name}', a FullyShardedDataParallel")
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "placements") and hasattr(parameter, "to_local"):
            raise _sharded(call, f"parameter '{name}', a DTensor")
    return module


def _sharded(call: str, got: str) -> TypeError:
    do = (
        "Build the model unsharded on each rank (DDP is unwrapped), let each rank take its share of the samples, and "
        "reduce the gradients; a model that does not fit on one device is not supported."
    )
    return TypeError(message(call, got=got, expected="whole parameters on every rank", do=do))


def _from_module(call: str, module: nn.Module, in_dims: Any, out_dims: Any, batch_stats: str) -> Stateless:
    named = dict(module.named_parameters())
    if lazy := [name for name, p in named.items() if is_lazy(p)]:
        do = "Run the module once on a batch first."
        raise ValueError(message(call, got=f"uninitialised {some(lazy)}", expected="shapes", do=do))
    first = {id(p): name for name, p in named.items()}
    every = module.named_parameters(remove_duplicate=False)
    aliases = {name: first[id(p)] for name, p in every if name not in named}

    # An embedding with max_norm rescales its weight in place, in the forward pass.
    renormed = [
        f"{name}.weight".lstrip(".")
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None
    ]
    renormed = [aliases.get(name, name) for name in renormed]

    if batch_stats == "frozen":
        check_running(call, module)
    frozen, slots = batch_stats == "frozen", _slots(module)

    def run(shell: Shell) -> Callable[..., Any]:
        def apply(values: Tensors, *args: Any, **kwargs: Any) -> Any:
            values = {**values, **{name: values[name].clone() for name in renormed}}
            inner = {f"inner.{slot}": values[name] for slot, name in slots.items()}
            return torch.func.functional_call(shell, inner, args, kwargs, tie_weights=False)

        return apply

    return Stateless(
        params={name: p.detach() for name, p in named.items() if p.requires_grad},
        frozen={name: p.detach() for name, p in named.items() if not p.requires_grad},
        buffers={name: b.detach() for name, b in module.named_buffers()},
        aliases=aliases,
        in_dims=in_dims,
        out_dims=out_dims,
        batch_stats=batch_stats,
        module=module,
        _apply=run(Shell(module, frozen=frozen)),
        _after=run(BufferShell(module, frozen=frozen)),
    )


def _slots(module: nn.Module) -> dict[str, str]:
    """Every place where a module keeps a tensor, once, and the key of that tensor.

    A module may have several paths, and torch's own handling of ties would swap its tensors once for each: what it puts
    back last is not what was there.
    """
    keys = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    return {
        f"{path}.{name}".lstrip("."): keys[id(tensor)]
        for path, layer in module.named_modules()
        for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]
        if tensor is not None
    }
