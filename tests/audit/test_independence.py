"""Does sample i's loss depend on sample j's input, and which layer says so?"""

from __future__ import annotations

import copy
import random

import pytest
import torch
from audited import CLASSES, MODELS, TIME, VOCABULARY, WIDTH, Pooled, Tied, cnn, encoder, mlp, tokens, x, y
from torch import Tensor, nn
from torch.nn import functional as F

import gradfunc as gf


def check(model, criterion, batch, **options) -> gf.audit.Independence:
    return gf.audit.reductions(model, criterion, batch, **options).independence


class Rolled(nn.Module):
    """Couples sample i to its neighbour i + 1 alone."""

    def forward(self, h: Tensor) -> Tensor:
        return h + 0.1 * h.roll(-1, 0)


class Centred(nn.Module):
    """Couples in its own forward, between two layers that are innocent."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        h = self.before(h)
        return self.after(torch.tanh(h - h.mean(0)))


class Switched(nn.Module):
    """A mixture of experts with a capacity: which samples an expert takes depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        score = self.gate(h)[:, 0]
        taken = torch.zeros_like(score).index_fill(0, score.topk(max(len(h) // 2, 1)).indices, 1.0)
        return h + taken[:, None] * self.expert(h)


def test_the_coupled_pair_is_two_samples_of_the_batch():
    report = check(cnn(nn.BatchNorm2d(4)), nn.CrossEntropyLoss(), (x(5, 2, 6, 6), y(5)))
    assert report.independent is False
    i, j = report.coupled
    assert i != j
    assert {i, j} <= set(range(5))


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_batch_norm_is_named(n):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(7)), nn.Linear(7, 3))
    found = check(model, nn.CrossEntropyLoss(), (x(n, 3, 4), y(n)))
    assert found.independent is False
    assert found.layer == "2.1"


def test_the_first_of_several_is_named():
    model = mlp(nn.BatchNorm1d(7), nn.Linear(7, 7), nn.BatchNorm1d(7))
    assert check(model, nn.CrossEntropyLoss(), (x(6), y(6))).layer == "1"


@pytest.mark.parametrize("eval_first", [False, True])
def test_a_layer_in_eval_mode_is_innocent(eval_first):
    model = mlp(nn.BatchNorm1d(7), nn.Linear(7, 7), nn.BatchNorm1d(7))
    model[1 if eval_first else 3].eval()
    assert check(model, nn.CrossEntropyLoss(), (x(6), y(6))).layer == ("3" if eval_first else "1")


def test_statistics_that_are_not_tracked():
    model = mlp(nn.BatchNorm1d(7, track_running_stats=False)).eval()
    assert check(model, nn.CrossEntropyLoss(), (x(6), y(6))).layer == "1"


@pytest.mark.parametrize("n", [2, 5])
def test_coupling_in_a_blocks_own_forward(n):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Centred(), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    found = check(model, nn.CrossEntropyLoss(), (x(n), y(n)))
    assert found.independent is False
    assert found.layer.startswith("1 ("), "the block, not a layer in it"


def test_coupling_in_the_root_forward():
    found = check(nn.Sequential(Centred()).append(nn.Linear(WIDTH, CLASSES))[:1], nn.MSELoss(), (x(4), x(4, WIDTH)))
    assert found.independent is False
    assert found.layer.startswith("0")
    alone = check(Centred(), nn.MSELoss(), (x(4), x(4, WIDTH)))
    assert alone.layer.startswith("Centred")


@pytest.mark.parametrize("n", [4, 6])
def test_attention_over_the_batch(n):
    """batch_first=False, fed batch-first data: every sample attends to the others. n may equal the time."""
    found = check(Pooled(encoder(batch_first=False), 8), nn.CrossEntropyLoss(), (x(n, TIME, 8), y(n)))
    assert found.independent is False
    assert found.layer == "body.layers.0.self_attn"


def test_recurrence_over_the_batch():
    found = check(Pooled(nn.LSTM(8, 4), 4), nn.CrossEntropyLoss(), (x(5, TIME, 8), y(5)))
    assert found.independent is False
    assert found.layer == "body"


def test_in_batch_negatives():
    def contrastive(output: Tensor, target: Tensor) -> Tensor:
        z = F.normalize(output, dim=1)
        return F.cross_entropy(z @ z.T / 0.1, target, reduction="none")

    found = check(mlp(outputs=6), contrastive, (x(5), torch.arange(5).roll(1)))
    assert found.independent is False
    assert found.layer == "the criterion"


def test_in_batch_negatives_of_a_whole_criterion():
    def fn(model, batch):
        a, b = model(batch["a"]), model(batch["b"])
        return F.cross_entropy(a @ b.T, torch.arange(len(a)), reduction="none")

    found = check(mlp(), gf.whole(fn), {"a": x(5), "b": x(5)})
    assert found.independent is False
    assert found.layer == "the criterion"


@pytest.mark.parametrize("n", range(2, 10))
@pytest.mark.parametrize("place", [0, 2])
def test_neighbours_alone(n, place):
    """One coupled pair in n is enough, wherever it lies."""
    layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)]
    found = check(nn.Sequential(*layers[:place], Rolled(), *layers[place:]), nn.CrossEntropyLoss(), (x(n), y(n)))
    assert found.independent is False
    assert found.layer == str(place)
    i, j = found.coupled
    assert i != j


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_each_single_pair(n):
    """Only the loss of sample i depends on only sample j: found for every (i, j)."""

    class Pair(nn.Module):
        def __init__(self, i: int, j: int) -> None:
            super().__init__()
            self.head, self.i, self.j = nn.Linear(WIDTH, CLASSES), i, j

        def forward(self, h: Tensor) -> Tensor:
            leak = torch.zeros(len(h), 1, dtype=h.dtype).index_fill(0, torch.tensor(self.i), 1.0)
            return self.head(h + 0.01 * leak * h[self.j % len(h)])

    batch = (x(n), y(n))
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    for i, j in pairs if n < 6 else pairs[::11]:
        found = check(Pair(i, j), nn.CrossEntropyLoss(), batch)
        assert found.independent is False, (i, j)
        assert found.coupled[0] == i


