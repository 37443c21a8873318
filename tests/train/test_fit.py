"""`gf.train.fit`: it is the textbook's loop, a function of its arguments, and goes on where it stopped."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
import torch
from digits import F64, MODEL, X, Y, loss, right, same, same_fit, train
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradfunc as gf
from gradfunc.train import _progress


def of_torch(make, order, data=(X, Y), steps=None):
    """The same batches through a loop as torch's users write it."""
    module = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    with torch.no_grad():
        for mine, value in zip(module.parameters(), MODEL.params.values(), strict=True):
            mine.copy_(value)
    x, y = torch.tensor(data[0]), torch.tensor(data[1])
    optimizer, losses = make(module.parameters()), []
    for index in itertools.islice(order, steps):
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(module(x[index]), y[index])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return dict(zip(MODEL.params, (p.detach() for p in module.parameters()), strict=True)), losses, module


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (gf.adam(1e-2), lambda p: torch.optim.Adam(p, lr=1e-2)),
        (gf.sgd(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (gf.adamw(1e-2, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)),
    ],
)
def test_it_follows_the_loop_of_torch_step_by_step(rule, make):
    fit = train(gf.mean() >> rule, data=(X, Y), epochs=3, capture={"index": lambda s: s.index, "w": lambda s: s.params})
    order = [torch.as_tensor(index) for index in fit.history["index"]]
    assert sorted(torch.cat(order[:57]).tolist()) == list(range(len(X)))
    params, losses, module = of_torch(make, order)
    assert np.abs(fit.history["loss"] - losses).max() < 1e-12
    for name, value in params.items():
        assert (fit.params[name] - value).abs().max() < 1e-12
        halfway, _, _ = of_torch(make, order, steps=60)
        assert np.abs(fit.history[f"w/{name}"][60] - halfway[name].numpy()).max() < 1e-12
    with torch.no_grad():
        accuracy = (module(torch.tensor(X)).argmax(1) == torch.tensor(Y)).double().mean().item()
    mine = gf.train.evaluate(loss, fit.params, (X, Y), metrics={"right": right})["right"]
    assert accuracy == mine
    assert mine > 0.9


FEW = settings(max_examples=8)
ALL = settings(max_examples=60)


@pytest.mark.parametrize("many", [pytest.param(FEW, id="few"), pytest.param(ALL, id="many", marks=pytest.mark.slow)])
def test_it_goes_on_where_it_stopped(many, tmp_path_factory):
    many(given(st.integers(0, 13), st.integers(1, 5))(goes_on))(tmp_path_factory)


def goes_on(tmp_path_factory, stop, every):
    step, options = gf.clip_per_sample(0.5) >> gf.mean() >> gf.adam(1e-2), {"capture": {"g": lambda s: s.grads}}
    path = tmp_path_factory.mktemp("run") / "run.safetensors"

    def kill(snapshot):
        if snapshot.step == stop:
            raise ZeroDivisionError

    whole = train(step, **options)
    with pytest.raises(ZeroDivisionError):
        train(step, checkpoint=path, checkpoint_every=every, callbacks=[kill], **options)
    assert gf.train.load_checkpoint(path).step == stop
    resumed = train(step, checkpoint=path, checkpoint_every=every, resume=True, **options)
    assert same_fit(resumed, whole)
    assert same_fit(train(step, checkpoint=path, resume=True, **options), whole)  # at its end: nothing is left to do


def test_more_epochs_go_on_from_the_end_of_fewer(tmp_path):
    whole = train(epochs=3)
    assert train(checkpoint=tmp_path / "a", epochs=1).steps == 7
    assert same_fit(train(checkpoint=tmp_path / "a", resume=True, epochs=3), whole)


def noisy(params, x, y):
    hidden = nn.functional.dropout(x, 0.5)
    return gf.losses.cross_entropy(MODEL.sample(params, hidden), y)


def test_draws_of_the_loss_belong_to_step_and_sample(tmp_path):
    whole = train(loss=noisy, epochs=1)
    stopped = train(
        loss=noisy, epochs=1, callbacks=[lambda s: "enough" if s.step == 3 else None], checkpoint=tmp_path / "a"
    )
    assert (stopped.steps, stopped.stopped.reason, stopped.stopped.step) == (4, "enough", 3)
    assert stopped.ok
    assert same_fit(train(loss=noisy, epochs=1, checkpoint=tmp_path / "a", resume=True), whole)
    other = train(loss=noisy, epochs=1, seed=1)
    assert not same(other.params, whole.params)
    assert not np.array_equal(train(loss=noisy, epochs=1, shuffle=False).history["loss"], whole.history["loss"])


