"""`gf.train.fit` as people use it: batches, loaders, chains and functions of every kind."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
import torch
from digits import F64, MODEL, X, Y, loss, right, same, same_fit, train
from runs import loader, noisy
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

import gradfunc as gf
from gradfunc.train import _history
from gradfunc.train._history import Recorder

XS, YS = torch.tensor(X[:48]), torch.tensor(Y[:48])
BATCHES = [(XS[k : k + 16], YS[k : k + 16]) for k in range(0, 48, 16)]
OF_A_LOADER = {"batch_size": None, "shuffle": None}


class Encoding(collections.UserDict):
    """As tokenizers give their batches."""


Pair = collections.namedtuple("Pair", "x y")


class Stream(IterableDataset):
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for k in range(0 if worker is None else worker.id, 48, 1 if worker is None else worker.num_workers):
            yield XS[k] + 0.1 * torch.randn(()), YS[k]


def nested(params, batch, y):
    return loss(params, batch["x"][0], y)


FORMS = {
    "a dict of data": ({"x": XS, "y": YS}, loss),
    "an encoding of data": (Encoding(x=XS, y=YS), loss),
    "a named tuple of arrays": (Pair(X[:48], Y[:48]), loss),
    "nested data": (({"x": (XS, XS)}, YS), nested),
    "nested data of arrays": (({"x": [X[:48], X[:48]]}, Y[:48]), nested),
    "data nested by keyword": ({"batch": {"x": (XS, XS)}, "y": YS}, nested),
    "encodings": ([Encoding(x=x, y=y) for x, y in BATCHES], loss),
    "named tuples of arrays": ([Pair(x.numpy(), y.numpy()) for x, y in BATCHES], loss),
    "nested batches": ([({"x": (x, x)}, y) for x, y in BATCHES], nested),
    "a tuple of batches": (tuple(BATCHES), loss),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_and_batches_of_every_form(form):
    data, function = FORMS[form]
    options = {"batch_size": 16, "shuffle": False} if "data" in form or "a named" in form else OF_A_LOADER
    want = train(data=(XS, YS), batch_size=16, shuffle=False)
    assert same(train(data=data, loss=function, **options).params, want.params)


def test_nests_whose_lengths_differ_are_refused():
    with pytest.raises(ValueError, match="same number of samples"):
        train(data=({"x": (XS, XS[:4])}, YS), loss=nested)


def sampled(seed=1):
    sampler = RandomSampler(range(48), generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(XS, YS), batch_sampler=BatchSampler(sampler, 16, drop_last=False))


def workers(**options):
    generator = torch.Generator().manual_seed(2)
    return DataLoader(TensorDataset(XS, YS), batch_size=16, shuffle=True, num_workers=1, generator=generator, **options)


LOADERS = {
    "own generator": loader,
    "batch sampler": sampled,
    "sampler": lambda: DataLoader(TensorDataset(XS, YS), batch_size=16, sampler=sampled().batch_sampler.sampler),
    "stream": lambda: DataLoader(Stream(), batch_size=16),
    "stream, two workers": lambda: DataLoader(Stream(), batch_size=16, num_workers=2),
    "worker": workers,
    "list": lambda: BATCHES,
}
SLOW = ("stream, two workers",)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in LOADERS]
)
def test_an_error_anywhere_in_an_epoch_loses_nothing(kind, tmp_path):
    """Also in the first step of an epoch, when the loader has drawn its order."""
    whole = train(data=LOADERS[kind](), **OF_A_LOADER)
    per_epoch = whole.steps // 2
    for stop in (0, 1, per_epoch - 1, per_epoch, per_epoch + 1):
        path = tmp_path / str(stop)

        def fail(snapshot, stop=stop):
            if snapshot.step == stop:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train(data=LOADERS[kind](), checkpoint=path, callbacks=[fail], **OF_A_LOADER)
        assert same_fit(train(data=LOADERS[kind](), checkpoint=path, resume=True, **OF_A_LOADER), whole)


def test_workers_that_stay_are_refused_beside_a_checkpoint(tmp_path):
    """They draw their seeds once, so that a run resumed in a later epoch would take another order."""
    assert train(data=workers(persistent_workers=True), epochs=1, **OF_A_LOADER).steps == 3
    with pytest.raises(ValueError, match="persistent_workers=True; expected a loader that begins each epoch anew"):
        train(data=workers(persistent_workers=True), checkpoint=tmp_path / "a", **OF_A_LOADER)
    with pytest.raises(ValueError, match="persistent_workers=True; expected a loader that begins each epoch anew"):
        train(validation=workers(persistent_workers=True), checkpoint=tmp_path / "a")


def test_a_metric_that_draws_draws_the_same_and_nobody_else_s():
    def noisy(params, x, y):
        return torch.rand(len(x))

    state = torch.get_rng_state()
    one, two = (train(validation=(X[:40], Y[:40]), metrics={"noisy": noisy, "also": noisy}) for _ in range(2))
    assert one.history["validation/noisy"].tolist() == two.history["validation/noisy"].tolist()
    assert one.history["validation/noisy"].tolist() != one.history["validation/also"].tolist()
    assert len(set(one.history["validation/noisy"])) == 2
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shared", [False, True])
def test_validation_from_a_loader_that_draws(shared, tmp_path):
    """Its generator goes on as well, be it that of the training's loader."""

    def go(**options):
        data = loader()
        held = DataLoader(data.dataset, batch_size=8, shuffle=True, generator=data.generator) if shared else sampled()
        return train(data=data, validation=held, loss=noisy, epochs=3, **OF_A_LOADER, **options)

    whole = go()
    for stop in (4, 5, 9, 12):
        path = tmp_path / str(stop)
        go(checkpoint=path, callbacks=[lambda s, stop=stop: "stop" if s.step == stop else None])
        assert same_fit(go(checkpoint=path, resume=True), whole)


