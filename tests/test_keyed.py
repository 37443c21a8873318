"""Keyed draws: a function of (seed, step, use, sample) and nothing else, of the distributions they are named for.

Seeds are fixed, so these tests are as sure to pass tomorrow as today; the bounds are exact inequalities (Hoeffding for
counts, Dvoretzky-Kiefer-Wolfowitz with Massart's constant for distribution functions) that truly random numbers would
break with a probability below 1e-9 a test.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from oracle import same_bits
from tiers import every
from torch.func import grad, hessian, jvp, vmap

from gradfunc._random import Draw, _keyed, derived_key
from gradfunc._random._philox import MASK, philox4x32

ALARM = 1e-9
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
N = 200_000

# name -> (draw, shape, device) -> tensor
DRAWS = {
    "bits": lambda draw, shape, device: draw.bits(shape, device),
    "keep": lambda draw, shape, device: draw.keep(shape, 0.3, device),
    "bernoulli": lambda draw, shape, device: draw.bernoulli(torch.full(shape, 0.3, device=device)),
    "permutation": lambda draw, shape, device: draw.permutation(math.prod(shape), device),
    "integers": lambda draw, shape, device: draw.integers(shape, -5, 2**31, device),
    "wide integers": lambda draw, shape, device: draw.integers(shape, -(2**62), 2**61 + 3, device),
    **{
        f"{name} {str(dtype)[6:]}": lambda draw, shape, device, name=name, dtype=dtype: getattr(draw, name)(
            shape, dtype, device
        )
        for name, dtype in product(["uniform", "normal", "exponential"], TYPES)
    },
}


def drawn(seed=0, step=0, use=0, sample=0):
    return Draw(derived_key(seed, step), use, sample)


def distance(values, distribution):
    """The greatest distance between the empirical distribution function and the true one."""
    at = distribution(values.double().flatten().sort().values)
    steps = torch.arange(1, len(at) + 1, dtype=torch.float64) / len(at)
    return float(torch.maximum((steps - at).abs(), (steps - 1 / len(at) - at).abs()).max())


def check_distribution(values, distribution, rounding=0.0):
    assert distance(values, distribution) <= math.sqrt(math.log(2 / ALARM) / (2 * values.numel())) + rounding


def check_frequency(hits, p):
    assert abs(float(hits.double().mean()) - p) <= math.sqrt(math.log(2 / ALARM) / (2 * hits.numel()))


def check_layout():
    """Words come from the documented counters."""
    key = derived_key(3, 5)
    assert key == philox4x32((5, 0, 0, 0), (3, 0))[:2]
    sample = 2**40 + 9
    words = Draw(key, 4, sample).bits((3, 7)).flatten().tolist()
    blocks = [philox4x32((n, 4, sample & MASK, sample >> 32), key) for n in range(6)]
    assert words == [word for block in blocks for word in block][:21]
    doubles = Draw(key, 4, sample).uniform((5,), torch.float64).tolist()
    pairs = [pair for block in blocks for pair in (block[:2], block[2:])]
    assert doubles == [(((v << 32) + w) >> 11) / 2**53 for v, w in pairs[:5]]


def test_layout():
    check_layout()


@pytest.mark.parametrize("seed", [0, -1, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("step", [0, 1, 2**33])
def test_the_key_takes_all_of_seed_and_step(seed, step):
    keys = {derived_key(seed + i, step + j) for i in (0, 1, 2**35) for j in (0, 1, 2**35)}
    assert len(keys) == 9


def check_samples_are_lanes(name, device="cpu", ids=(3, 0, -1, 2**40 + 3, 7)):
    """Under vmap over ids, over an explicit tensor of ids, and one by one: the same bits, in any chunks and order."""
    shape = (3, 5)
    each = [DRAWS[name](drawn(sample=i), shape, device) for i in ids]
    ids = torch.tensor(ids, device=device)
    lanes = vmap(lambda i: DRAWS[name](drawn(sample=i), shape, device))
    assert same_bits(list(lanes(ids)), each)
    assert same_bits(list(lanes(ids.flip(0)).flip(0)), each)
    assert same_bits([*lanes(ids[:2]), *lanes(ids[2:])], each)
    assert same_bits(list(vmap(lanes)(ids[:4].reshape(2, 2)).flatten(0, 1)), each[:4])
    assert len({tuple(row.flatten().tolist()) for row in each}) == len(each)


@pytest.mark.parametrize("name", DRAWS)
def test_samples_are_lanes(name, device):
    check_samples_are_lanes(name, device)


@pytest.mark.parametrize("name", DRAWS)
def test_ids_on_another_device(name, device):
    lanes = vmap(lambda i: DRAWS[name](drawn(sample=i), (6,), device))(torch.arange(3))
    assert same_bits(list(lanes), [DRAWS[name](drawn(sample=i), (6,), device) for i in range(3)])


@pytest.mark.parametrize("name", DRAWS)
def test_every_part_of_the_name_counts(name):
    a = DRAWS[name](drawn(), (64,), "cpu")
    others = [drawn(seed=1), drawn(step=1), drawn(use=1), drawn(sample=1), drawn(sample=2**32)]
    assert all(not torch.equal(a, DRAWS[name](other, (64,), "cpu")) for other in others)


@pytest.mark.parametrize("numpy", [False, True])
@pytest.mark.parametrize("name", every(4, DRAWS))
def test_the_same_bits_by_any_library_threads_and_passes(name, numpy, monkeypatch):
    def both():
        lanes = vmap(lambda i: DRAWS[name](drawn(sample=i), (1001,), "cpu"))(torch.arange(3))
        return [lanes, DRAWS[name](drawn(), (1001,), "cpu")]

    whole = both()
    monkeypatch.setattr(_keyed._Plan, "_suits_numpy", lambda self, blocks: numpy)
    assert same_bits(whole, both())
    monkeypatch.setattr(_keyed, "_LANES_NUMPY" if numpy else "_LANES_THREAD", 7)
    assert same_bits(whole, both())


@pytest.mark.parametrize("name", [n for n in DRAWS if not n.startswith(("normal", "exponential"))])
def test_the_same_bits_on_every_device(name, device):
    assert same_bits([DRAWS[name](drawn(), (10_001,), device).cpu()], [DRAWS[name](drawn(), (10_001,), "cpu")])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["normal", "exponential"])
def test_nearly_the_same_bits_on_every_device(name, dtype, device):
    a, b = (getattr(drawn(), name)((100_000,), dtype, where).cpu() for where in (device, "cpu"))
    torch.testing.assert_close(a, b, rtol=max(4 * torch.finfo(dtype).eps, 1e-14), atol=1e-15)
    assert dtype == torch.float64 or (a != b).double().mean() < 1e-3


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (5,)])
@pytest.mark.parametrize("name", [n for n in DRAWS if n != "permutation"])
def test_shapes(name, shape):
    assert DRAWS[name](drawn(), shape, "cpu").shape == shape
    assert vmap(lambda i: DRAWS[name](drawn(sample=i), shape, "cpu"))(torch.arange(3)).shape == (3, *shape)


def test_bits_are_uniform():
    words = drawn().bits((N,))
    for place in range(32):
        check_frequency(words >> place & 1, 0.5)
    check_distribution(words.double() / 2**32, lambda x: x)


@pytest.mark.parametrize("dtype", TYPES)
def test_uniform(dtype):
    values = drawn().uniform((N,), dtype)
    bits = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    assert values.dtype == dtype
    assert 0 <= float(values.min()) <= float(values.max()) < 1
    assert torch.equal(values.double() * 2**bits, (values.double() * 2**bits).round())
    check_distribution(values, lambda x: x, 2.0**-bits)


@pytest.mark.parametrize("dtype", TYPES)
def test_normal(dtype):
    values = drawn().normal((N,), dtype)
    assert values.dtype == dtype
    # rounding to the type moves a value by half a unit; the density is at most 0.4, |x| times it at most 0.25
    check_distribution(values, torch.special.ndtr, torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", TYPES)
def test_exponential(dtype):
    values = drawn().exponential((N,), dtype)
    assert values.dtype == dtype
    assert bool((values > 0).all() and values.log().isfinite().all())
    check_distribution(values, lambda x: -torch.expm1(-x), 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex(dtype):
    unit, normal = drawn().uniform((N,), dtype), drawn().normal((N,), dtype)
    assert unit.dtype == normal.dtype == dtype
    for part in (unit.real, unit.imag):
        check_distribution(part, lambda x: x)
    for part in (normal.real, normal.imag):
        check_distribution(part, lambda x: torch.special.ndtr(x * math.sqrt(2)), 1e-6)


@pytest.mark.parametrize("p", [0.0, 1e-4, 0.1, 0.5, 0.9, 1.0])
def test_keep_and_bernoulli(p):
    keep, hit = drawn().keep((N,), p), drawn().bernoulli(torch.full((N,), p, dtype=torch.float64))
    check_frequency(keep, 1 - p)
    check_frequency(hit, p)
    if p in (0, 1):
        assert bool((keep == (p == 0)).all() and (hit == (p == 1)).all())


def test_bernoulli_compares_exactly():
    words = drawn().bits((1000,)).double()
    assert not drawn().bernoulli(words / 2**32).any()
    assert drawn().bernoulli((words + 1) / 2**32).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2), (-3, 4), (10, 110)])
def test_integers(low, high):
    values = drawn().integers((N,), low, high)
    for value in range(low, high):
        check_frequency(values == value, 1 / (high - low))
    assert bool(((low <= values) & (values < high)).all())


@pytest.mark.parametrize("span", [2**32, 2**32 + 1, 3 * 2**40 + 1, 2**62 + 12345, 2**63 - 1])
def test_wide_integers(span):
    low = -(2**62)
    values = drawn().integers((N,), low, low + span)
    assert bool(((low <= values) & (values < low + span)).all())
    check_distribution((values - low).double() / span, lambda x: x, 1e-9)
    if span > 2**32:  # the same as Python's own integers
        blocks = [philox4x32((n, 0, 0, 0), derived_key(0, 0)) for n in range(20)]
        exact = [(((((v << 31) + (w >> 1)) << 32) + x) % span) + low for v, w, x, _ in blocks]
        assert values[:20].tolist() == exact


def test_too_wide_integers():
    with pytest.raises(ValueError, match="range"):
        drawn().integers((1,), -(2**63), 2**63 - 1)


def test_permutation():
    orders = [tuple(drawn(use=use).permutation(3).tolist()) for use in range(6000)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    for order in set(orders):
        check_frequency(torch.tensor([order == other for other in orders]), 1 / 6)
    assert len(set(orders)) == 6
    assert drawn().permutation(0).shape == (0,)


def test_neighbours_are_independent():
    """Signs of neighbouring samples, uses, steps and seeds agree half of the time."""
    here = drawn().normal((N,), torch.float32)
    for other in (drawn(sample=1), drawn(use=1), drawn(step=1), drawn(seed=1)):
        check_frequency((here > 0) == (other.normal((N,), torch.float32) > 0), 0.5)
    check_frequency((here[1:] > 0) == (here[:-1] > 0), 0.5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch, of its own forward mode
def test_transforms_see_constants():
    ids, w = torch.arange(3), torch.randn(5)

    def loss(w, i):
        return (w.sin() * drawn(sample=i).normal((4, 5), torch.float32)).sum()

    noise = torch.stack([drawn(sample=i).normal((4, 5), torch.float32).sum(0) for i in range(3)])
    torch.testing.assert_close(vmap(grad(loss), (None, 0))(w, ids), w.cos() * noise)
    torch.testing.assert_close(vmap(hessian(loss), (None, 0))(w, ids), torch.diag_embed(-w.sin() * noise))
    torch.testing.assert_close(
        vmap(lambda i: jvp(lambda w: loss(w, i), (w,), (w,))[1])(ids), (w.cos() * noise * w).sum(1)
    )
