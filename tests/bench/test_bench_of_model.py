"""The user's own model as a workload: every form that tools take, what cannot be measured, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import flat
from tiers import every
from tiny import MLP, after
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc.bench._truth import Truth

OURS = ("gradfunc", "gradfunc-vmap")
HAND = gf.bench.CONTENDERS["vmap(grad)"]
X, Y = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3


def perceptron(dtype=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


class Apart(nn.Module):
    """An unused parameter, a frozen one, and keyword inputs."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = perceptron(), nn.Linear(2, 2), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, *, left, right):
        return self.used(self.frozen(left) * right)


class Sequence(nn.Module):
    """The batch in dimension 1."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0])


class Loop(nn.Module):
    """As many passes as the values of a sample ask for."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(1, 1)

    def forward(self, x):
        out = []
        for row in x:
            for _ in range(int(row.abs().max().item()) + 1):
                row = self.layer(row).tanh()
            out.append(row)
        return self.head(torch.stack(out))


def rows_of(output, target):
    return F.cross_entropy(output, target, reduction="none")


def whole(reduction):
    return gf.whole(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction=reduction))


def sequence():
    torch.manual_seed(0)
    model = gf.stateless(Sequence(), in_dims=1, out_dims=1)

    def squares(output, target):
        return (output.movedim(1, 0) - target).square().sum((1, 2))

    return model, squares, (torch.randn(6, 9, 4), torch.randn(9, 6, 3))


class Turned(nn.Linear):
    def forward(self, x):
        return super().forward(x.T)


def in_dims():
    torch.manual_seed(0)
    return gf.stateless(Turned(4, 3), in_dims=1), F.mse_loss, (torch.randn(4, 9), torch.randn(9, 3))


def tied():
    torch.manual_seed(0)
    table, head = nn.Embedding(7, 5), nn.Linear(5, 7)
    head.weight = table.weight
    tokens = torch.arange(27).view(9, 3) % 7
    criterion = gf.whole(lambda model, batch: F.cross_entropy(model(batch[0]).mT, batch[1], reduction="none").sum(1))
    return nn.Sequential(table, nn.Tanh(), head), criterion, (tokens, tokens.roll(1, 1))


FORMS = {
    "a loss module": lambda: (perceptron(), nn.CrossEntropyLoss(), (X, Y)),
    "class weights and sum": lambda: (
        perceptron(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]), reduction="sum"), (X, Y)),
    "a functional": lambda: (perceptron(), F.cross_entropy, (X, Y)),
    "losses of gradfunc": lambda: (perceptron(), gf.losses.cross_entropy, (X, Y)),
    "a loss a sample": lambda: (perceptron(), rows_of, (X, Y)),
    "whole": lambda: (perceptron(), whole("none"), (X, Y)),
    "stateless": lambda: (gf.stateless(perceptron()), nn.CrossEntropyLoss(), [X, Y]),
    "a mapping": lambda: (Apart(), nn.CrossEntropyLoss(), {"left": X, "right": X + 1, "target": Y}),
    "the batch in dimension 1": in_dims,
    "recurrent": sequence,
    "tied": tied,
    "float64": lambda: (perceptron(torch.float64), nn.CrossEntropyLoss(), (X.double(), Y)),
    "bfloat16": lambda: (perceptron(torch.bfloat16), nn.CrossEntropyLoss(), (X.bfloat16(), Y)),
    "one sample": lambda: (perceptron(), nn.CrossEntropyLoss(), (X[:1], Y[:1])),
    "decided by data": lambda: (Loop(), nn.CrossEntropyLoss(), (X, Y)),
    "samples without a gradient": lambda: (
        perceptron(), nn.CrossEntropyLoss(ignore_index=0), (X[:5], torch.tensor([0, 0, 0, 1, 2]))),
}  # fmt: skip


def bench(model, criterion, batch, contenders=OURS, **options):
    workload = gf.bench.of_model(model, criterion, batch)
    return gf.bench.run([workload], contenders, **{"rounds": 1, "warmups": 1, "memory": False, **options})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", every(3, FORMS))
