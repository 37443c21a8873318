"""`verify="first"`: what it lets pass, what it catches and names, when it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc import _factors
from gradfunc._engines import CotangentSource, LoopSource, VmapSource, _factored
from gradfunc._per_sample import _evaluation

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def problem(dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    model = gf.stateless(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(device, dtype))

    def loss(p, x, y):
        return gf.losses.cross_entropy(model.sample(p, x), y)

    return loss, model.params, (X.to(device, dtype), Y.to(device))


def losses(p, x):
    return (x @ p["w"]).tanh().sum(1)


BATCHED = ["factored", "vmap"]  # engines that are verified
# engine -> what gives its rows
ROWS = {"factored": (_factored, "factored"), "vmap": (VmapSource, "rows")}
NATIVE = {"factored": (_evaluation, "factored"), "vmap": (CotangentSource, "rows")}


def mistaken(monkeypatch, where, attribute, change):
    """Plant a mistake: the rows that `attribute` gives, changed."""
    rows = getattr(where, attribute)

    def wrong(*args, **options):
        made = rows(*args, **options)
        return made._replace(grads=_factors.from_rows(change(_factors.dense(made.grads))))

    monkeypatch.setattr(where, attribute, wrong)


MISTAKES = {
    "rows permuted": (lambda g: {k: v.roll(1, 0) for k, v in g.items()}, r"weighted_sum\(r\) differ"),
    "every row the mean": (lambda g: {k: v.mean(0).expand_as(v) for k, v in g.items()}, r"weighted_sum\(r\) differ"),
    "one parameter half": (lambda g: {**g, "2.bias": g["2.bias"] / 2}, r"in '2\.bias'"),
    "0.1% off": (lambda g: {k: v * 1.001 for k, v in g.items()}, r"and that is no rounding"),
    "a sample lost": (lambda g: {k: v.index_fill(0, torch.tensor([4]), 0.0) for k, v in g.items()}, "differ"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("engine", BATCHED)
def test_an_engine_that_is_wrong_raises(engine, name, dtype, monkeypatch):
    change, text = MISTAKES[name]
    loss, params, batch = problem(dtype)
    gf.per_sample_grads(loss, engine=engine)(params, *batch)
    mistaken(monkeypatch, *ROWS[engine], change)
    with pytest.raises(RuntimeError, match=rf"engine {engine} that fail verification: .*{text}.*engine='loop'"):
        gf.per_sample_grads(loss, engine=engine)(params, *batch)
    gf.per_sample_grads(loss, engine=engine, verify=False)(params, *batch)
    gf.per_sample_grads(loss, engine="loop")(params, *batch)


def test_what_auto_takes_is_verified(monkeypatch):
    loss, params, batch = problem()
    mistaken(monkeypatch, *ROWS["factored"], MISTAKES["rows permuted"][0])
    with pytest.raises(RuntimeError, match="engine factored that fail verification"):
        gf.per_sample_grads(loss)(params, *batch)


@pytest.mark.parametrize("engine", BATCHED)
def test_norms_that_are_wrong_raise(engine, monkeypatch):
    loss, params, batch = problem()
    norms = _factors.norms
    monkeypatch.setattr(_factors, "norms", lambda rows: norms(rows) * torch.tensor([1.01, 1, 1, 1, 1, 1]))
    with pytest.raises(RuntimeError, match=r"norms\[i\], .* differ by .* for sample 0"):
        gf.per_sample_grads(loss, engine=engine)(params, *batch)


@pytest.mark.parametrize("engine", BATCHED)
def test_rows_of_a_native_batch_are_verified(engine, monkeypatch):
    params = {"w": torch.randn(4, 3)}
    gf.per_sample_grads(losses, batched=True, engine=engine)(params, X)
    mistaken(monkeypatch, *NATIVE[engine], lambda g: {"w": g["w"].flip(0)})
    with pytest.raises(RuntimeError, match="fail verification"):
        gf.per_sample_grads(losses, batched=True, engine=engine)(params, X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", BATCHED)
def test_rounding_passes(engine, dtype, device):
    """Long sums, deep nets, cancellation: none of it is wrong."""
    loss, params, batch = problem(dtype, device)
    gf.per_sample_grads(loss, engine=engine)(params, *batch)
    torch.manual_seed(1)
    layers = [m for _ in range(12) for m in (nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU())]
    deep = gf.stateless(nn.Sequential(*layers).to(device, dtype))
    x = torch.randn(16, 32, device=device, dtype=dtype)
    gf.per_sample_grads(lambda p, x: deep.sample(p, x).sum().square(), engine=engine)(deep.params, x)
    shifted = gf.stateless(nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32)).to(device, dtype))
    f = gf.per_sample_grads(lambda p, x: shifted.sample(p, x + 100).square().sum(), engine=engine)
    f(shifted.params, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", BATCHED)
def test_one_precision_inside_of_another_passes(engine, dtype):
    """A gradient that is 0 on paper, computed in float32 whatever is asked for."""
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for w in (torch.zeros(8, 5), torch.randn(8, 5)):
        f = gf.per_sample_grads(lambda p, x: torch.softmax(x @ p["w"], -1, dtype=torch.float32).sum(), engine=engine)
        f({"w": w.to(dtype)}, x.to(dtype))
        f({"w": w.to(dtype)}, gf.ragged(list(x.to(dtype))))


class Thrice(torch.autograd.Function):
    """A batching rule that is wrong: under vmap the gradient is three times what it is of one sample."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return Tripled.apply(grad)

    @staticmethod
    def vmap(info, in_dims, x):
        return Thrice.apply(x), in_dims[0]


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(g):
        return g.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def vmap(info, in_dims, g):
        return 3 * g, in_dims[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [8, 64, 300])
