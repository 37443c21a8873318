"""`whole`: a criterion that runs the model itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._errors import message


@dataclass(frozen=True)
class Whole:
    """A criterion that runs the model itself. Made by `gf.whole`."""

    fn: Callable[[Any, Any], Any]


def whole(fn: Callable[[Any, Any], Any]) -> Whole:
    """Declare that a criterion is `fn(model, batch) -> scalar | [B] | Weighted`, as in a training loop.

    Args:
        fn: called with the model as a function of its inputs and the batch as it was given.

    Raises:
        TypeError: `fn` is not a function.

    Example:
        >>> import gradfunc as gf
        >>> criterion = gf.whole(lambda model, batch: F.mse_loss(model(batch["x"]), batch["y"]))
    """
    if not callable(fn):
        raise TypeError(message("gf.whole(fn)", got=repr(fn), expected="a function fn(model, batch)"))
    return Whole(fn)
