"""From a shared value back to the parameters: factors carried through what computed it.

Where the structure survives (a transposed, cast, scaled, sliced, concatenated or low-rank weight), a factor stays a
factor. Elsewhere its rows are pulled back by one batched vector-Jacobian product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._factors import Dense, Factor, Grouped, Outer, Rows, Unfolded
from ._graph import Edge, Graph
from ._owners import VIEWS, Backward
from ._rules import sum_copies, sum_to


class Step(NamedTuple):
    """One operation to go back through, and the factor on its output.

    Attributes:
        backward: a context around reading what the operation kept: a checkpointed region computes that again.
    """

    graph: Graph
    edge: Edge
    factor: Factor
    backward: Backward

    @property
    def node(self) -> Any:
        """torch's node."""
        return self.graph.nodes[self.edge.node]

    @property
    def inputs(self) -> list[Edge | None]:
        """Where its operands come from."""
        return self.graph.inputs[self.edge.node]

    def shape(self, j: int = 0) -> tuple[int, ...]:
        """Of operand j."""
        edge = self.inputs[j]
        return () if edge is None else self.graph.shape(edge)

    def to(self, j: int, factor: Factor) -> list[tuple[Edge, Factor]]:
        """A factor on operand j, nothing where it needs no gradient."""
        edge = self.inputs[j]
        return [] if edge is None else [(edge, factor)]

    def saved(self, name: str) -> Tensor | None:
        """A tensor that the operation kept."""
        with self.backward():
            tensor: Tensor | None = getattr(self.node, f"_saved_{name}")
        return tensor.detach() if tensor is not None and tensor.requires_grad else tensor


Found = list[tuple[Edge, Factor]] | None


class Pulled(NamedTuple):
    """Where a factor on a shared value has come.

    Attributes:
        arrived: at parameters.
        stopped: at values that its structure does not survive.
        through: nodes that were read.
    """

    arrived: list[tuple[str, Factor]]
    stopped: list[tuple[Edge, Factor]]
    through: set[int]


def pulled(graph: Graph, edge: Edge, factor: Factor, backward: Backward) -> Pulled:
    """Carry a factor on a shared value as far as its structure survives."""
    arrived: list[tuple[str, Factor]] = []
    stopped: list[tuple[Edge, Factor]] = []
    through: set[int] = set()
    pending = [(edge, factor)]
    while pending:
        edge, factor = pending.pop()
        if edge.node in graph.leaves:
            arrived.append((graph.leaves[edge.node], factor))
            continue
        through.add(edge.node)
        name = graph.names[edge.node]
        if isinstance(factor, (Unfolded, Grouped)) and name not in _KEEPING:
            factor = Dense(factor.dense())
        rule = _PULLS.get(name)
        found = rule(Step(graph, edge, factor, backward)) if rule is not None else None
        if found is None:
            stopped.append((edge, factor))
        else:
            pending += found
    return Pulled(arrived, stopped, through)


def _reshaped(factor: Factor, shape: tuple[int, ...]) -> Factor | None:
    """The same entries in another shape."""
    if isinstance(factor, Outer):
        return Outer(factor.x, factor.g, shape)
    if isinstance(factor, Dense):
        return Dense(factor.values.reshape(factor.size, *shape))
    if isinstance(factor, (Unfolded, Grouped)):
        return replace(factor, shape=shape)
    return Rows(factor.index, factor.g, shape) if isinstance(factor, Rows) and shape[:1] == factor.shape[:1] else None


def _matrix(factor: Factor) -> bool:
    """Whether the factor's value is, but for dimensions of size 1, the matrix `[O, I]` of an `Outer`."""
    if not isinstance(factor, Outer):
        return False
    return tuple(n for n in factor.shape if n != 1) == (factor.g.shape[2], factor.x.shape[2])


def view(step: Step) -> Found:
    """Other dimensions, the same order of entries."""
    shape = step.shape()
    if math.prod(shape) != math.prod(step.factor.shape):
        return None
    factor = _reshaped(step.factor, shape)
    return None if factor is None else step.to(0, factor)


def cast(step: Step) -> Found:
    """Another type."""
    return step.to(0, step.factor)


