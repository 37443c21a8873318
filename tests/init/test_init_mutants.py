"""Broken on purpose: each law goes red for a scheme, or rules, that break it."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from typing import Any

import init_laws as laws
import pytest
import torch
from torch import nn

from gradfunc import init
from gradfunc.init import _default, _entries, _initialize, _scaled, _structured, _variance_scaling

SHAPE = (1024, 200)


@dataclass(frozen=True, repr=False, kw_only=True)
class Lying(init.Scheme):
    """Draws by one function and states what a scheme does."""

    draw: Any
    stated: init.Scheme

    def _drawn(self, shape, dtype, source):
        return self.draw(shape, generator=source, dtype=dtype)

    def _aims(self, shape):
        return self.stated._aims(shape)


def lying(draw, stated):
    return Lying(said="lying()", draw=draw, stated=stated)


def by_torch(function, **options):
    return lambda shape, generator, dtype: function(torch.empty(shape, dtype=dtype), generator=generator, **options)


NORMAL, RELU = init.normal(0.02), init.kaiming_normal(nonlinearity="relu")
MOMENTS = {
    "fans swapped": (lying(init.kaiming_normal(mode="fan_out"), init.kaiming_normal()), "normal"),
    "the average for fan_in": (lying(init.xavier_uniform(), init.lecun_uniform()), "uniform"),
    "gain squared": (lying(init.variance_scaling(2.0), init.variance_scaling(math.sqrt(2.0))), "normal"),
    "gain forgotten": (lying(init.lecun_normal(), RELU), "normal"),
    "half the gain": (lying(init.lecun_uniform(), init.kaiming_uniform()), "uniform"),
    "std for variance": (lying(init.normal(0.02**2), NORMAL), "normal"),
    "groups forgotten": (
        lying(
            init.kaiming_normal(mode="fan_out"), init.kaiming_normal(mode="fan_out", fans=init.fans(groups=2))
        ),
        "normal",
    ),
    "transposed forgotten": (
        lying(init.lecun_normal(), init.lecun_normal(fans=init.fans(transposed=True))), "normal"
    ),
    "not corrected for the cut": (
        lying(by_torch(nn.init.trunc_normal_, std=0.02, a=-0.04, b=0.04), init.truncated_normal(0.02)),
        "truncated_normal",
    ),
    "corrected twice": (
        lying(init.truncated_normal(0.02 / _entries.TRUNCATED_STD), init.truncated_normal(0.02)), "truncated_normal"
    ),
    "not cut": (lying(NORMAL, init.truncated_normal(0.02)), "truncated_normal"),
    "bound for std": (lying(init.uniform(0.02), init.uniform(0.02 * math.sqrt(3))), "uniform"),
    "normal for uniform": (lying(init.normal(1 / math.sqrt(3)), init.uniform()), "uniform"),
    "mean off by 3% of a std": (lying(init.normal(0.02, mean=6e-4), NORMAL), "normal"),
    "variance off by 4%": (lying(init.normal(0.0204), NORMAL), "normal"),
    "one side": (lying(lambda s, **k: init.uniform()(s, **k).abs(), init.uniform()), "uniform"),
    "factor on the variance": (lying(init.scaled(NORMAL, 0.25), init.scaled(NORMAL, 0.5)), "normal"),
    "1 / layers": (lying(init.scaled(NORMAL, 1 / 12), init.depth_scaled(NORMAL, 12)), "normal"),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_that_are_not_those_stated_are_seen(name):
    scheme, distribution = MOMENTS[name]
    laws.check_moments(scheme.stated, SHAPE, distribution)
    with pytest.raises(AssertionError):
        laws.check_moments(scheme, SHAPE, distribution)


@pytest.mark.parametrize(
    "scheme",
    [
        lying(init.ones(), init.zeros()),
        lying(init.scaled(init.identity(), 2.0), init.identity()),
        lying(lambda s, **k: init.identity()(s, **k).T.roll(1), init.constant(1 / 5)),
    ],
    ids=["ones for zeros", "gain forgotten", "variance forgotten"],
)
def test_exact_moments_that_are_not_those_stated_are_seen(scheme):
    class Still(Lying):
        draws = False

    still = Still(said="still()", draw=scheme.draw, stated=scheme.stated)
    with pytest.raises(AssertionError):
        laws.check_exact_moments(still, (5, 5))


def flawed_qr(shape, *, generator, dtype):
    """Orthogonal, but not uniformly so: the signs of R are left in Q."""
    q, _ = torch.linalg.qr(torch.empty(shape, dtype=dtype).normal_(0, 1, generator=generator))
    return q


def twice(shape, *, generator, dtype):
    init.orthogonal()(shape, generator=generator, dtype=dtype)
    return init.orthogonal()(shape, generator=generator, dtype=dtype)


BITS = {
    "signs of QR": (flawed_qr, nn.init.orthogonal_),
    "drawn twice": (twice, nn.init.orthogonal_),
    "std by another expression": (
        lambda s, generator, dtype: nn.init.normal_(torch.empty(s, dtype=dtype), 0.0, s[1] ** -0.5 * 0.8, generator),
        lambda t, generator: nn.init.normal_(t, 0.0, 0.8 / math.sqrt(t.shape[1]), generator),
    ),
    "drawn in float32": (
        lambda s, generator, dtype: init.normal()(s, generator=generator, dtype=torch.float32).to(dtype),
        lambda t, generator: nn.init.normal_(t, generator=generator),
    ),
    "a generator left where it was": (
        lambda s, generator, dtype: init.normal()(s, generator=generator.clone_state(), dtype=dtype),
        lambda t, generator: nn.init.normal_(t, generator=generator),
    ),
}


@pytest.mark.parametrize("name", BITS)
def test_other_bits_than_torchs_are_seen(name):
    draw, function = BITS[name]
    with pytest.raises(AssertionError):
        laws.check_same_bits(lying(draw, NORMAL), lambda t, g: function(t, generator=g), (7, 7), torch.float64)


ORTHOGONAL = init.orthogonal(1.5)
NOT_ORTHOGONAL = {
    "normal": init.normal(1.5 / math.sqrt(8)),
    "gain squared": init.orthogonal(2.25),
    "no gain": init.orthogonal(),
    "one column off by 1%": lambda s, **k: ORTHOGONAL(s, **k) * (1 + 0.01 * torch.eye(8)[0]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NOT_ORTHOGONAL)
def test_what_is_not_orthogonal_is_seen(name, dtype):
    laws.check_orthogonal(ORTHOGONAL, (8, 8), 1.5, dtype)
    draw = NOT_ORTHOGONAL[name]
    broken = lying(lambda s, generator, dtype: draw(s, generator=generator, dtype=dtype).to(dtype), ORTHOGONAL)
    with pytest.raises(AssertionError):
        laws.check_orthogonal(broken, (8, 8), 1.5, dtype)


DELTA = init.delta_orthogonal()
NOT_DELTA = {
    "beside the centre": lambda s, **k: DELTA(s, **k).roll(1, dims=-1),
    "two taps": lambda s, **k: DELTA(s, **k) + DELTA(s, **k).roll(1, dims=-1),
    "orthogonal as a whole": init.orthogonal(),
    "normal at the centre": lambda s, **k: (DELTA(s, key=5) != 0) * init.normal(0.5)(s, **k),
    "gain": init.delta_orthogonal(1.01),
}


@pytest.mark.parametrize("name", NOT_DELTA)
def test_what_is_not_delta_orthogonal_is_seen(name):
    laws.check_delta(DELTA, (4, 4, 3, 3), 1.0)
    with pytest.raises(AssertionError):
        laws.check_delta(lying(NOT_DELTA[name], DELTA), (4, 4, 3, 3), 1.0)


def of_the_whole_norm(self, block):
    return block * (self.radius / torch.linalg.matrix_norm(block, 2))


def real_parts(self, block):
    return block * (self.radius / torch.linalg.eigvals(block.double()).real.max())


@pytest.mark.parametrize("broken", [of_the_whole_norm, real_parts])
def test_another_spectral_radius_is_seen(broken, monkeypatch):
    scheme = init.spectral_radius(0.9)
    laws.check_radius(scheme, (24, 12), 0.9, torch.float64)
    monkeypatch.setattr(_scaled.SpectralRadius, "_rescaled", broken)
    with pytest.raises(AssertionError):
        laws.check_radius(scheme, (24, 12), 0.9, torch.float64)


def last_wins(call, option, names, rules, *, exact):
    return {n: k for n in names for k in rules if re.fullmatch(k, n)}


def anywhere(call, option, names, rules, *, exact):
    return {n: next(k for k in rules if re.search(k, n)) for n in names}


@pytest.mark.parametrize("broken", [last_wins, anywhere])
def test_another_order_of_rules_is_seen(broken, monkeypatch):
    monkeypatch.setattr(_initialize, "by_rules", broken)
    with pytest.raises(AssertionError):
        laws.check_first_match(_unguarded)


def _unguarded(params, rules, seed):
    """Without the error for rules that initialise nothing, which would speak first."""
    found = _initialize.by_rules("", "", params, rules, exact=False)
    return {name: rules[found[name]](tuple(value.shape), key=seed) for name, value in params.items()}


def in_order_of_calls():
    shared = torch.Generator().manual_seed(0)
    return lambda seed, name: shared


ALONE = {
    "one generator after the other": lambda: in_order_of_calls(),
    "name forgotten": lambda: lambda seed, name: torch.Generator().manual_seed(seed),
    "seed forgotten": lambda: lambda seed, name: torch.Generator().manual_seed(len(name) + ord(name[0])),
}


@pytest.mark.parametrize("name", ALONE)
def test_draws_that_depend_on_something_else_are_seen(name, monkeypatch):
    monkeypatch.setattr(_initialize, "generator", ALONE[name]())
    with pytest.raises(AssertionError):
        laws.check_alone(init.initialize)


def test_pythons_own_hash_is_seen():
    with pytest.raises(AssertionError):
        laws.check_seed_of_a_name(lambda seed, name: torch.Generator().manual_seed(hash((seed, name)) % 2**63))


def test_draws_from_the_global_generator_are_seen(monkeypatch):
    @contextlib.contextmanager
    def as_it_is(generator):
        yield

    layer = nn.Linear(3, 4)
    acts = {
        _structured: lambda: init.sparse(0.5)((8, 8), key=0),
        _default: lambda: init.initialize(layer, {".*": init.torch_default()})["weight"],
    }
    for module, act in acts.items():
        laws.check_global_untouched(act)
        with monkeypatch.context() as patch:
            patch.setattr(module, "drawing_from", as_it_is)
            with pytest.raises(AssertionError):
                laws.check_global_untouched(act)


def test_a_default_that_is_not_the_layers_is_seen(monkeypatch):
    breaks = {
        "a run for each parameter": (_default.OfLayer, "stream", lambda self, name: name),
        "another order": (_default, "_reset", _out_proj_last),
    }
    for owner, name, broken in breaks.values():
        laws.check_layer(lambda: nn.MultiheadAttention(4, 2), "")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(AssertionError):
                laws.check_layer(lambda: nn.MultiheadAttention(4, 2), "")


def _out_proj_last(layer):
    layer._reset_parameters()
    layer.out_proj.reset_parameters()


def test_the_sum_of_variances_itself_is_what_is_held(monkeypatch):
    # Not the stated number against itself: a wrong standard deviation inside the scheme is seen as well.
    scheme = init.xavier_normal()
    laws.check_moments(scheme, SHAPE, "normal")
    monkeypatch.setattr(_variance_scaling.VarianceScaling, "_std", lambda self, shape: shape[1] ** -0.5)
    with pytest.raises(AssertionError):
        laws.check_moments(scheme, SHAPE, "normal")
