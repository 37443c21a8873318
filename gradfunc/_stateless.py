"""`nn.Module` -> a pure function of its parameters. The module is never changed, not even its mode."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ._errors import kind_of, message, one_of
from ._tree import Tensors, map_with_dims

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


@runtime_checkable
class PureModel(Protocol):
    """A model that is functions already: `init() -> params` and `apply(params, *args, **kwargs)`."""

    def init(self) -> Tensors:
        """Parameters, `{name: tensor}`."""

    def apply(self, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The output for a batch."""


@dataclass(frozen=True, eq=False)
class Stateless:
    """A model as a pure function: `model(params, *args, **kwargs)`. Made by `gf.stateless`.

    Attributes:
        params: the trainable parameters, `{name: tensor}` with the keys of `module.named_parameters()`;
            detached, and sharing storage with the module.
        frozen: the parameters with `requires_grad=False`, likewise.
        buffers: the buffers, likewise. A call works on copies, so running statistics stay as they are.
        aliases: `{other name: name}` for tied parameters; only `name` is a key of `params`.
        in_dims: where the batch sits in the inputs, as in `torch.vmap`.
        out_dims: where the batch sits in the outputs.
        batch_stats: "error" or "batch"; see `gf.stateless`.
        module: the unwrapped `nn.Module`, None for a pure model.
    """

    params: Tensors
    frozen: Tensors
    buffers: Tensors
    aliases: dict[str, str]
    in_dims: Any
    out_dims: Any
    batch_stats: str
    module: nn.Module | None
    _apply: Callable[..., Any] = field(repr=False)

    def __call__(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Any:
        """Run the batch `args, kwargs` with `params`; missing keys are filled from `frozen` and `buffers`.

        Raises:
            KeyError: a key that the model does not have, or a trainable parameter that is missing.
            RuntimeError: a layer would normalise by the statistics of the batch, under `batch_stats="error"`.
        """
        if self.batch_stats == "error":
            self._refuse_batch_statistics("model(params, ...)")
        return self._apply(self._filled(params), *args, **kwargs)

    def sample(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Any:
        """The same for one sample without its batch dimension.

        A dimension of size 1 is inserted in each input at `in_dims` and taken off each output at `out_dims`.

        Raises:
            ValueError: an output has no dimension of size 1 there.
            RuntimeError: a layer would normalise by the statistics of a batch of one.

        Example:
            >>> import gradfunc as gf
            >>> model = gf.stateless(torch.nn.Linear(3, 2))
            >>> model.sample(model.params, torch.ones(3)).shape
            torch.Size([2])
        """
        self._refuse_batch_statistics("model.sample(params, ...)")
        call = "model.sample(params, ...)"
        args = map_with_dims(call, _inserted, args, self.in_dims)
        named = 0 if isinstance(self.in_dims, (tuple, list)) else self.in_dims
        kwargs = map_with_dims(call, _inserted, kwargs, named)
        out = self._apply(self._filled(params), *args, **kwargs)
        return map_with_dims(call, _removed, out, self.out_dims)

    def batch_stat_layers(self) -> list[str]:
        """Names of the layers that, as they stand, normalise by the statistics of the batch."""
        if self.module is None:
            return []
        return [
            name or type(layer).__name__
            for name, layer in self.module.named_modules()
            if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
        ]

    def _refuse_batch_statistics(self, call: str) -> None:
        if not (layers := self.batch_stat_layers()):
            return
        assert self.module is not None
        modules = dict(self.module.named_modules())
        name = layers[0]
        layer = modules.get(name, self.module)
        tracks = getattr(layer, "running_mean", None) is not None
        why = "is in train mode" if tracks else "has track_running_stats=False"
        use = "Use .eval(), GroupNorm" if tracks else "Use GroupNorm"
        raise RuntimeError(
            message(
                call,
                got=f"layer '{name}' ({type(layer).__name__}), which {why} and so normalises by the statistics of "
                "the batch: sample i's gradient depends on the other samples",
                expected="layers that treat samples alone",
                do=f"{use} or LayerNorm; or gf.stateless(module, batch_stats='batch') if the whole "
                "batch is meant to run together.",
            )
        )

    def _filled(self, params: Mapping[str, Tensor]) -> Tensors:
        known = {**self.params, **self.frozen, **self.buffers}
        if params.keys() - known.keys() or self.params.keys() - params.keys():
            self._explain_keys(params, known)
        # A forward pass may write to buffers (running statistics, caches): it gets copies.
        buffers = {name: params.get(name, value).clone() for name, value in self.buffers.items()}
        return {**self.frozen, **params, **buffers}

    def _explain_keys(self, params: Mapping[str, Tensor], known: Tensors) -> None:
        for name in params:
            if name in self.aliases:
                do = f"'{name}' is tied to '{self.aliases[name]}': pass that key alone."
                raise KeyError(message("model(params, ...)", got=f"key '{name}'", expected="model.params", do=do))
            if name not in known:
                raise KeyError(
                    message(
                        "model(params, ...)",
                        got=f"key '{name}'",
                        expected=f"the model's own: {_some(list(known))}",
                    )
                )
        missing = [name for name in self.params if name not in params]
        raise KeyError(
            message(
                "model(params, ...)",
                got=f"params without {_some(missing)}",
                expected="every key of model.params",
                do="Merge into it: {**model.params, **yours}.",
            )
        )


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
            sample's gradient depend on the others: "error" names the layer, "batch" allows it for whole batches.

    Raises:
        TypeError: not a module, a pure model or a `Stateless`.
        ValueError: an uninitialised (lazy) parameter, or an unknown `batch_stats`.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(torch.nn.Linear(3, 2))
        >>> sorted(model.params), model(model.params, torch.ones(5, 3)).shape
        (['bias', 'weight'], torch.Size([5, 2]))
    """
    call = "gf.stateless(model)"
    one_of(call, "batch_stats", batch_stats, ("error", "batch"))
    if isinstance(model, Stateless):
        given = {"in_dims": (in_dims, 0), "out_dims": (out_dims, 0), "batch_stats": (batch_stats, "error")}
        changed = {key: value for key, (value, default) in given.items() if value != default}
        return dataclasses.replace(model, **changed) if changed else model
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(message(call, got="a jitted module", expected="the nn.Module it was made from"))
    if isinstance(model, nn.Module):
        return _from_module(call, _unwrapped(model), in_dims, out_dims, batch_stats)
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


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, _WRAPPERS):
            module = module.module
        elif "torch._dynamo" in sys.modules and isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod  # asked only once it is loaded: loading it takes seconds
        else:
            return module


def _from_module(call: str, module: nn.Module, in_dims: Any, out_dims: Any, batch_stats: str) -> Stateless:
    named = dict(module.named_parameters())
    if lazy := [name for name, p in named.items() if is_lazy(p)]:
        do = "Run the module once on a batch first."
        raise ValueError(message(call, got=f"uninitialised {_some(lazy)}", expected="shapes", do=do))
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

    shell = _Shell(module)

    def apply(values: Tensors, *args: Any, **kwargs: Any) -> Any:
        values = {**values, **{name: values[name].clone() for name in renormed}}
        inner = {f"inner.{name}": value for name, value in values.items()}
        return torch.func.functional_call(shell, inner, args, kwargs)

    return Stateless(
        params={name: p.detach() for name, p in named.items() if p.requires_grad},
        frozen={name: p.detach() for name, p in named.items() if not p.requires_grad},
        buffers={name: b.detach() for name, b in module.named_buffers()},
        aliases=aliases,
        in_dims=in_dims,
        out_dims=out_dims,
        batch_stats=batch_stats,
        module=module,
        _apply=apply,
    )


class _Shell(nn.Module):
    """Runs a replica of the module, made while `functional_call` has its tensors swapped.

    The swap ends with the forward pass. What runs again later (a checkpointed block, in the backward pass) must still
    find the tensors of this call, and the replica keeps them. It also takes whatever the forward pass assigns.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the replica."""
        return _replica(self.inner, {})(*args, **kwargs)


def _replica(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """A copy of the tree of modules that refers to the same tensors, hooks and everything else."""
    if id(module) in made:
        return made[id(module)]
    copy = made[id(module)] = module.__new__(type(module))
    copy.__dict__ = module.__dict__.copy()
    for held in ("_parameters", "_buffers"):
        copy.__dict__[held] = module.__dict__[held].copy()
    if isinstance(module, nn.RNNBase):  # keeps its tensors in a list as well, which the swap writes to
        copy.__dict__["_flat_weights"] = list(module._flat_weights)
    children = module.__dict__["_modules"]
    copy.__dict__["_modules"] = {name: None if m is None else _replica(m, made) for name, m in children.items()}
    return copy


def _inserted(tensor: Tensor, dim: int) -> Tensor:
    return tensor.unsqueeze(dim)


def _removed(tensor: Tensor, dim: int) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[dim] != 1:
        raise ValueError(
            message(
                "model.sample(params, ...)",
                got=f"an output of shape {tuple(tensor.shape)}",
                expected=f"size 1 in dimension {dim} for a batch of one",
                do="Say where the batch sits with gf.stateless(module, out_dims=...).",
            )
        )
    return tensor.squeeze(dim)


def _some(names: list[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:5])
    return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")
