"""Random draws of a function under our control: refused, recorded, replayed.

What counts as a draw is read off the operator (torch tags those
that consume a generator), below autograd, so it makes no difference which layer or call asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._errors import message
from ._forked import generator_states, same_states


def refused_draw(call: str, func: Any) -> RuntimeError:
    """The error of a draw under `randomness="error"`, naming what draws."""
    return RuntimeError(
        message(
            call,
            got=f"a loss that draws random numbers ({func}) under randomness='error'",
            expected="a deterministic loss",
            do="Use .eval(), or randomness='different' or 'same'.",
        )
    )


class CannotReplay(RuntimeError):
    """A draw that cannot be replayed: fused into a larger operator, or not divisible into samples."""


class _Draws(TorchDispatchMode):
    """Sees every operator that consumes a generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        before = generator_states()
        out = func(*args, **kwargs)
        # Some operators have the tag and draw only when asked to, such as attention with its dropout.
        unchanged = same_states(before, generator_states())
        return out if unchanged and kwargs.get("generator") is None else self.drawn(func, args, out)

    def drawn(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        raise AssertionError("abstract")


class RefuseDraws(_Draws):
    """Raises on the first draw, naming the operator."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call

    def drawn(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        """Raise."""
        raise refused_draw(self.call, func)


@dataclass
class Record:
    """The draws of one forward pass, in order."""

    draws: list[Tensor] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)

    def split(self, starts: Sequence[int]) -> list[Record]:
        """One record for each stretch that begins at a position of `starts`."""
        stops = [*starts[1:], len(self.draws)][: len(starts)]
        return [Record(self.draws[a:b], self.operators[a:b]) for a, b in zip(starts, stops, strict=True)]


class RecordDraws(_Draws):
    """Lets draws happen and keeps copies of them in `record`; `failed` once one cannot be replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.record = Record()
        self.failed = False

    def drawn(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        """Keep a copy: of the mask where the operator returns (output, mask)."""
        drawn = out[1] if _is_native_dropout(func) else out
        if isinstance(drawn, Tensor) and not _writes_elsewhere(func):
            self.record.draws.append(drawn.detach().clone())
            self.record.operators.append(str(func))
        else:  # drawn inside a fused operator, which returns other things besides
            self.failed = True
        return out


class ReplayDraws(_Draws):
    """Gives the k-th draw the k-th recorded value, joined over several records along the samples.

    The dimension of the samples is the one in which the recorded pieces add up to the shape asked for.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__()
        self.records = records
        self.position = 0

    def drawn(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        """Return the recorded value, in the form `func` does."""
        k = self.position
        self.position += 1
        if any(k >= len(record.draws) or record.operators[k] != str(func) for record in self.records):
            raise CannotReplay(f"draw {k} is {func} in one pass and something else in another")
        pieces = [record.draws[k] for record in self.records]
        if _is_native_dropout(func):
            x, p = args[0], args[1]
            mask = _joined(pieces, x.shape)
            return x * mask / (1 - p) if p < 1 else torch.zeros_like(x), mask
        if func._schema.is_mutable:
            args[0].copy_(_joined(pieces, args[0].shape))
            return args[0]
        return _joined(pieces, out.shape).to(out.dtype)


def _writes_elsewhere(func: Any) -> bool:
    """Whether the operator writes what it drew to an argument other than its first (`rrelu_with_noise`)."""
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments[1:])


def _is_native_dropout(func: Any) -> bool:
    return bool(func.overloadpacket == torch.ops.aten.native_dropout)


def _joined(pieces: list[Tensor], shape: torch.Size) -> Tensor:
    first = pieces[0].shape
    for dim in range(len(shape)):
        joined = sum(piece.shape[dim] for piece in pieces) if len(first) == len(shape) else -1
        rest = [*first[:dim], *first[dim + 1 :]] == [*shape[:dim], *shape[dim + 1 :]]
        if joined == shape[dim] and rest:
            return torch.cat(pieces, dim)
    if len(pieces) == 1 and first == shape:
        return pieces[0]
    raise CannotReplay(f"draws of shape {tuple(first)} do not add up to {tuple(shape)} along one dimension")
