"""What is timed: a table of name -> contender. A peer is one more entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import message, one_of
from .._per_sample import per_sample_grads
from . import _by_hand
from ._floor import floor
from ._truth import QUANTITIES
from ._workload import Case

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """One way to compute the quantities.

    Attributes:
        name: by which it is asked for.
        make: `make(case, quantity) -> call`; what can be prepared once is prepared here, and `call()` is timed. It
            returns `{name: tensor}` for "clip-and-sum", `[B]` for "norms" and `[B, B]` for "gram".
        quantities: what it can compute. What is not one of `gf.bench.QUANTITIES` is a base line: always measured,
            and not compared with anything.

    Example:
        >>> import gradfunc as gf
        >>> def make(case, quantity):
        ...     return lambda: sum(len(x) for x in case.batch)
        >>> gf.bench.Contender("count", make, quantities=("the batch",)).name
        'count'
    """

    name: str
    make: Callable[[Case, str], Call]
    quantities: tuple[str, ...] = QUANTITIES


def gradfunc(engine: str = "auto", *, batched: bool = True) -> Contender:
    """gradfunc itself.

    Args:
        engine: as `gf.per_sample_grads` takes it.
        batched: whether the loss runs the batch natively; otherwise it is a loss of one sample.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.gradfunc().name, gf.bench.gradfunc("vmap", batched=False).name
        ('gradfunc', 'gradfunc-vmap:vmap')
    """

    per_sample_grads(Case.loss, engine=engine)  # refuses an unknown engine now, before anything is measured

    def make(case: Case, quantity: str) -> Call:
        f = per_sample_grads(case.losses if batched else case.loss, engine=engine, batched=batched).at(step=0)

        def call() -> Any:
            g = f(case.model.params, *case.batch)
            if quantity == "gram":
                return g.gram()
            norms = g.norms()
            return norms if quantity == "norms" else g.weighted_sum(_by_hand.clip_factors(norms, case.max_norm))

        return call

    return Contender(("gradfunc" if batched else "gradfunc-vmap") + (f":{engine}" if engine != "auto" else ""), make)


def _plain(case: Case, quantity: str) -> Call:
    """The gradient of the mean loss by `torch.autograd.grad`: what `backward()` computes where `.grad` is None."""
    params = [param for param in case.module.parameters() if param.requires_grad]
    return lambda: torch.autograd.grad(case.mean_loss(), params, allow_unused=True)


def _forward(case: Case, quantity: str) -> Call:
    """The forward pass alone, recorded for a backward pass that does not come."""
    return case.mean_loss


def _vmap_grad(case: Case, quantity: str) -> Call:
    def call() -> Any:
        rows = _by_hand.rows(case)
        if quantity == "gram":
            return _by_hand.gram(rows, rows)
        norms = _by_hand.norms(rows)
        if quantity == "norms":
            return norms
        return _by_hand.weighted_sum(rows, _by_hand.clip_factors(norms, case.max_norm))

    return call


PLAIN = Contender("plain", _plain, ("mean gradient",))
CONTENDERS = {
    contender.name: contender
    for contender in (
        PLAIN,
        Contender("forward", _forward, ("loss",)),
        Contender("floor", floor, ("its operations",)),
        gradfunc(),
        gradfunc(batched=False),
        Contender("vmap(grad)", _vmap_grad),
    )
}


def named(call: str, name: str) -> Contender:
    """The contender of a name; gradfunc's own may be followed by an engine, as in "gradfunc:vmap".

    Raises:
        ValueError: no such contender, or an engine beside one that has none.
    """
    first, colon, engine = name.partition(":")
    one_of(call, "contender", first, CONTENDERS)
    if not colon:
        return CONTENDERS[first]
    if not first.startswith("gradfunc"):
        raise ValueError(message(call, got=f"contender={name!r}", expected="an engine behind gradfunc's own only"))
    return gradfunc(engine, batched=first == "gradfunc")
