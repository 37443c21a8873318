"""Planted mistakes: a piece of the source of one function replaced, and the graph on which that must show."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional as F

from gradfunc._capture import _arrivals, _capture, _follows, _graph, _layout, _owners, _plan, _pull, _routes, _rules
from gradfunc._capture._rules import (
    _convolutions,
    _elementwise,
    _generic,
    _lookups,
    _norms,
    _products,
    _recurrences,
    _site,
)
from gradfunc._factors import _norms as _factor_norms
from gradfunc._factors import _windows

from .graphs import Model
from .rules_table import B, I, O, T, drawn, scored

OWNERS = {
    "arrivals": _arrivals.Arrivals,
    "capture": _capture._Run,
    "convolutions": _convolutions,
    "elementwise": _elementwise,
    "factors": _factor_norms,
    "follows": _follows,
    "generic": _generic,
    "Graph": _graph.Graph,
    "Layout": _layout.Layout,
    "lookups": _lookups,
    "norms": _norms,
    "owners": _owners,
    "plan": _plan,
    "Plan": _plan.Plan,
    "products": _products,
    "recurrences": _recurrences,
    "pull": _pull,
    "Reading": _owners.Reading,
    "routes": _routes,
    "site": _site,
    "Site": _site.Site,
    "Windows": _windows.Windows,
}


class Scaled(torch.autograd.Function):
    """A product of a number and two tensors."""

    @staticmethod
    def forward(ctx, number, x, w):
        ctx.number = number
        ctx.save_for_backward(x, w)
        return number * x * w

    @staticmethod
    def backward(ctx, grad):
        x, _ = ctx.saved_tensors
        return None, None, (ctx.number * grad * x).sum(0)


def doubled(h: torch.Tensor) -> torch.Tensor:
    """Its gradient is twice what it would be."""
    h.register_hook(lambda g: 2 * g)
    return h


_w = {"w": drawn(O, I), "v": drawn(O)}
OTHER_GRAPHS = {
    "hooked": Model(
        lambda p, x: scored(doubled(torch.atan2(p["w"], x @ p["u"]))), {"w": drawn(O), "u": drawn(I, O)}, (drawn(B, I),)
    ),
    "no rule": Model(lambda p, x: scored(torch.atan2(p["w"], x)), {"w": drawn(T, 1)}, (drawn(B, T, I),)),
    "a function of a number": Model(
        lambda p, x: scored(Scaled.apply(0.5, x, p["w"])), {"w": drawn(T, I)}, (drawn(B, T, I),)
    ),
    "two stops": Model(
        lambda p, x: scored((lambda w: F.linear(x, w).sin() @ w)(p["w"].exp())), {"w": drawn(O, I)}, (drawn(B, I),)
    ),
    "read twice": Model(
        lambda p, x: scored((lambda h: h.sin() + h.cos() * h)(F.linear(x, p["w"]))), _w, (drawn(B, T, I),)
    ),
    "tied": Model(  # too large for its rows to be formed
        lambda p, x: scored(F.linear(F.embedding(x, p["w"]).tanh(), p["w"])),
        {"w": drawn(30, 40)},
        (torch.randint(30, (B, T), generator=torch.Generator().manual_seed(0)),),
    ),
}  # fmt: skip

# function | graph (of `rules_table`: rule or pull, type and name; or one of those above) | it says | the mutant says
ONE_CALL = """
products.addmm | rule AddmmBackward0: right, 0.5 -1.5 | float(node._saved_beta) | 1.0
products.addmm | rule AddmmBackward0: right, 0.5 -1.5 | float(node._saved_alpha) | 1.0
products.addmm | rule AddmmBackward0: left, 0.5 -1.5, last | float(node._saved_alpha) | 1.0
products.baddbmm | rule BaddbmmBackward0: right, 0.5 -1.5 | float(node._saved_beta) | 1.0
products.baddbmm | rule BaddbmmBackward0: left, 0.5 -1.5 | float(node._saved_alpha) | 1.0
products.mm | rule MmBackward0: right | "mat2", 1.0 | "mat2", 0.5
products.mv | rule MvBackward0: vector, time | [..., None], 1.0 | [..., None], 1.0 / site.split(kept).shape[1]
products.bmm | rule BmmBackward0: right | "mat2", 1.0 | "mat2", 1.0 / site.samples
products._matrix | rule MmBackward0: left, last \
| site.split(kept, 1), site.split(g), | site.split(g), site.split(kept, 1),
products._matrix | rule MmBackward0: right, time first \
| site.split(kept, 0), | kept.reshape(site.samples, -1, 5),
products._matrices | rule BmmBackward0: right, second | positions(g, 1) | positions(g.roll(1, 0), 1)
products._matrices | rule BmmBackward0: left, all but one, last \
| positions(other.mT, 1) | positions(other.mT.roll(1, 0), 1)
products._matrices | rule BmmBackward0: left | site, rows, positions(g.mT, 0), | site, positions(g.mT, 0), rows,
recurrences.recurrent | rule RecurrentProductBackward: rows, time first \
| lambda g: site.summed(g) | lambda g: site.summed(g / 2)
recurrences.recurrent | rule RecurrentProductBackward: rows, time first \
| site.split(tensor).flatten(1, 2) | site.split(tensor.flip(0) if tensor is x else tensor).flatten(1, 2)
generic._argument | a function of a number | if needed] | if True]
lookups.embedding | rule EmbeddingBackward0: padding | g.masked_fill(pads, 0) | g
lookups.index | rule IndexBackward0: from the end | first + site.shape[0] | -1 - first
lookups.index_select | rule IndexSelectBackward0: a row a sample | _rows(site, indices) | _rows(site, indices.flip(0))
lookups._rows | rule EmbeddingBackward0: padding, time first \
| own = site.split(indices) | own = indices.reshape(site.samples, -1)
norms._scale | rule NativeLayerNormBackward0: time \
| rstd[at].to(dtype).flatten(1) | torch.ones_like(rstd[at].to(dtype)).flatten(1)
norms._scale | rule NativeLayerNormBackward0: time | (x[at].to(dtype) - mean[at]).mul_ | x[at].clone().mul_
norms.layer_norm | rule NativeLayerNormBackward0: time \
| lambda g: site.summed(g) | lambda g: site.summed(g / g.shape[1])
Site.channels | rule NativeGroupNormBackward0: 2 groups | .sum(2) if | .mean(2) if
norms.group_norm | rule NativeGroupNormBackward0: 2 groups | * rstd.view(len(x), groups, 1) |
norms.group_norm | rule NativeGroupNormBackward0: 2 groups | - mean.view(len(x), groups, 1, 1)[at] |
elementwise.add | rule AddBackward0: features 1 | float(site.node._saved_alpha) if | 1.0 if
elementwise.sub | rule SubBackward0: features 1 | -float(site.node._saved_alpha) if | float(site.node._saved_alpha) if
elementwise.sub | rule SubBackward0: features 1 | -float(site.node._saved_alpha) if | -1.0 if
elementwise.mul | rule MulBackward0: features 1 | g * other.conj() | g
Site.channels | rule NativeBatchNormBackward0: running statistics, images | .sum(2) if | .mean(2) if
norms.batch_norm | rule NativeBatchNormBackward0: running statistics, images | - mean.view(across) | + 0
norms.batch_norm | rule NativeBatchNormBackward0: running statistics, channels | .mul_(rstd.view(across)) |
products._stacked | rule BmmBackward0: experts right | .repeat(kept | .repeat_interleave(kept
products._stacked | rule BmmBackward0: experts left | g.mT if alpha | g.mT.roll(1, 1) if alpha
products._stacked | rule BaddbmmBackward0: experts, 0.5 | else g * alpha), kept | else g), kept
products.trilinear | rule TrilinearBackward0: time, first | .flatten(1) | .mT.flatten(1)
lookups.embedding_bag | rule EmbeddingBagBackward0: sum, bags of one size | layout.inner * each | layout.inner
lookups.embedding_bag | rule EmbeddingBagBackward0: sum, bags of any size, one empty \
| repeat_interleave(sizes) | repeat_interleave(sizes).flip(0)
lookups.embedding_bag | rule EmbeddingBagBackward0: mean, padding, bags of two | .reciprocal() |
lookups.embedding_bag | rule EmbeddingBagBackward0: sum, padding, bags of two \
| masked_fill_(pads, 0) | masked_fill_(pads, 1)
lookups.embedding_bag | rule EmbeddingBagBackward0: weights of their own | g[bag] * scale | g[bag] + scale
lookups._largest | rule EmbeddingBagBackward0: max, bags of any size, one empty \
| masked_fill(empty, 0) | masked_fill(empty, 1)
lookups._largest | rule EmbeddingBagBackward0: max, bags of one size | * features + torch | + torch
Site.channels | rule ConvolutionBackward0: plain | .sum(2) | .mean(2)
convolutions.convolution | rule ConvolutionBackward0: images of a sample | site.split(x), | site.split(x.roll(1, 0)),
convolutions.convolution | rule ConvolutionBackward0: groups | site.split(g), | site.split(g.roll(1, 1)),
Windows.blocks | rule ConvolutionBackward0: stride, padding and dilation | a * stride | a
Windows.blocks | rule ConvolutionBackward0: stride, padding and dilation | a * dilation | a
Windows.padded | rule ConvolutionBackward0: two dimensions | around = [pad, | around = [2 * pad,
Windows.padded | rule ConvolutionBackward0: two dimensions | *around] | *around][::-1]
elementwise.repeat | rule RepeatBackward0: features | site.split(g) | site.split(g.roll(1, 0))
pull.repeat | pull RepeatBackward0: a matrix, dense | step.factor.values | step.factor.values * 2
site.sum_copies | rule RepeatBackward0: time in a sample, merged | .sum(d) | .mean(d)
site.sum_copies | rule RepeatBackward0: two dimensions | (-1, n)).sum(d) | (n, -1)).sum(d + 1)
site.sum_copies | pull RepeatBackward0: a matrix, dense | .sum(d) | .mean(d)
elementwise.same | rule ExpandBackward0: features 0 | site.summed(g) | site.summed(g / 2)
elementwise.by_the_node | rule AddcmulBackward0: features 1 | out[j] if isinstance(out, tuple) else out | g
elementwise.by_the_node | rule RsubBackward1: rows | product.expand | g.expand
capture._cotangents | hooked | if edge.node in plan.passed} | if False}
generic.generic | no rule | min(start + step, samples)) | min(start + step, samples)).flip(0)
generic.generic | no rule | sum_to(dense(product)[None], shape)[0] | sum_to(dense(product)[None], shape)[0] / 2
Site.summed | rule AddBackward0: merged rows | each.sum(1) | each.mean(1)
site.sum_to | rule AddBackward0: features 0 | rows.sum(list( | rows.mean(list(
site.sum_to | rule AddBackward0: column 0 | rows.sum(short | rows.mean(short
Layout.split | rule MmBackward0: right, time first \
| reshape(outer, samples, self.inner, *rest) | reshape(self.inner, samples, outer, *rest)
Layout.owners | rule AddBackward0: a row each | // self.inner % samples | % samples // self.inner
Layout.masked | rule AddBackward0: all 0 | samples.to(tensor.device)[:, None] | ((samples + 1) % total)[:, None]
Layout._gathered | rule MmBackward0: uneven rows | self.table.to(tensor.device) | self.table.roll(1)
Layout._gathered | rule MmBackward0: uneven rows | tensor.new_zeros | tensor.new_ones
owners._fitting | rule MmBackward0: right, time in rows | return [inner for | return [each // inner for
plan.plan | rule AddmmBackward0: right, 0.5 -1.5 | return Plan(uses, | return Plan(uses[1:],
plan.plan | rule AddmmBackward0: right, 0.5 -1.5 | return Plan(uses, | return Plan(uses[:-1],
plan.plan | read twice | if edge.node not in seen: | if True:
arrivals._pulled_back | two stops | totals[edge] + rows if edge in totals else rows | rows
arrivals._join | tied | [factor for factor, _ in found] | [factor for factor, _ in found][:1]
factors.squares | tied | value + 2 * term.value | value
pull.cast | pull CloneBackward0: cloned, outer | step.to(0, step.factor) | []
pull.expand | pull ExpandBackward0: leading, dense \
| sum_to(step.factor.values, step.shape()) | sum_to(step.factor.values, step.shape()) / 3
pull.t | pull TBackward0: of a square, dense | [1, 0] | [0, 1]
pull.transpose | pull TransposeBackward0: matrix, outer | order[a], order[b] = b, a | pass
pull.permute | pull PermuteBackward0: of a cube, dense | step.node._saved_dims] | step.node._saved_dims[::-1]]
pull._permuted | pull PermuteBackward0: matrix, outer | Outer(factor.g, factor.x | Outer(factor.x, factor.g
pull._permuted | pull PermuteBackward0: of a cube, dense | [order.index(d) for d in range(len(order))] | order
pull.mul | pull MulBackward0: by entry, dense | _scaled(step, j, other) | _scaled(step, j, 1.0)
pull.mul_number | pull MulBackward1: number, rows | step.node._saved_other | 1.0
pull._scaled | pull MulBackward0: number, outer | factor.g * number, shape)) | factor.g, shape))
pull._scaled | pull MulBackward0: number, rows | Rows(factor.index, factor.g * number | Rows(factor.index, factor.g
pull._scaled | pull MulBackward0: by row, outer | factor.g * other.reshape(-1) | factor.g
pull._scaled | pull MulBackward0: by column, outer | factor.x * other.reshape(-1) | factor.x
pull.add | pull AddBackward0: twice, outer | float(step.node._saved_alpha) | 1.0
pull.sub | pull SubBackward0: transposed, outer | -float(step.node._saved_alpha) | float(step.node._saved_alpha)
pull.sub | pull SubBackward0: constant, rows | -float(step.node._saved_alpha) | float(step.node._saved_alpha)
pull._sum | pull AddBackward0: twice, outer | found += one | found = one
pull.neg | pull NegBackward0: negative, outer | -1.0 | 1.0
pull.mm | pull MmBackward0: low rank | "mat2", 1.0 | "mat2", 2.0
pull.addmm | pull AddmmBackward0: low rank, alpha | float(step.node._saved_alpha) | 1.0
pull._product | pull MmBackward0: low rank | if step.inputs[j] is None: | if j == first:
pull.cat | pull CatBackward0: parameters, 0 | at += size | pass
pull._cat_sizes | pull CatBackward0: with a constant, 0, outer | rest if size is None | 0 if size is None
pull._part | pull CatBackward0: parameters, 1 | factor.x.narrow(2, start, size) | factor.x.narrow(2, 0, size)
pull._part | pull CatBackward0: with a constant, 1, dense | narrow(dim + 1, start, size) | narrow(dim + 1, 0, size)
pull.slice_ | pull SliceBackward0: end, 0, outer | start + shape[dim] if start < 0 else start | start
pull._padded | pull SliceBackward0: end, 0, outer | F.pad(factor.g, (start, after)) | F.pad(factor.g, (after, start))
pull._padded | pull SliceBackward0: end, 1, outer | F.pad(factor.x, (start, after)) | F.pad(factor.x, (after, start))
pull._padded | pull SliceBackward0: end, 0, dense | + [start, after] | + [after, start]
pull.select | pull SelectBackward0: a matrix of a stack, outer | factor.x.shape[:2], at | factor.x.shape[:2], 0
pull.select | pull SelectBackward0: inside, dense | unsqueeze(dim + 1))), dim, at | unsqueeze(dim + 1))), dim, 0
pull.select | pull SelectBackward0: a matrix of a stack, dense | (factor.size, 1), at | (factor.size, 1), 0
pull.select | pull SelectBackward0: two of a stack | % shape[dim] | % 1
pull.split | pull SplitBackward0: middle, 0, outer | * step.edge.output | * (step.edge.output - 1)
pull.split_with_sizes | pull SplitWithSizesBackward0: middle, 0, outer | [: step.edge.output] | [: step.edge.output - 1]
pull.embedding | pull EmbeddingBackward0: padded, dense | padding if 0 <= padding < step.shape()[0] else None | None
pull.index | pull IndexBackward0: from the end, dense | first + step.shape()[0] | first + step.shape()[0] - 1
pull._looked_up | pull EmbeddingBackward0: positions, dense | Rows(flat, g, shape) | Rows(flat.flip(1), g, shape)
pull.view | pull ViewBackward0: vector, dense \
| _reshaped(step.factor, shape) | _reshaped(step.factor, shape) and Dense(step.factor.values.mT.reshape(-1, *shape))
"""
# function | data of `test_plans` | it says | the mutant says. Right on the first batch, where the plan is learnt.
SECOND_CALL = """
Plan.fits | gathered in order at first | all(route.unchanged(graph) for route in self.routes) | True
Plan.fits | routed in order at first | all(route.unchanged(graph) for route in self.routes) | True
routes.routes | gathered in order at first | if not _from_shared(graph, owners, i) | if False
plan.plan | a branch scaled by 0 | sentinels.append(edge) | pass
plan.plan | adjacency | lasting &= follows(graph, owners, node, j) | pass
follows.follows | attention mask | return own in kept and | return
follows.follows | rows of graphs, pooled by a matrix \
| return own in kept and (own, within) == (dim, inner) | return True
follows.follows | multiplied by a mask | return (own + len(out) - len(shape), within) == (dim, inner) | return True
follows.follows | embedding of a derived table | return own in kept and (own, within) == (dim, inner) | return True
Reading.certain | one active sample of a running sum | and not self.alone |
capture._check_asleep | a branch scaled by 0 | if awake and | if False and
Graph.__init__ | softmax along either | for attribute in _numbers(kind, name)) | for attribute in ())
"""
# function | layout, samples | it says | the mutant says. One gradient vanishes beside another, and so does its row.
ABSORBED = """
capture.capture | two_only, 5 | confirm(owners, leaves, scale, backward, doubts) | pass
owners._corrected | two_only, 5 | quiet in silent: | quiet in silent[:2]:
owners._decoded | two_only, 2 | & (second != 0) & | & (second != second) &
"""


class Mutant(NamedTuple):
    """A line of the tables."""

    function: str
    on: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wherever the package imports the function, and in its tables of rules."""
        where, _, name = self.function.partition(".")
        owner: Any = _capture if self.function == "capture.capture" else OWNERS[where]
        held = inspect.getattr_static(owner, name)
        real = held.fget if isinstance(held, property) else held
        source = textwrap.dedent(inspect.getsource(real))
        assert self.old in source, f"{self.function} no longer says {self.old!r}"
        scope: dict[str, Any] = {}
        exec(compile(source.replace(self.old, self.new), f"<{self.function}>", "exec"), real.__globals__, scope)
        made = scope[name]  # of a property too, whose source has its decorator
        monkeypatch.setattr(owner, name, made)
        for module in [m for key, m in sys.modules.items() if key.startswith(("gradfunc.", "capture."))]:
            if vars(module).get(name) is real:
                monkeypatch.setattr(module, name, made)
        for table in (_rules.RULES, _rules.LATE, _pull._PULLS):
            for key, value in list(table.items()):
                if value is real:
                    monkeypatch.setitem(table, key, made)


def lines(table: str) -> list[Mutant]:
    """Read."""
    rows = [f"{line} ".split(" | ") for line in table.strip().splitlines()]
    return [Mutant(*(cell.strip() for cell in row)) for row in rows]
