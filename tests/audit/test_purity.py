"""Nothing of the user's changes: module, batch, criterion, generators, modes, filters."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from audited import CLASSES, MODELS, WIDTH, cnn, mlp, x, y
from torch import Tensor, nn
from torch.nn import functional as F

import gradfunc as gf


def tensors(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Identity, version, values and gradient of everything the module holds."""
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {
        name: (
            id(t),
            t.data_ptr(),
            t._version,
            t.requires_grad,
            t.dtype,
            t.detach().clone(),
            None if t.grad is None else (id(t.grad), t.grad._version, t.grad.clone()),
        )
        for name, t in held
    }


def shallow(module: nn.Module) -> dict[str, Any]:
    """`__dict__` of every layer, containers copied: what a careless tool would leave something in."""
    out = {}
    for name, layer in module.named_modules():
        for key, value in layer.__dict__.items():
            out[f"{name}.{key}"] = copy.copy(value) if isinstance(value, (dict, list, set)) else value
    return out


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a is b or bool(a == b)


@contextmanager
def untouched(module: nn.Module, batch: Any, criterion: Any = None) -> Iterator[None]:
    flat = [t for t in (batch.values() if isinstance(batch, dict) else batch) if isinstance(t, Tensor)]
    before = (tensors(module), shallow(module), [layer.training for layer in module.modules()])
    data = [(t.clone(), t._version, t.requires_grad) for t in flat]
    options = copy.deepcopy(vars(criterion)) if isinstance(criterion, nn.Module) else None
    rng = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    filters, grad = list(warnings.filters), torch.is_grad_enabled()
    default, threads, anomaly = torch.get_default_dtype(), torch.get_num_threads(), torch.is_anomaly_enabled()
    yield
    assert same(before[0], tensors(module)), "tensors of the module"
    assert same(before[1], shallow(module)), "__dict__ of a layer"
    assert before[2] == [layer.training for layer in module.modules()], "modes"
    for t, (values, version, requires_grad) in zip(flat, data, strict=True):
        assert torch.equal(t, values), "the batch"
        assert (t._version, t.requires_grad, t.grad) == (version, requires_grad, None)
    if options is not None:
        assert same(options, vars(criterion)), "the criterion"
    assert torch.equal(rng[0], torch.get_rng_state()), "torch's generator"
    assert rng[1] == random.getstate(), "Python's generator"
    assert bool((rng[2] == np.random.get_state()[1]).all()), "numpy's generator"
    assert filters == warnings.filters, "warnings filters"
    assert grad == torch.is_grad_enabled()
    now = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_anomaly_enabled())
    assert now == (default, threads, anomaly)


def everything() -> tuple[nn.Module, Any, Any]:
    """Batch norm, dropout, a frozen layer, gradients that are there already, class weights."""
    model = cnn(nn.BatchNorm2d(4), nn.Dropout(0.3))
    model[0].requires_grad_(False)
    batch = (x(6, 2, 6, 6), torch.arange(6) % CLASSES)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    return model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), batch


def loop(model: nn.Module, criterion: Any, batch: Any) -> None:
    """A training loop that does what it likes with what it is given."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.zero_grad()
    for part in (slice(0, 3), slice(3, None)):
        (criterion(model(batch[0][part]), batch[1][part]) / 2).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    model.eval()
    for p in model.parameters():
        p.requires_grad_(False)
    model.extra = "left behind"
    torch.manual_seed(123)
    return grads


@pytest.mark.parametrize("with_loop", [False, True])
@pytest.mark.parametrize("dtype", [None, "float64", "float32", "bfloat16"])
def test_nothing_changes(dtype, with_loop):
    model, criterion, batch = everything()
    with untouched(model, batch, criterion):
        gf.audit.reductions(model, criterion, batch, dtype=dtype, yours=loop if with_loop else None)


@pytest.mark.parametrize(
    "name", [name if i % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(MODELS)]
)
def test_nothing_changes_in_healthy_models(name):
    made, criterion, batch = MODELS[name](4)
    module = made.module if isinstance(made, gf.Stateless) else made
    if not isinstance(module, nn.Module):
        pytest.skip("a pure model has nothing to change")
    with untouched(module, batch, criterion):
        gf.audit.reductions(made, criterion, batch)


@pytest.mark.parametrize("training", [True, False])
def test_modes_stay_where_they_differ(training):
    """Some layers in train mode, some not."""
    model = mlp(nn.BatchNorm1d(7), nn.Dropout(0.5)).train(training)
    model[1].train(not training)
    batch = (x(6), y(6))
    with untouched(model, batch):
        gf.audit.reductions(model, nn.CrossEntropyLoss(), batch)


def test_nothing_changes_where_an_estimator_fails():
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, h: Tensor) -> Tensor:
            if len(h) < 4 or h.dtype == torch.float64:
                raise ValueError("fussy")
            return self.head(h)

    model, batch = Fussy(), (x(4), y(4))
    with untouched(model, batch):
        gf.audit.reductions(model, nn.CrossEntropyLoss(), batch, yours=lambda m, c, b: None)


def test_nothing_changes_where_the_audit_raises():
    model = mlp()
    batch = (x(4), y(4))
    with untouched(model, batch), pytest.raises(ValueError):
        gf.audit.reductions(model, lambda out, target: out.sum(), batch)


class Scaling(nn.Module):
    """Scales its input in place, as image models do with pixels. Training uses a batch once and never notices."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, h: Tensor) -> Tensor:
        return self.head(h.mul_(0.5))


def test_a_model_that_writes_to_its_input():
    model, batch = Scaling(), (x(5), y(5))
    with untouched(model, batch):
        report = gf.audit.reductions(model, nn.CrossEntropyLoss(), batch)
    assert report.ok, "every pass starts from the batch as it was given"
    assert report.independence.independent is True


