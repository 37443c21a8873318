"""Values made of values, options of the call, and what a call must leave alone."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import pytest
import torch
from oracle import Truth, check_queries, close, close_rows, flat, results, same_bits, storages, truth, truth_batched
from tiers import every
from torch import nn
from torch.nn import functional as F

import gradfunc as gf

from .cases import CASES, Draw, Problem, problem
from .checks import answered, check, expected, function
from .conftest import ENGINE, FACTORED, factored_only

F64 = torch.float64
SIZE = 5
QUICK = ["mlp", "tied embedding and head, modules", "position embedding", "experts chosen by the data"]
SLOW = [
    "LoRA merged",
    "in-projection in chunks",
    "small convolutional network",
    "recurrence by hand",
    "one parameter in no loss",
    "temperature",
]
EVERY = [
    pytest.param(name, mode, marks=[] if name in QUICK else pytest.mark.slow)
    for name in [*QUICK, *SLOW]
    for mode in CASES[name].modes
]


class Asked(NamedTuple):
    """A case, its answer, and the truth."""

    name: str
    mode: str
    problem: Problem
    args: tuple[Any, ...]
    g: gf.PerSampleGrads
    want: Truth


def ask(name, mode, seed=0, **options) -> Asked:
    p = problem(name, SIZE, 3)
    args = p.args(seed)
    g = function(name, p, mode, **options)(p.params, *args)
    return Asked(name, mode, p, args, g, expected(p, mode, p.params, args, SIZE))


def chosen(want: Truth, index) -> Truth:
    return Truth({k: v[index] for k, v in want.rows.items()}, want.losses[index], want.weights[index])


def times(want: Truth, c, weights=None) -> Truth:
    rows = {k: v * c.reshape(-1, *[1] * (v.dim() - 1)) for k, v in want.rows.items()}
    return Truth(rows, want.losses * c, want.weights if weights is None else want.weights * weights)


def joined(*parts: Truth) -> Truth:
    rows = {k: torch.cat([part.rows[k] for part in parts]) for k in parts[0].rows}
    return Truth(rows, torch.cat([p.losses for p in parts]), torch.cat([p.weights for p in parts]))


every_case = pytest.mark.parametrize(("name", "mode"), EVERY)


# --- values made of values ---------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("index", [[3], [4, 0, 0, -1], [], slice(1, 4), slice(None, None, 2), "mask"], ids=str)
def test_a_selection(name, mode, index):
    a = ask(name, mode)
    index = torch.tensor([True, False, True, True, False]) if index == "mask" else index
    at = torch.tensor(index, dtype=torch.long) if isinstance(index, list) else index
    check(name, a.g.select(index), chosen(a.want, at))


@every_case
def test_splits_and_their_join(name, mode):
    a = ask(name, mode)
    parts = a.g.split(2)
    for part, start in zip(parts, (0, 2, 4), strict=True):
        check(name, part, chosen(a.want, slice(start, start + 2)))
    check(name, gf.concatenate(parts), a.want)
    check(name, gf.concatenate([parts[2], parts[0]]), chosen(a.want, torch.tensor([4, 0, 1])))


@every_case
def test_scaled_and_weighted(name, mode):
    a = ask(name, mode)
    c = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0], dtype=F64)
    check(name, a.g.scaled(c), times(a.want, c))
    check(name, a.g.scaled(c).scaled(c + 1), times(a.want, c * (c + 1)))
    check(name, a.g.weighted(c.abs()), times(a.want, c.abs(), c.abs()))


@every_case
def test_all_of_them_in_a_row(name, mode):
    a, b = ask(name, mode), ask(name, mode, seed=1)
    c = torch.tensor([1.0, 0.25, -2.0, 0.5, 3.0], dtype=F64)
    index = torch.tensor([4, 1, 1])
    left = a.g.scaled(c).select(index).weighted(torch.tensor([2.0, 0.0, 1.0], dtype=F64))
    want = times(chosen(times(a.want, c), index), w := torch.tensor([2.0, 0.0, 1.0], dtype=F64), w)
    check(name, left, want)
    whole = gf.concatenate([left, b.g, *b.g.split(4)])
    check(name, whole, joined(want, b.want, b.want))
    check(name, whole.select(slice(2, 7)), chosen(joined(want, b.want), slice(2, 7)))


@every_case
def test_clipped_and_summed(name, mode):
    a = ask(name, mode)
    norms = flat(a.want.rows).norm(dim=1)
    bound = norms.median()
    g = a.g.scaled((bound / a.g.norms()).clamp_max(1))
    assert bool((g.norms() <= bound * (1 + 1e-12)).all())
    check(name, g, times(a.want, (bound / norms).clamp_max(1)))


@every_case
def test_gram_between_two_batches(name, mode):
    a, b = ask(name, mode), ask(name, mode, seed=1)
    left, right = flat(a.want.rows), flat(b.want.rows)
    scale = left.norm(dim=1)[:, None] * right.norm(dim=1)
    close(a.g.gram(b.g), left @ right.T, scale, "gram")
    close(a.g.select([1, 1]).gram(b.g.scaled(torch.arange(5.0))), (left @ right.T)[[1, 1]] * torch.arange(5.0),
          (scale * torch.arange(5.0))[[1, 1]], "gram of parts")  # fmt: skip


@every_case
def test_accumulated(name, mode):
    a, b = ask(name, mode), ask(name, mode, seed=1)
    acc = gf.Accumulator.init(a.problem.params).add(a.g).add(b.g)
    rows = joined(a.want, b.want).rows
    scale = flat(rows).norm(dim=1).sum()
    for key, value in acc.sum().items():
        close(value, rows[key].sum(0), scale, key)


def test_a_zero_coefficient_leaves_a_row_out():
    """0 * NaN is NaN in both halves of a factor: a row that is not wanted is left out of either."""
    p = problem("mlp", SIZE, 3)
    (x,) = p.args(0)
    x[2] = torch.nan
    c = torch.tensor([1.0, 2.0, 0.0, -1.0, 0.5], dtype=F64)
    # Natively, plain autograd multiplies the zero cotangent of another sample by that NaN: an engine that knows whose
    # rows they are does not.
    want = expected(p, "vmap", p.params, (x,), SIZE)
    kept = torch.tensor([0, 1, 3, 4])
    total = {k: torch.tensordot(c[kept], v[kept], 1) for k, v in want.rows.items()}
    scale = (c[kept].abs() * flat(want.rows)[kept].norm(dim=1)).sum()
    for mode in ["vmap", "native"] if FACTORED else ["vmap"]:
        g = function("mlp", p, mode, verify=False)(p.params, x)
        for sums in (g.weighted_sum(c), g.scaled(c).sum(), g.select(kept).weighted_sum(c[kept])):
            for key, value in sums.items():
                close(value, total[key], scale, key)
        norms = g.norms()
        assert norms[2].isnan()
        assert norms[kept].isfinite().all()


# --- options of the call -----------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("chunk_size", [1, 2, 7])
def test_chunks(name, mode, chunk_size):
    a = ask(name, mode, chunk_size=chunk_size)
    check(name, a.g, a.want)
    check(name, a.g.select([3, 1]), chosen(a.want, torch.tensor([3, 1])))


@every_case
@pytest.mark.parametrize("scale", [2.0**20, 3.0])
def test_a_loss_scale_is_taken_out_again(name, mode, scale):
    a = ask(name, mode, loss_scale=scale)
    check(name, a.g, a.want)


@every_case
def test_some_parameters_only(name, mode):
    p = problem(name, SIZE, 3)
    args = p.args(0)
    want = expected(p, mode, p.params, args, SIZE)
    for key in p.params:
        g = function(name, p, mode, wrt=[key])(p.params, *args)
        check(name, g, want._replace(rows={key: want.rows[key]}))


@pytest.mark.parametrize("mode", ["vmap", "native"])
def test_unused_parameters_are_named(mode):
    a = ask("one parameter in no loss", mode)
    assert a.g.unused == ("v",)
    assert not a.g.materialize()["v"].any()
    assert ask("mlp", mode).g.unused == ()


@pytest.mark.parametrize("batched", [False, True])
def test_weights_and_auxiliary_values(batched):
    params, x, w = {"w": torch.randn(3, 4, dtype=F64)}, torch.randn(5, 4, dtype=F64), torch.rand(5, dtype=F64)
    w[2] = 0

    def loss(p, x, w):
        out = F.linear(x, p["w"]).sin()
        return gf.Weighted(out.sum(-1) * w, w), {"out": out, "both": (x, w)}

    def plain(p, x, w):
        return loss(p, x, w)[0]

    g = gf.per_sample_grads(loss, engine=ENGINE, batched=batched, has_aux=True)(params, x, w)
    check_queries(g, truth_batched(plain, params, (x, w)))
    close(g.aux["out"], F.linear(x, params["w"]).sin(), 1.0, "aux")
    assert same_bits(list(g.aux["both"]), [x, w])
    assert not g.aux["out"].requires_grad
    assert not storages(list(g.aux["both"])) & storages([x, w])


def test_static_and_ragged_arguments_and_keywords():
    params = {"w": torch.randn(3, 4, dtype=F64), "e": torch.randn(6, 3, dtype=F64)}
    shared, lengths = torch.randn(4, 4, dtype=F64), [2, 5, 2, 1]
    rows = [torch.randn(n, 4, dtype=F64) for n in lengths]
    tokens = [torch.randint(6, (n,)) for n in lengths]

    def loss(p, x, shared, *, named):
        return (F.linear(x @ shared, p["w"]).sin() * F.embedding(named["i"], p["e"])).square().sum() * named["power"]

    f = gf.per_sample_grads(loss, engine=ENGINE)
    for _ in range(2):
        g = f(params, gf.ragged(rows), gf.static(shared), named={"i": gf.ragged(tokens), "power": 2})
        each = [
            truth(lambda p, x, i: loss(p, x, shared, named={"i": i, "power": 2}), params, 1, (x[None], i[None]))
            for x, i in zip(rows, tokens, strict=True)
        ]
        check_queries(g, joined(*each))
        rows = [row + 1 for row in rows]


def dropped(p, x):
    kept = F.dropout(torch.ones_like(x), 0.5)
    hidden = F.dropout(F.linear(x * kept, p["w"]).tanh(), 0.3)
    return (hidden @ p["v"]).sum(), {"kept": kept, "hidden": hidden}


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_dropout_draws_what_the_loop_draws(chunk_size):
    params = {"w": torch.randn(4, 3, dtype=F64), "v": torch.randn(4, dtype=F64)}
    x, ids = torch.randn(6, 2, 3, dtype=F64), [5, 0, 9, 2**40, 3, 1]
    f, loop = (gf.per_sample_grads(dropped, engine=e, has_aux=True, chunk_size=chunk_size) for e in (ENGINE, "loop"))
    for step in (0, 3):
        g, want = f.at(step, index=ids)(params, x), loop.at(step, index=ids)(params, x)
        assert same_bits(g.aux["kept"], want.aux["kept"])
        assert same_bits(g.aux["hidden"] == 0, want.aux["hidden"] == 0)
        close_rows(g.materialize(), want.materialize())
        close(g.norms(), flat(want.materialize()).norm(dim=1), flat(want.materialize()).norm(dim=1), "norms")
        alone = f.at(step, index=ids[2:3])(params, x[2:3])
        close_rows(alone.materialize(), g.select([2]).materialize())
    assert not same_bits(f.at(0, ids)(params, x).aux["kept"], f.at(1, ids)(params, x).aux["kept"])


def test_native_dropout_draws_what_the_loop_draws():
    params = {"w": torch.randn(4, 3, dtype=F64), "v": torch.randn(4, dtype=F64)}
    x = torch.randn(6, 3, dtype=F64)

    def losses(p, x):
        kept = F.dropout(torch.ones_like(x), 0.5)
        return F.linear(x * kept, p["w"]).tanh() @ p["v"], kept

    f, loop = (gf.per_sample_grads(losses, engine=e, has_aux=True, batched=True) for e in (ENGINE, "loop"))
    g, want = f.at(2)(params, x), loop.at(2)(params, x)
    assert same_bits(g.aux, want.aux)
    close_rows(g.materialize(), want.materialize())


# --- what a call leaves alone ------------------------------------------------------------------------


class Busy(nn.Module):
    """A module that writes to itself, with hooks of its owner and gradients that lie about."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        self.last = x.shape
        return self.b(self.norm(self.a(x)).tanh())