def test_another_loader_is_another_run(tmp_path):
    train(data=loader(), checkpoint=tmp_path / "a", **OF_A_LOADER)
    plain = DataLoader(loader().dataset, batch_size=16)
    with pytest.raises(ValueError, match=r"another run: generators of loaders \[1, 0\], here \[0, 0\]"):
        train(data=plain, checkpoint=tmp_path / "a", resume=True, **OF_A_LOADER)


MIXED = {"w": torch.ones(3, dtype=torch.bfloat16), "b": torch.zeros(()), "n": torch.tensor(2)}


def of_mixed(p, x):
    return ((p["w"] * x).float().sum() * p["n"] + p["b"] - 1).square()


class Flaky:
    """A stage of a user's own, whose state grows, and which may fail."""

    takes, gives = gf.Grads, gf.Grads

    def __init__(self, fails=-1):
        self.fails = fails

    def init(self, params):
        return {"n": 0, "sum": 0.0, "half": 0, "pair": (0, [torch.zeros(())])}

    def update(self, grads, state, params=None, /):
        if state["n"] == self.fails:
            raise RuntimeError("flaky")
        n, (m, [t]) = state["n"] + 1, state["pair"]
        return grads, {"n": n, "sum": state["sum"] + 0.5, "half": state["half"] + 0.5, "pair": (m + 2, [t + 1])}


@pytest.mark.parametrize("kind", ["all", "parts", "frozen", "gathered", "own stage", "given state"])
def test_chains_and_parameters_of_every_kind_go_on(kind, tmp_path):
    step = {
        "gathered": gf.accumulate(gf.mean(), every=3) >> gf.adam(1e-2),
        "parts": gf.mean()
        >> gf.partition({"a": gf.adam(1e-2), "b": gf.sgd(0.1, momentum=0.9)}, {"w": "a", "[bn]": "b"}),
        "own stage": gf.mean() >> Flaky() >> gf.adam(1e-2),
    }.get(kind, gf.clip_per_sample(1.0) >> gf.mean() >> gf.adam(1e-2))
    f = gf.per_sample_grads(of_mixed, wrt="w" if kind == "frozen" else ["w", "b"])
    data = torch.randn(20, 3).bfloat16()
    given = gf.train.fit(f, step, MIXED, data).state if kind == "given state" else None

    def go(**options):
        return gf.train.fit(f, step, MIXED, data, batch_size=4, epochs=2, state=given, **options)

    whole = go()
    assert {name: value.dtype for name, value in whole.params.items()} == {k: v.dtype for k, v in MIXED.items()}
    assert torch.equal(whole.params["n"], MIXED["n"])
    assert torch.equal(whole.params["b"], MIXED["b"]) == (kind == "frozen")
    for stop in range(10):
        path = tmp_path / str(stop)
        go(checkpoint=path, callbacks=[lambda s, stop=stop: "stop" if s.step == stop else None])
        assert same_fit(go(checkpoint=path, resume=True), whole)


