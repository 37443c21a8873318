"""`gradfunc store ...`: exit codes, what goes to which stream, and a store that Ctrl-C leaves whole."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.text import Text

import gradfunc as gf
from gradfunc import cli
from gradfunc.cli import _shared, _store

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")
ROOT = Path(__file__).parents[2]

MODELS = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Linear(5, 3), nn.CrossEntropyLoss(), (torch.randn(40, 5), torch.arange(40) % 3)

class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        if Counted.calls == 20:
            open("running", "w").close()
        return super().forward(x)

def many():
    torch.manual_seed(0)
    return Counted(5, 3), nn.CrossEntropyLoss(), (torch.randn(200_000, 5), torch.arange(200_000) % 3)
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    (tmp_path / "models_of_store.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models_of_store", raising=False)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["gradfunc", "store", *args])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "options",
    [
        ("--projection", "gaussian", "--size", "16"),
        ("--projection", "count-sketch", "--size", "16", "--seed", "3"),
        ("--projection", "two-sided", "--size", "16", "--at-once", "7"),
        ("--projection", "none", "--dtype", "float32"),
        ("--projection", "factored", "--at-once", "7"),
    ],
    ids=lambda options: options[1],
)
def test_build_info_verify_query(run, options):
    build = ("build", "s", "--model", "models_of_store:small", *options)
    code, out, err = run(*build)
    assert (code, err) == (0, "")
    assert "40 of" in out
    code, out, err = run("info", "s", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["rows"] == 40
    code, out, _ = run("verify", "s")
    assert code == 0
    assert "every byte" in out
    code, out, err = run("query", "s", "--ids", "3", "17", "-k", "4", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["queries"]
    store = gf.store.GradientStore.open("s")
    want = store.top_k(store.rows([3, 17]).to(store._view.dtype), 4)
    assert [one["ids"] for one in found] == want.ids.tolist()
    assert run("query", "s", "--ids", "3")[1].count("Sample 3") == 1
    assert run(*build)[0] == 0  # nothing is left to do
    assert len(gf.store.GradientStore.open("s")) == 40


@pytest.mark.parametrize("projection", ["gaussian", "factored"])
def test_samples_with_names(run, projection):
    names = [f"image {k}.png" for k in range(40)]
    Path("names.txt").write_text("\n".join(names) + "\n")
    model = ("--model", "models_of_store:small", "--projection", projection, "--size", "16")
    build = ("build", "s", *model, "--ids", "names.txt")
    assert run(*build)[0] == 0
    assert gf.store.GradientStore.open("s").ids.tolist() == names
    code, out, err = run("query", "s", "--ids", names[3], names[17], "-k", "4", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["queries"]
    store = gf.store.GradientStore.open("s")
    asked = store.gradients([3, 17]) if projection == "factored" else store.rows([3, 17]).float()
    want = store.top_k(asked, 4)
    assert [one["id"] for one in found] == [names[3], names[17]]
    assert [one["ids"] for one in found] == want.ids.tolist()
    assert "Sample image 3.png" in run("query", "s", "--ids", names[3])[1]
    out = run("info", "s")[1]
    assert "strings" in out
    assert ("kept as" in out) == (projection == "factored")
    assert run(*build)[0] == 0  # nothing is left to do
    for args, says in [
        (("query", "s", "--ids", "3"), "--ids 3"),
        (("build", "s", *model), "expected strings"),
        (("build", "t", *model, "--ids", "none.txt"), "--ids none.txt"),
        (("build", "t", *model, "--ids", "short.txt"), "[40]"),
    ]:
        Path("short.txt").write_text("a\nb\n")
        code, _, err = run(*args)
        assert code == 2
        assert says in err
    assert not Path("t").exists()


def test_the_default_is_the_digits(run):
    code, out, _ = run("build", "s", "--size", "32", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 1797


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("build", "s", "--model", "models_of_store:small", "--size", "16"), "40 of"),
        (("info", "s"), "40 of"),
        (("verify", "s"), "every byte"),
        (("query", "s", "--ids", "3"), "Sample 3"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_each_command_writes_a_page(run, tmp_path, command, shown):
    if command[0] != "build":
        run("build", "s", "--model", "models_of_store:small", "--size", "16")
    code, out, _ = run(*command, "--report", str(tmp_path / "page.html"))
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    assert shown in out
    assert shown in page
    assert "gradfunc store" in page
    assert run(*command, "--report", str(tmp_path / "page.html" / "below"))[0] == 2  # refused: no folder


def test_damage_is_a_fault_found(run):
    run("build", "s", "--model", "models_of_store:small", "--size", "16")
    path = next(Path("s").glob("rows-*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run("info", "s")[0] == 0
    code, out, _ = run("verify", "s")
    assert code == 1
    assert "SHA-256" in out
    path.write_bytes(data[:-1])
    assert run("info", "s")[0] == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("info", "nowhere"), "no manifest"),
        (("query", "s", "--ids", "99"), "--ids 99"),
        (("query", "s", "--ids"), "--ids without one"),
        (("build", "s", "--model", "models_of_store:small", "--size", "17"), "different projections"),
        (("build", "t", "--projection", "two-sided", "--size", "17"), "a square number"),
    ],
    ids=["no store", "another id", "no id", "another projection", "no square"],
)
def test_usage(run, args, says):
    run("build", "s", "--model", "models_of_store:small", "--size", "16")
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not Path("t").exists()


@pytest.mark.parametrize("name", ["load_problem", "build_store"])
def test_ctrl_c_before_there_is_a_store(run, monkeypatch, name):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_store, name, stopped)
    code, out, err = run("build", "s", "--model", "models_of_store:small")
    assert (code, out) == (130, "")
    assert err == "gradfunc store build: stopped; 0 rows are there, the same command goes on\n"


def test_a_bar_says_the_rate_and_the_time_that_is_left(run, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(_shared, "Console", lambda stderr: Console(file=shown, force_terminal=stderr, width=120))
    assert run("build", "s", "--model", "models_of_store:small", "--size", "16", "--at-once", "10", "--json")[0] == 0
    text = Text.from_ansi(shown.getvalue().replace("\r", "\n")).plain
    assert re.search(r"40/40 [\d,.]+ rows/s 0:00:00", text), text


@pytest.mark.slow
def test_ctrl_c_leaves_a_valid_store(run, tmp_path):
    """Interrupted once rows are on disk; every row is that of its sample, and the same command goes on."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in the background
    code = f"{heard}; from gradfunc.cli import main; main()"
    args = ["store", "build", "s", "--model", "models_of_store:many", "--projection", "none", "--dtype", "float32"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "running").exists():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the same command goes on" in err
    store = gf.store.GradientStore.open(tmp_path / "s")
    assert 0 < len(store) < 200_000
    assert store.verify().ok
    assert not store.info().left
    sys.path.insert(0, str(tmp_path))
    from models_of_store import many

    model, _, (x, y) = many()
    at = store.ids[-3:]
    out = torch.softmax(model(x[at]).detach(), 1) - torch.nn.functional.one_hot(y[at], 3)
    want = torch.cat([(out[:, :, None] * x[at][:, None, :]).flatten(1), out], 1)
    assert torch.allclose(store.rows(range(len(store) - 3, len(store))), want, atol=1e-6)
