"""What holds of schemes and of rules, as checks that a broken one fails.

A draw of n entries is held to the mean and the variance that its scheme states. For normal entries the sampling
distributions are exact (normal, chi-square). Uniform and truncated ones are bounded, and Bernstein's inequality holds
at any n (Boucheron, Lugosi, Massart 2013, "Concentration Inequalities", corollary 2.11): no limit theorem is taken on
trust. A right scheme misses an interval with probability below ALPHA, and one of 400, more than there are, below 2e-8.
"""

from __future__ import annotations

import hashlib
import math

import torch
from scipy import stats

import gradfunc as gf
from gradfunc._rounding import gamma, unit_roundoff

ALPHA = 5e-11
WITHIN = {"uniform": math.sqrt(3), "truncated_normal": 2 / float(stats.truncnorm(-2, 2).std())}


def fourth_moment(distribution):
    """Of an entry over its standard deviation, in closed form by scipy."""
    if distribution == "uniform":
        return 9 / 5
    cut = stats.truncnorm(-2, 2)
    return float(cut.moment(4)) / float(cut.var()) ** 2


def bernstein(n, variance, largest):
    """How far the average of n independent numbers within `largest` of their mean may be off it."""
    log = math.log(2 / ALPHA)
    return math.sqrt(2 * variance * log / n) + 2 * largest * log / (3 * n)


def check_moments(scheme, shape, distribution, *, key=0, dtype=torch.float64):
    """Mean and variance of the entries are those stated, as far as n entries can tell."""
    std, mean = scheme.std(shape), scheme.mean(shape)
    assert std > 0
    entries = (scheme(shape, key=key, dtype=dtype).double() - mean) / std
    n, average, square = entries.numel(), float(entries.mean()), float(entries.square().mean())
    if distribution == "normal":
        assert abs(average) <= stats.norm.isf(ALPHA / 2) / math.sqrt(n)
        assert stats.chi2.ppf(ALPHA / 2, n) / n <= square <= stats.chi2.isf(ALPHA / 2, n) / n
        return
    limit = WITHIN[distribution]
    # No entry lies beyond the limit: the two roundings of what torch is given, and one of the entry.
    assert float(entries.abs().max()) <= limit * (1 + gamma(8, unit_roundoff(dtype)))
    assert abs(average) <= bernstein(n, 1.0, limit)
    assert abs(square - 1) <= bernstein(n, fourth_moment(distribution) - 1, max(limit**2 - 1, 1.0))


def check_exact_moments(scheme, shape):
    """Of a scheme that does not draw, the entries' own mean and variance."""
    entries = scheme(shape, dtype=torch.float64)
    scale = float(entries.abs().max()) or 1.0
    u = unit_roundoff(torch.float64)
    bound = gamma(entries.numel() + 8, u)
    assert abs(float(entries.mean()) - scheme.mean(shape)) <= bound * scale
    # The variance is a difference of squares, each within the bound.
    assert abs(float(entries.var(correction=0)) - scheme.variance(shape)) <= 4 * bound * scale**2


def check_same_bits(scheme, by_torch, shape, dtype, *, seed=7):
    """What torch's function gives for the same generator, and it leaves that in the same state."""
    ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    got = scheme(shape, generator=ours, dtype=dtype)
    want = by_torch(torch.empty(shape, dtype=dtype), theirs)
    assert got.dtype == dtype
    assert torch.equal(got, want)
    assert torch.equal(ours.get_state(), theirs.get_state())


def orthogonality_bound(rows, columns, dtype):
    """Of |Q^T Q - I| in Frobenius norm: Higham 2002, theorem 19.4, is |Q - its truth| <= sqrt(n) gamma_{c m n}.

    The book's "small integer constant" c is taken as 10; the sum adds gamma_m.
    """
    m, n = max(rows, columns), min(rows, columns)
    u = unit_roundoff(dtype)
    return 2.1 * math.sqrt(n) * gamma(10 * m * n, u) + n * gamma(m + 2, u)


def check_orthogonal(scheme, shape, gain, dtype):
    w = scheme(shape, key=3, dtype=dtype).double().flatten(1)
    w = w if w.shape[0] >= w.shape[1] else w.T
    gap = w.T @ w / gain**2 - torch.eye(w.shape[1], dtype=torch.float64)
    assert float(gap.norm()) <= orthogonality_bound(*w.shape, dtype)
    assert abs(float(w.square().mean()) / scheme.variance(shape) - 1) <= orthogonality_bound(*w.shape, dtype)