class Augmented(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(()), y


def loader(generator=None, workers=0, size=40):
    data = Augmented(torch.tensor(X[:size]), torch.tensor(Y[:size]))
    return DataLoader(data, batch_size=8, shuffle=True, generator=generator, num_workers=workers)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("stop", [2, 4, 5, 7])
def test_a_loader_goes_on_as_well(tmp_path, own, stop):
    def made():
        return loader(torch.Generator().manual_seed(5) if own else None)

    before = torch.get_rng_state()
    whole = train(data=made(), batch_size=None)
    train(
        data=made(),
        batch_size=None,
        checkpoint=tmp_path / "a",
        callbacks=[lambda s: "stop" if s.step + 1 == stop else None],
    )
    resumed = train(data=made(), batch_size=None, checkpoint=tmp_path / "a", resume=True)
    assert same_fit(resumed, whole)
    assert torch.equal(before, torch.get_rng_state())
    assert whole.steps == 10


def test_a_loader_with_workers_gives_the_same_run_twice():
    a, b = (train(data=loader(workers=1, size=16), batch_size=None, epochs=1) for _ in range(2))
    assert same_fit(a, b)


def test_data_in_any_form_are_the_same_data():
    x, y = torch.tensor(X[:64]), torch.tensor(Y[:64])
    want = train(data=(X[:64], Y[:64]), shuffle=False, batch_size=16)
    batches = [(x[k : k + 16], y[k : k + 16]) for k in range(0, 64, 16)]
    forms = {
        "tensors": ((x, y), {}),
        "list": ([x, y], {}),
        "mapping": ({"x": x, "y": y}, {}),
        "loader": (DataLoader(TensorDataset(x, y), batch_size=16), {"shuffle": None, "batch_size": None}),
        "batches": (batches, {"shuffle": None, "batch_size": None}),
        "arrays in batches": ([(a.numpy(), b.numpy()) for a, b in batches], {"shuffle": None, "batch_size": None}),
        "mappings": ([{"x": a, "y": b} for a, b in batches], {"shuffle": None, "batch_size": None}),
        "ragged": ((gf.ragged(list(x)), y), {}),
    }
    for form, (data, options) in forms.items():
        got = train(data=data, **{"shuffle": False, "batch_size": 16, **options})
        assert same(got.params, want.params), form
    doubled = train(
        data=(x, y, gf.static(torch.tensor(2.0))), loss=lambda p, x, y, c: c * loss(p, x, y).numerator, shuffle=False
    )
    assert doubled.history["loss"][0] == pytest.approx(2 * train(data=(x, y), shuffle=False).history["loss"][0])


def test_arrays_take_the_dtype_of_the_parameters():
    model = gf.stateless(gf.models.mlp([64, 10]))
    seen = []
    fit = gf.train.fit(
        lambda p, x, y: gf.losses.cross_entropy(model.sample(p, x), y),
        gf.mean() >> gf.sgd(0.1),
        model.params,
        (X[:8], Y[:8].astype(np.int32)),
        callbacks=[lambda s: seen.append((s.args[0].dtype, s.args[1].dtype))],
    )
    assert seen == [(torch.float32, torch.int64)]
    assert fit.steps == 1


def test_a_batched_loss_trains_the_same():
    def losses(params, x, y):
        return gf.losses.cross_entropy(MODEL(params, x), y, batched=True)

    f = gf.per_sample_grads(losses, batched=True)
    a, b = train(loss=f), train()
    assert np.abs(a.history["loss"] - b.history["loss"]).max() < 1e-12


def test_an_epoch_s_mean_is_over_samples_not_over_batches():
    fit = train(data=(X[:40], Y[:40]), batch_size=32, shuffle=False, epochs=1)
    a, b = fit.history["loss"]
    assert fit.history["epoch_loss"][0] == pytest.approx((32 * a + 8 * b) / 40, rel=1e-15)


def weighted(params, x, y):
    return gf.losses.cross_entropy(MODEL.sample(params, x), y, weight=torch.linspace(0.1, 2.0, 10, dtype=F64))


def test_validation_is_torch_s_own_mean_over_all_samples():
    held = (X[200:277], Y[200:277])
    fit = train(loss=weighted, validation=held, metrics={"right": right}, epochs=2)
    x, y = map(torch.tensor, held)
    want = nn.functional.cross_entropy(MODEL(fit.params, x), y, torch.linspace(0.1, 2.0, 10, dtype=F64))
    assert fit.history["validation/loss"][-1] == pytest.approx(want.item(), rel=1e-13)
    assert fit.history["validation/right"][-1] == pytest.approx(
        right(fit.params, x, y).double().mean().item(), rel=1e-15
    )
    assert fit.history.steps("validation/loss").tolist() == [6, 13]
    calm = train(loss=noisy, validation_loss=loss, validation=held, epochs=1)
    assert calm.history["validation/loss"][0] == gf.train.evaluate(loss, calm.params, held)["loss"]
    assert same(train(validation=loader(), epochs=1).params, train(epochs=1).params)


def test_a_snapshot_computes_what_nobody_kept_as_it_was():
    """At captured steps rows are kept; elsewhere the same are computed again."""
    step = gf.clip_per_sample(3.0) >> gf.mean() >> gf.sgd(0.1)
    kept, again = [], []

    def look(into):
        return lambda s: into.append((s.g.norms(), s.grads, s.report.to_dict(), s.losses, s.loss))

    f = gf.per_sample_grads(noisy)
    captured = train(step, loss=f, capture={"all": look(kept)})
    asked = train(step, loss=f, callbacks=[look(again)])
    assert len(kept) == len(again) == 14
    for one, other in zip(kept, again, strict=True):
        assert same(list(one), list(other))
    assert same(captured.params, asked.params)
    assert same(captured.params, train(step, loss=f).params)
    assert any(0 < said["stages"][0]["clipped"] < 1 for _, _, said, _, _ in kept)


def test_what_is_captured():
    fit = train(
        capture={
            "norm": lambda s: s.grads["fc1.weight"].norm(),
            "each": lambda s: {"a": 1, "b": {"c": torch.ones(2)}},
            "text": lambda s: "a note",
            "report": lambda s: s.report,
            "nothing": lambda s: None,
        },
        capture_every=3,
    )
    history = fit.history
    assert history.steps("norm").tolist() == [0, 3, 6, 9, 12]
    assert history["norm"].shape == (5,)
    assert history["each/b/c"].shape == (5, 2)
    assert history["text"] == ["a note"] * 5
    assert history["report"][0]["ok"] is True
    assert history["nothing"] == [None] * 5
    assert set(json.loads(json.dumps(history.to_dict()))) == set(history)
    frame = history.frame()
    assert frame["loss"].notna().all()
    assert frame["norm"].notna().sum() == 5
    with pytest.raises(TypeError, match=r"capture\['odd'\]\(snapshot\): got an object; expected a number, tensor"):
        train(capture={"odd": lambda s: object()})
    with pytest.raises(ValueError, match=r"got name='lass'; expected name to be one of 'loss'"):
        history["lass"]


def test_nothing_given_changes():
    module = nn.Linear(64, 10).double()
    model = gf.stateless(module)
    before, state = {k: v.clone() for k, v in model.params.items()}, torch.get_rng_state()
    step = gf.mean() >> gf.adam(1e-2)
    kept = step.init(model.params)
    first = {k: v.clone() for k, v in kept["adam"]["scale_by_adam"]["exp_avg"].items()}
    fit = train(
        step, params=model.params, loss=lambda p, x, y: gf.losses.cross_entropy(model.sample(p, x), y), state=kept
    )
    assert same(model.params, before)
    assert same(kept["adam"]["scale_by_adam"]["exp_avg"], first)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())
    assert not any(value.requires_grad for value in fit.params.values())