def test_a_chain_that_fails_is_where_it_was(tmp_path):
    whole = train(gf.mean() >> Flaky() >> gf.sgd(0.1))
    with pytest.raises(RuntimeError, match="flaky") as caught:
        train(gf.mean() >> Flaky(fails=4) >> gf.sgd(0.1), checkpoint=tmp_path / "a")
    assert "had made 4 updates; resume=True goes on" in caught.value.__notes__[0]
    resumed = train(gf.mean() >> Flaky() >> gf.sgd(0.1), checkpoint=tmp_path / "a", resume=True)
    assert same_fit(resumed, whole)


def failing(at):
    def fail(snapshot):
        if snapshot.step == at:
            raise LookupError("mine")

    return fail


@pytest.mark.parametrize("where", ["capture", "callbacks"])
@pytest.mark.parametrize("at", [0, 6, 13])
def test_functions_that_fail(where, at, tmp_path):
    """Also at the last step: it was not made, and is made again."""
    mine = {"capture": {"a": failing(at)}} if where == "capture" else {"callbacks": [failing(at)]}
    capture = {"capture": {"a": failing(None)}} if where == "capture" else {}
    validated = {"validation": (X[200:232], Y[200:232])}
    with pytest.raises(LookupError, match="mine"):
        train(checkpoint=tmp_path / "a", **validated, **mine)
    saved = gf.train.load_checkpoint(tmp_path / "a")
    assert saved.step == at
    assert all(saved.history.steps(name).max() < at for name in saved.history)
    resumed = train(checkpoint=tmp_path / "a", resume=True, **validated, **capture)
    assert same_fit(resumed, train(**validated, **capture))


def test_an_error_is_not_hidden_by_one_of_saving(tmp_path):
    class Strange(Flaky):
        def update(self, grads, state, params=None, /):
            grads, state = super().update(grads, state, params)
            return grads, {**state, "odd": object()}  # no file can hold it

    with pytest.raises(LookupError, match="mine") as caught:
        train(gf.mean() >> Strange() >> gf.sgd(0.1), checkpoint=tmp_path / "a", callbacks=[failing(2)])
    assert "they could not be saved" in caught.value.__notes__[0]
    with pytest.raises(gf.train.Interrupted) as stopped:
        train(gf.mean() >> Strange() >> gf.sgd(0.1), checkpoint=tmp_path / "b", callbacks=[interrupting])
    assert stopped.value.fit.steps == 1


def interrupting(snapshot):
    if snapshot.step == 1:
        raise KeyboardInterrupt


def test_a_callback_that_cannot_save_costs_nothing(tmp_path):
    def save(snapshot):
        if snapshot.step == 3:
            gf.train.save_checkpoint(tmp_path / "none" / "a", gf.train.Checkpoint({}, {}, snapshot.history, 0, 0, 0))

    with pytest.raises(gf.train.CheckpointError) as caught:
        train(checkpoint=tmp_path / "a", callbacks=[save])
    assert caught.value.fit.steps == 3
    assert gf.train.load_checkpoint(tmp_path / "a").step == 3


def test_no_epochs(tmp_path):
    fit = train(epochs=0, checkpoint=tmp_path / "a", validation=(X[:9], Y[:9]))
    assert (fit.steps, fit.ok, len(fit.history), str(fit)) == (0, True, 0, "No step was made.")
    assert same(fit.params, MODEL.params)
    assert same_fit(train(checkpoint=tmp_path / "a", resume=True), train())
    assert train(epochs=1, checkpoint=tmp_path / "a", resume=True).steps == 14  # counted from the first start


