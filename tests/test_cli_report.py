"""`--report`, `--save`, and the commands `flow` and `recurrence`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import pytest
from scipy import stats
from test_cli import HEALTHY, run
from test_cli import models as usual

from gradfunc.cli import _shared
from gradfunc.diagnose import _flow_demo

__all__ = ["run", "usual"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")

MODELS = (
    HEALTHY
    + """
def vanishing():
    layers = [part for _ in range(8) for part in (nn.Linear(5, 5), nn.Sigmoid())]
    return nn.Sequential(*layers), nn.MSELoss(), (torch.randn(6, 5), torch.randn(6, 5))

class Reader(nn.Module):
    def __init__(self, forget):
        super().__init__()
        self.lstm = nn.LSTM(2, 4, batch_first=True)
        with torch.no_grad():
            self.lstm.bias_ih_l0[4:8] = forget

    def forward(self, x):
        return self.lstm(x)[0][:, -1]

def reader():
    torch.manual_seed(0)
    return Reader(0.0), nn.MSELoss(), (torch.randn(3, 30, 2), torch.randn(3, 4))

def remembers():
    torch.manual_seed(0)
    return Reader(6.0), nn.MSELoss(), (torch.randn(3, 30, 2), torch.randn(3, 4))
"""
)


@pytest.fixture
def models(usual, tmp_path):
    (tmp_path / f"{usual}_more.py").write_text(MODELS)
    return f"{usual}_more"


COMMANDS = {
    "audit": ("faulty", 1, "8 of 15 pairs disagree beyond rounding: class_weights", "Estimators of the mean gradient"),
    "check": ("healthy", 0, "checks hold", "what is compared"),
    "flow": ("vanishing", 1, "Gradients shrink by a factor", "Parameters"),
    "recurrence": ("reader", 1, "Gradients vanish: below 0.01 beyond", "Back through time"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_of_every_command(run, models, tmp_path, command):
    factory, code, title, table = COMMANDS[command]
    args = (command, "--model", f"{models}:{factory}", "--report", "page.html")
    got, out, err = run(*args)
    assert (got, err) == (code, "")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert title in text
    assert table in text
    assert table in out
    assert f"gradfunc {' '.join(args)}" in text
    assert ("A fault was found." in text) is bool(code)
    assert "torch 2." in text
    assert "<script" not in text
    assert str(tmp_path) not in text


def test_a_page_of_the_benchmark(run, models, tmp_path):
    args = ("--contenders", "gradfunc", "--rounds", "1", "--warmups", "1", "--no-memory", "--report", "page.html")
    code, _, _ = run("bench", "--model", f"{models}:healthy", *args)
    assert code == 0
    assert "times a plain backward pass" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_matplotlib_the_page_has_the_tables_and_says_so(run, models, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("flow", "--model", f"{models}:healthy", "--report", "page.html", "--save", "kept")
    assert code == 0
    assert err == f"gradfunc: {_shared.NO_FIGURES}\n"
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" not in text
    assert text.count("<table>") == 2
    assert "No figures: matplotlib is not there" in text
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("command", "factory", "names"),
    [("flow", "healthy", ["flow.svg", "gradient-norms.svg"]), ("recurrence", "reader", ["through-time.svg"])],
)
def test_a_folder(run, models, tmp_path, command, factory, names):
    _, out, _ = run(command, "--model", f"{models}:{factory}", "--save", "a/b", "--json")
    folder = tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "report.json"])
    assert json.loads((folder / "report.json").read_text()) == json.loads(out)
    assert (folder / names[0]).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    "options",
    [
        ("--report",),
        ("--report", "no/such/folder/page.html"),
        ("--report", "."),
        ("--save", "taken"),
        ("--lr", "0"),
        ("--lr", "fast"),
        ("--batch-size", "0"),
        ("--jsn",),
    ],
    ids=" ".join,
)
def test_usage(run, models, tmp_path, options):
    (tmp_path / "taken").write_text("")
    code, out, err = run("flow", "--model", f"{models}:healthy", *options)
    assert code == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_flow_of_a_model(run, models):
    code, out, _ = run(
        "flow", "--model", f"{models}:healthy", "--lr", "0.1", "--per-sample", "--batch-size", "4", "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert (report["batch_size"], report["lr"], report["verdict"]) == (4, 0.1, "healthy")
    assert report["rows"][0]["spread"] is not None
    code, out, _ = run("flow", "--model", f"{models}:vanishing")
    assert code == 1
    assert "Verdict: vanishing" in out


def test_recurrence_of_a_model(run, models):
    code, out, _ = run("recurrence", "--model", f"{models}:reader", "--samples", "2", "--clip-value", "0.5", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["vanishes"] is True
    assert (report["samples"], report["clip"]) == (2, {"kind": "value", "limit": 0.5})
    code, out, _ = run("recurrence", "--model", f"{models}:remembers", "--batch-size", "2", "--json")
    assert (code, json.loads(out)["batch_size"]) == (0, 2)


def test_the_default_flow(run):
    code, out, err = run("flow", "--batch-size", "64", "--json")
    assert (code, err) == (0, "")
    flows = json.loads(out)["flows"]
    verdicts = {name: report["verdict"] for name, report in flows.items()}
    assert verdicts["sigmoid"] == "vanishing"
    assert verdicts["ReLU, He"] == "healthy"
    assert verdicts["ReLU, N(0, 1)"] == "exploding"


@pytest.mark.parametrize(
    "words",
    [["flow", "--lr", "0.1"], ["flow", "--per-sample"], ["recurrence", "--clip-norm", "2"],
     ["recurrence", "--clip-value", "2"], ["recurrence", "--samples", "4"]],
)  # fmt: skip
def test_options_of_a_model_are_refused_without_one(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert f"gradfunc {words[0]}: got {words[1]} without --model" in " ".join(err.split())


def test_a_folder_below_a_file_is_refused_before_anything_runs(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = run("flow", "--model", "no.such:model", "--save", str(tmp_path / "file" / "folder"))
    assert (code, out) == (2, "")
    assert "expected a folder" in err
    assert "no.such" not in err


def test_defaults_say_their_verdict():
    demo = _flow_demo.demo(batch_size=16)
    assert str(demo).endswith("Verdict: every network is found to be what it is made to be.")
    swapped = dataclasses.replace(demo, flows={**demo.flows, "sigmoid": demo.flows["tanh"]})
    assert not swapped.ok
    assert str(swapped).endswith("Verdict: sigmoid is not vanishing.")


def test_theory_of_the_default_flow():
    """Gains are those that weights have, and the factors those of their closed forms."""
    known = {"tanh": 3**-0.5, "ReLU": 6**-0.5, "ReLU, He": 1.0, "ReLU, N(0, 1)": 50**0.5}
    known["ReLU, batch norm"] = math.sqrt(math.pi / (math.pi - 1))
    for case in _flow_demo.CASES:
        weight = _flow_demo.network(case, 0).params["h2.weight"].double()
        # variances of 10^4 uniform or normal draws: the normal's has the wider interval, 1e-9 two-sided
        low, high = stats.chi2(weight.numel()).ppf([5e-10, 1 - 5e-10]) / weight.numel()
        assert low < weight.square().mean().item() * weight.shape[1] / case.gain**2 < high, case.name
        if case.name in known:
            assert math.isclose(case.factor, known[case.name], rel_tol=1e-9), case.name
    assert len(known) == len(_flow_demo.CASES) - 1


def test_the_default_recurrence(run):
    code, out, err = run("recurrence", "--batch-size", "4", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["explodes"]["growth"][0]["modulus"] == 1.5
    assert report["transient"]["peak"] > 38
    assert report["lstm"]["vanishes"] is True
    assert report["remedies"]["ok"] is True
