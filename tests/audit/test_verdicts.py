"""Verdicts: the bound where it is a theorem, two precisions elsewhere, and nothing claimed where neither tells."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gradfunc as gf
from gradfunc._problem import read
from gradfunc.audit._case import Case
from gradfunc.audit._graph import bounded_parameters, coarsest_roundoff


def bounded(model: nn.Module, x: Tensor, y: Tensor) -> set[str]:
    return bounded_parameters(Case.of(read("test", model, nn.CrossEntropyLoss(), (x, y)), 0))


def test_where_the_bound_holds() -> None:
    """The last linear layer always; every linear layer at n = 2^k; nothing with shared positions, tied or beyond."""
    mlp = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    last = {"2.weight", "2.bias"}
    assert bounded(mlp, torch.randn(7, 4), y[:7]) == last
    assert bounded(mlp, torch.randn(8, 4), y) == last | {"0.weight", "0.bias"}
    positions = nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(30, 3))
    assert bounded(positions, torch.randn(8, 6, 4), y) == {"2.weight", "2.bias"}
    conv = nn.Sequential(nn.Conv1d(4, 2, 1), nn.Flatten(), nn.Linear(12, 3))
    assert bounded(conv, torch.randn(8, 4, 6), y) == {"2.weight", "2.bias"}
    normed = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    assert bounded(normed, torch.randn(8, 4), y) == last


def test_a_weight_used_twice_has_no_bound() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(torch.tanh(self.lin(x)))

    assert bounded(Twice(), torch.randn(8, 4), torch.zeros(8, dtype=torch.long)) == set()


@pytest.mark.slow
@given(
    n=st.integers(1, 40),
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(["float32", "float64", "bfloat16", "float16"]),
)
def test_healthy_perceptrons_stay_within_the_bound(n: int, widths: list[int], seed: int, dtype: str) -> None:
    """The theorem as a property: on what it covers, none, sum, mean and sliced never differ by more."""
    torch.manual_seed(seed)
    sizes = [5, *widths, 3]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    x, y = torch.randn(n, 5), torch.randint(3, (n,))
    report = gf.audit.reductions(nn.Sequential(*layers[:-1]), nn.CrossEntropyLoss(), (x, y), dtype=dtype)
    assert report.ok
    for pair in report.pairs:
        if pair.bound is not None and not pair.demonstration:
            assert pair.discrepancy <= pair.bound


def test_void_bound() -> None:
    """At n = 256 in bfloat16, (n + 2) u > 1: there is no bound, and the verdict is by precision."""
    x, y = torch.randn(256, 4), torch.randint(3, (256,))
    report = gf.audit.reductions(nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, y), dtype="bfloat16")
    pair = report.pair("none", "mean")
    assert pair.bound is None
    assert pair.verdict == "rounding"
    assert pair.other < pair.discrepancy * 1e-9


def test_key_bias_is_rounding_not_wrong() -> None:
    """The true gradient of an attention key bias is 0: huge relative differences, all of them rounding."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).transpose(1, 2)
            return self.out((scores.softmax(-1) @ self.v(x)).mean(1))

    report = gf.audit.reductions(
        Attend(), nn.CrossEntropyLoss(), (torch.randn(6, 5, 6) * 3, torch.randint(3, (6,))), dtype="float32"
    )
    assert report.ok
    assert not report.causes


