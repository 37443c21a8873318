"""Recurrent modules and step functions, against torch's own layers and dense autograd in float64."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import resource
import sys

import pytest
import torch
from torch import nn

import gradfunc as gf
from gradfunc.diagnose._recurrence import _exponents, _gradients
from gradfunc.diagnose._recurrence._exponents import exponents
from gradfunc.diagnose._recurrence._jacobians import Constant

F64 = torch.float64
B, T, D, H = 3, 7, 2, 4


def last(output, target):
    """Squared error of the last output of a recurrent layer, `(y, state)`, one loss a sample."""
    return (output[0][:, -1] - target).square().sum(1)


def of_states(states, target):
    return (states[:, -1] - target).square().sum(1)


LAYERS = {
    "RNN": lambda: nn.RNN(D, H, batch_first=True),
    "RNN, relu, time first": lambda: nn.RNN(D, H, nonlinearity="relu"),
    "GRU, two layers": lambda: nn.GRU(D, H, num_layers=2, batch_first=True),
    "LSTM": lambda: nn.LSTM(D, H, batch_first=True),
    "LSTM, two layers, projection": lambda: nn.LSTM(D, H + 1, num_layers=2, proj_size=H, batch_first=True),
    "LSTM, no bias": lambda: nn.LSTM(D, H, bias=False, batch_first=True),
}
CELLS = {
    "RNNCell": lambda: nn.RNNCell(D, H),
    "RNNCell, relu": lambda: nn.RNNCell(D, H, nonlinearity="relu"),
    "GRUCell": lambda: nn.GRUCell(D, H),
    "LSTMCell": lambda: nn.LSTMCell(D, H),
}


def layer(name):
    torch.manual_seed(1)
    module = LAYERS[name]().double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(B, T, D, generator=generator, dtype=F64)
    target = torch.randn(B, H, generator=generator, dtype=F64)
    model = gf.stateless(module) if module.batch_first else gf.stateless(module, in_dims=1)
    return module, model, x if module.batch_first else x.transpose(0, 1), target


def by_torch(module, x, b, start, stop, z=None):
    """The flat state behind steps start to stop of sample b by torch's own operator, from z or from zeros."""
    x = x if module.batch_first else x.transpose(0, 1)
    shapes = [(module.num_layers, module.proj_size or module.hidden_size)] if isinstance(module, nn.LSTM) else []
    shapes.append((module.num_layers, module.hidden_size))
    sizes = [math.prod(shape) for shape in shapes]
    z = torch.zeros(sum(sizes), dtype=F64) if z is None else z
    if start == stop:
        return z
    given = [part.view(shape) for part, shape in zip(z.split(sizes), shapes, strict=True)]
    steps = x[b, start:stop]
    out = module(steps, tuple(given) if len(given) == 2 else given[0])[1] if module.batch_first else None
    if out is None:
        out = module(steps, given[0])[1]
    return torch.cat([part.flatten() for part in (out if isinstance(out, tuple) else (out,))])


def jacobian(module, x, b, start, stop):
    at = by_torch(module, x, b, 0, start).detach()
    return torch.autograd.functional.jacobian(lambda z: by_torch(module, x, b, start, stop, z), at)


@pytest.mark.parametrize("name", LAYERS)
def test_jacobians_of_layers_are_torchs(name):
    module, model, x, target = layer(name)

    def criterion(output, target):
        y = output[0] if module.batch_first else output[0].transpose(0, 1)
        return (y[:, -1] - target).square().sum(1)

    report = gf.diagnose.recurrence(model, criterion, (x, target), samples=2)
    assert (report.samples, report.batch_size, report.steps) == (2, B, T)
    for b in range(2):
        for t in range(1, T + 1):
            want = torch.linalg.svdvals(jacobian(module, x, b, t - 1, t))
            torch.testing.assert_close(report.step_spectra[b, t - 1], want, rtol=1e-10, atol=1e-13)
            assert report.step_norms[b, t - 1] == report.step_spectra[b, t - 1, 0]
        for k in range(T + 1):
            want = torch.linalg.matrix_norm(jacobian(module, x, b, T - k, T), 2)
            torch.testing.assert_close(report.growth[b, k], want, rtol=1e-10, atol=1e-14)
        want = torch.linalg.svdvals(jacobian(module, x, b, 0, T))
        torch.testing.assert_close(report.log_spectrum[b].exp(), want, rtol=1e-8, atol=1e-14)
    json.dumps(report.to_dict())
    assert "Back through time" in str(report)


