"""`per_sample_grads`: every engine against plain autograd, the promises of `PerSampleGrads`, the choice of engine."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import (
    check_queries,
    close,
    close_rows,
    flat,
    results,
    same_bits,
    storages,
    truth,
    truth_batched,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradfunc as gf
from gradfunc._rounding import gamma, unit_roundoff

F64 = torch.float64
ENGINES = ["factored", "vmap", "loop"]


# --- models ----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One causal head over embedded tokens with learned positions, layer norms, and the embedding tied to the head."""

    def __init__(self, vocabulary=7, width=4, length=5):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.embedding(tokens) + self.position(torch.arange(length, device=tokens.device))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        x = x + self.out(scores.masked_fill(mask, -math.inf).softmax(-1) @ v)
        return self.head(x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x, z, power=1):
        return self.b(self.a(x) + z) ** power  # the loss runs it twice: every weight is used twice


class Scaled(nn.Module):
    """Scalars as parameters, one of them unused."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale, self.unused = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.linear(x) * self.scale


Pair = namedtuple("Pair", "x z")


@dataclasses.dataclass
class Case:
    """A module, a batch of B samples `(args, kwargs)`, and the loss of one sample."""

    module: Callable[[], nn.Module]
    batch: Callable[[int], tuple[tuple, dict]]
    loss: Callable[[gf.Stateless], Callable]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def classify(model):
    return lambda p, x, y: gf.losses.cross_entropy(model.sample(p, x), y)


def square(model):
    return lambda p, x: model.sample(p, x).square().sum()


def nested(model):
    def loss(p, batch, mode, *, target, options):
        pair, other = batch["pair"], batch["list"][0]
        assert mode == "twice"
        out = model.sample(p, pair.x, pair.z, power=options["power"])
        out = out + model.sample(p, other, pair.z)
        return gf.Weighted((out - target).square().sum(), target.abs().sum())

    return loss


CASES = {
    "linear": Case(lambda: nn.Linear(3, 4), lambda n: ((torch.randn(n, 3), torch.randint(4, (n,))), {}), classify),
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)),
        lambda n: ((torch.randn(n, 3), torch.randint(4, (n,))), {}),
        classify,
    ),
    "convolution, group norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        ),
        lambda n: ((torch.randn(n, 2, 3, 3), torch.randint(3, (n,))), {}),
        classify,
    ),
    "convolution, layer norm, pooled": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 4, 2, stride=2), nn.LayerNorm(3), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        lambda n: ((torch.randn(n, 2, 6), torch.randint(4, (n,))), {}),
        classify,
    ),
    "batch norm in eval mode": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), lambda n: ((torch.randn(n, 3),), {}), square
    ),
    "embedding, padding": Case(
        lambda: nn.Sequential(nn.Embedding(6, 3, padding_idx=0), nn.Linear(3, 4)),
        lambda n: ((torch.randint(6, (n, 5)), torch.randint(4, (n, 5))), {}),
        classify,
    ),
    "attention, tied head": Case(
        Attention,
        lambda n: (
            (torch.randint(7, (n, 4)), torch.randint(7, (n, 4)).where(torch.rand(n, 4) < 0.7, torch.tensor(-100))),
            {},
        ),
        classify,
    ),
    "nested batch, keywords, static leaves": Case(
        TwoInputs,
        lambda n: (
            ({"pair": Pair(torch.randn(n, 3), torch.randn(n, 2)), "list": [torch.randn(n, 3), None]}, "twice"),
            {"target": torch.randn(n, 2), "options": {"power": 2, "name": "x"}},
        ),
        nested,
    ),
    "time first": Case(
        lambda: nn.Linear(3, 2), lambda n: ((torch.randn(n, 5, 3),), {}), square, {"in_dims": 1, "out_dims": 1}
    ),
    "scalars": Case(Scaled, lambda n: ((torch.randn(n, 3),), {}), square),
    "no learned path": Case(
        lambda: nn.Linear(3, 2), lambda n: ((torch.randn(n, 3),), {}), lambda m: lambda p, x: x.sum()
    ),
}


def to(tree, device):
    if isinstance(tree, torch.Tensor):
        return tree.to(device, F64 if tree.is_floating_point() else None)
    if isinstance(tree, dict):
        return {key: to(value, device) for key, value in tree.items()}
    if isinstance(tree, Pair):
        return Pair(*[to(value, device) for value in tree])
    if isinstance(tree, (list, tuple)):
        return type(tree)(to(value, device) for value in tree)
    return tree


def made(name, size, device="cpu"):
    case = CASES[name]
    model = gf.stateless(case.module().to(device, F64), **case.options)
    args, kwargs = to(case.batch(size), device)
    return case.loss(model), dict(model.params), args, kwargs


# The oracle splits a namedtuple by its fields, as a nest must be.
def expected(loss, params, size, args, kwargs):
    def plain(p, *a, **k):
        a = [{**x, "pair": Pair(*x["pair"])} if isinstance(x, dict) and "pair" in x else x for x in a]
        return loss(p, *a, **k)

    args = [{**x, "pair": list(x["pair"])} if isinstance(x, dict) and "pair" in x else x for x in args]
    return truth(plain, params, size, args, kwargs)


# --- against plain autograd ------------------------------------------------------------------------


def check_case(name, engine, chunk_size, device="cpu"):
    loss, params, args, kwargs = made(name, 5, device)
    g = gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size)(params, *args, **kwargs)
    assert g.engine == engine
    check_queries(g, expected(loss, params, 5, args, kwargs))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2, "auto"])
@pytest.mark.parametrize("name", CASES)
def test_every_query_equals_plain_autograd(name, engine, chunk_size, device):
    check_case(name, engine, chunk_size, device)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_empty_and_single_batches(name, size, engine, device):
    loss, params, args, kwargs = made(name, size, device)
    g = gf.per_sample_grads(loss, engine=engine)(params, *args, **kwargs)
    check_queries(g, expected(loss, params, size, args, kwargs))


@pytest.mark.parametrize("name", CASES)
def test_the_engines_agree_with_each_other(name, device):
    loss, params, args, kwargs = made(name, 4, device)
    reference, *others = (gf.per_sample_grads(loss, engine=e)(params, *args, **kwargs) for e in reversed(ENGINES))
    for g in others:
        close_rows(g.materialize(), reference.materialize(), g.engine)
        assert g.unused == reference.unused


def check_coupled_batch(engine, chunk_size, device="cpu"):
    """Rows of a batch-normalised loss depend on the whole batch; a batch of one would be another function."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).to(device, F64)
    model = gf.stateless(module, batch_stats="batch")
    x, y = torch.randn(5, 3, dtype=F64, device=device), torch.randint(2, (5,), device=device)
    weight = torch.tensor([1.0, 3.0], dtype=F64, device=device)

    def losses(p, x, y):
        return gf.losses.cross_entropy(model(p, x), y, weight=weight, batched=True)

    g = gf.per_sample_grads(losses, batched=True, engine=engine, chunk_size=chunk_size)(model.params, x, y)
    check_queries(g, truth_batched(losses, model.params, (x, y)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_batched_rows_carry_the_coupling(engine, chunk_size, device):
    check_coupled_batch(engine, chunk_size, device)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_batched_recurrent_networks(cell, engine, chunk_size, device):
    model = gf.stateless(cell(3, 2, num_layers=2, batch_first=True).to(device, F64))
    x = torch.randn(5, 4, 3, dtype=F64, device=device)

    def losses(p, x):
        return model(p, x)[0].square().sum((1, 2))

    g = gf.per_sample_grads(losses, batched=True, engine=engine, chunk_size=chunk_size)(model.params, x)
    check_queries(g, truth_batched(losses, model.params, (x,)))


@pytest.mark.parametrize("batched", [False, True])
def test_losses_alone_inside_a_transform(batched):
    def loss(p, x):
        return (x @ p["w"]).square()

    w, x = torch.ones(3, dtype=F64), torch.arange(12.0, dtype=F64).reshape(4, 3)
    f = gf.per_sample_grads(loss, batched=batched)
    found = torch.func.grad(lambda w: f.losses({"w": w}, x).numerator.sum())(w)
    close(found, 2 * x.T @ (x @ w), found.abs().max(), "gradient")
    several = torch.func.vmap(lambda w: f.losses({"w": w}, x).numerator)(torch.stack([w, 2 * w]))
    close(several, torch.stack([(x @ w).square(), (2 * x @ w).square()]), several.abs().max(), "losses")


def test_losses_of_a_native_batch_leave_no_graph_unless_it_differentiates_inside():
    graphs = []

    def plain(p, x):
        out = (x @ p["w"]).square()
        graphs.append(out.requires_grad)
        return out

    def penalised(p, x):
        out = (x @ p["w"]).square()
        (inside,) = torch.autograd.grad(out.sum(), p["w"], create_graph=True)
        return out + inside.square().sum()

    params, x = {"w": torch.ones(3, dtype=F64)}, torch.arange(12.0, dtype=F64).reshape(4, 3)
    for loss in (plain, penalised):
        f = gf.per_sample_grads(loss, batched=True)
        alone = f.losses(params, x).numerator
        close(alone, f(params, x).losses, alone.abs().max(), "losses")
    assert graphs[0] is False


def test_a_batched_loss_may_take_what_all_samples_share():
    params, x, shared = {"w": torch.randn(3, dtype=F64)}, torch.randn(4, 3, dtype=F64), torch.randn(3, 2, dtype=F64)

    def losses(p, x, shared):
        return ((x * p["w"]) @ shared).square().sum(1)

    g = gf.per_sample_grads(losses, batched=True)(params, x, shared)
    check_queries(g, truth_batched(losses, params, (x, shared)))


def test_gram_between_two_batches():
    loss, params, args, _ = made("mlp", 5)
    f, streamed = gf.per_sample_grads(loss), gf.per_sample_grads(loss, chunk_size=2)
    left, right = f(params, *args), streamed(params, *[a[:3] for a in args])
    whole, other = flat(left.materialize()), flat(right.materialize())
    scale = whole.norm(dim=1)[:, None] * other.norm(dim=1)
    close(left.gram(right), whole @ other.T, scale, "gram")
    close(right.gram(left), other @ whole.T, scale.T, "gram")
    close(torch.stack(list(left.gram(right, per_parameter=True).values())).sum(0), whole @ other.T, scale, "gram")


def test_parameters_of_several_dtypes_and_of_no_entries():
    params = {"a": torch.randn(3), "b": torch.randn(3, dtype=F64), "none": torch.empty(0), "scalar": torch.ones(())}
    g = gf.per_sample_grads(lambda p, x: (p["a"] * x).sum() + (p["b"] * x).sum() + p["none"].sum() + p["scalar"])(
        params, torch.randn(4, 3)
    )
    rows = g.materialize()
    assert [rows[name].dtype for name in rows] == [value.dtype for value in params.values()]
    assert [rows[name].shape for name in rows] == [(4, 3), (4, 3), (4, 0), (4,)]
    # Some of the products are float32's: each of the seven entries is off by a few of its unit roundoffs at most.
    bound = 4 * gamma(7, unit_roundoff(torch.float32))
    whole = flat(rows)
    norms, v = whole.norm(dim=1), flat({name: value.unsqueeze(0) for name, value in params.items()})[0]
    assert bool(((g.norms() - norms).abs() <= bound * norms).all())
    assert bool(((g.gram() - whole @ whole.T).abs() <= bound * norms[:, None] * norms).all())
    assert bool(((g.dot(params) - whole @ v).abs() <= bound * norms * v.norm()).all())


# --- what is differentiated ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("wrt", "names"),
    [
        (None, ("unused", "a.weight", "a.bias", "b.weight", "b.bias")),
        (r".*\.weight", ("a.weight", "b.weight")),
        ("a", ()),  # a whole name, not a prefix
        (["b.bias", "a.weight"], ("a.weight", "b.bias")),  # in the order of params
        (("b.bias",), ("b.bias",)),
        (lambda name, value: value.dim() == 1, ("unused", "a.bias", "b.bias")),
    ],
)
def test_wrt_in_three_forms(wrt, names, engine, batched):
    model = gf.stateless(TwoInputs().double())
    x, z = torch.randn(3, 3, dtype=F64), torch.randn(3, 2, dtype=F64)
    if batched:
        f = gf.per_sample_grads(lambda p, x, z: model(p, x, z).square().sum(1), wrt=wrt, engine=engine, batched=True)
    else:
        f = gf.per_sample_grads(lambda p, x, z: model.sample(p, x, z).square().sum(), wrt=wrt, engine=engine)
    if not names:
        with pytest.raises(ValueError, match=r"wrt='a', which matches nothing.*re\.fullmatch"):
            f(model.params, x, z)
        return
    g = f(model.params, x, z)
    assert g.names == names
    whole = truth(lambda p, x, z: model.sample(p, x, z).square().sum(), model.params, 3, (x, z))
    close_rows(g.materialize(), {name: whole.rows[name] for name in names})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_unused_parameters_are_named_and_exactly_zero(engine, chunk_size):
    model = gf.stateless(TwoInputs())
    f = gf.per_sample_grads(lambda p, x, z: model.sample(p, x, z).sum(), engine=engine, chunk_size=chunk_size)
    g = f(model.params, torch.randn(3, 3), torch.randn(3, 2))
    assert g.unused == ("unused",)
    assert not g.materialize()["unused"].any()
    assert g.sum()["unused"].tolist() == [0.0, 0.0]


def test_a_parameter_is_used_if_one_sample_uses_it():
    # Branches on a value: the loop, where each sample has its own graph.
    def loss(p, x):
        return p["a"] * x.sum() if x.sum() > 0 else p["b"] * x.sum()

    params = {"a": torch.ones(()), "b": torch.ones(()), "c": torch.ones(())}
    f = gf.per_sample_grads(loss, engine="loop")
    assert f(params, torch.tensor([1.0, -1.0])).unused == ("c",)
    assert f(params, torch.tensor([1.0, 2.0])).unused == ("b", "c")


def test_buffers_among_params_are_passed_on_but_not_differentiated():
    params = {"w": torch.ones(2), "index": torch.tensor([1, 0]), "mask": torch.tensor([True, False])}
    g = gf.per_sample_grads(lambda p, x: (p["w"][p["index"]] * x * p["mask"]).sum())(params, torch.ones(3, 2))
    assert g.names == ("w",)
    assert g.sum()["w"].tolist() == [0.0, 3.0]


# --- a value -----------------------------------------------------------------------------------------


def dropped(p, x, w):
    return gf.Weighted((p["w"] * F.dropout(x, 0.5)).sum().square() + torch.poisson(x.abs()).sum() * p["w"].sum(), w)


def drawn(engine, chunk_size, **options):
    params = {"w": torch.randn(3, dtype=F64)}
    batch = torch.randn(5, 3, dtype=F64), torch.rand(5, dtype=F64)
    return gf.per_sample_grads(dropped, engine=engine, chunk_size=chunk_size, **options).at(0), params, batch


def check_calling_twice_is_calling_once(engine, chunk_size):
    f, params, batch = drawn(engine, chunk_size)
    g = f(params, *batch)
    first = results(g)
    assert same_bits(first, results(g))
    assert same_bits(first, results(f(params, *batch)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_calling_twice_is_calling_once(engine, chunk_size):
    check_calling_twice_is_calling_once(engine, chunk_size)


def check_shares_nothing(engine, chunk_size):
    """No result is a view of the parameters, of the batch, or of another result, or of what is kept."""
    torch.manual_seed(0)
    f, params, batch = drawn(engine, chunk_size)
    g = f(params, *batch)
    answers = results(g)
    seen = storages([params, list(batch)])
    for name, value in answers.items():
        own = storages(value)
        assert not own & seen, f"{name} shares storage"
        seen |= own
    before = results(g)
    for value in answers.values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            if tensor is not g.losses and tensor is not g.weights:
                tensor.fill_(-7.0)
    assert same_bits(before, results(g)), "writing to an answer changed the next one"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_results_share_no_storage(engine, chunk_size):
    check_shares_nothing(engine, chunk_size)


class Saved(torch.autograd.Function):
    """Its backward hands out a saved input itself, as hand-written functions do."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w, x):
        return (w * x).sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[1], None


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_are_kept_do_not_follow_the_batch(engine):
    params, x, w = {"w": torch.randn(3)}, torch.randn(4, 3), torch.rand(4)
    options = {"engine": engine, "chunk_size": None, "verify": False}  # the backward ignores what is above it
    g = gf.per_sample_grads(lambda p, x, w: gf.Weighted(Saved.apply(p["w"], x), w), **options)(params, x, w)
    before = results(g)
    for tensor in (params["w"], x, w):
        tensor.zero_()
    # All but `unused` answer from what is kept.
    after = results(g)
    for name in before:
        assert same_bits(before[name], after[name]), name


def check_stale_queries_are_refused(engine, batched, what):
    params, x = {"w": torch.ones(3), "fixed": torch.ones(3)}, torch.randn(5, 3)

    def loss(p, x):
        return (p["w"] * p["fixed"] * x).sum(-1)

    g = gf.per_sample_grads(loss, engine=engine, chunk_size=2, wrt="w", batched=batched)(params, x)
    before = g.norms()
    {"params": params["w"], "other params": params["fixed"], "batch": x}[what].add_(1)
    if batched and engine == "factored":  # one backward pass has given all rows: nothing is computed again
        assert torch.equal(g.norms(), before)
        return
    c = torch.ones(5)
    for query in (g.norms, g.gram, g.sum, g.mean, g.materialize, lambda: g.weighted_sum(c), lambda: g.dot(params)):
        with pytest.raises(RuntimeError, match=r"g\.\w+.*changed in place since.*chunk_size=None"):
            query()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("what", ["params", "other params", "batch"])
def test_a_streamed_query_refuses_what_changed_in_place(engine, batched, what):
    check_stale_queries_are_refused(engine, batched, what)


def test_a_training_step_on_the_module_is_seen():
    module = nn.Linear(3, 1)
    model = gf.stateless(module)
    g = gf.per_sample_grads(lambda p, x: model.sample(p, x).sum(), chunk_size=2)(model.params, torch.randn(5, 3))
    module(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        g.sum()


def test_a_value_cannot_be_changed():
    f, params, batch = drawn("vmap", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        f(params, *batch).losses = torch.zeros(5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_grad_mode_of_the_caller_does_not_matter(engine, chunk_size, batched):
    params, x = {"w": torch.randn(3, dtype=F64), "unused": torch.ones(1, dtype=F64)}, torch.randn(5, 3, dtype=F64)
    loss = (lambda p, x: (x * p["w"]).sum(1).square()) if batched else (lambda p, x: (x * p["w"]).sum().square())
    f = gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size, batched=batched)
    with torch.no_grad():
        g = f(params, x)
        inside = results(g)
        assert g.unused == ("unused",)
    assert same_bits(inside, results(f(params, x)))
    with torch.no_grad():
        assert same_bits(inside, results(f(params, x)))


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_that_require_grad_leave_no_graph_under_no_grad(engine):
    module = nn.Linear(3, 2)
    params = dict(module.named_parameters())
    x = torch.randn(4, 3, requires_grad=True)
    f = gf.per_sample_grads(lambda p, x: F.linear(x, p["weight"], p["bias"]).square().sum(), engine=engine)
    with torch.no_grad():
        g = f(params, x)
    for value in results(g).values():
        assert not any(t.requires_grad for t in (value.values() if isinstance(value, dict) else [value]))
    assert module.weight.grad is None
    assert x.grad is None


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_loss_may_differentiate_inside(chunk_size):
    # A gradient penalty: the loss is itself a gradient, so it needs grad mode wherever it runs.
    params, x = {"w": torch.randn(3, dtype=F64)}, torch.randn(5, 3, dtype=F64)

    def by_autograd(p, x):
        x = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad((p["w"] * x).sum().square(), x, create_graph=True)
        return slope.square().sum()

    def by_func(p, x):
        return torch.func.grad(lambda x: (p["w"] * x).sum().square())(x).square().sum()

    want = truth(by_autograd, params, 5, (x,))
    check_queries(gf.per_sample_grads(by_autograd, engine="loop", chunk_size=chunk_size)(params, x), want)
    for engine in ENGINES:
        check_queries(gf.per_sample_grads(by_func, engine=engine, chunk_size=chunk_size)(params, x), want)


# --- norms, NaN, half types --------------------------------------------------------------------------


def check_norms_are_safe(engine="vmap", dtype=torch.float32):
    """Finite gradients whose squares overflow or underflow have their norms; inf stays inf, NaN stays NaN."""
    rows = torch.tensor(
        [[3e20, 4e20], [3e-30, 4e-30], [0.0, 0.0], [math.inf, 1.0], [math.nan, math.inf], [1e20, 1e-30], [-3.0, 4.0]],
        dtype=dtype,
    )
    f = gf.per_sample_grads(lambda p, x: (p["a"] * x[0]) + (p["b"] * x[1]), engine=engine)
    g = f({"a": torch.ones((), dtype=dtype), "b": torch.ones((), dtype=dtype)}, rows)
    want = rows.double().norm(dim=1)
    norms = g.norms()
    assert norms.dtype == dtype
    # One product, one division, one square, one sum, one root: within 5 roundings, each below 2^-23.
    finite = want.isfinite()
    assert bool(((norms.double() - want).abs()[finite] <= 5 * torch.finfo(dtype).eps * want[finite]).all())
    assert norms[2] == 0
    assert norms[3] == math.inf
    assert norms[4].isnan()
    assert g.norms(per_parameter=True)["a"][:4].tolist() == rows[:4, 0].abs().tolist()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_do_not_overflow_or_underflow(engine, dtype):
    check_norms_are_safe(engine, dtype)


def test_the_smallest_and_largest_numbers_have_norms():
    tiny, huge = 2.0**-149, torch.finfo(torch.float32).max
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
    g = f({"w": torch.ones(2)}, torch.tensor([[tiny, 0.0], [0.0, huge], [huge, huge]]))
    assert g.norms().tolist() == [tiny, huge, math.inf]


def check_zero_coefficient_leaves_out():
    """0 * NaN is NaN: a row that is not wanted must be left out, not multiplied."""
    x = torch.tensor([[1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
    for chunk_size in (None, 1):
        g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), chunk_size=chunk_size)({"w": torch.ones(2)}, x)
        for c in (torch.tensor([2.0, 0.0, -0.0]), torch.tensor([2, 0, 0]), torch.tensor([2.0, 0, 0], dtype=F64)):
            assert g.weighted_sum(c)["w"].tolist() == [2.0, 4.0]
        assert g.weighted_sum(torch.tensor([True, False, False]))["w"].tolist() == [1.0, 2.0]
        kept = g.weighted_sum(torch.tensor([1.0, 1.0, 0.0]))["w"]
        assert kept[0].isnan()
        assert kept[1] == 3


def test_a_zero_coefficient_leaves_a_row_out():
    check_zero_coefficient_leaves_out()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [0, 3])
def test_dtypes_are_those_of_the_parameters(dtype, engine, size, device):
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    params = {"w": torch.ones(2, dtype=dtype, device=device)}
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), engine=engine)
    g = f(params, torch.ones(size, 2, dtype=dtype, device=device))
    zero = {"on_zero_weight": "zero"}
    for grads in (g.sum(), g.mean(**zero), g.weighted_sum(torch.ones(size, device=device)), g.materialize()):
        assert grads["w"].dtype == dtype
        assert grads["w"].device.type == device
    assert g.losses.dtype == g.mean_loss.dtype == dtype
    assert g.sum(wide=True)["w"].dtype == wide
    assert g.norms().dtype == g.gram().dtype == g.dot(params).dtype == wide


@pytest.mark.parametrize("engine", ENGINES)
def test_the_mean_loss_is_a_ratio(engine):
    f = gf.per_sample_grads(lambda p, x: gf.Weighted(p["w"] * x[0], x[1]), engine=engine)
    g = f({"w": torch.ones(())}, torch.tensor([[6.0, 3.0], [1.0, 1.0], [0.0, 0.0]]))
    assert g.mean_loss == 7 / 4


# --- the choice of engine ----------------------------------------------------------------------------


class NoSetup(torch.autograd.Function):
    """Without `setup_context`, as most were written."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class NoRule(torch.autograd.Function):
    """With `setup_context` but no rule for vmap."""

    @staticmethod
    def forward(w):
        return w * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def base(p, x):
    return (p["w"] * x).sum().square()


def set_item(p, x):
    out = torch.zeros(3, dtype=F64)
    out[0] = (p["w"] * x).sum()
    return out.square().sum()


def inner_autograd(p, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(base(p, x), x, create_graph=True)[0].square().sum()


def of_module(module, loss):
    model = gf.stateless(module.double())
    params = model.params
    return lambda p, x: loss(model, {k: p["w"].sum() * v for k, v in params.items()}, x)


ONLY_THE_LOOP = {
    "item": lambda p, x: base(p, x) * (1.0 if x.sum().item() > 0 else 2.0),
    "if": lambda p, x: base(p, x) if x.sum() > 0 else 2 * base(p, x),
    "int": lambda p, x: base(p, x) * int(x.sum() > 0),
    "numpy": lambda p, x: base(p, x) * float(x.numpy().sum()),
    "tolist": lambda p, x: base(p, x) * sum(x.tolist()),
    "boolean mask": lambda p, x: (p["w"] * x)[x > 0].square().sum(),
    "nonzero": lambda p, x: base(p, x) * len(x.gt(0).nonzero()),
    "unique": lambda p, x: base(p, x) * len(x.sign().unique()),
    "write into a tensor": set_item,
    "autograd.grad inside": inner_autograd,
    "Function without setup_context": lambda p, x: base({"w": NoSetup.apply(p["w"])}, x),
    "Function without a vmap rule": lambda p, x: base({"w": NoRule.apply(p["w"] * x)}, x),
    "checkpoint": lambda p, x: checkpoint(base, p, x, use_reentrant=False),
    "instance norm that tracks": of_module(
        nn.InstanceNorm1d(1, affine=True, track_running_stats=True),
        lambda m, p, x: m.sample(p, x.unsqueeze(0)).pow(3).sum(),
    ),
}


@pytest.mark.parametrize("name", ONLY_THE_LOOP)
def test_auto_falls_to_the_loop_and_says_so_once(name):
    loss = ONLY_THE_LOOP[name]
    params, x = {"w": torch.randn(3, dtype=F64)}, torch.randn(5, 3, dtype=F64)
    f = gf.per_sample_grads(loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        g = f(params, x)
        again = f(params, x[:2])
    ours = [w for w in caught if issubclass(w.category, gf.GradfuncWarning)]
    assert len(ours) == 1
    assert ours[0].filename == __file__
    assert "one backward pass a sample" in str(ours[0].message)
    assert g.engine == again.engine == "loop"
    assert "torch.func cannot run this loss" in g.explain()
    check_queries(g, truth(loss, params, 5, (x,)))


def test_each_function_warns_for_itself():
    params, x = {"w": torch.randn(3)}, torch.randn(2, 3)
    for _ in range(2):
        with pytest.warns(gf.GradfuncWarning, match="torch.func cannot run this loss"):
            gf.per_sample_grads(ONLY_THE_LOOP["item"])(params, x)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_auto_takes_factors_where_it_can_without_a_word_and_others_as_asked(engine):
    g = gf.per_sample_grads(base, engine=engine)({"w": torch.ones(3)}, torch.ones(2, 3))
    assert g.engine == ("factored" if engine == "auto" else engine)
    assert g.engine in g.explain()


@pytest.mark.parametrize("engine", ["factored", "vmap"])
def test_asking_for_an_engine_is_not_overruled(engine):
    with pytest.raises(RuntimeError, match="vmap"):
        gf.per_sample_grads(ONLY_THE_LOOP["if"], engine=engine)({"w": torch.ones(3)}, torch.ones(2, 3))


def test_asking_for_the_loop_warns_of_nothing():
    g = gf.per_sample_grads(ONLY_THE_LOOP["if"], engine="loop")({"w": torch.ones(3)}, torch.ones(2, 3))
    assert g.engine == "loop"


def test_a_slow_batching_rule_of_torch_does_not_stop_anything():
    # torch warns of "a performance drop" from C++; where warnings are errors that must not become ours.
    model = gf.stateless(nn.EmbeddingBag(5, 3).double())
    x = torch.randint(5, (4, 2))

    def loss(p, x):
        return model.sample(p, x).square().sum()

    check_queries(gf.per_sample_grads(loss)(model.params, x), truth(loss, model.params, 4, (x,)))


class Mine(Exception):
    pass


@pytest.mark.parametrize("engine", ["auto", "factored", "vmap", "loop"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("mine"), RuntimeError("mine"), NotImplementedError("mine"), KeyError("mine"), Mine("mine")]
)
def test_a_users_own_exception_passes_untouched(engine, batched, error):
    def loss(p, x):
        raise error

    with pytest.raises(type(error)) as caught:
        gf.per_sample_grads(loss, engine=engine, batched=batched)({"w": torch.ones(3)}, torch.ones(2, 3))
    assert caught.value is error


@pytest.mark.parametrize("engine", ["auto", "factored", "vmap", "loop"])
def test_a_users_shape_error_is_torchs_own(engine):
    with pytest.raises(RuntimeError, match="size of tensor a"):
        gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), engine=engine)({"w": torch.ones(3)}, torch.ones(2, 4))


def test_an_error_of_the_users_own_does_not_pin_the_loop():
    """It looks like a limitation of torch.func at first, but the loop meets it too: no warning, nothing remembered."""

    def loss(params, x):
        return (params["w"] * x).reshape(3, 1).add_(torch.ones(1, 4)).sum()  # torch: doesn't match the broadcast shape

    f = gf.per_sample_grads(loss)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broadcast shape"):
            f({"w": torch.ones(3)}, torch.ones(2, 3))
    assert f._learnt.refused == {}


def test_containers_that_hide_tensors_are_refused():
    @dataclasses.dataclass
    class Sample:
        x: torch.Tensor

    f = gf.per_sample_grads(lambda params, x, d: (params["w"] * x).sum())
    with pytest.raises(TypeError, match="a Sample in the batch, which would be the same for every sample"):
        f({"w": torch.ones(3)}, torch.ones(2, 3), Sample(torch.ones(2, 3)))
    with pytest.raises(TypeError, match="an UserDict in the batch"):
        f({"w": torch.ones(3)}, torch.ones(2, 3), UserDict(x=torch.ones(2, 3)))


def test_explain_names_what_torch_runs_sample_by_sample():
    module = nn.EmbeddingBag(5, 3)
    model = gf.stateless(module)
    f = gf.per_sample_grads(lambda params, i: model.sample(params, i).sum(), engine="vmap")
    assert re.search(r"aten::\w*embedding_bag", f(model.params, torch.zeros(4, 2, dtype=torch.long)).explain())


def test_streamed_gram_is_symmetric_and_whole():
    params, x = {"w": torch.randn(3).double()}, torch.randn(7, 3).double()
    loss = lambda p, x: (p["w"] * x).sin().sum()  # noqa: E731
    streamed = gf.per_sample_grads(loss, chunk_size=3)(params, x).gram()
    assert torch.equal(streamed, streamed.T)
    g = gf.per_sample_grads(loss)(params, x)
    assert ((streamed - g.gram()).abs() <= 1e-12 * g.norms()[:, None] * g.norms()).all()


def test_a_limit_of_torch_in_words_nobody_knows_still_falls_to_the_loop():
    """`bincount` of other lengths per sample fails under vmap in words of its own; sample 0 alone runs."""

    def loss(params, i):
        counts = torch.bincount(i)
        return (params["w"][: len(counts)] * counts).sum()

    with pytest.warns(gf.GradfuncWarning, match="torch.func cannot run this loss"):
        g = gf.per_sample_grads(loss)({"w": torch.ones(5)}, torch.tensor([[0, 0], [3, 1], [4, 4]]))
    expected = [[2.0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 2]]
    assert g.materialize()["w"].tolist() == expected


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_loss_that_writes_to_its_input_leaves_the_batch_alone(engine, batched):
    def loss(params, x):
        return (params["w"] * x.mul_(2)).sum(-1)

    x = torch.ones(3, 2)
    g = gf.per_sample_grads(loss, engine=engine, batched=batched)({"w": torch.ones(2)}, x)
    assert torch.equal(x, torch.ones(3, 2))
    assert torch.equal(g.materialize()["w"], torch.full((3, 2), 2.0))


def test_kept_rows_hold_no_graph_and_know_what_is_unused():
    params, x = {"w": torch.ones(2), "idle": torch.ones(1)}, torch.ones(3, 2)
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(-1), batched=True)(params, x)
    assert g._source.origin is None
    params["w"].add_(1)
    assert g.unused == ("idle",)


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match=r"complex parameters \['w'\]"):
        gf.per_sample_grads(lambda p, x: (p["w"].real * x).sum())({"w": torch.ones(2) + 0j}, torch.ones(3, 2))


def test_losses_and_weights_are_copies():
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(2)}, torch.ones(3, 2))
    g.losses.add_(100)
    g.weights.add_(100)
    assert torch.equal(g.losses, torch.full((3,), 2.0))
    assert torch.equal(g.weights, torch.ones(3))


