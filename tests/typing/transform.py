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

gathered = gf.clip_per_sample(1.0) >> gf.accumulate(gf.mean(), every=4) >> Sgd()
assert_type(gathered.update(g, gathered.init(params), params)[0], gf.Updates)
assert_type(gf.median().update(g, ())[0], gf.Grads)
robust: gf.Transformation[gf.PerSampleGrads, gf.Updates] = gf.trimmed_mean(0.2) >> Sgd()
gf.make_step(f, gf.geometric_median() >> Sgd())
gf.make_step(f, gf.from_gram(gf.weightings.krum(1, select=2)) >> Sgd())
gf.make_step(f, gf.from_gram(lambda gram: gram.diagonal()))
gf.sign_vote() >> gf.scale(0.5)

gf.median() >> gf.mean()  # type: ignore[operator]
gf.accumulate(gf.mean(), every=4) >> gf.sum()  # type: ignore[operator]
gf.accumulate(gf.median(), every=4)  # type: ignore[arg-type]
gf.accumulate(gf.mean(), every=0.5)  # type: ignore[arg-type]
gf.from_gram(gf.median())  # type: ignore[arg-type]
gf.median().update({"w": torch.ones(2)}, ())  # type: ignore[arg-type]
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

# Stages that give what they take keep the type of what comes; parts have the type of their stages.
kept = gf.clip_per_sample(1.0) >> gf.identity() >> gf.mean() >> gf.scale(2.0)
assert_type(kept.update(g, kept.init(params))[0], gf.Grads)
whole = gf.identity() >> kept >> Sgd() >> gf.scale(0.5)
assert_type(whole.update(g, whole.init(params), params)[0], gf.Updates)
parts = gf.partition({"a": gf.clip_per_sample(1.0), "b": gf.normalize_per_sample()}, {".*": "a"}) >> gf.mean()
assert_type(parts.update(g, parts.init(params))[0], gf.Grads)
masked = gf.mean() >> gf.masked(Sgd(), "w")
assert_type(masked.update(g, masked.init(params))[0], gf.Updates)
assert_type(kept.update_with_report(g, kept.init(params), donate=True)[0], gf.Grads)
assert_type(gf.unflatten_state(gf.flatten_state(kept.init(params)), like=()), Any)


def halved(grads: gf.Grads) -> gf.Grads:
    return gf.Grads({name: value / 2 for name, value in grads.items()})


own = gf.mean() >> gf.stateless_transform(halved) >> Sgd()
assert_type(own.update(g, own.init(params))[0], gf.Updates)

gf.mean() >> gf.identity() >> gf.clip_per_sample(1.0)  # type: ignore[operator]
gf.mean() >> gf.scale(2.0) >> gf.sum()  # type: ignore[operator]
gf.clip_per_sample(1.0) >> gf.identity() >> Sgd()  # type: ignore[operator]
gf.mean() >> gf.masked(gf.clip_per_sample(1.0), "w")  # type: ignore[arg-type]
gf.clip_per_sample(1.0) >> gf.stateless_transform(halved)  # type: ignore[arg-type]
gf.mean() >> gf.partition({"a": gf.clip_per_sample(1.0)}, {".*": "a"})  # type: ignore[arg-type]
gf.clip_per_sample("1") >> gf.mean()  # type: ignore[arg-type]
rules = gf.clip_per_sample(1.0) >> gf.mean() >> gf.scale_by_adam() >> gf.momentum(0.9) >> gf.descend(0.1)
assert_type(rules.update(g, rules.init(params), params)[0], gf.Updates)
assert_type((gf.mean() >> gf.adam(0.1)).update(g, ())[0], gf.Updates)
assert_type(gf.adam_per_sample(lambda step: 0.1 / (1 + step)).update(g, ())[0], gf.Updates)
assert_type((gf.clip_per_sample(1.0) >> gf.noise_scaled_step(0.1)).update(g, ())[0], gf.Updates)
torchs: gf.Transformation[gf.Grads, gf.Updates] = gf.from_torch_optim(torch.optim.SGD, lr=0.1)
gf.partition({"a": gf.sgd(0.1), "b": gf.muon(0.1)}, {".*": "a"}).update(gf.mean().update(g, ())[0], ())
assert_type(gf.quantities.gradient_noise_scale(g).scale, Tensor)

gf.mean() >> gf.adam_per_sample(0.1)  # type: ignore[operator]
gf.clip_per_sample(1.0) >> gf.adam(0.1)  # type: ignore[operator]
gf.adam(0.1) >> gf.descend(0.1)  # type: ignore[operator]
gf.noise_scaled_step(0.1) >> gf.sgd(0.1)  # type: ignore[operator]
gf.clip_by_global_norm(1.0) >> gf.mean()  # type: ignore[operator]
gf.clip_per_sample(1.0) >> gf.ema(0.9)  # type: ignore[operator]
Sgd() >> gf.sign()  # type: ignore[operator]
