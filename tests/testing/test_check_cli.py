"""`gradfunc check`: exit codes, streams, the default and a model of the user's own."""

from __future__ import annotations

import json

import pytest
from test_cli import HEALTHY, UNREADABLE, models, one_line, run

__all__ = ["models", "run"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")

FAULTY = (
    HEALTHY
    + """
class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return g / 2

class Halved(nn.Module):
    def forward(self, x): return Half.apply(x)

def half():
    model, criterion, batch = healthy()
    return nn.Sequential(model, Halved()), criterion, batch
"""
)


@pytest.fixture
def faulty_models(models, tmp_path):
    (tmp_path / f"{models}_faulty.py").write_text(FAULTY)
    return f"{models}_faulty"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_default_as_json(run, dtype):
    code, out, err = run("check", "--json", "--dtype", dtype, "--batch-size", "6")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["ok"] is True
    assert report["healthy"]["ok"] is True
    assert (report["healthy"]["batch_size"], report["healthy"]["dtype"]) == (6, dtype)
    assert len(report["planted"]) == 5
    assert all(found["ok"] and found["named"] for found in report["planted"])


@pytest.mark.slow
def test_default_as_tables(run):
    code, out, err = run("check", "--batch-size", "5")
    assert (code, err) == (0, "")
    for piece in ("Every kind of fault, planted once", "1 (HalfBackward)", "criterion divided_by_n", "0.weight"):
        assert piece in out
    assert "NOT FOUND" not in out
    assert max(len(line) for line in out.splitlines()) <= 118


def test_healthy_model(run, models):
    code, out, err = run("check", "--model", f"{models}:healthy")
    assert (code, err) == (0, "")
    assert "checks hold" in out


def test_class_weights_are_no_fault(run, models):
    assert run("check", "--model", f"{models}:faulty", "--json")[0] == 0


def test_faulty_model(run, faulty_models):
    code, out, err = run("check", "--model", f"{faulty_models}:half", "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["ok"] is False
    assert "1 (Halved)" in [row["parameter"] for row in report["rows"] if row["verdict"] == "wrong"]


def test_a_fourth_entry_is_ignored_with_a_note(run, models):
    code, out, err = run("check", "--model", f"{models}:with_loop", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True
    one_line(err)
    assert "not used" in err


def test_options(run, models):
    code, out, _ = run("check", "--model", f"{models}:healthy", "--json", "--dtype", "float64", "--batch-size", "4")
    assert code == 0
    report = json.loads(out)
    assert (report["dtype"], report["batch_size"]) == ("float64", 4)
    outs = [run("check", "--model", f"{models}:healthy", "--json", "--seed", "3")[1] for _ in range(2)]
    assert outs[0] == outs[1]


def test_what_the_factory_prints_does_not_spoil_the_json(run, models):
    for name in ("noisy", "talkative"):
        code, out, _ = run("check", "--model", f"{models}:{name}", "--json")
        assert code == 0
        assert json.loads(out)["ok"] is True


@pytest.mark.parametrize("path", UNREADABLE)
def test_unreadable(run, models, path):
    code, out, err = run("check", "--model", path.replace("M", models))
    assert (code, out) == (2, "")
    one_line(err)
    assert UNREADABLE[path] in err


@pytest.mark.parametrize(
    "options",
    [("--dtype", "float8"), ("--batch-size", "0"), ("--batch-size", "2.5"), ("--seed", "now"), ("--colour", "red")],
    ids=" ".join,
)
def test_usage(run, options):
    code, out, err = run("check", *options)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


def test_help(run):
    code, out, _ = run("check", "--help")
    assert code == 0
    for option in ("--model", "--dtype", "--device", "--batch-size", "--json", "--seed"):
        assert option in out
    assert "check" in run("--help")[1]
