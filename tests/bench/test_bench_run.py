"""What a benchmark says: times round by round, right or wrong, memory, and where it ran. Nothing here is timed."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess

import pytest
import torch
from tiers import every
from tiny import MLP, TIED, TINY, Clock, after

import gradfunc as gf
from gradfunc.bench._contenders import PLAIN
from gradfunc.bench._environment import commit
from gradfunc.bench._report import _short, quartiles

FEW = (MLP, TIED)
COMPARED = ("gradfunc", "vmap(grad)")
HAND = gf.bench.CONTENDERS["vmap(grad)"]


@pytest.fixture(scope="module")
def report():
    return gf.bench.run(FEW, ["plain", "forward", *COMPARED], quantities=gf.bench.QUANTITIES, rounds=2)


def test_every_contender_is_right_on_every_workload(report):
    assert report.ok
    asked = [("plain", "mean gradient"), ("forward", "loss")]
    asked += [(name, quantity) for name in COMPARED for quantity in gf.bench.QUANTITIES]
    assert [(row.workload, row.contender, row.quantity) for row in report.rows] == [
        (workload.name, *one) for workload in FEW for one in asked
    ]
    for row in report.rows:
        assert len(row.times) == len(row.ratios) == 2
        assert min(row.first, row.peak, *row.times) > 0
        compared = row.quantity in gf.bench.QUANTITIES
        assert row.verdict == ("rounding" if compared else "")
        assert (row.error is not None and row.error64 < 1e-12) == compared
    assert report.row("mlp", "plain").ratios == (1.0, 1.0)


@pytest.mark.parametrize("workload", TINY, ids=lambda workload: workload.name)
def test_the_floor_computes_what_the_method_needs(workload):
    """Squared norms and sums of every use of a weight, and all other gradients by autograd."""
    case = workload.case().cast(torch.float64)
    found, squares, sums = gf.bench.CONTENDERS["floor"].make(case, "its operations")()
    g = gf.per_sample_grads(case.losses, batched=True, engine="factored")(case.model.params, *case.batch)
    mean, total, norms = g.mean(), g.sum(), g.norms(per_parameter=True)
    added = {"positions.weight", "positions", "token", *(() if workload is TIED else ("tokens.weight",))}
    weights = [name for name, value in mean.items() if value.dim() > 1 and name not in added]
    assert len(squares) == len(sums) == len(weights) > 1
    for name, square, whole in zip(weights, squares, sums, strict=True):
        if name != "tokens.weight":  # the head is one of its two uses
            assert torch.allclose(square.sqrt(), norms[name], rtol=1e-10)
            assert torch.allclose(whole.view_as(total[name]), total[name], rtol=1e-10)
    others = [value for name, value in mean.items() if name not in weights]
    assert len(found) == len(others)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, others, strict=True))


@pytest.mark.parametrize(
    ("name", "asked", "report"),
    [("gradient-flow", "flow", gf.diagnose.FlowReport), ("find-nonfinite", "nonfinite", gf.diagnose.NonfiniteReport)],
)
def test_a_diagnosis_is_timed_where_it_is_asked_for(name, asked, report):
    both = ["gradient-flow", "find-nonfinite"]
    rows = gf.bench.run([MLP], both, quantities=[asked], rounds=1, memory=False).rows
    assert [row.contender for row in rows] == ["plain", name]
    made = gf.bench.CONTENDERS[name].make(TIED.case(), asked)()
    assert isinstance(made, report)
    assert name != "find-nonfinite" or made.ok


def test_the_table(report):
    text = str(report)
    assert max(map(len, text.splitlines())) <= 118
    heads = ("x plain", "quartiles", "first ms", "peak MiB", "error", "verdict")
    cells = ("vmap(grad)", "gradfunc", "clip-and-sum", "rounding", f"torch {torch.__version__}", "2 rounds")
    for piece in ("mlp: perceptron 4-8-3, B=11", "tied head, B=3", *heads, *cells):
        assert piece in text, piece


def test_json(report):
    out = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(out) == {
        "environment", "workloads", "rounds", "warmups", "rows", "notes", "peers", "exactness", "ok"
    }  # fmt: skip
    assert set(out["rows"][0]) == {
        "workload", "contender", "quantity", "verdict", "error", "error64", "first", "times", "ratios", "peak",
        "failure", "peer", "time_quartiles", "ratio_quartiles",
    }  # fmt: skip
    assert (out["ok"], out["rounds"], out["warmups"]) == (True, 2, 2)
    assert list(out["peers"]) == ["vmap(grad)"]
    assert out["exactness"] is None


def test_where_it_ran(report):
    where = report.environment
    assert {"date", "gradfunc", "commit", "python", "torch", "device", "cpu", "threads", "settings", "load"} <= set(
        where
    )
    assert (where["torch"], where["device"], where["threads"]) == (torch.__version__, "cpu", torch.get_num_threads())
    assert where["settings"]["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS")
    text = json.dumps(where)
    assert os.getcwd() not in text
    assert platform.node() not in {str(value) for value in where.values()}


def test_the_commit(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    assert commit(folder) is None  # no repository

    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *args], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "of somebody else")
    assert commit(folder) is None  # inside a repository that does not hold it
    git("add", "package")
    git("commit", "-q", "-m", "the package")
    assert commit(folder) == git("rev-parse", "HEAD")
    (folder / "__init__.py").write_text("changed = 1\n")
    assert commit(folder) == git("rev-parse", "HEAD") + "-dirty"


# --- times ----------------------------------------------------------------------------------------------------


def slowed(contender, clock, seconds, order):
    """The contender, whose calls on the whole batch move the clock by these seconds in turn."""
    left = iter(seconds)

    def make(case, quantity):
        call = contender.make(case, quantity)

        def slow():
            if case.batch[0].dtype == torch.float32:  # not the comparison in float64
                clock.now += next(left)
                order.append(contender.name)
            return call()

        return slow

    return gf.bench.Contender(contender.name, make, contender.quantities)


def test_ratios_are_of_the_same_round():
    clock, order = Clock(), []
    plain = slowed(PLAIN, clock, [50.0, 60.0, 1.0, 10.0, 2.0], order)
    other = slowed(HAND, clock, [90.0, 80.0, 2.0, 30.0, 1.0], order)
    forward = slowed(gf.bench.CONTENDERS["forward"], clock, [5.0] * 5, order)
    report = gf.bench.run([MLP], [plain, other, forward], rounds=3, warmups=2, memory=False, clock=clock)
    row = report.row("mlp", "vmap(grad)")
    assert (row.first, row.times) == (90.0, (2.0, 30.0, 1.0))  # warm-up calls are apart
    assert row.ratios == (2.0, 3.0, 0.5)
    assert row.to_dict()["ratio_quartiles"] == (1.25, 2.0, 2.5)  # the ratio of the medians would be 1
    a, b, c = "plain", "vmap(grad)", "forward"
    assert order == [a, a, b, b, c, c, *(a, b, c), *(b, c, a), *(c, a, b)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [((), None), ((3.0,), (3.0, 3.0, 3.0)), ((1.0, 3.0), (1.5, 2.0, 2.5)), ((5, 1, 2, 4, 3), (2.0, 3.0, 4.0))],
)
def test_quartiles(values, expected):
    assert quartiles(values) == expected


def test_numbers_of_the_table():
    values = [None, 1.0, 9.994, 9.996, 99.94, 99.96, 23770.4]
    assert [_short(value) for value in values] == ["-", "1.00", "9.99", "10.0", "99.9", "100", "23,770"]


# --- right or wrong -------------------------------------------------------------------------------------------


def verdict(make, quantity="clip-and-sum"):
    contender = gf.bench.Contender("changed", make)
    report = gf.bench.run([MLP], [contender], quantities=[quantity], rounds=1, memory=False)
    row = report.row("mlp", "changed")
    assert report.ok == (row.verdict == "rounding")
    return row.verdict


def scaled(factor):
    return lambda case, result: {name: value * factor for name, value in result.items()}


def unclipped(case, quantity):
    ones = torch.ones(case.size, dtype=case.model.params["0.weight"].dtype)
    return lambda: gf.bench._by_hand.weighted_sum(gf.bench._by_hand.rows(case), ones)


def clipped_by_layer(case, quantity):
    """Each parameter's gradient clipped by its own norm."""

    def call():
        rows = gf.bench._by_hand.rows(case)
        out = {}
        for name, value in rows.items():
            factors = gf.bench._by_hand.clip_factors(gf.bench._by_hand.norms({name: value}), case.max_norm)
            out |= gf.bench._by_hand.weighted_sum({name: value}, factors)
        return out

    return call