def test_integer_inputs():
    """Tokens can't be moved by a little: they are exchanged."""

    class Mixed(Tied):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * (1 + ids.double().mean().to(self.embed.weight.dtype) / 10)

    criterion = lambda out, target: F.cross_entropy(out, target, reduction="none").mean(1)  # noqa: E731
    assert check(Tied(), criterion, (tokens(5), tokens(5))).independent is True
    assert check(Mixed(), criterion, (tokens(5), tokens(5))).independent is False


def test_boolean_and_integer_masks_beside_floats():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, h: Tensor, mask: Tensor) -> Tensor:
            return self.head(h * mask)

    mask = torch.rand(6, WIDTH) > 0.4
    assert check(Model(), nn.CrossEntropyLoss(), (x(6), mask, y(6))).independent is True


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer, post-norm", "gru, time first", "mapping", "two inputs"])
def test_healthy_models_are_independent(name):
    assert check(*MODELS[name](6)).independent is True


def test_dropout_is_not_a_coupling():
    assert check(mlp(nn.Dropout(0.5)), nn.CrossEntropyLoss(), (x(6), y(6))).independent is True


def test_capacity_of_an_expert():
    """A coupling without a gradient: which samples an expert takes depends on the others' scores."""
    model = nn.Sequential(Switched(), nn.Linear(WIDTH, CLASSES))
    found = [check(model, nn.CrossEntropyLoss(), (x(9) * 3, y(9)), seed=seed).independent for seed in range(3)]
    assert False in found


# --- what cannot be told ------------------------------------------------------------------------------------------


def test_one_sample():
    found = check(mlp(), nn.CrossEntropyLoss(), (x(1), y(1)))
    assert found.independent is None
    assert "one sample" in found.why


@pytest.mark.parametrize("n", [2, 4])
def test_identical_token_samples(n):
    found = check(
        Tied(),
        lambda out, target: F.cross_entropy(out, target, reduction="none").mean(1),
        (tokens(1).repeat(n, 1), tokens(n)),
    )
    assert found.independent is None
    assert "same input" in found.why


def test_identical_float_samples_are_still_told():
    """A float can always be moved."""
    assert check(mlp(), nn.CrossEntropyLoss(), (x(1).repeat(4, 1), y(4))).independent is True
    assert check(mlp(nn.BatchNorm1d(7)), nn.CrossEntropyLoss(), (x(1).repeat(4, 1), y(4))).independent is not True


def test_inputs_of_zeros():
    assert check(mlp(), nn.CrossEntropyLoss(), (torch.zeros(4, WIDTH), y(4))).independent is None


