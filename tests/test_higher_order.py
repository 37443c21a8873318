"""Answers differentiated again: by autograd afterwards, and inside transforms of torch.func.

The oracle is one autograd call a sample with `create_graph=True`, and queries spelled out on the rows that it gives.
"""

from __future__ import annotations

import dataclasses
import gc
import warnings
import weakref

import pytest
import torch
from tiers import every
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._per_sample import _differentiable, _live
from gradfunc._transform._rows import _clip

F64 = torch.float64
SIZE = 4


def perceptron(p, x, t):
    return (F.linear(x, p["w"], p["b"]).tanh() @ p["v"] - t).square()


def natively(p, x, t):
    return (F.linear(x, p["w"], p["b"]).tanh() @ p["v"] - t).square()


def coupled(p, x, t):
    hidden = F.linear(x, p["w"], p["b"]).tanh()
    return ((hidden - hidden.mean(0)) @ p["v"] - t).square()


def branching(p, x, t):
    """Data-dependent control flow: what torch.func cannot run."""
    return perceptron(p, x, t) if x.sum() > 0 else 2 * perceptron(p, x, t)


def weighted(p, x, t):
    return gf.Weighted(perceptron(p, x, t) * 3.0, 3.0)


# name -> (loss, options)
CASES = {
    "factored": (perceptron, {"engine": "factored"}),
    "vmap": (perceptron, {"engine": "vmap"}),
    "loop": (perceptron, {"engine": "loop"}),
    "streamed": (perceptron, {"engine": "factored", "chunk_size": 3}),
    "natively": (natively, {"batched": True}),
    "natively in a loop": (natively, {"batched": True, "engine": "loop"}),
    "coupled": (coupled, {"batched": True}),
    "only the loop": (branching, {"engine": "loop"}),
    "weighted": (weighted, {}),
    "scaled loss": (perceptron, {"loss_scale": 8.0}),
}
every_case = pytest.mark.parametrize("case", CASES)


def given(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (3, 2), "b": (3,), "v": (3,)}
    params = {k: torch.randn(s, dtype=F64, generator=generator).requires_grad_() for k, s in shapes.items()}
    x, t = (torch.randn(SIZE, *s, dtype=F64, generator=generator) for s in ((2,), ()))
    return params, x.requires_grad_(), t


