"""What the tensors of an operation show, in words that the table of faults reads.

no entries       a tensor without entries was reduced
pole             float64 has infinity there too, and none beside it
narrow           the same operation is finite in float64
empty slice      all that a softmax may choose from is -inf
zero over zero   0 was divided by 0
made infinity    infinity came out, and no NaN
zero cotangent   the gradient that came was exactly 0 where its product with the derivative is NaN
masked           `where`, a filled mask or an index stands between the operation and the loss
sees infinity    infinity came in that was put there on purpose
its own          it reads parameters and constants, and nothing of the batch
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._tree import map_floats, tensors_of
from ._origin import Input, short

_MASKS = ("WhereBackward", "MaskedFillBackward", "IndexBackward", "MaskedSelectBackward", "IndexPutBackward")
_FILLS = {"masked_fill", "where", "full", "fill", "full_like", "scalar_tensor", "new_full", "lift_fresh", "copy"}
_SOFTMAX = {"_softmax", "_log_softmax", "_safe_softmax"}
_CARRIED = ("Clone", "View", "UnsafeView", "Alias", "ToCopy", "Unsqueeze", "Squeeze", "Slice", "Select", "Gather", "T")
_CARRIED_ON = tuple(f"{name}Backward" for name in _CARRIED)
_NUMBERS = {"other", "exponent"}  # what may be a number as well as a tensor
_BESIDE = 2.0**-20  # of a number, or of 1: far more than it is rounded by


def floats(tree: Any) -> list[Tensor]:
    """The floating and complex tensors; of a sparse one its values."""
    found = [t for t in tensors_of(tree) if t.is_floating_point() or t.is_complex()]
    return [t._values() if t.is_sparse else t for t in found]


def all_finite(tree: Any) -> bool:
    """Whether every entry of every floating tensor is finite."""
    return all(finite(t) for t in floats(tree))


def finite(tensor: Tensor) -> bool:
    """Whether every entry is: so if their sum is, which is quicker to have."""
    tensor = tensor.detach()
    return not tensor.numel() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def inputs_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Input, ...]:
    """The tensors that an operation reads."""
    return tuple(_input(name, tensor) for name, tensor in _named(func, args, kwargs) if tensor.dtype != torch.bool)


def facts_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> set[str]:
    """What can be read once it has run."""
    name, given, made = short(str(func)), floats(args), floats(out)
    facts: set[str] = set()
    if given and not given[0].numel() and any(t.numel() for t in made):
        facts.add("no entries")
    if name in _SOFTMAX and given and given[0].dim() and bool((given[0] == -math.inf).all(args[1]).any()):
        facts.add("empty slice")
    parts = tensors_of(args)
    if name == "div" and len(parts) == 2 and bool(((parts[0] == 0) & (parts[1] == 0)).any()):
        facts.add("zero over zero")
    if any(bool(t.isinf().any()) for t in made) and not any(bool(t.isnan().any()) for t in made):
        facts.add("made infinity")
    if any(bool(t.isinf().any()) for t in given):
        facts.add("sees infinity")
    if all_finite((args, kwargs)):
        facts |= _again(func, args, kwargs)
    if name in ("mul", "div") and made and any(_zero_there(t, made[0]) for t in given):
        facts.add("zero cotangent")
    return facts


def _again(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[str]:
    """Whether float64 has numbers there, or beside it at least."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        return set()  # it would draw once more

    def at(change: Callable[[Tensor], Tensor]) -> bool:
        given = map_floats(lambda tensor: change(tensor.detach().to(torch.float64, copy=True)), (args, dict(kwargs)))
        try:
            return all_finite(func(*given[0], **given[1]))
        except Exception:  # a kernel without float64
            return False

    if at(lambda tensor: tensor):
        return {"narrow"}
    return {"pole"} if at(lambda tensor: tensor + _BESIDE * tensor.abs().clamp_min(1.0)) else set()


def literal(func: Any, out: Any) -> bool:
    """Whether it only puts infinity where the user's code says so."""
    return short(str(func)) in _FILLS and not any(bool(t.isnan().any()) for t in floats(out))


def masked(nodes: list[Any], sequence: int) -> bool:
    """Whether a node that masks lies between the loss and the node of this number."""
    above = [node for node in _below(nodes) if node.name().startswith(_MASKS)]
    return any(node._sequence_nr() == sequence for node in _below(above))


def made_by(tensors: list[Tensor]) -> tuple[str, ...]:
    """Names of the nodes behind the first differentiable tensor, five at most, but for those that carry entries on."""
    node: Any = next((t.grad_fn for t in tensors if t.grad_fn is not None), None)
    names: list[str] = []
    while node is not None and len(names) < 5:
        if not node.name().startswith(_CARRIED_ON):
            names.append(node.name())
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return tuple(names)


def _below(nodes: list[Any]) -> Iterator[Any]:
    unseen, seen = list(nodes), set()
    while unseen:
        node = unseen.pop()
        if node is not None and node not in seen:
            seen.add(node)
            unseen += [before for before, _ in node.next_functions]
            yield node


def _zero_there(tensor: Tensor, made: Tensor) -> bool:
    if torch.broadcast_shapes(tensor.shape, made.shape) != made.shape:
        return False
    return bool(((tensor == 0) & made.isnan()).any())


def _named(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    names = [argument.name for argument in func._schema.arguments]
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        if name in _NUMBERS and isinstance(value, (int, float)):
            yield name, torch.tensor(float(value), dtype=torch.float64)
        for k, tensor in enumerate(tensors_of(value)):
            yield (name if isinstance(value, Tensor) else f"{name}[{k}]"), tensor


def _input(name: str, tensor: Tensor) -> Input:
    values = tensor._values() if tensor.is_sparse else tensor
    values = values.detach()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    low, high, lost = *_ends(values), 0
    if not math.isfinite(low + high) and values.numel():
        kept = values[values.isfinite()]
        lost, (low, high) = values.numel() - kept.numel(), _ends(kept)
    zero = low <= 0 <= high and int(torch.count_nonzero(values)) < values.numel()
    kind = str(tensor.dtype).removeprefix("torch.")
    return Input(name, tuple(tensor.shape), kind, low, high, zero, lost, tensor.requires_grad)


def _ends(values: Tensor) -> tuple[float, float]:
    if not values.numel():
        return math.nan, math.nan
    low, high = torch.aminmax(values)
    return float(low), float(high)
