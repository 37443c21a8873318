"""Nets of equal blocks on a grid: what activation, init, norm, depth and width do to gradients."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import init
from ..._errors import check_int, kind_of, message
from ..._report import Report, Table, jsonable, number
from ..._stateless import stateless
from ..._tree import Tensors
from ...models import block
from ._flow import gradient_flow
from ._report import FlowReport
from ._verdict import worst

Activation = str | Callable[[Tensor], Tensor]
INITS: dict[str, init.Scheme] = {
    "torch default": init.torch_default(),
    "kaiming": init.kaiming_normal(nonlinearity="relu"),
    "xavier": init.xavier_normal(),
    "normal 0.01": init.normal(0.01),
}


@dataclass(frozen=True)
class GridRow:
    """One net.

    Attributes:
        activation: its name.
        init: name of the scheme of its weights.
        norm: "batch", "layer" or None.
        depth: number of blocks.
        width: of each.
        factor: what the norm of the gradient is multiplied by a block on the way back from the last one's activations
            to the first one's; None for a net of one block, or where no gradient comes.
        theory: the same by `gf.init.variance_path`; None for schemes that state no variance, or where there is none.
        total: that norm at the first block over that at the last.
        ratio: the least |gradient| / |weight| of a layer.
        flow: the whole report.
    """

    activation: str
    init: str
    norm: str | None
    depth: int
    width: int
    factor: float | None
    theory: float | None
    total: float | None
    ratio: float | None
    flow: FlowReport

    @property
    def verdict(self) -> str:
        """Of the net."""
        return self.flow.verdict


@dataclass(frozen=True)
class GridReport(Report):
    """What `gf.diagnose.flow_grid` found, a row a net.

    Attributes:
        rows: depth and width vary fastest.
        samples: of the batch.
        seed: of data and draws.
    """

    rows: tuple[GridRow, ...]
    samples: int
    seed: int

    @property
    def ok(self) -> bool:
        """Whether every net is healthy."""
        return worst([row.verdict for row in self.rows]) == "healthy"

    def row(self, **wanted: Any) -> GridRow:
        """The first row with these values, such as `activation="relu", depth=50`.

        Raises:
            KeyError: none.
        """
        for row in self.rows:
            if all(getattr(row, key) == value for key, value in wanted.items()):
                return row
        raise KeyError(f"no net with {wanted}")

    def parts(self) -> Sequence[Table | str]:
        """One table."""
        rows = [
            [
                *(row.activation, row.init, row.norm or "-", str(row.depth), str(row.width)),
                *(number(row.factor), number(row.theory), number(row.total), number(row.ratio), row.verdict),
            ]
            for row in self.rows
        ]
        head = ["activation", "init", "norm", "depth", "width", "factor", "theory", "over all", "|g| / |w|", "verdict"]
        note = (
            "factor: what a block multiplies the norm of the gradient by on the way back. over all: from the last "
            "block to the first. |g| / |w|: the least of a layer."
        )
        return [Table(f"Gradients through depth ({self.samples} samples)", head, rows, note)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: rows without their flows, and `ok`."""
        fields = [field.name for field in dataclasses.fields(GridRow) if field.name != "flow"]
        rows = [{**{name: getattr(row, name) for name in fields}, "verdict": row.verdict} for row in self.rows]
        out: dict[str, Any] = jsonable({"rows": rows, "samples": self.samples, "seed": self.seed, "ok": self.ok})
        return out


