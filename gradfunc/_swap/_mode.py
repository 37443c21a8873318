"""The function mode that swaps draws for keyed ones and recurrences for scans."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import _recurrent
from .._errors import message
from .._random import Draw, derived_key, generator_states, refused_draw, same_states
from . import _attention, _dropout, _flat, _numbers
from ._levels import levels
from ._ordinals import Ordinals
from ._recurrence import quickest
from ._transparent import COMPOSITES, transparent

Scans = Literal["fast", "plain"] | None


class Swap(TorchFunctionMode):
    """Active around a loss, it makes each draw a function of (seed, step, sample, use).

    Enter it inside `forked`, outside any vmap, and call `begin` first thing in the loss. `use` counts the draws of one
    forward pass from 0. Draws with an explicit `generator=`, those of a vmap that the loss itself calls, and those of
    torch functions that are not listed here (multinomial, poisson, ...) are left to torch and its forked generators.

    One object may serve many forward passes, one after the other, and their backward passes in any order. One object a
    forward pass is as good; it costs microseconds.

    Args:
        call: Named in errors.
        seed: Any integer; with `step` it makes the key of all draws.
        step: Any integer.
        randomness: "error" refuses to draw; else only `begin` decides what is the same.
        scan: Which scans recurrent operators become: "fast", by hand where that can be; "plain", of tensor operations,
            as are those of "fast" inside transforms that differentiate; None, torch's own operators, but for those that
            draw (dropout between layers). With "plain" attention is its formula, which can be differentiated twice.

    >>> import torch
    >>> from gradfunc._random import forked
    >>> def noise(sample):
    ...     swap.begin(sample)
    ...     return torch.rand(2)
    >>> with forked(0, 0, devices=[]), Swap("noise", 0, 0, randomness="different", scan="plain") as swap:
    ...     rows = torch.func.vmap(noise)(torch.tensor([7, 3]))
    ...     alone = noise(3)
    >>> bool((rows[1] == alone).all())
    True
    """

    def __init__(self, call: str, seed: int, step: int, *, randomness: str, scan: Scans) -> None:
        super().__init__()
        self._call, self._key = call, derived_key(seed, step)
        self._refuses, self._scan = randomness == "error", scan
        self._ordinals = Ordinals(call)
        self._depth = 0
        self._foreign: tuple[str, ...] = ("error", "different")
        self._drew = False
        self._otherwise = False
        self._started: list[Tensor] = []

    @property
    def drew(self) -> bool:
        """Whether anything was drawn since `begin`, by key or from a generator; asked before the fork ends."""
        return self._drew or self.drew_otherwise

    @property
    def drew_otherwise(self) -> bool:
        """Whether something was drawn that has no key: it depends on what runs together."""
        return self._otherwise or not same_states(self._started, generator_states())

    def begin(self, sample: int | Tensor) -> None:
        """A forward pass of `sample` begins: an integer, or an int64 tensor of no dimensions (batched under vmap)."""
        self._depth = len(levels())
        self._ordinals.begin(sample)
        self._started = generator_states()

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Around a backward pass outside the forward pass: what runs forward again there draws what it drew before."""
        outer = self._depth, self._foreign
        # The lanes of a backward pass over several cotangents share one forward pass and its draws.
        self._depth, self._foreign = len(levels()), ("different",)
        try:
            with self._ordinals.backward(), self:
                yield
        finally:
            self._depth, self._foreign = outer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._depth and self._scan == "fast" and _autocast():
            # inside of a vmap around the loss that does not differentiate, where torch casts some operations only
            do = "vmap(grad) and a batch that is run natively are right."
            raise NotImplementedError(message(self._call, got="autocast under torch.vmap", expected="none", do=do))
        swap = _SWAPS.get(func)
        if swap is None or not _PLAIN.issuperset(types):  # nothing of ours, or a subclass with ways of its own
            return func(*args, **(kwargs or {}))
        return swap(self, func, args, kwargs or {})

    def _composite(self, body: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self:
            return transparent(body)(*args, **kwargs)

    def _keyed(self, handler: _Handler, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("generator") is None and not self._theirs():
            given = {name: value for name, value in kwargs.items() if name != "generator"}
            if handler.fits((None, *args), given):
                found = handler.run(lambda: self._draw(func), *args, **given)
                if found is not NotImplemented:
                    return found
        flat = _FLAT.get(func)
        return func(*args, **kwargs) if flat is None else self._flattened(flat, func, args, kwargs)

    def _flattened(self, handler: _Handler, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = NotImplemented
        if self._scan == "plain" and func is F.scaled_dot_product_attention and handler.fits(args, kwargs):
            found = _attention.plain(*args, **kwargs)
        elif self._scan and levels() and handler.fits(args, kwargs):  # flattened is what a vmap has taken apart
            found = handler.run(*args, **kwargs)
        return func(*args, **kwargs) if found is NotImplemented else found

    def _recurrence(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name.endswith("_cell"):
            return getattr(_recurrent, name)(*args, **kwargs) if self._scan else func(*args, **kwargs)
        if self._scan or _recurrent.draws(*args, **kwargs):
            scan = quickest if self._scan == "fast" else _recurrent.plain
            return getattr(_recurrent, name)(*args, drop=self._drop, scan=scan, **kwargs)
        return func(*args, **kwargs)

    def _drop(self, x: Tensor, p: float) -> Tensor:
        with self:
            return F.dropout(x, p, training=True)

    def _draw(self, func: Any) -> Draw:
        if self._refuses:
            raise refused_draw(self._call, func.__name__)
        self._drew = True
        self._otherwise = self.drew_otherwise
        sample, use = self._ordinals.next()
        self._started = generator_states()
        return Draw(self._key, use, sample)

    def _theirs(self) -> bool:
        """Whether a vmap that began inside the loss must draw for its lanes, or refuse to."""
        return any(randomness in self._foreign for randomness in levels()[self._depth :])


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


class _Handler:
    """A handler and the arguments it takes."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self._signature = inspect.signature(run)

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether torch's call is one the handler knows; torch says what is wrong with others."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True


_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_Swapped = Callable[[Swap, Any, tuple[Any, ...], dict[str, Any]], Any]


def _with(method: Callable[..., Any], piece: Any) -> _Swapped:
    return lambda swap, func, args, kwargs: method(swap, piece, func, args, kwargs)


_FLAT = {func: _Handler(handler) for func, handler in _flat.HANDLERS.items()}
_RECURRENCES = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
# torch's function -> what to do instead: what any other operation pays is one look into this table
_SWAPS: dict[Any, _Swapped] = {
    **{func: _with(Swap._flattened, flat) for func, flat in _FLAT.items()},
    **{func: _with(Swap._composite, body) for func, body in COMPOSITES.items()},
    **{
        func: _with(Swap._keyed, _Handler(handler))
        for handlers in (_dropout.HANDLERS, _attention.HANDLERS, _numbers.HANDLERS)
        for func, handler in handlers.items()
    },
    **{getattr(torch, name): _with(Swap._recurrence, name) for name in _RECURRENCES},
}
