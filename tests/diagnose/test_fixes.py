"""Fixes of `gf.diagnose.doctor`: each line runs as it is printed, and those of model, data or optimiser cure."""

from __future__ import annotations

import dataclasses
import inspect

import clinic
import pytest
import torch
from tiers import every
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc.diagnose._doctor import _data

doctor = gf.diagnose.doctor

# What their comments leave to do: outputs for all classes, inputs for fewer features, a loss of more than this batch.
REST = {
    clinic.loss.classes_under_mse,
    clinic.loss.classes_as_floats,
    clinic.loss.last_dimension,
    clinic.data.constant_features,
}


def scope(patient):
    """The names that a fix may use."""
    data = patient["data"][0] if isinstance(patient["data"], list) else patient["data"]
    names = {key: patient[key] for key in ("model", "criterion", "optimizer")} | {"x": data[0], "y": data[-1]}
    return names | {"torch": torch, "nn": nn, "F": F, "gf": gf}


def pasted(make, seed=0, change=lambda fix: fix):
    """The first finding of a sick case, and the names after its fix."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        patient = clinic.sick(make, seed)
        finding, names = doctor(**patient).findings[0], scope(patient)
        if make in clinic.step.SICK:
            names["loss"] = patient["criterion"](patient["model"](names["x"]), names["y"])
            names["loss"].backward(retain_graph=True)  # in a step there is a gradient
        exec(change(finding.fix), names)
    return finding, names


def after(names):
    """What the doctor says then."""
    return doctor(names["model"], names["criterion"], (names["x"], names["y"]), names["optimizer"])


def check(make, seed=0, change=lambda fix: fix):
    finding, names = pasted(make, seed, change)
    assert finding.fix.lstrip("# ")
    if not finding.fix.startswith("#") and make not in {*clinic.step.SICK, *REST}:
        said = after(names)
        assert finding.cause not in said.causes
        assert said.ok, said


FEW = 8


@pytest.mark.parametrize("make", every(FEW, clinic.SICK), ids=lambda make: make.__name__)
def test_a_fix_runs_as_it_is_printed_and_cures(make):
    check(make)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_fixes_cure_at_other_seeds(seed):
    for make in clinic.SICK:
        check(make, seed)


@pytest.mark.parametrize("make", [clinic.data.unscaled_inputs, clinic.rate.rate_too_large])
def test_a_line_that_does_nothing_or_does_not_run_is_noticed(make):
    with pytest.raises(AssertionError):
        check(make, change=lambda fix: "pass")
    with pytest.raises(NameError):
        check(make, change=lambda fix: fix.replace("x", "batch").replace("optimizer", "opt"))


# --- data as they come ------------------------------------------------------------------------------------------------


def paste(finding, **names):
    names |= {"torch": torch, "nn": nn, "F": F, "gf": gf}
    exec(finding.fix, names)
    return names


def only(report, cause):
    return next(finding for finding in report.findings if finding.cause == cause)


PICTURES = {
    "flat": ((64, 12), lambda: nn.Linear(12, 3)),
    "image": ((64, 2, 4, 4), lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3))),
    "series": ((64, 5, 4), lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.Linear(15, 3))),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("constant", [0.0, 255.0])
def test_what_does_not_vary_stays_finite_when_scaled(kind, constant):
    shape, make = PICTURES[kind]
    torch.manual_seed(0)
    net, x, y = make(), torch.randint(0, 256, shape).float(), torch.arange(64) % 3
    x.movedim(1 if len(shape) == 4 else -1, 0)[1] = constant
    names = paste(only(doctor(net, nn.CrossEntropyLoss(), (x, y)), "unscaled_inputs"), x=x)
    columns = names["x"].movedim(1 if len(shape) == 4 else -1, 0).flatten(1).double()
    unit = torch.finfo(torch.float32).eps
    assert columns[1].abs().max() <= 10 * unit * constant  # not the rounding of its mean, enlarged
    rest = torch.cat([columns[:1], columns[2:]])
    assert rest.mean(1).abs().max() < 1e-5
    assert (rest.std(1) - 1).abs().max() < 1e-5


def test_distinct_rows_keep_their_targets():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.arange(20)
    order = torch.randperm(200) % 20
    for target in (y, y[:, None].float()):
        criterion = nn.CrossEntropyLoss() if target.dim() == 1 else nn.MSELoss()
        net = nn.Linear(3, 20 if target.dim() == 1 else 1)
        finding = only(doctor(net, criterion, (x[order], target[order])), "duplicates")
        names = paste(finding, x=x[order], y=target[order])
        assert len(names["x"]) == len(names["y"]) == 20
        for row, value in zip(names["x"], names["y"], strict=True):
            assert torch.equal(target[(x == row).all(1)][0], value)


@pytest.mark.parametrize("dims", [1, 3])
def test_samples_that_are_not_finite_are_left_out(dims):
    x, y = torch.ones(32, *[2] * dims), torch.zeros(32, 1)
    x[3], y[5] = torch.nan, torch.inf
    net = nn.Sequential(nn.Flatten(), nn.Linear(2**dims, 1))
    for given, left in (((x, torch.zeros(32, 1)), 31), ((torch.ones_like(x), y), 31)):
        names = paste(only(doctor(net, nn.MSELoss(), given), "nonfinite_data"), x=given[0], y=given[1])
        assert len(names["x"]) == len(names["y"]) == left
        assert names["x"].isfinite().all()
        assert names["y"].isfinite().all()


def test_classes_that_are_weighted_are_no_finding():
    torch.manual_seed(0)
    x, y = torch.randn(80, 3), (torch.arange(80) < 4).float()[:, None]
    net = nn.Linear(3, 1)
    finding = only(doctor(net, nn.BCEWithLogitsLoss(), (x, y)), "class_imbalance")
    weighted = paste(finding, x=x, y=y)["criterion"]
    assert float(weighted.pos_weight) == 76 / 4
    assert "class_imbalance" not in doctor(net, weighted, (x, y)).causes


def test_weights_and_biases_that_explode_are_drawn_again():
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (nn.Linear(32, 32), nn.ReLU())]
    net, x, y = nn.Sequential(*layers, nn.Linear(32, 3)), torch.randn(96, 32), torch.arange(96) % 3
    for value in net.parameters():
        nn.init.normal_(value)
    paste(only(doctor(net, nn.CrossEntropyLoss(), (x, y)), "exploding"), model=net, x=x)
    assert doctor(net, nn.CrossEntropyLoss(), (x, y)).ok


class Encoder(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x)[:, -1])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("make", [lambda: Encoder(False), Recurrent], ids=["attention", "recurrence"])
def test_the_layer_that_takes_time_first_is_named_and_mended(make):
    torch.manual_seed(0)
    net, x, y = make(), torch.randn(32, 8, 8), torch.arange(32) % 3
    finding = only(doctor(net, nn.CrossEntropyLoss(), (x, y)), "batch_coupling")
    assert "batch_first=True" in finding.fix
    paste(finding, model=net)
    assert "batch_coupling" not in doctor(net, nn.CrossEntropyLoss(), (x, y)).causes


# --- what the call says of itself ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_coupled_samples_are_not_asked_for_gradients_of_their_own():
    torch.manual_seed(0)
    net, x, y = Recurrent(), torch.randn(256, 8, 8), torch.arange(256) % 3
    report = doctor(net, nn.CrossEntropyLoss(), (x, y), torch.optim.Adam(net.parameters()), deep=True)
    assert "batch_coupling" in report.causes
    assert "coupled" in dict(report.not_run)["noise of the batch"]


def test_a_probe_that_does_not_apply_says_to_what_it_does():
    report = doctor(nn.Linear(3, 1), nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 1)))
    assert dict(report.not_run)["class indices"] == "does not apply to mse_loss, only to cross_entropy, nll_loss"


@pytest.mark.parametrize(("call", "name"), [(doctor, "probes"), (gf.diagnose.find_nonfinite, "faults")])
def test_a_default_that_is_a_table_is_not_in_the_signature(call, name):
    assert inspect.signature(call).parameters[name].default is None
    assert len(str(inspect.signature(call))) < 700


def test_a_fix_of_another_scale_is_noticed(monkeypatch):
    plain = "x = (x - x.mean(0)) / x.std(0)"
    real = _data.scales
    monkeypatch.setattr(
        _data, "scales", lambda case: (dataclasses.replace(finding, fix=plain) for finding in real(case))
    )
    probes = tuple(
        dataclasses.replace(probe, run=_data.scales) if probe.run is real else probe for probe in gf.diagnose.PROBES
    )
    x, y = 255 * torch.rand(64, 12), torch.arange(64) % 3
    x[:, 1] = 255.0
    finding = only(doctor(nn.Linear(12, 3), nn.CrossEntropyLoss(), (x, y), probes=probes), "unscaled_inputs")
    assert not paste(finding, x=x)["x"].isfinite().all()