def flow_grid(
    activations: Sequence[Activation] = ("identity", "relu", "tanh", "sigmoid"),
    *,
    inits: Mapping[str, init.Scheme] | None = None,
    norms: Sequence[str | None] = (None, "batch"),
    depths: Sequence[int] = (5,),
    widths: Sequence[int] = (100,),
    n_features: int = 10,
    samples: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> GridReport:
    """`gradient_flow` of a net for each combination: equal blocks (`gf.models.block`), one output, one batch.

    Inputs lie on a sphere, entries of variance 1, so that all samples are of the size that theory follows. The target
    is the sign of the first entry, the criterion binary cross entropy. Biases begin at 0, but for torch's default,
    which draws them too.

    Args:
        activations: names of `torch.nn.functional` ("identity" for none) or functions of a tensor.
        inits: `{name: scheme}` of the weights; by default torch's own, He's, Glorot's, and normal ones of 0.01.
        norms: of None, "batch" and "layer".
        depths: numbers of blocks.
        widths: of each block.
        n_features: of the inputs.
        samples: of the batch.
        seed: of inputs and parameters.
        progress: called with what is being done.

    Raises:
        TypeError, ValueError: an empty axis, or something else on it.

    Example:
        >>> import gradfunc as gf
        >>> grid = gf.diagnose.flow_grid(["relu"], inits={"He": gf.init.kaiming_normal()}, norms=[None], depths=[2, 30])
        >>> row = grid.row(depth=30)
        >>> round(row.theory, 6), abs(math.log(row.factor)) < 0.05, row.verdict
        (1.0, True, 'healthy')
    """
    call = "gf.diagnose.flow_grid(activations, ...)"
    inits = INITS if inits is None else inits
    axes = {"activations": activations, "inits": inits, "norms": norms, "depths": depths, "widths": widths}
    for name, axis in axes.items():
        if isinstance(axis, str) or not isinstance(axis, (Sequence, Mapping)) or not axis:
            raise TypeError(message(call, got=f"{name}={axis!r}", expected="a sequence with something in it"))
    for name, scheme in inits.items():
        if not isinstance(scheme, init.Scheme):
            raise TypeError(message(call, got=f"{kind_of(scheme)} as init {name!r}", expected="a scheme of gf.init"))
    check_int(call, "samples", samples, 2)
    functions = [_function(call, activation) for activation in activations]
    x, y = _data(n_features, samples, seed)
    rows = []
    for (name, phi), (said, scheme), norm, depth, width in itertools.product(
        functions, inits.items(), norms, depths, widths
    ):
        if progress is not None:
            progress(f"{name}, {said}, norm {norm}, depth {depth}, width {width}")
        net = stateless(block(n_features, layers=depth, width=width, activation=phi, norm=norm))
        model = net.bind(_params(net.params, scheme, norm, seed))
        flow = gradient_flow(model, F.binary_cross_entropy_with_logits, (x, y), seed=seed)
        theory = _theory(phi, scheme, norm, depth, width, n_features)
        rows.append(_row(flow, (name, said, norm, depth, width), theory))
    return GridReport(tuple(rows), samples, seed)


def _function(call: str, given: Activation) -> tuple[str, Callable[[Tensor], Tensor] | None]:
    if callable(given):
        return str(getattr(given, "__name__", type(given).__name__)), given
    if given == "identity":
        return given, None
    found = getattr(F, given, None) or getattr(torch, given, None) if isinstance(given, str) else None
    if not callable(found):
        expected = "a name of torch.nn.functional, 'identity', or a function"
        raise ValueError(message(call, got=f"activation {given!r}", expected=expected))
    return given, {"tanh": torch.tanh, "sigmoid": torch.sigmoid}.get(given, found)


def _data(n_features: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(abs(seed))
    x = F.normalize(torch.randn(samples, n_features, generator=generator)) * n_features**0.5
    return x, (x[:, :1] > 0).float()


def _params(params: Tensors, scheme: init.Scheme, norm: str | None, seed: int) -> Tensors:
    own = isinstance(scheme, type(init.torch_default()))
    rules: dict[str, init.Scheme] = {
        r"[ho]\d*\.weight": scheme,
        r"[ho]\d*\.bias": scheme if own else init.zeros(),
    }
    if norm is not None:
        rules |= {r"n\d+\.weight": init.ones(), r"n\d+\.bias": init.zeros()}
    return init.initialize(params, rules, seed=abs(seed))


def _theory(
    phi: Callable[[Tensor], Tensor] | None, scheme: init.Scheme, norm: str | None, depth: int, width: int, inputs: int
) -> float | None:
    """The geometric mean of sqrt(chi) of the blocks after the first, on the way back from the last."""
    own = isinstance(scheme, type(init.torch_default()))
    first, inner = ((1 / (3 * n) if own else scheme.variance((width, n))) * n for n in (inputs, width))
    if depth == 1 or not (first > 0 and inner > 0):
        return None
    bias = 1 / (3 * width) if own else 0.0
    variance = {"variance": first + (1 / (3 * inputs) if own else 0.0)} if norm is None else {}
    try:
        path = init.variance_path(
            "identity" if phi is None else phi, math.sqrt(inner), depth, norm, bias_variance=bias, **variance
        )
    except ValueError:  # no expectation that converges
        return None
    back = math.prod(layer.backward for layer in path.layers[1:])
    return float(back ** (1 / (depth - 1)))


def _row(flow: FlowReport, key: tuple[str, str, str | None, int, int], theory: float | None) -> GridRow:
    depth = key[3]
    first, last = flow.row("h1").norm, flow.row(f"h{depth}").norm
    total = first / last if first is not None and last else None
    factor = total ** (1 / (depth - 1)) if total is not None and depth > 1 else None
    ratios = [row.ratio for row in flow.rows if row.ratio is not None and row.layer[0] in "ho"]
    return GridRow(*key, factor, theory, total, min(ratios, default=None), flow)