def test_a_wrong_batching_rule_is_caught_in_every_precision(dtype, size):
    params, x = {"w": torch.ones(4, dtype=dtype)}, torch.randn(size, 4).to(dtype)
    with pytest.raises(RuntimeError, match="fail verification"):
        gf.per_sample_grads(lambda p, x: Thrice.apply(p["w"] * x).square().sum(), engine="vmap")(params, x)


def test_factors_ask_no_batching_rule_of_a_backward():
    """Their backward pass is an ordinary one, in which the rule that is wrong has no part."""
    params, x = {"w": torch.ones(4, dtype=torch.float64)}, torch.randn(8, 4, dtype=torch.float64)
    g = gf.per_sample_grads(lambda p, x: Thrice.apply(p["w"] * x).square().sum(), engine="factored")(params, x)
    assert torch.allclose(g.materialize()["w"], 2 * x.square(), rtol=1e-12)


@pytest.mark.parametrize("engine", BATCHED)
def test_another_graph_is_verified_anew(engine, monkeypatch):
    def loss(p, x, mode):
        return (Thrice.apply(p["w"]) * x).square().sum() if mode == "bad" else (p["w"] * x).square().sum()

    f = gf.per_sample_grads(loss, engine=engine)
    params = {"w": torch.ones(4)}
    f(params, X, "good")
    mistaken(monkeypatch, *ROWS[engine], lambda g: {"w": g["w"].roll(1, 0)})
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).square().sum(), engine=engine)
    g(params, X[:1])  # one sample alone is in its place
    with pytest.raises(RuntimeError, match="fail verification"):
        g(params, X)
    with pytest.raises(RuntimeError, match="fail verification"):
        f(params, X, "other")


@pytest.mark.parametrize("engine", BATCHED)
def test_gradients_that_are_not_finite_pass(engine):
    for bad in (torch.nan, torch.inf):
        x = X.clone()
        x[2, 1] = bad
        g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), engine=engine)({"w": torch.ones(4)}, x)
        assert not g.norms()[2].isfinite()


@pytest.mark.parametrize("engine", BATCHED)
def test_a_loss_that_runs_in_one_precision_only(engine):
    """It cannot be repeated: half of its digits must agree."""

    def loss(p, x):
        if x.dtype != torch.float32:
            raise ValueError("float32 only")
        return torch.tanh(p["w"] @ x).sum() + (p["w"] @ (x + 1000)).sum() - (p["w"] @ (x + 1000)).sum()

    gf.per_sample_grads(loss, engine=engine)({"w": torch.randn(5, 4)}, X)


@pytest.mark.parametrize("engine", BATCHED)
def test_what_cannot_be_repeated_is_judged_by_its_conditioning(engine, monkeypatch):
    def only(dtype, loss):
        def checked(p, x):
            if x.dtype != dtype:
                raise ValueError("one precision only")
            return loss(p, x)

        return checked

    torch.manual_seed(0)
    params, norm = {"w": torch.randn(5, 4)}, nn.functional.layer_norm
    noise = only(torch.float32, lambda p, x: norm(p["w"] @ x, (5,)).square().sum())  # 0 on paper
    gf.per_sample_grads(noise, engine=engine)(params, X)
    smooth = only(torch.float32, lambda p, x: torch.tanh(p["w"] @ x).sum())
    gf.per_sample_grads(smooth, engine=engine)(params, X)
    mistaken(monkeypatch, *ROWS[engine], lambda g: {"w": g["w"] * 1.01})
    with pytest.raises(RuntimeError, match="fail verification"):
        gf.per_sample_grads(smooth, engine=engine)(params, X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("engine", BATCHED)
def test_what_cancellation_leaves_is_no_fault(engine, dtype):
    """A gradient that is exactly 0 on paper is all rounding, and differs from itself by all of it."""
    model = gf.stateless(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, elementwise_affine=False)).to(dtype))
    f = gf.per_sample_grads(
        lambda p, x: model.sample(p, x).sum() * 1e3 + model.sample(p, x).square().sum(), engine=engine
    )
    g = f(model.params, X.to(dtype))
    assert bool((g.norms() < 1).all())


