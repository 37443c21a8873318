"""The command line: exit codes, what goes to which stream, and one line for what can't be read."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradfunc import __version__, cli

# Cyclopts warns where it reads sys.argv under a test runner; reading it is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")

ROOT = Path(__file__).parents[1]
_fresh = itertools.count()

HEALTHY = """
import torch
from torch import nn

def healthy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), nn.CrossEntropyLoss(), \\
        (torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2]))

def faulty():
    model, _, batch = healthy()
    return model, nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 3.])), batch

def loop(model, criterion, batch):
    for i in range(len(batch[1])):
        criterion(model(batch[0][i:i + 1]), batch[1][i:i + 1]).backward()

def with_loop():
    return *healthy(), loop

def in_float64():
    model, criterion, batch = healthy()
    return model.double(), criterion, (batch[0].double(), batch[1])

def noisy():
    print("loading the weights")
    return healthy()

def talkative():
    model, criterion, batch = healthy()
    model[1].register_forward_hook(lambda *args: print("forward"))
    return model, criterion, batch

def warning():
    import warnings
    warnings.warn("old weights", UserWarning)
    return healthy()

class Factory:
    def method(self):
        return healthy()

factory = Factory()
number = 3
def nothing(): pass
def two(): return healthy()[:2]
def five(): return (*healthy(), None, None)
def as_list(): return list(healthy())
def needs(argument): return healthy()
def raises(): raise RuntimeError("first line\\nsecond line")
def raises_key(): raise KeyError("weights")
def asserts(): assert False
def leaves(): raise SystemExit(5)
def no_model(): return ("resnet", nn.CrossEntropyLoss(), healthy()[2])
def no_criterion(): return (healthy()[0], nn.CrossEntropyLoss, healthy()[2])
def no_batch(): return (healthy()[0], nn.CrossEntropyLoss(), None)
def empty_batch(): return (*healthy()[:2], (torch.randn(0, 5), torch.zeros(0, dtype=torch.long)))
def outside(): return (*healthy()[:2], (torch.randn(3, 5), torch.tensor([0, 1, 9])))
def token_outside(): return nn.Embedding(4, 3), nn.CrossEntropyLoss(), (torch.tensor([1, 9]), torch.tensor([0, 1]))
def wrong_width(): return (*healthy()[:2], (torch.randn(3, 7), torch.tensor([0, 1, 2])))

class Broken(nn.Linear):
    def forward(self, x):
        return self.wieght

def misspelt(): return Broken(5, 3), nn.CrossEntropyLoss(), healthy()[2]

class Missing(nn.Linear):
    def forward(self, x):
        return {}["logits"]