def rounded(case, result):
    """Through bfloat16 at the workload's precision only, as a kernel that is too coarse would."""
    return {k: v.bfloat16().to(v.dtype) if v.dtype == torch.float32 else v for k, v in result.items()}


WRONG = {
    "not clipped": unclipped,
    "clipped by layer": clipped_by_layer,
    "off by a thousandth": after(HAND.make, scaled(1.001)),
    "off by a millionth": after(HAND.make, scaled(1 + 1e-6)),  # too little to show in float32 alone
    "torch's own clip factor, 1e-6 off": after(HAND.make, scaled(1 / (1 + 1e-6))),
    "NaN": after(HAND.make, scaled(math.nan)),
    "a parameter is missing": after(HAND.make, lambda case, out: dict(list(out.items())[1:])),
    "too coarse": after(HAND.make, rounded),
    "mean for sum": after(HAND.make, lambda case, out: {k: v / case.size for k, v in out.items()}),
}


@pytest.mark.parametrize("fault", every(3, WRONG))
def test_a_wrong_sum_is_told(fault):
    assert verdict(WRONG[fault]) == "wrong"


def test_a_right_sum_is_told():
    assert verdict(HAND.make) == "rounding"
    assert verdict(after(HAND.make, scaled(1 + 1e-16))) == "rounding"