def busy():
    torch.manual_seed(1)
    module = Draw(3).module(Busy())
    module.a.weight.register_hook(lambda grad: grad * 2)
    module.b.register_forward_hook(lambda module, args, out: None)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    return module


def snapshot(module, tensors):
    """All that can be compared before and after."""
    owned = [*module.parameters(), *module.buffers(), *(p.grad for p in module.parameters())]
    return {
        "modules": [
            {k: [(n, id(v)) for n, v in value.items()] if isinstance(value, dict) else id(value)
             for k, value in vars(m).items() if k not in ("training",)}
            for m in module.modules()
        ],
        "values": [t.detach().clone() for t in [*owned, *tensors]],
        "versions": [(id(t), t._version, t.requires_grad, t.is_leaf, t.grad_fn) for t in [*owned, *tensors]],
        "hooks": [dict(t._backward_hooks or {}) for t in [*owned, *tensors]],
        "random": torch.get_rng_state(),
        "flags": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled(),
                  torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
                  torch.autograd.graph.saved_tensors_hooks.__init__, torch._C._len_torch_function_stack(),
                  torch._C._len_torch_dispatch_stack()),
    }  # fmt: skip


def same(a, b):
    return [k for k in a if not (same_bits(a[k], b[k]) if k in ("values", "random") else a[k] == b[k])]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("given", ["detached", "parameters"])