def load_forward_derivatives():
    """torch warns of itself, once in a process, where it first takes a forward derivative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.ones(()),), (torch.ones(()),))


def numerators(loss, batched, p, x, t):
    out = loss(p, x, t) if batched else [loss(p, x[i], t[i]) for i in range(len(x))]
    return [one.numerator if isinstance(one, gf.Weighted) else one for one in out]


def rows_of(loss, batched, p, x, t):
    """`{name: [B, *shape]}` with a graph."""
    each = [torch.autograd.grad(n, list(p.values()), create_graph=True) for n in numerators(loss, batched, p, x, t)]
    return {k: torch.stack([grads[i] for grads in each]) for i, k in enumerate(p)}


def flat(rows):
    return torch.cat([v.flatten(1) for v in rows.values()], 1)


def joined(tensors):
    return torch.cat([v.flatten() for v in tensors.values()])


class Sums:
    size = 2

    def apply(self, name, factor):
        """`[b, 2]`: sum and sum of the absolute index times the entry."""
        value = factor.dense().flatten(1)
        return torch.stack([value.sum(1), value @ torch.arange(value.shape[1], dtype=value.dtype)], 1)


C = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=F64)
V = {"w": torch.ones(3, 2, dtype=F64), "b": torch.arange(3, dtype=F64), "v": -torch.ones(3, dtype=F64)}
# query -> (ours, by hand from flat rows)
QUERIES = {
    "norms": (lambda g: g.norms(), lambda r: flat(r).norm(dim=1)),
    "norms of each": (
        lambda g: torch.stack(list(g.norms(per_parameter=True).values())),
        lambda r: torch.stack([v.flatten(1).norm(dim=1) for v in r.values()]),
    ),
    "gram": (lambda g: g.gram(), lambda r: flat(r) @ flat(r).T),
    "gram of each": (
        lambda g: torch.stack(list(g.gram(per_parameter=True).values())),
        lambda r: torch.stack([v.flatten(1) @ v.flatten(1).T for v in r.values()]),
    ),
    "dot": (lambda g: g.dot(V), lambda r: flat(r) @ joined(V)),
    "sum": (lambda g: joined(g.sum()), lambda r: flat(r).sum(0)),
    "mean": (lambda g: joined(g.mean()) * g.weights.sum(), lambda r: flat(r).sum(0)),
    "weighted_sum": (lambda g: joined(g.weighted_sum(C)), lambda r: C @ flat(r)),
    "materialize": (lambda g: flat(g.materialize()), flat),
    "project": (
        lambda g: g.project(Sums()),
        lambda r: torch.stack(
            [
                flat(r).sum(1),
                sum(v.flatten(1) @ torch.arange(v[0].numel(), dtype=F64) for v in r.values()),
            ],
            1,
        ),
    ),
}


def again(answer, inputs, seed=3):
    """The derivative of a random combination of an answer: the first, and that of its own squared length."""
    r = torch.randn(answer.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    first = torch.autograd.grad((answer * r).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(d.square().sum() for d in first), inputs, retain_graph=True, allow_unused=True)
    second = [torch.zeros_like(value) if d is None else d for d, value in zip(second, inputs, strict=True)]
    return [*first, *second]


def check_same(got, want, what=""):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-11 * max(1.0, float(b.detach().abs().max())), what


def check_queries(case="vmap", names=tuple(QUERIES)):
    """The derivative of every query, and that of the derivative, in parameters and batch."""
    loss, options = CASES[case]
    p, x, t = given()
    g = gf.per_sample_grads(loss, **options)(p, x, t)
    rows = rows_of(loss, options.get("batched", False), p, x, t)
    inputs = [*p.values(), x]
    for name in names:
        ours, by_hand = QUERIES[name]
        check_same([ours(g).detach()], [by_hand(rows).detach()], name)
        check_same(again(ours(g), inputs), again(by_hand(rows), inputs), name)


@every_case
def test_queries(case):
    check_queries(case)


@every_case
def test_losses(case):
    loss, options = CASES[case]
    p, x, t = given()
    g = gf.per_sample_grads(loss, **options)(p, x, t)
    want = torch.stack(numerators(loss, options.get("batched", False), p, x, t))
    inputs = [*p.values(), x]
    check_same(again(g.losses, inputs), again(want, inputs))
    check_same(again(g.mean_loss, inputs), again(want.sum() / g.weights.sum(), inputs))
    assert not g.weights.requires_grad


def clipped_by_hand(rows, bound):
    return flat(rows) * (bound / flat(rows).norm(dim=1)).clamp_max(1)[:, None]


def check_derived():
    """Values made of values, in any order: the derivative is that of what was made."""
    p, x, t = given()
    inputs = [*p.values(), x]
    rows = flat(rows_of(perceptron, False, p, x, t))
    bound = 1.1 * float(rows.norm(dim=1).median().detach())  # at a norm itself the factor has a kink
    index, c = torch.tensor([3, 0, 0]), C.abs() + 0.25
    for chunk_size in (None, 3):
        g = gf.per_sample_grads(perceptron, chunk_size=chunk_size)(p, x, t)
        clip, skip = (gf.clip_per_sample(bound, nonfinite=policy) for policy in ("raise", "skip"))
        clipped = clipped_by_hand({"": rows}, bound)
        made = {
            "select": (g.select(index), rows[index]),
            "split": (g.split(2)[1], rows[2:]),
            "scaled": (g.scaled(C), rows * C[:, None]),
            "weighted": (g.weighted(c), rows * c[:, None]),
            "scaled, selected, scaled": (
                g.scaled(c).select(index).scaled(C[:3]),
                (rows * c[:, None])[index] * C[:3, None],
            ),
            "concatenate": (
                gf.concatenate([g.select(index), g.scaled(C)]),
                torch.cat([rows[index], rows * C[:, None]]),
            ),
            "clipped": (clip.update(g, ())[0], clipped),
            "clipped, skipping": (skip.update(g, ())[0], clipped),
            "clipped by hand": (g.scaled((bound / g.norms()).clamp_max(1)), clipped),
            "clipped, selected": (clip.update(g, ())[0].select(index), clipped[index]),
        }
        for name, (value, want) in made.items():
            check_same(again(flat(value.materialize()), inputs), again(want, inputs), name)
            if bool(want.any(1).all()):  # where a row is 0, plain torch has NaN
                check_same(again(value.norms(), inputs), again(want.norm(dim=1), inputs), name)
            check_same(again(joined(value.sum()), inputs), again(want.sum(0), inputs), name)


def test_derived_values():
    check_derived()


# stages made of norms n and weights u -> their factors
LONG = 1.3
FACTORS = {
    "clip": (gf.clip_per_sample(LONG), lambda n, u: (LONG / n).clamp_max(1)),
    "clip, skipping": (gf.clip_per_sample(LONG, nonfinite="skip"), lambda n, u: (LONG / n).clamp_max(1)),
    "clip, eps": (gf.clip_per_sample(LONG, eps=0.4), lambda n, u: (LONG / (n + 0.4)).clamp_max(1)),
    "clip per unit": (
        gf.clip_per_sample(LONG, per_unit_weight=True),
        lambda n, u: (LONG * u / n).clamp_max(1),
    ),
    "clip per unit, eps": (
        gf.clip_per_sample(LONG, per_unit_weight=True, eps=0.4),
        lambda n, u: (LONG * u / (n + 0.4 * u)).clamp_max(1),
    ),
    "normalise": (gf.normalize_per_sample(LONG, stability=0.3), lambda n, u: LONG / (n + 0.3)),
    "normalise, plain": (gf.normalize_per_sample(LONG, stability=0.0), lambda n, u: LONG / n),
    "normalise per unit": (
        gf.normalize_per_sample(LONG, stability=0.3, per_unit_weight=True),
        lambda n, u: LONG * u / (n + 0.3 * u),
    ),
    "adaptive": (gf.adaptive_clip_per_sample(LONG), lambda n, u: (LONG / n).clamp_max(1)),
    "adaptive, to the unit": (
        gf.adaptive_clip_per_sample(LONG, unit=True),
        lambda n, u: (LONG / n).clamp_max(1) / LONG,
    ),
    "weights": (gf.normalize_weights(), lambda n, u: 1 / u),
}


def check_factors(name):
    """The derivative of rows times a factor of their norm and weight: in parameters, batch and weights."""
    stage, factor = FACTORS[name]
    f, (p, x, t) = gf.per_sample_grads(weighted), given()
    c = torch.tensor([0.2, 1.5, 0.5, 2.5], dtype=F64, requires_grad=True)
    state, r = stage.init(p), torch.randn(SIZE, 12, dtype=F64, generator=torch.Generator().manual_seed(5))

    def mine(p, x, c):
        return flat(stage.update(f(p, x, t).weighted(c), state)[0].materialize())

    def by_hand(p, x, c):
        rows = flat(rows_of(weighted, False, p, x, t)) * c[:, None]
        factors = factor(rows.norm(dim=1), 3 * c)
        assert len(factors.unique()) > 2  # clipped or not, more than one of each
        return rows * factors[:, None]

    inputs = [*p.values(), x, c]
    want = by_hand(p, x, c)
    check_same([mine(p, x, c).detach()], [want.detach()])
    check_same(again(mine(p, x, c), inputs), again(want, inputs), name)
    slope = torch.autograd.grad((want * r).sum(), [*p.values(), x, c])
    got, *others = torch.func.grad(lambda p, x, c: (mine(p, x, c) * r).sum(), argnums=(0, 1, 2))(
        detached(p), x.detach(), c.detach()
    )
    check_same([*got.values(), *others], slope, f"{name}, inside a transform")


@pytest.mark.parametrize("name", FACTORS)
def test_factors_of_norms_and_weights(name):
    check_factors(name)


def test_losses_of_derived_values():
    p, x, t = given()
    inputs = [*p.values(), x]
    g = gf.per_sample_grads(perceptron)(p, x, t)
    losses = torch.stack(numerators(perceptron, False, p, x, t))
    check_same(again(g.scaled(C).losses, inputs), again(losses * C, inputs))
    check_same(again(g.weighted(C.abs()).mean_loss, inputs), again((losses * C.abs()).sum() / C.abs().sum(), inputs))


def test_gram_of_two_values():
    p, x, t = given()
    f = gf.per_sample_grads(perceptron)
    rows = flat(rows_of(perceptron, False, p, x, t))
    g, fixed = f(p, x, t), f({k: v.detach() for k, v in p.items()}, x.detach() + 1, t)
    inputs = [*p.values(), x]
    want = flat(fixed.materialize())
    check_same(again(g.gram(fixed), inputs), again(rows @ want.T, inputs))
    check_same(again(fixed.gram(g), inputs), again(want @ rows.T, inputs))
    check_same(again(g.gram(g.scaled(C)), inputs), again(rows @ (rows * C[:, None]).T, inputs))


def test_coefficients_and_directions_have_derivatives_too():
    """Data weights that are learnt: also where they are 0, as when one asks which sample would help."""
    p, x, t = given()
    fixed = {k: v.detach() for k, v in p.items()}
    rows = flat(rows_of(perceptron, False, p, x, t)).detach()
    for g in (gf.per_sample_grads(perceptron, engine=e)(fixed, x.detach(), t) for e in ("factored", "loop")):
        c = torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=F64, requires_grad=True)
        r = torch.arange(1.0, 13.0, dtype=F64)
        for sums in (g.weighted_sum(c), g.scaled(c).sum(), g.scaled(torch.ones(4)).scaled(c).sum()):
            check_same(torch.autograd.grad(joined(sums) @ r, c), [rows @ r])
        mean = torch.autograd.grad(joined(g.weighted(c).mean()) @ r, c)
        check_same(mean, torch.autograd.grad(((c @ rows) / c.sum()) @ r, c))
        v = {k: torch.ones_like(value).requires_grad_() for k, value in fixed.items()}
        (slope,) = torch.autograd.grad(g.dot(v)[1], v["b"])
        check_same([slope], [g.materialize()["b"][1]])


def test_ragged_and_static_arguments():
    p, x, _ = given()
    shift = torch.randn(2, dtype=F64, requires_grad=True)

    def loss(p, x, shift):
        return F.linear(x + shift, p["w"], p["b"]).tanh().sum(0).square() @ p["v"]

    samples = [x[:1], x[1:4], x[2:3]]
    g = gf.per_sample_grads(loss)(p, gf.ragged(samples), gf.static(shift))
    each = [torch.autograd.grad(loss(p, s, shift), list(p.values()), create_graph=True) for s in samples]
    want = torch.stack([torch.cat([d.flatten() for d in grads]) for grads in each]).norm(dim=1)
    check_same(again(g.norms(), [*p.values(), x, shift]), again(want, [*p.values(), x, shift]))


def test_some_parameters_only():
    p, x, t = given()
    g = gf.per_sample_grads(perceptron, wrt="w|b")(p, x, t)
    rows = rows_of(perceptron, False, p, x, t)
    inputs = [*p.values(), x]
    check_same(again(g.norms(), inputs), again(flat({k: rows[k] for k in "wb"}).norm(dim=1), inputs))


def check_inputs_made_of_inputs():
    """A batch, a coefficient and a direction computed from the parameters: no share is counted twice."""
    p, x, t = given()
    inputs = [*p.values(), x]
    made = x * p["v"][:2].sin()
    c, v = p["b"].sum().cos() * torch.arange(4.0, dtype=F64), {**V, "w": p["w"] * 2}
    for engine in ("vmap", "loop"):
        g = gf.per_sample_grads(perceptron, engine=engine)(p, made, t)
        rows = flat(func_rows(p, made, t))
        check_same(again(g.norms(), inputs), again(rows.norm(dim=1), inputs))
        check_same(again(joined(g.scaled(c).sum()), inputs), again(c @ rows, inputs))
        check_same(again(g.dot(v), inputs), again(rows @ joined(v), inputs))


def test_inputs_made_of_inputs():
    check_inputs_made_of_inputs()


def test_a_parameter_that_the_loss_closes_over_is_not_differentiated_as_a_parameter():
    p, x, t = given()

    def loss(q, x, t):
        return perceptron(q, x, t) * p["b"].square().sum()

    for engine in ("vmap", "loop"):
        g = gf.per_sample_grads(loss, engine=engine)(p, x, t)
        rows = rows_of(perceptron, False, p, x, t)
        want = flat(rows) * p["b"].square().sum().detach()
        check_same([flat(g.materialize()).detach()], [want.detach()])
        r = torch.autograd.grad(g.norms().sum(), p["w"])
        check_same(r, torch.autograd.grad(want.norm(dim=1).sum(), p["w"]))


# --- draws -------------------------------------------------------------------------------------------


def dropped(p, x, t):
    hidden = F.dropout(F.linear(x, p["w"], p["b"]).tanh(), 0.5)
    return (hidden @ p["v"] - t).square(), hidden


def check_draws(engine="auto", batched=False):
    """A backward pass draws what the answer was computed with."""
    p, x, t = given()
    f = gf.per_sample_grads(dropped, has_aux=True, engine=engine, batched=batched)
    f = f.at(7) if batched else f.at(7, index=[5, 9, 2, 11])
    g = f(p, x, t)
    mask = (g.aux != 0).double() * 2
    assert 0 < mask.sum() < mask.numel() * 2

    def replayed(p, x, t, mask):
        return ((F.linear(x, p["w"], p["b"]).tanh() * mask) @ p["v"] - t).square()

    each = [
        torch.autograd.grad(replayed(p, x[i], t[i], mask[i]), list(p.values()), create_graph=True) for i in range(4)
    ]
    want = torch.stack([torch.cat([d.flatten() for d in grads]) for grads in each]).norm(dim=1)
    check_same([g.norms().detach()], [want.detach()])
    check_same(again(g.norms(), [*p.values(), x]), again(want, [*p.values(), x]))
    check_same(again(g.aux, [p["w"]]), again(F.linear(x, p["w"], p["b"]).tanh() * mask, [p["w"]]))


@pytest.mark.parametrize(("engine", "batched"), [("auto", False), ("vmap", False), ("loop", False), ("auto", True)])
def test_dropout_is_drawn_again(engine, batched):
    check_draws(engine, batched)


# --- curvature and penalties -------------------------------------------------------------------------


@pytest.mark.parametrize("query", every(5, ["norms", "sum", "gram", "dot", "project"]))
def test_gradcheck(query):
    p, x, t = given()
    names = list(p)

    def ask(*tensors):
        g = gf.per_sample_grads(perceptron, verify=False)(dict(zip(names, tensors[:-1], strict=True)), tensors[-1], t)
        return QUERIES[query][0](g)

    assert torch.autograd.gradcheck(ask, (*p.values(), x))
    assert torch.autograd.gradgradcheck(ask, (*p.values(), x))


def test_hessian_vector_products_of_each_sample():
    p, x, t = given()
    fixed = {k: v.detach() for k, v in p.items()}
    f = gf.per_sample_grads(perceptron)

    def mean_gradient(p):
        return f(p, x.detach(), t).mean()

    load_forward_derivatives()
    _, got = torch.func.jvp(mean_gradient, (fixed,), (V,))
    want = torch.func.jvp(
        torch.func.grad(lambda p: torch.func.vmap(perceptron, (None, 0, 0))(p, x.detach(), t).mean()), (fixed,), (V,)
    )[1]
    check_same(got.values(), want.values())
    g, grad = f(p, x, t), torch.func.grad(perceptron)
    for i in range(SIZE):
        rows = torch.autograd.grad(g.dot(V)[i], list(p.values()), retain_graph=True)
        check_same(rows, torch.func.jvp(lambda q, i=i: grad(q, x[i].detach(), t[i]), (fixed,), (V,))[1].values())


def test_the_diagonal_of_each_hessian():
    p, x, t = given()
    fixed, x = {k: v.detach() for k, v in p.items()}, x.detach()
    f = gf.per_sample_grads(perceptron)
    got = torch.func.jacrev(lambda w: f({**fixed, "w": w}, x, t).materialize()["w"])(fixed["w"])
    each = torch.func.hessian(lambda w, x, t: perceptron({**fixed, "w": w}, x, t))
    for i in range(SIZE):
        want = each(fixed["w"], x[i], t[i])
        check_same([torch.einsum("ijij->ij", got[i])], [torch.einsum("ijij->ij", want)])
    load_forward_derivatives()
    whole = torch.func.hessian(lambda b: f({**fixed, "b": b}, x, t).losses.sum())(fixed["b"])
    b = torch.func.hessian(lambda b: torch.func.vmap(perceptron, (None, 0, 0))({**fixed, "b": b}, x, t).sum())
    check_same([whole], [b(fixed["b"])])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
def test_attention(engine, batched):
    """Whose fused kernels have no second derivative."""
    layer = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(SIZE, 3, 4, dtype=F64)
    p = {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}

    def loss(p, x):
        out = torch.func.functional_call(layer, p, (x if batched else x[None],) * 3, {"need_weights": False})[0]
        return out.square().sum((1, 2)) if batched else out.square().sum()

    def by_hand(p, x):
        q, k, v = F.linear(x, p["in_proj_weight"], p["in_proj_bias"]).unflatten(-1, (3, 2, 2)).permute(1, 2, 0, 3)
        mixed = ((q @ k.mT / 2**0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)
        return F.linear(mixed, p["out_proj.weight"], p["out_proj.bias"]).square().sum()

    g = gf.per_sample_grads(loss, engine=engine, batched=batched)(p, x)
    rows = rows_of(lambda p, x, t: by_hand(p, x), False, p, x, x)
    ours, true = (
        torch.autograd.grad(norms.sin().sum(), list(p.values())) for norms in (g.norms(), flat(rows).norm(dim=1))
    )
    check_same(ours, true)


def test_a_penalty_trains():
    """A step against the spread of norms makes it smaller."""
    p, x, t = given()
    f = gf.per_sample_grads(perceptron)
    spread = f(p, x, t).norms().var()
    spread.backward()
    with torch.no_grad():
        moved = {k: v - 1e-3 * v.grad for k, v in p.items()}
    assert f(moved, x, t).norms().var() < spread


def check_zero_rows():
    """Where a row is 0 the derivative of its norm is 0, of its squared norm too; other rows are as they were."""
    p, x, t = given()
    for engine in ("auto", "loop"):
        g = gf.per_sample_grads(lambda p, x, t: perceptron(p, x, t) * (t != 7.0), engine=engine)
        for chunk in (t, torch.cat([t[:3], torch.tensor([7.0], dtype=F64)])):
            value = g(p, x, chunk)
            rows = flat(rows_of(perceptron, False, p, x, t))[: 4 if chunk is t else 3]
            check_same(again(value.norms()[: len(rows)], [*p.values()]), again(rows.norm(dim=1), [*p.values()]))
        zero = torch.autograd.grad(value.norms()[3], [*p.values(), x], create_graph=True)
        assert not any(d.any() for d in zero)


def test_norms_of_zero_rows():
    check_zero_rows()


def check_norms_where_one_parameter_has_no_gradient():
    """The second derivative of a norm is that of the whole row, also where one parameter's part of it is 0."""
    p = {k: torch.tensor([v], dtype=F64, requires_grad=True) for k, v in {"a": 1.0, "b": 0.0}.items()}
    g = gf.per_sample_grads(lambda p, x: (x * (3 * p["a"] + 2 * p["b"].square())).sum())(p, torch.ones(2, dtype=F64))
    (first,) = torch.autograd.grad(g.norms().sum(), p["b"], create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), p["b"])
    assert first == 0
    assert abs(float(second) - 2 * 16 / 3) < 1e-12  # of sqrt(9 + 16 b^2), twice


