"""Which samples of a batch break: by halves, each run as it counts in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MOST = 8


class Samples(NamedTuple):
    """Positions in the batch.

    Attributes:
        positions: at most eight.
        alone: whether each breaks by itself (of no positions: every one); else it takes them together, as under a
            batch norm.
    """

    positions: tuple[int, ...]
    alone: bool


def search(size: int, breaks: Callable[[int, int], bool]) -> Samples:
    """The first samples that break.

    One bad sample costs about two passes over the batch: halves, quarters and so on, each with its neighbour.

    Args:
        size: of the batch, which breaks.
        breaks: whether samples `start` to `stop` break in the same way.

    >>> search(64, lambda start, stop: start <= 37 < stop)
    Samples(positions=(37,), alone=True)
    >>> search(8, lambda start, stop: start <= 2 and 4 <= stop)  # it takes two
    Samples(positions=(2, 3), alone=False)
    >>> search(8, lambda start, stop: stop - start == 8)
    Samples(positions=(), alone=False)
    """
    found: list[int] = []
    unseen, least = [(0, size)], (0, size)
    if size == 1:
        return Samples((0,), True)
    while unseen and len(found) < MOST:
        start, stop = unseen.pop()
        if stop - start == 1:
            found.append(start)
            continue
        middle = (start + stop) // 2
        parts = [part for part in ((middle, stop), (start, middle)) if breaks(*part)]
        unseen += parts
        if not parts and stop - start < least[1] - least[0]:
            least = (start, stop)
    if found:
        return Samples(tuple(found), True)
    return Samples(tuple(range(*least))[:MOST] if least != (0, size) else (), False)
