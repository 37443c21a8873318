"""The second table: exact, wrong or refused, model by model, and what a peer says of itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_bench_peers import HAND, NOWHERE, needs, refusing
from tiny import MLP, after
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._zoo import MODELS
from gradfunc.bench._zoo_report import _broken, _letters
from gradfunc.bench._zoo_table import OURS, of_zoo

FEW = ("einsum", "embedding, padding_idx", "linear on a sequence, time first, T = B", "GRU")


def workload(name, module, *batch, criterion=F.mse_loss):
    return gf.bench.Workload(name, f"about {name}", module, lambda: batch, criterion)


LINE = workload("line", lambda: nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2))
RECURRENT = workload("recurrent", lambda: nn.Sequential(nn.GRU(3, 2, batch_first=True), Last()), torch.randn(4, 5, 3),
                     torch.randn(4, 5, 2))  # fmt: skip
DRAWS = workload("draws", lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout()), torch.randn(4, 3), torch.randn(4, 2))


class Last(nn.Module):
    def forward(self, x):
        return x[0]


def fake(name, make=HAND.make, quantities=("norms",), **options):
    return gf.bench.Contender(name, make, quantities, **{"peer": True, **options})


def doubled(case, out):
    """By two."""
    return {k: v * 2 for k, v in out.items()} if isinstance(out, dict) else out * 2


SAYS = gf.bench.Limit(lambda module: any(isinstance(m, nn.GRU) for m in module.modules()), "no GRU", "its manual")


# --- what it tells --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    contenders = [
        "gradfunc",
        "vmap(grad)",
        fake("doubling", after(HAND.make, doubled), gf.bench.QUANTITIES, settings="by two", limits=(SAYS,)),
        fake("refusing", refusing, limits=(SAYS,)),
    ]
    return gf.bench.zoo(contenders, [LINE, RECURRENT, DRAWS])


def test_verdicts(report):
    cells = {name: [report.cell(model, name).verdict for model in report.models] for name in report.contenders}
    assert cells == {
        "gradfunc": ["exact", "exact", "cannot tell"],
        "vmap(grad)": ["exact", "refused", "cannot tell"],
        "doubling": ["wrong", "refused", "cannot tell"],
        "refusing": ["refused", "refused", "cannot tell"],
    }
    assert report.ok
    assert report.cell("line", "gradfunc").error < 1e-12
    assert report.cell("line", "doubling").error == pytest.approx(1)
    assert report.cell("draws", "gradfunc").failure == "the model draws random numbers"
    with pytest.raises(KeyError, match="no cell"):
        report.cell("line", "nobody")


def test_totals(report):
    assert report.totals("gradfunc") == {"exact": 2, "cannot tell": 1}
    assert report.totals("doubling") == {"cannot tell": 1, "refused": 1, "wrong": 1}


def test_every_quantity_is_asked(report):
    asked = [row.quantity for row in report.rows if (row.model, row.contender) == ("line", "doubling")]
    assert asked == [*gf.bench.QUANTITIES]
    assert {row.verdict for row in report.rows if (row.model, row.contender) == ("line", "gradfunc")} == {"exact"}


def test_what_is_documented(report):
    assert report.documented == {
        ("recurrent", "doubling"): ("doubling: no GRU (its manual)",),
        ("recurrent", "refusing"): ("refusing: no GRU (its manual)",),
    }
    text = str(report)
    for piece in ("(a) doubling: no GRU (its manual).", "(b) refusing: no GRU (its manual)."):
        assert piece in text, piece
    assert "(a)" in text.split("Documented")[0]


def test_the_table(report):
    text = str(report)
    assert max(map(len, text.splitlines())) <= 118
    for piece in ("about line", "about recurrent", "Versions and settings", "by two", f"torch {torch.__version__}",
                  "1e+00", "models: exact", "no rule for this layer", "the model draws"):  # fmt: skip
        assert piece in text, piece


def test_json(report):
    out = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(out) == {
        "environment", "models", "contenders", "totals", "cells", "notes", "warnings", "ok"
    }  # fmt: skip
    assert out["contenders"]["doubling"] == {"versions": "torch", "settings": "by two"}
    assert out["totals"]["gradfunc"] == {"exact": 2, "cannot tell": 1}
    assert "peers" in out["environment"]
    assert out["cells"]["line"]["gradfunc"] == {"verdict": "exact", "error": pytest.approx(0, abs=1e-12)}
    assert out["cells"]["recurrent"]["refusing"] == {
        "verdict": "refused",
        "failure": "NotImplementedError: no rule for this layer",
        "documented": ["refusing: no GRU (its manual)"],
    }


@pytest.mark.parametrize(("make", "verdict"), [(after(HAND.make, doubled), "wrong"), (refusing, "failed")])
def test_a_fault_of_our_own(make, verdict):
    report = gf.bench.zoo([fake("mine", make, peer=False)], [LINE])
    assert report.cell("line", "mine").verdict == verdict
    assert not report.ok
    assert gf.bench.zoo([fake("theirs", make)], [LINE]).ok


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1 + 1e-15, "exact"), (1 + 1e-13, "exact"), (1 + 1e-11, "wrong"), (1 + 1e-6, "wrong")]
)
def test_the_line_between_exact_and_wrong(factor, verdict):
    """torch's own 1e-6 in a clip factor is on its far side."""
    peer = fake("near", after(HAND.make, lambda case, out: out * factor))
    assert gf.bench.zoo([peer], [LINE]).cell("line", "near").verdict == verdict


