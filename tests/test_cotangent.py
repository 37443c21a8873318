"""Clipping during the backward pass: its edges, every engine against one backward pass a sample, what it changes."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from oracle import close, close_rows, same_bits, truth, truth_batched
from tiers import every
from torch.nn.functional import mse_loss

import gradfunc as gf
from gradfunc import _cotangent
from gradfunc._capture import _owners

F64 = torch.float64
B, D, T = 6, 5, 7
KINDS = {"norm": {"norm": 0.5}, "value": {"value": 0.1}}
NONE = {"norm": math.inf}


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (D, D), "u": (D, 3), "b": (D,)}
    params = {k: torch.randn(s, generator=generator, dtype=F64) for k, s in shapes.items()}
    x, y = torch.randn(B, T, 3, generator=generator, dtype=F64), torch.randn(B, D, generator=generator, dtype=F64)
    return params, (x, y * torch.logspace(-2, 2, B, dtype=F64)[:, None])


def sample_loss(p, x, y, *, on="state", **options):
    """A recurrence of one sample, with the state of every step clipped, or the weight."""
    h = x.new_zeros(D)
    w = gf.clip_cotangent(p["w"], **options) if on == "weight" else p["w"]
    for t in range(T):
        h = torch.tanh(0.5 * (w @ h) + p["u"] @ x[t] + p["b"])
        h = gf.clip_cotangent(h, **options) if on == "state" else h
    return (h - y).square().sum()


def batch_losses(p, x, y, *, on="state", apart=1, **options):
    """The same of a batch; `apart` is how many dimensions tell norms apart."""
    h = x.new_zeros(len(x), D)
    w = gf.clip_cotangent(p["w"], **options) if on == "weight" else p["w"]
    for t in range(T):
        h = torch.tanh(0.5 * h @ w.T + x[:, t] @ p["u"].T + p["b"])
        h = gf.clip_cotangent(h, **options, batch_dims=apart) if on == "state" else h
    return (h - y).square().sum(1)


def loop(loss, params, batch):
    return truth(loss, params, B, batch).rows


def check_engine(engine, kind, on, apart=None):
    """Against the loop over samples, and in native batches against the loop over losses as well; plans used twice."""
    params, batch = problem()
    alone = functools.partial(sample_loss, on=on, **KINDS[kind])
    loss = alone if apart is None else functools.partial(batch_losses, on=on, apart=apart, **KINDS[kind])
    f = gf.per_sample_grads(loss, engine=engine, batched=apart is not None)
    for given in (batch, [part.flip(0) for part in batch]):
        got, want = f(params, *given), loop(alone, params, given)
        assert got.engine == engine
        close_rows(got.materialize(), want)
        close(got.norms(), torch.cat([v.flatten(1) for v in want.values()], 1).norm(dim=1), got.norms(), "norms")
        if apart is not None and on == "state":
            close_rows(truth_batched(loss, params, given).rows, want)


@pytest.mark.parametrize("apart", [None, 1, 0], ids=["samples", "native", "native, one norm"])
@pytest.mark.parametrize("on", ["state", "weight"])
@pytest.mark.parametrize("kind", every(2, KINDS))
@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
def test_every_engine_is_the_loop(engine, kind, on, apart):
    check_engine(engine, kind, on, apart)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_in_chunks(chunk_size):
    params, batch = problem()
    loss = functools.partial(sample_loss, norm=0.5)
    got = gf.per_sample_grads(loss, chunk_size=chunk_size)(params, *batch)
    close_rows(got.materialize(), loop(loss, params, batch))


def check_plans_differ():
    """One `f`, one graph but for what tells norms apart: a plan of the one is none of the other."""
    params, batch = problem()
    apart = [1]
    f = gf.per_sample_grads(
        lambda p, x, y: batch_losses(p, x, y, apart=apart[0], norm=0.5), batched=True, engine="factored", verify=False
    )
    want = loop(functools.partial(sample_loss, norm=0.5), params, batch)
    for lead in (1, 0, 1):
        apart[0] = lead
        close_rows(f(params, *batch).materialize(), want)


def test_plans_of_other_norms_are_others():
    check_plans_differ()


@pytest.mark.parametrize("kind", KINDS)
def test_certified(kind):
    params, batch = problem()
    for on in ("state", "weight"):
        report = gf.testing.certify(functools.partial(sample_loss, on=on, **KINDS[kind]), params, batch)
        assert report.ok, str(report)


def check_verification():
    """A clip takes nothing from what verification sees: rows that are another sample's."""
    params, batch = problem()
    f = gf.per_sample_grads(functools.partial(sample_loss, norm=0.5), engine="factored")
    right = gf.PerSampleGrads.weighted_sum
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gf.PerSampleGrads, "weighted_sum", lambda g, c, **how: right(g, c.roll(1), **how))
        with pytest.raises(RuntimeError, match="fail verification"):
            f(params, *batch)