def first_of(rows):
    return (torch.arange(len(rows)) != 3).view(-1, *[1] * (rows.dim() - 1))


ROWS = {
    "off by a thousandth": scaled(1.001),
    "two samples exchanged": lambda case, out: {k: v.flip(0) for k, v in out.items()},
    "the first alone": lambda case, out: {k: v[:1].expand(v.shape) for k, v in out.items()},
    "one sample": lambda case, out: {k: v.where(first_of(v), v * 1.001) for k, v in out.items()},
    "a sample too few": lambda case, out: {k: v[1:] for k, v in out.items()},
    "a parameter is missing": lambda case, out: dict(list(out.items())[1:]),
    "a list": lambda case, out: list(out.values()),
    "NaN": scaled(math.nan),
    "summed": lambda case, out: {k: v.sum(0) for k, v in out.items()},
}


@pytest.mark.parametrize("fault", ROWS)
def test_wrong_rows_are_told(fault):
    assert verdict(after(HAND.make, ROWS[fault]), "materialise") == "wrong"


@pytest.mark.parametrize("quantity", ["norms", "gram"])
def test_wrong_norms_and_gram_are_told(quantity):
    assert verdict(HAND.make, quantity) == "rounding"
    assert verdict(after(HAND.make, lambda case, out: out * 1.001), quantity) == "wrong"
    assert verdict(after(HAND.make, lambda case, out: out.flip(0)), quantity) == "wrong"


def raising(after_calls):
    def make(case, quantity):
        call = HAND.make(case, quantity)
        calls = []

        def sometimes():
            calls.append(1)
            if len(calls) > after_calls:
                raise RuntimeError("no rule\nfor this layer")
            return call()

        return sometimes

    return make


@pytest.mark.parametrize("calls", every(4, [1, 0, 3, 4]))
def test_a_contender_that_raises_fails_alone(calls):
    """In its first call, in a warm-up, in a round, or where memory is measured."""
    broken = gf.bench.Contender("broken", raising(calls))
    report = gf.bench.run([MLP], [broken, "vmap(grad)"], rounds=2, warmups=2)
    row, other = report.row("mlp", "broken"), report.row("mlp", "vmap(grad)")
    assert (row.verdict, row.failure, row.times) == ("failed", "RuntimeError: no rule for this layer", ())
    assert not report.ok
    assert "Failed: mlp, broken, clip-and-sum: RuntimeError: no rule for this layer" in str(report)
    assert (other.verdict, len(other.times)) == ("rounding", 2)
    json.dumps(report.to_dict(), allow_nan=False)


# --- memory ---------------------------------------------------------------------------------------------------


def bytes_of(n):
    return torch.empty(n, dtype=torch.uint8)


