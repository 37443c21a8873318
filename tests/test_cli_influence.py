"""`gradfunc influence`: planted labels are found, and a model's numbers are those of its rows, formed one by one."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import math

import pytest
import torch
from oracle import close
from rich.console import Console
from rich.text import Text
from test_cli import one_line, run

import gradfunc as gf
from gradfunc.cli import _influence_demo, _influence_report, _shared

__all__ = ["run"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")
F64 = torch.float64
EXACT = 1e-12

MODELS = """
import torch
from torch import nn

def small(n=70):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 4, dtype=torch.float64), torch.arange(n) % 3)

def one():
    return small(1)

def weighted():
    model, _, batch = small()
    return model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.0]).double()), batch

def convex():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), small()[2]

def drops():
    model, criterion, batch = small()
    return nn.Sequential(model, nn.Dropout(0.5)), criterion, batch

def coupled():
    model, criterion, batch = small()
    return nn.Sequential(nn.BatchNorm1d(4).double(), model), criterion, batch
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    name = f"models_of_influence_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def factory(models, name):
    return getattr(importlib.import_module(models), name)()


def oracle(model, criterion, batch):
    """`[n, P]` numerators' gradients by autograd, one by one, and the losses."""
    rows, losses = [], []
    weight = 1.0 if getattr(criterion, "weight", None) is None else criterion.weight[batch[1]]
    each = torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") * weight
    for loss in each:
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
        losses.append(loss.detach())
    return torch.stack(rows), torch.stack(losses)


def found(run, models, name, *options):
    code, out, err = run("influence", "--model", f"{models}:{name}", "--json", *options)
    assert (code, err) == (0, "")
    return json.loads(out)


# --- the default ------------------------------------------------------------------------------------------------


def check_default(code, report):
    data = _influence_demo.planted(report["seed"])
    assert report["planted"] == int(data.wrong.sum()) == 60
    assert [s["true"] for s in report["suspects"]] == data.true[[s["id"] for s in report["suspects"]]].tolist()
    areas = {row["method"]: row["auc"] for row in report["methods"]}
    assert min(areas["GraNd"], areas["self-influence"], areas["self-influence functions"]) >= 0.95, areas
    assert sum(s["planted"] for s in report["suspects"]) >= 9
    assert (code, report["ok"]) == (0, True)


def test_the_default_finds_the_planted_labels(run):
    code, out, err = run("influence", "--json")
    assert err == ""
    check_default(code, json.loads(out))


