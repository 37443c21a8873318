"""`gradfunc bench`: exit codes, streams, options."""

from __future__ import annotations

import json

import pytest
from test_cli import UNREADABLE, models, one_line, run
from tiny import TINY, after

import gradfunc as gf
from gradfunc._zoo import MODELS

__all__ = ["models", "run"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens:UserWarning")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for workload in TINY:
        monkeypatch.setitem(gf.bench.WORKLOADS, workload.name, workload)
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")


@pytest.mark.slow
def test_defaults(run):
    code, out, err = run("bench", "--rounds", "1", "--no-memory")
    assert (code, err) == (0, "")
    for piece in (
        "mlp:",
        "gpt:",
        "gpt-tied:",
        "cnn:",
        "resnet:",
        "vit:",
        "lstm:",
        "forward",
        "gradfunc-vmap",
        "vmap(grad)",
        "clip-and-sum",
    ):
        assert piece in out
    assert max(len(line) for line in out.splitlines()) <= 118


def test_options_and_json(run, tmp_path):
    file = tmp_path / "bench.json"
    arguments = [
        "--workloads",
        "mlp",
        "gpt",
        "--contenders",
        "gradfunc:loop",
        "vmap(grad)",
        "--quantities",
        "norms",
        "gram",
    ]
    code, out, err = run("bench", *arguments, "--rounds", "2", "--warmups", "1", "--json", "--out", str(file))
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert json.loads(file.read_text()) == report
    assert (report["rounds"], report["warmups"], list(report["workloads"])) == (2, 1, ["mlp", "gpt"])
    assert [(row["contender"], row["quantity"]) for row in report["rows"][:5]] == [
        ("plain", "mean gradient"),
        ("gradfunc:loop", "norms"),
        ("gradfunc:loop", "gram"),
        ("vmap(grad)", "norms"),
        ("vmap(grad)", "gram"),
    ]
    assert all(row["peak"] > 0 for row in report["rows"])


def test_a_wrong_contender(run, monkeypatch):
    hand = gf.bench.CONTENDERS["vmap(grad)"]
    doubled = gf.bench.Contender("doubled", after(hand.make, lambda case, out: {k: 2 * v for k, v in out.items()}))
    monkeypatch.setitem(gf.bench.CONTENDERS, "doubled", doubled)
    code, out, _ = run("bench", "--workloads", "mlp", "--contenders", "doubled", "--rounds", "1", "--no-memory")
    assert code == 1
    assert "wrong" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--workloads", "alexnet"), "alexnet"),
        (("--contenders", "opacs"), "opacs"),
        (("--contenders", "gradfunc:fast"), "fast"),
        (("--quantities", "norm"), "norm"),
        (("--device", "gpu"), "gpu"),
    ],
)
def test_unknown_names(run, options, says):
    code, out, err = run("bench", *options)
    assert (code, out) == (2, "")
    one_line(err)
    assert says in err


QUICK = ("--rounds", "1", "--warmups", "1", "--no-memory")


def test_a_model_of_the_users(run, models):
    code, out, err = run("bench", "--model", f"{models}:healthy", *QUICK)
    assert (code, err) == (0, "")
    assert "model: Sequential, 39 trainable parameters, B=6" in out
    assert "mlp" not in out
    for piece in ("plain", "forward", "gradfunc", "gradfunc-vmap", "vmap(grad)", "rounding"):
        assert piece in out


def test_a_model_beside_workloads(run, models):
    options = ("--workloads", "mlp", "--contenders", "gradfunc", "--json", *QUICK)
    code, out, _ = run("bench", "--model", f"{models}:talkative", *options)
    assert code == 0
    assert list(json.loads(out)["workloads"]) == ["mlp", "model"]


def test_a_loop_is_not_used(run, models):
    code, _, err = run("bench", "--model", f"{models}:with_loop", "--contenders", "gradfunc", *QUICK)
    assert code == 0
    assert err == "gradfunc bench: the fourth entry, a loop, is not used; gradfunc audit takes it\n"


def test_a_contender_that_fails_on_the_model(run, models, tmp_path):
    (tmp_path / f"{models}_scalar.py").write_text(
        f"import gradfunc as gf\nfrom {models} import healthy\n"
        "def scalar():\n"
        "    model, criterion, batch = healthy()\n"
        "    return model, gf.whole(lambda model, batch: criterion(model(batch[0]), batch[1])), batch\n"
    )
    code, out, err = run("bench", "--model", f"{models}_scalar:scalar", *QUICK)
    assert (code, err) == (1, "")
    assert "Failed: model, gradfunc, clip-and-sum: ValueError: criterion: got one scalar for the whole batch" in out


@pytest.mark.parametrize("path", UNREADABLE)
def test_an_unreadable_model(run, models, path):
    """As of `audit`: exit code 2 and one line, before anything is measured."""
    code, out, err = run("bench", "--model", path.replace("M", models), "--workloads", "mlp")
    assert (code, out) == (2, "")
    one_line(err)
    assert UNREADABLE[path] in err


@pytest.mark.parametrize(
    "options", [("--rounds", "0"), ("--rounds", "2.5"), ("--threads", "many"), ("--colour", "red")]
)
def test_usage(run, options):
    code, out, err = run("bench", *options)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


