"""`check_gradients`: healthy models pass at every seed, and every planted fault is named."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from audited import CLASSES, CRITERIA, MODELS, WIDTH, Tied, encoder, mlp, sequence_model, tokens, x, y
from test_purity import untouched
from tiers import every, quick
from torch import Tensor, nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc import _engines, _factors
from gradfunc._certificate import Difference
from gradfunc._engines import _factored
from gradfunc.diagnose import _slopes
from gradfunc.testing import _agreement, _hooks, _planted

DTYPES = ["float32", "float64"]
SIZES = [5, 1, 8, 2]
# Every second one; all of them, at every size and precision, are in the slow tier.
QUICK = [(name, SIZES[i % 4], DTYPES[i % 2]) for i, name in enumerate(list(MODELS)[::2])]
QUICK_CRITERIA = [(name, SIZES[(i + 2) % 4], DTYPES[i % 2]) for i, name in enumerate(list(CRITERIA)[::2])]
PRODUCT = [(name, n, dtype) for name in (*MODELS, *CRITERIA) for n in SIZES for dtype in DTYPES]


def checked(made, **options) -> gf.testing.CheckReport:
    return gf.testing.check_gradients(*made, **options)


def verdicts(report) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for row in report.rows:
        out.setdefault(row.check.rpartition(": ")[2], set()).add(row.verdict)
    return out


def healthy(report) -> None:
    assert report.ok, report
    assert report.notes == ()
    told = verdicts(report)
    assert told["slope"] <= {"rounding"}, report
    assert not any("cannot tell" in of_check for of_check in told.values()), report
    assert "layer" not in told


# --- healthy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n", "dtype"), every(3, QUICK))
def test_models(name, n, dtype):
    report = checked(MODELS[name](n), dtype=dtype)
    healthy(report)
    told = verdicts(report)
    # It says so because it ran.
    for check in ("sum", "weighted sum", "gram", "norms", "dot", "rows", "dtypes", "storage", "repetition", "purity"):
        assert "not run" not in told[check], report
    assert told["independence"] == ({"not run"} if n == 1 else {"holds"})
    assert (report.dtype, report.other_dtype) == (dtype, DTYPES[dtype == "float32"])


@pytest.mark.parametrize(("name", "n", "dtype"), every(4, QUICK_CRITERIA))
def test_criteria(name, n, dtype):
    healthy(checked(CRITERIA[name](n), dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n", "dtype"), PRODUCT)
def test_every_model_size_and_precision(name, n, dtype):
    report = checked({**MODELS, **CRITERIA}[name](n), dtype=dtype)
    assert report.ok, report


def dropped(training: bool):
    return lambda n: (mlp(nn.Dropout(0.4)).train(training), nn.CrossEntropyLoss(), (x(n), y(n)))


# One in the ordinary run, the others in the slow one.
MORE_SEEDS = [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3)]]
RANDOM = {
    "dropout, train": dropped(True),
    "dropout, eval": dropped(False),
    "dropout2d": lambda n: (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(64, CLASSES)),
        nn.CrossEntropyLoss(),
        (x(n, 2, 6, 6), y(n)),
    ),
    "transformer with dropout": sequence_model(encoder(dropout=0.3)),
    "lstm with dropout": sequence_model(nn.LSTM(8, 6, 2, batch_first=True, dropout=0.4), 6),
    "rrelu": lambda n: (mlp(nn.RReLU()), nn.CrossEntropyLoss(), (x(n), y(n))),
}


@pytest.mark.parametrize("seed", MORE_SEEDS)
@pytest.mark.parametrize("name", quick(["dropout, train", "rrelu"], RANDOM))
def test_models_that_draw(name, seed):
    torch.manual_seed(seed)
    report = checked(RANDOM[name](3), seed=seed, dtype=DTYPES[seed % 2])
    assert report.ok, report
    told = verdicts(report)
    assert told["slope"] == {"rounding"}
    assert told["weighted sum"] <= {"exact", "rounding"}
    assert told["independence"] <= ({"cannot tell", "holds"} if name == "rrelu" else {"holds"})


@pytest.mark.parametrize("seed", MORE_SEEDS)
@pytest.mark.parametrize("name", quick(["cnn", "tied embedding"], ["deep mlp", "cnn", "rnn", "tied embedding"]))
def test_no_false_claim_at_any_seed(name, seed):
    torch.manual_seed(seed)
    healthy(checked(MODELS[name](4), seed=seed))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(dtype):
    report = checked(MODELS["mlp"](6), dtype=dtype)
    assert report.ok, report
    assert report.other_dtype == "float64"


WEIGHTS = {
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 4.0])),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "ignored and weighted": nn.CrossEntropyLoss(ignore_index=1, weight=torch.tensor([0.3, 1.0, 4.0])),
    "smoothed and weighted": nn.CrossEntropyLoss(label_smoothing=0.2, weight=torch.tensor([0.3, 1.0, 4.0])),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_no_fault(name, dtype):
    """The criterion's mean is a mean: by weights, which its 'sum' does not have to be divided by n to agree with."""
    report = checked((mlp(), WEIGHTS[name], (x(6), torch.tensor([0, 1, 2, 1, 0, 2]))), dtype=dtype)
    assert report.ok, report
    told = verdicts(report)
    assert told["criterion's mean"] | told["weights add up"] <= {"exact", "rounding"}


