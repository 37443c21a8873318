"""A case: parameters, a batch, and the loss of one sample beside the losses of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import gradfunc as gf

F64 = torch.float64
MODES = ["vmap", "native"]
Params = dict[str, Tensor]
Batch = tuple[Any, ...]
Loss = Callable[..., Tensor]


class Draw:
    """Random numbers from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        """Normal numbers in float64."""
        return torch.randn(shape, generator=self.generator, dtype=F64)

    def ints(self, high: int, *shape: int) -> Tensor:
        """Of `range(high)`."""
        return torch.randint(high, shape, generator=self.generator)

    def flags(self, *shape: int) -> Tensor:
        """True or False."""
        return torch.rand(shape, generator=self.generator) < 0.5

    def module(self, module: nn.Module) -> nn.Module:
        """The module in float64 with drawn parameters: a bias of 0 or a scale of 1 would hide mistakes."""
        module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(self(*parameter.shape) * 0.5)
        return module


class Problem(NamedTuple):
    """What one call needs. `args(seed)` are batches of the same shapes; either loss may be None."""

    params: Params
    args: Callable[[int], Batch]
    sample: Loss | None
    batched: Loss | None
    degenerate: Callable[[int], tuple[Params, Batch]] | None

    def loss(self, mode: str) -> Loss | None:
        """The form that the mode runs."""
        return self.sample if mode == "vmap" else self.batched


@dataclass(frozen=True)
class Case:
    """How to make a problem, and what is known of it.

    Attributes:
        make: `(draw, B, T) -> (params, sample loss or None, batched losses or None)`.
        args: `(draw, B, T) -> batch`.
        degenerate: `(params, batch) -> (params, batch)` of which a part of the model has no gradient, or another owner.
        kinds: of the factors of a parameter: "outer", "outer+rows" for both, "rows|dense" for either.
        unused: parameters without gradient in every sample.
        vmap: whether `torch.func` can run it: where not, the loop stands in for the engine when vmap would.
        equal: whether every sample has the same gradient.
        lowest: the lowest dtype inside, by which tolerances are scaled.
        smallest: batch size below which it means nothing.
    """

    make: Callable[[Draw, int, int], tuple[Params, Loss | None, Loss | None]]
    args: Callable[[Draw, int, int], Batch]
    degenerate: Callable[[Params, Batch], tuple[Params, Batch]] | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    vmap: bool = True
    equal: bool = False
    lowest: torch.dtype = F64
    smallest: int = 1
    modes: tuple[str, ...] = tuple(MODES)


CASES: dict[str, Case] = {}


def problem(name: str, size: int, length: int, seed: int = 0) -> Problem:
    """The case of B = size samples, T = length."""
    case = CASES[name]
    params, sample, batched = case.make(Draw(seed), size, length)

    def args(seed: int) -> Batch:
        return case.args(Draw(1000 + seed), size, length)

    def degenerate(seed: int) -> tuple[Params, Batch]:
        assert case.degenerate is not None
        return case.degenerate(params, args(seed))

    return Problem(params, args, sample, batched, degenerate if case.degenerate else None)


def score(out: Tensor) -> Tensor:
    """`[n, ...] -> [n]`: entries count differently, so that no transposed cotangent goes unseen."""
    flat = out.reshape(len(out), out[0].numel())
    return (flat * torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)).sin().sum(1)


def shapes(sizes: tuple[int | str, ...], size: int, length: int) -> list[int]:
    """Sizes with the letters B and T read."""
    return [{"B": size, "T": length}.get(n, n) if isinstance(n, str) else n for n in sizes]


def weights(**sizes: tuple[int | str, ...]) -> Callable[[Draw, int, int], Params]:
    """Parameters of these shapes."""
    return lambda draw, size, length: {k: draw(*shapes(v, size, length)) * 0.5 for k, v in sizes.items()}


def inputs(*sizes: tuple[int | str, ...]) -> Callable[[Draw, int, int], Batch]:
    """Inputs of these shapes a sample."""
    return lambda draw, size, length: tuple(draw(size, *shapes(s, size, length)) for s in sizes)


def tokens(high: int, *sizes: tuple[int | str, ...]) -> Callable[[Draw, int, int], Batch]:
    """Integers of these shapes a sample."""
    return lambda draw, size, length: tuple(draw.ints(high, size, *shapes(s, size, length)) for s in sizes)


def add(
    name: str,
    params: Callable[[Draw, int, int], Params],
    args: Callable[[Draw, int, int], Batch],
    out: Callable[..., Tensor],
    form: str = "stacked",
    kinds: dict[str, str] | None = None,
    *,
    scored: bool = True,
    **known: Any,
) -> None:
    """A function `out(params, *batch) -> [B, ...]`, or the losses `[B]` themselves if it is not `scored`.

    Args:
        name: of the case.
        params: `(draw, B, T) -> params`.
        args: `(draw, B, T) -> batch`.
        out: the function.
        form: "stacked": one sample is a batch of one; "alike": a sample has no batch dimension and the function does
            not mind; "native": only the batch makes sense.
        kinds: see `Case`.
        scored: whether `out` gives outputs and not losses.
        known: other fields of `Case`.
    """
    read = score if scored else (lambda out: out)

    def batched(p: Params, *batch: Any) -> Tensor:
        return read(out(p, *batch))

    def one(p: Params, *sample: Any) -> Tensor:
        if form == "alike":
            return read(out(p, *sample).unsqueeze(0))[0]
        return batched(p, *(t.unsqueeze(0) for t in sample))[0]

    sample = None if form == "native" else one
    modes = tuple(MODES if sample else ["native"])
    assert name not in CASES
    CASES[name] = Case(
        lambda draw, size, length: (params(draw, size, length), sample, batched),
        args,
        kinds=kinds or {},
        modes=modes,
        **known,
    )


def add_module(
    name: str,
    module: Callable[[], nn.Module],
    args: Callable[[Draw, int, int], Batch],
    kinds: dict[str, str] | None = None,
    *,
    options: dict[str, Any] | None = None,
    native: bool = False,
    pick: Callable[[Any], Tensor] = lambda out: out,
    **known: Any,
) -> None:
    """A module; `options` of `gf.stateless`, where `in_dims` can only say that time comes first; `pick` an output."""

    def make(draw: Draw, size: int, length: int) -> tuple[Params, Loss | None, Loss]:
        made = draw.module(module())
        model = gf.stateless(made, **(options or {}))
        time_first = "in_dims" in (options or {})

        def batched(p: Params, *batch: Any) -> Tensor:
            if time_first:
                return score(pick(model(p, *(t.transpose(0, 1) for t in batch))).transpose(0, 1))
            return score(pick(model(p, *batch)))

        def sample(p: Params, *one: Any) -> Tensor:
            return score(pick(model.sample(p, *one)).unsqueeze(0))[0]

        return dict(model.params), None if native else sample, batched

    modes = tuple(["native"] if native else MODES)
    assert name not in CASES
    CASES[name] = Case(make, args, kinds=kinds or {}, modes=modes, **known)
