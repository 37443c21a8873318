"""What is timed: a table of name -> contender. A peer is one more entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._errors import message, one_of
from .._per_sample import per_sample_grads
from .._random import forked
from .._swap import Swap
from . import _by_hand, _diagnoses, _step
from ._contender import Call, Contender
from ._floor import floor, products
from ._peers import PEERS
from ._workload import Case


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
            if quantity == "materialise":
                return g.materialize()
            norms = g.norms()
            return norms if quantity == "norms" else g.weighted_sum(_by_hand.clip_factors(norms, case.max_norm))

        return call

    name = ("gradfunc" if batched else "gradfunc-vmap") + (f":{engine}" if engine != "auto" else "")
    settings = f"a loss of {'the batch' if batched else 'one sample'}, engine={engine!r}, each batch verified once"
    return Contender(name, make, settings=settings)


def _plain(case: Case, quantity: str) -> Call:
    """The gradient of the mean loss by `torch.autograd.grad`: what `backward()` computes where `.grad` is None."""
    params = [param for param in case.module.parameters() if param.requires_grad]
    return lambda: torch.autograd.grad(case.mean_loss(), params, allow_unused=True)


def _scan(case: Case, quantity: str) -> Call:
    """The same, recurrent layers step by step as the factored engine runs them, not by torch's fused kernel."""
    params = [param for param in case.module.parameters() if param.requires_grad]

    def call() -> Any:
        with forked(0, 0, devices=[]), Swap("gf.bench", 0, 0, randomness="different", scan="fast") as swap:
            swap.begin(0)
            return torch.autograd.grad(case.mean_loss(), params, allow_unused=True)

    return call


def _forward(case: Case, quantity: str) -> Call:
    """The forward pass alone, recorded for a backward pass that does not come."""
    return case.mean_loss


def _vmap_grad(case: Case, quantity: str) -> Call:
    return lambda: _by_hand.answer(quantity, _by_hand.rows(case), case.max_norm)


PLAIN = Contender("plain", _plain, ("mean gradient",))
CONTENDERS = {
    contender.name: contender
    for contender in (
        PLAIN,
        Contender("scan", _scan, ("mean gradient",)),
        Contender("forward", _forward, ("loss",)),
        Contender("floor", floor, ("its operations",)),
        Contender("products", products, ("rows, bare",), beside=("materialise",)),
        gradfunc(),
        gradfunc(batched=False),
        *_step.CONTENDERS,
        *_diagnoses.CONTENDERS,
        Contender("vmap(grad)", _vmap_grad, peer=True, settings="torch.func.vmap(grad(loss)), every row held"),
    )
}
"""Ways to compute per-sample quantities with torch and gradfunc, `{name: contender}`."""


def named(call: str, name: str) -> Contender:
    """The contender of a name; gradfunc's own may be followed by an engine, as in "gradfunc:vmap".

    Raises:
        ValueError: no such contender, or an engine beside one that has none.
        ModuleNotFoundError: a peer that is not installed.
    """
    first, colon, engine = name.partition(":")
    one_of(call, "contender", first, [*CONTENDERS, *PEERS])
    if colon:
        if not first.startswith("gradfunc"):
            raise ValueError(message(call, got=f"contender={name!r}", expected="an engine behind gradfunc's own only"))
        return gradfunc(engine, batched=first == "gradfunc")
    if first in CONTENDERS:
        return CONTENDERS[first]
    peer = PEERS[first]
    if peer.library is not None and not peer.library.installed:
        got = f"contender={name!r}, which is not installed"
        raise ModuleNotFoundError(message(call, got=got, expected="an installed peer", do=f"{peer.library.install}"))
    return peer


def chosen(call: str, asked: Sequence[str | Contender]) -> list[Contender]:
    """Contenders by name or as they are.

    Raises:
        TypeError: something else.
    """
    found = []
    for item in asked:
        if not isinstance(item, (str, Contender)):
            raise TypeError(message(call, got=f"{item!r} as contender", expected="a name or a Contender"))
        found.append(named(call, item) if isinstance(item, str) else item)
    return found
