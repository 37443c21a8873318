"""Workloads of a few parameters, and a clock that stands still unless a contender moves it."""

from __future__ import annotations

import gradfunc as gf

MLP = gf.bench.mlp([4, 8, 3], batch_size=11)
GPT = gf.bench.gpt(layers=2, width=8, heads=2, length=4, vocabulary=11, batch_size=3)
TIED = gf.bench.gpt(layers=1, width=8, heads=2, length=3, vocabulary=11, batch_size=3, tied=True)
TINY = (MLP, GPT, TIED)


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def after(make, change):
    """A contender's `make` whose results are changed by `change(case, result)`."""

    def changed(case, quantity):
        call = make(case, quantity)
        return lambda: change(case, call())

    return changed
