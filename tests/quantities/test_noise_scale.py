"""The noise scale: exact small cases, unbiased parts, weights, and mistakes that are noticed."""

from __future__ import annotations

import itertools

import pytest
import torch

import gradfunc as gf
from gradfunc.quantities import _noise_scale

F64 = torch.float64


def rows_of(matrix, weights=None, chunk_size=None):
    """Rows `w_i` times those of `matrix`, of these weights: numerators of a weighted mean."""
    weights = torch.ones(len(matrix), dtype=F64) if weights is None else weights

    def linear(p, row, w):
        return gf.Weighted(w * (p["a"] * row).sum(), w)

    params = {"a": torch.zeros(matrix.shape[1], dtype=F64)}
    return gf.per_sample_grads(linear, verify=False, chunk_size=chunk_size)(params, matrix, weights)


def check_small_case():
    """Rows (1, 0), (3, 0), (2, 3): mean (2, 1); squares about it 2, 2, 4, so a trace of 8 / 2."""
    matrix = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]], dtype=F64)
    for chunk_size in (None, 2):
        found = gf.quantities.gradient_noise_scale(rows_of(matrix, chunk_size=chunk_size))
        assert abs(float(found.trace) - 4) < 1e-12
        assert abs(float(found.squared_norm) - (5 - 4 / 3)) < 1e-12
        assert abs(float(found.scale) - 4 / (5 - 4 / 3)) < 1e-12


def test_a_small_case():
    check_small_case()


def check_unbiased(weights):
    """Over all samples of n draws from a population, the mean of each part is the truth."""
    population = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [4.0, -3.0]], dtype=F64)
    mean = population.mean(0)
    trace = float((population - mean).square().sum() / 3)
    weights = torch.tensor(weights, dtype=F64)
    found = [
        gf.quantities.gradient_noise_scale(rows_of(population[list(draw)], weights))
        for draw in itertools.product(range(3), repeat=len(weights))
    ]
    assert abs(float(torch.stack([one.trace for one in found]).mean()) - trace) < 1e-12 * trace
    assert abs(float(torch.stack([one.squared_norm for one in found]).mean()) - float(mean @ mean)) < 1e-11


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1.0, 1.0], [0.5, 2.0, 1.0]])
def test_both_parts_are_unbiased(weights):
    check_unbiased(weights)


def test_samples_that_agree_have_no_noise():
    found = gf.quantities.gradient_noise_scale(rows_of(torch.tensor([[3.0, 4.0]] * 4, dtype=F64)))
    assert abs(float(found.trace)) < 1e-13
    assert abs(float(found.squared_norm) - 25) < 1e-12


def test_what_is_refused():
    with pytest.raises(TypeError, match="got a dict; expected per-sample gradients"):
        gf.quantities.gradient_noise_scale({})
    matrix, weights = torch.ones(3, 2, dtype=F64), torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    with pytest.raises(ValueError, match="1 samples of weight above 0; expected at least two"):
        gf.quantities.gradient_noise_scale(rows_of(matrix, weights))


def population_variance(norms, weights, mean):
    found = noise_scale_of(norms, weights, mean)
    q = (weights / weights.sum()).square().sum()
    trace = found.trace * (1 - q)
    return _noise_scale.NoiseScale(trace, found.squared_norm, trace / found.squared_norm)


def biased_norm(norms, weights, mean):
    found = noise_scale_of(norms, weights, mean)
    whole = sum(value.square().sum() for value in mean.values())
    return _noise_scale.NoiseScale(found.trace, whole, found.trace / whole)


def unweighted(norms, weights, mean):
    return noise_scale_of(norms, (weights > 0).double(), mean)


noise_scale_of = _noise_scale.noise_scale_of
MUTANTS = {
    "the variance of a population": (population_variance, check_small_case),
    "the mean's own square": (biased_norm, lambda: check_unbiased([1.0, 1.0])),
    "weights ignored": (unweighted, lambda: check_unbiased([0.5, 2.0, 1.0])),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(_noise_scale, "noise_scale_of", mistake)
    with pytest.raises(AssertionError):
        law()