def test_a_criterion_that_writes_to_its_target():
    def criterion(output: Tensor, target: Tensor) -> Tensor:
        return (output - target.add_(1.0)).square().sum(1)

    model, batch = mlp(), (x(5), x(5, CLASSES))
    with untouched(model, batch):
        report = gf.audit.reductions(model, criterion, batch)
    assert report.ok


def test_a_loop_that_writes_to_the_batch():
    """The other estimators must not be measured on what the loop left."""

    def careless(model, criterion, batch):
        batch[0].mul_(2.0)
        criterion(model(batch[0]), batch[1]).backward()

    model, batch = mlp(), (x(5), y(5))
    with untouched(model, batch):
        report = gf.audit.reductions(model, nn.CrossEntropyLoss(), batch, yours=careless)
    assert report.pair("none", "mean").verdict in ("exact", "rounding")
    assert report.pair("mean", "re-fed").verdict in ("exact", "rounding")
    assert report.pair("mean", "yours").verdict == "wrong"
    assert report.causes == ()


def test_first_layer_in_place():
    """The commonest form of it."""
    model, batch = nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Linear(WIDTH, CLASSES)), (x(5), y(5))
    with untouched(model, batch):
        report = gf.audit.reductions(model, nn.CrossEntropyLoss(), batch)
    assert report.ok


def test_a_model_with_a_cache():
    """A buffer that the forward writes, in place and by assignment, and a plain attribute."""

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("last", None)

        def forward(self, h: Tensor) -> Tensor:
            self.seen += len(h)
            return self.head(h)

    model, batch = Caching(), (x(5), y(5))
    with untouched(model, batch):
        report = gf.audit.reductions(model, nn.CrossEntropyLoss(), batch)
    assert report.ok
    assert model.seen == 0


def test_spectral_norm_keeps_its_vectors():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 6)), nn.Linear(6, CLASSES))
    batch = (x(5), y(5))
    with untouched(model, batch):
        report = gf.audit.reductions(model, nn.CrossEntropyLoss(), batch)
    assert report.causes == ()


@pytest.mark.parametrize("reducible", [True, False])
def test_a_criterion_that_draws(reducible):
    """Label noise, sampled negatives: its draws are seeded too, and come from no global generator."""

    def noisy(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(output + 0.3 * torch.randn_like(output), target, reduction=reduction)

    model, batch = mlp(), (x(5), y(5))
    criterion = noisy if reducible else lambda output, target: noisy(output, target, "none")
    reports = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with untouched(model, batch):
            reports.append(gf.audit.reductions(model, criterion, batch).to_dict())
    assert reports[0] == reports[1]


def test_hooks_of_the_user_stay():
    seen = []
    model = mlp()
    handle = model[0].register_forward_hook(lambda layer, args, out: seen.append(len(out)))
    before = dict(model[0]._forward_hooks)
    gf.audit.reductions(model, nn.CrossEntropyLoss(), (x(4), y(4)))
    assert dict(model[0]._forward_hooks) == before
    seen.clear()
    model(x(3))
    assert seen == [3]
    handle.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, lambda: torch.set_grad_enabled(False)])
def test_grad_mode_does_not_matter(mode):
    model, criterion, batch = everything()
    want = gf.audit.reductions(model, criterion, batch, yours=loop).to_dict()
    with mode():
        enabled = torch.is_grad_enabled()
        got = gf.audit.reductions(model, criterion, batch, yours=loop).to_dict()
        assert torch.is_grad_enabled() == enabled
    assert got == want


def test_twice_gives_the_same():
    model, criterion, batch = everything()
    reports = [gf.audit.reductions(model, criterion, batch, yours=loop) for _ in range(2)]
    assert reports[0].to_dict() == reports[1].to_dict()
    assert str(reports[0]) == str(reports[1])


def test_the_global_seed_does_not_matter():
    model, criterion, batch = everything()
    reports = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        reports.append(gf.audit.reductions(model, criterion, batch).to_dict())
    assert reports[0] == reports[1]


def test_the_seed_matters():
    model, criterion, batch = everything()
    reports = [gf.audit.reductions(model, criterion, batch, seed=seed).pair("mean", "re-fed") for seed in (1, 2)]
    assert reports[0].discrepancy != reports[1].discrepancy


@pytest.mark.parametrize("action", ["error", "ignore", "default"])
def test_warnings_of_the_model_become_notes(action):
    """They neither escape nor, under "error", kill the audit."""

    class Warning_(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, h: Tensor) -> Tensor:
            warnings.warn("about to be slow", RuntimeWarning, stacklevel=1)
            return self.head(h)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        report = gf.audit.reductions(Warning_(), nn.CrossEntropyLoss(), (x(4), y(4)))
    assert caught == []
    assert report.ok
    assert [note for note in report.notes if "about to be slow" in note] == list(report.notes)
    assert len(report.notes) == 1


def test_a_loop_that_uses_the_original_module():
    """Its gradients land outside the copy that it was given: what it left there is 0, and no cause is claimed."""
    model, batch = mlp(), (x(5), y(5))

    def outside(copied, criterion, data):
        criterion(model.to(data[0].dtype)(data[0]), data[1]).backward()

    report = gf.audit.reductions(model, nn.CrossEntropyLoss(), batch, dtype="float32", yours=outside)
    assert report.pair("mean", "yours").verdict != "exact"
    assert report.causes == ()


def test_results_hold_no_graph():
    """A report is numbers and text."""
    report = gf.audit.reductions(*MODELS["mlp"](4))

    def walk(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            for item in value.values():
                yield from walk(item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)
        else:
            yield value

    assert {type(value) for value in walk(report.to_dict())} <= {str, int, float, bool, type(None)}
