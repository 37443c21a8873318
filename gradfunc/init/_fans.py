"""How many inputs an output sees, and how many outputs an input reaches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .._errors import check_int, kind_of, message
from ._scheme import Shape, spelled

Fans = Callable[[Shape], tuple[int, int]]


@dataclass(frozen=True, repr=False)
class CountedFans:
    """Made by `gf.init.fans`."""

    groups: int = 1
    transposed: bool = False

    def __call__(self, shape: Shape) -> tuple[int, int]:
        """(fan_in, fan_out) of a weight."""
        groups = self.groups
        if shape[0] % groups:
            do = "The first dimension of a weight is that of the channels of all groups."
            got, expected = f"shape {shape} for groups={groups}", "a first dimension that they divide"
            raise ValueError(message(repr(self), got=got, expected=expected, do=do))
        positions = math.prod(shape[2:])
        all_groups, one_group = shape[0] // groups * positions, shape[1] * positions
        return (all_groups, one_group) if self.transposed else (one_group, all_groups)

    def __repr__(self) -> str:
        return spelled("fans", groups=(self.groups, 1), transposed=(self.transposed, False))


TORCH = CountedFans()


def fans(*, groups: int = 1, transposed: bool = False) -> CountedFans:
    """What `fans=` of a scheme takes: (fan_in, fan_out) of a weight, counted for its layer.

    `torch.nn.init` reads every weight as `[out, in, *kernel]`: `fan_in = in prod(kernel)`, `fan_out = out
    prod(kernel)`, and so do the schemes by default. That is right for Linear and for convolutions without groups.
    With groups `fan_out` is too large by their number. A transposed convolution has a weight `[in, out / groups,
    *kernel]`, of which torch takes one fan for the other; so does a layer `x @ w` with `w: [in, out]`.

        fans(groups=g)                     in / g prod(kernel),  out / g prod(kernel)     of [out, in / g, *kernel]
        fans(groups=g, transposed=True)    in / g prod(kernel),  out / g prod(kernel)     of [in, out / g, *kernel]

    Counted for stride 1 and away from the border. A stride of s divides `fan_out` of a convolution, `fan_in` of a
    transposed one, by s in each dimension; a function `shape -> (fan_in, fan_out)` of yours says so.

    Raises:
        TypeError, ValueError: groups that are no int >= 1; in a call, a shape that they do not divide.

    Example:
        >>> import gradfunc as gf
        >>> layer = torch.nn.ConvTranspose2d(8, 6, 3, groups=2)
        >>> gf.init.fans(groups=2, transposed=True)(tuple(layer.weight.shape))
        (36, 27)
    """
    call = "gf.init.fans(groups=..., transposed=...)"
    check_int(call, "groups", groups, 1)
    if not isinstance(transposed, bool):
        raise TypeError(message(call, got=f"transposed={transposed!r}", expected="True or False"))
    return CountedFans(groups, transposed)


def check_fans(call: str, given: Fans | None) -> Fans:
    """Torch's for None.

    Raises:
        TypeError: no function.
    """
    if given is None:
        return TORCH
    if not callable(given):
        expected = "a function from a shape to (fan_in, fan_out), such as gf.init.fans(groups=2)"
        raise TypeError(message(call, got=f"{kind_of(given)} as fans", expected=expected))
    return given