def test_validation_whose_loss_draws():
    options = {"loss": noisy, "validation": (X[200:240], Y[200:240]), "epochs": 1}
    a, b = train(**options), train(**options)
    assert same_fit(a, b)
    f = gf.per_sample_grads(noisy, seed=0).at(6, torch.arange(40))
    rows = f(a.params, torch.tensor(X[200:240]), torch.tensor(Y[200:240]))
    assert a.history["validation/loss"][0] == pytest.approx(float(rows.mean_loss), rel=1e-13)


def test_draws_are_those_of_step_and_sample():
    fit = train(gf.mean() >> gf.sgd(0.0), loss=noisy, data=(XS, YS), batch_size=16, capture={"i": lambda s: s.index})
    f = gf.per_sample_grads(noisy, seed=0)
    for step, index in enumerate(fit.history["i"]):
        rows = f.at(step, torch.tensor(index))(MODEL.params, XS[index], YS[index])
        assert fit.history["loss"][step] == float(rows.mean_loss)
    assert len(set(fit.history["loss"])) == 6


def test_losses_that_are_ignored_though_infinite():
    data = torch.tensor([math.inf, -math.inf, 1e308, 1e308], dtype=F64)
    params = {"w": torch.zeros((), dtype=F64)}
    with np.errstate(all="raise"):
        fit = gf.train.fit(
            lambda p, x: p["w"] * 0 + x, gf.mean() >> gf.sgd(0.0), params, data, batch_size=1, on_nonfinite="ignore"
        )
    assert np.isnan(fit.history["epoch_loss"]).all()
    assert not fit.ok


def test_patience_with_losses_that_are_nan():
    def broken(p, x, y):
        return loss(p, x, y).numerator * math.nan

    options = {"validation": (X[:9], Y[:9]), "validation_loss": broken, "epochs": 9}
    for better in ("lower", "higher"):
        fit = train(callbacks=[gf.train.patience(2, better=better)], **options)
        assert fit.stopped.reason == "validation/loss has not improved for 2 epochs"


@pytest.mark.parametrize(("better", "taught"), [("lower", -1.0), ("higher", 1.0)])
def test_patience_counts_epochs_whatever_the_series(better, taught):
    # three batches an epoch; the best of all is the second batch of epoch 1
    values = [*[0.0] * 4, taught, *[0.0] * 100]
    fit = train(
        data=(XS, YS),
        batch_size=16,
        epochs=9,
        capture={"own": lambda s: values[s.step]},
        callbacks=[gf.train.patience(2, "own", better=better)],
    )
    assert fit.stopped.reason == "own has not improved for 2 epochs"
    assert fit.stopped.step == 3 * 4 - 1


class Once:
    """Batches that are there the first time alone."""

    def __init__(self, times):
        self.left = times

    def __iter__(self):
        self.left -= 1
        return iter(BATCHES if self.left >= 0 else [])


def test_validation_without_a_batch_is_no_result():
    with pytest.raises(ValueError, match=r"got no batch of the data; expected at least one"):
        gf.train.evaluate(loss, MODEL.params, Once(0))
    with pytest.raises(ValueError, match=r"validation=...\): got no batch of the data") as caught:
        train(epochs=3, validation=Once(2))
    assert "had made 20 updates" in caught.value.__notes__[0]


def test_what_is_no_mapping_of_functions_is_no_metrics():
    for metrics in (right, {"right": 3}):
        with pytest.raises(TypeError, match=r"got metrics=.*; expected a mapping \{name: function\}"):
            gf.train.evaluate(loss, MODEL.params, (X, Y), metrics=metrics)


def test_an_array_without_a_dimension_stays_one():
    seen = []

    def scaled(p, x, temperature):
        seen.append(temperature.shape)
        return MODEL(p, x * temperature).square().mean(1)

    gf.train.evaluate(gf.per_sample_grads(scaled, batched=True), MODEL.params, [(XS, np.array(2.0))])
    assert seen == [()]