def test_nothing_is_touched(training, given):
    module = busy().train(training)
    model = gf.stateless(module, batch_stats="batch")
    x = torch.randn(4, 4, dtype=F64, requires_grad=True)
    params = dict(model.params) if given == "detached" else dict(module.named_parameters())

    def losses(p, x):
        return F.dropout(model(p, x), 0.2).sin().sum(1)

    before = snapshot(module, [x, *params.values()])
    f = gf.per_sample_grads(losses, engine=ENGINE, batched=True).at(0)
    g = f(params, x)
    results(g)
    for value in (g.select([0]), g.scaled(torch.ones(4)), gf.concatenate([g, g]), *g.split(3)):
        value.sum(), value.norms(), value.unused
    assert isinstance(str(g.explain()), str)
    assert not same(before, snapshot(module, [x, *params.values()]))
    assert x.grad is None
    with torch.no_grad():
        quiet = results(g)
    for value in quiet.values():
        assert not any(t.requires_grad for t in (value.values() if isinstance(value, dict) else [value]))


@every_case
def test_results_are_fresh(name, mode):
    a = ask(name, mode)
    answers = results(a.g)
    seen = storages([a.problem.params, list(a.args)])
    for what, value in answers.items():
        own = storages(value)
        assert not own & seen, f"{what} shares storage"
        seen |= own
    before = results(a.g)
    for value in answers.values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            tensor.fill_(-7.0)
    assert same_bits(before, results(a.g))
    check(name, a.g, a.want)