def test_norms_where_one_parameter_has_no_gradient():
    check_norms_where_one_parameter_has_no_gradient()


def test_norms_are_safe_from_overflow():
    p = {"w": torch.tensor([1e-25], requires_grad=True)}
    g = gf.per_sample_grads(lambda p, x: (x * p["w"].square()).sum())(p, torch.tensor([1e25, 1.0]))
    assert torch.autograd.grad(g.norms()[0], p["w"])[0] == torch.tensor([2e25])


# --- inside transforms -------------------------------------------------------------------------------


def detached(params):
    return {k: v.detach() for k, v in params.items()}


def func_rows(p, x, t):
    return torch.func.vmap(torch.func.grad(perceptron), (None, 0, 0))(p, x, t)


def check_inside():
    """grad, jvp, vmap, jacrev around the call."""
    p, x, t = given()
    p, x = detached(p), x.detach()
    f = gf.per_sample_grads(perceptron)
    for name, (ours, by_hand) in QUERIES.items():

        def mine(p, x, ours=ours):
            return ours(f(p, x, t))

        def oracle(p, x, by_hand=by_hand):
            return by_hand(func_rows(p, x, t))

        for argnum in (0, 1):
            got, want = (torch.func.jacrev(fn, argnums=argnum)(p, x) for fn in (mine, oracle))
            check_same(*[list(j.values()) if argnum == 0 else [j] for j in (got, want)], name)
        if name != "mean":
            scales = torch.tensor([1.0, 2.0], dtype=F64)
            check_same(*[[torch.vmap(lambda s, fn=fn: fn(p, x * s))(scales)] for fn in (mine, oracle)], name)
    got, want = (
        torch.func.grad(lambda p, q=q: q(p).square().sum())(p)
        for q in (lambda p: f(p, x, t).norms(), lambda p: flat(func_rows(p, x, t)).norm(dim=1))
    )
    check_same(got.values(), want.values())