def test_running_out_of_memory_is_no_limitation():
    """One sample would fit, but falling to the loop would answer a question nobody asked."""

    def loss(params, x):
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise torch.OutOfMemoryError("no memory for the batch")
        return (params["w"] * x).sum()

    with pytest.raises(torch.OutOfMemoryError, match="out of memory with one sample at a time"):
        gf.per_sample_grads(loss)({"w": torch.ones(3)}, torch.ones(2, 3))


def test_losses_alone_learn_what_torch_func_cannot_run():
    """The second batch goes to the loop at once; the call that follows warns as ever, and gives the same."""
    ran = []

    def branchy(p, x):
        ran.append(1)
        return (p["w"] * x).sum() if x.sum() > 0 else p["w"].sum()

    p, x = {"w": torch.ones(2)}, torch.tensor([[1.0, 2.0], [-1.0, 0.0], [3.0, 0.0]])
    f = gf.per_sample_grads(branchy)
    first = f.losses(p, x).numerator
    ran.clear()
    assert torch.equal(f.losses(p, x).numerator, first)
    assert len(ran) == len(x)
    with pytest.warns(gf.GradfuncWarning, match="one autograd call a sample"):
        g = f(p, x)
    assert g.engine == "loop"
    assert torch.equal(g.losses, first)
