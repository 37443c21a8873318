"""The factors against closed forms; what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc.init import _moments, _settled
from gradfunc.init._activation import NAMES, Activation

DEFAULT = 3**-0.5
TIGHT = 1e-12


def normal(a, b, power):
    """`E[z^power; a < z < b]` of a standard normal z, for powers 0, 1, 2."""

    def end(z):
        return z**power * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) if math.isfinite(z) else 0.0

    below = special.ndtr(b) - special.ndtr(a) if a < 0 else special.ndtr(-a) - special.ndtr(-b)
    return {0: below, 1: math.exp(-a * a / 2) - math.exp(-b * b / 2), 2: below}[power] / (
        math.sqrt(2 * math.pi) if power == 1 else 1
    ) + (_boundary(a, b) if power == 2 else 0.0)


def _boundary(a, b):
    def at(z):
        return z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) if math.isfinite(z) else 0.0

    return at(a) - at(b)


def exact(kinks, slopes, q):
    """`E[phi], E[phi^2], E[phi'^2]` at variance q of a continuous piecewise linear phi, 0 at its first kink."""
    std, mean, square, slope = math.sqrt(q), 0.0, 0.0, 0.0
    value, ends = 0.0, [-math.inf, *kinks, math.inf]
    for k, s in enumerate(slopes):
        if k > 1:
            value += slopes[k - 1] * (kinks[k - 1] - kinks[k - 2])
        c = value - s * kinks[max(k - 1, 0)]  # phi = c + s x
        p0, p1, p2 = (normal(ends[k] / std, ends[k + 1] / std, power) for power in range(3))
        mean += c * p0 + s * std * p1
        square += c * c * p0 + 2 * c * s * std * p1 + s * s * q * p2
        slope += s * s * p0
    return mean, square, slope


def piecewise(kinks, slopes):
    def phi(x):
        y = slopes[0] * (x - kinks[0])
        for kink, before, after in zip(kinks, slopes, slopes[1:], strict=False):
            y = y + (after - before) * F.relu(x - kink)
        return y

    return phi


def erf_moments(q):
    # Williams 1997, "Computing with infinite networks", eq. 11; the slope squared is a Gaussian.
    return 2 / math.pi * math.asin(2 * q / (1 + 2 * q)), 4 / math.pi / math.sqrt(1 + 4 * q)


CLOSED = {
    "identity": (("identity", DEFAULT), {}, (DEFAULT, DEFAULT, 0.0)),
    "identity that stays": (("linear",), {}, (1.0, 1.0, 1.0)),
    "identity that grows": (("linear", 2.0), {}, (2.0, 2.0, math.inf)),
    "relu": (("relu", DEFAULT), {}, (6**-0.5, 6**-0.5, 0.0)),
    "relu, He": (("relu", 2**0.5), {}, (1.0, 1.0, 1.0)),
    "relu that grows": ((F.relu, 2.0), {}, (2**0.5, 2**0.5, math.inf)),
    "relu with a bias": (("relu",), {"bias_variance": 0.3}, (1.0, 2**-0.5, 0.6)),
    "relu at a variance": (("relu",), {"variance": 0.3, "bias_variance": 0.3}, (1.5**0.5, 2**-0.5, 0.3)),
    "leaky relu": ((nn.LeakyReLU(0.2),), {}, (0.52**0.5, 0.52**0.5, 0.0)),
    "tanh that vanishes": (("tanh", DEFAULT), {}, (DEFAULT, DEFAULT, 0.0)),
    "tanh at the edge": (("tanh",), {}, (1.0, 1.0, 0.0)),
    "elu, two slopes at 0": ((nn.ELU(0.5), 1.0), {}, (0.625**0.5, 0.625**0.5, 0.0)),
    "erf": (
        (torch.erf, 1.5),
        {"variance": 0.7},
        (1.5 * (erf_moments(0.7)[0] / 0.7) ** 0.5, 1.5 * erf_moments(0.7)[1] ** 0.5, 0.7),
    ),
    "erf, layer norm": ((torch.erf,), {"norm": "layer"}, (1.0, (erf_moments(1)[1] / erf_moments(1)[0]) ** 0.5, 1.0)),
    "exp": ((torch.exp,), {"variance": 2.0}, (math.exp(2) / 2**0.5, math.exp(2), 2.0)),
    "a cube": ((lambda x: x**3,), {"variance": 2.0}, (60**0.5, 108**0.5, 2.0)),
    "relu, batch norm": (("relu", 5.0, "batch"), {}, (1.0, math.sqrt(math.pi / (math.pi - 1)), 1.0)),
    "relu, layer norm": (("relu", 5.0, "layer"), {}, (1.0, 1.0, 1.0)),
    "relu, rms norm with a bias": (("relu", 1.0, "rms"), {"bias_variance": 0.5}, (1.0, 0.5**0.5, 1.0)),
    "relu, batch norm with a bias": (
        ("relu", 1.0, "batch"),
        {"bias_variance": 0.5},
        (1.0, math.sqrt(math.pi / (math.pi - 1)), 1.0),
    ),
    "rounding, of slope 0": ((torch.round, 1.0, "batch"), {}, (1.0, 0.0, 1.0)),
}


def check_closed(name):
    args, options, expected = CLOSED[name]
    found = gf.init.variance_factor(*args, **options)
    assert found.error <= 1e-10
    assert (found.forward, found.backward, found.variance) == pytest.approx(expected, rel=found.error + TIGHT, abs=0)


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form(name):
    check_closed(name)


def check_settled(name, gain, expected):
    found = gf.init.variance_factor(name, gain)
    std, phi = math.sqrt(found.variance), {"sigmoid": special.expit, "tanh": np.tanh}[name]
    square, _ = integrate.quad(lambda z: phi(std * z) ** 2 * math.exp(-z * z / 2), -12, 12, epsabs=1e-12)
    square /= math.sqrt(2 * math.pi)
    assert gain**2 * square == pytest.approx(found.variance, rel=1e-8)  # by another quadrature
    assert found.forward == pytest.approx(1, abs=1e-9)
    assert round(found.backward, 3) == expected
    path = gf.init.variance_path(name, gain, 40)
    assert path.layers[-1].backward == pytest.approx(found.backward, rel=1e-6)


@pytest.mark.parametrize(("name", "gain", "expected"), [("sigmoid", DEFAULT, 0.141), ("tanh", 2.0, 1.167)])
def test_the_variance_settles(name, gain, expected):
    check_settled(name, gain, expected)


def test_a_path_is_its_layers():
    path = gf.init.variance_path("gelu", 1.2, 5, variance=2.0, bias_variance=0.1)
    assert len(path.layers) == 5
    assert len(path.variances) == 6
    for layer, q, after in zip(path.layers, path.variances, path.variances[1:], strict=False):
        assert layer == gf.init.variance_factor("gelu", 1.2, variance=q, bias_variance=0.1)
        assert after == pytest.approx(q * layer.forward**2)
    assert path.backward == pytest.approx(math.prod(layer.backward for layer in path.layers))
    still = gf.init.variance_path("relu", 3.0, 4, "batch")
    assert still.variances == (1.0,) * 5
    assert still.layers == (gf.init.variance_factor("relu", norm="batch"),) * 4


def test_a_path_through_a_thousand_layers_ends_at_the_limit():
    # Variances below what float64 has.
    assert gf.init.variance_path("relu", DEFAULT, 1000).layers[-1].backward == pytest.approx(6**-0.5, rel=TIGHT)
    last = gf.init.variance_path("tanh", 0.1, 200).layers[-1]
    assert (last.forward, last.backward) == pytest.approx((0.1, 0.1), rel=TIGHT)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "silu"])
def test_the_gain_that_keeps(name, direction):
    gain = gf.init.gain_for(name, variance=0.7, direction=direction)
    assert getattr(gf.init.variance_factor(name, gain, variance=0.7), direction) == pytest.approx(1, rel=TIGHT)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_function(name):
    function = (lambda x: x) if name in ("identity", "linear") else getattr(F, name)
    assert gf.init.variance_factor(name, variance=0.5) == gf.init.variance_factor(function, variance=0.5)


kinks = st.lists(st.floats(-3, 3), min_size=1, max_size=4).map(sorted)
numbers = st.floats(-2, 2).map(lambda v: round(v, 3))


def check_piecewise(kinks, slopes, q):
    phi = Activation("call", piecewise(kinks, slopes))
    found = _moments.moments("call", phi, q)
    expected = exact(kinks, slopes, q)
    error = 2 * found.error + TIGHT
    # Values near a far kink come of sums that cancel: roundings are of the size of their terms.
    size = sum(abs(s) for s in slopes) ** 2 * (9 + q) * 8 * torch.finfo(torch.float64).eps
    assert found.square == pytest.approx(expected[1], rel=error, abs=size)
    assert found.slope == pytest.approx(expected[2], rel=error, abs=size)
    root = math.sqrt(max(expected[1], 0.0))  # a square that is 0 may come out of sums that cancel below it
    assert abs(found.mean - expected[0]) <= error * root + math.sqrt(size) * 1e-7


@settings(max_examples=30)
@given(kinks, st.data(), st.sampled_from([0.01, 0.3, 1.0, 20.0]))
def test_kinks_anywhere(places, data, q):
    slopes = data.draw(st.lists(numbers, min_size=len(places) + 1, max_size=len(places) + 1))
    check_piecewise(places, slopes, q)


def test_a_piece_narrower_than_any_rule_sees():
    check_piecewise([0.0, 2.5243188736654085e-82], [0.0, 1.0, 0.0], 0.01)


@pytest.mark.parametrize(
    "places", [[1.0001], [1 - 1e-4], [0.999, 1.001], [2.5 + 1e-3], [1.0, 1.0], [0.5, 0.501], [-1e-9, 1e-9]], ids=str
)
def test_kinks_where_rules_are_blind(places):
    # Beside an interval's end, and two in one cell of the grid that looks for them.
    check_piecewise(places, [0.0, 1.0, 0.25][: len(places) + 1], 1.0)


BAD = {
    "an unknown name": (lambda: gf.init.variance_factor("softmax"), ValueError, "activation='softmax'"),
    "no activation": (lambda: gf.init.variance_factor(3), TypeError, "activation=3"),
    "a softmax": (lambda: gf.init.variance_factor(nn.Softmax(dim=1)), ValueError, "moves entries other than"),
    "a layer norm": (lambda: gf.init.variance_factor(nn.LayerNorm(5)), ValueError, "moves entries other than"),
    "one by place": (
        lambda: gf.init.variance_factor(lambda x: x * torch.arange(5)),
        ValueError,
        "moves entries other than",
    ),
    "a sum": (lambda: gf.init.variance_factor(torch.sum), TypeError, "[] torch.float64"),
    "float32": (lambda: gf.init.variance_factor(lambda x: x.float()), TypeError, "torch.float32"),
    "draws": (lambda: gf.init.variance_factor(nn.Dropout()), ValueError, "twice not the same"),
    "a logarithm": (lambda: gf.init.variance_factor(torch.log), ValueError, "not finite"),
    "too steep": (lambda: gf.init.variance_factor(lambda x: (x * x).exp(), norm="rms"), ValueError, "converges"),
    "no gain": (lambda: gf.init.variance_factor("relu", 0.0), ValueError, "gain=0.0"),
    "a gain in words": (lambda: gf.init.variance_factor("relu", "relu"), TypeError, "gain='relu'"),
    "an unknown norm": (lambda: gf.init.variance_factor("relu", 1.0, "group"), ValueError, "norm='group'"),
    "a variance of 0": (lambda: gf.init.variance_factor("relu", variance=0.0), ValueError, "variance=0.0"),
    "a variance and a norm": (lambda: gf.init.variance_factor(norm="rms", variance=1.0), ValueError, "variance=1.0"),
    "a bias below 0": (lambda: gf.init.variance_factor(bias_variance=-1.0), ValueError, "bias_variance=-1.0"),
    "no depth": (lambda: gf.init.variance_path("relu", 1.0, 0), ValueError, "depth=0"),
    "a path's variance and norm": (
        lambda: gf.init.variance_path(norm="batch", variance=2.0),
        ValueError,
        "variance=2.0 with norm='batch'",
    ),
    "growth": (lambda: gf.init.variance_factor("gelu", 2.0), ValueError, "grows without end"),
    "a constant, normalised": (
        lambda: gf.init.variance_factor(lambda x: 0 * x + 1, norm="batch"),
        ValueError,
        "hardly differ",
    ),
    "no slope to keep": (lambda: gf.init.gain_for(torch.round), ValueError, "a backward factor of 0"),
    "a direction": (lambda: gf.init.gain_for("relu", direction="up"), ValueError, "direction='up'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    ask, error, text = BAD[name]
    with pytest.raises(error) as raised:
        ask()
    assert text in str(raised.value)
    assert str(raised.value).startswith("gf.init.")


def test_nothing_is_touched():
    module = nn.PReLU()
    module.weight.grad = torch.ones(1)
    before, state = module.weight.detach().clone(), torch.get_rng_state()
    with pytest.raises(ValueError):
        gf.init.variance_factor(nn.Dropout())
    with torch.inference_mode():
        assert gf.init.variance_factor(module).backward == pytest.approx(math.sqrt((1 + 0.25**2) / 2), rel=TIGHT)
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, before)
    assert torch.equal(module.weight.grad, torch.ones(1))
    assert torch.equal(torch.get_rng_state(), state)


def without_jumps(monkeypatch):
    monkeypatch.setattr(Activation, "jumps", np.empty(0))
    monkeypatch.setattr(_moments, "AGREED", math.inf)
    over = _moments._over_the_line
    known = {}

    def once(integrands, ends):  # one division of the line in place of two
        return known.setdefault("first", over(integrands, ends))

    monkeypatch.setattr(_moments, "_over_the_line", once)


def of_moments(change):
    was = _moments.moments
    return lambda monkeypatch: monkeypatch.setattr(gf.init._theory, "moments", lambda *a: change(was(*a)))


MUTANTS = {
    "jumps not looked for, one division of the line": (
        without_jumps,
        lambda: check_piecewise([1.0001], [0.0, 1.0], 1.0),
    ),
    "a slope not squared": (
        of_moments(lambda m: _moments.Moments(m.mean, m.square, m.slope**0.5, m.error)),
        lambda: check_closed("leaky relu"),
    ),
    "one slope at 0": (
        lambda monkeypatch: monkeypatch.setattr(Activation, "at_zero", (0.0, 1.0)),
        lambda: check_closed("elu, two slopes at 0"),
    ),
    "a limit of 1": (
        lambda monkeypatch: monkeypatch.setattr(gf.init._theory, "settled", lambda *_: 1.0),
        lambda: check_settled("sigmoid", DEFAULT, 0.141),
    ),
    "no bias in the limit": (
        lambda monkeypatch: monkeypatch.setattr(_settled, "next_variance", lambda m, gain, bias: gain**2 * m.square),
        lambda: check_closed("relu with a bias"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    plant, law = MUTANTS[name]
    law()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        law()
