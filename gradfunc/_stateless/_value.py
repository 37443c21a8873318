"""A model as a value: its parameters, and a function of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .._batch_stats import BatchStatLayer, BatchStatReport
from .._batch_stats import layers as batch_stat_layers
from .._batch_stats import refuse as refuse_batch_stats
from .._errors import message
from .._tree import Tensors, map_with_dims


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
            got = f"parameters {some(sorted(params))}"
            raise KeyError(message("model.bind(params)", got=got, expected=f"{some(sorted(self.params))}"))
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
                        expected=f"the model's own: {some(list(known))}",
                    )
                )
        missing = [name for name in self.params if name not in params]
        raise KeyError(
            message(
                "model(params, ...)",
                got=f"params without {some(missing)}",
                expected="every key of model.params",
                do="Merge into it: {**model.params, **yours}.",
            )
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


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


def some(names: list[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:5])
    return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")
