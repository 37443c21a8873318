"""Every case, in both modes, every query, against plain autograd; other data next; degenerate batches first."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check_queries, truth, truth_batched
from torch.nn import functional as F

import gradfunc as gf

from .cases import CASES, problem
from .checks import answered, check, expected, function
from .conftest import ENGINE, FACTORED

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
EVERY = [(name, mode) for name, case in CASES.items() for mode in case.modes]
# B = T, where one is easily taken for the other; and B that divides most widths.
FEW = [(3, 3), (2, 4)]
MANY = [(1, 2), (4, 1), (5, 4), (6, 3)]
DEGENERATE = [(name, mode) for name, mode in EVERY if CASES[name].degenerate]


def check_case(name, mode, size, length, calls=2):
    """The same function on several batches of one shape: what the first has taught must hold for the next."""
    p = problem(name, size, length)
    f = function(name, p, mode)
    for call in range(calls):
        args = p.args(call)
        check(name, f(p.params, *args), expected(p, mode, p.params, args, size))


# Each case at once in one mode; the other with the slow tests.
AT_ONCE = [
    pytest.param(name, mode, marks=[] if mode == case.modes[k % len(case.modes)] else pytest.mark.slow)
    for k, (name, case) in enumerate(CASES.items())
    for mode in case.modes
]


@pytest.mark.parametrize(("name", "mode"), AT_ONCE)
def test_every_query_is_exact(name, mode):
    size, length = FEW[0]
    check_case(name, mode, size, length)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "length"), [FEW[1], *MANY])
@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_every_query_is_exact_at_every_size(name, mode, size, length):
    if size >= CASES[name].smallest:
        check_case(name, mode, size, length)


@pytest.mark.parametrize(("name", "mode"), DEGENERATE)
@pytest.mark.parametrize("size", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 6))])
def test_a_degenerate_first_call_teaches_nothing_wrong(name, mode, size):
    """What has no gradient at first, or owners that look regular, may wake or move in the next call."""
    p = problem(name, size, 3)
    params, args = p.degenerate(0)
    f = function(name, p, mode)
    check(name, f(params, *args), expected(p, mode, params, args, size))
    for call in (1, 2):
        args = p.args(call)
        check(name, f(p.params, *args), expected(p, mode, p.params, args, size))
    params, args = p.degenerate(3)
    check(name, f(params, *args), expected(p, mode, params, args, size))


@pytest.mark.parametrize(("name", "mode"), DEGENERATE)
def test_a_degenerate_call_after_others(name, mode):
    p = problem(name, 4, 3)
    f = function(name, p, mode)
    f(p.params, *p.args(0))
    params, args = p.degenerate(1)
    check(name, f(params, *args), expected(p, mode, params, args, 4))


SUBSET = [
    "linear on a sequence",
    "mlp",
    "einsum, a weight a head",
    "weight used twice",
    "tied embedding and head, modules",
    "LoRA merged",
    "in-projection in chunks",
    "position embedding",
    "class token",
    "where, the parameter itself",
    "embedding, padding",
    "layer norm between layers",
    "small convolutional network",
    "encoder layer",
    "LSTM, batch first",
    "GRUCell in a loop",
    "recurrence by hand",
    "experts, rows gathered",
    "rows of graphs",
    "batch norm",
]


@pytest.mark.parametrize("examples", [pytest.param(3, id="some"), pytest.param(40, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SUBSET)
def test_sizes_do_not_matter(name, examples):
    """Batches and lengths of any size, one function for all of them: what is learnt belongs to a shape."""
    functions = {}

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(
        mode=st.sampled_from(CASES[name].modes),
        size=st.integers(CASES[name].smallest, 9),
        length=st.integers(1, 7),
        seed=st.integers(0, 99),
    )
    def holds(mode, size, length, seed):
        p = problem(name, size, length, seed)
        args = p.args(seed)
        f = functions.setdefault((mode, length if "B" in str(CASES[name].args) else 0, seed), function(name, p, mode))
        check(name, f(p.params, *args), expected(p, mode, p.params, args, size))

    holds()


@pytest.mark.parametrize(("name", "mode"), [pair for pair in EVERY if pair[0] in SUBSET])
def test_one_function_for_several_batch_sizes(name, mode):
    """A last, smaller batch, then the old size again."""
    of = {size: problem(name, size, 3) for size in (4, 2, 5)}
    if len({tuple(v.shape for v in p.params.values()) for p in of.values()}) > 1:
        of = dict.fromkeys((4,), of[4])  # the sizes of its parameters are those of the batch
    f = function(name, of[4], mode)
    for size in [*of, 4]:
        args = of[size].args(1)
        check(name, f(of[4].params, *args), expected(of[4], mode, of[4].params, args, size))


EMPTY = ["linear", "embedding", "layer norm", "conv2d", "LSTM, batch first", "position embedding"]


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch(name):
    p = problem(name, 4, 3)
    args = tuple(t[:0] for t in p.args(0))
    check_queries(gf.per_sample_grads(p.sample, engine=ENGINE)(p.params, *args), truth(p.sample, p.params, 0, args))


@pytest.mark.parametrize("name", ["mlp", "tied embedding and head, modules", "LoRA merged", "encoder layer"])
def test_parameters_that_moved(name):
    """A training loop: plans are learnt once, parameters move at each step."""
    p = problem(name, 4, 3)
    f, params = function(name, p, "native"), dict(p.params)
    for step in range(4):
        args = p.args(step)
        g = f(params, *args)
        check(name, g, expected(p, "native", params, args, 4))
        mean = g.mean()
        params = {key: value - 0.1 * mean[key] for key, value in params.items()}


def test_a_sparse_embedding_gives_the_rows_of_a_dense_one():
    params = {"w": torch.randn(5, 3, dtype=torch.float64)}
    i = torch.tensor([[0, 1, 1], [4, 4, 4]])

    def losses(p, i, sparse=True):
        return F.embedding(i, p["w"], sparse=sparse).exp().sum((1, 2))

    g = gf.per_sample_grads(losses, engine="loop" if ENGINE == "vmap" else ENGINE, batched=True)(params, i)
    check_queries(g, truth_batched(lambda p, i: losses(p, i, sparse=False), params, (i,)))


def test_values_of_two_batches_and_two_functions():
    """Gram across values: one of another batch size, and one of another model of the same shapes."""
    p, q = problem("tied, linear", 4, 3), problem("tied, linear", 2, 5)
    other = problem("embedding of an embedding", 3, 3)
    f = function("tied, linear", p, "native")
    left, right = f(p.params, *p.args(0)), f(p.params, *q.args(1))
    a, b = (truth_batched(p.batched, p.params, args) for args in (p.args(0), q.args(1)))
    whole = {name: (a.rows[name].flatten(1) @ b.rows[name].flatten(1).T) for name in a.rows}
    scale = a.rows["e"].flatten(1).norm(dim=1)[:, None] * b.rows["e"].flatten(1).norm(dim=1)
    assert bool(((left.gram(right) - whole["e"]).abs() <= 1e-12 * scale).all())
    assert bool(((right.gram(left) - whole["e"].T).abs() <= 1e-12 * scale.T).all())
    with pytest.raises(ValueError, match="gram"):
        left.gram(function("tied, linear", other, "native")(other.params, *other.args(0)))


def test_values_of_other_kinds_of_factors():
    """Gram between a table that is looked up and the same table in a product: rows beside outer products."""
    params = {"w": torch.randn(5, 6, dtype=torch.float64)}
    i, x = torch.tensor([[0, 1, 1], [4, 3, 4]]), torch.randn(3, 2, 6, dtype=torch.float64)

    def rows(p, i):
        return F.embedding(i, p["w"]).exp().sum((1, 2))

    def outer(p, x):
        return F.linear(x, p["w"]).exp().sum((1, 2))

    def dense(p, x):
        return (x[:, :1, :] * p["w"]).sin().sum((1, 2))

    given_ = [(rows, i), (outer, x), (dense, x)]
    values = [gf.per_sample_grads(loss, engine=ENGINE, batched=True)(params, batch) for loss, batch in given_]
    flat = [truth_batched(loss, params, (batch,)).rows["w"].flatten(1) for loss, batch in given_]
    for (g, a), (h, b) in itertools.product(zip(values, flat, strict=True), repeat=2):
        scale = a.norm(dim=1)[:, None] * b.norm(dim=1)
        assert bool(((g.gram(h) - a @ b.T).abs() <= 1e-12 * scale).all())
        whole = gf.concatenate([g, h])
        joined = torch.cat([a, b])
        assert bool(((whole.norms() - joined.norm(dim=1)).abs() <= 1e-12 * joined.norm(dim=1)).all())
        assert bool(((whole.sum()["w"].flatten() - joined.sum(0)).abs() <= 1e-12 * joined.norm(dim=1).sum()).all())


def test_a_wrong_batching_rule_of_torch_is_not_believed():
    """Under vmap, torch counts the frequencies of the whole batch: exact or refused, never that."""
    p = problem("embedding, scaled by frequency", 4, 3)
    args = p.args(0)

    def sample(params, i):
        return F.embedding(i, params["w"], scale_grad_by_freq=True).exp().sum()

    g = answered(
        lambda: gf.per_sample_grads(sample, engine=ENGINE)(p.params, *args),
        "scale_grad_by_freq" if FACTORED else "fail verification",
    )
    if g is not None:
        check_queries(g, truth(sample, p.params, 4, args))
