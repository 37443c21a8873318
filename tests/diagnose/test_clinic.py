"""`gf.diagnose.doctor` on sick and healthy trainings: the cause first, quiet after the cure, quiet on the healthy."""

from __future__ import annotations

import copy

import clinic
import pytest
import torch
from tiers import every

import gradfunc as gf
from gradfunc.diagnose._doctor._doctor import FAILED

doctor, PROBES, CAUSES = gf.diagnose.doctor, gf.diagnose.PROBES, gf.diagnose.CAUSES
MORE = range(1, 8)  # seeds of the slow tier
BACKWARDS = 10


def name(make):
    return make.__name__


def state(patient):
    """All that could change of the user's."""
    model, optimizer = patient["model"], patient["optimizer"]
    hooks = [len(getattr(m, key)) for m in model.modules() for key in vars(m) if key.endswith("_hooks")]
    own = [*model.parameters(), *model.buffers()]
    data = [
        t for batch in ([patient["data"]] if torch.is_tensor(patient["data"][0]) else patient["data"]) for t in batch
    ]
    held = None if optimizer is None else optimizer.state_dict()
    return {
        "values": copy.deepcopy([t.detach() for t in own + data]),
        "versions": [t._version for t in own + data],
        "grads": [p.grad is None for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "needs": [p.requires_grad for p in model.parameters()],
        "hooks": hooks,
        "generator": torch.get_rng_state(),
        "optimizer": copy.deepcopy(held),
        "step hooks": None if optimizer is None else len(optimizer._optimizer_step_pre_hooks),
    }


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def seen(patient, **options):
    """The report of a patient whose own things must not change."""
    before = state(patient)
    report = doctor(**{**patient, **options})
    assert same(before, state(patient))
    assert not [why for why in report.not_run if FAILED in why[1]]
    return report


def first(report):
    return report.causes[0] if report.causes else None


def named_and_cured(make, seed):
    sick, cured = seen(clinic.sick(make, seed)), seen(clinic.sick(make, seed, cured=True))
    assert set(sick.causes) <= set(CAUSES)
    cause = clinic.SICK[make]
    return first(sick) == cause, cause not in cured.causes and cured.ok


def test_the_clinic_is_as_large_as_it_says():
    assert len(clinic.SICK) >= 80
    assert len(clinic.HEALTHY) >= 32


@pytest.mark.parametrize("make", every(3, clinic.SICK), ids=name)
def test_the_cause_comes_first_and_is_gone_after_the_cure(make):
    assert named_and_cured(make, 0) == (True, True)


@pytest.mark.parametrize("make", every(3, clinic.HEALTHY), ids=name)
def test_the_healthy_are_left_alone(make):
    report = seen(clinic.healthy(make, 0))
    assert report.ok, report
    assert not report.findings, report
    # steps of the one are small: a symptom, and the curvature is asked; the other evaluates twenty times a step
    if make not in (clinic.well.trained, clinic.well.with_lbfgs):
        assert report.backward <= BACKWARDS


@pytest.mark.slow
def test_the_cause_comes_first_in_95_of_100():
    found = {(make, seed): named_and_cured(make, seed) for make in clinic.SICK for seed in MORE}
    missed = [(make.__name__, seed) for (make, seed), (cause, _) in found.items() if not cause]
    loud = [(make.__name__, seed) for (make, seed), (_, quiet) in found.items() if not quiet]
    assert len(missed) <= 0.05 * len(found), missed
    assert not loud


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_nothing_severe_on_the_healthy(deep):
    reports = {
        (make.__name__, seed): seen(clinic.healthy(make, seed), deep=deep) for make in clinic.HEALTHY for seed in MORE
    }
    assert not [key for key, report in reports.items() if not report.ok]
    assert not [f for r in reports.values() for f in r.findings if f.severity == "warning" and not deep]


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_a_probe_that_is_blind_is_noticed(probe):
    others = tuple(other for other in PROBES if other is not probe)
    cases = [make for make, cause in clinic.SICK.items() if cause in probe.causes and cause != "all_frozen"]
    assert any(clinic.SICK[make] not in doctor(**clinic.sick(make, 0), probes=others).causes for make in cases)


def test_every_cause_has_a_case():
    assert {cause for probe in PROBES for cause in probe.causes} | {"all_frozen"} == set(CAUSES)
    assert set(CAUSES) == set(clinic.SICK.values())


# --- closed forms of the step -----------------------------------------------------------------------------------------


def number_in(text, before):
    return float(text.partition(before)[0].split()[-1])


@pytest.mark.parametrize("k", [2, 4])
def test_the_number_of_parts_is_told(k):
    d = clinic.Draw(3)
    patient = clinic.draw.classifying(d, clinic.step.parts(False, divide=False, k=k))
    finding = seen(patient).findings[0]
    assert finding.cause == "missing_division"
    assert finding.fix == f"(loss / {k}).backward()"
    assert abs(number_in(finding.evidence, " times the criterion's") - k) < 1e-3


def test_a_loss_scale_is_told():
    finding = seen(clinic.sick(clinic.step.gradient_scale_left, 1)).findings[0]
    assert abs(number_in(finding.evidence, " times the criterion's") - 2.0**16) < 1


@pytest.mark.parametrize("b", [0.0, 0.9])
def test_the_limit_of_the_rate_is_that_of_the_quadratic(b):
    # loss = a w^2 / 2: curvature a, limit 2 (1 + b) / a; steps at 1.01 times it grow, at .99 times they do not
    a = 5.0
    net = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(net.weight, 1.0)
    x, y = torch.full((4, 1), (a / 2) ** 0.5).double(), torch.zeros(4, 1).double()
    limit = 2 * (1 + b) / a
    report = doctor(net, torch.nn.MSELoss(), (x, y), torch.optim.SGD(net.parameters(), lr=1.5 * limit, momentum=b))
    found = [f for f in report.findings if f.cause == "rate_too_large"]
    assert len(found) == 1
    assert abs(float(found[0].evidence.partition("= ")[2].partition(";")[0]) - limit) <= 5e-3 * limit  # three digits
    below = doctor(
        net, torch.nn.MSELoss(), (x, y), torch.optim.SGD(net.parameters(), lr=0.9 * limit, momentum=b), deep=True
    )
    assert "rate_too_large" not in below.causes