def test_inside_transforms():
    check_inside()


def test_derived_values_inside_a_transform():
    p, x, t = given()
    p, x = detached(p), x.detach()
    f, index = gf.per_sample_grads(perceptron), torch.tensor([3, 0, 0])
    bound = 1.1 * float(f(p, x, t).norms().median())

    def mine(p):
        g = f(p, x, t)
        clipped = gf.clip_per_sample(bound).update(g, ())[0]
        return joined(gf.concatenate([clipped, g.scaled(C).select(index)]).weighted_sum(torch.arange(7.0, dtype=F64)))

    def oracle(p):
        rows = func_rows(p, x, t)
        parts = torch.cat([clipped_by_hand(rows, bound), (flat(rows) * C[:, None])[index]])
        return torch.arange(7.0, dtype=F64) @ parts

    load_forward_derivatives()
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        check_same(*[jacobian(fn)(p).values() for fn in (mine, oracle)])


@pytest.mark.parametrize("loss", [natively, coupled])
def test_natively_batched_inside_a_transform(loss):
    p, x, t = given()
    rows = flat(rows_of(loss, True, p, x, t))
    want = torch.autograd.grad(rows.norm(dim=1).square().sum(), list(p.values()))
    f = gf.per_sample_grads(loss, batched=True)
    got = torch.func.grad(lambda p: f(p, x.detach(), t).norms().square().sum())(detached(p))
    check_same(got.values(), want)
    check_same([f(detached(p), x.detach(), t).norms()], [rows.norm(dim=1).detach()])


