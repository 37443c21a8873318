"""The comparison of a claimed derivative with differences, and verdicts, by themselves."""

from __future__ import annotations

import math
import random

import pytest
import torch

from gradfunc._certificate import Difference
from gradfunc._rounding import unit_roundoff
from gradfunc.diagnose._slopes import STEPS, slope
from gradfunc.testing._verdict import verdict

# name -> (function, derivative at 0)
SMOOTH = {
    "line": (lambda t: 3 * t + 1, 3.0),
    "cubic": (lambda t: 1 + t + 40 * t**2 - 7 * t**3, 1.0),
    "exp": (lambda t: math.exp(5 * t), 5.0),
    "wiggle": (lambda t: math.sin(20 * t) + 100, 20.0),
    "large": (lambda t: 1e12 * math.tanh(t + 0.3), 1e12 * (1 - math.tanh(0.3) ** 2)),
    "tiny": (lambda t: 1e-12 * math.tanh(t + 0.3), 1e-12 * (1 - math.tanh(0.3) ** 2)),
    "on a large offset": (lambda t: 1e6 + math.sin(t), 1.0),
    "relu away from 0": (lambda t: max(0.0, 0.5 + t), 1.0),
    "dead relu": (lambda t: max(0.0, -0.5 + t), 0.0),
    "constant": (lambda t: 4.0, 0.0),
    "flat": (lambda t: t**3, 0.0),
    "in float32": (lambda t: float(torch.tanh(torch.tensor(0.3 + t, dtype=torch.float32))), 1 - math.tanh(0.3) ** 2),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_right_derivative_is_never_wrong(name):
    phi, derivative = SMOOTH[name]
    told = slope(phi, derivative, abs(derivative) or 1.0).verdict
    assert told == "rounding" or (name == "in float32" and told == "cannot tell"), told


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0, 2.0, 1.01, 0.999])
@pytest.mark.parametrize("name", [name for name, (_, derivative) in SMOOTH.items() if derivative])
def test_a_wrong_derivative_is_wrong(name, factor):
    phi, derivative = SMOOTH[name]
    told = slope(phi, derivative * factor, abs(derivative)).verdict
    if name == "in float32" and abs(factor - 1) < 0.1:
        assert told != "rounding", "what float32 cannot tell is not passed"
    else:
        assert told == "wrong"


def narrow(factor=1.0):
    """A float32 loss of a model in float64: 6, falling so slowly that the last steps all round to one number."""
    slow = -0.0057 * factor
    return lambda t: torch.tensor(6 + slow * t, dtype=torch.float32)


def test_a_loss_that_is_float32_whatever_the_model_is():
    assert slope(narrow(), -0.0057, 5.0).verdict != "wrong"
    assert slope(lambda t: float(narrow()(t)), -0.0057, 5.0).verdict == "wrong", "by values alone it looks constant"
    assert slope(narrow(), -0.0114, 5.0).verdict != "rounding"
    assert slope(narrow(1000), -11.4, 5.0).verdict == "wrong"


def test_a_derivative_that_is_zero_only_by_claim():
    assert slope(lambda t: t, 0.0, 1.0).verdict == "wrong"
    assert slope(lambda t: 4.0, 1.0, 1.0).verdict == "wrong"


@pytest.mark.parametrize(
    ("claimed", "absolute", "relu"),
    [
        (0.0, "rounding", "cannot tell"),  # the mean of the one-sided slopes of |t|
        (0.5, "cannot tell", "rounding"),  # that of relu
        (1.0, "cannot tell", "cannot tell"),
        (-1.0, "cannot tell", "cannot tell"),
        (3.0, "cannot tell", "cannot tell"),
    ],
)
def test_a_kink_at_0_cannot_be_told(claimed, absolute, relu):
    assert slope(abs, claimed, 1.0).verdict == absolute
    assert slope(lambda t: max(t, 0.0), claimed, 1.0).verdict == relu


def test_kinks_beside_0_are_never_a_false_claim():
    """At every distance from far below the smallest step to beyond the largest, with any jump."""
    generator = random.Random(0)
    told = []
    for _ in range(2000):
        where = 10 ** generator.uniform(-9, 0) * generator.choice([-1, 1])
        jump = 10 ** generator.uniform(-3, 1) * generator.choice([-1, 1])
        a = generator.uniform(-1, 1)

        def phi(t, where=where, jump=jump, a=a):
            return a * t + 0.3 * t * t + jump * (max(0.0, t - where) - max(0.0, -where))

        derivative = a + (jump if where < 0 else 0.0)
        told.append(slope(phi, derivative, 1.0).verdict)
    assert "wrong" not in told
    assert told.count("rounding") > 1000


def test_a_half_gradient_is_found_beside_kinks_that_are_out_of_reach():
    generator = random.Random(1)
    for _ in range(200):
        where = 10 ** generator.uniform(-3, 0) * generator.choice([-1, 1])
        found = slope(lambda t, w=where: t + max(0.0, t - w) - max(0.0, -w), 0.5 * (1.0 + (where < 0)), 1.0)
        assert found.verdict == "wrong"


def test_values_that_are_not_finite_cannot_be_told():
    assert slope(lambda t: math.inf, 1.0, 1.0).verdict == "cannot tell"
    assert slope(lambda t: t if abs(t) < STEPS[0] / 2 else math.nan, 1.0, 1.0).verdict == "cannot tell"
    assert slope(lambda t: t, math.nan, 1.0).verdict == "cannot tell"


# --- verdicts -----------------------------------------------------------------------------------------------------

U32, U64 = unit_roundoff(torch.float32), unit_roundoff(torch.float64)

# name -> (asked, u, other, u of it, verdict)
VERDICTS = {
    "exact at both": (Difference(0.0, 1.0), U32, Difference(0.0, 1.0), U64, "exact"),
    "exact, and nothing else": (Difference(0.0, 1.0), U32, None, None, "exact"),
    "shrinks": (Difference(1e-7, 1.0), U32, Difference(2e-16, 1.0), U64, "rounding"),
    "shrinks, asked in float64": (Difference(2e-16, 1.0), U64, Difference(1e-7, 1.0), U32, "rounding"),
    "stays": (Difference(1e-3, 1.0), U32, Difference(1e-3, 1.0), U64, "wrong"),
    "stays though small": (Difference(1e-7, 1.0), U32, Difference(1e-7, 1.0), U64, "wrong"),
    "exact where asked, wrong elsewhere": (Difference(0.0, 1.0), U32, Difference(1e-3, 1.0), U64, "wrong"),
    "one precision, small": (Difference(1e-6, 1.0), U32, None, None, "cannot tell"),
    "one precision, half of the digits": (Difference(1e-3, 1.0), U32, None, None, "wrong"),
    "two that are one": (Difference(1e-6, 1.0), U32, Difference(1e-6, 1.0), U32, "cannot tell"),
    "nan against a number": (Difference(math.nan, 1.0), U32, None, None, "wrong"),
    "nan at both": (Difference(math.nan, 1.0), U32, Difference(math.nan, 1.0), U64, "wrong"),
    "no finite gradient": (Difference(math.nan, math.inf), U32, None, None, "cannot tell"),
    "something where nothing is": (Difference(1e-9, 0.0), U32, Difference(1e-9, 0.0), U64, "wrong"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name):
    *given, want = VERDICTS[name]
    assert verdict(*given) == want
