"""Remedies against vanishing gradients: closed forms, and what reservoirs remember."""

from __future__ import annotations

import json
import math

import pytest
import torch

import gradfunc as gf
from gradfunc.diagnose._recurrence import _remedies

F64 = torch.float64


@pytest.fixture(scope="module")
def report():
    return gf.diagnose.remedies(eigenvalue=0.9, steps=50, leak=0.1, delay=5)


def check_closed_forms(report, eigenvalue, steps, leak, delay):
    """Written once more, to 1e-10; and the product of gates is below 1."""
    c = [0.0] * (delay - 1) + [1.0]
    for _ in range(steps):
        c.append(eigenvalue * (c[-1] + c[-delay]) / 2)
    want = {
        "plain": eigenvalue**steps,
        "leaky": (1 - leak + leak * eigenvalue) ** steps,
        "delay": eigenvalue ** (steps / delay),
        "skip": c[-1],
        "orthogonal, linear": 1.0,
    }
    for name, value in want.items():
        row = report.row(name)
        assert row.measured == pytest.approx(value, rel=1e-10), name
        assert row.closed == pytest.approx(value, rel=1e-12), name
    gated = [row for row in report.rows if row.name.startswith(("LSTM", "GRU"))]
    for row in gated:
        assert row.measured == pytest.approx(row.closed, rel=1e-10), row.name
        assert 0 < row.measured < 1
    assert report.ok


@pytest.mark.parametrize(
    ("eigenvalue", "steps", "leak", "delay"),
    [(0.9, 50, 0.1, 5), (1.5, 50, 0.5, 10), (0.3, 12, 1.0, 1), (0.7, 1, 0.2, 1)],
)
def test_closed_forms(eigenvalue, steps, leak, delay):
    found = gf.diagnose.remedies(eigenvalue=eigenvalue, steps=steps, leak=leak, delay=delay, hidden=6)
    check_closed_forms(found, eigenvalue, steps, leak, delay)
    if (eigenvalue, steps) == (1.5, 50):
        assert f"{found.row('plain').measured:.3e}" == "6.376e+08"


def test_broken_remedies_are_caught(monkeypatch):
    real = _remedies.models

    class Models:
        def __getattr__(self, name):
            return getattr(real, name)

        @staticmethod
        def leaky_rnn(*args, leak, **options):
            return real.leaky_rnn(*args, leak=leak / 2, **options)

    monkeypatch.setattr(_remedies, "models", Models())
    found = gf.diagnose.remedies(hidden=4, steps=20)
    assert not found.ok
    with pytest.raises(AssertionError):
        check_closed_forms(found, 0.9, 20, 0.1, 5)


def test_a_step_too_many_is_caught(monkeypatch):
    real = _remedies._run
    monkeypatch.setattr(_remedies, "_run", lambda model, params, xs: real(model, params, torch.cat([xs, xs[:1]])))
    assert not gf.diagnose.remedies(hidden=4, steps=20).ok


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_gates_through_which_h_goes_too_are_caught(monkeypatch):
    """The direct path alone is a product of gates; the whole derivative is not."""
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    found = gf.diagnose.remedies(hidden=4, steps=10)
    assert not found.ok
    assert found.row("plain").error <= found.row("plain").bound


def test_what_helps(report):
    def value(name):
        return report.row(name).measured

    assert value("plain") < value("skip") < value("delay") < value("leaky") < value("orthogonal, linear")
    # torch's default forgets; the bias decides
    lstms = [value("LSTM, as torch starts"), *(value(f"LSTM, forget bias {b}") for b in (1, 3, 5))]
    assert lstms == sorted(lstms)
    assert lstms[0] < 1e-9
    assert lstms[-1] > 0.5
    assert value("orthogonal, tanh") <= 1
    for row in report.rows:
        assert (row.capacity is not None) == row.name.startswith("echo state")
    json.dumps(report.to_dict())
    assert "memory capacity" in str(report)
    with pytest.raises(KeyError, match="no remedy 'none'"):
        report.row("none")