def test_help(run):
    code, out, _ = run("bench", "--help")
    assert code == 0
    for option in (
        "--model",
        "--workloads",
        "--contenders",
        "--quantities",
        "--rounds",
        "--threads",
        "--device",
        "--peers",
        "--zoo",
        "--json",
        "--out",
    ):
        assert option in out
    assert "bench" in run("--help")[1]


# --- peers and the zoo ----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """A zoo of two."""
    names = ("einsum", "embedding, padding_idx")
    monkeypatch.setattr("gradfunc.bench._zoo_table.MODELS", {name: MODELS[name] for name in names})
    return names


def test_the_zoo(run, few, tmp_path):
    """Expanded weights are torch's own, so there is always a peer."""
    file = tmp_path / "zoo.json"
    code, out, err = run("bench", "--zoo", "--out", str(file))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 118
    for piece in (
        "einsum",
        MODELS["einsum"].hazard[:20],
        "models: exact",
        "Versions and settings",
        "call_for_per_sample",
    ):
        assert piece in out, piece
    report = json.loads(file.read_text())
    assert [*report["models"]] == [*few]
    assert report["totals"]["gradfunc"] == {"exact": 2}
    assert report["totals"]["expanded-weights"] == {"refused": 1, "wrong": 1}


def test_the_zoo_as_json_with_some_contenders(run, few):
    code, out, err = run("bench", "--zoo", "--contenders", "gradfunc:loop", "--json")
    assert (code, err) == (0, "")
    assert [*json.loads(out)["contenders"]] == ["gradfunc:loop"]
    code, out, _ = run("bench", "--zoo", "--contenders", "gradfunc", "--peers", "--json")
    assert {"gradfunc", "expanded-weights"} <= json.loads(out)["contenders"].keys()


def test_a_fault_in_the_zoo(run, few, monkeypatch):
    hand = gf.bench.CONTENDERS["vmap(grad)"]
    doubled = after(hand.make, lambda case, out: out * 2)
    for peer, expected in ((True, 0), (False, 1)):
        made = gf.bench.Contender("doubled", doubled, ("norms",), peer=peer)
        monkeypatch.setitem(gf.bench.CONTENDERS, "doubled", made)
        code, out, _ = run("bench", "--zoo", "--contenders", "doubled")
        assert code == expected
        assert "wrong" in out


@pytest.mark.parametrize("options", [("--model", "a:b"), ("--workloads", "mlp")])
def test_the_zoo_has_its_own_models(run, options):
    code, out, err = run("bench", "--zoo", *options)
    assert (code, out) == (2, "")
    one_line(err)
    assert "--zoo" in err


def test_peers_beside_the_defaults(run):
    code, out, _ = run("bench", "--workloads", "mlp", "--peers", "--json", *QUICK)
    assert code == 0
    names = [row["contender"] for row in json.loads(out)["rows"]]
    assert {"plain", "floor", "gradfunc", "gradfunc-vmap", "vmap(grad)", "expanded-weights"} <= {*names}
    code, out, _ = run("bench", "--workloads", "mlp", "--json", *QUICK)
    assert "expanded-weights" not in {row["contender"] for row in json.loads(out)["rows"]}


def test_a_peer_that_is_not_there(run, monkeypatch):
    library = gf.bench.Library(("a_module_that_nobody_has",), (), "pip install it")
    monkeypatch.setitem(gf.bench.PEERS, "nobodys", gf.bench.Contender("nobodys", None, peer=True, library=library))
    code, out, err = run("bench", "--contenders", "nobodys", *QUICK)
    assert (code, out) == (2, "")
    one_line(err)
    assert "contender='nobodys', which is not installed; expected an installed peer. pip install it" in err
    code, out, _ = run("bench", "--workloads", "mlp", "--contenders", "gradfunc", "--peers", *QUICK)
    assert code == 0
    assert "Note: not installed: nobodys; pip install it" in out


def test_both_tables_of_a_users_model(run, models):
    code, out, err = run("bench", "--model", f"{models}:healthy", *QUICK)
    assert (code, err) == (0, "")
    for piece in ("x plain", "Per-sample gradients of 1 model in float64", "expa-", "Versions and settings"):
        assert piece in out, piece
    code, out, _ = run("bench", "--model", f"{models}:healthy", "--contenders", "gradfunc", "--json", *QUICK)
    asked = json.loads(out)["exactness"]
    assert ([*asked["models"]], asked["totals"]) == (["model"], {"gradfunc": {"exact": 1}})
    code, out, _ = run("bench", "--model", f"{models}:healthy", "--contenders", "forward", "--json", *QUICK)
    assert (code, json.loads(out)["exactness"]) == (0, None), "nothing is compared"


def test_a_fault_that_only_the_second_table_shows(run, models, monkeypatch):
    """Rows, where only the sum was timed."""
    hand = gf.bench.CONTENDERS["vmap(grad)"]

    def make(case, quantity):
        call = hand.make(case, quantity)
        return (lambda: call() * 2) if quantity == "norms" else call

    monkeypatch.setitem(gf.bench.CONTENDERS, "partly", gf.bench.Contender("partly", make))
    code, out, _ = run("bench", "--model", f"{models}:healthy", "--contenders", "partly", "--json", *QUICK)
    report = json.loads(out)
    assert (code, report["ok"], report["exactness"]["ok"]) == (1, False, False)
    assert {row["verdict"] for row in report["rows"]} == {"", "rounding"}
