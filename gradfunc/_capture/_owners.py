"""Whose row is it: ownership measured by losses weighted with powers of two.

If every element of a value influences the loss of at most one sample, its cotangent for the loss of sample b is the
total cotangent masked to b's elements. To know the owners, the losses are weighted by `r_i = 2^k_i`: what one sample
owns is multiplied by exactly its `2^k_i` (scaling by powers of two commutes with rounding, through any type on the
way), and what several share is no multiple of any. Each sample has a random code; one pass shows one digit of it.

An error goes one way: an owned value read as shared is exact, only slower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._cotangent import is_clip, straight
from .._tree import Tensors
from ._graph import Edge, Graph
from ._layout import Layout

Backward = Callable[[], AbstractContextManager[None]]  # around a backward pass
_SEED = 0x0C0DE
_ENTRIES = 2**15  # that are summed at once: in the cache, and by one thread


@dataclass(frozen=True, eq=False)
class Reading:
    """What the cotangents of one value have shown.

    Attributes:
        state: "owned", "shared", "zero" (no gradient came in this batch) or "absent" (there is no path to a parameter).
        layouts: all regular layouts that fit an owned value; a table if none does.
        alone: whether but one of several samples was seen to own anything of it.
    """

    state: str
    layouts: tuple[Layout, ...] = ()
    alone: bool = False

    @property
    def layout(self) -> Layout:
        """The first that fits."""
        return self.layouts[0]

    @property
    def certain(self) -> bool:
        """Whether other data of the same shapes is owned alike: one regular layout fits several samples, and no other.

        What only one sample has reached may be shared as soon as another does.
        """
        return len(self.layouts) == 1 and self.layouts[0].table is None and not self.alone


ABSENT, ZERO, SHARED = Reading("absent"), Reading("zero"), Reading("shared")


@dataclass
class Owners:
    """The readings of every value of a graph, by edge."""

    graph: Graph
    samples: int
    unused: tuple[str, ...]  # parameters that no loss depends on
    readings: dict[Edge, Reading] = field(default_factory=dict)

    def of(self, edge: Edge) -> Reading:
        """Of one value."""
        return self.readings.get(edge, ABSENT)

    def node(self, node: int) -> str:
        """Of all values that one operation gives: shared if any is, else owned if any is, else zero or absent."""
        states = {self.of(Edge(node, k)).state for k in range(self.graph.outputs(node))}
        return next((state for state in ("shared", "owned", "zero") if state in states), "absent")


def measure(graph: Graph, leaves: Tensors, scale: float, backward: Backward) -> Owners:
    """Run the backward pass of `scale * losses` for each half of the samples and for every digit of their codes.

    The halves are for gradients so large that those of others vanish in rounding beside them.
    """
    samples = len(graph.losses)
    narrow = any(m.dtype == torch.float16 for node in graph.nodes for m in node._input_metadata)
    bits = 2 if narrow else 4  # so that the weights lie within 2^-8 and 2^7, in float16 within 2^-2 and 2^1
    generator = torch.Generator().manual_seed(_SEED)
    codes = torch.randperm(samples, generator=generator)
    digits = _digits(codes, samples, bits)
    half = scale * (codes < samples / 2).double()
    (first, unused), (second, _) = (_sketched(graph, leaves, weights, backward) for weights in (half, scale - half))
    passes = [_sketched(graph, leaves, scale * 2.0 ** (digit - 2 ** (bits - 1)), backward)[0] for digit in digits]
    owners = Owners(graph, samples, unused)
    sample_of = torch.full((2 ** (bits * len(digits)),), -1)
    sample_of[codes] = torch.arange(samples)
    for edge, sums in first.items():
        apart = list(zip(sums, second[edge], strict=True))
        owners.readings[edge] = _read(apart, [sketch[edge] for sketch in passes], sample_of, bits, samples)
    _settle(owners)
    _part_norms(owners)
    return owners


def _part_norms(owners: Owners) -> None:
    """What is clipped by a norm over several samples is shared by them: each has a backward pass of its own there."""
    for i, node in enumerate(owners.graph.nodes):
        whole = is_clip(node) and node.lead is not None
        if whole and any(layout.dim >= node.lead for layout in owners.of(Edge(i, 0)).layouts):
            owners.readings[Edge(i, 0)] = SHARED


def confirm(owners: Owners, leaves: Tensors, scale: float, backward: Backward, doubts: Sequence[Edge]) -> None:
    """Find what is shared by samples that were weighted alike, so that one's gradient vanished beside another's.

    In each pass half of the samples have no loss, other halves so that of every two samples one is without while the
    other is not, and the other way round (Sperner's theorem says how few passes do). What a sample owns must be 0 then.
    The passes go down to the doubtful values; if one of these is not owned as it was read, to all, since what they lead
    to is not either.
    """
    if _corrected(owners, leaves, scale, backward, {edge.node for edge in doubts}):
        _corrected(owners, leaves, scale, backward, None)


def _corrected(owners: Owners, leaves: Tensors, scale: float, backward: Backward, only: set[int] | None) -> bool:
    """Whether a reading was wrong, of what these operations give or of all; it has been corrected."""
    graph, samples = owners.graph, owners.samples
    passes = next(n for n in range(1, samples + 2) if math.comb(n, n // 2) >= samples)
    sets = itertools.islice(itertools.combinations(range(passes), passes // 2), samples)
    silent = torch.zeros(passes, samples, dtype=torch.bool)
    for sample, chosen in enumerate(sets):
        silent[list(chosen), sample] = True
    wrong = False
    for quiet in silent:
        found, _ = _sketched(graph, leaves, scale * (~quiet).double(), backward, only)
        for edge, sums in found.items():
            reading = owners.of(edge)
            kept = tuple(layout for layout in reading.layouts if _silent(sums[layout.dim], layout, quiet))
            if len(kept) < len(reading.layouts):
                owners.readings[edge], wrong = Reading("owned", kept, reading.alone) if kept else SHARED, True
    return wrong


def _silent(sums: Tensor, layout: Layout, quiet: Tensor) -> bool:
    owner = layout.owners(len(sums), len(quiet), sums.device)
    return not bool(((sums != 0) & sums.isfinite() & (owner >= 0) & quiet[owner]).any())


def _digits(codes: Tensor, samples: int, bits: int) -> list[Tensor]:
    """The codes' digits, least first; one more than is needed where all codes would use every digit."""
    digits, base = [codes % 2**bits], 2**bits
    while base < samples:
        digits.append(codes // base % 2**bits)
        base *= 2**bits
    return digits


def _sketched(
    graph: Graph, leaves: Tensors, weights: Tensor, backward: Backward, only: set[int] | None = None
) -> tuple[dict[Edge, list[Tensor]], tuple[str, ...]]:
    """For every value and each of its dimensions the sums of |cotangent| over all others; and who is unused.

    Of `only` some operations, the pass ends below them, and tells nothing of who is unused.
    """
    found: dict[Edge, list[Tensor]] = {}

    def note(i: int, grads: tuple[Tensor | None, ...]) -> None:
        with torch._C.DisableTorchFunction():  # operations of ours, which the mode around the pass is not for
            for k, grad in enumerate(grads):
                if grad is not None:
                    found[Edge(i, k)] = _sums(grad.detach())

    noted = [i for i in range(len(graph.nodes)) if i not in graph.leaves and (only is None or i in only)]
    below = dict.fromkeys(edge for i in noted for edge in graph.inputs[i] if edge is not None)
    ends: list[Any] = [GradientEdge(graph.nodes[edge.node], edge.output) for edge in below]
    handles = []
    try:
        handles += [graph.nodes[i].register_prehook(partial(note, i)) for i in noted]
        with backward(), straight(graph.nodes):  # a clip would not keep multiples
            cotangent = weights.to(graph.losses)
            inputs = list(leaves.values()) if only is None else ends
            grads = torch.autograd.grad(graph.losses, inputs, cotangent, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    unused = () if only is not None else zip(leaves, grads, strict=True)
    return found, tuple(name for name, grad in unused if grad is None)


def _sums(grad: Tensor) -> list[Tensor]:
    size = grad.to_dense() if grad.layout != torch.strided else grad
    rank = size.dim()
    if rank <= 1:
        return [size.reshape(-1).abs().double().cpu()]
    lead, last = _by_rows(size.flatten(0, -2))
    lead = lead.reshape(size.shape[:-1])  # far smaller, and all that the other dimensions need
    each = [lead.sum([e for e in range(rank - 1) if e != d]) if rank > 2 else lead for d in range(rank - 1)]
    return [sums.cpu() for sums in (*each, last)]


def _by_rows(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of magnitudes of a matrix along either dimension, in float64, some rows at a time.

    A copy of the whole would cost more than its sums: fresh memory is slow.
    """
    rows, width = flat.shape
    lead, last = flat.new_zeros(rows, dtype=torch.float64), flat.new_zeros(width, dtype=torch.float64)
    step = max(1, (2**24 if flat.is_cuda else _ENTRIES) // max(1, width))
    for at in range(0, rows, step):
        part = flat[at : at + step].abs().double()
        lead[at : at + step] = part.sum(1)
        last += part.sum(0)
    return lead, last


def _read(
    halves: list[tuple[Tensor, Tensor]], passes: list[list[Tensor]], sample_of: Tensor, bits: int, samples: int
) -> Reading:
    if not any(bool(sums.any()) for sums in (*halves[0], *(sums[0] for sums in passes))):
        return ZERO
    if samples == 1:
        return Reading("owned", (Layout(0),))
    tables = []
    for d, pair in enumerate(halves):
        table = _decoded(pair, [sums[d] for sums in passes], sample_of, bits)
        if table is not None:
            tables.append((d, table))
    regular = [Layout(d, inner) for d, table in tables for inner in _fitting(table, samples)]
    if regular:
        alone = all(len(table[table >= 0].unique()) == 1 for _, table in tables)
        return Reading("owned", tuple(regular), alone)
    for d, table in tables:
        if all(bool(sums.isfinite().all()) for sums in halves[d]):
            return Reading("owned", (Layout(d, table=table),))
    return SHARED


def _decoded(halves: tuple[Tensor, Tensor], passes: list[Tensor], sample_of: Tensor, bits: int) -> Tensor | None:
    """The owner of each slot, -1 where no gradient came, or one that is not finite.

    None unless every other slot has an owner, and some slot has.
    """
    first, second = halves
    if bool(((first != 0) & (second != 0) & first.isfinite() & second.isfinite()).any()):
        return None
    whole = first + second
    live = (whole > 0) & whole.isfinite()
    code = torch.zeros(len(whole), dtype=torch.int64)
    for p, sums in enumerate(passes):
        exponent = torch.where(live, sums / torch.where(live, whole, 1.0), 1.0).log2() + 2 ** (bits - 1)
        digit = exponent.nan_to_num(-1.0).round()
        good = (digit >= 0) & (digit < 2**bits) & (sums == whole * 2.0 ** (digit - 2 ** (bits - 1)))
        if not bool((good | ~live).all()) or bool((sums[whole == 0] != 0).any()):
            return None
        code += torch.where(live, digit, 0).long() * 2 ** (bits * p)
    owner = torch.where(live, sample_of[code], -1)
    return None if not bool(live.any()) or bool((owner[live] < 0).any()) else owner


def _fitting(table: Tensor, samples: int) -> list[int]:
    """Every `inner` for which slot i belongs to sample `(i // inner) % samples` wherever the owner is known."""
    slots = len(table)
    if slots % samples:
        return []
    each = slots // samples
    index = torch.arange(slots)
    known = table >= 0
    divisors = (inner for inner in range(1, each + 1) if each % inner == 0)
    return [inner for inner in divisors if bool(((index // inner % samples == table) | ~known).all())]


# --- several layouts may fit: what is known of a value tells which fits the value it was computed from

VIEWS = frozenset(
    f"{name}Backward{k}"
    for name, last in {"View": 0, "UnsafeView": 0, "ReshapeAlias": 0, "Unsqueeze": 0, "Squeeze": 5, "Alias": 0}.items()
    for k in range(last + 1)
)
REORDERS = ("Transpose", "Permute", "TBackward", "Flip", "Roll", "Index", "Gather", "Sort", "Scatter", "Select")


def _settle(owners: Owners) -> None:
    """Keep the one candidate that agrees with a certain value computed from this one, row by row."""
    graph, changed = owners.graph, True
    while changed:
        changed = False
        for i in range(len(graph.nodes)):
            above = owners.of(Edge(i, 0))
            if graph.outputs(i) != 1 or not above.certain:
                continue
            for j, edge in enumerate(graph.inputs[i]):
                if edge is None or len((below := owners.of(edge)).layouts) < 2:
                    continue
                fits = _agreeing(graph, i, j, edge, above.layout, below.layouts)
                if len(fits) == 1:
                    owners.readings[edge], changed = Reading("owned", (fits[0],), below.alone), True


def _agreeing(graph: Graph, i: int, j: int, edge: Edge, known: Layout, among: tuple[Layout, ...]) -> list[Layout]:
    name, above, below = graph.names[i], graph.shape(Edge(i, 0)), graph.shape(edge)
    rows = {"MmBackward0": 0, "AddmmBackward0": 1}.get(name)
    if rows == j and known.dim == 0:
        return [c for c in among if c.dim == 0 and c.inner == known.inner]
    same = above == below and not name.startswith(REORDERS)
    if same or (name in VIEWS and torch.Size(above).numel() == torch.Size(below).numel()):
        step = known.inner * torch.Size(above[known.dim + 1 :]).numel()
        return [c for c in among if c.inner * torch.Size(below[c.dim + 1 :]).numel() == step]
    return []