def expand(step: Step) -> Found:
    """Repeated by broadcasting."""
    if isinstance(step.factor, Dense):
        return step.to(0, Dense(sum_to(step.factor.values, step.shape())))
    return view(step)


def repeat(step: Step) -> Found:
    """Copies one after the other."""
    if isinstance(step.factor, Dense):
        return step.to(0, Dense(sum_copies(step.factor.values, step.shape())))
    return None


def _permuted(step: Step, order: list[int]) -> Found:
    factor = step.factor
    back = [order.index(d) for d in range(len(order))]
    if isinstance(factor, Dense):
        return step.to(0, Dense(factor.values.permute(0, *(d + 1 for d in back))))
    kept = [d for d in order if step.shape()[d] != 1]
    if kept == sorted(kept):  # nothing but dimensions of size 1 has moved
        return view(step)
    if _matrix(factor) and isinstance(factor, Outer):
        return step.to(0, Outer(factor.g, factor.x, step.shape()))
    return None


def t(step: Step) -> Found:
    """`.t()`."""
    return _permuted(step, [1, 0]) if len(step.shape()) == 2 else view(step)


def transpose(step: Step) -> Found:
    """`.transpose(dim0, dim1)`."""
    rank = len(step.shape())
    a, b = (_signed(getattr(step.node, f"_saved_dim{k}")) % rank for k in (0, 1))
    order = list(range(rank))
    order[a], order[b] = b, a
    return _permuted(step, order)


def permute(step: Step) -> Found:
    """`.permute(dims)`."""
    rank = len(step.shape())
    return _permuted(step, [_signed(d) % rank for d in step.node._saved_dims])


def mul(step: Step) -> Found:
    """Times something that is constant or, for dense rows, anything."""
    if all(edge is not None for edge in step.inputs):
        return None  # a product of two parameters: both need the rows
    j = 0 if step.inputs[0] is not None else 1
    other = step.saved("other" if j == 0 else "self")
    return None if other is None else _scaled(step, j, other)


def mul_number(step: Step) -> Found:
    """Times a number."""
    return _scaled(step, 0, step.node._saved_other)


def _scaled(step: Step, j: int, other: Tensor | float) -> Found:
    factor, shape = step.factor, step.shape(j)
    if isinstance(factor, Dense):
        other = other.conj() if isinstance(other, Tensor) else other.conjugate()
        return step.to(j, Dense(sum_to(factor.values * other, shape)))
    if shape != factor.shape:
        return None
    if not isinstance(other, Tensor) or other.numel() == 1:
        # (a number that torch has wrapped is left as it is)
        number = other.reshape(()) if isinstance(other, Tensor) and other.dim() else other
        if isinstance(factor, Outer):
            return step.to(j, Outer(factor.x, factor.g * number, shape))
        return step.to(j, Rows(factor.index, factor.g * number, shape)) if isinstance(factor, Rows) else None
    if isinstance(factor, Outer) and factor.shape == (factor.g.shape[2], factor.x.shape[2]) and other.dim() <= 2:
        rows, columns = (1, 1, *other.shape)[-2:]
        if columns == 1:
            return step.to(j, Outer(factor.x, factor.g * other.reshape(-1), shape))
        if rows == 1:
            return step.to(j, Outer(factor.x * other.reshape(-1), factor.g, shape))
    return None


def add(step: Step) -> Found:
    """A sum, such as a weight and its low-rank correction."""
    return _sum(step, float(step.node._saved_alpha))


def sub(step: Step) -> Found:
    """A difference."""
    return _sum(step, -float(step.node._saved_alpha))


def _sum(step: Step, alpha: float) -> Found:
    found: list[tuple[Edge, Factor]] = []
    for j, number in ((0, 1.0), (1, alpha)):
        if j >= len(step.inputs) or step.inputs[j] is None:
            continue
        one = step.to(j, step.factor) if number == 1 and step.shape(j) == step.factor.shape else None
        one = one or _scaled(step, j, number)
        if one is None:
            return None
        found += one
    return found


def neg(step: Step) -> Found:
    """The negative."""
    return _scaled(step, 0, -1.0)


