"""Recurrent models as functions, against torch's layers and their own formulas."""

from __future__ import annotations

import pytest
import torch
from oracle import same_bits, storages
from torch import nn

import gradfunc as gf

F64 = torch.float64
X = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)

MODELS = {
    "rnn": lambda **o: gf.models.rnn(3, 4, **o),
    "rnn, orthogonal": lambda **o: gf.models.rnn(3, 4, recurrent="orthogonal", **o),
    "leaky": lambda **o: gf.models.leaky_rnn(3, 4, leak=0.3, **o),
    "skip": lambda **o: gf.models.skip_rnn(3, 4, delay=2, **o),
    "delay": lambda **o: gf.models.skip_rnn(3, 4, delay=2, direct=False, **o),
    "lstm": lambda **o: gf.models.lstm(3, 4, **o),
    "gru": lambda **o: gf.models.gru(3, 4, **o),
    "echo state": lambda **o: gf.models.echo_state(3, 4, **o),
}


@pytest.mark.parametrize(("name", "kind"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_torchs_layers(name, kind):
    model = MODELS[name](dtype=F64)
    params, layer = model.init(), kind(3, 4, batch_first=True).double()
    bias = params.get("b")
    weights = {
        "weight_ih_l0": params["w_ih"],
        "weight_hh_l0": params["w_hh"],
        "bias_ih_l0": bias if bias is not None else params["b_ih"],
        "bias_hh_l0": torch.zeros_like(bias) if bias is not None else params["b_hh"],
    }
    layer.load_state_dict(weights)
    torch.testing.assert_close(model.apply(params, X), layer(X)[0], rtol=1e-13, atol=1e-14)


def test_leaky_skip_and_reservoir_by_their_formulas():
    for name, leak in (("rnn", 1.0), ("leaky", 0.3), ("echo state", 1.0)):
        model = MODELS[name](dtype=F64)
        p, h = model.init(), torch.zeros(2, 4, dtype=F64)
        for t in range(6):
            h = (1 - leak) * h + leak * torch.tanh(X[:, t] @ p["w_ih"].T + p["b"] + h @ p["w_hh"].T)
            torch.testing.assert_close(model.apply(p, X)[:, t], h, rtol=1e-13, atol=1e-14)
    for name in ("skip", "delay"):
        model = MODELS[name](dtype=F64)
        p, past = model.init(), [torch.zeros(2, 4, dtype=F64)] * 2
        for t in range(6):
            z = X[:, t] @ p["w_ih"].T + p["b"] + past[-2] @ p["w_skip"].T
            past.append(torch.tanh(z + past[-1] @ p["w_hh"].T if name == "skip" else z))
            torch.testing.assert_close(model.apply(p, X)[:, t], past[-1], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_pure_and_takes_one_sample(name):
    before = torch.random.get_rng_state()
    a, b, other = MODELS[name]().init(), MODELS[name]().init(), MODELS[name](seed=5).init()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_bits(a, b)
    assert not torch.equal(a["w_ih"], other["w_ih"])
    model = gf.stateless(MODELS[name](dtype=F64))
    rows = torch.stack([model.sample(model.params, x) for x in X])
    torch.testing.assert_close(rows, model(model.params, X))
    g = gf.per_sample_grads(lambda p, x: model.sample(p, x)[-1].square().sum())(model.params, X)
    assert g.norms().shape == (2,)
    pure = MODELS[name]()
    assert not storages(pure.init()) & storages(pure.init())


def test_initial_values():
    w = gf.models.rnn(3, 20, recurrent="orthogonal", dtype=F64).init()["w_hh"]
    torch.testing.assert_close(w @ w.T, torch.eye(20, dtype=F64))
    given = torch.randn(4, 4)
    assert torch.equal(gf.models.rnn(3, 4, recurrent=given).init()["w_hh"], given)
    p = gf.models.lstm(3, 4, forget_bias=2.5).init()
    assert torch.equal((p["b_ih"] + p["b_hh"])[4:8], torch.full((4,), 2.5))
    for name in ("w_ih", "w_hh", "b_ih"):
        assert float(torch.cat([p[name][:4], p[name][8:]]).abs().max()) <= 0.5
    for radius in (0.3, 1.2):
        w = gf.models.echo_state(1, 30, spectral_radius=radius, dtype=F64).init()["w_hh"]
        assert float(torch.linalg.eigvals(w).abs().max()) == pytest.approx(radius, rel=1e-10)
    assert float(gf.models.echo_state(9, 30, input_scale=0.2).init()["w_ih"].abs().max()) <= 0.2


BAD = {
    "no width": (lambda: gf.models.rnn(3, 0), ValueError, "hidden=0"),
    "no inputs": (lambda: gf.models.gru(0, 3), ValueError, "inputs=0"),
    "half a width": (lambda: gf.models.lstm(3, 1.5), TypeError, r"hidden=1\.5"),
    "a shape": (lambda: gf.models.rnn(3, 4, recurrent=torch.ones(2, 2)), ValueError, r"recurrent \(2, 2\)"),
    "a name": (lambda: gf.models.rnn(3, 4, recurrent="identity"), ValueError, "recurrent='identity'"),
    "leak": (lambda: gf.models.leaky_rnn(3, 4, leak=0.0), ValueError, r"leak=0\.0"),
    "delay": (lambda: gf.models.skip_rnn(3, 4, delay=0), ValueError, "delay=0"),
    "radius": (lambda: gf.models.echo_state(3, 4, spectral_radius=0), ValueError, "spectral_radius=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call()
