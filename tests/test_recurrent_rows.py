"""Rows of recurrent networks by every engine, for generated options; plans last, and only the factored engine's scan is
by hand."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from oracle import check_queries, close_rows, truth, truth_batched
from tiers import every
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradfunc as gf
from gradfunc import _recurrent
from gradfunc._swap import _recurrence

F64 = torch.float64
ENGINES = ["factored", "vmap", "loop"]
KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
SAMPLES, INPUTS, HIDDEN = 5, 3, 4


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """torch warns of itself at the first derivative in forward mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.sin, (torch.ones(()),), (torch.ones(()),))


class Net(nn.Module):
    """Outputs and last states of a recurrent layer; `first` is "none", "learned" or "given" with the data."""

    def __init__(self, kind, first, options):
        super().__init__()
        self.layer, self.first = KINDS[kind](INPUTS, HIDDEN, dtype=F64, **options), first
        lead = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        self.sizes = [options.get("proj_size") or HIDDEN, *([HIDDEN] if kind == "lstm" else [])]
        self.lead, self.axis = lead, 0 if options.get("batch_first") else 1
        if first == "learned":
            self.states = nn.ParameterList([torch.randn(lead, 1, n, dtype=F64) for n in self.sizes])

    def forward(self, x, *given):
        """x of a batch, or of one sample without a batch dimension."""
        alone = x.dim() == 2
        states = [s[:, 0] if alone else s.expand(-1, x.shape[self.axis], -1).contiguous() for s in self._states(given)]
        hx = () if not states else ((states[0],) if len(self.sizes) == 1 else (tuple(states),))
        y, last = self.layer(x, *hx)
        last = last if isinstance(last, tuple) else (last,)
        axis = 0 if alone else self.axis
        parts = [
            y.unsqueeze(0) if alone else y.movedim(axis, 0),
            *(s.unsqueeze(0) if alone else s.movedim(1, 0) for s in last),
        ]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def _states(self, given):
        return list(self.states) if self.first == "learned" else given


def score(out):
    return (out.sin() * torch.linspace(0.5, 1.5, out.shape[1], dtype=F64)).sum(1)