@every_case
@pytest.mark.parametrize("what", ["params", "batch"])
@pytest.mark.parametrize("first", [True, False], ids=["asked before", "asked after"])
@pytest.mark.parametrize("chunk_size", every(2, [None, 2]))
def test_what_changes_in_place_is_kept_or_refused(name, mode, what, first, chunk_size):
    """A factor may alias the batch (the input of the first layer is it); then the answer is refused, never another."""
    a = ask(name, mode, chunk_size=chunk_size)
    before = results(a.g) if first else results(ask(name, mode, chunk_size=chunk_size).g)
    for tensor in a.problem.params.values() if what == "params" else a.args:
        tensor.copy_(torch.zeros_like(tensor))
    c, v = torch.linspace(-1, 1, SIZE, dtype=F64), before["sum"]
    queries = {
        "norms": a.g.norms,
        "gram": a.g.gram,
        "sum": a.g.sum,
        "mean": a.g.mean,
        "none": a.g.materialize,
        "weighted_sum": lambda: a.g.weighted_sum(c),
        "dot": lambda: a.g.dot(v),
        "norms per parameter": lambda: a.g.norms(per_parameter=True),
    }
    for asked, query in queries.items():
        answer = answered(query, "changed in place")
        assert answer is None or same_bits(answer, before[asked]), asked
    assert same_bits(a.g.losses, before["losses"])