NAMES = {
    "loss": {"capture": {"loss": lambda s: 1}},
    "epoch": {"capture": {"epoch": lambda s: 1}},
    "validation": {"capture": {"validation": lambda s: {"loss": 1}}},
    "validation/loss": {"capture": {"validation/loss": lambda s: 1}},
    "metric": {"metrics": {"loss": right}, "validation": (X[:9], Y[:9])},
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_that_are_taken(kind):
    ran = []
    with pytest.raises(ValueError, match="expected other names than those taken"):
        train(callbacks=[ran.append], **NAMES[kind])
    assert not ran


def test_two_values_of_one_name():
    with pytest.raises(ValueError, match=r"capture\['a/b'\]\(snapshot\): got a second value at step 0"):
        train(capture={"a": lambda s: {"b": 1}, "a/b": lambda s: 2})
    with pytest.raises(ValueError, match="expected other names than those taken"):
        gf.train.evaluate(loss, MODEL.params, (X, Y), metrics={"loss": right})


UNFIT = {
    "text in an array": np.array(["a"]),
    "objects": np.array([None]),
    "a large int": 2**70,
    "a complex": 1j,
    "complex": torch.ones(2, dtype=torch.complex64),
    "conjugated": torch.ones(2, dtype=torch.complex64).conj(),
    "sparse": torch.eye(2).to_sparse(),
    "a date": np.datetime64("2020-01-01"),
    "a set": {1},
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_no_history_can_hold(kind):
    with pytest.raises(TypeError, match=r"capture\['a'\]\(snapshot\): got .*; expected a number, tensor, array"):
        train(capture={"a": lambda s: UNFIT[kind]})


def test_to_go_on_needs_a_file():
    with pytest.raises(ValueError, match=r"got resume=True without checkpoint="):
        train(resume=True)


def test_a_history_is_the_caller_s_own():
    seen = []

    def spoil(snapshot):
        seen.append(snapshot.history["loss"].copy())
        snapshot.history["loss"][:] = 7
        snapshot.history.steps("loss")[:] = 7

    fit = train(callbacks=[spoil])
    assert same_fit(fit, train())
    assert all(np.array_equal(kept, fit.history["loss"][: len(kept)]) for kept in seen)


def test_histories_in_pieces_are_histories_at_once():
    values = [
        1,
        2,
        0.5,
        True,
        np.int16(1),
        np.uint16(2),
        torch.ones(()),
        torch.ones(2),
        torch.ones(3),
        "a",
        None,
        np.float32(1),
        2.0,
    ]
    draw = np.random.default_rng(0)
    for _ in range(100):
        series = [values[k] for k in draw.integers(0, len(values), 8)] if draw.random() < 0.5 else [1, 2, 3, 0.5, 4]
        pieces, once = Recorder(), Recorder()
        for step, value in enumerate(series):
            pieces.add("a", step, value)
            once.add("a", step, value)
            if draw.random() < 0.5:
                pieces.history(before=step + int(draw.integers(-1, 2)))
        assert repr(pieces.history()) == repr(once.history())
        assert repr(pieces.history(4)) == repr(once.history(4))


def test_a_history_costs_what_is_new(monkeypatch):
    """Asked for often, as for each checkpoint, in a long training."""
    stacked, read = _history._stacked, []

    def counted(values):
        read.append(len(values))
        return stacked(values)

    monkeypatch.setattr(_history, "_stacked", counted)
    recorder = Recorder()
    for step in range(100):
        recorder.add("loss", step, 1.0)
        if step % 10 == 9:
            recorder.history()
    assert read == [10] * 10


def test_two_runs_that_share_a_path(tmp_path):
    """The first that saves has it; what the other reached is in its error."""
    path = tmp_path / "a"

    def inner(snapshot):
        if snapshot.step == 3:
            train(checkpoint=path, epochs=1, seed=1)

    with pytest.raises(gf.train.CheckpointError, match=r"was not there when this run began.*another run's") as caught:
        train(checkpoint=path, checkpoint_every=5, callbacks=[inner])
    assert same(gf.train.load_checkpoint(path).params, train(epochs=1, seed=1).params)
    gf.train.save_checkpoint(tmp_path / "b", caught.value.fit.checkpoint())
    assert same_fit(train(checkpoint=tmp_path / "b", resume=True), train())
