"""Kernels: blocks of the Gram matrix, Jacobians, the neural tangent kernel, tokens; duplicates and scores."""

from __future__ import annotations

import pytest
import torch
from oracle import at, close, flat
from quantity_cases import CASES, EXACT, F64, Q, draw, rows_of, value
from torch.nn import functional as F

import gradfunc as gf
from gradfunc.quantities import _kernels, _similarity, _tokens

PARAMS = {"one": draw(6, 5), "two": draw(3, 6, seed=1)}
X, Z = draw(4, 5, seed=2), draw(3, 5, seed=3)


def net(p, x):
    return F.linear(torch.tanh(F.linear(x, p["one"])), p["two"])


def jacobian(outputs, params, batch):
    """`[n, K, P]`: samples one by one, outputs one by one, by autograd."""
    found = []
    for i in range(len(batch[0])):
        leaves = {name: v.clone().requires_grad_() for name, v in params.items()}
        out = outputs(leaves, *at(tuple(batch), i)).flatten()
        rows = []
        for k in range(len(out)):
            grads = torch.autograd.grad(out[k], list(leaves.values()), retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(v) if g is None else g for g, v in zip(grads, leaves.values(), strict=True)]
            rows.append(torch.cat([g.flatten() for g in filled]))
        found.append(torch.stack(rows))
    return torch.stack(found)


def check_jacobian(**options):
    want = jacobian(net, PARAMS, (X,))
    got = flat(Q.output_grads(net, PARAMS, X, **options).materialize()).view(want.shape)
    close(got, want, want.norm(dim=2, keepdim=True), "Jacobian", EXACT)


OPTIONS = [{}, {"engine": "vmap"}, {"engine": "loop"}, {"chunk_size": 2}]


@pytest.mark.parametrize("options", OPTIONS)
def test_output_grads_are_the_jacobian(options):
    check_jacobian(**options)


def check_ntk(**options):
    a, b = jacobian(net, PARAMS, (X,)), jacobian(net, PARAMS, (Z,))
    scale = float(a.square().sum())
    for other, right in ((None, a), (Z, b)):
        full = torch.einsum("ikp,jlp->ijkl", a, right)
        close(Q.empirical_ntk(net, PARAMS, X, other, **options), full, scale, "full", EXACT)
        trace = full.diagonal(dim1=2, dim2=3).mean(-1)
        close(Q.empirical_ntk(net, PARAMS, X, other, kind="trace", **options), trace, scale, "trace", EXACT)
        pseudo = full.sum((2, 3)) / 3
        close(Q.empirical_ntk(net, PARAMS, X, other, kind="pseudo", **options), pseudo, scale, "pseudo", EXACT)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_empirical_ntk(options):
    check_ntk(**options)


def check_blocks(name="a convolution", size=3):
    """Blocks on and above the diagonal, put together, are the Gram matrix; between batches all of them."""
    rows, _ = rows_of(name)
    whole = flat(rows)
    for engine in ("factored", "factored, in chunks"):
        g = value(name, engine)
        for other, right in ((None, whole), (g.select([1, 0]), whole[[1, 0]])):
            got = torch.full((len(whole), len(right)), torch.nan, dtype=F64)
            for block in Q.gram_blocks(g, other, block_size=size):
                assert max(block.values.shape) <= size
                assert bool(got[block.rows, block.columns].isnan().all())
                got[block.rows, block.columns] = block.values
                if other is None:
                    got[block.columns, block.rows] = block.values.T
            close(got, whole @ right.T, float(whole.square().sum()), "blocks", EXACT)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_blocks_are_the_gram_matrix(size):
    check_blocks(size=size)


