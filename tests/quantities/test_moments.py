"""Moments: parts merge exactly in any split and order, estimators without bias, what is refused."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantity_cases import F64, Q, draw

import gradfunc as gf
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc.quantities import _entries, _moments


def linear(p, row, w):
    return gf.Weighted(w * (p["a"] * row).sum(), w)


def rows_of(matrix, weights=None, **options):
    """Rows `w_i` times those of `matrix`, of these weights."""
    weights = torch.ones(len(matrix), dtype=F64) if weights is None else weights
    f = gf.per_sample_grads(linear, verify=False, **options)
    return f({"a": torch.zeros(matrix.shape[1], dtype=F64)}, matrix, weights)


# --- merging ------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(-100, 100, allow_subnormal=False)
SAMPLES = st.lists(
    st.tuples(st.tuples(NUMBERS, NUMBERS), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=2, max_size=9
)


def check_merge(samples, cut, entries):
    """Two parts and the whole agree within what rounding allows, and so does the other order."""
    matrix = torch.tensor([row for row, _ in samples], dtype=F64)
    weights = torch.tensor([w for _, w in samples], dtype=F64)
    cut = min(cut, len(samples))
    parts = [(matrix[:cut], weights[:cut]), (matrix[cut:], weights[cut:])]
    parts = [(m, w) for m, w in parts if bool((w > 0).any())]
    if not parts:
        return
    whole = Q.moments(rows_of(matrix, weights), entries=entries)
    each = [Q.moments(rows_of(m, w), entries=entries) for m, w in parts]
    # A mean rounds n products and sums, and a division; its square and the differences a few more.
    off = gamma(8 * (len(samples) + 4), unit_roundoff(F64))
    size = float((weights @ matrix.square()).sum())
    for joined in (functools.reduce(Q.Moments.merge, each), functools.reduce(Q.Moments.merge, each[::-1])):
        assert joined.count == whole.count
        assert float(joined.weight) == float(whole.weight)
        assert float(joined.squared_weight) == float(whole.squared_weight)
        assert float((joined.mean["a"] - whole.mean["a"]).norm()) <= off * (size / float(whole.weight)) ** 0.5
        assert float((joined.spread["a"] - whole.spread["a"]).abs().max()) <= off * size


@given(SAMPLES, st.integers(0, 9), st.booleans())
@settings(max_examples=60)
def test_parts_merge_to_the_whole(samples, cut, entries):
    check_merge(samples, cut, entries)


def check_order(entries=True):
    """Nine batches, merged from the left and as a tree."""
    parts = [Q.moments(rows_of(draw(4, 3, seed=k) + 5, draw(4, seed=k).abs()), entries=entries) for k in range(8)]
    left = functools.reduce(Q.Moments.merge, parts)
    level = parts
    while len(level) > 1:
        level = [a.merge(b) for a, b in zip(level[::2], level[1::2], strict=True)]
    # 32 samples and 7 merges of a few roundings each, on the scale of the mean square; 1 - q is above a half.
    off = 2 * gamma(100, unit_roundoff(F64)) * float(Q.second_moment(left, per="total"))
    for per in ("entry", "total") if entries else ("total",):
        a, b = (Q.variance(m, per=per) for m in (left, level[0]))
        a, b = (v if isinstance(v, torch.Tensor) else v["a"] for v in (a, b))
        assert float((a - b).abs().max()) <= off
    return left


def test_merging_is_associative():
    check_order()
    check_order(entries=False)


def test_moments_of_parameters_are_those_of_entries_added_up():
    fine, coarse = check_order(), check_order(entries=False)
    assert abs(float(Q.variance(fine, per="total") - Q.variance(coarse, per="total"))) < 1e-11
    assert not coarse.entries


def test_a_mean_far_from_0_costs_the_merge_no_digits():
    """Where the difference of mean squares has no digit left, blocks and merges keep them."""
    matrix = torch.tensor([[1e9 + k] for k in range(6)], dtype=F64)
    parts = [Q.moments(rows_of(matrix[:2])), Q.moments(rows_of(matrix[2:]))]
    assert float(Q.variance(parts[0].merge(parts[1]))["a"]) == 3.5


# --- bias ---------------------------------------------------------------------------------------------------------


def check_unbiased(weights):
    """Over all draws of n samples from a population, the mean of the estimate is the truth."""
    population = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [4.0, -3.0]], dtype=F64)
    true = (population - population.mean(0)).square().mean(0)
    weights = torch.tensor(weights, dtype=F64)
    found = [rows_of(population[list(draw)], weights) for draw in itertools.product(range(3), repeat=len(weights))]
    for entries in (True, False):
        mean = torch.stack([Q.variance(Q.moments(g, entries=entries), per="total") for g in found]).mean()
        assert abs(float(mean - true.sum())) < 1e-11
    square = torch.stack([Q.second_moment(g)["a"] for g in found]).mean(0)
    assert float((square - population.square().mean(0)).abs().max()) < 1e-11
    signal = [corrected_signal(g) for g in found]
    assert abs(float(torch.stack(signal).mean() - population.mean(0).square().sum())) < 1e-11


def corrected_signal(g):
    """The numerator of the corrected ratio; without variance, the ratio has none."""
    noise = Q.variance(g, per="total")
    if not noise > 0:
        return Q.moments(g).mean["a"].square().sum()
    return Q.signal_to_noise(g, per="total", corrected=True) * noise


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1.0, 1.0], [0.5, 2.0, 1.0]])
def test_variance_and_signal_are_unbiased(weights):
    check_unbiased(weights)


def test_what_is_refused():
    matrix = draw(3, 2)
    g = rows_of(matrix)
    for call in (Q.moments, Q.variance, Q.second_moment, Q.signal_to_noise, Q.coherence, Q.diversity):
        with pytest.raises(TypeError, match="got a dict; expected per-sample gradients"):
            call({})
    with pytest.raises(ValueError, match="got 1 samples of weight above 0; expected at least two"):
        Q.variance(rows_of(matrix, torch.tensor([0.0, 1.0, 0.0], dtype=F64)))
    with pytest.raises(ValueError, match="got 0 samples of weight above 0; expected at least one"):
        Q.moments(rows_of(matrix, torch.zeros(3, dtype=F64)))
    with pytest.raises(ValueError, match="got per='row'; expected per to be one of 'entry', 'parameter'"):
        Q.variance(g, per="row")
    coarse = Q.moments(g, entries=False)
    with pytest.raises(ValueError, match="got moments of parameters; expected moments of entries"):
        Q.variance(coarse)
    with pytest.raises(ValueError, match="Ask moments"):
        coarse.merge(Q.moments(g))
    with pytest.raises(TypeError, match=r"got a list; expected gf\.quantities\.Moments"):
        coarse.merge([])


def test_nothing_is_touched(device):
    params = {"a": torch.zeros(2, dtype=F64, device=device, requires_grad=True)}
    x, w = draw(3, 2).to(device), torch.ones(3, dtype=F64, device=device)
    versions = [t._version for t in (params["a"], x, w)]
    found = Q.moments(gf.per_sample_grads(linear)(params, x, w))
    assert not any(v.requires_grad for v in (*found.mean.values(), *found.spread.values()))
    assert found.mean["a"].device.type == device
    assert params["a"].grad is None
    assert versions == [t._version for t in (params["a"], x, w)]


def plain_merge(a, b):
    part = merged(a, b)
    return part._replace(mean=(a.mean + b.mean) / 2)


def plain_spread(a, b):
    return merged(a, b)._replace(spread=a.spread + b.spread)


merged = _entries.merged
SPLIT = ([((1.0, 2.0), 1.0), ((3.0, -1.0), 3.0), ((0.0, 5.0), 0.5)], 1)
MUTANTS = {
    "a mean of means": (_moments, "merged", plain_merge, lambda: check_merge(*SPLIT, entries=True)),
    "the mean of means, by parameters": (_moments, "merged", plain_merge, lambda: check_merge(*SPLIT, entries=False)),
    "spreads added up": (_moments, "merged", plain_spread, lambda: check_merge(*SPLIT, entries=True)),
    "spreads added up, by parameters": (_moments, "merged", plain_spread, lambda: check_merge(*SPLIT, entries=False)),
    "a division by n": (
        Q.Moments,
        "concentration",
        property(lambda self: torch.zeros((), dtype=F64)),
        lambda: check_unbiased([1.0, 1.0]),
    ),
    "a division by n - 1 whatever the weights": (
        Q.Moments,
        "concentration",
        property(lambda self: torch.tensor(1 / self.count, dtype=F64)),
        lambda: check_unbiased([0.5, 2.0, 1.0]),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    owner, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(owner, attribute, mistake)
    with pytest.raises(AssertionError):
        law()