def check_gradients(report, cell, xs, target):
    """`|dL_i/dh_t|` by torch's own cell in a loop, one sample at a time."""
    for b in range(len(xs)):
        h = torch.zeros(1, H, dtype=F64, requires_grad=True)
        c = torch.zeros(1, H, dtype=F64, requires_grad=True)
        gated = isinstance(cell, nn.LSTMCell)
        states = [(h, c) if gated else (h,)]
        for x in xs[b]:
            out = cell(x[None], states[-1] if gated else states[-1][0])
            # copies: h is computed from c, but the state is the two side by side
            states.append(tuple(part.clone() for part in (out if gated else (out,))))
        flat = [part for state in states for part in state]
        loss = (states[-1][0][0] - target[b]).square().sum()
        found = torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)
        each = len(states[0])
        for t in range(T + 1):
            want = torch.cat(found[t * each : (t + 1) * each]).norm()
            torch.testing.assert_close(report.gradients[b, t], want, rtol=1e-11, atol=1e-16)


def cell_problem(name):
    torch.manual_seed(3)
    return CELLS[name]().double(), torch.randn(B, T, D, dtype=F64), torch.randn(B, H, dtype=F64)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_through_time_of_cells_are_torchs(name):
    cell, xs, target = cell_problem(name)
    report = gf.diagnose.recurrence(cell, of_states, (xs, target))
    check_gradients(report, cell, xs, target)


def test_gradients_of_another_step_are_caught():
    cell, xs, target = cell_problem("GRUCell")
    report = gf.diagnose.recurrence(cell, of_states, (xs.roll(1, 1), target))
    with pytest.raises(AssertionError):
        check_gradients(report, cell, xs, target)


def test_a_layer_inside_a_model_its_cell_and_its_step_function_agree():
    torch.manual_seed(4)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.head = nn.Linear(D, D), nn.RNN(D, H, batch_first=True), nn.Linear(H, H)

        def forward(self, x):
            return self.head(self.rnn(self.embed(x))[0][:, -1])

    net = Net().double()
    x, target = torch.randn(B, T, D, dtype=F64), torch.randn(B, H, dtype=F64)
    whole = gf.diagnose.recurrence(net, nn.MSELoss(), (x, target))
    p = {name: value.detach() for name, value in net.named_parameters()}

    def step(p, h, x):
        x = p["embed.weight"] @ x + p["embed.bias"]
        z = p["rnn.weight_ih_l0"] @ x + p["rnn.bias_ih_l0"] + p["rnn.weight_hh_l0"] @ h + p["rnn.bias_hh_l0"]
        return torch.tanh(z)

    def criterion(states, target):
        return (nn.functional.linear(states[:, -1], p["head.weight"], p["head.bias"]) - target).square().sum(1)

    by_step = gf.diagnose.recurrence(step, criterion, (x, target), params=p, state=torch.zeros(H, dtype=F64))
    for field in ("step_norms", "log_growth", "exponents", "gradients"):
        torch.testing.assert_close(getattr(whole, field), getattr(by_step, field), rtol=1e-10, atol=1e-12)
    assert whole.horizons == by_step.horizons


def test_a_step_whose_state_is_a_tuple_and_has_dimensions():
    def step(p, state, x):
        a, b = state
        return torch.tanh(a @ p["w"] + x), b + a.sum()

    p, xs = {"w": torch.randn(2, 2, dtype=F64)}, torch.randn(2, 5, 3, 2, dtype=F64)
    start = (torch.zeros(3, 2, dtype=F64), torch.zeros((), dtype=F64))
    report = gf.diagnose.recurrence(step, None, xs, params=p, state=start)
    assert report.size == 7
    assert report.gradients is None
    assert report.gradient_horizons is None
    assert report.clipping == ()
    want = torch.autograd.functional.jacobian(
        lambda z: torch.cat([v.flatten() for v in step(p, (z[:6].view(3, 2), z[6]), xs[0, 0])]),
        torch.zeros(7, dtype=F64),
    )
    torch.testing.assert_close(report.step_spectra[0, 0], torch.linalg.svdvals(want))