def test_every_sample_ignored():
    report = checked((mlp(), nn.CrossEntropyLoss(ignore_index=1), (x(4), torch.ones(4, dtype=torch.long))))
    assert report.ok, report


def test_a_kink_that_is_met_cannot_be_told():
    """Zero inputs and no bias: every ReLU sits at 0."""
    model = nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    report = checked((model, nn.CrossEntropyLoss(), (x(4), y(4))))
    assert report.ok, report
    assert verdicts(report)["slope"] == {"rounding", "cannot tell"}
    assert "kink" in str(report)


# --- planted faults -----------------------------------------------------------------------------------------------


class Half(torch.autograd.Function):
    """The identity with half of its gradient, also under vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g / 2


class Activation(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return Half.apply(torch.tanh(h))


class Layer(nn.Linear):
    def forward(self, h: Tensor) -> Tensor:
        return Half.apply(super().forward(h))


class Inside(nn.Module):
    """The fault is in a forward of its own, with healthy layers below it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 7), nn.Linear(7, CLASSES)

    def forward(self, h: Tensor) -> Tensor:
        return self.second(Half.apply(torch.tanh(self.first(h))))


class Detached(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h + h.detach()


class Mixing(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


def divided(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out, target, reduction="none") / len(out)


class OwnSum(nn.Module):
    """'sum' is the mean by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(out, target, reduction="none")
        return each if self.reduction == "none" else each.mean()


def hooked(make) -> nn.Module:
    model = mlp(nn.Sigmoid())
    make(model)
    return model


def shrink(parameter) -> None:
    parameter.grad.mul_(0.1)


def doubled(inputs):
    return tuple(2 * g for g in inputs)


CE = nn.CrossEntropyLoss()

# fault -> (model, criterion, the check that names it, what it names)
FAULTS = {
    "a custom backward in an activation": (lambda: mlp(Activation()), CE, "layer", "1 (Activation)"),
    "a custom backward in a layer with weights": (
        lambda: nn.Sequential(nn.Linear(WIDTH, 7), nn.Sequential(Layer(7, 7)), nn.Tanh(), nn.Linear(7, CLASSES)),
        CE,
        "layer",
        "1.0 (Layer)",
    ),
    "a custom backward in a forward of one's own": (Inside, CE, "layer", "Inside"),
    "a detach": (lambda: mlp(Detached()), CE, "layer", "1 (Detached)"),
    "a custom backward in the criterion": (
        mlp,
        lambda out, target: F.cross_entropy(Half.apply(out), target, reduction="none"),
        "slope",
        "0",
    ),
    "a layer that mixes samples": (lambda: mlp(Mixing()), CE, "independence", "1"),
    "batch norm in train mode": (lambda: mlp(nn.BatchNorm1d(7)), CE, "independence", "1"),
    "a loss that divides by n": (mlp, divided, "criterion and n", "criterion divided"),
    "a whole criterion that divides by n": (
        mlp,
        gf.whole(lambda model, batch: divided(model(batch[0]), batch[1])),
        "criterion and n",
        "criterion <lambda>",
    ),
    "a sum that is a mean": (mlp, OwnSum(), "criterion's sum", "criterion OwnSum"),
    "weights that depend on n": (
        mlp,
        lambda out, target: gf.Weighted(
            F.cross_entropy(out, target, reduction="none"), torch.full((len(out),), 1 / len(out), dtype=out.dtype)
        ),
        "weights add up",
        "criterion <lambda>",
    ),
    "a full backward hook": (
        lambda: hooked(lambda m: m[1].register_full_backward_hook(lambda module, i, o: doubled(i))),
        CE,
        "hooks",
        "1",
    ),
    "a backward pre-hook": (
        lambda: hooked(lambda m: m[1].register_full_backward_pre_hook(lambda module, o: doubled(o))),
        CE,
        "hooks",
        "1",
    ),
    "a hook on a parameter": (
        lambda: hooked(lambda m: m[0].weight.register_hook(lambda g: 0.1 * g)),
        CE,
        "hooks",
        "0.weight",
    ),
    "a hook once the gradient is there": (
        lambda: hooked(lambda m: m[3].bias.register_post_accumulate_grad_hook(shrink)),
        CE,
        "hooks",
        "3.bias",
    ),
    "a tensor hook in the forward": (
        lambda: hooked(
            lambda m: m[1].register_forward_hook(lambda module, i, out: out.register_hook(lambda g: 0.5 * g) and None)
        ),
        CE,
        "layer",
        "1 (Sigmoid)",
    ),
}


# One for each check that finds faults; the others are in the slow tier.
ONE_A_CHECK = [
    "batch norm in train mode",
    "a custom backward in a layer with weights",
    "a detach",
    "a custom backward in the criterion",
    "a loss that divides by n",
    "a sum that is a mean",
    "weights that depend on n",
    "a full backward hook",
    "a hook on a parameter",
]
assert {FAULTS[name][2] for name in ONE_A_CHECK} == {fault[2] for fault in FAULTS.values()}


def planted(name):
    torch.manual_seed(3)
    model, criterion, check, where = FAULTS[name]
    return (model(), criterion, (x(6), y(6))), check, where


def test_a_row_for_padding_is_no_fault():
    """Its gradient is 0 by design, while the loss does depend on it."""
    for embed in (nn.Embedding(9, 4, padding_idx=0), nn.Embedding(9, 4, padding_idx=-1)):
        model = nn.Sequential(embed, nn.Flatten(), nn.Linear(12, 3))
        ids = torch.randint(9, (6, 3))
        ids[0, 0], ids[1, 1] = 0, 8
        report = checked((model, CE, (ids, torch.randint(3, (6,)))))
        assert report.ok, report


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", quick(ONE_A_CHECK, FAULTS))
def test_a_planted_fault_is_named(name, dtype):
    made, check, where = planted(name)
    report = checked(made, dtype=dtype)
    assert not report.ok
    row = report.row(check)
    assert (row.verdict, row.parameter) == ("wrong", where), report
    assert row.cause
    assert where in str(report)
    assert where in [found["parameter"] for found in report.to_dict()["rows"] if found["verdict"] == "wrong"]


# The first here; README's table, of all of them, is in the quick tier too.
@pytest.mark.parametrize("planted", quick(_planted.PLANTED[:1], _planted.PLANTED), ids=lambda planted: planted.fault)
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_the_library_s_own_examples(planted, seed):
    model, criterion = planted.make()
    torch.manual_seed(seed)
    report = gf.testing.check_gradients(model, criterion, (torch.rand(6, 64), torch.randint(10, (6,))), seed=seed)
    assert (report.ok, report.row(planted.check).parameter) == (False, planted.names)


def test_only_layers_that_are_reached_by_the_wrong_gradient_are_wrong():
    """Below the fault the gradient is wrong, above it is right."""
    made, *_ = planted("a custom backward in a layer with weights")
    rows = {
        row.parameter or row.compares.split()[5].strip(","): row.verdict
        for row in checked(made).rows
        if row.check == "slope"
    }
    assert rows == {"0": "wrong", "1.0": "wrong", "3": "rounding"}


def test_divides_is_told_from_depends():
    assert (
        "divides by the number of samples"
        in checked(planted("a loss that divides by n")[0]).row("criterion and n").cause
    )

    def centred(out, target):
        each = F.cross_entropy(out, target, reduction="none")
        return each - each.mean()

    report = checked((mlp(), centred, (x(6), y(6))))
    assert report.row("criterion and n").verdict == "wrong"
    assert "divides" not in report.row("criterion and n").cause
    assert report.row("independence").parameter == "the criterion"


def test_ctc_has_a_mean_that_is_not_its_sum():
    model = nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(-1))
    batch = (torch.randn(8, 3, 4), (torch.randint(1, 5, (3, 4)), torch.full((3,), 8), torch.tensor([1, 2, 4])))
    report = checked((gf.stateless(model, in_dims=1, out_dims=1), nn.CTCLoss(), batch))
    assert report.row("criterion's mean").verdict == "wrong"
    assert report.row("criterion's mean").parameter == "criterion CTCLoss"


# --- hooks that do nothing, and what is not run -------------------------------------------------------------------


def test_hooks_that_only_look_are_no_fault():
    seen = []
    model = hooked(lambda m: m[1].register_full_backward_hook(lambda module, i, o: seen.append(1)))
    model[0].weight.register_hook(lambda g: seen.append(2))
    model[0].register_forward_hook(lambda module, i, o: seen.append(3))
    report = checked((model, CE, (x(4), y(4))))
    assert report.ok, report
    hooks = [row for row in report.rows if row.check == "hooks"]
    assert {row.verdict for row in hooks} == {"exact"}
    assert any("backward hook on module 1" in row.compares for row in hooks)
    assert any("tensor hook on parameter 0.weight" in row.compares for row in hooks)
    assert any("forward hook on module 0" in note for note in report.notes)
    assert {1, 2, 3} <= set(seen)


def test_hooks_are_not_stripped_from_the_users_model():
    model = planted("a full backward hook")[0][0]
    before = dict(model[1]._backward_hooks)
    checked((model, CE, (x(4), y(4))))
    assert dict(model[1]._backward_hooks) == before


def test_what_cannot_run_is_no_pass():
    class Branching(nn.Linear):
        def forward(self, h: Tensor) -> Tensor:
            return super().forward(h) if bool(h.abs().sum() >= 0) else h

    report = checked((Branching(WIDTH, CLASSES), CE, (x(4), y(4))))
    assert report.ok
    row = report.row("engines")
    assert (row.verdict, row.cause != "") == ("not run", True)
    assert "did not run" in str(report)
    assert "Checks that say nothing" in str(report)


def test_a_criterion_of_one_scalar_says_what_did_not_run():
    report = checked(CRITERIA["whole, scalar"](4))
    not_run = {row.check for row in report.rows if row.verdict == "not run"}
    assert {"independence", "sum", "criterion and n", "weights add up"} <= not_run
    assert all(row.cause for row in report.rows if row.verdict == "not run")


def test_a_model_of_one_precision():
    class Single(nn.Linear):
        def forward(self, h: Tensor) -> Tensor:
            if h.dtype == torch.float64:
                raise ValueError("float32 only")
            return super().forward(h)

    report = checked((Single(WIDTH, CLASSES), CE, (x(4), y(4))))
    assert report.ok, report
    assert report.other_dtype is None
    assert report.row("slope").verdict == "not run"
    assert "float32 only" in report.row("slope").cause
    assert "cannot tell" in {row.verdict for row in report.rows}
    assert any("could not be repeated in float64" in note for note in report.notes)


def test_warnings_of_the_model_become_notes():
    class Warning_(nn.Linear):
        def forward(self, h: Tensor) -> Tensor:
            import warnings

            warnings.warn("about to be slow", RuntimeWarning, stacklevel=1)
            return super().forward(h)

    report = checked((Warning_(WIDTH, CLASSES), CE, (x(4), y(4))))
    assert any("about to be slow" in note for note in report.notes)


def test_a_criterion_that_draws():
    def noisy(out, target):
        return F.cross_entropy(out + 0.3 * torch.randn_like(out), target, reduction="none")

    report = checked((mlp(), noisy, (x(4), y(4))))
    assert report.ok, report
    assert report.row("criterion").verdict == "not run"


# --- purity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a full backward hook", "a hook on a parameter", "batch norm in train mode"])
def test_nothing_changes_in_faulty_models(name):
    (model, criterion, batch), *_ = planted(name)
    with untouched(model, batch, criterion):
        checked((model, criterion, batch))


@pytest.mark.parametrize("dtype", [None, "float64", "bfloat16"])
def test_nothing_changes(dtype):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, CLASSES))
    model[0].requires_grad_(False)
    batch = (x(6, 2, 6, 6), torch.arange(6) % CLASSES)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    with untouched(model, batch, criterion):
        gf.testing.check_gradients(model, criterion, batch, dtype=dtype)


class Leaky(nn.Module):
    """Leaves something behind that no copy of a module can hold back."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.head, self.history, self.what = nn.Linear(WIDTH, CLASSES), [], what

    def forward(self, h: Tensor) -> Tensor:
        if self.what == "list":
            self.history.append(len(h))
        if self.what == "numpy":
            np.random.rand()
        return self.head(h)


@pytest.mark.parametrize(("what", "named"), [("list", "history"), ("numpy", "numpy's generator")])
def test_what_the_model_leaves_behind_is_named(what, named):
    report = checked((Leaky(what), CE, (x(4), y(4))))
    assert (report.row("purity").verdict, report.row("purity").parameter) == ("wrong", named)
    assert not report.ok


def test_outside_draws_are_noticed():
    class Outside(nn.Linear):
        def forward(self, h: Tensor) -> Tensor:
            return super().forward(h) * float(np.random.rand())

    report = checked((Outside(WIDTH, CLASSES), CE, (x(4), y(4))))
    assert not report.ok
    assert report.row("repetition").verdict == "wrong"


@pytest.mark.slow
def test_twice_gives_the_same():
    made = RANDOM["dropout, train"](4)
    reports = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        reports.append(checked(made).to_dict())
    assert reports[0] == reports[1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_grad_mode_does_not_matter(mode):
    made = MODELS["mlp"](4)
    with mode():
        enabled = torch.is_grad_enabled()
        assert checked(made).ok
        assert torch.is_grad_enabled() == enabled


# --- mistakes of the library itself ---------------------------------------------------------------------------------

rows_of, loop_rows, factors_of = _engines.VmapSource.rows, _engines.LoopSource.rows, _factored.factored
materialize, add = gf.PerSampleGrads.materialize, gf.Accumulator.add


def with_grads(rows, change):
    def mistaken(*given, **options):
        got = rows(*given, **options)
        changed = {name: change(name, value) for name, value in _factors.dense(got.grads).items()}
        return got._replace(grads=_factors.from_rows(changed))

    return mistaken


def mean_of_means(self, g):
    mean = g.mean()
    totals = {name: value + mean[name] for name, value in self.totals.items()}
    return dataclasses.replace(self, totals=totals, weight=self.weight + 1)


def kept_rows(self):
    return {name: value[:] for name, value in self.sum().items()} | materialize(self)


# mistake -> (where, attribute, mistake, the check)
MISTAKES = {
    "vmap permutes": (_engines.VmapSource, "rows", with_grads(rows_of, lambda k, v: v.flip(0)), "engines"),
    "vmap loses a bias": (
        _engines.VmapSource,
        "rows",
        with_grads(rows_of, lambda k, v: v * ("bias" not in k)),
        "engines",
    ),
    "factors permute": (_factored, "factored", with_grads(factors_of, lambda k, v: v.flip(0)), "engines"),
    "factors lose a bias": (
        _factored,
        "factored",
        with_grads(factors_of, lambda k, v: v * ("bias" not in k)),
        "engines",
    ),
    "the loop scales": (_engines.LoopSource, "rows", with_grads(loop_rows, lambda k, v: v * 1.001), "sum"),
    "means averaged": (gf.Accumulator, "add", mean_of_means, "split"),
    "another dtype": (
        gf.PerSampleGrads,
        "materialize",
        lambda self: {k: v.double() for k, v in materialize(self).items()},
        "dtypes",
    ),
    "losses handed out": (gf.PerSampleGrads, "losses", property(lambda self: self._losses), "storage"),
}


@pytest.mark.parametrize("name", quick(MISTAKES.keys() - {"vmap permutes", "factors permute"}, MISTAKES))
def test_a_mistake_of_the_library_is_caught(name, monkeypatch):
    torch.manual_seed(0)
    made = (mlp(), CE, (x(5), y(5)))
    assert checked(made, dtype="float32").ok
    where, attribute, mistake, check = MISTAKES[name]
    if name == "losses handed out":
        monkeypatch.setattr(gf.testing._purity, "results_of", lambda g: {"losses": g.losses, "again": g.losses})
    monkeypatch.setattr(where, attribute, mistake)
    report = checked(made, dtype="float32")
    assert report.row(check).verdict == "wrong", report


# check -> (module, attribute, what a blind check would do, the fault that then passes it)
BLIND = {
    "layer": (
        _slopes,
        "slope",
        lambda phi, claimed, size: _slopes.Slope(claimed, claimed, 0.0, "rounding"),
        "a detach",
    ),
    "hooks": (_hooks, "hooks", lambda module: [], "a hook on a parameter"),
    "criterion and n": (
        _agreement,
        "_halves",
        lambda *_: Difference(0.0, 1.0),
        "a loss that divides by n",
    ),
}


@pytest.mark.parametrize("check", BLIND)
def test_a_blind_check_names_nothing(check, monkeypatch):
    """Each fault is named by its own check and by no luck of another."""
    made, own, where = planted(BLIND[check][3])
    assert own == check
    monkeypatch.setattr(*BLIND[check][:3])
    assert where not in [row.parameter for row in checked(made).faults]


# --- the report, and bad calls --------------------------------------------------------------------------------------


def test_a_report_is_a_value():
    report = checked(planted("a layer that mixes samples")[0])
    assert max(len(line) for line in str(report).splitlines()) <= 118
    assert report.faults
    assert all(row.verdict == "wrong" for row in report.faults)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = ""
    as_dict = report.to_dict()
    assert as_dict["ok"] is False
    assert copy.deepcopy(as_dict) == as_dict


def test_progress_is_told():
    stages = []
    checked(MODELS["linear"](3), progress=stages.append)
    assert len(stages) >= 6


def test_first_samples_only():
    assert checked(MODELS["mlp"](7), batch_size=3).batch_size == 3


def test_a_mapping_and_tied_weights():
    assert checked((Tied(), nn.CrossEntropyLoss(), (tokens(4), tokens(4)))).ok
    assert checked(MODELS["mapping"](4)).ok


def call(*made, **options):
    return lambda: gf.testing.check_gradients(*(made or (mlp(), CE, (x(4), y(4)))), **options)


class Frozen(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        self.requires_grad_(False)


BAD = {
    "model": (call("resnet", CE, (x(4), y(4))), TypeError, "got a str; expected an nn.Module"),
    "criterion class": (call(mlp(), nn.CrossEntropyLoss, (x(4), y(4))), TypeError, "the class CrossEntropyLoss"),
    "criterion": (call(mlp(), 3, (x(4), y(4))), TypeError, "as criterion"),
    "batch": (call(mlp(), CE, None), TypeError, "as batch"),
    "empty batch": (call(mlp(), CE, (x(0), y(0))), ValueError, "0 samples"),
    "sizes": (call(mlp(), CE, (x(4), y(3))), ValueError, "4 samples in the inputs and"),
    "scalar criterion": (call(mlp(), lambda out, t: out.sum(), (x(4), y(4))), ValueError, "a scalar"),
    "no parameter": (call(Frozen(), CE, (x(4), y(4))), ValueError, "no trainable parameter"),
    "not in the loss": (
        call(mlp(), lambda out, target: target.double(), (x(4), y(4))),
        ValueError,
        "no differentiable parameter in the loss",
    ),
    "dtype": (call(dtype="float8"), ValueError, "dtype='float8'"),
    "device": (call(device="gpu"), ValueError, "device='gpu'"),
    "batch_size": (call(batch_size=0), ValueError, "batch_size=0"),
    "batch_size True": (call(batch_size=True), ValueError, "batch_size=True"),
    "seed": (call(seed="now"), TypeError, "seed='now'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_is_told_what_is_wrong(name):
    bad, error, match = BAD[name]
    with pytest.raises(error, match=match):
        bad()


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference mode"):
        call()()