@every_case
def test_twice_is_once(name, mode):
    p = problem(name, SIZE, 3)
    args, f = p.args(0), function(name, p, mode)
    g = f(p.params, *args)
    first = results(g)
    torch.rand(3)
    assert same_bits(first, results(g))
    again = results(f(p.params, *args))
    assert same_bits(first, again)
    f(p.params, *p.args(1))  # what other data teaches changes nothing
    assert same_bits(first, results(f(p.params, *args)))
    with torch.no_grad():
        assert same_bits(first, results(f(p.params, *args)))
        assert same_bits(first, results(g))


def in_two_threads(work):
    """Both at once; what either raises is raised here."""
    barrier, errors = threading.Barrier(2), []

    def run(k):
        try:
            barrier.wait()
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@every_case
def test_from_several_threads(name, mode):
    """One function, two threads, other data in each: what one learns must not be half seen by the other."""
    p = problem(name, SIZE, 3)
    f, fresh = (function(name, p, mode).at(0) for _ in range(2))
    batches = [p.args(seed) for seed in range(4)]
    want = [results(fresh(p.params, *args)) for args in batches]
    got: dict[int, Any] = {}

    def work(k):
        for i in (k, k + 2):
            got[i] = results(f(p.params, *batches[i]))

    in_two_threads(work)
    for i in range(4):
        assert same_bits(got[i], want[i])


@factored_only
@pytest.mark.parametrize("mode", ["vmap", "native"])
def test_threads_do_not_disturb_the_global_generator(mode):
    """No draw is noticed in a loss that draws nothing, and the generator is where it was."""
    p = problem("mlp", SIZE, 3)
    f, args, before = function("mlp", p, mode), p.args(0), torch.get_rng_state()

    def work(k):
        for _ in range(20):
            f(p.params, *args).norms()

    in_two_threads(work)
    assert torch.equal(before, torch.get_rng_state())


class Mine(Exception):
    pass


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("mine"), NotImplementedError("mine"), Mine("mine")])
def test_a_users_own_exception_passes_untouched(batched, error):
    def loss(p, x):
        (p["w"] * x).sum()
        raise error

    x = torch.ones(2, 3)
    with pytest.raises(type(error)) as caught:
        gf.per_sample_grads(loss, engine=ENGINE, batched=batched)({"w": torch.ones(3)}, x)
    assert caught.value is error


@pytest.mark.parametrize("batched", [False, True])
def test_a_loss_that_writes_to_its_input_leaves_the_batch_alone(batched):
    x, w = torch.ones(3, 2, dtype=F64), {"w": torch.ones(4, 2, dtype=F64)}
    f = gf.per_sample_grads(lambda p, x: F.linear(x.mul_(2), p["w"]).sum(-1), engine=ENGINE, batched=batched)
    g = f(w, x)
    assert torch.equal(x, torch.ones(3, 2, dtype=F64))
    assert torch.equal(g.materialize()["w"], torch.full((3, 4, 2), 2.0, dtype=F64))


# --- inside and above other differentiation ----------------------------------------------------------


@factored_only
@pytest.mark.parametrize("name", ["mlp", "LoRA merged", "position embedding", "tied, linear"])
def test_inside_a_transform_of_torch_it_works_or_says_why_not(name):
    """The derivative of the sum of squared norms along the parameters themselves, through `torch.func.grad`."""
    p = problem(name, 3, 3)
    args = p.args(0)

    def squares(scale, queried):
        params = {k: v * scale for k, v in p.params.items()}
        return queried(params)

    def ours(params):
        return function(name, p, "vmap")(params, *args).norms().square().sum()

    def plain(params):
        rows = torch.vmap(torch.func.grad(p.sample), (None, *[0] * len(args)))(params, *args)
        return sum(v.square().sum() for v in rows.values())

    one = torch.ones((), dtype=F64)
    want = torch.func.grad(squares)(one, plain)
    got = answered(lambda: torch.func.grad(squares)(one, ours), "torch.func", "gf.per_sample_grads")
    assert got is None or (got - want).abs() <= 1e-11 * want.abs()