class Problem:
    """A network drawn by a seed, its losses natively and of one sample, and batches."""

    def __init__(self, seed, kind=None, first=None, length=None, **fixed):
        draw = random.Random(seed)
        kind = kind or draw.choice(list(KINDS))
        options = {
            "num_layers": draw.choice([1, 2]),
            "bidirectional": draw.random() < 0.5,
            "bias": draw.random() < 0.7,
            "batch_first": draw.random() < 0.5,
            **({"proj_size": draw.choice([0, 2])} if kind == "lstm" else {}),
            **fixed,
        }
        self.first = first or draw.choice(["none", "learned", "given"])
        self.length, self.alone = length or draw.choice([1, 2, 6]), draw.random() < 0.5
        torch.manual_seed(seed)
        self.net = Net(kind, self.first, options)
        self.model = gf.stateless(self.net)
        self.params, self.axis = dict(self.model.params), self.net.axis

    def batch(self, seed, size=SAMPLES):
        """x `[size, T, inputs]`, and states `[size, lead, n]`."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [(self.length, INPUTS)]
        shapes += [(self.net.lead, n) for n in self.net.sizes] if self.first == "given" else []
        return tuple(torch.randn(size, *shape, dtype=F64, generator=generator) for shape in shapes)

    def native(self, p, x, *given):
        x = x if self.axis == 0 else x.transpose(0, 1)
        return score(self.model(p, x, *(s.transpose(0, 1) for s in given)))

    def sample(self, p, x, *given):
        states = [s.unsqueeze(1) for s in given]
        return score(self.model(p, x if self.alone else x.unsqueeze(self.axis), *states))[0]


def learnt(f):
    """How often graphs were read anew."""
    return f._learnt.plans.learnt


def check(problem, mode, engine, size=SAMPLES, *, again=True):
    loss = problem.native if mode == "native" else problem.sample
    f = gf.per_sample_grads(loss, batched=mode == "native", engine=engine, verify=False)
    for seed in range(2 if again else 1):
        batch = problem.batch(seed, size)
        want = (truth_batched if mode == "native" else lambda *a: truth(a[0], a[1], size, a[2]))(
            loss, problem.params, batch
        )
        g = f(problem.params, *batch)
        assert g.engine == engine
        check_queries(g, want)
    if engine == "factored":
        assert learnt(f) == 1
    return g


@pytest.mark.parametrize("seed", every(4, range(24)))
@pytest.mark.parametrize("mode", ["native", "vmap"])
@pytest.mark.parametrize("engine", ENGINES)
def test_generated(seed, mode, engine):
    check(Problem(seed), mode, engine)


@pytest.mark.parametrize("kind", every(3, KINDS))
@pytest.mark.parametrize("mode", ["native", "vmap"])
@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 6])
def test_sizes(kind, mode, size, length):
    """As many samples as steps, too."""
    check(Problem(3, kind, "learned", length, num_layers=2, bidirectional=True), mode, "factored", size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["native", "vmap"])
def test_the_recurrent_weights_keep_their_structure(kind, mode):
    g = check(Problem(0, kind, "none", 6, num_layers=2, bidirectional=True), mode, "factored")
    uses = g._uses
    for name, used in uses.items():
        if "weight" in name:
            assert [use.kind for use in used] == ["outer"]
    recurrent = [use for name, used in uses.items() if "weight_hh" in name for use in used]
    assert {(use.operation, use.rule) for use in recurrent} == {("RecurrentProductBackward", "recurrent")}


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("mode", ["native", "vmap"])
def test_cells_in_a_loop_end_in_one_factor(cell, mode):
    net = cell(INPUTS, HIDDEN, dtype=F64)
    model = gf.stateless(net)

    def native(p, x):
        state = None
        for step in x.unbind(1):
            state = model(p, step, state)
        return score(state[0] if isinstance(state, tuple) else state)

    def sample(p, x):
        return native(p, x.unsqueeze(0))[0]

    x = torch.randn(SAMPLES, 6, INPUTS, dtype=F64)
    f = gf.per_sample_grads(native if mode == "native" else sample, batched=mode == "native", engine="factored")
    g = f(model.params, x)
    check_queries(g, truth_batched(native, model.params, (x,)))
    (factor,) = g._source.kept.grads["weight_hh"].factors
    assert {use.kind for use in g._uses["weight_hh"]} == {"outer"}
    assert factor.kind == "dense"  # rows are smaller than six products of two sides


def scans(monkeypatch):
    """Counts layers by scan."""
    counts = {"fast": 0, "plain": 0}
    for name in counts:
        real = getattr(_recurrent, name)

        def counted(*args, name=name, real=real, **options):
            counts[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(_recurrence, name, counted)
    return counts


@pytest.mark.parametrize("mode", ["native", "vmap"])
@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_factored_engine_scans_by_hand(mode, engine, monkeypatch):
    counts = scans(monkeypatch)
    check(Problem(0, "lstm", "none", num_layers=2, bidirectional=False), mode, engine, again=False)
    assert counts == {"fast": 2 if engine == "factored" else 0, "plain": 0}


def losses_of(net, out):
    model = gf.stateless(net)

    def native(p, x):
        return score(out(model, p, x).flatten(1))

    def sample(p, x):
        return native(p, x.unsqueeze(0))[0]

    return dict(model.params), native, sample


def check_losses(params, native, sample, x):
    for loss, batched in ((native, True), (sample, False)):
        if loss is None:
            continue
        want = truth_batched(native, params, (x,)) if batched else truth(sample, params, len(x), (x,))
        g = gf.per_sample_grads(loss, batched=batched, engine="factored")(params, x)
        check_queries(g, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_on_a_gradient(kind):
    """The loss differentiates through the layer, and is differentiated."""
    net = KINDS[kind](INPUTS, HIDDEN, batch_first=True, dtype=F64)
    model = gf.stateless(net)

    def native(p, x):
        x = x.detach().requires_grad_()
        y = model(p, x)[0].sin().flatten(1).sum(1)
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y + grad.square().flatten(1).sum(1)

    check_losses(dict(model.params), native, None, torch.randn(SAMPLES, 4, INPUTS, dtype=F64))


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_inside_the_loss(kind, monkeypatch):
    """What torch.func or forward-mode follows there is run in plain operations."""
    counts = scans(monkeypatch)
    net = KINDS[kind](INPUTS, HIDDEN, batch_first=True, dtype=F64)

    def by_func(model, p, x):
        return torch.func.grad(lambda x: model(p, x)[0].sin().sum())(x)

    def by_jvp(model, p, x):
        return torch.func.jvp(lambda x: model(p, x)[0], (x,), (torch.ones_like(x),))[1]

    x = torch.randn(SAMPLES, 4, INPUTS, dtype=F64)
    for out in (by_func, by_jvp):
        check_losses(*losses_of(net, out), x)
    assert counts["plain"]
    assert not counts["fast"]


def test_forward_mode_inside_the_loss():
    net = nn.GRU(INPUTS, HIDDEN, batch_first=True, dtype=F64)

    def dual(model, p, x):
        with forward_ad.dual_level():
            y = model(p, forward_ad.make_dual(x, torch.ones_like(x)))[0]
            return torch.cat(tuple(forward_ad.unpack_dual(y)), 2)

    params, native, _ = losses_of(net, dual)
    x = torch.randn(SAMPLES, 4, INPUTS, dtype=F64)
    rows = gf.per_sample_grads(native, batched=True, engine="factored")(params, x).materialize()
    model = gf.stateless(net)

    def by_jvp(p, x):
        y, tangent = torch.func.jvp(lambda x: model(p, x)[0], (x,), (torch.ones_like(x),))
        return score(torch.cat([y, tangent], 2).flatten(1))

    close_rows(rows, truth_batched(by_jvp, params, (x,)).rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vmap_inside_the_loss(kind, monkeypatch):
    """Sequences of a sample, mapped over: folded twice, and never in plain operations."""
    counts = scans(monkeypatch)
    net = KINDS[kind](INPUTS, HIDDEN, batch_first=True, dtype=F64)

    def looped(model, p, x):
        return torch.stack([model(p, one)[0] for one in x.unbind(1)], 1)

    def mapped(model, p, x):
        return torch.func.vmap(lambda one: model(p, one)[0], in_dims=1, out_dims=1)(x)

    params, truly, _ = losses_of(net, looped)
    x = torch.randn(SAMPLES, 2, 4, INPUTS, dtype=F64)
    _, native, sample = losses_of(net, mapped)
    for loss, batched in ((native, True), (sample, False)):
        g = gf.per_sample_grads(loss, batched=batched, engine="factored")(params, x)
        check_queries(g, truth_batched(truly, params, (x,)))
    assert counts["fast"]
    assert not counts["plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_each_samples_own(kind, monkeypatch):
    counts = scans(monkeypatch)
    net = KINDS[kind](INPUTS, HIDDEN, batch_first=True, dtype=F64)
    model = gf.stateless(net)

    def sample(p, x):
        own = {name: value * (1 + x.mean()) for name, value in p.items()}
        return score(model(own, x.unsqueeze(0))[0].flatten(1))[0]

    params, x = dict(model.params), torch.randn(SAMPLES, 4, INPUTS, dtype=F64)
    g = gf.per_sample_grads(sample, engine="factored")(params, x)
    check_queries(g, truth(sample, params, SAMPLES, (x,)))
    assert counts["plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_that_all_samples_share(kind):
    """Made of parameters alone: what stops at its states goes back through the layer in several cotangents at once."""

    class Prompted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = KINDS[kind](INPUTS, HIDDEN, batch_first=True, dtype=F64)
            self.prompt, self.head = (
                nn.Parameter(torch.randn(1, 4, INPUTS, dtype=F64)),
                nn.Linear(INPUTS, HIDDEN, dtype=F64),
            )

        def forward(self, x):
            return self.layer(self.prompt)[0] * self.head(x)

    check_losses(*losses_of(Prompted(), lambda model, p, x: model(p, x)), torch.randn(SAMPLES, 4, INPUTS, dtype=F64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed(kind, bidirectional):
    """In plain operations: rows of a packed sequence belong to fewer and fewer samples."""
    net = KINDS[kind](INPUTS, HIDDEN, bidirectional=bidirectional, batch_first=True, dtype=F64)
    lengths = torch.tensor([4, 1, 3, 4, 2])

    def packed(model, p, x):
        given = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(model(p, given)[0], batch_first=True)[0]

    params, native, _ = losses_of(net, packed)
    check_losses(params, native, None, torch.randn(SAMPLES, 4, INPUTS, dtype=F64))


@pytest.mark.parametrize("mode", ["native", "vmap"])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers(kind, mode):
    """The same numbers by every engine."""
    net = KINDS[kind](INPUTS, HIDDEN, num_layers=3, bidirectional=True, dropout=0.4, batch_first=True, dtype=F64)
    params, native, sample = losses_of(net, lambda model, p, x: model(p, x)[0])
    x = torch.randn(SAMPLES, 4, INPUTS, dtype=F64)
    native_too = {"batched": True} if mode == "native" else {}
    rows = {}
    for engine in ENGINES:
        f = gf.per_sample_grads(native if native_too else sample, engine=engine, randomness="different", **native_too)
        rows[engine] = f.at(step=0)(params, x).materialize()
    for engine in ("factored", "vmap"):
        close_rows(rows[engine], rows["loop"], engine)


def test_steps_that_are_samples():
    """A loss for every step of one sequence: they share what came before, but for a recurrent weight of 0."""
    net = nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", dtype=F64)
    model = gf.stateless(net)
    params = dict(model.params)

    def native(p, x):
        return score(model(p, x.unsqueeze(1))[0].squeeze(1))

    f = gf.per_sample_grads(native, batched=True, engine="factored", verify=False)
    for weight in (torch.zeros_like(params["weight_hh_l0"]), params["weight_hh_l0"]):
        own = {**params, "weight_hh_l0": weight}
        x = torch.randn(SAMPLES, INPUTS, dtype=F64)
        check_queries(f(own, x), truth_batched(native, own, (x,)))
    assert learnt(f) == 2