# --- Lyapunov exponents -------------------------------------------------------------------------------------------


def upper():
    w = torch.triu(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=F64), 1)
    return w + torch.diag(torch.tensor([1.3, -0.9, 0.6, 0.4, 0.1], dtype=F64))


def check_exponents():
    """Of a linear system, behind a warm-up, the logarithms of the moduli: ratios of 2/3 a step leave 1e-17 of 100."""
    q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=F64))[0]
    w = q @ upper() @ q.T
    found = exponents(Constant(w, 300), 5, 120, 0)
    torch.testing.assert_close(found, upper().diagonal().abs().log(), rtol=0, atol=1e-11)


def test_exponents_of_a_linear_system_are_the_logarithms_of_its_eigenvalues():
    check_exponents()
    p = {"w": upper()}
    report = gf.diagnose.recurrence(
        lambda p, h, x: p["w"] @ h + x, None, torch.zeros(1, 300, 5, dtype=F64), params=p,
        state=torch.zeros(5, dtype=F64), warmup=120,
    )  # fmt: skip
    torch.testing.assert_close(report.exponents[0], upper().diagonal().abs().log(), rtol=0, atol=1e-11)


def test_exponents_without_qr_are_caught(monkeypatch):
    class Linalg:
        @staticmethod
        def qr(a):
            lengths = a.norm(dim=0)
            return a / lengths, torch.diag(lengths)

    class Torch:
        linalg = Linalg

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(_exponents, "torch", Torch())
    with pytest.raises(AssertionError):
        check_exponents()


def test_all_exponents_sum_to_the_mean_log_determinant():
    cell, xs, _ = cell_problem("GRUCell")
    report = gf.diagnose.recurrence(cell, None, xs, exponents=100)
    assert report.exponents.shape == (B, H)
    want = report.step_spectra.log().sum(2).mean(1)
    torch.testing.assert_close(report.exponents.sum(1), want, rtol=1e-11, atol=1e-11)


def test_exponents_of_a_rotation_and_of_a_map_that_forgets():
    c, s = math.cos(0.4), math.sin(0.4)
    w = 0.8 * torch.tensor([[c, -s], [s, c]], dtype=F64)
    torch.testing.assert_close(exponents(Constant(w, 50), 2, 0, 0), torch.full((2,), math.log(0.8), dtype=F64))
    assert exponents(Constant(torch.zeros(2, 2, dtype=F64), 3), 1, 0, 0).tolist() == [-math.inf]


# --- clipping -----------------------------------------------------------------------------------------------------


def rows(report):
    return {row.how: row for row in report.clipping}


