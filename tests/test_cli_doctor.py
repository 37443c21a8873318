"""`gradfunc doctor`: the embedded trainings, some of them in full, and a model of the user's."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from test_cli import models as usual
from test_cli import one_line, run
from torch.nn import functional as F

import gradfunc as gf
from gradfunc import cli
from gradfunc.diagnose import _doctor_demo
from gradfunc.diagnose._doctor_cases import CASES

__all__ = ["run", "usual"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")

SICK = [case for case in CASES if case.sick]
# those whose update is another one, or a wrong one that goes downhill all the same: losses do not tell
UNSEEN = {"missing_zero_grad", "missing_division", "wrong_backward"}

MODELS = """
import torch
from torch import nn
from torch.nn import functional as F

def healthy():
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    return net, nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long())

def sick():
    net, *others = healthy()
    return nn.Sequential(*net, nn.Softmax(1)), *others

def batches():
    net, criterion, (x, y) = healthy()
    return net, criterion, list(zip(x.split(32), y.split(32)))

def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr=lr)

def forgetful(model, optimizer, batch):
    print("a step")
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()

def sound(model, optimizer, batch):
    optimizer.zero_grad()
    forgetful(model, optimizer, batch)

def fourth(make):
    made = healthy()
    return *made, make(made[0])

def with_optimizer(): return fourth(sgd)
def too_fast(): return fourth(lambda net: sgd(net, 1e4))
def with_step(): return fourth(lambda net: (sgd(net), sound))
def without_zeroing(): return fourth(lambda net: (sgd(net), forgetful))
def mapped(): return fourth(lambda net: {"optimizer": sgd(net), "step": forgetful})
def mapped_optimizer(): return fourth(lambda net: {"optimizer": sgd(net)})
def a_loop(): return fourth(lambda net: forgetful)
def three(): return fourth(lambda net: (sgd(net), forgetful, 1))
def misnamed(): return fourth(lambda net: {"optimiser": sgd(net)})
def swapped(): return fourth(lambda net: (forgetful, sgd(net)))
def no_optimizer(): return fourth(lambda net: {"step": forgetful})
def no_function(): return fourth(lambda net: (sgd(net), 3))
def two(): return healthy()[:2]
"""


@pytest.fixture
def models(usual, tmp_path):
    (tmp_path / f"{usual}_doctor.py").write_text(MODELS)
    return f"{usual}_doctor"


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """`gradfunc doctor --json --report page.html`, run once: what it gave, and the report itself."""
    page = tmp_path_factory.mktemp("doctor") / "page.html"
    kept, out, err = [], io.StringIO(), io.StringIO()

    def demo(original=_doctor_demo.demo, **options):
        kept.append(original(**options))
        return kept[0]

    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(_doctor_demo, "demo", demo)
        patch.setattr(sys, "argv", ["gradfunc", "doctor", "--json", "--report", str(page)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    untouched = torch.equal(before, torch.get_rng_state())
    return SimpleNamespace(
        code=left.value.code,
        out=out.getvalue(),
        err=err.getvalue(),
        page=page.read_text(encoding="utf-8"),
        report=kept[0],
        untouched=untouched,
    )


# --- the embedded trainings -------------------------------------------------------------------------------------------


def test_the_default_finds_every_cause_and_exits_0(default):
    assert (default.code, default.err) == (0, "")
    assert default.untouched, "the global generator"
    report = json.loads(default.out)
    assert report["ok"] is True
    assert [row["case"] for row in report["cases"]] == [case.name for case in CASES]
    for row in report["cases"]:
        assert row["quiet"] is True
        assert row["cured"]["findings"] == []
        if row["sick"]:
            assert row["found_first"] == row["found"]["findings"][0]["cause"] == row["case"]
            assert row["severity"] == ("warning" if row["case"] == "eval_mode" else "severe")
            assert row["fix"]
        else:
            assert row["found"]["findings"] == []


def test_the_default_as_tables_and_as_a_page(default):
    text = str(default.report)
    for case in CASES:
        assert f"\n{case.name} " in text
        assert case.name in default.page
    assert text.endswith("Verdict: every cause is found first, every cure is quiet.")
    assert max(len(line) for line in text.splitlines()) <= 118
    assert "What the doctor prescribes" in default.page
    assert default.page.count("<table") >= 2
    assert "A fault was found." not in default.page


def test_a_missed_cause_and_a_loud_cure_are_faults(default):
    """Mutants of the demo: a cure that cures nothing, reports of another case, a healthy one that is not."""
    healthy = default.report.cases[-1]

    def changed(i, **changes):
        cases = list(default.report.cases)
        cases[i] = dataclasses.replace(cases[i], **changes)
        return dataclasses.replace(default.report, cases=tuple(cases))

    for i, one in enumerate(default.report.cases):
        if not one.case.sick:
            ill = changed(i, found=default.report.cases[0].found, cured=default.report.cases[0].found)
            assert not ill.ok
            assert f"{one.case.name} is taken for softmax_before_cross_entropy" in str(ill)
            continue
        missed = changed(i, found=healthy.found)
        assert not missed.ok
        assert str(missed).endswith(f"Verdict: {one.case.name} is taken for healthy.")
        loud = changed(i, cured=one.found)
        assert not loud.ok
        assert str(loud).endswith(f"Verdict: {one.case.name} is not quiet after the cure.")
        other = changed(i, found=default.report.cases[i - 1].found if i else default.report.cases[1].found)
        assert not other.ok


def test_a_cure_changes_nothing_else():
    """Sick and cured begin with the same weights, where they have the same layers."""
    for case in SICK:
        sick, cured = (dict(case.training(cured=c, seed=5).model.named_parameters()) for c in (False, True))
        if case.name in ("vanishing", "exploding"):  # where the cure is the initialisation
            assert sick.keys() == cured.keys()
            continue
        assert sick.keys() == cured.keys()
        assert all(torch.equal(sick[name], cured[name]) for name in sick), case.name
        again = case.training(cured=False, seed=5).model.state_dict()
        assert all(torch.equal(again[name], value) for name, value in sick.items())


def trained(case, *, cured, steps=50):
    """Share of digits or wines told right, or of variance explained, on the data trained on; and of a constant."""
    made = case.training(cured=cured, seed=0)
    x, y = made.data
    for _ in range(steps):
        made.optimizer.zero_grad()
        made.criterion(made.model(x), y).backward()
        made.optimizer.step()
    output = made.model(x).detach()
    if y.is_floating_point():
        return float(1 - (output - y).square().mean() / y.var(correction=0)), 0.0
    right = float((output.argmax(1) == y).double().mean()) if bool(output.isfinite().all()) else float("nan")
    return right, float(y.bincount().max() / len(y))


@pytest.mark.parametrize("case", [case for case in SICK if case.name not in UNSEEN], ids=lambda case: case.name)
def test_the_sick_fail_and_the_cure_works(case):
    (sick, _), (cured, constant) = trained(case, cured=False), trained(case, cured=True)
    assert cured > constant
    assert not sick >= cured, "NaN, or worse than the cured one after as many steps"


def test_a_missing_zero_grad_is_momentum_1_bitwise():
    """Gradients that add up are the velocity of SGD with momentum 1."""
    case = next(case for case in CASES if case.name == "missing_zero_grad")
    sick, cured = (case.training(cured=c, seed=0) for c in (False, True))
    heavy = torch.optim.SGD(cured.model.parameters(), lr=0.1, momentum=1.0)
    plain = case.training(cured=True, seed=0)
    for _ in range(5):
        sick.step(sick.model, sick.optimizer, sick.data)
        cured.step(cured.model, heavy, cured.data)
        plain.step(plain.model, plain.optimizer, plain.data)
    pairs = list(zip(sick.model.parameters(), cured.model.parameters(), plain.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


def test_a_wrong_backward_lowers_the_loss():
    """A loss that falls is no proof; the doctor compares with differences."""
    case = next(case for case in CASES if case.name == "wrong_backward")
    made = case.training(cured=False, seed=0)
    x, y = made.data
    before = F.cross_entropy(made.model(x), y).item()
    for _ in range(20):
        made.optimizer.zero_grad()
        made.criterion(made.model(x), y).backward()
        made.optimizer.step()
    assert F.cross_entropy(made.model(x), y).item() < before


# --- --case -----------------------------------------------------------------------------------------------------------


def test_some_in_full(run):
    code, out, err = run("doctor", "--case", "missing_division", "healthy")
    assert (code, err) == (1, "")
    for piece in ("missing_division: digits", "(loss / 4).backward()", "Findings", "Found healthy:", "healthy: digits"):
        assert piece in out
    assert out.strip().endswith("Verdict: severe findings in missing_division.")


def test_exit_codes_of_cases(run):
    """1 where something is severe; a warning is not."""
    code, out, _ = run("doctor", "--case", "unscaled_features", "--json")
    assert code == 1
    assert json.loads(out)["cases"]["unscaled_features"]["findings"][0]["cause"] == "unscaled_features"
    assert run("doctor", "--case", "one_hot_mse")[0] == 0
    code, out, _ = run("doctor", "--case", "eval_mode")
    assert (code, "0 severe of 1 findings" in out) == (0, True)


@pytest.mark.parametrize("words", [["--case", "vanished"], ["--case"], ["--case", "healthy", "vanished"]], ids=" ".join)
def test_an_unknown_case_lists_them(run, words):
    code, out, err = run("doctor", *words)
    assert (code, out) == (2, "")
    one_line(err)
    assert all(case.name in err for case in CASES)
    assert ("'vanished'" in err) is (words[-1] == "vanished")


# --- a model of the user's --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "cause"),
    [
        ("healthy", None),
        ("sick", "softmax_before_cross_entropy"),
        ("batches", None),
        ("with_optimizer", None),
        ("too_fast", "rate_too_large"),
        ("with_step", None),
        ("without_zeroing", "missing_zero_grad"),
        ("mapped", "missing_zero_grad"),
        ("mapped_optimizer", None),
    ],
)
def test_a_model(run, models, factory, cause):
    code, out, _ = run("doctor", "--model", f"{models}:{factory}", "--json")
    report = json.loads(out)
    assert code == (0 if cause is None else 1)
    assert [finding["cause"] for finding in report["findings"]][:1] == ([cause] if cause else [])
    skipped = dict(report["not_run"])
    assert ("your step" in skipped) is (factory not in ("with_step", "without_zeroing", "mapped"))


def test_a_model_as_tables_on_a_page(run, models, tmp_path):
    code, out, err = run("doctor", "--model", f"{models}:sick", "--report", "page.html")
    assert (code, err) == (1, "")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for piece in ("softmax_before_cross_entropy", "model = model[:-1]  # cross_entropy takes logits"):
        assert piece in out
        assert piece in page
    assert "Verdict: 1 severe of 1 findings." in out
    assert "A fault was found." in page


def test_deep_and_seed(run, models):
    shallow = json.loads(run("doctor", "--model", f"{models}:healthy", "--json")[1])
    code, out, _ = run("doctor", "--model", f"{models}:healthy", "--json", "--deep", "--seed", "3")
    deep = json.loads(out)
    assert code == 0
    assert "noise of the batch" in dict(shallow["not_run"])
    assert "noise of the batch" not in dict(deep["not_run"])
    assert deep["backward"] > shallow["backward"]
    code, out, err = run("doctor", "--seed", "-1")
    assert (code, out) == (2, "")
    assert "expected an int >= 0" in err


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("a_loop", "the fourth entry is a function, expected an optimizer or (optimizer, step)"),
        ("three", "the fourth entry is a tuple of 3"),
        ("misnamed", "the fourth entry is a dict"),
        ("swapped", "got a function as optimizer"),
        ("no_optimizer", "a step without an optimizer"),
        ("no_function", "got an int as step"),
        ("two", "a tuple of 2, expected (model, criterion, batch) or with an optimizer or (optimizer, step) fourth"),
    ],
)
def test_a_fourth_entry_of_another_kind(run, models, factory, says):
    code, out, err = run("doctor", "--model", f"{models}:{factory}")
    assert (code, out) == (2, "")
    one_line(err)
    assert says in err


def test_a_model_and_a_case_are_refused(run):
    code, out, err = run("doctor", "--model", "no.such:model", "--case", "healthy")
    assert (code, out) == (2, "")
    one_line(err)
    assert "expected one of them" in err


def test_help(run):
    code, out, _ = run("doctor", "--help")
    assert code == 0
    assert all(option in out for option in ("--model", "--case", "--deep", "--seed", "--json", "--report"))


def test_progress_says_what_is_diagnosed():
    seen = []
    _doctor_demo.cases(["healthy", "one_hot_mse", "healthy"], progress=seen.append)
    assert seen == ["healthy", "one_hot_mse"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"deep": True}, {"seed": 1}, {"seed": 2}, {"seed": 3}], ids=str)
def test_the_default_with_other_options(options):
    assert _doctor_demo.demo(**options).ok


def test_names_are_causes():
    assert all((case.name in gf.diagnose.CAUSES) is case.sick for case in CASES)
