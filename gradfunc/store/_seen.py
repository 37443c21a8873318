"""Which ids are in a store, without looking at all of them while they rise."""

from __future__ import annotations

from torch import Tensor

from .._errors import message
from ._view import View


class Seen:
    """Ids that are there. As long as each append lies above the ids before it, only the largest is kept."""

    def __init__(self, view: View) -> None:
        self._view: View | None = view
        ids = view.ids()
        self._highest = int(ids.max()) if len(ids) else None
        self._later: list[Tensor] = []
        self._all: set[int] | None = None

    def check(self, call: str, ids: Tensor) -> None:
        """Raise ValueError if one is there already, or twice among these."""
        if len(ids) > 1 and not bool((ids[1:] > ids[:-1]).all()) and len(ids.unique()) < len(ids):
            raise ValueError(message(call, got="an id twice", expected="ids, each once"))
        if self._highest is None or int(ids.min()) > self._highest:
            return
        found = [value for value in ids.tolist() if value in self._every()]
        if found:
            got = f"{len(found)} ids that the store has, such as {found[0]}"
            do = "store.ids says which are there: leave these out."
            raise ValueError(message(call, got=got, expected="new ids", do=do))

    def add(self, ids: Tensor) -> None:
        """They are there now."""
        if self._all is None:
            self._later.append(ids)
        else:
            self._all.update(ids.tolist())
        highest = int(ids.max())
        self._highest = highest if self._highest is None else max(highest, self._highest)

    def _every(self) -> set[int]:
        if self._all is None:
            assert self._view is not None
            self._all = set(self._view.ids().tolist()).union(*(ids.tolist() for ids in self._later))
            self._view, self._later = None, []
        return self._all
