"""What every scheme is: a value that makes a tensor of a shape, and says what its entries aim at."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._errors import check_int, kind_of, message
from .._random import named_generator
from ._place import Place

Shape = tuple[int, ...]


def generator(seed: int, name: str) -> torch.Generator:
    """The generator that `initialize(..., seed=seed)` draws the parameter `name` with.

    On the CPU, fresh, seeded by a hash of f"{seed}/{name}" (BLAKE2b): the same in every process, whatever else is
    drawn.

    Example:
        >>> import gradfunc as gf
        >>> made = gf.init.initialize({"weight": torch.zeros(2, 3)}, {"weight": gf.init.xavier_normal()}, seed=5)
        >>> w = torch.nn.init.xavier_normal_(torch.empty(2, 3), generator=gf.init.generator(5, "weight"))
        >>> torch.equal(made["weight"], w)
        True
    """
    call = "gf.init.generator(seed, name)"
    check_int(call, "seed", seed, 0)
    if not isinstance(name, str):
        raise TypeError(message(call, got=f"name={name!r}", expected="a str"))
    return named_generator(seed, name)


@dataclass(frozen=True, repr=False, kw_only=True)
class Scheme(ABC):
    """How a parameter begins: `scheme(shape, generator=...)` is a fresh tensor. Made by the functions of `gf.init`.

    A value: it compares by what it does, and prints as it was made. What it aims at is said of an entry picked at
    random, all places of the shape alike: `mean(shape)` is the average of the entries' expectations, `variance(shape)`
    that of their squares less the square of the mean. Where every entry has one distribution, these are its own.

    They are stated for real numbers. float32 and float64 keep them to rounding; the half types as far as torch's
    generators, and a few hundred or thousand numbers between 1 and 2, allow.

    Attributes:
        said: how it was made.
    """

    said: str = field(compare=False)

    def __call__(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        key: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> Tensor:
        """A tensor of this shape. It is drawn on the CPU, then moved, so that no device changes what is drawn.

        Torch's function of `torch.nn.init` does the drawing where there is one, in `dtype`: the same bits. The global
        generators stay as they are.

        Args:
            shape: of the parameter.
            generator: what to draw with, on the CPU; it moves on.
            key: an int >= 0 in its place: the same key, the same numbers. What draws needs one of the two; what does
                not ignores them.
            dtype: floating; torch's default if None.
            device: where the result is; torch's default if None.

        Raises:
            TypeError, ValueError: a shape that the scheme is not for; none or both of `generator` and `key`; a
                generator of another device; a dtype that is not floating.
        """
        call = f"{self}(shape, ...)"
        sizes = self._sizes(call, shape)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(message(call, got=f"dtype={dtype}", expected="a floating dtype"))
        source = _source(call, generator, key, self.draws)
        target = torch.get_default_device() if device is None else device
        with torch.no_grad(), torch.device("cpu"):
            out = self._drawn(sizes, dtype, source)
        return out.to(target)

    @property
    def draws(self) -> bool:
        """Whether it needs a generator."""
        return True

    def mean(self, shape: Sequence[int]) -> float:
        """What an entry of this shape is expected to be; NaN where unknown, or where there is none."""
        sizes = self._sizes(f"{self}.mean(shape)", shape)
        return self._aims(sizes)[0] if math.prod(sizes) else math.nan

    def variance(self, shape: Sequence[int]) -> float:
        """The variance that the entries of this shape aim at; NaN where unknown, or where there are none.

        Example:
            >>> import gradfunc as gf
            >>> gf.init.lecun_normal().variance((3, 4)), gf.init.identity().variance((2, 2))
            (0.25, 0.25)
        """
        sizes = self._sizes(f"{self}.variance(shape)", shape)
        return self._aims(sizes)[1] if math.prod(sizes) else math.nan

    def std(self, shape: Sequence[int]) -> float:
        """Its square root."""
        return math.sqrt(self.variance(shape))

    def at(self, place: Place) -> Scheme:
        """The scheme for a parameter at this place: itself, unless it depends on that."""
        return self

    def stream(self, name: str) -> str:
        """The name that draws of the parameter `name` are keyed by: its own, unless it shares them."""
        return name

    def check(self, call: str, shape: Shape) -> None:  # noqa: B027 (most take any shape)
        """Raise ValueError unless the scheme is for this shape."""

    @abstractmethod
    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        """A fresh tensor on the CPU; `source` is there if it `draws`."""

    @abstractmethod
    def _aims(self, shape: Shape) -> tuple[float, float]:
        """Mean and variance of the entries of a shape that has some."""

    def _sizes(self, call: str, shape: Sequence[int]) -> Shape:
        if not isinstance(shape, (tuple, list)):
            raise TypeError(message(call, got=f"{kind_of(shape)} as shape", expected="a tuple of ints"))
        for size in shape:
            check_int(call, "a size", size, 0)
        self.check(call, tuple(shape))
        return tuple(shape)

    def __repr__(self) -> str:
        return self.said


def check_scheme(call: str, name: str, given: object) -> Scheme:
    """Raise TypeError unless it is one."""
    if not isinstance(given, Scheme):
        raise TypeError(message(call, got=f"{name}={given!r}", expected="a scheme, such as gf.init.orthogonal()"))
    return given


def spelled(name: str, *args: object, **options: tuple[object, object]) -> str:
    """A call with its arguments, and of its options `{name: (value, default)}` those that are not the default."""
    given = [f"{key}={value!r}" for key, (value, default) in options.items() if value != default]
    return f"{name}({', '.join([*map(repr, args), *given])})"


def _source(call: str, generator: torch.Generator | None, key: int | None, draws: bool) -> torch.Generator | None:
    if generator is not None and key is not None:
        raise ValueError(message(call, got="generator= and key=", expected="one of them"))
    if key is not None:
        check_int(call, "key", key, 0)
        return named_generator(key)
    if generator is None:
        if draws:
            do = "It draws numbers, and leaves torch's global generator alone."
            raise TypeError(message(call, got="neither generator= nor key=", expected="one of them", do=do))
        return None
    if not isinstance(generator, torch.Generator):
        raise TypeError(message(call, got=kind_of(generator), expected="a torch.Generator"))
    if generator.device.type != "cpu":
        do = "Draws are made on the CPU and moved, so that they do not depend on the device."
        raise ValueError(message(call, got=f"a generator on {generator.device}", expected="one on the CPU", do=do))
    return generator
