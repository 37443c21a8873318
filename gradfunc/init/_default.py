"""What a layer does by itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import message
from .._random import drawing_from
from ._entries import Uniform
from ._fans import TORCH
from ._place import Place
from ._scheme import Scheme, Shape
from ._variance_scaling import check_two, kaiming_uniform

_SAID = "torch_default()"


@dataclass(frozen=True, repr=False, kw_only=True)
class TorchDefault(Scheme):
    """Made by `torch_default`."""

    linear: Scheme

    def at(self, place: Place) -> Scheme:
        """The layer's own function; without a model, what Linear and convolutions do."""
        if place.model is not None:
            return _of_layer(place, place.model)
        weight = place.sibling("weight")
        if weight is not None and weight.ndim >= 2:
            if place.own_name == "weight":
                return self
            if place.own_name == "bias" and place.params[place.name].ndim == 1:
                fan_in = TORCH(tuple(weight.shape))[0]
                return Uniform(said=_SAID, bound=1 / math.sqrt(fan_in) if fan_in else 0.0)
        got = f"{place.name!r}, without its model"
        expected = "'weight' of two dimensions or more, or the 'bias' beside it"
        do = "Pass the model in place of its parameters: then the layer's own reset_parameters() is asked."
        raise ValueError(message("gf.init.torch_default()", got=got, expected=expected, do=do))

    def check(self, call: str, shape: Shape) -> None:
        """A weight."""
        check_two(call, shape)

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        return self.linear._drawn(shape, dtype, source)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return self.linear._aims(shape)


@dataclass(frozen=True, repr=False, kw_only=True)
class OfLayer(Scheme):
    """A parameter of a layer as the layer's own function leaves it."""

    layer: nn.Module
    path: str
    name: str

    def stream(self, name: str) -> str:
        """The layer's path: all its parameters are of one run."""
        return self.path

    def check(self, call: str, shape: Shape) -> None:
        """The parameter's own."""
        own = tuple(self.layer.get_parameter(self.name).shape)
        if shape != own:
            raise ValueError(message(call, got=f"shape {shape}", expected=f"{own}, that of {self.name!r}"))

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        assert source is not None
        layer = _copied(self.layer)
        for parameter in layer.parameters():
            parameter.fill_(math.nan)  # to see what is not written
        with drawing_from(source):
            _reset(layer)
        out = layer.get_parameter(self.name).detach().to(dtype)
        if out.isnan().any():
            got = f"{self.name!r} of {_named(self.layer, self.path)}, which its own function does not set"
            raise ValueError(message(_SAID, got=got, expected="a parameter that it sets", do=_OTHER))
        return out

    def _aims(self, shape: Shape) -> tuple[float, float]:
        # By the function itself, not by the class: a subclass may have its own.
        known = _AIMS.get(getattr(type(self.layer), "reset_parameters", None))
        return (math.nan, math.nan) if known is None else known(self.layer, self.name)


def _of_product(layer: Any, name: str) -> tuple[float, float]:
    """Weight and bias uniform within 1 / sqrt(fan_in)."""
    return 0.0, 1 / (3 * TORCH(tuple(layer.weight.shape))[0])


def _of_recurrence(layer: Any, name: str) -> tuple[float, float]:
    return 0.0, 1 / (3 * layer.hidden_size)


def _of_embedding(layer: Any, name: str) -> tuple[float, float]:
    rows = layer.num_embeddings
    return 0.0, 1.0 if layer.padding_idx is None else (rows - 1) / rows


def _of_norm(layer: Any, name: str) -> tuple[float, float]:
    return (1.0 if name == "weight" else 0.0), 0.0


_AIMS: dict[Any, Callable[[Any, str], tuple[float, float]]] = {
    **{layer.reset_parameters: _of_product for layer in (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)},
    **{layer.reset_parameters: _of_recurrence for layer in (nn.LSTM, nn.LSTMCell)},
    **{layer.reset_parameters: _of_embedding for layer in (nn.Embedding, nn.EmbeddingBag)},
    **{layer.reset_parameters: _of_norm for layer in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d)},
}
_OTHER = "Give this parameter a scheme of its own, in a rule before."


def torch_default() -> Scheme:
    """What the layer does by itself, as if it were made anew.

    In `initialize(model, ...)` the layer that owns the parameter is copied, and the copy's own `reset_parameters()` is
    run with a generator of its own, once for all parameters of the layer: bit for bit what it gives on the CPU after
    `torch.manual_seed(s)`, with s the seed of `gf.init.generator(seed, path)` and path the layer's ("" of a model that
    is one layer). Any layer that has the function is served: Linear, convolutions, Embedding, norms, RNN, LSTM, GRU,
    Bilinear, your own; MultiheadAttention together with its output projection. What an outer module does to its layers
    afterwards is not repeated. The variance is stated for Linear, convolutions, recurrent layers, embeddings and norms.

    Without a model (parameters alone, or a bare shape), weights of two dimensions or more are taken for those of Linear
    or a convolution, `kaiming_uniform(a=sqrt(5))`, of variance `1 / (3 fan_in)`; in `initialize`, these are parameters
    called "weight", and a "bias" beside one is uniform within `1 / sqrt(fan_in)`. Everything else is refused.

    Raises:
        ValueError: in `initialize`, a layer without such a function, or that does not set the parameter.

    Example:
        >>> import gradfunc as gf
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> made = gf.init.initialize(model, {".*": gf.init.torch_default()}, seed=1)
        >>> _ = torch.manual_seed(gf.init.generator(1, "0").initial_seed())
        >>> torch.equal(made["0.bias"], torch.nn.Linear(3, 4).bias)
        True
    """
    return TorchDefault(said=_SAID, linear=kaiming_uniform(a=math.sqrt(5)))


def _of_layer(place: Place, model: nn.Module) -> Scheme:
    path, name = place.path, place.own_name
    layer = model.get_submodule(path)
    outer, _, last = path.rpartition(".")
    if last == "out_proj" and isinstance(attention := model.get_submodule(outer), nn.MultiheadAttention):
        layer, path, name = attention, outer, f"{last}.{name}"  # which sets its bias
    if not callable(getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)):
        got = f"{place.name!r} of {_named(layer, path)}, which has no reset_parameters()"
        raise ValueError(message(_SAID, got=got, expected="a layer that can begin anew", do=_OTHER))
    return OfLayer(said=_SAID, layer=layer, path=path, name=name)


def _copied(layer: nn.Module) -> nn.Module:
    copied = copy.deepcopy(layer)
    meta = any(tensor.is_meta for tensor in [*layer.parameters(), *layer.buffers()])
    return copied.to_empty(device="cpu") if meta else copied.cpu()


def _reset(layer: nn.Module) -> None:
    if isinstance(layer, nn.MultiheadAttention):
        layer.out_proj.reset_parameters()  # its constructor's order
        layer._reset_parameters()
    elif callable(reset := getattr(layer, "reset_parameters", None) or layer._reset_parameters):
        reset()


def _named(layer: nn.Module, path: str) -> str:
    return f"{type(layer).__name__} '{path}'" if path else type(layer).__name__
