"""Layer-sequential unit variance: weights that a batch has the last word on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import POSITIVE, check_int, check_number, message
from .._layers import Use, Walk
from .._random import forked
from .._report import Report, Table, jsonable, number
from .._stateless import PureModel, Stateless, stateless
from .._tree import Tensors, splatted
from ._scheme import Scheme, check_scheme, generator
from ._structured import orthogonal

_PRODUCTS = {
    *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "bmm", "baddbmm", "einsum"),
    *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)),
}
Model = Stateless | nn.Module | PureModel


@dataclass(frozen=True)
class LsuvRow:
    """One weight.

    Attributes:
        name: of the parameter.
        before: the variance of its layer's output at the weight that was drawn.
        after: that at the weight that it has now.
        passes: how often it was measured.
    """

    name: str
    before: float
    after: float
    passes: int


@dataclass(frozen=True)
class LsuvReport(Report):
    """What `gf.init.lsuv` did.

    Attributes:
        rows: the weights that it reached, in forward order.
        unreached: the parameters that kept their value: biases, norms, embeddings, whatever the forward pass does not
            use as it is in a product.
        tolerance: the one given.
    """

    rows: tuple[LsuvRow, ...]
    unreached: tuple[str, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the variance of every layer reached is 1 within the tolerance."""
        return all(abs(row.after - 1) <= self.tolerance for row in self.rows)

    def parts(self) -> Sequence[Table | str]:
        """The table, and what was not reached."""
        rows = [[row.name, number(row.before), f"{row.after:.6g}", str(row.passes)] for row in self.rows]
        table = Table("Variance of each layer's output on the batch", ["weight", "drawn", "scaled", "passes"], rows)
        kept = [f"Kept their value: {', '.join(self.unreached)}."] if self.unreached else []
        return [table, *kept]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields and `ok`."""
        result: dict[str, Any] = jsonable({**dataclasses.asdict(self), "ok": self.ok})
        return result


def lsuv(
    model: Model,
    batch: Any,
    *,
    seed: int = 0,
    scheme: Scheme | None = None,
    tolerance: float = 0.01,
    most: int = 10,
) -> Tensors:
    """Parameters whose layers give outputs of variance 1 on a batch (Mishkin & Matas 2015, arXiv 1511.06422, alg. 1).

    Each weight of a product (linear layers, convolutions, matrix products) is drawn orthogonal; then, in forward order,
    it is divided by the standard deviation of its layer's output, before the activation, over all entries of the batch,
    until the variance is 1 within `tolerance`. Without a bias one division does. All other parameters keep their value.
    A weight that is used several times is scaled at its first use. Each measurement is a forward pass, whose own draws
    (dropout in train mode) are the same every time.

    Args:
        model: `gf.stateless`, `nn.Module` or pure; it stays as it is. `gf.load_params` writes the result back.
        batch: of inputs: a tensor, a tuple of positional or a mapping of keyword arguments.
        seed: an int >= 0; the weight `name` is drawn by `gf.init.generator(seed, name)`, what the model draws follows
            from it too.
        scheme: to draw by, by default `gf.init.orthogonal()`.
        tolerance: of the variance, > 0; 0.1 in the paper.
        most: measurements of a layer, >= 1.

    Raises:
        TypeError, ValueError: something else; no weight that is reached; an output without variance, or one that is not
            finite.
        RuntimeError: inference mode.

    Example:
        >>> import torch, gradfunc as gf
        >>> model = gf.stateless(gf.models.mlp([8, 64, 64, 3]))
        >>> x = 5 * torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        >>> params = gf.init.lsuv(model, x)
        >>> abs(float(model(params, x).var(correction=0)) - 1) < 0.01
        True
    """
    return lsuv_with_report(model, batch, seed=seed, scheme=scheme, tolerance=tolerance, most=most)[0]


def lsuv_with_report(
    model: Model,
    batch: Any,
    *,
    seed: int = 0,
    scheme: Scheme | None = None,
    tolerance: float = 0.01,
    most: int = 10,
) -> tuple[Tensors, LsuvReport]:
    """What `lsuv` gives, and a report: the variance of each layer's output before and after.

    Example:
        >>> import torch, gradfunc as gf
        >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        >>> params, report = gf.init.lsuv_with_report(gf.models.mlp([8, 64, 3]), x)
        >>> [row.name for row in report.rows], report.unreached, report.ok
        (['fc1.weight', 'fc2.weight'], ('fc1.bias', 'fc2.bias'), True)
    """
    call = "gf.init.lsuv(model, batch)"
    check_int(call, "seed", seed, 0)
    check_number(call, "tolerance", tolerance, POSITIVE)
    check_int(call, "most", most, 1)
    scheme = orthogonal() if scheme is None else check_scheme(call, "scheme", scheme)
    if torch.is_inference_mode_enabled():
        do = "Leave torch.inference_mode()."
        raise RuntimeError(message(call, got="inference mode", expected="a forward pass that autograd records", do=do))
    net = dataclasses.replace(stateless(model), batch_stats="batch")
    outputs = _Outputs(net, *splatted(batch), seed)
    weights = outputs.weights(net.params)
    if not weights:
        expected = "a weight of a linear layer, convolution or matrix product"
        raise ValueError(message(call, got=f"a model with parameters {list(net.params)}", expected=expected))
    params = dict(net.params)
    for name in weights:
        value = params[name]
        drawn = scheme(tuple(value.shape), generator=generator(seed, name), dtype=value.dtype, device=value.device)
        params[name] = drawn
    rows = []
    for name in weights:
        params[name], row = _scaled(call, outputs, params, name, tolerance, most)
        rows.append(row)
    unreached = tuple(name for name in params if name not in weights)
    return params, LsuvReport(tuple(rows), unreached, tolerance)


def _scaled(
    call: str, outputs: _Outputs, params: Tensors, name: str, tolerance: float, most: int
) -> tuple[Tensor, LsuvRow]:
    value = params[name]
    before = variance = outputs.variance(call, params, name)
    passes = 1
    while abs(variance - 1) > tolerance and passes < most:
        value = value / math.sqrt(variance)
        variance = outputs.variance(call, {**params, name: value}, name)
        passes += 1
    return value, LsuvRow(name, before, variance, passes)


@dataclass(frozen=True)
class _Outputs:
    """What layers give for the batch, before their activation."""

    model: Stateless
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int

    def weights(self, params: Tensors) -> list[str]:
        """Names of the weights of products, in the order in which a forward pass first uses them."""
        uses = self._walked(params, lambda tensor, use: None)
        return list(dict.fromkeys(name for use in uses if (name := _weight(use, params)) is not None))

    def variance(self, call: str, params: Tensors, name: str) -> float:
        """Of the output of the first use of this weight, over all its entries."""

        def measure(tensor: Tensor, use: Use) -> float | None:
            if _weight(use, params) != name:
                return None
            wide = tensor.double() if tensor.device.type == "cpu" else tensor.float()
            return float(wide.var(correction=0))

        found = [use.value for use in self._walked(params, measure) if use.value is not None]
        if not found[0] > 0 or not math.isfinite(found[0]):
            do = "Look at the batch and the layers before: gf.diagnose.gradient_flow tells where signals die."
            got = f"an output of variance {found[0]:.3g} at {name!r}"
            raise ValueError(message(call, got=got, expected="a positive, finite one", do=do))
        return float(found[0])

    def _walked(self, params: Tensors, note: Callable[[Tensor, Use], Any]) -> tuple[Use, ...]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        walk = Walk(leaves, note, before=True)
        devices = {value.device for value in params.values()}
        with torch.enable_grad(), forked(self.seed, devices=devices):
            walk.around(lambda *args, **kwargs: self.model(leaves, *args, **kwargs))(*self.args, **self.kwargs)
        return walk.uses()


def _weight(use: Use, params: Tensors) -> str | None:
    """The weight of a product, used as it is."""
    wide = [name for name in use.names if name in params and params[name].dim() >= 2]
    return wide[0] if use.direct and use.function in _PRODUCTS and len(wide) == 1 else None
