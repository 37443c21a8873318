"""Several batches as one value, and several losses of one input as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._engines import JoinedSource, Source
from .._errors import kind_of, message
from .._tree import Selection, map_nests, same_structure
from .._weights import Weighted, as_weighted
from ._differentiable import Maker, Origin, Want, joint_origin
from ._evaluation import Options
from ._function import PerSampleGradsFunction, check_options
from ._scales import joined
from ._value import PerSampleGrads


def concatenate(values: Sequence[PerSampleGrads]) -> PerSampleGrads:
    """The samples of several values as one, in order; nothing is computed.

    Args:
        values: per-sample gradients of the same parameters, such as of several micro-batches.

    Raises:
        TypeError: something else.
        ValueError: an empty list; parameters of other names or shapes; auxiliary values of another structure.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> p = {"w": torch.ones(2)}
        >>> gf.concatenate([f(p, torch.ones(2, 2)), f(p, torch.zeros(1, 2))]).norms()
        tensor([1.4142, 1.4142, 0.0000])
    """
    call = "gf.concatenate(values)"
    if isinstance(values, PerSampleGrads) or not isinstance(values, Sequence):
        raise TypeError(message(call, got=kind_of(values), expected="a list of per-sample gradients"))
    if not values:
        raise ValueError(message(call, got="an empty list", expected="at least one value"))
    for g in values:
        if not isinstance(g, PerSampleGrads):
            raise TypeError(message(call, got=f"{kind_of(g)} in the list", expected="per-sample gradients"))
        _check_alike(call, g, values[0])
    first = values[0]
    live = any(g._live for g in values)
    parts, positions = _flattened(values)
    filled = [g for g in values if g.batch_size] or [first]
    smallest = min((g._chunks for g in filled), key=lambda chunks: chunks.size)
    return PerSampleGrads(
        names=first.names,
        batch_size=sum(g.batch_size for g in values),
        engine=", ".join(dict.fromkeys(g.engine for g in filled)),
        _losses=torch.cat([g._losses for g in values]),
        _weights=torch.cat([g._weights for g in values]),
        _aux=map_nests(torch.cat, [g._aux for g in filled]) if filled[0]._aux is not None else None,
        _source=JoinedSource(parts, positions),
        _shapes=first._shapes,
        _scales=joined([(g._scales, g._losses) for g in values]),
        _chunks=dataclasses.replace(smallest),
        _reason=f"{len(values)} values joined",
        _uses=first._uses,
        _slow=set().union(*(g._slow for g in values)),
        _watched=tuple(pair for g in values for pair in g._watched),
        _held=tuple(pair for g in values for pair in g._held),
        _outside=first._outside,
        _origin=None if live else _origin(values),
        _live=live,
    )


def row_grads(
    losses: Callable[..., Any],
    *,
    wrt: Selection | None = None,
    engine: str = "auto",
    chunk_size: str | int | None = "auto",
    randomness: str = "different",
    seed: int = 0,
    verify: str | bool = "first",
    loss_scale: float | None = None,
) -> PerSampleGradsFunction:
    """Several losses of one input as rows: a function `f(params, *args, **kwargs) -> PerSampleGrads` of K rows.

    Row k is the gradient of loss k: of the tasks of a multi-task model, or of the outputs of a model (its Jacobian).
    One forward pass serves all of them. Arguments reach `losses` unchanged; none is split into samples.

    Args:
        losses: `losses(params, *args, **kwargs)` returns K losses: `[K]`, `Weighted` of two `[K]`, or a sequence or
            mapping of scalars (or of `Weighted` scalars).
        wrt, engine, chunk_size, randomness, seed, verify, loss_scale: as in `gf.per_sample_grads`; chunks are of rows.

    Raises:
        TypeError, ValueError: as `gf.per_sample_grads`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.row_grads(lambda p, x: {"sum": (p["w"] * x).sum(), "square": (p["w"] * x).square().sum()})
        >>> f({"w": torch.ones(2)}, torch.tensor([1.0, 2.0])).materialize()["w"]
        tensor([[1., 2.],
                [2., 8.]])
    """
    call = "gf.row_grads(losses)"
    options = Options(wrt, engine, chunk_size, False, randomness, seed, verify, loss_scale, True)
    check_options(call, losses, options)

    def rows(*args: Any, **kwargs: Any) -> Tensor | Weighted:
        return _stacked(f"{call}(params, ...)", losses(*args, **kwargs))

    return PerSampleGradsFunction(rows, options, call=call)


def _origin(values: Sequence[PerSampleGrads]) -> Origin | None:
    makers = [Maker.of(g) for g in values]

    def again(want: Want) -> PerSampleGrads:
        return concatenate([maker.run(want) for maker in makers])

    return joint_origin(again, values)


def _flattened(values: Sequence[PerSampleGrads]) -> tuple[list[Source], list[Tensor]]:
    """The sources and where their samples stand; what was joined before is taken apart, so that it stays flat."""
    parts: list[Source] = []
    positions: list[Tensor] = []
    start = 0
    for g in values:
        before = g._source if isinstance(g._source, JoinedSource) else None
        parts += before.parts if before else [g._source]
        positions += [own + start for own in (before.positions if before else [torch.arange(g.batch_size)])]
        start += g.batch_size
    return parts, positions


def _stacked(call: str, out: Any) -> Tensor | Weighted:
    if isinstance(out, Mapping):
        out = list(out.values())
    if isinstance(out, (Tensor, Weighted)) or not isinstance(out, (list, tuple)):
        whole: Tensor | Weighted = out  # anything else is refused where the engine reads it
        return whole
    if not out:
        raise ValueError(message(call, got="no losses", expected="at least one"))
    each = [as_weighted(call, one, batched=False) for one in out]
    return Weighted(torch.stack([w.numerator for w in each]), torch.stack([w.weight for w in each]))


def _check_alike(call: str, g: PerSampleGrads, first: PerSampleGrads) -> None:
    shapes, expected = ({k: tuple(v.shape) for k, v in value._shapes.items()} for value in (g, first))
    if list(shapes.items()) != list(expected.items()):
        do = "Pass the parameters in the same order."
        raise ValueError(message(call, got=f"gradients of {shapes}", expected=f"those of the first, {expected}", do=do))
    types, wanted = ({k: v.dtype for k, v in value._shapes.items()} for value in (g, first))
    if types != wanted:
        raise ValueError(message(call, got=f"gradients of {types}", expected=f"those of the first, {wanted}"))
    if g.batch_size and first.batch_size and not same_structure(g._aux, first._aux):
        raise ValueError(message(call, got="auxiliary values of another structure", expected="those of the first"))
