"""`nn.Module` -> a pure function of its parameters. The module is never changed, not even its mode."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._batch_stats import BatchStatLayer, BatchStatReport, FrozenOnly, check_running, freeze
from ._batch_stats import layers as batch_stat_layers
from ._batch_stats import refuse as refuse_batch_stats
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
        batch_stats: "error", "frozen" or "batch"; see `gf.stateless`.
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
    _after: Callable[..., Tensors] | None = field(repr=False, default=None)

    def __call__(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Any:
        """Run the batch `args, kwargs` with `params`; missing keys are filled from `frozen` and `buffers`.

        Raises:
            KeyError: a key that the model does not have, or a trainable parameter that is missing.
            RuntimeError: a layer would normalise by the statistics of the batch, under `batch_stats="error"`.
        """
        if self.batch_stats == "error":
            refuse_batch_stats("model(params, ...)", self._batch_stats())
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
        refuse_batch_stats("model.sample(params, ...)", self._batch_stats())
        call = "model.sample(params, ...)"
        args = map_with_dims(call, _inserted, args, self.in_dims)
        named = 0 if isinstance(self.in_dims, (tuple, list)) else self.in_dims
        kwargs = map_with_dims(call, _inserted, kwargs, named)
        out = self._apply(self._filled(params), *args, **kwargs)
        return map_with_dims(call, _removed, out, self.out_dims)

    def bind(self, params: Mapping[str, Tensor]) -> Stateless:
        """The same model with these parameters in place of `params`: for tools that take a model.

        Raises:
            KeyError: other names than those of `params`.
            ValueError: another shape.

        Example:
            >>> import gradfunc as gf
            >>> model = gf.stateless(torch.nn.Linear(3, 2))
            >>> zero = model.bind({name: torch.zeros_like(value) for name, value in model.params.items()})
            >>> zero(zero.params, torch.ones(1, 3))
            tensor([[0., 0.]])
        """
        if params.keys() != self.params.keys():
            got = f"parameters {_some(sorted(params))}"
            raise KeyError(message("model.bind(params)", got=got, expected=f"{_some(sorted(self.params))}"))
        for name, value in self.params.items():
            if params[name].shape != value.shape:
                got = f"'{name}' of shape {tuple(params[name].shape)}"
                raise ValueError(message("model.bind(params)", got=got, expected=f"{tuple(value.shape)}"))
        return dataclasses.replace(self, params={name: params[name].detach() for name in self.params})

    def buffers_after(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Tensors:
        """The buffers that a forward pass of the batch changes, as it leaves them: `{name: tensor}`.

        No call writes to the module. Who wants running statistics or counters to move writes these back, or passes them
        on: they may be given among `params`. Samples of a loss of one sample each change their own copies.

        Example:
            >>> import gradfunc as gf
            >>> model = gf.stateless(torch.nn.BatchNorm1d(3), batch_stats="batch")
            >>> after = model.buffers_after(model.params, torch.randn(5, 3))
            >>> sorted(after), int(after["num_batches_tracked"]), int(model.buffers["num_batches_tracked"])
            (['num_batches_tracked', 'running_mean', 'running_var'], 1, 0)
        """
        if self.batch_stats == "error":
            refuse_batch_stats("model.buffers_after(params, ...)", self._batch_stats())
        if self._after is None:
            return {}
        before = self._filled(params)
        kept = {name: before[name].clone() for name in self.buffers}
        with torch.no_grad():
            after = self._after(before, *args, **kwargs)
        return {name: after[name] for name in kept if name in after and not _same(after[name], kept[name])}

    def batch_stat_layers(self) -> list[str]:
        """Names of the layers that, as they stand, normalise by the statistics of the batch."""
        return [layer.name for layer in self._batch_stats()]

    def batch_stat_report(self) -> BatchStatReport:
        """The same as a table, with the usual substitutes for each. Nothing is replaced by itself.

        Example:
            >>> import gradfunc as gf
            >>> model = gf.stateless(torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6)))
            >>> model.batch_stat_report().layers[0].substitutes[-2]
            'nn.GroupNorm(6, 6)'
        """
        return BatchStatReport(tuple(self._batch_stats()))

    def _batch_stats(self) -> list[BatchStatLayer]:
        return [] if self.module is None or self.batch_stats == "frozen" else batch_stat_layers(self.module)

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

    if batch_stats == "frozen":
        check_running(call, module)
    frozen, slots = batch_stats == "frozen", _slots(module)

    def run(shell: _Shell) -> Callable[..., Any]:
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
        _apply=run(_Shell(module, frozen=frozen)),
        _after=run(_BufferShell(module, frozen=frozen)),
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


def _refuse_backward_hooks(module: nn.Module) -> None:
    """Under torch.func, where a tensor hides that it requires grad, torch would leave them out without a word."""
    of_all = nn.modules.module._global_backward_hooks or nn.modules.module._global_backward_pre_hooks
    for name, layer in module.named_modules():
        if of_all or layer._backward_hooks or layer._backward_pre_hooks:
            got = f"module '{name or type(layer).__name__}', which has a full backward hook, under torch.func"
            do = "Run the batch natively, or one sample after the other; or remove the hook."
            raise NotImplementedError(message("model(params, ...)", got=got, expected="no such hook there", do=do))


class _Shell(nn.Module):
    """Runs a replica of the module, made while `functional_call` has its tensors swapped.

    The swap ends with the forward pass. What runs again later (a checkpointed block, in the backward pass) must still
    find the tensors of this call, and the replica keeps them. It also takes whatever the forward pass assigns.
    """

    def __init__(self, inner: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.inner = inner
        self._frozen = frozen

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the replica."""
        return self._run(*args, **kwargs)[0]

    def _run(self, *args: Any, **kwargs: Any) -> tuple[Any, nn.Module]:
        """The output and the replica, its batch norms by running statistics if these are frozen."""
        if torch._C._are_functorch_transforms_active():
            _refuse_backward_hooks(self.inner)
        replica = _replica(self.inner, {})
        if not self._frozen:
            return replica(*args, **kwargs), replica
        freeze(replica)
        with FrozenOnly():
            return replica(*args, **kwargs), replica


class _BufferShell(_Shell):
    """Gives the buffers of the replica once it has run, written to or assigned."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the replica."""
        _, replica = self._run(*args, **kwargs)
        return {name: buffer.detach() for name, buffer in replica.named_buffers()}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _replica(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """A copy of the tree of modules that refers to the same tensors, hooks and everything else."""
    if id(module) in made:
        return made[id(module)]
    if module._is_full_backward_hook is False and module._backward_hooks:
        # such a hook would look for the replica in the backward pass, when that is gone
        got = f"a {type(module).__name__} with a hook of register_backward_hook, which torch deprecates"
        do = "Use register_full_backward_hook."
        raise RuntimeError(message("model(params, ...)", got=got, expected="no such hook", do=do))
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