class Category(nn.Module):
    """One categorical feature a sample, as in tables: samples that share a value are common."""

    def __init__(self, first: int | None = None) -> None:
        super().__init__()
        self.embed, self.head, self.first = nn.Embedding(VOCABULARY, 6), nn.Linear(6, CLASSES), first

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids[:, 0])
        if self.first is not None and len(h) > self.first + 1:  # samples `first` and `first + 1` see each other
            partner = torch.arange(len(h))
            partner[self.first], partner[self.first + 1] = self.first + 1, self.first
            h = h + h[partner]
        return self.head(h)


SHARED = [[4, 4, 7], [4, 4, 7, 7], [1, 2, 2, 2], [1, 2, 2, 2, 2], [3, 3, 3, 3, 3, 8], [5, 5, 6, 6, 5, 5]]


@pytest.mark.parametrize("ids", SHARED, ids=str)
def test_samples_that_share_a_value(ids):
    """They are not all the same, and nothing couples them."""
    found = check(Category(), nn.CrossEntropyLoss(), (torch.tensor(ids)[:, None], y(len(ids))))
    assert found.independent is not False
    assert found.independent or "all samples have the same input" not in found.why


@pytest.mark.parametrize("ids", SHARED, ids=str)
def test_coupled_samples_that_share_a_value(ids):
    """Two neighbours that are alike see each other alone. Where exchanging moved nothing, nothing was shown."""
    for first in range(len(ids) - 1):
        found = check(Category(first), nn.CrossEntropyLoss(), (torch.tensor(ids)[:, None], y(len(ids))))
        assert found.independent is not True, first


def test_random_noise_from_python():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, h: Tensor) -> Tensor:
            return self.head(h * (1 + random.random()))

    random.seed(0)
    report = gf.audit.reductions(Noisy(), nn.CrossEntropyLoss(), (x(5), y(5)))
    assert report.independence.independent is None
    assert "outside torch" in report.independence.why
    assert report.causes == (), "the noise is nobody's closed form"


def test_a_counter_in_the_forward():
    """State that changes from call to call, and is no buffer."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.calls = nn.Linear(WIDTH, CLASSES), 0

        def forward(self, h: Tensor) -> Tensor:
            self.calls += 1
            return self.head(h) * (1 + 0.1 * self.calls)

    report = gf.audit.reductions(Counting(), nn.CrossEntropyLoss(), (x(5), y(5)))
    # Every call runs on a replica, so what a forward pass assigns is gone with it: each call is the first.
    assert report.independence.independent is True
    assert report.causes == ()


def test_a_scalar_criterion():
    fn = gf.whole(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    found = check(mlp(), fn, (x(5), y(5)))
    assert found.independent is None
    assert "one scalar" in found.why


def test_nothing_is_left_on_the_module():
    model = nn.Sequential(Centred(), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))
    before = {name: copy.deepcopy(layer.__dict__) for name, layer in model.named_modules()}
    check(model, nn.CrossEntropyLoss(), (x(5), y(5)))
    for name, layer in model.named_modules():
        for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs"):
            assert not layer.__dict__.get(key), (name, key)
        assert layer.__dict__.keys() == before[name].keys()


def test_hooks_are_not_left_where_the_model_fails_midway():
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, h: Tensor) -> Tensor:
            if bool((h == h.roll(1, 0)).all(1).any()):
                raise ValueError("two neighbours are alike")
            return self.head(h)

    model = Fussy()
    check(model, nn.CrossEntropyLoss(), (x(5), y(5)))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_a_model_that_fails_on_other_inputs_cannot_be_told():
    class Finite(nn.Module):
        def __init__(self, seen: Tensor) -> None:
            super().__init__()
            self.head, self.seen = nn.Linear(WIDTH, CLASSES), seen

        def forward(self, h: Tensor) -> Tensor:
            rows = {tuple(row) for row in self.seen.float().tolist()}
            if any(tuple(row) not in rows for row in h.float().tolist()):
                raise ValueError("an input that was never seen")
            return self.head(h)

    batch = x(5)
    found = check(Finite(batch), nn.CrossEntropyLoss(), (batch, y(5)))
    assert found.independent is None
    assert "never seen" in found.why


def test_a_report_that_is_wrong_only_by_dependence_says_so():
    """Coupling without a discrepancy between the estimators: not ok."""

    def pulled(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none") + output.detach().sum() - output.detach().sum(1)

    report = gf.audit.reductions(mlp(), pulled, (x(5), y(5)))
    assert report.independence.independent is False
    assert not report.ok
    assert "depends on other samples" in str(report)