def test_every_form_is_measured_and_right(form):
    report = bench(*FORMS[form](), ["plain", "forward", *OURS], quantities=gf.bench.QUANTITIES)
    assert report.ok, str(report)
    assert [row.verdict for row in report.rows] == ["", "", *["rounding"] * 8], str(report)
    assert all(len(row.ratios) == 1 for row in report.rows)


def plain_rows(model, criterion, batch):
    """One backward pass a sample, as a training loop on the module itself would compute it."""
    module = model.module if isinstance(model, gf.Stateless) else model
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    options = {"allow_unused": True, "materialize_grads": True}
    found = []
    for i in range(len(batch[-1])):
        loss = criterion(module(batch[0][i : i + 1]), batch[1][i : i + 1]).sum()
        found.append(torch.autograd.grad(loss, list(params.values()), **options))
    return {name: torch.stack(parts) for name, parts in zip(params, zip(*found, strict=True), strict=True)}


@pytest.mark.parametrize("form", ["a loss module", "class weights and sum", "decided by data"])
def test_the_answers_are_plain_autograds(form):
    model, criterion, batch = FORMS[form]()
    model.double()
    if isinstance(criterion, nn.Module):
        criterion.double().reduction = "sum"
    batch = (batch[0].double(), batch[1])
    want = flat(plain_rows(model, criterion, batch))
    found = Truth.of(gf.bench.of_model(model, criterion, batch).case(), gram=True)
    torch.testing.assert_close(found.norms, want.norm(dim=1))
    torch.testing.assert_close(found.gram, want @ want.T)
    assert found.max_norm == pytest.approx(float(want.norm(dim=1).median()))


def test_the_median_is_of_norms_that_are_not_zero():
    case = gf.bench.of_model(*FORMS["samples without a gradient"]()).case().cast(torch.float64)
    norms = Truth.of(case).norms
    assert (norms == 0).tolist() == [True, True, True, False, False]
    assert Truth.of(case).max_norm == float(norms[3:].min())
    none = gf.bench.of_model(perceptron(), nn.CrossEntropyLoss(ignore_index=0, reduction="sum"), (X[:2], Y[:2] * 0))
    assert Truth.of(none.case().cast(torch.float64)).max_norm == 1.0


def test_plain_is_the_criterions_own_mean():
    model, criterion = perceptron(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))
    case = gf.bench.of_model(model, criterion, (X, Y)).case()
    want = torch.autograd.grad(criterion(model(X), Y), list(model.parameters()))
    got = gf.bench.CONTENDERS["plain"].make(case, "mean gradient")()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", every(2, [torch.float32, torch.float64]))
def test_a_wrong_contender_is_told(dtype):
    """In float64 what was computed in float32 is wrong, though it shrinks no further."""

    def made(change):
        contender = gf.bench.Contender("changed", after(HAND.make, change))
        return bench(perceptron(dtype), nn.CrossEntropyLoss(), (X.to(dtype), Y), [contender]).rows[1].verdict

    assert made(lambda case, out: out) == "rounding"
    assert made(lambda case, out: {k: v * (1 + 1e-6) for k, v in out.items()}) == "wrong"
    coarse = torch.bfloat16 if dtype == torch.float32 else torch.float32

    def through(case, out):
        return {k: v.to(coarse).to(dtype) if v.dtype == dtype else v for k, v in out.items()}

    assert made(through) == "wrong"


def test_what_is_timed_copies_nothing():
    """Neither the batch, nor the output on its way to the criterion."""
    seen = []

    def criterion(output, target):
        seen.append((output.grad_fn.name(), target.data_ptr()))
        return rows_of(output, target)

    case = gf.bench.of_model(perceptron(), criterion, (X, Y)).case()
    case.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].data_ptr()))
    leaves = {name: value.clone().requires_grad_() for name, value in case.model.params.items()}
    for call in (case.mean_loss, lambda: case.losses(leaves, *case.batch)):
        seen.clear()
        call()
        x, y = case.batch
        assert seen == [x.data_ptr(), ("AddmmBackward0", y.data_ptr())]
    assert (x.data_ptr(), y.data_ptr()) != (X.data_ptr(), Y.data_ptr())