def mm(step: Step) -> Found:
    """`self [A, K] @ mat2 [K, C]`, both made of parameters: a low-rank weight."""
    return _product(step, 0, "self", "mat2", 1.0)


def addmm(step: Step) -> Found:
    """`beta input + alpha mat1 @ mat2`."""
    if step.inputs[0] is not None:
        return None
    return _product(step, 1, "mat1", "mat2", float(step.node._saved_alpha))


def _product(step: Step, first: int, left: str, right: str, alpha: float) -> Found:
    factor = step.factor
    structured = isinstance(factor, Outer) and factor.shape == (factor.g.shape[2], factor.x.shape[2])
    if not structured and not isinstance(factor, Dense):
        return None
    found: list[tuple[Edge, Factor]] = []
    for j, name in ((first, right), (first + 1, left)):
        if step.inputs[j] is None:
            continue
        other = step.saved(name)
        if other is None:
            return None
        other = other * alpha if alpha != 1 else other
        if isinstance(factor, Dense):
            other = other.to(factor.values.dtype).conj()
            found += step.to(j, Dense(factor.values @ other.T if j == first else other.T @ factor.values))
            continue
        assert isinstance(factor, Outer)
        if j == first:
            found += step.to(j, Outer(factor.x @ other.to(factor.x.dtype).T, factor.g, step.shape(j)))
        else:
            found += step.to(j, Outer(factor.x, factor.g @ other.to(factor.g.dtype), step.shape(j)))
    return found


def cat(step: Step) -> Found:
    """Parameters side by side: each receives its own part."""
    factor, at = step.factor, 0
    found: list[tuple[Edge, Factor]] = []
    dim = _signed(step.node._saved_dim) % max(len(factor.shape), 1)
    sizes = _cat_sizes(step, dim)
    if sizes is None:
        return None
    for j, size in enumerate(sizes):
        part = _part(factor, dim, at, size)
        if part is None:
            return None
        found += step.to(j, part)
        at += size
    return found


def _cat_sizes(step: Step, dim: int) -> list[int] | None:
    """Of each operand along the dimension; one that needs no gradient is not known, but the last unknown follows."""
    sizes = [step.shape(j)[dim] if edge is not None else None for j, edge in enumerate(step.inputs)]
    unknown = [j for j, size in enumerate(sizes) if size is None]
    if len(unknown) > 1:
        return None
    rest = step.factor.shape[dim] - sum(size for size in sizes if size is not None)
    return [rest if size is None else size for size in sizes]


def _part(factor: Factor, dim: int, start: int, size: int) -> Factor | None:
    """Rows of a slice of the value."""
    shape = (*factor.shape[:dim], size, *factor.shape[dim + 1 :])
    if isinstance(factor, Dense):
        return Dense(factor.values.narrow(dim + 1, start, size))
    if isinstance(factor, Outer) and factor.shape == (factor.g.shape[2], factor.x.shape[2]):
        if dim == 0:
            return Outer(factor.x, factor.g.narrow(2, start, size), shape)
        return Outer(factor.x.narrow(2, start, size), factor.g, shape)
    return None


def _padded(step: Step, dim: int, start: int) -> Found:
    """The value is a slice of something larger: zeros around it."""
    factor, shape = step.factor, step.shape()
    after = shape[dim] - start - factor.shape[dim]
    if isinstance(factor, Dense):
        around = [0, 0] * (len(shape) - 1 - dim) + [start, after]
        return step.to(0, Dense(F.pad(factor.values, around)))
    if isinstance(factor, Outer) and factor.shape == (factor.g.shape[2], factor.x.shape[2]):
        if dim == 0:
            return step.to(0, Outer(factor.x, F.pad(factor.g, (start, after)), shape))
        return step.to(0, Outer(F.pad(factor.x, (start, after)), factor.g, shape))
    return None


def slice_(step: Step) -> Found:
    """`value[start:stop]` along one dimension."""
    node, shape = step.node, step.shape()
    if _signed(node._saved_step) != 1:
        return None
    dim = _signed(node._saved_dim) % len(shape)
    start = _signed(node._saved_start) if node._saved_start is not None else 0
    start = max(0, start + shape[dim] if start < 0 else start)
    return _padded(step, dim, min(start, shape[dim]))