def test_patience():
    fit = train(gf.mean() >> gf.sgd(0.0), epochs=9, validation=(X[:32], Y[:32]), callbacks=[gf.train.patience(3)])
    assert fit.stopped.reason == "validation/loss has not improved for 3 epochs"
    assert fit.steps == 28
    grown = train(epochs=4, callbacks=[gf.train.patience(1, "epoch_loss")])
    assert grown.stopped is None


ODD = {
    "a loss": (lambda p, x: (p["w"] * x).sum().log(), "loss", "aten.log", False),
    "a gradient": (lambda p, x: (p["w"] * x).sum().square().sqrt(), "gradient", "aten.div.Tensor", True),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("clip", [False, True])
def test_it_stops_before_what_is_not_finite_and_says_where_that_began(kind, clip, tmp_path):
    loss, what, operation, backward = ODD[kind]
    x = torch.ones(40, 3, dtype=F64)
    x[29] = 0
    step = (gf.clip_per_sample(1.0) >> gf.mean() if clip else gf.mean()) >> gf.sgd(1e-3)
    params = {"w": torch.ones(3, dtype=F64), "v": torch.ones(2, dtype=F64)}
    fit = gf.train.fit(loss, step, params, x, batch_size=8, shuffle=False, checkpoint=tmp_path / "a", epochs=2)
    assert not fit.ok
    assert fit.stopped is not None
    found = fit.stopped.nonfinite
    assert (found.what, found.samples, found.parameters) == (what, (29,), ("w",))
    assert (found.operation, found.backward, found.given) == (operation, backward, False)
    assert (fit.steps, fit.stopped.step) == (3, 3)
    assert all(value.isfinite().all() for value in fit.params.values())
    assert gf.train.load_checkpoint(tmp_path / "a").history["loss"].shape == (3,)
    assert np.isfinite(fit.history["loss"]).tolist() == [True] * 3 + [kind != "a loss"]
    assert "samples 29; parameters w; first in aten." in str(fit)
    with pytest.raises(ValueError, match="norm") if clip else np.errstate():
        ignored = gf.train.fit(loss, step, params, x, batch_size=8, shuffle=False, on_nonfinite="ignore", epochs=2)
        assert ignored.steps == 10
        assert ignored.params["w"].isnan().all()


def test_it_stops_before_an_update_that_overflows_and_at_samples_that_are_not_finite():
    def line(p, x):
        return (p["w"] * x).sum()

    fit = gf.train.fit(line, gf.mean() >> gf.sgd(3e38), {"w": torch.ones(2)}, torch.full((4, 2), 3.0))
    assert (fit.stopped.nonfinite.what, fit.stopped.nonfinite.parameters) == ("parameters", ("w",))
    x = torch.ones(4, 2)
    x[2, 1] = torch.nan
    found = gf.train.fit(line, gf.mean() >> gf.sgd(0.1), {"w": torch.ones(2)}, x).stopped.nonfinite
    assert (found.what, found.samples, found.given) == ("loss", (2,), True)
    large = {"w": torch.full((2,), 3e38)}  # finite, though the sum of its entries is not
    assert gf.train.fit(lambda p, x: (p["w"] * 0 * x).sum(), gf.mean() >> gf.sgd(0.1), large, torch.ones(4, 2)).ok


def test_losses_of_a_batched_loss_that_are_not_finite():
    def losses(p, x):
        return (p["w"] * x).sum(-1).log()

    x = torch.ones(6, 2)
    x[4] = -1
    f = gf.per_sample_grads(losses, batched=True)
    fit = gf.train.fit(f, gf.mean() >> gf.sgd(0.1), {"w": torch.ones(2)}, x, shuffle=False)
    assert (fit.stopped.nonfinite.samples, fit.stopped.nonfinite.operation) == ((4,), "aten.log")


def test_a_batch_without_weight_is_no_fault():
    def loss(p, x, w):
        return gf.Weighted(w * (p["w"] * x).sum(), w)

    w = torch.tensor([1.0, 1.0, 0.0, 0.0])
    step = gf.mean(on_zero_weight="zero") >> gf.sgd(0.1)
    fit = gf.train.fit(loss, step, {"w": torch.ones(2)}, (torch.ones(4, 2), w), batch_size=2, shuffle=False, epochs=2)
    assert fit.ok
    assert fit.steps == 4
    assert np.isnan(fit.history["loss"]).tolist() == [False, True, False, True]
    assert fit.history["epoch_loss"][0] == 2.0


def test_ctrl_c_leaves_what_was_reached(tmp_path):
    def stop(snapshot):
        if snapshot.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(gf.train.Interrupted, match=r"interrupted after 5 updates; resume=True goes on") as caught:
        train(checkpoint=tmp_path / "a", callbacks=[stop])
    reached = caught.value.fit
    assert (reached.steps, reached.ok, len(reached.history["loss"])) == (5, False, 5)
    assert same_fit(train(checkpoint=tmp_path / "a", resume=True), train())
    assert isinstance(caught.value, KeyboardInterrupt)


def test_errors_of_the_user_s_own_code_pass(tmp_path):
    def broken(snapshot):
        raise OSError("mine")

    with pytest.raises(OSError, match="mine") as caught:
        train(callbacks=[broken], checkpoint=tmp_path / "a")
    assert "had made 0 updates" in caught.value.__notes__[0]


REFUSED = {
    "epochs": ({"epochs": -1}, ValueError, r"got epochs=-1; expected an int >= 0"),
    "batch size": ({"batch_size": 0}, ValueError, r"got batch_size=0"),
    "seed": ({"seed": 1.5}, TypeError, r"got seed=1.5; expected an int"),
    "capture": ({"capture": lambda s: 1}, TypeError, r"capture=.*; expected a mapping"),
    "callback": ({"callbacks": [3]}, TypeError, r"callbacks=\[3\]"),
    "bare callback": ({"callbacks": gf.train.patience(2)}, TypeError, r"callbacks=<function.*expected a sequence"),
    "reason": ({"callbacks": [lambda s: True]}, TypeError, r"got a bool; expected None to go on, or the reason"),
    "metrics": ({"metrics": {"a": right}}, ValueError, r"metrics without validation="),
    "validation loss": ({"validation_loss": right}, ValueError, r"validation_loss without validation="),
    "nonfinite": ({"on_nonfinite": "skip"}, ValueError, r"on_nonfinite='skip'"),
    "no rule": ({"step": gf.clip_per_sample(1.0) >> gf.mean()}, TypeError, r"expected a chain with a rule.*gf.sgd"),
    "lengths": ({"data": (X[:4], Y[:5])}, ValueError, r"same number of samples"),
    "no data": ({"data": (X[:0], Y[:0])}, ValueError, r"data of 0 samples"),
    "no form": ({"data": 3}, TypeError, r"got an int as data"),
    "a data set": (
        {"data": TensorDataset(torch.ones(3))},
        TypeError,
        r"Wrap a data set in torch.utils.data.DataLoader",
    ),
    "an iterator": ({"data": iter([1]), "batch_size": None}, ValueError, r"got an iterator"),
    "twice": ({"data": loader()}, ValueError, r"got batch_size=32 beside a loader"),
    "dropped": ({"data": (X[:4], Y[:4]), "drop_last": True}, ValueError, r"at least one whole batch"),
    "params": ({"params": [1]}, TypeError, r"got a list as params"),
    "empty loader": ({"data": [], "batch_size": None}, ValueError, r"no batch in epoch 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case):
    options, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        train(**options)


def test_dropped_and_unshuffled():
    fit = train(data=(X[:40], Y[:40]), drop_last=True, epochs=2)
    assert fit.steps == 2
    ids = train(data=(X[:40], Y[:40]), shuffle=False, capture={"i": lambda s: s.index}).history["i"]
    assert ids[0] == list(range(32))


def test_progress_goes_to_stderr(capsys):
    train(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 2/2: step 14, loss" in err
    train()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(_progress, "Console", lambda stderr: Console(file=out, force_terminal=stderr, width=120))
    fit = train()
    shown = Text.from_ansi(out.getvalue().replace("\r", "\n")).plain
    assert "epoch 2/2" in shown
    assert "14/14" in shown
    assert f"loss {fit.history['loss'][-1]:.4g}" in shown
    assert "steps/s" in shown
    out.truncate(0)
    train(progress=False)
    assert out.getvalue() == ""


def test_it_prints_as_a_table():
    fit = train(
        validation=(X[:32], Y[:32]), epochs=50, data=(X[:32], Y[:32]), capture={"n": lambda s: s.grads["fc1.bias"]}
    )
    text = str(fit)
    assert "validation/loss" in text
    assert "captured: n" in text
    assert len([line for line in text.splitlines() if line[:1].isdigit()]) == 20
    assert fit.to_dict()["steps"] == 50
    assert dataclasses.is_dataclass(fit)


def test_a_user_s_own_stage_trains():
    class Halved:
        takes, gives = gf.Grads, gf.Updates

        def init(self, params):
            return {"n": 0}

        def update(self, grads, state, params=None, /):
            return gf.Updates({k: -0.5 * v for k, v in grads.items()}), {"n": state["n"] + 1}

    assert train(gf.mean() >> Halved()).state["Halved"]["n"] == 14


def test_on_a_device(device):
    params = {name: value.to(device) for name, value in MODEL.params.items()}
    fit = train(params=params, epochs=1)
    assert all(value.device.type == device for value in fit.params.values())
    want = train(epochs=1)
    assert np.abs(fit.history["loss"] - want.history["loss"]).max() < 1e-12