def test_verification_still_sees_wrong_rows():
    check_verification()


def check_state_and_weight():
    """Clipping the state at every step is not clipping afterwards; of a parameter that is used once it is."""
    params, batch = problem()
    free = loop(functools.partial(sample_loss, **NONE), params, batch)
    for limit in (0.05, 0.5, 3.0):
        after = {"w": torch.stack([row * min(1.0, limit / float(row.norm())) for row in free["w"]])}
        on_weight = loop(functools.partial(sample_loss, on="weight", norm=limit), params, batch)
        on_state = loop(functools.partial(sample_loss, norm=limit), params, batch)
        close_rows({"w": on_weight["w"]}, after)
        assert same_bits(on_weight["u"], free["u"])
        changed = [not torch.allclose(a, b, rtol=1e-3) for a, b in zip(on_state["w"], after["w"], strict=True)]
        assert any(changed)
    weight = torch.tensor([[0.9, -1.2], [0.8, 1.0]], dtype=F64, requires_grad=True)
    grads = []
    for limit in (math.inf, 1.0):
        h = torch.tensor([1.0, -1.0], dtype=F64)
        for _ in range(20):
            h = gf.clip_cotangent(weight @ h, norm=limit)
        grads.append(torch.autograd.grad(h.square().sum(), weight)[0].flatten())
    assert float(torch.cosine_similarity(*grads, dim=0)) < 0.99  # not even the direction is that of the gradient


def test_on_a_state_it_differs_from_clipping_afterwards_on_a_parameter_not():
    check_state_and_weight()


def check_bounded_through_time():
    """An exploding recurrence: with a clip at every step no step sends back more than the limit."""
    w = torch.tensor([[1.5]], dtype=F64, requires_grad=True)

    def run(steps, limit):
        h = torch.ones(1, dtype=F64)
        for _ in range(steps):
            h = gf.clip_cotangent(w @ h, norm=limit)
        (grad,) = torch.autograd.grad(h.sum(), w)
        return float(grad)

    assert run(50, math.inf) == pytest.approx(50 * 1.5**49, rel=1e-12)
    assert run(50, 1.0) == pytest.approx(sum(1.5**t for t in range(50)), rel=1e-12)  # each step's cotangent is 1


def test_no_step_sends_back_more_than_the_limit():
    check_bounded_through_time()


def cotangent(grad, dtype=F64, **options):
    """What comes out of the backward pass for the cotangent that goes in."""
    grad = torch.as_tensor(grad, dtype=dtype)
    x = torch.zeros_like(grad, requires_grad=True)
    y = gf.clip_cotangent(x, **options)
    assert y.dtype == x.dtype
    assert y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()  # nothing is copied
    return torch.autograd.grad(y, x, grad)[0]


inf, nan = math.inf, math.nan
# cotangent, options, what becomes of it
EDGES = {
    "value, within": ([0.5, -1.0], {"value": 1.0}, [0.5, -1.0]),
    "value, beyond": ([2.5, -1.5], {"value": 1.0}, [1.0, -1.0]),
    "value, inf": ([inf, -inf], {"value": 1.0}, [1.0, -1.0]),
    "value, NaN": ([nan, 2.0], {"value": 1.0}, [nan, 1.0]),
    "value, no limit": ([1e300, -1.0], {"value": inf}, [1e300, -1.0]),
    "norm, within": ([0.3, 0.4], {"norm": 1.0}, [0.3, 0.4]),
    "norm, beyond": ([3.0, 4.0], {"norm": 1.0}, [0.6, 0.8]),
    "norm, 0": ([0.0, 0.0], {"norm": 1.0}, [0.0, 0.0]),
    "norm, inf": ([inf, 1.0], {"norm": 1.0}, [inf, 1.0]),
    "norm, NaN": ([nan, 100.0], {"norm": 1.0}, [nan, 100.0]),
    "norm, no limit": ([1e300, -1.0], {"norm": inf}, [1e300, -1.0]),
    "norm, squares that overflow": ([3e200, 4e200], {"norm": 1.0}, [0.6, 0.8]),
    "norm, squares that underflow": ([3e-200, 4e-200], {"norm": 1e-200}, [0.6e-200, 0.8e-200]),
    "norm, a scalar": (-4.0, {"norm": 1.0}, -1.0),
    "norm, no entries": ([], {"norm": 1.0}, []),
    "norm, rows": ([[3.0, 4.0], [0.3, 0.4], [nan, 1.0]], {"norm": 1.0, "batch_dims": 1},
                   [[0.6, 0.8], [0.3, 0.4], [nan, 1.0]]),
    "norm, entries": ([[3.0, -0.5]], {"norm": 1.0, "batch_dims": 2}, [[1.0, -0.5]]),
}  # fmt: skip