def test_an_attached_value_inside_a_transform_keeps_both_derivatives():
    p, x, t = given()
    g = gf.per_sample_grads(perceptron)(p, x, t)
    directions = torch.randn(3, 3, dtype=F64)
    slopes = torch.vmap(lambda v: g.dot({**V, "v": v}))(directions)
    rows = rows_of(perceptron, False, p, x, t)
    want = torch.stack([flat(rows) @ joined({**V, "v": v}) for v in directions])
    check_same(again(slopes, list(p.values())), again(want, list(p.values())))


def test_draws_inside_a_transform():
    p, x, t = given()
    f = gf.per_sample_grads(dropped, has_aux=True).at(3)
    g = f(p, x, t)
    want = torch.autograd.grad(g.norms().sum(), list(p.values()))
    got = torch.func.grad(lambda q: f(q, x.detach(), t).norms().sum())(detached(p))
    check_same(got.values(), want)


@pytest.mark.parametrize("engine", ["factored", "loop"])
def test_other_engines_say_that_they_cannot(engine):
    p, x, t = given()
    f = gf.per_sample_grads(perceptron, engine=engine)
    with pytest.raises(
        RuntimeError, match=r"gf\.per_sample_grads.*engine='.*' inside .*torch\.func\.grad.*engine='vmap'"
    ):
        torch.func.grad(lambda q: f(q, x.detach(), t).norms().sum())(detached(p))


