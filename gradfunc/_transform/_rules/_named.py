"""A rule with a name of its own that is a chain of parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..._tree import Tensors
from .._chain import Chain, Rule
from .._guarantee import SAMPLES, Guarantee
from .._numbers import shown
from .._protocol import Grads, State, Transformation, Updates
from .._stage import How


@dataclass(frozen=True, repr=False)
class Named(Rule):
    """One stage of a chain, whose state is that of its parts: `{part: its state}`.

    Attributes:
        title: what messages and states call it.
        spelling: how it was made.
        chain: the parts.
    """

    title: str
    spelling: str
    chain: Chain[Grads, Updates]

    @property
    def name(self) -> str:
        """Its own."""
        return self.title

    @property
    def parts(self) -> tuple[Transformation[Any, Any], ...]:
        """The stages within, in order."""
        return self.chain.stages

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """That of the parts."""
        return self.chain.guarantee(before)

    def init(self, params: Tensors, /) -> State:
        """That of the parts."""
        return self.chain.init(params)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """The parts in turn."""
        return self.chain.apply(grads, state, params, how)

    def __repr__(self) -> str:
        return self.spelling


def spelt(name: str, first: object, given: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """`name(first, option=value)` with what is not as by default."""
    changed = [f"{key}={shown(value)}" for key, value in given.items() if value != defaults[key]]
    return f"{name}({', '.join([shown(first), *changed])})"
