"""Which ids are in a store, without looking at all of them while they are integers that rise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._errors import message
from ._ids import Ids, keys, repeated
from ._view import View


class Seen:
    """Ids that are there. As long as each append lies above the ids before it, only the largest is kept."""

    def __init__(self, view: View) -> None:
        self._view: View | None = view
        ids = view.ids()
        self._highest = _highest(ids)
        self._later: list[Ids] = []
        self._all: set[Any] | None = None

    def check(self, call: str, ids: Ids) -> None:
        """Raise ValueError if one is there already, or twice among these."""
        if not _rise(ids) and repeated(ids):
            raise ValueError(message(call, got="an id twice", expected="ids, each once"))
        if isinstance(ids, Tensor) and (self._highest is None or int(ids.min()) > self._highest):
            return
        found = [key for key in keys(ids) if key in self._every()]
        if found:
            some = found[0].decode() if isinstance(found[0], bytes) else found[0]
            got = f"{len(found)} ids that the store has, such as {some}"
            do = "store.ids says which are there: leave these out."
            raise ValueError(message(call, got=got, expected="new ids", do=do))

    def add(self, ids: Ids) -> None:
        """They are there now."""
        if self._all is None:
            self._later.append(ids)
        else:
            self._all.update(keys(ids))
        highest = _highest(ids)
        if highest is not None:
            self._highest = highest if self._highest is None else max(highest, self._highest)

    def _every(self) -> set[Any]:
        if self._all is None:
            assert self._view is not None
            self._all = set(keys(self._view.ids())).union(*(keys(ids) for ids in self._later))
            self._view, self._later = None, []
        return self._all


def _highest(ids: Ids) -> int | None:
    """None for strings."""
    return int(ids.max()) if isinstance(ids, Tensor) and len(ids) else None


def _rise(ids: Ids) -> bool:
    return isinstance(ids, Tensor) and bool((ids[1:] > ids[:-1]).all())
