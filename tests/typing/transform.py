"""Only type-checked: the order of stages is in their types."""

from __future__ import annotations

from typing import Any, assert_type

import torch
from torch import Tensor

import gradfunc as gf


class Sgd:
    def init(self, params: dict[str, Tensor]) -> tuple[()]:
        return ()

    def update(self, grads: gf.Grads, state: Any, params: dict[str, Tensor] | None = None, /) -> tuple[gf.Updates, Any]:
        return gf.Updates({name: -value for name, value in grads.items()}), state


params = {"w": torch.ones(2)}
f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
g = f(params, torch.ones(3, 2))

step = gf.clip_per_sample(1.0) >> gf.mean() >> Sgd()
assert_type(step.update(g, step.init(params), params)[0], gf.Updates)
assert_type((gf.clip_per_sample(1.0) >> gf.sum()).update(g, ())[0], gf.Grads)
assert_type(gf.apply_updates(params, step.update(g, step.init(params))[0]), dict[str, Tensor])
grouped: gf.Transformation[gf.PerSampleGrads, gf.Updates] = gf.clip_per_sample(1.0) >> (gf.mean() >> Sgd())
rule: gf.Transformation[gf.Grads, gf.Updates] = Sgd()
gf.make_step(f, step)
gf.make_step(f, gf.mean())

private = gf.clip_per_sample(1.0) >> gf.sum() >> gf.gaussian_mechanism(1.0, seed=0) >> gf.clip_by_global_norm(1.0)
assert_type(private.update(g, private.init(params), params)[0], gf.Grads)
smooth: gf.Transformation[gf.Grads, gf.Grads] = gf.skip_nonfinite() >> gf.ema(0.9) >> gf.add_noise(0.1, seed=0)
assert_type((gf.centralize() >> Sgd()).update(gf.Grads(params), ())[0], gf.Updates)
assert_type(gf.clip_cotangent(params["w"], norm=1.0), Tensor)
gf.clip_by_value(gf.schedules.warmup(gf.schedules.cosine(1.0, steps=9), steps=3))

gf.mean() >> gf.clip_per_sample(1.0)  # type: ignore[operator]
gf.mean() >> gf.sum()  # type: ignore[operator]
gf.clip_per_sample(1.0) >> Sgd()  # type: ignore[operator]
Sgd() >> gf.mean()  # type: ignore[operator]
gf.clip_per_sample(1.0) >> (Sgd() >> gf.mean())  # type: ignore[operator]
gf.mean().update({"w": torch.ones(2)}, ())  # type: ignore[arg-type]
gf.apply_updates(params, gf.mean().update(g, ())[0])  # type: ignore[arg-type]
gf.make_step(f, gf.clip_per_sample(1.0))  # type: ignore[arg-type]
gf.make_step(f, Sgd())  # type: ignore[arg-type]
gf.clip_by_global_norm(1.0) >> gf.mean()  # type: ignore[operator]
gf.clip_per_sample(1.0) >> gf.ema(0.9)  # type: ignore[operator]
Sgd() >> gf.sign()  # type: ignore[operator]