class Writing(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.inner, self.what = perceptron(), what
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        if self.what == "inputs":
            x.mul_(0.5)
        else:
            self.passes += 1
        return self.inner(x)


def narrow(module, inputs):
    """A layer that knows one precision only."""
    return (inputs[0].float(),)


class Half(nn.Module):
    """Computes in bfloat16, whatever it is given."""

    def __init__(self):
        super().__init__()
        self.inner = perceptron()

    def forward(self, x):
        return torch.func.functional_call(
            self.inner, {k: p.bfloat16() for k, p in self.inner.named_parameters()}, (x.bfloat16(),)
        ).float()


def infinite():
    module = perceptron()
    with torch.no_grad():
        module[2].bias[0] = torch.inf
    return module


def float32_only():
    module = perceptron()
    module.register_forward_pre_hook(narrow)
    return module


CANNOT_TELL = {
    "dropout": (lambda: nn.Sequential(perceptron(), nn.Dropout(0.5)), "draws random numbers"),
    "inputs written": (lambda: Writing("inputs"), "writes to its inputs"),
    "buffers written": (lambda: Writing("buffers"), "writes to the buffer 'passes'"),
    "float32 only": (float32_only, "RuntimeError"),
    "bfloat16 inside": (Half, "computes at one precision"),
    "infinite": (infinite, "not finite"),
}


@pytest.mark.parametrize("why", CANNOT_TELL)
def test_what_cannot_be_compared_is_timed(why):
    make, says = CANNOT_TELL[why]
    report = bench(make(), nn.CrossEntropyLoss(), (X, Y), OURS)
    assert report.ok
    assert [row.verdict for row in report.rows] == ["", "cannot tell", "cannot tell"], str(report)
    assert all(row.times and row.error is None for row in report.rows)
    notes = [note for note in report.notes if "cannot tell right from wrong" in note]
    assert len(notes) == len(report.notes) == 1, "none of a step that was not named"
    assert says in notes[0]
    assert "cannot tell" in str(report)
    assert torch.equal(X, torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))


def test_vmap_by_hand_draws():
    report = bench(nn.Sequential(perceptron(), nn.Dropout(0.5)), nn.CrossEntropyLoss(), (X, Y), ["vmap(grad)"])
    assert report.row("model", "vmap(grad)").verdict == "cannot tell"


def test_a_scalar_for_the_whole_batch_fails_natively_batched_contenders():
    report = bench(perceptron(), whole("mean"), (X, Y), [*OURS, "vmap(grad)"])
    assert [row.verdict for row in report.rows] == ["", "failed", "rounding", "rounding"]
    assert "one scalar for the whole batch; expected one loss a sample" in report.row("model", "gradfunc").failure
    assert report.row("model", "plain").times


def test_a_model_that_vmap_cannot_run():
    report = bench(*FORMS["decided by data"](), ["vmap(grad)", "gradfunc", "gradfunc-vmap:vmap"])
    assert [row.verdict for row in report.rows] == ["", "refused", "rounding", "failed"]
    assert not report.ok
    assert report.ok == all(row.peer for row in report.rows if row.verdict in ("refused", "failed"))
    assert "Refused: model, vmap(grad), clip-and-sum: RuntimeError: " in str(report)
    assert "Failed: model, gradfunc-vmap:vmap, clip-and-sum: EngineError: " in str(report)
    told = ("Failed", "Refused")
    assert max(map(len, [line for line in str(report).splitlines() if not line.startswith(told)])) <= 118


def test_losses_without_samples_in_front():
    """torch's own, over all positions at once: the mean is plain, the losses of samples are not to be had."""

    def flattened(output, target, reduction="mean"):
        return F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction=reduction)

    model, x, y = perceptron(), X.view(3, 3, 4), Y.view(3, 3)
    report = bench(model, flattened, (x, y), ["forward", *OURS, "vmap(grad)"])
    assert [row.verdict for row in report.rows] == ["", "", "failed", "failed", "refused"]
    assert "under reduction='none' for 3 samples; expected the samples in dimension 0" in " ".join(str(report).split())
    assert all(report.row("model", name).times for name in ("plain", "forward"))


def test_a_contender_that_cannot_be_prepared_fails_alone():
    def refuses(case, quantity):
        raise NotImplementedError("no rule for LSTM")

    report = bench(perceptron(), nn.CrossEntropyLoss(), (X, Y), [gf.bench.Contender("peer", refuses), "gradfunc"])
    assert [row.verdict for row in report.rows] == ["", "failed", "rounding"]
    assert report.row("model", "peer").failure == "NotImplementedError: no rule for LSTM"