def missing_key(): return Missing(5, 3), nn.CrossEntropyLoss(), healthy()[2]
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with a module of factories; gives the module's name."""
    name = f"users_models_{next(_fresh)}"
    (tmp_path / f"{name}.py").write_text(HEALTHY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.fixture
def run(monkeypatch, capsys):
    """`gradfunc ...` in this process: (exit code, stdout, stderr)."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradfunc", *args])
        monkeypatch.delenv("GRADFUNC_TRACEBACK", raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        return (0 if code is None else code), *capsys.readouterr()

    return call


def one_line(err: str) -> None:
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err


# --- the default -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [pytest.param((), marks=pytest.mark.slow), ("--dtype", "float64", "--batch-size", "10")]
)
def test_default_as_json(run, options):
    code, out, err = run("audit", "--json", *options)
    assert code == 0
    assert err == ""
    report = json.loads(out)
    assert report["ok"] is True
    assert report["reductions"]["batch_size"] == (10 if "10" in options else 64)
    assert report["reductions"]["dtype"] == ("float64" if "float64" in options else "float32")
    forum = {row["pair"]: row for row in report["forum"]}
    assert list(forum) == [
        "none - sum",
        "none - avg",
        "none - one by one",
        "sum - avg",
        "sum - one by one",
        "avg - one by one",
    ]
    for row in forum.values():  # the published pattern x, x, 0, 0, x, x
        assert (row["predicted"] > 0) == (row["published"] > 0)
    if "float64" in options:
        for row in forum.values():
            assert abs(row["measured"] - row["predicted"]) <= 1e-12 * max(row["predicted"], 1)
        assert all(row["found"] and row["relative_error"] <= 1e-12 for row in report["mechanisms"])
    assert all(row["found"] for row in report["mechanisms"])


@pytest.mark.slow
def test_default_as_tables(run):
    code, out, err = run("audit")
    assert code == 0
    assert err == ""
    for piece in ("The forum question", "Every mechanism", "Verdict: the reductions agree", "0.0316"):
        assert piece in out
    assert "NOT FOUND" not in out
    assert max(len(line) for line in out.splitlines()) <= 118
    assert "\x1b" not in out, "no colours in a pipe"


@pytest.mark.slow
def test_default_in_bfloat16(run):
    code, out, err = run("audit", "--dtype", "bfloat16", "--json")
    assert (code, err) == (0, ""), "a mechanism that has no kernel there is no reason to print nothing"
    report = json.loads(out)
    assert report["reductions"]["ok"] is True
    assert report["reductions"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("n", ["1", pytest.param("3", marks=pytest.mark.slow)])
def test_default_on_few_samples(run, n):
    code, out, err = run("audit", "--json", "--batch-size", n)
    assert (code, err) == (0, "")
    assert json.loads(out)["reductions"]["batch_size"] == int(n)


# --- a model of the user's ------------------------------------------------------------------------------------


def test_healthy_model(run, models):
    code, out, err = run("audit", "--model", f"{models}:healthy")
    assert (code, err) == (0, "")
    assert "Verdict: the reductions agree" in out


def test_faulty_model(run, models):
    code, out, err = run("audit", "--model", f"{models}:faulty", "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["ok"] is False
    assert report["causes"] == ["class_weights"]


def test_own_loop(run, models):
    code, out, err = run("audit", "--model", f"{models}:with_loop", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["causes"] == ["no_division"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_dtype(run, models, dtype):
    code, out, _ = run("audit", "--model", f"{models}:healthy", "--json", "--dtype", dtype)
    assert code == 0
    assert json.loads(out)["dtype"] == dtype


def test_dtype_is_the_models_own(run, models):
    _, out, _ = run("audit", "--model", f"{models}:in_float64", "--json")
    assert json.loads(out)["dtype"] == "float64"


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (4, 4), (600, 6)])
def test_batch_size(run, models, asked, used):
    code, out, _ = run("audit", "--model", f"{models}:healthy", "--json", "--batch-size", str(asked))
    assert code == 0
    assert json.loads(out)["batch_size"] == used


def test_seed(run, models):
    """The same seed, the same report."""
    outs = [run("audit", "--model", f"{models}:faulty", "--json", "--seed", "3")[1] for _ in range(2)]
    assert outs[0] == outs[1]


def test_dotted_paths(run, models, tmp_path):
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(HEALTHY)
    assert run("audit", "--model", "users_package.inner:healthy")[0] == 0


def test_a_method_of_an_object(run, models):
    """Either it is found, or one line says why not."""
    code, _, err = run("audit", "--model", f"{models}:factory.method")
    if code:
        assert code == 2
        one_line(err)


def test_what_the_factory_prints_does_not_spoil_the_json(run, models):
    """Loading weights prints; a pipe into a JSON reader must not care."""
    for name in ("noisy", "talkative"):
        code, out, _ = run("audit", "--model", f"{models}:{name}", "--json")
        assert code == 0
        assert json.loads(out)["ok"] is True


@pytest.mark.filterwarnings("default")
def test_warnings_of_the_factory_do_not_spoil_the_json(run, models):
    with pytest.warns(UserWarning, match="old weights"):
        code, out, _ = run("audit", "--model", f"{models}:warning", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


# --- what can't be read ----------------------------------------------------------------------------------------

# what comes after --model: what the line says. `M` stands for the module's name.
UNREADABLE = {
    "M": "expected package.module:factory",
    "M:": "expected package.module:factory",
    ":healthy": "expected package.module:factory",
    ":": "expected package.module:factory",
    "": "expected package.module:factory",
    "no_such_module_anywhere:make": "cannot import no_such_module_anywhere: ModuleNotFoundError",
    "M.inner:make": "cannot import",
    "..M:healthy": "..",
    "M.py:healthy": "cannot import",
    "M:missing": "has no 'missing'",
    "M:number": "number is an int, expected a function",
    "M:nothing": "nothing() returned None",
    "M:two": "returned a tuple of 2, expected (model, criterion, batch)",
    "M:five": "returned a tuple of 5",
    "M:as_list": "returned a list, expected (model, criterion, batch)",
    "M:needs": "needs() raised TypeError",
    "M:raises": "raises() raised RuntimeError: first line",
    "M:raises_key": "raises_key() raised KeyError",
    "M:asserts": "asserts() raised AssertionError",
    "M:leaves": "leaves() ",
    "M:no_model": "got a str; expected an nn.Module",
    "M:no_criterion": "got the class CrossEntropyLoss",
    "M:no_batch": "as batch",
    "M:empty_batch": "a batch of 0 samples",
    "M:wrong_width": "shapes cannot be multiplied",
    # torch's own errors of other types, from the model or the criterion
    "M:outside": "out of bounds",
    "M:token_outside": "out of range",
    "M:misspelt": "wieght",
    "M:missing_key": "logits",
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("path", UNREADABLE)
def test_unreadable(run, models, path, as_json):
    """Exit code 2 and one line; 1 would mean that a fault was found."""
    code, out, err = run("audit", "--model", path.replace("M", models), *(["--json"] if as_json else []))
    assert code == 2
    assert out == ""
    one_line(err)
    assert UNREADABLE[path] in err


def test_unreadable_module_that_fails_on_import(run, models, tmp_path):
    for i, (text, says) in enumerate(
        [
            ("def f(:\n", "SyntaxError"),
            ("import no_such_dependency\n", "no_such_dependency"),
            ("raise ValueError('at import')\n", "at import"),
            ("import sys\nsys.exit(3)\n", "broken"),
        ]
    ):
        (tmp_path / f"broken_{models}_{i}.py").write_text(text)
        code, out, err = run("audit", "--model", f"broken_{models}_{i}:f")
        assert (code, out) == (2, "")
        one_line(err)
        assert says in err


def test_traceback_on_request(models, monkeypatch):
    monkeypatch.setenv("GRADFUNC_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["gradfunc", "audit", "--model", f"{models}:missing"])
    with pytest.raises(RuntimeError if issubclass(cli.ModelPathError, RuntimeError) else cli.ModelPathError):
        cli.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu", "cuda:x", "mps", "meta"])
@pytest.mark.parametrize("own", [False, True])
def test_devices_that_are_not_there(run, models, name, own):
    code, out, err = run("audit", "--device", name, *(["--model", f"{models}:healthy"] if own else []))
    assert code == 2
    assert out == ""
    one_line(err)


def test_device_cpu(run, models):
    assert run("audit", "--device", "cpu", "--model", f"{models}:healthy")[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--dtype", "float8"),
        ("--dtype", "complex64"),
        ("--dtype",),
        ("--batch-size", "0"),
        ("--batch-size", "-3"),
        ("--batch-size", "many"),
        ("--batch-size", "2.5"),
        ("--seed", "now"),
        ("--colour", "red"),
        ("--jsn",),
        ("model.pt",),
        ("--model",),
    ],
    ids=" ".join,
)
def test_usage(run, options):
    code, out, err = run("audit", *options)
    assert code == 2
    assert out == "", "usage errors go to stderr"
    assert err
    assert "Traceback" not in err


def test_unknown_command(run):
    code, out, err = run("audti")
    assert code == 2
    assert out == ""
    assert err


def test_help_and_version(run):
    code, out, _ = run("--version")
    assert (code, out.strip()) == (0, __version__)
    code, out, _ = run("audit", "--help")
    assert code == 0
    for option in ("--model", "--dtype", "--device", "--batch-size", "--json", "--seed"):
        assert option in out
    code, out, _ = run("--help")
    assert code == 0
    assert "audit" in out


def test_no_command_shows_help(run):
    code, out, err = run()
    assert code in (0, 2)
    assert "audit" in out + err


# --- a process of its own ---------------------------------------------------------------------------------------


def process(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("GRADFUNC_TRACEBACK", None)
    code = "from gradfunc.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_process_of_its_own(models, tmp_path):
    """Files beside the user are found; streams and exit codes are as in this process; no warning at all."""
    faulty = process("audit", "--model", f"{models}:faulty", "--json", cwd=tmp_path)
    assert (faulty.returncode, faulty.stderr) == (1, "")
    assert json.loads(faulty.stdout)["causes"] == ["class_weights"]


def test_an_unreadable_path_in_a_process_of_its_own(models, tmp_path):
    unreadable = process("audit", "--model", f"{models}:missing", cwd=tmp_path)
    assert (unreadable.returncode, unreadable.stdout) == (2, "")
    one_line(unreadable.stderr)


@pytest.mark.slow
def test_a_reader_that_closes_early(models, tmp_path):
    """`gradfunc audit | head -1`: no traceback."""
    command = f'"{sys.executable}" -c "from gradfunc.cli import main; main()" audit --model {models}:healthy | head -1'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1