@pytest.mark.parametrize("engine", BATCHED)
def test_a_loss_that_returns_something_else_each_time_is_told(engine):
    calls = []

    def loss(p, x):
        calls.append(1)
        return (p["w"] * x).sum() * len(calls)

    with pytest.raises(RuntimeError, match="a loss that returns something else at each run"):
        gf.per_sample_grads(loss, engine=engine)({"w": torch.ones(4)}, X)


@pytest.mark.parametrize("engine", BATCHED)
def test_each_shape_is_verified_once(engine):
    calls = []

    def loss(p, x):
        calls.append(1)
        return (p["w"] * x).sum()

    f = gf.per_sample_grads(loss, engine=engine)
    params = {"w": torch.ones(4)}

    def asked(f, *given):
        calls.clear()
        f(*given)
        return len(calls)

    assert asked(f, params, X) > 1
    if engine == "factored":  # which reads its graph, and may read that of another number of samples wrongly
        assert asked(f, params, X[:3]) > 1
    assert asked(f, params, X[:3]) == 1  # another number of samples is the same graph to vmap
    assert asked(f.at(2), params, X) == 1
    assert asked(f, {"w": torch.ones(4, dtype=torch.float64)}, X.double()) > 1
    assert asked(f, {"w": torch.ones(1)}, X) > 1
    assert asked(gf.per_sample_grads(loss, engine=engine), params, X) > 1
    assert asked(gf.per_sample_grads(loss, engine=engine, verify=False), params, X) == 1


@pytest.mark.parametrize("engine", BATCHED)
def test_running_out_of_memory_in_the_extra_pass_is_no_failure(engine, monkeypatch):
    source, own = {"factored": (VmapSource, 1), "vmap": (LoopSource, 0)}[engine]
    traced, asked = source.traced, []

    def tight(self, at):
        asked.append(at)
        if len(asked) > own:  # the first pass of factors is their own
            raise torch.OutOfMemoryError("no room for a graph")
        return traced(self, at)

    monkeypatch.setattr(source, "traced", tight)
    loss, params, batch = problem()
    assert gf.per_sample_grads(loss, engine=engine)(params, *batch).batch_size == 6
    assert len(asked) == own + 1


@pytest.mark.parametrize("options", [{"chunk_size": 4}, {"loss_scale": 256.0}, {"wrt": "2.*"}, {"chunk_size": 1}])
@pytest.mark.parametrize("engine", BATCHED)
def test_every_option_is_verified_as_it_is(engine, options):
    loss, params, batch = problem()
    options = {"engine": engine, **options}
    gf.per_sample_grads(loss, **options)(params, *batch)
    noisy = gf.per_sample_grads(lambda p, x, y: loss(p, F.dropout(x, 0.5), y), **options)
    noisy.at(1, index=[5, 1, 9, 2, 0, 3])(params, *batch)
    rows = gf.ragged([x[: 2 + i % 3].repeat(2)[:4] for i, x in enumerate(X)])
    gf.per_sample_grads(loss, **options)(params, rows, batch[1])


@pytest.mark.parametrize("verify", [True, "always", None, 1])
def test_bad_values_are_told_what_is_wrong(verify):
    with pytest.raises(ValueError, match=r"verify=.*'first' or False"):
        gf.per_sample_grads(losses, verify=verify)


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_forward_pass_has_the_samples_own_losses_weights_and_aux(engine, batched, chunk_size):
    def loss(p, x):
        out = torch.tanh(x @ p["w"])
        return gf.Weighted(out.sum(-1), 1 + x[..., 0].abs()), {"out": out}

    params = {"w": torch.randn(4, 3, dtype=torch.float64)}
    options = {"engine": engine, "batched": batched, "chunk_size": chunk_size, "has_aux": True, "loss_scale": 8.0}
    f = gf.per_sample_grads(loss, **options)
    run = f.evaluation(params, (X.double(),), {})
    value = run.value(engine, "as asked")
    for at, traced in run.graphs(value):
        assert traced.losses.requires_grad
        assert torch.equal(traced.losses.detach(), value.losses[at])
        assert torch.equal(traced.weights, value.weights[at])
        assert torch.equal(traced.aux["out"], value.aux["out"][at])
        assert not traced.weights.requires_grad
        assert not traced.aux["out"].requires_grad
        ones = torch.ones(len(at), dtype=torch.float64)
        assert torch.allclose(traced.weighted_grad(ones)["w"], value.select(at).sum()["w"], rtol=1e-12)