@pytest.mark.parametrize("k", [1, 7, 64])
def test_a_peak_of_k_mebibytes_is_seen(device, k):
    """Also where the result is kept, and where others come and go around it."""
    size = k * 2**20

    def full():
        return torch.empty(size, dtype=torch.uint8, device=device)

    def halves():
        for _ in range(3):
            torch.empty(size // 2, dtype=torch.uint8, device=device)
        return torch.empty(size, dtype=torch.uint8, device=device).sum(dtype=torch.uint8)

    kept = torch.empty(2**20, dtype=torch.uint8, device=device)
    for call in (full, halves, full):
        assert size <= gf.bench.peak_bytes(call, device) <= size + 4096
    del kept


def test_a_peak_is_no_sum():
    def call():
        a = bytes_of(2**20)
        del a
        b = bytes_of(3 * 2**20)
        c = bytes_of(2**20)
        del b
        return c, bytes_of(2 * 2**20)

    assert gf.bench.peak_bytes(call) == 4 * 2**20
    assert gf.bench.peak_bytes(lambda: None) == 0


def test_the_backward_pass_is_seen():
    x = torch.ones(2**18, requires_grad=True)  # 1 MiB
    peak = gf.bench.peak_bytes(lambda: torch.autograd.grad((x.sin() * 2).sum(), x))
    assert 2 * 2**20 <= peak <= 4 * 2**20


# --- the call -------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind():
    state, count = torch.random.get_rng_state(), torch.get_num_threads()
    seen = []
    watch = gf.bench.Contender("watch", lambda case, quantity: lambda: seen.append(torch.get_num_threads()), ("-",))
    report = gf.bench.run([MLP], [watch], rounds=1, memory=False, threads=count + 1)
    assert set(seen) == {count + 1}
    assert report.environment["threads"] == count + 1
    assert torch.get_num_threads() == count
    assert torch.equal(torch.random.get_rng_state(), state)


def test_progress_names_the_stages():
    stages = []
    gf.bench.run([MLP], ["forward"], rounds=2, memory=False, progress=stages.append)
    assert stages == ["mlp: the answers in float64", "mlp: plain, mean gradient", "mlp: forward, loss",
                      "mlp: round 1 of 2", "mlp: round 2 of 2", "mlp: memory"]  # fmt: skip


def test_an_engine_by_name():
    report = gf.bench.run([MLP], ["gradfunc:loop", "gradfunc-vmap:vmap"], rounds=1, memory=False)
    assert [row.contender for row in report.rows] == ["plain", "gradfunc:loop", "gradfunc-vmap:vmap"]
    assert report.ok


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((["alexnet"],), {}, "workload='alexnet'"),
        (([MLP], ["opacs"]), {}, "contender='opacs'"),
        (([MLP], ["gradfunc:fast"]), {}, "engine='fast'"),
        (([MLP], ["plain:vmap"]), {}, "an engine behind gradfunc's own only"),
        (([MLP],), {"quantities": ["norm"]}, "quantity='norm'"),
        (([MLP],), {"rounds": 0}, "rounds=0"),
        (([MLP],), {"warmups": 0}, "warmups=0"),
        (([MLP],), {"threads": True}, "threads=True"),
        (([MLP],), {"device": "gpu"}, "device='gpu'"),
    ],
)
def test_unknown_names_and_numbers(arguments, options, says):
    with pytest.raises(ValueError, match=says):
        gf.bench.run(*arguments, **options)


@pytest.mark.parametrize("arguments", [([3],), ([MLP], [3])])
def test_other_forms(arguments):
    with pytest.raises(TypeError, match="expected a name or a"):
        gf.bench.run(*arguments)


def test_a_row_that_is_not_there(report):
    with pytest.raises(KeyError, match="no row"):
        report.row("mlp", "opacus")


def test_on_a_device(device):
    report = gf.bench.run(TINY, COMPARED, rounds=1, warmups=1, device=device)
    assert report.ok
    refused = {(row.workload, row.contender) for row in report.rows if row.verdict == "refused"}
    assert refused <= {("lstm", "vmap(grad)")}  # torch has no batching rule for its own LSTM
    assert min(row.peak for row in report.rows if row.verdict != "refused") > 0


def test_an_engine_is_a_contender_of_its_own():
    asked = gf.bench.gradfunc("loop", batched=False)
    found = gf.bench.run([MLP], [asked], rounds=1, memory=False).row("mlp", "gradfunc-vmap:loop")
    assert found.verdict == "rounding"
    with pytest.raises(ValueError, match="engine"):
        gf.bench.gradfunc("hooks")
