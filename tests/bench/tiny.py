"""Workloads of a few parameters, and a clock that stands still unless a contender moves it."""

from __future__ import annotations

import gradfunc as gf

MLP = gf.bench.mlp([4, 8, 3], batch_size=11)
GPT = gf.bench.gpt(layers=2, width=8, heads=2, length=4, vocabulary=11, batch_size=3)
TIED = gf.bench.gpt(layers=1, width=8, heads=2, length=3, vocabulary=11, batch_size=3, tied=True)
CNN = gf.bench.cnn([4, 6], image=6, batch_size=3)
RESNET = gf.bench.resnet([4, 8], blocks=1, groups=2, image=6, batch_size=3)
VIT = gf.bench.vit(layers=1, width=8, heads=2, image=8, patch=4, batch_size=3)
LSTM = gf.bench.lstm(features=3, width=4, length=5, batch_size=3)
TINY = (MLP, GPT, TIED, CNN, RESNET, VIT, LSTM)


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