def test_the_ntk_of_what_fits_nowhere_block_by_block():
    g = Q.output_grads(net, PARAMS, X, chunk_size=1)
    full = Q.empirical_ntk(net, PARAMS, X)
    for rows, columns, values in Q.gram_blocks(g, block_size=3):
        close(values, full[rows.start // 3, columns.start // 3], float(full.abs().max()), "block", EXACT)


def check_bounded(block_size=4):
    """Rows that are not kept: Gram matrices, output kernels and duplicates hold fewer bytes than those of all."""
    n, wide = 24, draw(3, 4096)
    x, params = draw(n, 4096, seed=1), {"w": wide}
    net = lambda p, x: torch.tanh(p["w"] @ x)  # noqa: E731
    options = {"engine": "vmap", "chunk_size": block_size}
    g = gf.per_sample_grads(lambda p, x: net(p, x).sum(), **options)(params, x)
    of_outputs = Q.output_grads(net, params, x[: n // 3], **options)
    held = 8 * n * wide.numel()
    for what in (
        lambda: [block.values for block in Q.gram_blocks(g, block_size=block_size)],
        lambda: [block.values for block in Q.gram_blocks(of_outputs, block_size=block_size)],
        lambda: Q.near_duplicates(g, block_size=block_size),
    ):
        assert gf.bench.peak_bytes(what) < held


@pytest.mark.slow
def test_blocks_hold_a_few_rows():
    check_bounded()
    with pytest.raises(AssertionError):  # in one block, rows of all samples are there at once
        check_bounded(24)


def token_losses(p, ids, y):
    hidden = torch.cumsum(F.embedding(ids, p["table"]), 0)  # a token's loss reads all before it
    return F.cross_entropy(F.linear(torch.tanh(hidden), p["head"]), y, reduction="none")


def check_tokens(**options):
    params = {"table": draw(7, 4), "head": draw(7, 4, seed=1)}
    ids = torch.tensor([[0, 1, 1, 6], [2, 2, 2, 2], [5, 4, 3, 0]])
    batch = (ids, ids.roll(1, 1))
    want = jacobian(token_losses, params, batch).norm(dim=2)
    close(Q.token_norms(token_losses, params, batch, **options), want, want, "norms of tokens", EXACT)
    named = Q.token_norms(token_losses, params, {"ids": ids, "y": ids.roll(1, 1)}, **options)
    close(named, want, want, "norms of tokens by keywords", EXACT)


@pytest.mark.parametrize("options", OPTIONS)
def test_norms_of_tokens(options):
    check_tokens(**options)


def check_duplicates(block_size=2):
    """Pairs by a double loop; copies are found, also under another weight, opposite ones are not."""
    base = draw(5, 6)
    matrix = torch.stack([base[0], base[1], 3 * base[0], -base[1], torch.zeros(6, dtype=F64), base[1]])
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.zeros(6, dtype=F64)}, matrix)
    found = Q.near_duplicates(g, threshold=0.999, block_size=block_size)
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(0, 2), (1, 5)}
    close(found.cosine, torch.ones(2, dtype=F64), 1.0, "cosines", EXACT)
    other = g.select([5, 3])
    found = Q.near_duplicates(g, other, threshold=0.999, block_size=block_size)
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(1, 0), (5, 0), (3, 1)}
    every = Q.near_duplicates(g, threshold=-1.0, block_size=block_size)
    assert len(every.pairs) == 15
    assert bool((every.cosine.diff() <= 0).all())


@pytest.mark.parametrize("block_size", [1, 2, 4, 100])
def test_duplicates(block_size):
    check_duplicates(block_size)


def check_el2n():
    logits, labels = draw(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    rows = jacobian(lambda p, y: F.cross_entropy(p["z"], y)[None], {"z": logits[0]}, (labels[:1],))
    close(Q.el2n(logits[:1], labels[:1]), rows.norm(dim=2)[:, 0], 1.0, "the gradient by logits", EXACT)
    error = logits.softmax(1) - torch.eye(4, dtype=F64)[labels]
    close(Q.el2n(logits, labels), error.norm(dim=1), 1.0, "EL2N", EXACT)
    other = (draw(6, 4, seed=1).softmax(1) - torch.eye(4, dtype=F64)[labels]).norm(dim=1)
    mean = Q.el2n([logits, draw(6, 4, seed=1)], labels)
    close(mean, (error.norm(dim=1) + other) / 2, 1.0, "EL2N of two", EXACT)


def test_el2n():
    check_el2n()


def test_grand_averages_models():
    loss, params, batch = CASES["a recurrence"]
    f = gf.per_sample_grads(loss)
    each = [f(params, *batch), f({k: 2 * v for k, v in params.items()}, *batch)]
    close(Q.grand(each), (each[0].norms() + each[1].norms()) / 2, 1e3, "GraNd", EXACT)


def test_directions_of_the_spectrum_carry_the_rank():
    """Rows in a plane have two eigenvalues, whatever their number."""
    matrix = draw(9, 2) @ draw(2, 12, seed=1)
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.zeros(12, dtype=F64)}, matrix)
    found = Q.gradient_spectrum(g)
    assert found.values.shape == (2,)
    assert 1 <= float(found.effective_rank) <= 2
    one = Q.gradient_spectrum(g.select([0, 0, 0]))  # no spread at all
    assert one.values.shape == (0,)