def test_nothing_of_the_users_changes():
    model, criterion = nn.Sequential(Writing("buffers"), nn.Dropout(0.5)), nn.CrossEntropyLoss()
    before, x = copy.deepcopy(model.state_dict()), X.clone()
    state = torch.random.get_rng_state()
    bench(model, criterion, (x, Y), [*OURS, "vmap(grad)"], memory=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, X)
    assert criterion.reduction == "mean"
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def linear():
    return nn.Linear(4, 3)


BAD = {
    "a model by name": (TypeError, lambda: ("resnet", F.cross_entropy, (X, Y)), "expected an nn.Module"),
    "a pure model": (TypeError, lambda: (gf.models.mlp([4, 3]), F.cross_entropy, (X, Y)), "got a pure model"),
    "a criterion's class": (TypeError, lambda: (linear(), nn.CrossEntropyLoss, (X, Y)), "the class CrossEntropyLoss"),
    "no criterion": (TypeError, lambda: (linear(), None, (X, Y)), "got None as criterion"),
    "no batch": (TypeError, lambda: (linear(), F.cross_entropy, None), "got None as batch"),
    "no target": (TypeError, lambda: (linear(), F.cross_entropy, {"x": X}), "expected a 'target'"),
    "an empty batch": (ValueError, lambda: (linear(), F.cross_entropy, (X[:0], Y[:0])), "a batch of 0 samples"),
    "sizes that differ": (ValueError, lambda: (linear(), F.cross_entropy, (X, Y[:3])), "the same number of samples"),
    "all frozen": (
        ValueError, lambda: (linear().requires_grad_(False), F.cross_entropy, (X, Y)), "no trainable parameter"),
    "no gradient": (
        ValueError, lambda: (linear(), lambda out, y: out.detach().sum(1), (X, Y)), "no differentiable parameter"),
    "a scalar": (ValueError, lambda: (linear(), lambda out, y: out.sum(), (X, Y)), "got a scalar from a criterion"),
    "batch statistics": (
        ValueError, lambda: (nn.Sequential(linear(), nn.BatchNorm1d(3)), F.cross_entropy, (X, Y)),
        "got layer 1 normalises by the statistics of the batch"),
    "its own error": (RuntimeError, lambda: (nn.Linear(7, 3), F.cross_entropy, (X, Y)), "cannot be multiplied"),
}  # fmt: skip


@pytest.mark.parametrize("fault", every(2, BAD))
def test_bad_input_is_refused_before_anything_is_measured(fault):
    error, make, says = BAD[fault]
    with pytest.raises(error, match=says):
        gf.bench.of_model(*make())


def test_workloads_of_one_name():
    one = gf.bench.of_model(linear(), F.cross_entropy, (X, Y))
    other = gf.bench.of_model(linear(), F.cross_entropy, (X, Y), name="other")
    with pytest.raises(ValueError, match="several workloads named 'model'"):
        gf.bench.run([one, MLP, one])
    report = gf.bench.run([one, other, MLP], ["gradfunc"], rounds=1, memory=False)
    assert list(report.workloads) == ["model", "other", "mlp"]
    assert report.workloads["other"] == "Linear, 15 trainable parameters, B=9"


def test_on_its_own_device(device):
    workload = gf.bench.of_model(perceptron().to(device), nn.CrossEntropyLoss(), (X.to(device), Y.to(device)))
    assert workload.case().device.type == workload.case("cpu").device.type or device != "cpu"
    report = gf.bench.run([workload], OURS, rounds=1, warmups=1)
    assert report.ok
    assert (report.environment["device"] == "cpu") == (device == "cpu")
    if device != "cpu":
        with pytest.raises(ValueError, match="one device"):
            gf.bench.run([workload, MLP])


def test_a_buffer_of_nan_is_not_written_to():
    model = perceptron()
    model.register_buffer("statistics", torch.full((2,), torch.nan))
    workload = gf.bench.of_model(model, nn.CrossEntropyLoss(), (X, Y))
    report = gf.bench.run([workload], ["gradfunc"], rounds=1, memory=False)
    assert report.row("model", "gradfunc").verdict == "rounding", report