def check_edge(name):
    given, options, expected = EDGES[name]
    got = cotangent(given, **options)
    assert torch.allclose(got, torch.tensor(expected, dtype=F64), rtol=1e-15, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", EDGES)
def test_an_edge(name):
    check_edge(name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_measure_in_float32(dtype):
    got = cotangent([300.0, 400.0], dtype, norm=1.0)  # the squares overflow float16
    assert torch.equal(got, torch.tensor([0.6, 0.8], dtype=dtype))


def check_transforms():
    """grad, vmap, vmap of grad, vmap of vmap: norms stay those of one sample's tensor, wherever the batch sits."""
    x = torch.randn(4, 3, 5, dtype=F64)
    c = torch.randn(4, 3, 5, dtype=F64)

    def one(x, c):
        return (gf.clip_cotangent(x, norm=1.0) * c).sum()

    def expected(c, dims):
        n = c.norm(dim=dims, keepdim=True) if len(dims) == 1 else c.flatten(-len(dims)).norm(dim=-1)[..., None, None]
        return c * (1 / n).clamp(max=1.0)

    grad = torch.func.grad(one)
    close(torch.func.vmap(grad)(x, c), expected(c, (1, 2)), 1.0, "vmap(grad)")
    close(torch.func.vmap(torch.func.vmap(grad))(x, c), expected(c, (2,)), 1.0, "vmap(vmap(grad))")
    moved = torch.func.vmap(grad, in_dims=2, out_dims=2)(x.movedim(0, 2), c.movedim(0, 2)).movedim(2, 0)
    close(moved, expected(c, (1, 2)), 1.0, "vmap over the last dimension")
    outside = torch.func.grad(lambda x: torch.func.vmap(one)(x, c).sum())(x)
    close(outside, expected(c, (1, 2)), 1.0, "grad(vmap)")
    unmapped = torch.func.vmap(torch.func.grad(lambda c, w: one(w, c), argnums=1), in_dims=(0, None))(c, x[0])
    close(unmapped, expected(c, (1, 2)), 1.0, "of what vmap does not map")
    total = torch.func.grad(lambda w: torch.func.vmap(one, in_dims=(None, 0))(w, c).sum())(x[0])
    close(total, c.sum(0) / c.sum(0).norm(), 1.0, "one tensor for all samples has one cotangent")


def test_under_transforms():
    check_transforms()


def check_second_derivatives():
    """Those of the clipped cotangent: by autograd twice against differences, and 0 through what is clamped."""
    x = torch.tensor([0.9, -0.4, 0.2], dtype=F64)

    def clipped(x, **options):
        leaf = x if x.requires_grad else x.clone().requires_grad_()
        loss = torch.exp(2 * gf.clip_cotangent(leaf, **options)).sum()
        return torch.autograd.grad(loss, leaf, create_graph=True)[0]

    for options in ({"norm": 1.0}, {"norm": 1e3}, {"value": 2.0}, {"value": 50.0}):
        assert torch.autograd.gradcheck(functools.partial(clipped, **options), (x.clone().requires_grad_(),))
    jacobian = torch.autograd.functional.jacobian(functools.partial(clipped, value=2.0), x)
    assert torch.equal(jacobian[0], torch.zeros(3, dtype=F64))  # 2 exp(1.8) is clamped


def test_second_derivatives():
    check_second_derivatives()


def test_a_value_whose_norms_are_differentiated():
    params, batch = problem()
    loss = functools.partial(sample_loss, norm=0.5)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    got = torch.autograd.grad(gf.per_sample_grads(loss)(leaves, *batch).norms().sum(), list(leaves.values()))
    total = 0.0
    for x, y in zip(*batch, strict=True):
        rows = torch.autograd.grad(loss(leaves, x, y), list(leaves.values()), create_graph=True)
        total = total + torch.cat([row.flatten() for row in rows]).norm()
    want = torch.autograd.grad(total, list(leaves.values()))
    for a, b in zip(got, want, strict=True):
        close(a, b, float(b.abs().max()), "second derivatives", 1e-10)


def check_forward():
    x = torch.randn(3, 4)
    assert torch.equal(gf.clip_cotangent(x, norm=1.0), x)
    leaf = x.clone().requires_grad_()
    y = gf.clip_cotangent(leaf, value=1.0)
    assert torch.equal(y, x)
    assert not leaf._backward_hooks
    assert not y._backward_hooks


def test_the_identity_without_hooks():
    check_forward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # of torch's own import
def test_forward_mode_raises():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda x: gf.clip_cotangent(x, norm=1.0), (torch.ones(2),), (torch.ones(2),))


@pytest.mark.filterwarnings("ignore")  # of the compiler's own imports
def test_compiled():
    layer = torch.nn.Linear(4, 4)

    def loss(x):
        h = gf.clip_cotangent(torch.tanh(layer(x)), norm=0.1, batch_dims=1)
        return mse_loss(h, torch.ones_like(h), reduction="sum")

    x = torch.randn(5, 4)
    want = torch.autograd.grad(loss(x), list(layer.parameters()))
    run = torch.compile(loss, backend="aot_eager", fullgraph=True)  # traced in both directions; needs no compiler
    got = torch.autograd.grad(run(x), list(layer.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


BAD = {
    "neither": (lambda x: gf.clip_cotangent(x), ValueError, "value=None and norm=None"),
    "both": (lambda x: gf.clip_cotangent(x, value=1.0, norm=1.0), ValueError, "value=1.0 and norm=1.0"),
    "0": (lambda x: gf.clip_cotangent(x, norm=0.0), ValueError, "norm=0.0"),
    "negative": (lambda x: gf.clip_cotangent(x, value=-1), ValueError, "value=-1"),
    "NaN": (lambda x: gf.clip_cotangent(x, norm=nan), ValueError, "norm=nan"),
    "a tensor": (lambda x: gf.clip_cotangent(x, norm=torch.ones(())), TypeError, "norm=tensor"),
    "no tensor": (lambda x: gf.clip_cotangent([1.0], norm=1.0), TypeError, "a list"),
    "dimensions": (lambda x: gf.clip_cotangent(x, norm=1.0, batch_dims=3), ValueError, "batch_dims=3"),
    "half a dimension": (lambda x: gf.clip_cotangent(x, norm=1.0, batch_dims=0.5), TypeError, "batch_dims=0.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, error, text = BAD[name]
    with pytest.raises(error) as raised:
        call(torch.ones(2, 2))
    assert text in str(raised.value)


right = _cotangent.clipped
mapped = _cotangent.ClipCotangent.vmap
MUTANTS = {
    "the identity backward": (_cotangent, "clipped", lambda g, limit, lead: g, check_bounded_through_time),
    "a norm over all samples": (
        _cotangent,
        "clipped",
        lambda g, limit, lead: right(g, limit, lead and 0),
        lambda: check_engine("factored", "norm", "state", 1),
    ),
    "lanes with one norm": (
        _cotangent.ClipCotangent,
        "vmap",
        staticmethod(lambda info, dims, x, limit, lead: mapped(info, dims, x, limit, lead and lead - 1)
                     if lead else (_cotangent.ClipCotangent.apply(x.movedim(dims[0], 0), limit, lead), 0)),
        check_transforms,
    ),
    "normalised": (
        _cotangent,
        "clipped",
        lambda g, limit, lead: limit * g / g.norm(),
        lambda: check_edge("norm, within"),
    ),
    "NaN at 0": (_cotangent, "clipped", lambda g, limit, lead: g * (limit / g.norm()).clamp(max=1) if g.any()
                 else g * nan, lambda: check_edge("norm, 0")),
    "inf becomes NaN": (
        _cotangent, "clipped", lambda g, limit, lead: g * (limit / g.norm()).clamp(max=1),
        lambda: check_edge("norm, inf"),
    ),
    "a plain norm": (
        _cotangent, "clipped", lambda g, limit, lead: g * (limit / g.square().sum().sqrt()).clamp(max=1),
        lambda: check_edge("norm, squares that overflow"),
    ),
    "the factor a constant": (
        _cotangent, "clipped", lambda g, limit, lead: g * (right(g, limit, lead) / g).detach(),
        check_second_derivatives,
    ),
    "norms over several samples taken for one sample's": (
        _owners, "_part_norms", lambda owners: None, lambda: check_engine("factored", "norm", "state", 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, RuntimeError)):
        law()
