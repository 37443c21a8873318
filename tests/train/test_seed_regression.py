"""The exploding regression by `gf.train.fit`: why it explodes, what stops that, and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from regression import by_torch, clip_value, data, hooked, loss_of, losses_of, model, module, orders

import gradfunc as gf

F64 = torch.float64


def fit(step, *, init="default", limit=None, standardised=False, epochs=10, dtype=torch.float32, **options):
    net = model(init, dtype)
    f = gf.per_sample_grads(losses_of(net, limit), batched=True)
    return gf.train.fit(
        f, gf.mean() >> step, net.params, data(standardised=standardised, dtype=dtype), epochs=epochs, **options
    )


def by_epoch(run):
    """The mean of the step losses of each epoch, as the seed's loop prints it."""
    losses, epochs = run.history["loss"], run.history["epoch"]
    return [float(losses[epochs == epoch].mean()) for epoch in np.unique(epochs)]


def gradient_mean(snapshot):
    return snapshot.grads["fc1.weight"].mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_explodes_whatever_the_order(seed):
    run = fit(gf.sgd(0.01), seed=seed, on_nonfinite="ignore", capture={"mean": gradient_mean}, epochs=3)
    assert np.isnan(by_epoch(run)[-1])
    assert run.params["fc1.weight"].isnan().all()
    first = np.flatnonzero(~np.isfinite(run.history["loss"]))[0]
    assert 5 < first < 90
    assert np.abs(run.history["mean"][:first]).max() > 1e3  # before that the gradient of fc1 has gone through the roof
    stopped = fit(gf.sgd(0.01), seed=seed, epochs=3)
    assert not stopped.ok
    assert stopped.stopped.nonfinite is not None
    assert stopped.steps <= first
    assert all(value.isfinite().all() for value in stopped.params.values())


def test_the_cause_is_the_rate_not_the_depth():
    net = model()
    ends = gf.quantities.hessian_extremes(loss_of(net), net.params, data())
    assert ends.sharpness == pytest.approx(198.4, abs=0.1)
    assert ends.smallest[0].value == pytest.approx(-197.9, abs=0.1)
    assert 0.99 < ends.stability(0.01) < 1 < ends.stability(0.0102)
    assert ends.stability(0.001) < 0.1


CURES = {
    "a smaller rate": (gf.sgd(0.001), {}, 0.01),
    "a standardised target": (gf.sgd(0.01), {"standardised": True}, 0.04),
}


@pytest.mark.parametrize("cure", CURES)
def test_cures_without_clipping(cure):
    step, options, share = CURES[cure]
    losses = by_epoch(fit(step, **options))
    assert np.isfinite(losses).all()
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < share * losses[0]


CLIPS = {
    "by value": (gf.clip_by_value(1.0) >> gf.sgd(0.1), {}),
    "by norm": (gf.clip_by_global_norm(1.0) >> gf.sgd(0.1), {}),
    "in backprop": (gf.sgd(0.1), {"limit": 1.0}),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_clips_at_ten_times_the_rate(clip):
    step, options = CLIPS[clip]
    losses = by_epoch(fit(step, init="kaiming", **options))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] / 50


def test_without_a_clip_that_rate_explodes_at_once():
    assert fit(gf.sgd(0.1), init="kaiming").stopped.step == 4


@pytest.mark.parametrize("clip", CLIPS)
def test_each_is_the_run_of_plain_torch(clip):
    """Three steps in float64 (later ones are chaotic), with the clip as torch's users write it."""
    step, options = CLIPS[clip]
    order = [orders(1)[0][:3]]
    x, y = data(dtype=F64)

    def by_norm(module):
        norm = torch.stack([p.grad.square().sum() for p in module.parameters()]).sum().sqrt()
        for p in module.parameters():  # without the 1e-6 of torch's own function
            p.grad.mul_(torch.clamp(1.0 / norm, max=1.0))

    given = {"by value": clip_value, "by norm": by_norm, "in backprop": None}[clip]
    want = by_torch(module("kaiming", F64), x, y, order, lr=0.1, clip=given, **options)
    net = model("kaiming", F64)
    f = gf.per_sample_grads(losses_of(net, options.get("limit")), batched=True)
    run = gf.train.fit(f, gf.mean() >> step, net.params, [(x[i], y[i]) for i in order[0]])
    assert np.abs(run.history["loss"] / want.losses[0].numpy() - 1).max() < 1e-12
    for name, value in want.params.items():
        assert (run.params[name] - value).norm() < 1e-12 * value.norm().clamp(min=1)


def test_hooks_on_parameters_are_clipping_after_the_backward_pass():
    """They see the total gradient, once: the same run, bit by bit. Clipping the cotangent is another."""
    x, y = data()
    order = orders(2)
    after = by_torch(module("kaiming"), x, y, order, lr=0.1, clip=clip_value)
    net = module("kaiming")
    hooked(net)
    during = by_torch(net, x, y, order, lr=0.1)
    assert torch.equal(after.losses, during.losses)
    assert all(torch.equal(value, during.params[name]) for name, value in after.params.items())
    cotangent = by_torch(module("kaiming"), x, y, order, lr=0.1, limit=1.0)
    assert not torch.equal(after.losses, cotangent.losses)


def test_value_and_norm_of_a_gradient():
    """[2.5, 0.8]: by value it turns by 20.92 degrees; by norm it keeps its direction."""
    grads = {"p": torch.tensor([2.5, 0.8], dtype=F64)}
    by_value = gf.clip_by_value(1.0)
    clipped, _ = by_value.update(grads, by_value.init(grads))
    assert clipped["p"].tolist() == [1.0, 0.8]
    cosine = torch.nn.functional.cosine_similarity(clipped["p"], grads["p"], dim=0)
    assert float(torch.rad2deg(torch.arccos(cosine))) == pytest.approx(20.92, abs=0.005)
    by_norm = gf.clip_by_global_norm(1.0)
    clipped, _, report = by_norm.update_with_report(grads, by_norm.init(grads))
    assert clipped["p"].tolist() == pytest.approx([0.9524, 0.3048], abs=5e-5)
    assert float(report["clip_by_global_norm"]["norm"]) == pytest.approx(2.6249, abs=5e-5)


def test_depth_is_a_product():
    assert torch.tensor([5.0, 4.0, 3.0, 2.0]).prod() == 120
    assert torch.tensor(4.0).pow(50).isfinite()  # 1.27e30: float32 overflows at 4^64
    assert float(torch.tensor(4.0).pow(50)) == pytest.approx(1.27e30, rel=2e-3)
    assert torch.tensor(4.0).pow(63).isfinite()
    assert torch.tensor(4.0).pow(64).isinf()
