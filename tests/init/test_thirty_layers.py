"""Random nets have the variances that the theory says, through thirty layers."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from tiers import every, quick
from wide_nets import ACTIVATIONS, half_width, logs

import gradfunc as gf
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc.init import _moments, _settled, _theory

DEPTH, WIDTH, BATCH, NETS = 30, 320, 480, 24
GAINS = {"torch's default": 3**-0.5, "1": 1.0, "He": 2**0.5}
PLAIN = [(activation, gain, None) for activation in ACTIVATIONS for gain in GAINS.values()]
PLAIN += [(activation, 1.0, norm) for activation in ACTIVATIONS for norm in ("layer", "rms")]
# Of these the variance stays where it is, so that one factor holds for all layers.
STAYING = [("identity", g, None) for g in GAINS.values()] + [("relu", g, None) for g in GAINS.values()]
STAYING += [("sigmoid", g, None) for g in GAINS.values()] + [("tanh", 2**0.5, None)]


@functools.cache
def nets():
    return dict(zip(PLAIN, logs(DEPTH, PLAIN, width=WIDTH, nets=NETS), strict=True))


@functools.cache
def staying_nets(case):
    limit = gf.init.variance_factor(*case).variance
    start = limit if 0 < limit < math.inf else 1.0
    return logs(DEPTH, [case], width=WIDTH, variance=start, nets=NETS)[0]


@functools.cache
def batch_nets(activation, depth, nets):
    return logs(depth, [(activation, 1.0, "batch")], width=WIDTH // 2, samples=BATCH, nets=nets)[0]


def compare(found, expected, shift=None):
    """The mean of a log over nets against that of infinite width.

    Student's interval for the mean, whose rate of false alarms `wide_nets` states, and what finite width shifts. That
    is of the order of the log's own variance s^2: a product of many averages is about lognormal, whose mean of logs
    lies s^2 / 2 below the log of the mean, which for identity and relu is exact at any width; as much again for the
    curvature of the map in others. Both are O(depth / width). `shift` takes its place where another one rules.
    """
    for k in range(2):
        spread = float(found[:, k].std())
        rounding = 4 * DEPTH * gamma(4 * WIDTH * BATCH, unit_roundoff(torch.float64))
        allowed = half_width(spread, len(found)) + (spread**2 if shift is None else shift) + rounding
        assert abs(float(found[:, k].mean()) - expected[k]) <= allowed, (k, float(found[:, k].mean()), expected[k])


def check_path(case):
    path = gf.init.variance_path(case[0], case[1], DEPTH, case[2])
    assert path.variances[-1] == pytest.approx(path.variances[0] * path.forward**2, rel=1e-12)
    compare(nets()[case], (2 * math.log(path.forward), 2 * math.log(path.backward)))


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_thirty_layers(case):
    check_path(case)


def check_factor(case):
    factor = gf.init.variance_factor(*case)
    compare(staying_nets(case), (2 * DEPTH * math.log(factor.forward), 2 * DEPTH * math.log(factor.backward)))


@pytest.mark.parametrize("case", quick([STAYING[6]], STAYING), ids=str)
def test_thirty_layers_where_the_variance_stays(case):
    check_factor(case)


def check_batch(activation, depth, nets=12):
    """Through batch norm: sizes of samples differ by O(l / width) at layer l, summed over layers depth^2 / (2 width).

    One layer of independent normal samples is short of that: what shifts it is that the spread of a unit over the batch
    is of about `r = 1 / (1 / width + 1 / batch)` directions, of which the mean of its inverse (2 / r) and the
    gradient's projection (2 / r) each take a share.
    """
    width = WIDTH // 2
    shift = 4 * (1 / width + 1 / BATCH) if depth == 1 else depth**2 / (2 * width)
    path = gf.init.variance_path(activation, 1.0, depth, "batch")
    assert path.forward == 1
    compare(batch_nets(activation, depth, nets), (0.0, 2 * math.log(path.backward)), shift)


@pytest.mark.parametrize("activation", quick(["relu", "sigmoid"], ACTIVATIONS))
def test_thirty_layers_with_batch_norm(activation):
    check_batch(activation, DEPTH)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_layer_with_batch_norm(activation):
    check_batch(activation, 1)


moments, following = _moments.moments, _settled.next_variance


def phi_for_its_slope(call, phi, q):
    m = moments(call, phi, q)
    return _moments.Moments(m.mean, m.square, m.square, m.error)


MUTANTS = {
    "the gain not squared, forward": (
        _theory,
        "next_variance",
        lambda m, gain, bias: following(m, gain**0.5, bias),
        lambda: check_path(("tanh", 3**-0.5, None)),
    ),
    "the gain not squared, backward": (
        _theory,
        "_result",
        lambda f, b, q, error: _theory.VarianceFactor(math.sqrt(f), math.sqrt(b * 3**0.5), q, error),
        lambda: check_path(("relu", 3**-0.5, None)),
    ),
    "phi for phi'": (_theory, "moments", phi_for_its_slope, lambda: check_path(("sigmoid", 1.0, None))),
    "phi for phi', normalised": (_theory, "moments", phi_for_its_slope, lambda: check_path(("tanh", 1.0, "layer"))),
    "no mean subtracted in batch norm": (
        _theory,
        "_size",
        lambda m, gain, norm, bias: (gain**2 * m.square, m.error),
        lambda: check_batch("relu", DEPTH),
    ),
    "no mean subtracted, one layer": (
        _theory,
        "_size",
        lambda m, gain, norm, bias: (gain**2 * m.square, m.error),
        lambda: check_batch("silu", 1),
    ),
    "a mean subtracted in layer norm": (
        _theory,
        "_size",
        lambda m, gain, norm, bias: (gain**2 * (m.square - m.mean**2), m.error),
        lambda: check_path(("relu", 1.0, "layer")),
    ),
    "the limit is 1": (_theory, "settled", lambda *_: 1.0, lambda: check_factor(("sigmoid", 3**-0.5, None))),
    "every layer at the first's variance": (
        _theory,
        "_factor",
        functools.partial(lambda was, call, phi, gain, bias, *_: was(call, phi, gain, bias, 1.0), _theory._factor),
        lambda: check_path(("tanh", 1.0, None)),
    ),
}


@pytest.mark.parametrize("name", every(3, MUTANTS))
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises(AssertionError):
        law()
