"""Noise scales of two batch sizes, by layer and over many batches; what they say of batch sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from quantity_cases import F64, Q, draw
from tiers import every

import gradfunc as gf
from gradfunc.quantities import _critical_batch, _noise_scale

POPULATION = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [4.0, -3.0]], dtype=F64)


def truth(population):
    mean = population.mean(0)
    return float((population - mean).square().sum(1).mean()), float(mean.square().sum())


def check_two_batches(nested):
    """Over all draws of 3 samples, the small batch a part of the big one or drawn apart, the mean is the truth."""
    trace, square = truth(POPULATION)
    found = []
    for chosen in itertools.product(range(3), repeat=3 if nested else 4):
        big, small = chosen[:3], chosen[:1] if nested else chosen[3:]
        means = ({"a": POPULATION[list(part)].mean(0)} for part in (small, big))
        found.append(Q.two_batch_noise_scale(*means, 1, 3))
    assert abs(float(torch.stack([one.trace for one in found]).mean()) - trace) < 1e-11
    assert abs(float(torch.stack([one.squared_norm for one in found]).mean()) - square) < 1e-11


@pytest.mark.parametrize("nested", [True, False])
def test_two_batch_sizes_are_unbiased(nested):
    check_two_batches(nested)


# A covariance with layers of very different noise, and a mean.
SPREAD = {"one.w": torch.tensor([3.0, 1.0], dtype=F64), "one.b": torch.tensor([0.5], dtype=F64)}
SPREAD |= {"two.w": torch.tensor([0.1, 2.0, 1.0], dtype=F64)}
MEAN = {k: torch.full_like(v, 0.4) for k, v in SPREAD.items()}


def gradients(size, seed):
    """Rows of known mean and covariance: normal, independent entries."""
    drawn = {k: MEAN[k] + v * draw(size, *v.shape, seed=hash_of(k) + 97 * seed) for k, v in SPREAD.items()}
    f = gf.per_sample_grads(lambda p, rows: sum((p[k] * rows[k]).sum() for k in p), verify=False)
    return f({k: torch.zeros_like(v) for k, v in SPREAD.items()}, drawn)


def hash_of(name):
    return sum(map(ord, name))


def check_known_covariance(count=400, size=4):
    """Means over batches lie within 7 standard errors of what the covariance says: 3e-12 each to fail by chance."""
    found = gradients(count * size, 0).split(size)

    def check(values, want):
        values = torch.stack(values)
        assert abs(float(values.mean()) - want) <= 7 * float(values.std()) / math.sqrt(count)
        return float(values.std())

    layers = [Q.gradient_noise_scale(g, per="layer") for g in found]
    total = [{"": Q.gradient_noise_scale(g)} for g in found]
    for each, keys in ((layers, {"one": ("one.w", "one.b"), "two": ("two.w",)}), (total, {"": tuple(SPREAD)})):
        for key, names in keys.items():
            check([one[key].trace for one in each], sum(float(SPREAD[k].square().sum()) for k in names))
            check([one[key].squared_norm for one in each], sum(float(MEAN[k].square().sum()) for k in names))
    rows = [g.materialize() for g in found]
    small = [{k: v[:2].mean(0) for k, v in one.items()} for one in rows]
    two = [Q.two_batch_noise_scale(one, g.mean(), 2, size) for one, g in zip(small, found, strict=True)]
    trace = sum(float(v.square().sum()) for v in SPREAD.values())
    # Of every sample, the trace is known better than from two means: the reason for per-sample gradients.
    assert check([one.trace for one in two], trace) > check([one[""].trace for one in total], trace)


def test_known_covariance():
    check_known_covariance()


def check_running():
    """Averages of the parts by the definition of a weighted mean, the newest heaviest; then the quotient."""
    found = [Q.gradient_noise_scale(gradients(4, seed)) for seed in range(6)]
    running = Q.RunningNoiseScale.init(decay=0.8)
    for k, one in enumerate(found, start=1):
        running = running.add(one)
        weights = torch.tensor([0.8 ** (k - 1 - i) for i in range(k)], dtype=F64)
        trace = (weights @ torch.stack([f.trace for f in found[:k]])) / weights.sum()
        square = (weights @ torch.stack([f.squared_norm for f in found[:k]])) / weights.sum()
        assert abs(float(running.value.trace - trace)) <= 1e-13 * float(trace)
        assert abs(float(running.value.squared_norm - square)) <= 1e-13 * float(trace)
        assert abs(float(running.value.scale - trace / square)) <= 1e-9 * abs(float(trace / square))
    assert running.count == 6


def test_the_running_noise_scale():
    check_running()
    empty = Q.RunningNoiseScale.init()
    assert math.isnan(float(empty.value.scale))
    one = Q.gradient_noise_scale(gradients(4, 0))
    last = Q.RunningNoiseScale.init(decay=0.0).add(Q.gradient_noise_scale(gradients(4, 1))).add(one)
    assert float(last.value.trace) == float(one.trace)


def check_efficiency():
    """(steps - 1)(examples - 1) = 1 at every batch size; doubled at the scale itself."""
    for size in (1.0, 30.0, 1000.0, 1e6):
        found = Q.batch_efficiency(1000.0, size)
        assert abs((found.steps - 1) * (found.examples - 1) - 1) < 1e-9
    assert Q.batch_efficiency(1000.0, 1000.0) == Q.batch_efficiency(5.0, 5.0)
    assert Q.batch_efficiency(1000.0, 1000.0).steps == 2


def test_batch_efficiency():
    check_efficiency()


def check_quadratic():
    """The efficiency of one step on a quadratic: by eq. 2.6, the best decrease is that of the true gradient over steps.

    Loss |w|^2 / 2 and a mean gradient G with covariance / B: the best step of all, on average, decreases the loss by
    |G|^4 / (2 (|G|^2 + tr / B)).
    """
    trace, square = 12.0, 3.0
    for size in (1, 4, 64):
        lrs = torch.linspace(0, 1, 100001, dtype=F64)
        decrease = (lrs * square - lrs.square() / 2 * (square + trace / size)).max()
        best = square / 2  # without noise
        assert abs(best / float(decrease) - Q.batch_efficiency(trace / square, size).steps) < 1e-6


def test_efficiency_is_that_of_a_quadratic():
    check_quadratic()


def check_critical():
    sizes = [8, 32, 128, 512, 4096]
    steps = [100 * (1 + 300 / size) for size in sizes]
    found = Q.critical_batch_size(sizes, steps)
    for got, want in ((found.size, 300), (found.least_steps, 100), (found.least_examples, 30000)):
        assert abs(got / want - 1) < 1e-9
    assert found.residual < 1e-12
    noisy = Q.critical_batch_size(sizes, [s * (1 + 0.01 * (-1) ** k) for k, s in enumerate(steps)])
    assert abs(noisy.size / 300 - 1) < 0.05
    assert 0.003 < noisy.residual < 0.011


def test_the_critical_batch_size():
    check_critical()
    assert Q.critical_batch_size([10, 100], [500, 50]).size == math.inf  # no floor: examples are all that counts
    assert Q.critical_batch_size([10, 100], [50, 50]).size < 1e-9


def test_what_is_refused():
    mean = {"a": torch.ones(2)}
    with pytest.raises(ValueError, match="got sizes 4 and 4; expected small_size < big_size"):
        Q.two_batch_noise_scale(mean, mean, 4, 4)
    with pytest.raises(ValueError, match="expected parameters of the same names and shapes"):
        Q.two_batch_noise_scale(mean, {"a": torch.ones(3)}, 1, 4)
    with pytest.raises(TypeError, match="got a Tensor; expected mean gradients"):
        Q.two_batch_noise_scale(torch.ones(2), mean, 1, 4)
    with pytest.raises(ValueError, match="got decay=1; expected a number in"):
        Q.RunningNoiseScale.init(1)
    with pytest.raises(TypeError, match=r"got a float; expected gf\.quantities\.NoiseScale"):
        Q.RunningNoiseScale.init().add(3.0)
    with pytest.raises(ValueError, match="average its parts over more batches"):
        Q.batch_efficiency(-3.0, 10)
    with pytest.raises(ValueError, match="two batch sizes that differ"):
        Q.critical_batch_size([10, 10], [5, 6])
    with pytest.raises(ValueError, match="got per='entry'; expected per to be one of 'parameter', 'layer', 'total'"):
        Q.gradient_noise_scale(gradients(4, 0), per="entry")


def biased(small, big, b, n):
    found = two_batch(small, big, b, n)
    norm = torch.stack([v.square().sum() for v in big.values()]).sum()
    return found.__class__(found.trace, norm, found.trace / norm)


def unnested(small, big, b, n):
    found = two_batch(small, big, b, n)
    return found.__class__(found.trace * (1 - b / n), found.squared_norm, found.scale)


def of_quotients(self, found):
    return add(self, _noise_scale.NoiseScale(found.scale, found.squared_norm, found.scale))


def population(norms, weights, mean):
    found = noise_scale_of(norms, weights, mean)
    return _noise_scale.NoiseScale(found.trace * (1 - 1 / len(norms)), found.squared_norm, found.scale)


two_batch, add, noise_scale_of = Q.two_batch_noise_scale, Q.RunningNoiseScale.add, _noise_scale.noise_scale_of
MUTANTS = {
    "the big batch's own square": (Q, "two_batch_noise_scale", biased, lambda: check_two_batches(True)),
    "a factor too many": (Q, "two_batch_noise_scale", unnested, lambda: check_two_batches(False)),
    "quotients averaged": (Q.RunningNoiseScale, "add", of_quotients, check_running),
    "no correction of the start": (
        Q.RunningNoiseScale,
        "value",
        property(lambda self: _noise_scale.NoiseScale(self.trace, self.squared_norm, self.trace / self.squared_norm)),
        check_running,
    ),
    "the variance of a population": (_noise_scale, "noise_scale_of", population, check_known_covariance),
    "layers by their last part": (
        _noise_scale,
        "layer_of",
        lambda name: name.rpartition(".")[2],
        check_known_covariance,
    ),
    "steps for examples": (
        Q,
        "batch_efficiency",
        lambda scale, size: _critical_batch.BatchEfficiency(1 + size / scale, 1 + scale / size),
        check_quadratic,
    ),
}


@pytest.mark.parametrize("name", every(3, MUTANTS))
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    owner, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(owner, attribute, mistake)
    with pytest.raises((AssertionError, KeyError)):
        law()