def test_what_is_refused():
    g = value("a recurrence")
    with pytest.raises(ValueError, match="got block_size=0; expected an int >= 1"):
        Q.gram_blocks(g, block_size=0)
    with pytest.raises(TypeError, match="got a Tensor as other; expected per-sample gradients"):
        Q.cosine_similarity(g, torch.ones(2))
    with pytest.raises(TypeError, match="got threshold='all'; expected a number"):
        Q.near_duplicates(g, threshold="all")
    with pytest.raises(ValueError, match="got kind='mean'; expected kind to be one of 'full', 'trace', 'pseudo'"):
        Q.empirical_ntk(net, PARAMS, X, kind="mean")
    with pytest.raises(ValueError, match="got batched=True; expected a function of one sample"):
        Q.output_grads(net, PARAMS, X, batched=True)
    with pytest.raises(TypeError, match="got int from outputs; expected a floating tensor, not empty"):
        Q.output_grads(lambda p, x: 3, PARAMS, X)
    with pytest.raises(ValueError, match="got labels from 0 to 4; expected classes 0 to 3"):
        Q.el2n(draw(2, 4), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"got logits of shape \(2, 4\) and labels of shape \(3,\)"):
        Q.el2n(draw(2, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match=r"expected a tensor \[B\] of classes"):
        Q.el2n(draw(2, 4), draw(2))
    with pytest.raises(ValueError, match="got an empty list; expected at least one"):
        Q.grand([])
    with pytest.raises(ValueError, match=r"got batches of \[4, 2\] samples; expected the same samples"):
        Q.grand([g, g.select([0, 1])])


def unordered(each, count):
    return gf.concatenate(each)


def lower_too(g, right, size):
    for start in range(0, g.batch_size, size):
        rows = slice(start, min(start + size, g.batch_size))
        for first in range(0, right.batch_size, size):
            columns = slice(first, min(first + size, right.batch_size))
            yield _kernels.GramBlock(rows, columns, g.select(rows).gram(right.select(columns)))


def untransposed(g, right, size):
    for block in blocks(g, right, size):
        yield block._replace(values=block.values.T if block.values.shape[0] == block.values.shape[1] else block.values)


def first_only(call, outputs, part, *rest):
    return by_output(call, outputs, lambda out, k: out[0], *rest)


def unsigned(gram, left, right):
    return cosines(gram, left, right).abs()


blocks, by_output, cosines = _kernels._blocks, _kernels.by_output, _similarity._cosines
MUTANTS = {
    "rows by output": (_kernels, "interleaved", unordered, check_jacobian),
    "rows by output, in the kernel": (_kernels, "interleaved", unordered, check_ntk),
    "blocks twice": (_kernels, "_blocks", lower_too, check_duplicates),
    "blocks transposed": (_kernels, "_blocks", untransposed, lambda: check_blocks(size=2)),
    "the first output alone": (_kernels, "by_output", first_only, check_ntk),
    "the first token alone": (_tokens, "by_output", first_only, check_tokens),
    "opposite ones are alike": (_similarity, "_cosines", unsigned, check_duplicates),
    "a sum for the root": (_kernels, "_pseudo", lambda out: out.sum(), check_ntk),
    "no label": (torch.Tensor, "softmax", lambda t, dim: torch.zeros_like(t), check_el2n),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    owner, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(owner, attribute, mistake)
    with pytest.raises(AssertionError):
        law()