@pytest.mark.parametrize("name", ["RNN", "GRU, two layers", "LSTM"])
def test_hooks_on_parameters_are_clipping_afterwards_also_in_plain_torch(name):
    module, _, x, target = layer(name)
    limit = 1e-3
    found = rows(gf.diagnose.recurrence(module, last, (x, target), clip_value=limit))
    assert found["on parameters"].equals == "after"
    assert found["on the state"].equals is None
    after, hooked = copy.deepcopy(module), copy.deepcopy(module)
    last(after(x), target).mean().backward()
    nn.utils.clip_grad_value_(after.parameters(), limit)
    for p in hooked.parameters():
        p.register_hook(lambda g: g.clamp(-limit, limit))
    last(hooked(x), target).mean().backward()
    for a, b in zip(after.parameters(), hooked.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    norm = math.hypot(*(float(p.grad.norm()) for p in after.parameters()))
    assert found["after"].norm == pytest.approx(norm, rel=1e-12)
    assert abs(found["on the state"].angle - found["after"].angle) > 1


def test_hooks_by_norm_are_each_parameters_own():
    module, _, x, target = layer("GRU, two layers")
    found = rows(gf.diagnose.recurrence(module, last, (x, target), clip_norm=1e-2))
    assert found["on parameters"].equals == "after, each parameter"
    assert found["after, each parameter"].norm == pytest.approx(1e-2 * math.sqrt(8), rel=1e-12)  # 8 tensors
    assert found["after"].norm == pytest.approx(1e-2, rel=1e-12)
    assert found["after"].equals is None


def check_state_clip():
    """Against a loop over torch's cell with hooks on the state of every step, h_0 to h_T."""
    cell, xs, target = cell_problem("RNNCell")
    limit = 0.05
    found = rows(gf.diagnose.recurrence(cell, of_states, (xs, target), clip_norm=limit))

    def clip(g):
        return g * (limit / g.norm(dim=1, keepdim=True)).clamp(max=1)

    other = copy.deepcopy(cell)
    h = torch.zeros(B, H, dtype=F64)
    for t in range(T):
        h = other(xs[:, t], h)
        h.register_hook(clip)
    (h - target).square().sum(1).mean().backward()
    norm = math.hypot(*(float(p.grad.norm()) for p in other.parameters()))
    assert found["on the state"].norm == pytest.approx(norm, rel=1e-12)
    assert found["on the state"].angle > 1
    assert found["after"].norm == pytest.approx(min(limit, found["none"].norm), rel=1e-12)
    assert found["after"].angle <= 1e-12


def test_clipping_on_the_state_is_a_hook_on_every_state():
    check_state_clip()


def test_clipping_elsewhere_is_caught(monkeypatch):
    def states_themselves(z, *, norm, batch_dims):
        return z * (norm / z.norm(dim=1, keepdim=True).clamp(min=norm))

    once = iter([True])

    def first_state_only(z, **options):
        return gf.clip_cotangent(z, **options) if next(once, False) else z

    for mutant in (states_themselves, first_state_only):
        monkeypatch.setattr(_gradients, "clip_cotangent", mutant)
        with pytest.raises(AssertionError):
            check_state_clip()


# --- verdicts -----------------------------------------------------------------------------------------------------


def linear_step(value, steps=40, **options):
    p, xs = {"w": torch.tensor([[value]], dtype=F64)}, torch.zeros(1, steps, 1, dtype=F64)

    def criterion(states, target):
        return states[:, -1].sum(1) * target

    return gf.diagnose.recurrence(
        lambda p, h, x: p["w"] @ h + x, criterion, (xs, torch.ones(1, dtype=F64)), params=p,
        state=torch.ones(1, dtype=F64), **options,
    )  # fmt: skip


def test_horizons_in_closed_form():
    for value in (0.5, 0.9, 0.99):
        report = linear_step(value)
        want = min(40, math.floor(math.log(0.01) / math.log(value)))
        assert report.horizons == report.gradient_horizons == (want,)
        assert report.vanishes == (value**40 < 0.01) == (not report.ok)
        torch.testing.assert_close(report.gradients[0].flip(0), value ** torch.arange(41, dtype=F64))
    assert linear_step(1.2).explodes
    assert not linear_step(1.2).ok
    assert linear_step(1.0).ok
    assert linear_step(0.5, share=1e-6).horizons == (19,)


def test_torchs_default_lstm_vanishes_and_the_forget_bias_decides():
    xs = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    reports = [
        gf.diagnose.recurrence(gf.models.lstm(1, 16, forget_bias=b, dtype=F64), None, xs) for b in (0.0, 1.0, 3.0, 6.0)
    ]
    assert [report.vanishes for report in reports] == [True, True, False, False]
    ends = [float(report.log_growth[:, -1].median()) for report in reports]
    assert ends == sorted(ends)
    torch.manual_seed(0)
    assert gf.diagnose.recurrence(nn.LSTM(1, 16, batch_first=True).double(), None, xs).vanishes


# --- matrix-free --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GRU, two layers", "LSTM, two layers, projection"])
def test_matrix_free_equals_dense(name, device):
    module, _, x, target = layer(name)
    module, x, target = module.to(device), x.to(device), target.to(device)
    full = gf.diagnose.recurrence(module, last, (x, target), samples=2)
    free = gf.diagnose.recurrence(module, last, (x, target), samples=2, dense=0)
    assert free.matrix_free
    assert free.step_spectra is None
    assert free.lags == (0, 1, 2, 4, 7)
    assert free.at == tuple(range(1, T + 1))
    torch.testing.assert_close(free.log_growth, full.log_growth[:, list(free.lags)], rtol=0, atol=1e-8)
    torch.testing.assert_close(free.step_norms, full.step_norms, rtol=1e-8, atol=0)
    torch.testing.assert_close(free.exponents, full.exponents, rtol=0, atol=1e-9)
    torch.testing.assert_close(free.gradients, full.gradients)
    assert free.residual <= 1e-3
    json.dumps(free.to_dict())


def test_a_product_that_underflows_in_its_own_precision():
    p = {"w": torch.eye(3) * 0.1}
    for dense in (128, 0):
        report = gf.diagnose.recurrence(
            lambda p, h, x: p["w"] @ h + x, None, torch.zeros(1, 300, 3), params=p, state=torch.zeros(3), dense=dense
        )
        assert float(report.log_growth[0, -1]) == pytest.approx(300 * math.log(0.1), rel=1e-6)  # 1e-300 in float32


@pytest.mark.slow
def test_a_thousand_hidden_units_over_512_steps_in_memory():
    torch.manual_seed(0)
    net = nn.RNN(16, 1024, batch_first=True)
    x, target = torch.randn(2, 512, 16), torch.randn(2, 1024)
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    report = gf.diagnose.recurrence(net, last, (x, target), samples=1, exponents=4)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    assert report.matrix_free
    assert report.residual <= 1e-3
    # All Jacobians would be 2 GiB in float32; what is held is states, gates, and some copies of the weight's 4 MiB.
    assert grown <= 2**30
    w = net.weight_hh_l0.detach()
    one = torch.linalg.matrix_norm(torch.diag(1 - net(x[:1])[1][0, 0].detach() ** 2) @ w, 2)
    assert report.step_norms[0, -1] == pytest.approx(float(one), rel=1e-4)


# --- purity and what is refused -----------------------------------------------------------------------------------


def test_nothing_is_left_behind():
    module, _, x, target = layer("LSTM")
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    keys, rng = set(vars(module)), torch.random.get_rng_state()
    first = gf.diagnose.recurrence(module, last, (x, target))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert set(vars(module)) == keys
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    for p in module.parameters():
        assert p.grad is None
        assert not p._backward_hooks
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert first.to_dict() == gf.diagnose.recurrence(module, last, (x, target)).to_dict()


def test_draws_of_other_layers_repeat_and_are_its_own():
    net = nn.Sequential(nn.Dropout(0.5), nn.RNN(D, H, batch_first=True))
    for criterion, batch in ((last, (X, Y)), (None, X)):
        before = torch.random.get_rng_state()
        first = gf.diagnose.recurrence(net, criterion, batch)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert first.to_dict() == gf.diagnose.recurrence(net, criterion, batch).to_dict()


def test_a_model_in_eval_mode_may_hold_batch_norms():
    assert gf.diagnose.recurrence(Normed().eval(), last, (X, Y)).size == H


def test_linear_nets_vanish_as_well_and_a_sigmoid_adds_a_quarter_at_most():
    xs = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    make = functools.partial(gf.models.rnn, 3, 8, dtype=F64)
    plain = gf.diagnose.recurrence(make(activation=lambda z: z), None, xs)
    bent = gf.diagnose.recurrence(make(activation=torch.sigmoid), None, xs)
    assert plain.vanishes
    assert bent.vanishes
    norm = float(torch.linalg.matrix_norm(make().init()["w_hh"], 2))
    assert float(plain.step_norms.max()) == pytest.approx(norm, rel=1e-12)
    assert float(bent.step_norms.max()) <= norm / 4


X, Y = torch.randn(B, T, D), torch.zeros(B, H)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.RNN(D, H, batch_first=True), nn.RNN(H, H, batch_first=True)

    def forward(self, x):
        return self.b(self.a(x)[0])


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(D, H)

    def forward(self, x):
        return (self.cell(x[:, 0])[:, None],)


class Other(nn.RNNCell):
    def forward(self, x, h):
        return h


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.rnn = nn.BatchNorm1d(T), nn.RNN(D, H, batch_first=True)

    def forward(self, x):
        return self.rnn(self.norm(x))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(D, H, batch_first=True)

    def forward(self, x):
        return self.rnn(nn.utils.rnn.pack_padded_sequence(x, [T] * len(x), batch_first=True))


def run(system, batch=(X, Y), criterion=last, **options):
    return lambda: gf.diagnose.recurrence(system, criterion, batch, **options)


def poisoned():
    x = X.clone()
    x[1, 3] = math.nan
    return x, Y


def stepping(p, h, x):
    return torch.tanh(h)


BAD = {
    "no recurrence": (run(nn.Linear(D, H), X, None), ValueError, "a model without a recurrent layer"),
    "two layers": (run(Twice()), ValueError, "two recurrent layers"),
    "a cell in a loop": (run(Loop()), ValueError, "calls a cell"),
    "a cell of one's own": (run(Other(D, H), X, None), TypeError, "an? Other, which may step otherwise"),
    "packed": (run(Packed()), ValueError, "a packed sequence"),
    "two directions": (
        run(nn.RNN(D, H, batch_first=True, bidirectional=True), None, None), TypeError, "no batch",
    ),
    "bidirectional": (
        run(nn.RNN(D, H, batch_first=True, bidirectional=True), X, None), ValueError, "a bidirectional layer",
    ),
    "dropout": (run(nn.RNN(D, H, 2, dropout=0.5, batch_first=True)), ValueError, "dropout between layers"),
    "batch statistics": (run(Normed()), ValueError, "normalises by the statistics of the batch"),
    "time for batch": (run(nn.RNN(D, H), X, None), ValueError, "runs 7 sequences for 3 samples"),
    "NaN": (run(nn.RNN(D, H, batch_first=True), poisoned()), ValueError, "sample 1 that is not finite at step 4"),
    "steps": (run(nn.RNN(D, H, batch_first=True), steps=3), TypeError, "with steps="),
    "params of a model": (run(nn.RNN(D, H, batch_first=True), params={}), TypeError, "with params="),
    "a step without params": (run(stepping, state=torch.zeros(H)), TypeError, "no params"),
    "a step without a state": (run(stepping, params={}), TypeError, "no state"),
    "a state of integers": (run(stepping, params={}, state=torch.zeros(H, dtype=int)), TypeError, "real floating"),
    "a state that is a number": (run(stepping, params={}, state=0.0), TypeError, "a float"),
    "another shape": (
        run(lambda p, h, x: h[:2], params={"w": torch.ones(1)}, state=torch.zeros(H), criterion=of_states),
        ValueError, "the next state, of the same shapes",
    ),
    "no time": (run(nn.RNNCell(D, H), (X[:, :0], Y), of_states), ValueError, "T >= 1"),
    "warm-up of all": (run(nn.RNN(D, H, batch_first=True), warmup=T), ValueError, "warmup=7 of 7 steps"),
    "a number": (run(3.0), TypeError, "got a float"),
    "a scalar loss": (
        run(nn.RNN(D, H, batch_first=True), criterion=lambda output, target: last(output, target).mean()),
        ValueError, "a scalar",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call()


def test_gradients_that_are_not_finite_are_no_health():
    module, _, x, target = layer("LSTM")
    broken = gf.diagnose.recurrence(module, lambda out, y: last(out, y) * math.nan, (x[:, :2], target))
    assert not broken.ok
    assert f"|dL/dh_t| is not finite for {len(x)} of {len(x)} samples." in str(broken)
    assert gf.diagnose.recurrence(module, last, (x[:, :2], target)).ok


def test_a_loss_of_the_first_state_says_nothing_of_the_last():
    module, _, x, target = layer("LSTM")
    text = str(gf.diagnose.recurrence(module, lambda out, y: out[0][:, 0].sum(1), (x[:, :3], target)))
    assert f"|dL/dh_T| is 0 for {len(x)} of {len(x)} samples." in text
    assert "of its last value" not in text
    report = gf.diagnose.recurrence(module, last, (x[:, :3], target))
    some = torch.tensor([[0.5, 1.0, 0.5, 1.0], [1.0, 0.0, 0.0, 0.0]], dtype=F64)
    text = str(dataclasses.replace(report, gradients=some, batch_size=2))
    assert "|dL/dh_T| is 0 for 1 of 2 samples." in text
    assert "|dL/dh_t| stays above 0.01 of its last value for 3 steps back (1 samples)." in text


def test_one_step_of_a_model():
    module, _, x, target = layer("LSTM")
    report = gf.diagnose.recurrence(module, last, (x[:, :1], target))
    assert report.lags == (0, 1)
    torch.testing.assert_close(report.growth[:, 1], report.step_norms[:, 0], rtol=1e-12, atol=0)
    assert "T = 1" in str(report)