def test_remedies_draw_from_no_global_generator():
    before = torch.random.get_rng_state()
    first = gf.diagnose.remedies(hidden=4, steps=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == gf.diagnose.remedies(hidden=4, steps=5)
    assert first != gf.diagnose.remedies(hidden=4, steps=5, seed=1)


BAD = {
    "T no multiple of d": ({"steps": 7, "delay": 5}, ValueError, "steps=7, delay=5"),
    "no steps": ({"steps": 0}, ValueError, "steps=0"),
    "half a delay": ({"delay": 2.5}, TypeError, r"delay=2\.5"),
    "eigenvalue": ({"eigenvalue": 0.0}, ValueError, r"eigenvalue=0\.0"),
    "NaN": ({"eigenvalue": math.nan}, ValueError, "eigenvalue=nan"),
    "leak": ({"leak": 1.5}, ValueError, r"leak=1\.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        gf.diagnose.remedies(**options)


# --- memory capacity ----------------------------------------------------------------------------------------------


def delay_line(n):
    """A linear reservoir that remembers n inputs exactly: h_t = (u_t, ..., u_{t-n+1})."""
    model = gf.models.rnn(
        1, n, activation=lambda z: z, recurrent=torch.diag(torch.ones(n - 1, dtype=F64), -1), dtype=F64
    )

    def init():
        return {**model.init(), "w_ih": torch.eye(n, 1, dtype=F64), "b": torch.zeros(n, dtype=F64)}

    return gf.models.Recurrent(init, model.start, model.step)


def test_the_capacity_of_a_delay_line():
    """It holds u_{t-1} to u_{t-n+1} (and u_t, which is no memory): n - 1 delays exactly, the others by chance."""
    n, length = 8, 1000
    found = gf.diagnose.memory_capacity(delay_line(n), delays=20, length=length)
    assert found.hidden == n
    assert float(found.by_delay[: n - 1].min()) > 1 - 1e-9
    # Squared correlations of independent values over 500 steps are chi^2_1 / 500: beyond 40 / 500 with chance 3e-10.
    assert float(found.by_delay[n - 1 :].max()) < 40 / (length / 2)
    assert found.total == pytest.approx(float(found.by_delay.sum()))


def test_capacity_is_at_most_the_size_and_grows_with_the_radius():
    n = 30
    totals = []
    for radius in (0.1, 0.5, 0.9):
        model = gf.models.echo_state(1, n, spectral_radius=radius, input_scale=0.1, dtype=F64)
        totals.append(gf.diagnose.memory_capacity(model, length=3000).total)
    assert totals == sorted(totals)
    assert totals[0] < 0.6 * totals[-1]
    # 60 delays by chance: each chi^2_1 / 1500 in the mean 7e-4, a sum beyond 200 / 1500 with chance below 1e-15
    assert totals[-1] <= n + 200 / 1500


def test_a_reservoir_that_is_read_a_step_late_is_caught():
    n = 8
    model = delay_line(n)

    def late(params, h, x):
        return torch.cat([x * 0, model.step(params, h, x)[:-1]])

    found = gf.diagnose.memory_capacity(gf.models.Recurrent(model.init, model.start, late), delays=20, length=1000)
    assert float(found.by_delay[: n - 1].min()) < 0.5


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"delays": 0}, ValueError, "delays=0"),
        ({"length": 1}, ValueError, "length=1"),
        ({"ridge": -1.0}, ValueError, r"ridge=-1\.0"),
        ({"model": torch.nn.RNN(1, 2)}, TypeError, "got a RNN"),
    ],
)
def test_bad_capacity(options, kind, text):
    with pytest.raises(kind, match=text):
        gf.diagnose.memory_capacity(**{"model": gf.models.gru(1, 2), **options})
