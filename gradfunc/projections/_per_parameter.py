"""Parameters side by side rather than added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._errors import kind_of, message
from .._factors import Factor
from ._count_sketch import CountSketch
from ._dense import Gaussian, Rademacher
from ._keys import by_variance
from ._two_sided import TwoSided

Single = Gaussian | Rademacher | CountSketch | TwoSided


@dataclass(frozen=True)
class PerParameter:
    """A block of numbers for each parameter. Made by `gf.projections.per_parameter`.

    Attributes:
        each: what a parameter goes through.
        names: of parameters, in the order of their blocks.
    """

    each: Single
    names: tuple[str, ...]
    kind: ClassVar[str] = "per_parameter"

    @property
    def size(self) -> int:
        """Of all blocks."""
        return self.each.size * len(self.names)

    def block(self, name: str) -> slice:
        """Which numbers are the parameter's."""
        start = self.names.index(name) * self.each.size
        return slice(start, start + self.each.size)

    def apply(self, name: str, factor: Factor) -> Tensor:
        """Its part in its block, zeros elsewhere: `[B, size]`."""
        if name not in self.names:
            call, expected = "g.project(per_parameter(...))", f"one of the {len(self.names)} that have a block"
            raise ValueError(message(call, got=f"parameter {name!r}", expected=expected))
        part = self.each.apply(name, factor)
        out = part.new_zeros(len(part), self.size)
        out[:, self.block(name)] = part
        return out

    @property
    def variance(self) -> float:
        """Of <Pu, Pv> for unit vectors, at most: that of one parameter."""
        return self.each.variance

    def error(self, failure: float = 0.01) -> float:
        """The eps such that |<Pu, Pv> - <u, v>| <= eps |u| |v| for given u, v, but with probability `failure`.

        Chebyshev's bound: parts are independent, so their variances add up to that of one at most.
        """
        return by_variance("per_parameter(...).error(failure)", self.variance, failure)

    def to_dict(self) -> dict[str, Any]:
        """What names the projection, JSON-ready; `gf.projections.from_dict` reads it."""
        return {"kind": self.kind, "each": self.each.to_dict(), "names": list(self.names)}


def per_parameter(each: Single, names: Iterable[str]) -> PerParameter:
    """Each parameter through `each`, side by side: inner products of one layer, or of all, from the same numbers.

    Args:
        each: one of the projections of this module.
        names: of all parameters, such as `model.params`.

    Raises:
        TypeError: `each` is something else.
        ValueError: a name twice, or none.

    Example:
        >>> import gradfunc as gf
        >>> projection = gf.projections.per_parameter(gf.projections.two_sided((4, 4)), ["0.weight", "0.bias"])
        >>> projection.size, projection.block("0.bias")
        (32, slice(16, 32, None))
    """
    call = "gf.projections.per_parameter(each, names)"
    if not isinstance(each, Single):
        expected = "gaussian, rademacher, count_sketch or two_sided"
        raise TypeError(message(call, got=f"each: {kind_of(each)}", expected=expected))
    given = tuple(names)
    if isinstance(names, str) or not given or len(set(given)) < len(given):
        raise ValueError(message(call, got=f"names={names!r}", expected="one or more names, each once"))
    return PerParameter(each, given)
