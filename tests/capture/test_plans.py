"""Plans are used again where they may be, and nowhere else: counted, and every answer exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradfunc._capture import Plans

from .graphs import F64, Losses, Model, Params, captured, exact, run
from .layouts import LAYOUTS, model

B = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


PARAMS = {"w": drawn(5, 3, seed=1), "v": drawn(5, seed=2), "u": drawn(3, 5, seed=3)}
TABLE = drawn(B, 5, seed=6)  # a table of B rows is TABLE @ w


def learnt(losses: Losses, *batches: tuple, params: Params = PARAMS) -> list[int]:
    """How often plans have been learnt after each batch, all answers being exact."""
    plans, counts = Plans(), []
    for batch in batches:
        exact(Model(losses, params, batch), plans)
        counts.append(plans.learnt)
    return counts


def xs(count: int, rows: int = B) -> list[tuple[Tensor]]:
    return [(drawn(rows, 3, seed=10 + k),) for k in range(count)]


def h(p: Params, x: Tensor) -> Tensor:
    return F.linear(x, p["w"]).tanh()


def read(p: Params, out: Tensor) -> Tensor:
    return out.sin() @ p["v"]


# --- used again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "routed"])
def test_other_data_of_the_same_shapes_teaches_nothing(layout):
    plans = Plans()
    for seed in range(3):
        exact(model(layout, 4, 3, 5, 2, seed=seed), plans)
    assert plans.learnt == 1


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "routed"])
def test_what_one_precision_teaches_holds_in_another(layout):
    plans = Plans()
    of = model(layout, 4, 3, 5, 2)
    low = Model(
        of.losses,
        {name: p.to(torch.float32) for name, p in of.params.items()},
        tuple(t.to(torch.float32) if isinstance(t, Tensor) and t.is_floating_point() else t for t in of.batch),
    )
    captured(low, plans)
    exact(of, plans)
    assert plans.learnt == 1
    assert len(plans.known) == 2  # which rows are formed is each precision's own


def test_a_fixed_route_is_learnt_once():
    order = torch.arange(B)
    assert learnt(lambda p, x: read(p, h(p, x)[order]), *xs(3)) == [1, 1, 1]


def test_owners_by_a_table_are_measured_each_time():
    order = torch.tensor([2, 0, 3, 1])
    assert learnt(lambda p, x: read(p, h(p, x[order])[order.argsort()]), *xs(3)) == [1, 2, 3]


@pytest.mark.parametrize("read_by", ["index", "embedding", "index_select", "gather", "take"])
def test_an_index_into_a_parameter_is_no_route(read_by):
    """Tokens differ at every batch; who owns the rows that they fetch does not."""

    def losses(p, i):
        if read_by == "index":
            rows = p["w"][i]
        elif read_by == "embedding":
            rows = F.embedding(i, p["w"])
        elif read_by == "index_select":
            rows = p["w"].index_select(0, i)
        elif read_by == "gather":
            rows = p["w"].gather(0, i[:, None].expand(-1, 3))
        else:
            rows = p["w"].take(i)[:, None]
        return rows.sin().sum(1)

    batches = [(torch.tensor(t),) for t in ([1, 3, 0, 2], [1, 1, 4, 0], [2, 2, 2, 2])]
    assert learnt(losses, *batches) == [1, 1, 1]


def test_parameters_that_move_teach_nothing():
    plans = Plans()
    for k in range(3):
        exact(Model(lambda p, x: read(p, h(p, x)), {k_: v + k for k_, v in PARAMS.items()}, xs(1)[0]), plans)
    assert plans.learnt == 1


# --- another signature ----------------------------------------------------------------------------------------------


def signature(losses: Losses, *batch: Tensor, params: Params = PARAMS) -> object:
    return run(Model(losses, params, batch))[0].signature


DIFFERENT: dict[str, tuple[Losses, Losses]] = {
    "sum": (lambda p, x: h(p, x).sum(1).sin(), lambda p, x: h(p, x).sum(0).sin()),
    "mean": (lambda p, x: h(p, x).mean(1).sin(), lambda p, x: h(p, x).mean(0).sin()),
    "amax": (lambda p, x: h(p, x).amax(1).sin(), lambda p, x: h(p, x).amax(0).sin()),
    "max": (lambda p, x: h(p, x).max(1).values.sin(), lambda p, x: h(p, x).max(0).values.sin()),
    "logsumexp": (lambda p, x: h(p, x).logsumexp(1), lambda p, x: h(p, x).logsumexp(0)),
    "norm": (lambda p, x: h(p, x).norm(dim=1), lambda p, x: h(p, x).norm(dim=0)),
    "softmax": (lambda p, x: read(p, h(p, x).softmax(1)), lambda p, x: read(p, h(p, x).softmax(0))),
    "log_softmax": (lambda p, x: read(p, h(p, x).log_softmax(1)), lambda p, x: read(p, h(p, x).log_softmax(0))),
    "cumsum": (lambda p, x: read(p, h(p, x).cumsum(1)), lambda p, x: read(p, h(p, x).cumsum(0))),
    "transpose": (lambda p, x: read(p, h(p, x).t().t()), lambda p, x: read(p, h(p, x).t().contiguous())),
    "unfold": (
        lambda p, x: h(p, x).unfold(0, 1, 1)[..., 0].sin().sum(1),
        lambda p, x: h(p, x).unfold(1, 1, 1)[..., 0].sin().sum(0),
    ),
    "flip": (lambda p, x: read(p, h(p, x).flip(0)), lambda p, x: read(p, h(p, x).flip(1))),
    "roll": (lambda p, x: read(p, h(p, x).roll(1, 0)), lambda p, x: read(p, h(p, x).roll(2, 0))),
    "pad": (
        lambda p, x: read(p, F.pad(h(p, x), (0, 0, 1, 1))[1:-1]),
        lambda p, x: read(p, F.pad(h(p, x), (0, 0, 2, 0))[1:-1]),
    ),
    "as_strided": (
        lambda p, x: read(p, h(p, x).as_strided((5, 5), (5, 1))),
        lambda p, x: read(p, h(p, x).as_strided((5, 5), (1, 5))),
    ),
    "select": (lambda p, x: h(p, x)[:, 1].sin(), lambda p, x: h(p, x)[1].sin()),
    "slice": (lambda p, x: read(p, h(p, x)[:4]), lambda p, x: read(p, h(p, x)[1:])),
    "stack of rows": (
        lambda p, x: read(p, torch.stack([h(p, x)[i] for i in (0, 1, 2, 3, 4)])),
        lambda p, x: read(p, torch.stack([h(p, x)[i] for i in (3, 1, 2, 0, 4)])),
    ),
    "cat of halves": (
        lambda p, x: read(p, torch.cat(h(p, x).split([2, 3]))),
        lambda p, x: read(p, torch.cat(h(p, x).split([2, 3])[::-1])),
    ),
    "tril": (
        lambda p, x: (h(p, x) @ h(p, x).t()).tril(0).sin().sum(1),
        lambda p, x: (h(p, x) @ h(p, x).t()).tril(1).sin().sum(1),
    ),
    "repeat": (
        lambda p, x: h(p, x).repeat(2, 1).view(5, 2, 5).sin().sum((1, 2)),
        lambda p, x: h(p, x).repeat(1, 2).view(5, 2, 5).sin().sum((1, 2)),
    ),
    "which parameter": (
        lambda p, x: read(p, F.linear(x, p["w"])),
        lambda p, x: read(p, F.linear(x, p["u"])),
    ),
    "activation": (lambda p, x: read(p, h(p, x).cos()), lambda p, x: read(p, h(p, x).exp())),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_same_shapes_of_another_function_are_another_signature(name):
    """Python chose otherwise, where B = T = d: neither plan is used for the other, forwards and backwards."""
    params = {**PARAMS, "u": drawn(5, 3, seed=9)}
    for first, second in (DIFFERENT[name], DIFFERENT[name][::-1]):
        x = drawn(5, 3, seed=3)
        assert signature(first, x, params=params) != signature(second, x, params=params)
        plans = Plans()
        for losses in (first, second, first, second):
            exact(Model(losses, params, (x,)), plans)
        assert plans.learnt >= 2


@pytest.mark.parametrize("change", ["batch size", "length", "dtype", "a parameter's shape", "which needs gradients"])
def test_other_shapes_are_another_signature(change):
    x, params = drawn(4, 6, 3), dict(PARAMS)

    def losses(p, x):
        return F.linear(x, p["w"]).tanh().mean(1).sin() @ p["v"]

    first = signature(losses, x, params=params)
    if change == "batch size":
        x = x[:3]
    elif change == "length":
        x = x[:, :5]
    elif change == "dtype":
        x, params = x.float(), {k: v.float() for k, v in params.items()}
    elif change == "a parameter's shape":
        params = {"w": params["w"][:4], "v": params["v"][:4]}
    else:
        del params["v"]

        def losses(p, x):
            return F.linear(x, p["w"]).tanh().mean(1).sin() @ PARAMS["v"]

    assert signature(losses, x, params=params) != first


# --- degenerate batches first ---------------------------------------------------------------------------------------


def pooling(*counts: int) -> Tensor:
    """`[B, rows]`: which rows belong to which sample."""
    return F.one_hot(torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)), len(counts)).T.to(F64)


def identity() -> Tensor:
    return torch.eye(B, dtype=F64)


EVEN, UNEVEN = pooling(2, 2, 2, 2), pooling(1, 3, 2, 2)
SWAPPED = identity()[[1, 0, 3, 2]]
FULL = drawn(B, B, seed=5)
BLOCKS = torch.block_diag(*[torch.ones(2, 2)] * B).bool()
# losses, what goes with the rows in the first batch, and in the next; number of rows
DATA: dict[str, tuple[Callable[..., Tensor], list, int]] = {
    "rows of graphs, pooled by a matrix": (lambda p, x, a: read(p, a @ h(p, x)), [EVEN, UNEVEN, EVEN], 8),
    "token losses, pooled by a matrix": (lambda p, x, a: a @ read(p, h(p, x)), [EVEN, UNEVEN, EVEN], 8),
    "adjacency": (lambda p, x, a: read(p, a @ h(p, x)), [identity(), FULL, SWAPPED], 4),
    "adjacency on the right": (lambda p, x, a: read(p, (h(p, x).T @ a).T), [identity(), FULL, SWAPPED], 4),
    "adjacency, sparse": (
        lambda p, x, a: read(p, torch.sparse.mm(a.to_sparse(), h(p, x))), [identity(), SWAPPED], 4
    ),
    "adjacency, added": (
        lambda p, x, a: read(p, torch.addmm(h(p, x).sin(), a, h(p, x))), [identity(), FULL, SWAPPED], 4
    ),
    "adjacency, batched": (lambda p, x, a: read(p, (a[None] @ h(p, x)[None])[0]), [identity(), FULL, SWAPPED], 4),
    "dispatched by one-hot": (
        lambda p, x, a: read(p, a.T @ (a @ h(p, x)).tanh()), [identity(), SWAPPED, identity()], 4
    ),
    "multiplied by a mask": (lambda p, x, a: read(p, (h(p, x)[None] * a[..., None]).sum(1)), [EVEN, UNEVEN], 8),
    "expanded, then masked": (
        lambda p, x, a: read(p, (h(p, x)[None].expand(4, 8, 5).sin() * a[..., None]).sum(1)), [EVEN, UNEVEN], 8
    ),
    "repeated, then masked": (
        lambda p, x, a: read(p, (h(p, x)[None].repeat(4, 1, 1).sin() * a[..., None]).sum(1)), [EVEN, UNEVEN], 8
    ),
    "where": (
        lambda p, x, a: read(p, torch.where(a[..., None] > 0, h(p, x)[None], 0.0).sum(1)), [EVEN, UNEVEN], 8
    ),
    "masked fill": (
        lambda p, x, a: read(p, h(p, x)[None].masked_fill(a[..., None] == 0, 0).sum(1)), [EVEN, UNEVEN], 8
    ),
    "attention mask": (
        lambda p, x, m: read(
            p, F.scaled_dot_product_attention(*[h(p, x)[None, None]] * 3, attn_mask=m)[0, 0].view(4, 2, 5)[:, 0]
        ),
        [BLOCKS, torch.ones(8, 8, dtype=torch.bool), BLOCKS],
        8,
    ),
    "attention written out": (
        lambda p, x, m: read(
            p, ((h(p, x) @ h(p, x).T).masked_fill(~m, -torch.inf).softmax(1) @ h(p, x)).view(4, 2, 5)[:, 0]
        ),
        [BLOCKS, torch.ones(8, 8, dtype=torch.bool), BLOCKS],
        8,
    ),
    "convolution over samples": (
        lambda p, x, a: read(p, F.conv1d(h(p, x)[None], a[..., None])[0]), [identity(), FULL], 4
    ),
    "distances in the batch": (
        lambda p, x, a: (torch.cdist(h(p, x), h(p, x).sin()) * a).sum(1), [identity(), FULL], 4
    ),
    "outer product in the batch": (
        lambda p, x, a: (torch.outer(read(p, h(p, x)), h(p, x).sum(1)) * a).sum(1), [identity(), FULL], 4
    ),
    "similarities in the batch": (
        lambda p, x, a: ((h(p, x) @ h(p, x).T) * a).sum(1).sin(), [identity(), FULL], 4
    ),
    "one-hot inputs": (lambda p, x, a: read(p, F.linear(a, p["w"] @ TABLE[:, :3].T)), [identity(), FULL], 4),
    "embedding of a derived table": (
        lambda p, x, i: F.embedding(i, TABLE @ p["w"]).sin().sum(1),
        [torch.arange(4), torch.tensor([1, 0, 3, 3])], 4,
    ),
    "bag of a derived table": (
        lambda p, x, i: F.embedding_bag(i[:, None], TABLE @ p["w"], mode="sum").sin().sum(1),
        [torch.arange(4), torch.tensor([1, 0, 3, 3])], 4,
    ),
    "one active hinge": (
        lambda p, x, a: read(p, h(p, x)) * a, [torch.tensor([0.0, 0, 1, 0]), torch.tensor([1.0, 1, 0, 1])], 4
    ),
    "one active sample of a running sum": (
        lambda p, x, a: read(p, (x @ p["u"]).cumsum(0)) * a, [torch.tensor([1.0, 0, 0, 0]), torch.ones(4)], 4
    ),
    "no active sample": (lambda p, x, a: read(p, h(p, x)) * a, [torch.zeros(4), torch.ones(4)], 4),
    "a branch scaled by 0": (
        lambda p, x, a: read(p, h(p, x)) + a * read(p, (x @ p["w"].T).roll(1, 0).sin()),
        [torch.zeros(()), torch.ones(())], 4,
    ),
    "routed in order at first": (
        lambda p, x, i: read(p, torch.zeros(4, 5, dtype=F64).index_add(0, i, h(p, x[i]))),
        [torch.arange(4), torch.tensor([3, 0, 1, 2])], 4,
    ),
    "gathered in order at first": (
        lambda p, x, i: read(p, h(p, x)[i]), [torch.arange(4), torch.tensor([3, 0, 1, 1])], 4
    ),
    "sorted already": (
        lambda p, x, a: read(p, (h(p, x) + a[:, None] * 10)[(h(p, x).sum(1) + a * 100).argsort()]),
        [torch.arange(4), torch.tensor([3, 1, 0, 2])], 4,
    ),
    "sorted by torch": (
        lambda p, x, a: (read(p, h(p, x)) + a * 100).sort().values.sin(),
        [torch.arange(4), torch.tensor([3, 1, 0, 2])], 4,
    ),
    "packed by lengths": (
        lambda p, x, i: torch.zeros(4, dtype=F64).index_add(0, i, read(p, h(p, x))),
        [torch.arange(4).repeat_interleave(2), torch.tensor([0, 1, 1, 1, 2, 2, 3, 3])], 8,
    ),
    "rows chosen by a mask": (
        lambda p, x, m: read(p, h(p, x)[m]), [torch.arange(8) % 2 == 0, torch.arange(8) < 4], 8
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_what_a_degenerate_batch_has_shown_is_not_taken_for_a_rule(name):
    """Exact at each of the batches, in either order; at the latest learnt anew where the owners have moved."""
    losses, others, rows = DATA[name]
    for order in (others, others[::-1]):
        batches = [(x, other) for (x,), other in zip(xs(len(order), rows), order, strict=True)]
        learnt(losses, *batches)


def test_rows_stacked_in_python_in_another_order():
    def stacked(order):
        return lambda p, x: read(p, torch.stack(list(h(p, x).unbind()))[list(order)] * 0 + rows(p, x, order))

    def rows(p, x, order):
        out = h(p, x)
        return torch.stack([out[i] for i in order])

    plans = Plans()
    for order in [(0, 1, 2, 3), (3, 1, 0, 2), (0, 1, 2, 3), (3, 1, 0, 2)]:
        exact(Model(lambda p, x, order=order: read(p, rows(p, x, order)), PARAMS, xs(1)[0]), plans)
        exact(Model(stacked(order), PARAMS, xs(1)[0]), plans)


def test_a_branch_that_starts_at_zero():
    """The second factor of a low-rank correction is 0 at first, so that the first has no gradient."""
    params = {"w": drawn(5, 3), "a": drawn(5, 2, seed=1), "b": torch.zeros(2, 3, dtype=F64)}
    plans = Plans()
    for k in range(3):
        made = Model(lambda p, x: F.linear(x, p["w"] + p["a"] @ p["b"]).sin().sum(1), params, xs(3)[k])
        exact(made, plans)
        params = {**params, "b": drawn(2, 3, seed=k)}
    plans = Plans()
    for k in range(3):
        zero = torch.zeros(2, 3, dtype=F64) if k == 0 else drawn(2, 3, seed=k)
        made = Model(
            lambda p, x: (F.linear(x, p["w"]) + F.linear(x @ p["b"].T, p["a"])).sin().sum(1),
            {**params, "b": zero},
            xs(3)[k],
        )
        exact(made, plans)
    assert plans.learnt <= 2


def test_a_plan_that_does_not_last_is_not_kept():
    plans, losses = Plans(), DATA["adjacency"][0]
    captured(Model(losses, PARAMS, (*xs(1)[0], identity())), plans)
    assert (plans.learnt, plans.known) == (1, {})