@pytest.mark.parametrize(("change", "verdict"), [(1.0, "exact"), (1.001, "wrong")])
def test_a_peer_that_refuses_float64_is_asked_in_float32(change, verdict):
    def make(case, quantity):
        if case.dtype == torch.float64:
            raise TypeError("expected Float but found Double")
        return after(HAND.make, lambda case, out: out * change)(case, quantity)

    report = gf.bench.zoo([fake("narrow", make), fake("mine", make, peer=False)], [LINE])
    cell = report.cell("line", "narrow")
    assert (cell.verdict, cell.dtype) == (verdict, "float32")
    assert report.to_dict()["cells"]["line"]["narrow"]["dtype"] == "float32"
    assert "f32" in str(report).split("exact: all")[0]
    assert report.cell("line", "mine").verdict == "failed", "ours is asked in float64 alone"


def test_the_worst_of_several_quantities():
    def make(case, quantity):
        if quantity == "gram":
            raise NotImplementedError("no Gram matrix")
        return HAND.make(case, quantity)

    report = gf.bench.zoo([fake("partly", make, ("norms", "gram", "materialise"))], [LINE])
    assert [row.verdict for row in report.rows] == ["exact", "refused", "exact"]
    assert report.cell("line", "partly").verdict == "refused"
    quantities = report.to_dict()["cells"]["line"]["partly"]["quantities"]
    assert quantities == {"norms": "exact", "gram": "refused", "materialise": "exact"}


def test_rows_of_another_number_are_infinitely_wrong():
    report = gf.bench.zoo([fake("short", after(HAND.make, lambda case, out: out[1:]))], [LINE])
    assert report.cell("line", "short").error == math.inf
    json.dumps(report.to_dict(), allow_nan=False)
    assert "inf" in str(report)


# --- what is asked --------------------------------------------------------------------------------------------


def test_the_models_are_those_of_the_zoo():
    made = of_zoo(MODELS["linear on a sequence, time first, T = B"]).case()
    assert made.model.in_dims == 1
    assert made.size == len(made.batch[-1])
    names = [*MODELS][:2]
    report = gf.bench.zoo(["gradfunc"], names)
    assert report.models == {name: MODELS[name].hazard for name in names}


def test_ours_are_exact_on_a_few():
    report = gf.bench.zoo(OURS, FEW)
    assert report.ok
    assert [report.totals(name) for name in OURS[:2]] == [{"exact": 4}] * 2
    assert report.cell("GRU", "vmap(grad)").verdict == "refused"


@pytest.mark.slow
def test_ours_are_exact_on_all():
    report = gf.bench.zoo(OURS)
    assert report.ok, str(report)
    assert [report.totals(name) for name in OURS[:2]] == [{"exact": len(MODELS)}] * 2
    unmapped = [name for name, model in MODELS.items() if not model.vmap]
    # in float64; torch's fused LSTM in float32 has a fallback under vmap, and is asked again in that
    cells = {name: report.cell(name, "vmap(grad)") for name in MODELS}
    assert [name for name, cell in cells.items() if cell.verdict == "refused" or cell.dtype != "float64"] == unmapped


