"""Distributions of entries, against numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import gradfunc as gf
from gradfunc.diagnose import _distribution
from gradfunc.diagnose._distribution import LEVELS

describe = gf.diagnose.describe
U = 2.0**-53


def by_numpy(values):
    x = values[np.isfinite(values)].astype(np.longdouble)
    return {
        "mean": float(x.mean()),
        "std": float(np.sqrt(((x - x.mean()) ** 2).mean())),
        "rms": float(np.sqrt((x**2).mean())),
        "zero": float((values == 0).mean()),
        "nonfinite": float((~np.isfinite(values)).mean()),
    }


def agrees(found, values):
    # Pairwise sums of blocks of at most 2^16 in float64: some hundred roundings, on the scale of the largest entry.
    tolerance = 1000 * U * float(np.abs(values[np.isfinite(values)]).max())
    for name, value in by_numpy(values).items():
        assert abs(getattr(found, name) - value) <= (tolerance if name in ("mean", "std", "rms") else 0), name


CASES = {
    "normal": lambda: torch.randn(300, 700, dtype=torch.float64),
    "single": lambda: torch.randn(1000, 200),
    "half": lambda: torch.randn(500, 3).half(),
    "bfloat16": lambda: torch.randn(500, 300).bfloat16(),
    "zeros": lambda: torch.randn(400, 50, dtype=torch.float64).relu(),
    "strided": lambda: torch.randn(60, 50, dtype=torch.float64)[::3].T,
    "not finite": lambda: torch.tensor([1.0, math.nan, 2.0, math.inf, 0.0, -math.inf]).double(),
    "large": lambda: torch.randn(100_000, dtype=torch.float64) * 1e300,
    "small": lambda: torch.randn(1000, dtype=torch.float64) * 1e-300,
    "far from 0": lambda: torch.randn(70_000, dtype=torch.float64) + 1e9,
}


@pytest.mark.parametrize("case", CASES)
def test_moments_are_those_of_all_entries(case, device):
    tensor = CASES[case]()
    found = describe(tensor.to(device))
    agrees(found, tensor.double().numpy().ravel())
    assert found.count == tensor.numel()
    assert sum(found.histogram) == min(found.sampled, round(found.count * (1 - found.nonfinite)))


@pytest.mark.parametrize("finite", [False, True])
def test_sums_of_tensors_elsewhere_are_those_of_arrays(finite):
    # What a CPU does by numpy another device does by torch; both run here.
    x = torch.randn(5000, dtype=torch.float64).relu()
    if finite:
        x[::7] = math.nan
    by_torch = _distribution._sums(x, finite, 2.0, 0.25)
    by_array = _distribution._sums(x.numpy(), finite, 2.0, 0.25)
    assert by_torch == pytest.approx(by_array, rel=1e-13)
    assert _distribution._largest(x) == _distribution._largest(x.numpy()) == x[x.isfinite()].max().item()
    assert _distribution._sums(x[:0], finite, 1.0, 0.0) is None


def test_several_tensors_are_one_and_complex_ones_two():
    parts = [torch.randn(70_000), torch.randn(3, 5), torch.zeros(0)]
    whole = describe(torch.cat([part.ravel() for part in parts]))
    assert describe(parts).quantiles == whole.quantiles
    agrees(describe(parts), torch.cat([part.ravel() for part in parts]).double().numpy())
    z = torch.complex(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).conj()
    assert describe(z) == describe(torch.tensor([1.0, -3.0, 2.0, -4.0]))


def test_quantiles_are_exact_where_the_sample_is_everything():
    x = torch.randn(1001, dtype=torch.float64)
    assert [q for _, q in describe(x).quantiles] == np.quantile(x.numpy(), LEVELS).tolist()
    counts, edges = np.histogram(x.numpy(), 17)
    found = describe(x, bins=17)
    assert found.histogram == tuple(counts)
    assert found.edges == (edges[0], edges[-1])


def sampled_shares(found, x):
    """How many sampled entries lie below the true quantiles: within a binomial interval each (false alarm 1e-9)."""
    for level, value in found.quantiles:
        share = float((x <= value).double().mean())
        # The sample's quantile is between its order statistics: their ranks are binomial.
        low, high = stats.binom.interval(1 - 1e-9, found.sampled, level)
        assert (low - 1) / found.sampled <= share <= (high + 1) / found.sampled, level


def test_quantiles_of_a_sample_are_within_their_sampling_interval(monkeypatch):
    # 20 million entries: more than torch.quantile takes.
    x = torch.arange(20_000_000, dtype=torch.float32).flip(0)
    found = describe(x, sample=5000)
    assert found.sampled == 5000
    sampled_shares(found, x)
    assert describe(x, sample=5000) == found
    assert describe(x, sample=5000, seed=1).quantiles != found.quantiles
    # a sample of the first entries alone is caught
    monkeypatch.setattr(
        _distribution, "_sampled", lambda flats, count, sample, seed: flats[0][:sample].double().numpy()
    )
    with pytest.raises(AssertionError):
        sampled_shares(describe(x, sample=5000), x)


def test_nothing_is_drawn_and_nothing_written():
    x = torch.randn(50_000)
    before, copy, numpy_state = torch.random.get_rng_state(), x.clone(), np.random.get_state()[1].copy()
    describe(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(x, copy)


def test_edges():
    empty = describe(torch.zeros(0))
    assert (empty.count, empty.quantiles, empty.histogram, empty.norm, empty.bars()) == (0, (), (), 0.0, "")
    lost = describe(torch.full((3,), math.nan))
    assert lost.nonfinite == 1.0
    assert math.isnan(lost.rms)
    same = describe(torch.full((7,), 3.0))
    assert (same.mean, same.std, same.rms, same.edges) == (3.0, 0.0, 3.0, (3.0, 3.0))
    assert math.isclose(describe(torch.tensor([3.0, 4.0])).norm, 5.0)
    assert len(describe(torch.randn(100)).bars(7)) == 7


def test_neighbours_are_one_bin():
    x = torch.tensor([1.0, 1.0 + 2.0**-52, 1.0 + 2.0**-51], dtype=torch.float64)
    found = describe(x, bins=30)
    assert found.histogram == describe(torch.ones(3), bins=30).histogram == (*[0] * 15, 3, *[0] * 14)
    assert found.edges == (1.0, 1.0 + 2.0**-51)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match=r"a tensor of torch\.int64"):
        describe(torch.arange(3))
    with pytest.raises(TypeError, match="an int"):
        describe([3])
    with pytest.raises(ValueError, match="sample=0"):
        describe(torch.randn(3), sample=0)
    with pytest.raises(TypeError, match=r"bins=2\.5"):
        describe(torch.randn(3), bins=2.5)
