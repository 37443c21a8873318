"""What is allocated: never B rows of a wide layer, whatever is asked but the rows themselves."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import gradfunc as gf

from .cases import Draw
from .conftest import ENGINE, factored_only

B, WIDE = 16, 128
ENTRIES = WIDE * WIDE  # of the wide layer
BYTES = 8


class Largest(TorchDispatchMode):
    """The largest storage that an operation has made, in entries of float64."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                self.entries = max(self.entries, value.untyped_storage().nbytes() // BYTES)
        return out


draw = Draw(0)
W, V, U = (draw(WIDE, WIDE) / WIDE**0.5 for _ in range(3))
VECTORS, SEQUENCES = draw(B, WIDE), draw(B, 4, WIDE)
TOKENS = draw.ints(WIDE, B, 4)


def mlp(p, x):
    return F.linear(F.linear(x, p["w"], p["b"]).relu(), p["v"])


def tied(p, i):
    return F.linear(F.embedding(i, p["w"]).tanh(), p["w"])


def chunked(p, x):
    q, k = p["w"].chunk(2)
    return F.linear(x, q).sin() * F.linear(x, k).cos()


def joined(p, x):
    return F.linear(x, torch.cat([p["w"][: WIDE // 2], p["v"][WIDE // 2 :]]))


# Each with a batch, and the parameters that it uses beside each other.
LEAN = {
    "mlp": (mlp, VECTORS, {"w": W, "v": V, "b": U[0]}),
    "mlp on sequences": (mlp, SEQUENCES, {"w": W, "v": V, "b": U[0]}),
    "weight used twice": (lambda p, x: (x @ p["w"]).tanh() @ p["w"].T, SEQUENCES, {"w": W}),
    "embedding": (lambda p, i: F.embedding(i, p["w"]), TOKENS, {"w": W}),
    "w[tokens]": (lambda p, i: p["w"][i], TOKENS, {"w": W}),
    "tied embedding and head": (tied, TOKENS, {"w": W}),
    "scaled weight": (lambda p, x: F.linear(x, p["w"] * 0.5), SEQUENCES, {"w": W}),
    "transposed copy": (lambda p, x: x @ p["w"].T.contiguous(), SEQUENCES, {"w": W}),
    "sum of two weights": (lambda p, x: F.linear(x, p["w"] + p["v"]), SEQUENCES, {"w": W, "v": V}),
    "chunks of one weight": (chunked, SEQUENCES, {"w": W}),
    "cat of two weights": (joined, SEQUENCES, {"w": W, "v": V}),
    "expanded to the batch": (lambda p, x: torch.bmm(x, p["w"].expand(B, -1, -1)), SEQUENCES, {"w": W}),
}


def clipped(g):
    return g.scaled((1 / g.norms()).clamp_max(1)).sum()


QUERIES = {
    "norms": lambda g: g.norms(),
    "norms per parameter": lambda g: g.norms(per_parameter=True),
    "gram": lambda g: g.gram(),
    "clip and sum": clipped,
    "sum": lambda g: g.sum(),
    "mean": lambda g: g.mean(),
    "weighted sum": lambda g: g.weighted_sum(torch.arange(B, dtype=torch.float64)),
    "dot": lambda g: g.dot(g.sum()),
    "selected": lambda g: clipped(g.select([3, 0, 5, 7, 7, 9, 11, 12])),
    "joined": lambda g: clipped(gf.concatenate([g, g])),
}


def largest(name, query, *, batched, engine):
    """Entries of the largest storage made between the call and the answer."""
    out, batch, params = LEAN[name]

    def losses(p, x):
        value = out(p, x).sin()
        return value.flatten(1).sum(1) if batched else value.sum()

    if not batched and name == "expanded to the batch":
        pytest.skip("one sample has no batch to expand to")
    f = gf.per_sample_grads(losses, engine=engine, batched=batched)
    with Largest() as first:
        QUERIES[query](f(params, batch))
    with Largest() as second:
        QUERIES[query](f(params, batch * 1))  # as planned by the first call
    # The first call makes plain backward passes as well, and those form the gradient of the expanded weight.
    return second.entries if name == "expanded to the batch" else max(first.entries, second.entries)


@factored_only
@pytest.mark.parametrize("batched", [True, False], ids=["native", "vmap"])
@pytest.mark.parametrize(
    "query", [pytest.param(q, marks=[] if q in ("clip and sum", "gram") else pytest.mark.slow) for q in QUERIES]
)
@pytest.mark.parametrize("name", LEAN)
def test_no_query_makes_the_rows_of_a_wide_layer(name, query, batched):
    # One sample's block, or one row of a product, twice over: far from the B of them.
    assert largest(name, query, batched=batched, engine=ENGINE) <= 4 * ENTRIES


@factored_only
@pytest.mark.parametrize("batched", [True, False], ids=["native", "vmap"])
@pytest.mark.parametrize("query", ["norms", "gram", "dot"])
def test_vectors_need_not_even_one_row(query, batched):
    """At T = 1 norms and Gram are products of what the layers saw: once verified, no more than the activations."""
    params = {"w": W, "v": V, "b": U[0]}

    def losses(p, x):
        value = mlp(p, x).sin()
        return value.sum(1) if batched else value.sum()

    f = gf.per_sample_grads(losses, engine=ENGINE, batched=batched)
    f(params, VECTORS).norms()  # the first call learns and verifies
    with Largest() as seen:
        QUERIES[query](f(params, VECTORS * 2)) if query != "dot" else f(params, VECTORS * 2).dot(params)
    assert seen.entries <= max(ENTRIES, B * WIDE)


@pytest.mark.parametrize("batched", [True, False], ids=["native", "vmap"])
@pytest.mark.parametrize("name", LEAN)
def test_the_count_sees_the_rows_where_they_are_made(name, batched):
    """The test above can fail: `vmap(grad)` makes them, and so does asking for them."""
    assert largest(name, "norms", batched=batched, engine="vmap") >= B * ENTRIES
    if ENGINE == "factored":
        QUERIES["rows"] = lambda g: g.materialize()
        try:
            assert largest(name, "rows", batched=batched, engine=ENGINE) >= B * ENTRIES
        finally:
            del QUERIES["rows"]


def test_the_mode_counts_storages_and_not_shapes():
    with Largest() as seen:
        torch.ones(3, dtype=torch.float64).expand(1000, 3)
    assert seen.entries == 3
    with Largest() as seen:
        torch.ones(1000, 3, dtype=torch.float64)
    assert seen.entries == 3000


@factored_only
@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_clipping_a_gpt_takes_the_memory_of_a_plain_backward_pass(tied):
    """The benchmark's own GPT, once its plan is known: what factors hold, the graph has given up."""
    case = gf.bench.gpt(tied=tied).case()
    plain = gf.bench.peak_bytes(gf.bench.CONTENDERS["plain"].make(case, "mean gradient"))
    call = gf.bench.CONTENDERS["gradfunc"].make(case, "clip-and-sum")
    call()
    assert gf.bench.peak_bytes(call) <= 1.3 * plain