KNOWN = {
    "opacus": ("embedding, padding_idx", "wrong"),
    "opacus-ghost": ("embedding, padding_idx", "wrong"),
    "expanded-weights": ("embedding, padding_idx", "wrong"),
    "backpack": ("GRU", "refused"),
    "backpack-l2": ("embedding", "exact"),
    "torchjd": ("GRU", "refused"),
    "jax": ("einsum", "refused"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_of_a_peer(name):
    needs(name)
    model, verdict = KNOWN[name]
    report = gf.bench.zoo([name], [model])
    assert report.cell(model, name).verdict == verdict, str(report)
    assert report.ok
    if model == "GRU":
        assert report.documented[model, name]


def test_defaults(monkeypatch):
    monkeypatch.setitem(gf.bench.PEERS, "nobodys", fake("nobodys", library=NOWHERE))
    monkeypatch.setitem(gf.bench.PEERS, "translated", fake("translated", foreign=True))
    for options in ({}, {"contenders": ["gradfunc"], "peers": True}):
        report = gf.bench.zoo(**options, models=[LINE])
        assert {"gradfunc", "expanded-weights"} <= report.contenders.keys()
        assert not {"nobodys", "translated", "plain"} & report.contenders.keys()
        assert "not installed: nobodys; pip install it" in report.notes
        assert "not asked: translated, for which models have to be translated" in report.notes
    asked = gf.bench.zoo(["gradfunc", "plain", "translated"], [LINE])
    assert [*asked.contenders] == ["gradfunc", "translated"]
    assert asked.notes == ()


def test_first_samples_only():
    sizes = []

    def make(case, quantity):
        sizes.append(case.size)
        return HAND.make(case, quantity)

    report = gf.bench.zoo([fake("counting", make)], [LINE], batch_size=3)
    assert (report.totals("counting"), sizes) == ({"exact": 1}, [3])


def test_progress_and_warnings():
    def make(case, quantity):
        import warnings

        warnings.warn("slow path", UserWarning, stacklevel=1)
        return HAND.make(case, quantity)

    stages = []
    state = torch.random.get_rng_state()
    report = gf.bench.zoo([fake("warning", make)], [LINE], progress=stages.append)
    assert stages == ["line", "line: warning"]
    assert report.warnings == ("UserWarning raised: slow path",)
    assert "slow path" not in str(report)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("error", "arguments", "says"),
    [
        (ValueError, (["opacs"],), "contender='opacs'"),
        (ValueError, (["plain", "floor"], [MLP]), "base lines only"),
        (ValueError, (None, ["resnet"]), "model='resnet'"),
        (TypeError, ([3], [MLP]), "expected a name or a Contender"),
        (TypeError, (None, [3]), "expected a name or a Workload"),
    ],
)
def test_what_is_refused(error, arguments, says):
    with pytest.raises(error, match=says):
        gf.bench.zoo(*arguments)


def test_heads_and_marks():
    names = ("gradfunc", "opacus-ghost", "vmap(grad)", "jax")
    assert [_broken(name) for name in names] == ["grad-\nfunc", "opacus\nghost", "vmap(-\ngrad)", "jax"]
    letters = _letters()
    assert [next(letters) for _ in range(28)][-3:] == ["z", "aa", "ab"]


# --- what is recorded -----------------------------------------------------------------------------------------


def test_readme_shows_what_is_recorded():
    root = Path(__file__).parents[2]
    recorded = json.loads((root / "benchmarks" / "zoo-cpu.json").read_text())
    readme = (root / "README.md").read_text()
    assert f"| of {len(recorded['models'])} models | exact | wrong | refused |" in readme
    for name, totals in recorded["totals"].items():
        raised = totals.get("refused", 0) + totals.get("failed", 0)
        assert f"| {name} | {totals.get('exact', 0)} | {totals.get('wrong', 0)} | {raised} |" in readme
    cells = [cell for row in recorded["cells"].values() for cell in row.values()]
    assert min(float(cell["error"]) for cell in cells if cell["verdict"] == "wrong") >= 0.01
    exact = [cell["error"] for cell in cells if cell["verdict"] == "exact" and "dtype" not in cell]
    assert max(exact) < 1e-13
    assert set(gf.bench.PEERS) - {"jax"} < recorded["totals"].keys(), "with every peer installed"
