"""Only type-checked: what the public functions give and take."""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor, nn

import gradfunc as gf

model = gf.stateless(nn.Linear(3, 2))
assert_type(model.params, dict[str, Tensor])


def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> gf.Weighted:
    return gf.losses.cross_entropy(model.sample(params, x), y)


g = gf.per_sample_grads(loss)(model.params, torch.ones(5, 3), torch.zeros(5, dtype=torch.long))
assert_type(g, gf.PerSampleGrads)
assert_type(g.norms(), Tensor)
assert_type(g.norms(per_parameter=True), dict[str, Tensor])
assert_type(g.gram(), Tensor)
assert_type(g.gram(per_parameter=True), dict[str, Tensor])
assert_type(g.mean(), dict[str, Tensor])
assert_type(gf.Accumulator.init(model.params).add(g).mean(), dict[str, Tensor])
assert_type(gf.reduce(g, "none"), dict[str, Tensor])

gf.per_sample_grads(3)  # type: ignore[arg-type]
gf.reduce(model, "mean")  # type: ignore[arg-type]

params = gf.init.initialize(model, {".*": gf.init.kaiming_normal(), "b": torch.zeros}, seed=0)
assert_type(params, dict[str, Tensor])
assert_type(gf.init.initialize_with_report(params, {})[1], gf.init.InitReport)
assert_type(gf.init.zeros()((2, 3)), Tensor)
gf.init.initialize(model, {".*": 0.0})  # type: ignore[dict-item]
gf.init.scaled(2.0, gf.init.zeros())  # type: ignore[arg-type]