def test_what_cannot_be_inside_says_so():
    p, x, t = given()
    p, x = detached(p), x.detach()
    f = gf.per_sample_grads(branching)
    with pytest.raises(RuntimeError, match=r"gf\.per_sample_grads.*torch\.func\.grad\(\.\.\.\).*outside"):
        torch.func.grad(lambda q: f(q, x, t).norms().sum())(p)
    f = gf.per_sample_grads(perceptron)
    with pytest.raises(RuntimeError, match=r"g\.select.*torch\.func\.vmap\(\.\.\.\).*outside"):
        torch.vmap(lambda s: (g := f(p, x * s, t)).select(g.norms() > s).sum())(torch.ones(2, dtype=F64))
    with pytest.raises(RuntimeError, match=r"g\.unused.*transform"):
        torch.func.grad(lambda q: f(q, x, t).unused)(p)
    with pytest.raises(RuntimeError, match=r"gf\.clip_per_sample.*torch\.func\.vmap"):
        torch.vmap(lambda s: gf.clip_per_sample(1.0).update(f(p, x * s, t), ())[0].sum())(torch.ones(2, dtype=F64))


def test_a_mean_of_weights_that_a_vmap_maps_over():
    p, x, t = given()
    p, x = detached(p), x.detach()
    f = gf.per_sample_grads(lambda p, x, w: gf.Weighted((p["w"] * x).sum() * w, w))

    def mean(s, policy):
        return f(p, x, s * t.abs()).mean(on_zero_weight=policy)["w"]

    scales = torch.tensor([0.0, 2.0], dtype=F64)
    with pytest.raises(RuntimeError, match=r"g\.mean\(\).*on_zero_weight='zero'"):
        torch.vmap(lambda s: mean(s, "raise"))(scales)
    got = torch.vmap(lambda s: mean(s, "zero"))(scales)
    check_same(list(got), [torch.zeros(3, 2, dtype=F64), mean(torch.ones((), dtype=F64), "raise")])