class Island(nn.Module):
    """Computes its norm in float32 whatever the model's type, as many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        narrow = h.float()
        return self.b((narrow * narrow.square().mean(-1, keepdim=True).add(1e-6).rsqrt()).to(h.dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_island_of_lower_precision_is_seen(dtype: str) -> None:
    x, y = torch.randn(7, 5), torch.randint(3, (7,))
    problem = read("test", Island(), nn.CrossEntropyLoss(), (x, y)).cast(torch.float64)
    assert coarsest_roundoff(Case.of(problem, 0)) == 2.0**-24
    report = gf.audit.reductions(Island(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3])), (x, y), dtype=dtype)
    assert any("one precision" in note for note in report.notes)
    assert report.pair("none", "mean").verdict == "cannot tell"
    assert not report.causes


def test_a_model_that_cannot_run_in_float64_cannot_be_told() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 3)
            self.shift = [torch.ones(3, 3)]  # not a buffer: stays float32

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x) @ self.shift[0]

    x, y = torch.randn(7, 4), torch.randint(3, (7,))
    report = gf.audit.reductions(Fixed(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3])), (x, y))
    assert report.other_dtype is None
    assert any("could not be repeated in float64" in note for note in report.notes)
    assert report.pair("none", "mean").verdict == "cannot tell"
    assert {pair.verdict for pair in report.pairs} <= {"exact", "rounding", "cannot tell"}


def test_unexplained_is_said() -> None:
    """A criterion whose own mean divides by n + 1: no mechanism has that form, so none is named."""

    class Off(nn.Module):
        reduction = "mean"

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            each = nn.functional.cross_entropy(output, target, reduction="none")
            return {"none": each, "sum": each.sum(), "mean": each.sum() / (len(each) + 1)}[self.reduction]

    report = gf.audit.reductions(nn.Linear(4, 3), Off(), (torch.randn(6, 4), torch.randint(3, (6,))))
    pair = report.pair("none", "mean")
    assert pair.verdict == "wrong"
    assert not pair.causes
    assert not report.ok
    assert "unexplained, residual" in str(report)


def test_all_matches_are_listed_where_the_batch_cannot_tell() -> None:
    """One ignored sample of two, and class weights 1 and 0 for the other: two mechanisms, one closed form."""
    weight = torch.tensor([1.0, 3.0, 2.0])
    x, y = torch.randn(4, 4), torch.tensor([0, 0, -100, 0])
    report = gf.audit.reductions(nn.Linear(4, 3), nn.CrossEntropyLoss(weight=weight), (x, y), dtype="float64")
    # All counted weights are 1, so class weights move nothing and only ignore_index explains the pair.
    assert {cause.mechanisms for cause in report.pair("none", "mean").causes} == {("ignore_index",)}

    def halved(module, criterion, batch):  # type: ignore[no-untyped-def]
        (criterion(module(batch[0][:2]), batch[1][:2]) / 4).backward()
        (criterion(module(batch[0][2:]), batch[1][2:]) / 4).backward()

    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    report = gf.audit.reductions(nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, y), yours=halved, dtype="float64")
    assert [cause.detail for cause in report.pair("yours", "mean").causes] == ["2 of 4 micro-batches arrived"]


def test_report_is_frozen_and_prints() -> None:
    report = gf.audit.reductions(nn.Linear(4, 3), nn.CrossEntropyLoss(), (torch.randn(4, 4), torch.arange(4) % 3))
    assert report.ok
    assert "Verdict: the reductions agree" in str(report)
    with pytest.raises(AttributeError):
        report.batch_size = 3  # type: ignore[misc]
    with pytest.raises(KeyError, match="no pair"):
        report.pair("none", "median")
    assert report.to_dict()["ok"] is True
    assert math.isfinite(report.to_dict()["pairs"][0]["discrepancy"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_coarse_bound_hides_nothing(dtype: str) -> None:
    """At n = 64 the bound in bfloat16 is most of the gradient; the finer repetition decides."""
    weight = torch.tensor([1.0, 1.2, 1.4, 1.6])
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    report = gf.audit.reductions(nn.Linear(8, 4), nn.CrossEntropyLoss(weight=weight), (x, y), dtype=dtype)
    pair = report.pair("none", "mean")
    assert pair.verdict == "wrong"
    assert [cause.mechanisms for cause in pair.causes] == [("class_weights",)]
    slight = nn.CrossEntropyLoss(weight=1 + 1e-6 * torch.arange(4))
    pair = gf.audit.reductions(nn.Linear(8, 4), slight, (x, y), dtype="float32").pair("none", "mean")
    assert pair.verdict == "wrong"


def test_nan_is_not_dropped() -> None:
    def loop(module: nn.Module, criterion: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        criterion(module(batch[0]), batch[1]).backward()
        list(module.parameters())[-1].grad.mul_(math.nan)

    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    report = gf.audit.reductions(nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, y), yours=loop)
    assert report.pair("mean", "yours").verdict == "wrong"
    assert not report.ok
    assert any("'yours' is not finite" in note for note in report.notes)


def test_a_loop_that_does_not_run_is_no_agreement() -> None:
    def loop(module: nn.Module, criterion: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        raise KeyError("typo")

    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    report = gf.audit.reductions(nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, y), yours=loop)
    assert not report.ok
    assert "Verdict: your loop did not run" in str(report)


def test_a_loss_without_parameters_is_refused() -> None:
    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="no differentiable parameter in the loss"):
        gf.audit.reductions(Detached(4, 3), nn.CrossEntropyLoss(), (torch.randn(6, 4), torch.randint(3, (6,))))


def test_an_unexplained_loop_over_many_samples_is_cheap() -> None:
    """Counted, not timed: candidates that differ by a factor share one backward pass."""
    from gradfunc._engines import gradients
    from gradfunc.audit import _case

    calls = []

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        return gradients(*args, **kwargs)

    def loop(module, criterion, batch):  # type: ignore[no-untyped-def]
        (criterion(module(batch[0]), batch[1]) * 1.2345).backward()

    n = 48
    x, y = torch.randn(n, 8), torch.randint(4, (n,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_case, "gradients", counted)
        report = gf.audit.reductions(nn.Linear(8, 4), nn.CrossEntropyLoss(), (x, y), yours=loop)
    assert report.pair("mean", "yours").unexplained is not None
    assert len(calls) <= 2 * (3 * n + 40)  # none, sliced, re-fed at two precisions, and a fixed number of closed forms