def select(step: Step) -> Found:
    """`value[index]` along one dimension: of the first, one matrix of a stack, such as an expert's."""
    node, shape, factor = step.node, step.shape(), step.factor
    dim = _signed(node._saved_dim) % len(shape)
    at = _signed(node._saved_index) % shape[dim]
    if isinstance(factor, Outer) and dim == 0 and factor.shape == (factor.g.shape[2], factor.x.shape[2]):
        index = torch.full(factor.x.shape[:2], at, device=factor.x.device)
        return step.to(0, Grouped(index, factor.x, factor.g, shape))
    if not isinstance(factor, Dense):
        return None
    if dim == 0:  # a row of a table, which need not be padded with all others
        index = torch.full((factor.size, 1), at, device=factor.values.device)
        return step.to(0, Rows(index, factor.values.reshape(factor.size, 1, -1), shape))
    return _padded(step._replace(factor=Dense(factor.values.unsqueeze(dim + 1))), dim, at)


def split(step: Step) -> Found:
    """One of several equal pieces."""
    dim = _signed(step.node._saved_dim) % len(step.shape())
    return _padded(step, dim, int(step.node._saved_split_size) * step.edge.output)


def split_with_sizes(step: Step) -> Found:
    """One of several pieces."""
    dim = _signed(step.node._saved_dim) % len(step.shape())
    return _padded(step, dim, sum(int(n) for n in step.node._saved_split_sizes[: step.edge.output]))


def embedding(step: Step) -> Found:
    """Rows of a table that every sample reads, such as positions."""
    indices = step.saved("indices")
    if indices is None or not isinstance(step.factor, Dense) or step.node._saved_scale_grad_by_freq:
        return None
    padding = step.node._saved_padding_idx
    return _looked_up(step, indices, padding if 0 <= padding < step.shape()[0] else None)


def index(step: Step) -> Found:
    """`table[indices]`."""
    with step.backward():
        first, *others = step.node._saved_indices
    if first is None or any(o is not None for o in others) or first.dtype in (torch.bool, torch.uint8):
        return None
    return _looked_up(step, torch.where(first < 0, first + step.shape()[0], first), None)


def _looked_up(step: Step, indices: Tensor, padding: int | None) -> Found:
    factor, shape = step.factor, step.shape()
    if not isinstance(factor, Dense):
        return None
    flat = indices.reshape(1, -1).expand(factor.size, -1)
    g = factor.values.reshape(factor.size, flat.shape[1], math.prod(shape[1:]))
    if padding is not None:
        g = g.masked_fill((flat == padding)[..., None], 0)
    return step.to(0, Rows(flat, g, shape))


def _signed(number: int) -> int:
    """torch shows a negative number as an unsigned one."""
    return number - 2**64 if number >= 2**63 else number


# These read tensors that the operation kept. A checkpointed region computes them again, once in a backward pass, and
# with the draws and scans of the mode around it: so they are read after the pass and not in a hook of it.
READING = frozenset(f"{name}Backward0" for name in ("Mul", "Mm", "Addmm", "Embedding", "Index"))
# Of factors that are no matrix the rules keep these only; anything else is done to their rows.
_KEEPING = VIEWS | {"ToCopyBackward0", "CloneBackward0"}
_PULLS: dict[str, Callable[[Step], Found]] = {
    **dict.fromkeys(VIEWS, view),
    "ToCopyBackward0": cast,
    "CloneBackward0": cast,
    "ExpandBackward0": expand,
    "RepeatBackward0": repeat,
    "TBackward0": t,
    "TransposeBackward0": transpose,
    "PermuteBackward0": permute,
    "MulBackward0": mul,
    "MulBackward1": mul_number,
    "AddBackward0": add,
    "SubBackward0": sub,
    "NegBackward0": neg,
    "MmBackward0": mm,
    "AddmmBackward0": addmm,
    "CatBackward0": cat,
    "SliceBackward0": slice_,
    "SelectBackward0": select,
    "SplitBackward0": split,
    "SplitWithSizesBackward0": split_with_sizes,
    "EmbeddingBackward0": embedding,
    "IndexBackward0": index,
}