# --- what it must not cost ---------------------------------------------------------------------------


def test_nothing_is_held_where_nothing_requires_grad():
    p, x, t = given()
    fixed = detached(p)
    f = gf.per_sample_grads(perceptron)
    with torch.no_grad():
        quiet = f(p, x, t)
    for g in (f(fixed, x.detach(), t), quiet, quiet.select([0]), gf.concatenate([quiet, quiet])):
        assert g._origin is None
        assert not any(ours(g).requires_grad for ours, _ in QUERIES.values() if g.batch_size == 4)
        assert not g.losses.requires_grad


def test_the_forward_pass_runs_once_until_a_backward_pass_asks():
    calls = []

    def loss(p, x, t):
        calls.append(1)
        return perceptron(p, x, t)

    p, x, t = given()
    f = gf.per_sample_grads(loss, verify=False)
    f(detached(p), x.detach(), t).norms()
    plain = len(calls)
    g = f(p, x, t)
    norms, kept = g.norms(), weakref.ref(g)
    assert len(calls) == 2 * plain
    del g
    gc.collect()
    assert kept() is None  # an answer can be differentiated without the rows that gave it
    norms.sum().backward()
    assert len(calls) == 2 * plain + 1


def test_a_step_of_training_holds_no_graph():
    p, x, t = given()
    run = gf.make_step(perceptron, gf.clip_per_sample(1.0) >> gf.mean())
    grads, _, _ = run(p, run.step.init(p), x, t)
    assert not any(v.requires_grad for v in grads.values())