def check_delta(scheme, shape, gain):
    """Zero but at the centre; a circular convolution keeps the norm, times the gain."""
    w = scheme(shape, key=5, dtype=torch.float64)
    centre = (slice(None), slice(None), *[size // 2 for size in shape[2:]])
    rest = w.clone()
    rest[centre] = 0
    assert not rest.any()
    kernel, d = shape[2:], len(shape) - 2
    x = torch.randn(1, shape[1], *[7] * d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pad = [side for size in reversed(kernel) for side in (size // 2, size - 1 - size // 2)]
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[d - 1]
    y = conv(torch.nn.functional.pad(x, pad, mode="circular"), w)
    u = unit_roundoff(torch.float64)
    products = math.prod(shape[1:])
    bound = orthogonality_bound(*shape[:2], torch.float64) + math.sqrt(min(shape[:2])) * gamma(products + 2, u)
    assert y.shape[2:] == x.shape[2:]
    assert abs(float(y.norm() / x.norm()) / gain - 1) <= bound


def check_radius(scheme, shape, radius, dtype):
    """Each block's largest eigenvalue, by Bauer-Fike: off by at most cond(V) times the perturbation's norm.

    Perturbations: each of the two eigendecompositions is that of a matrix within n^2 u of its own (backward stable),
    and the result is rounded to its dtype.
    """
    w = scheme(shape, key=1, dtype=dtype).double()
    n = shape[1]
    for block in w.split(n):
        values, vectors = torch.linalg.eig(block)
        around = 2 * n**2 * unit_roundoff(torch.float64) + 2 * unit_roundoff(dtype)
        bound = float(torch.linalg.cond(vectors)) * around * float(block.norm())
        assert abs(float(values.abs().max()) - radius) <= bound
        assert bound < radius / 20


def check_seed_of_a_name(generator):
    """By BLAKE2b, computed here: no process salts it, as Python does its own hash of strings."""
    digest = hashlib.blake2b(b"7/fc.weight", digest_size=8).digest()
    assert generator(7, "fc.weight").initial_seed() == int.from_bytes(digest, "little") // 2


def check_first_match(initialize):
    """The first rule whose pattern matches the whole name."""
    given = {"norm.weight": torch.zeros(3), "fc.weight": torch.zeros(3, 3), "fc.weight_g": torch.zeros(2)}
    rules = {r"norm\..*": gf.init.constant(1.0), r".*weight": gf.init.constant(2.0), ".*": gf.init.constant(3.0)}
    made = initialize(given, rules, seed=0)
    assert {name: float(value.flatten()[0]) for name, value in made.items()} == {
        "norm.weight": 1.0,
        "fc.weight": 2.0,
        "fc.weight_g": 3.0,
    }


def check_alone(initialize):
    """A draw depends on seed and name: not on the others, their order, or that of the rules."""
    given = {f"{k}.weight": torch.zeros(3, 4) for k in "abc"}
    rules = {r"a\..*": gf.init.normal(), r".*": gf.init.uniform()}
    made = initialize(given, rules, seed=1)
    swapped = initialize(dict(reversed(given.items())), rules, seed=1)
    alone = initialize({"b.weight": given["b.weight"]}, {".*": gf.init.uniform()}, seed=1)
    assert list(swapped) == list(reversed(given))
    assert all(torch.equal(made[name], swapped[name]) for name in given)
    assert torch.equal(made["b.weight"], alone["b.weight"])
    assert not torch.equal(made["b.weight"], made["c.weight"])
    assert not torch.equal(made["b.weight"], initialize(given, rules, seed=2)["b.weight"])


def check_layer(factory, path):
    """`torch_default` of a layer at this path is bit for bit what it makes of itself, anew, after that seed."""
    model = torch.nn.Sequential(torch.nn.Identity(), factory()) if path else factory()
    made = gf.init.initialize(model, {".*": gf.init.torch_default()}, seed=5)
    torch.manual_seed(gf.init.generator(5, path).initial_seed())
    want = dict(factory().named_parameters())
    assert len(made) == len(want)
    for name, value in want.items():
        assert torch.equal(made[f"{path}.{name}".lstrip(".")], value)


def check_global_untouched(act):
    """Torch's global generator stays where it is, and does not matter."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = act()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(act(), first)