def test_scores_that_say_nothing_find_nothing(run, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    for name in ("grand", "self_influence"):
        monkeypatch.setattr(_influence_demo, name, lambda g, *rest: torch.rand(600, generator=draw))
    code, out, _ = run("influence", "--json")
    report = json.loads(out)
    with pytest.raises(AssertionError):
        check_default(code, report)
    assert (code, report["ok"]) == (1, False)


def test_the_verdict_in_words():
    missed = tuple(_influence_demo.Retrieved(name, 0.5, 6) for name in _influence_demo.SAYS)
    report = _influence_demo.InfluenceDemo(missed, (), 60, 0.9, 0)
    assert not report.ok
    assert "Verdict: the planted samples are not found (below 0.95): by GraNd" in str(report)
    for name in ("GraNd", "self-influence", "EL2N"):
        rows = tuple(dataclasses.replace(row, auc=0.95) if row.method == name else row for row in missed)
        assert dataclasses.replace(report, methods=rows).ok is (name != "EL2N")


def test_the_default_as_tables_and_a_page(run, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run("influence", "-k", "3", "--report", str(page))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "Verdict: the planted samples are found" in lines[-1]
    at = next(i for i, line in enumerate(lines) if "Samples of largest self-influence" in line)
    assert [line.split()[0].isdigit() for line in lines[at + 3 : at + 7]] == [True, True, True, False]
    assert "Samples of largest self-influence" in page.read_text(encoding="utf-8")


def test_areas_and_planted_labels_by_their_definitions():
    """An area is the share of pairs in order; a planted label is another one; suspects come in order."""
    demo = _influence_demo.demo(seed=2)
    data = _influence_demo.planted(2)
    model, kept = _influence_demo.trained(data, 2, lambda stage: None)
    assert len(kept) == _influence_demo.EPOCHS
    f = gf.per_sample_grads(lambda p, x, y: gf.losses.cross_entropy(model.sample(p, x), y))
    own = sum(_influence_demo.LR * f(p, *data.train).norms().square() for p in kept)
    inside, outside = own[data.wrong], own[~data.wrong]
    area = (inside[:, None] > outside).double().mean()
    row = next(row for row in demo.methods if row.method == "self-influence")
    assert math.isclose(row.auc, float(area), rel_tol=1e-9)
    assert row.first == int(data.wrong[own.topk(60).indices].sum())
    assert [s.id for s in demo.suspects] == own.topk(10).indices.tolist()
    said = model(kept[-1], data.train[0]).argmax(1)
    assert all((s.says, s.label) == (int(said[s.id]), int(data.train[1][s.id])) for s in demo.suspects)


# --- a model of the user's ----------------------------------------------------------------------------------------


def check_own(run, models, name="small"):
    rows, losses = oracle(*factory(models, name))
    norms = rows.norm(dim=1)
    report = found(run, models, name, "-k", "5")
    (ranked,) = report["ranked"]
    assert report["method"] == "grand"
    assert ranked["ids"] == norms.topk(5).indices.tolist()
    close(torch.tensor(ranked["values"], dtype=F64), norms.topk(5).values, norms.max(), "GraNd", EXACT)
    close(torch.tensor(ranked["losses"], dtype=F64), losses[ranked["ids"]], losses.max(), "losses", EXACT)
    assert math.isclose(report["total"], float(norms.square().sum()), rel_tol=EXACT)


def check_on(run, models, method, *options):
    name = "convex" if "hessian" in options else "small"
    model, criterion, batch = factory(models, name)
    rows, _ = oracle(model, criterion, batch)
    norms, scale = rows.norm(dim=1), 1.0
    if method == "grad-dot":
        want, scale = rows @ rows.T, norms[:, None] * norms
    elif method == "grad-cos":
        want = rows @ rows.T / (norms[:, None] * norms)
    else:
        want = by_definition(model, rows, batch, options[-1])
        scale = norms[:, None] * norms / 0.3
    report = found(run, models, name, "--on", "3", "66", "--method", method, "-k", "4", *options)
    assert [one["of"] for one in report["ranked"]] == [3, 66]
    for one in report["ranked"]:
        column = want[:, one["of"]]
        others = column.abs().clone()
        others[one["of"]] = -1
        assert one["ids"] == others.topk(4).indices.tolist()
        size = scale if isinstance(scale, float) else scale[:, one["of"]]
        ids = one["ids"]
        # Conjugate gradients stop at a residual of 1e-6 of the right-hand side; it is a recursion's, hence the 2.
        tol = 2e-6 if "hessian" in options else EXACT
        part = size if isinstance(size, float) else size[ids]
        close(torch.tensor(one["values"], dtype=F64), column[ids], part, method, tol)
        own = size if isinstance(size, float) else size[one["of"]]
        close(torch.tensor(one["own"], dtype=F64), column[one["of"]], own, "own", tol)


def by_definition(model, rows, batch, curvature):
    """Solved densely: with the Hessian of a linear model's mean loss, or with one block of the Fisher a parameter."""
    if curvature == "hessian":
        shapes = [p.shape for p in model.parameters()]

        def mean(flat):
            w, b = (part.view(s) for part, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True))
            return torch.nn.functional.cross_entropy(batch[0] @ w.T + b, batch[1])

        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        matrix = torch.autograd.functional.hessian(mean, flat)
    else:
        plain = curvature == "kronecker"
        factors = (gf.quantities.kronecker_factors if plain else gf.quantities.corrected_kronecker_factors)(
            lambda p, x, y: gf.losses.cross_entropy(torch.func.functional_call(model, p, (x,)), y),
            {name: p.detach() for name, p in model.named_parameters()},
            batch,
        )
        matrix = torch.block_diag(*[factors.dense(name) for name, _ in model.named_parameters()])
    return rows @ torch.linalg.solve(matrix + 0.3 * torch.eye(len(matrix), dtype=F64), rows.T)


INFLUENCE = ("influence", "--damping", "0.3")


@pytest.mark.parametrize("name", ["small", "weighted"])
def test_own_influence_is_the_norms_of_rows(run, models, name):
    check_own(run, models, name)


@pytest.mark.parametrize(
    "how",
    [("grad-dot",), ("grad-cos",), INFLUENCE, *[(*INFLUENCE, "--curvature", k) for k in ("kronecker", "hessian")]],
    ids=" ".join,
)
def test_influence_on_some_is_as_defined(run, models, how):
    check_on(run, models, *how)


MUTANTS = {
    "the least first": ("_largest", lambda values, k: values.argsort()[:k], check_own),
    "one block only": ("_at", lambda problem, f, ids: at(problem, f, ids % 64), check_own),
    "the other sign": ("grad_dot", lambda a, b: -a.gram(b), lambda *a: check_on(*a, "grad-dot")),
    "cosines without one norm": (
        "grad_cos",
        lambda a, b: a.gram(b) / b.norms(),
        lambda *a: check_on(*a, "grad-cos"),
    ),
    "twice the damping": (
        "influence_functions",
        lambda *a, damping, **options: gf.quantities.influence_functions(*a, damping=2 * damping, **options),
        lambda *a: check_on(*a, *INFLUENCE),
    ),
}
at = _influence_report._at


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(run, models, monkeypatch, name):
    attribute, mistake, law = MUTANTS[name]
    law(run, models)
    monkeypatch.setattr(_influence_report, attribute, mistake)
    with pytest.raises(AssertionError):
        law(run, models)


def test_draws_are_of_the_sample_and_the_seed(run, models):
    """Whichever method asks, in whichever block: a sample's own inner product is its squared norm."""
    norms = dict(
        zip(*(found(run, models, "drops", "-k", "70")["ranked"][0][k] for k in ("ids", "values")), strict=True)
    )
    (one,) = found(run, models, "drops", "--on", "68")["ranked"]
    assert math.isclose(one["own"], norms[68] ** 2, rel_tol=EXACT)
    (other,) = found(run, models, "drops", "--on", "68", "--seed", "1")["ranked"]
    assert one["own"] != other["own"]


def test_tables_and_a_page(run, models, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run("influence", "--model", f"{models}:small", "--report", str(page))
    assert (code, err) == (0, "")
    assert "Samples of most influence on their own loss (70 in the batch)" in out
    text = page.read_text(encoding="utf-8")
    assert "self-influence" in text
    assert f"gradfunc influence --model {models}:small" in text
    out = run("influence", "--model", f"{models}:small", "--on", "1", "1", "2", "--method", "influence")[1]
    assert out.count("Samples that push the loss of sample 1: influence (ekfac, damping a tenth of each mean") == 1
    assert "raises the loss" in out
    assert "lowers the loss" in out


def test_a_batch_of_one(run, models):
    (ranked,) = found(run, models, "one", "--on", "0")["ranked"]
    assert ranked["ids"] == []
    assert run("influence", "--model", f"{models}:one", "--on", "0")[0] == 0


def test_a_bar_on_a_terminal(run, models, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(_shared, "Console", lambda stderr: Console(file=shown, force_terminal=stderr, width=120))
    code, out, _ = run("influence", "--model", f"{models}:small", "--json")
    assert (code, json.loads(out)["batch_size"]) == (0, 70)
    assert "70/70" in Text.from_ansi(shown.getvalue().replace("\r", "\n")).plain


# --- usage --------------------------------------------------------------------------------------------------------

REFUSED = {
    ("--model", "M:small", "--on", "70"): "got --on 70; expected positions in the batch, 0 to 69",
    ("--model", "M:small", "--on", "2", "-1"): "",
    ("--model", "M:small", "--on", "one"): "",
    ("--model", "M:small", "--on"): "",
    ("--model", "M:small", "-k", "0"): "",
    ("--model", "M:small", "--on", "1", "--method", "trak"): "",
    ("--model", "M:small", "--method", "grad-dot"): "got --method grad-dot without --on",
    ("--model", "M:small", "--on", "1", "--method", "grand"): "got --method grand beside --on",
    ("--model", "M:small", "--on", "1", "--damping", "1"): "got --damping without --method influence",
    ("--model", "M:small", "--on", "1", "--method", "influence", "--damping", "0"): "",
    ("--model", "M:small", "--on", "1", "--curvature", "hessian"): "got --curvature without --method influence",
    ("--model", "M:small", "--on", "1", "--method", "influence", "--damping", "1e-3", "--curvature", "hessian"): (
        "expected H + damping to be positive"
    ),
    ("--model", "M:coupled",): "layer 0 normalises by the statistics of the batch",
    ("--model", "M:missing",): "has no 'missing'",
    ("--on", "1"): "got --on without --model",
    ("--method", "grand"): "got --method without --model",
    ("--damping", "1"): "got --damping without --model",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_refused(run, models, words):
    code, out, err = run("influence", *[word.replace("M:", f"{models}:") for word in words])
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    if REFUSED[words]:
        one_line(err)
        assert REFUSED[words] in err