def check_changes_are_noticed():
    """Never the derivative at other values."""
    for which in ("parameters", "batch", "coefficients"):
        p, x, t = given()
        c = torch.ones(4, dtype=F64)
        norms = gf.per_sample_grads(perceptron)(p, x, t).scaled(c).norms()
        with torch.no_grad():
            {"parameters": p["w"], "batch": t, "coefficients": c}[which].add_(1)
        with pytest.raises(RuntimeError, match=r"g\.norms.*changed in place"):
            norms.sum().backward()


def test_changes_in_place_are_noticed():
    check_changes_are_noticed()


def test_a_module_by_its_parameters():
    """Parameters in the hands of an optimizer: `.grad` is written by backward alone."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    model, x = gf.stateless(module), torch.randn(4, 2, dtype=F64)
    g = gf.per_sample_grads(lambda p, x: model.sample(p, x).square().sum())(dict(module.named_parameters()), x)
    g.norms()
    assert all(parameter.grad is None for parameter in module.parameters())
    g.norms().sum().backward()
    params = dict(module.named_parameters())
    rows = torch.func.vmap(torch.func.grad(lambda p, x: model.sample(p, x).square().sum()), (None, 0))(params, x)
    want = torch.autograd.grad(flat(rows).norm(dim=1).sum(), list(params.values()))
    check_same([parameter.grad for parameter in params.values()], want)


# --- planted mistakes --------------------------------------------------------------------------------

repeated, norms = _differentiable._repeated, _live.norms


def scales_forgotten(*given):
    run = repeated(*given)

    def forgetful(want):
        made = run(want)
        if not isinstance(made, gf.PerSampleGrads):
            return made
        return dataclasses.replace(made, _scales=dataclasses.replace(made._scales, steps=()))

    return forgetful


def other_draws(monkeypatch):
    live = gf._per_sample._evaluation.live

    def shifted(call, **options):
        return live(
            dataclasses.replace(call, draws=dataclasses.replace(call.draws, step=call.draws.step + 1)), **options
        )

    monkeypatch.setattr(gf._per_sample._evaluation, "live", shifted)


def detached_rows(rows):
    return norms({k: v.detach() + 0 * v for k, v in rows.items()})


def norms_of_norms(rows):
    return norms({"": torch.stack([norms({k: v}) for k, v in rows.items()], 1)})


def plain_root(rows):
    return flat(rows).square().sum(1).sqrt()


MUTANTS = {
    "derived scales forgotten": (lambda m: m.setattr(_differentiable, "_repeated", scales_forgotten), check_derived),
    "a clip's factor is constant": (
        lambda m: m.setattr(_clip, "quotient", lambda *given, **how: quotient(*given, **how).detach()),
        check_derived,
    ),
    "other draws": (other_draws, check_draws),
    "rows detached": (lambda m: m.setattr(_live, "norms", detached_rows), check_queries),
    "rows detached inside": (lambda m: m.setattr(_live, "norms", detached_rows), check_inside),
    "norms of norms": (
        lambda m: m.setattr(_live, "norms", norms_of_norms),
        check_norms_where_one_parameter_has_no_gradient,
    ),
    "a root at 0": (lambda m: m.setattr(_live, "norms", plain_root), check_zero_rows),
    "inputs without aliases": (
        lambda m: m.setattr(_differentiable, "map_all", lambda fn, nest: nest),
        check_inputs_made_of_inputs,
    ),
    "versions not looked at": (
        lambda m: m.setattr(_differentiable.Origin, "check_unchanged", lambda self, call: None),
        check_changes_are_noticed,
    ),
    "coefficients not watched": (
        lambda m: m.setattr(_differentiable.Origin, "and_of", lambda self, read: self),
        check_changes_are_noticed,
    ),
}
quotient = _clip.quotient


@pytest.mark.parametrize("name", every(4, MUTANTS))
def test_a_mistake_is_noticed(name, monkeypatch):
    plant, check = MUTANTS[name]
    check()
    plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        check()