@factored_only
def test_under_vmap_it_works_or_says_why_not():
    p = problem("mlp", 3, 3)
    (x,) = p.args(0)
    scales = torch.tensor([1.0, 2.0], dtype=F64)
    f = function("mlp", p, "vmap")
    want = torch.stack([f(p.params, x * s).norms() for s in scales])
    got = answered(
        lambda: torch.vmap(lambda s: f(p.params, x * s).norms())(scales), "torch.func", "gf.per_sample_grads"
    )
    if got is not None:
        close(got, want, want, "norms under vmap")


def test_a_loss_may_differentiate_inside():
    params, x = {"w": torch.randn(4, 3, dtype=F64)}, torch.randn(5, 3, dtype=F64)

    def penalty(p, x):
        return torch.func.grad(lambda x: F.linear(x, p["w"]).tanh().sum())(x).square().sum()

    check_queries(gf.per_sample_grads(penalty, engine=ENGINE)(params, x), truth(penalty, params, 5, (x,)))

    def penalties(p, x):
        x = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.linear(x, p["w"]).tanh().sum(), x, create_graph=True)
        return slope.square().sum(1)

    g = gf.per_sample_grads(penalties, engine=ENGINE, batched=True)(params, x)
    check_queries(g, truth_batched(penalties, params, (x,)))


@pytest.mark.parametrize("scale", [lambda g: 2 * g, lambda g: g.flip(1)], ids=["doubled", "turned"])
@pytest.mark.parametrize("kept", ["tensor", "node"])
def test_hooks_that_change_a_gradient_change_every_row_that_passes(kept, scale):
    """Cotangents are those that hooks leave, of the weight and of the bias, for uses above and below."""
    params = {name: Draw(3)(4, 4) for name in ("u", "v", "w")} | {name: Draw(4)(4) for name in ("b", "c")}

    def losses(p, x):
        h = F.linear(F.linear(x, p["u"]).tanh(), p["v"], p["b"])
        if kept == "tensor":
            h.register_hook(scale)
        else:
            h.grad_fn.register_prehook(lambda grads: (scale(grads[0]),))
        return F.linear(h.sin(), p["w"], p["c"]).sin().sum(1)

    x = Draw(5)(SIZE, 4)
    g = gf.per_sample_grads(losses, engine=ENGINE, batched=True)(params, x)
    check_queries(g, truth_batched(losses, params, (x,)))


@pytest.mark.parametrize("batched", [True, False], ids=["native", "vmap"])
def test_a_static_tensor_that_changes_later_changes_no_answer(batched):
    params, x, c = {"w": Draw(1)(3, 4)}, Draw(2)(SIZE, 4), Draw(3)(5, 4)

    def loss(p, x, c):
        rows = F.linear(c, p["w"]).sin().sum()
        return rows * x.sum(-1)

    f = gf.per_sample_grads(loss, engine=ENGINE, batched=batched, chunk_size=None)
    g = f(params, x, gf.static(c))
    before = results(g)
    c.zero_()
    assert same_bits(before, results(g))


def test_a_tensor_of_the_closure_that_changes_later_is_noticed():
    """The input of a layer that is neither parameter nor batch: a factor holds it as it is."""
    params, x, c = {"w": Draw(1)(3, 4)}, Draw(2)(SIZE, 4), Draw(3)(SIZE, 4)
    f = gf.per_sample_grads(lambda p, x: F.linear(c, p["w"]).sin().sum(1) * x.sum(1), engine=ENGINE, batched=True)
    g = f(params, x)
    before = results(g)
    c.zero_()
    for asked, query in {"norms": g.norms, "sum": g.sum, "joined": lambda: gf.concatenate([g, g]).norms()}.items():
        answer = answered(query, "changed in place")
        assert answer is None or (asked in before and same_bits(answer, before[asked])), asked
    if FACTORED:
        with pytest.raises(RuntimeError, match="closes over, changed in place"):
            g.norms()
