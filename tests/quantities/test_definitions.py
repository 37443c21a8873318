"""Every quantity of rows is its definition on materialised gradients: on each engine, in chunks, on the zoo."""

from __future__ import annotations

import pytest
import torch
from oracle import close
from quantity_cases import CASES, ENGINES, EXACT, F64, LAWS, check_moments, check_turned, draw, rows_of, value
from tiers import every
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo.problems import MODES, looped, posed

import gradfunc as gf
from gradfunc._factors import Outer, Rows
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc._zoo import MODELS
from gradfunc.quantities import _entries, _kernels, _moments, _similarity, _spectrum

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

# What torch.func cannot run has no other mode; of what it runs as scans, neither has the engine of its own name.
RUNS = [(k, mode) for k, model in MODELS.items() for mode in MODES if mode == "native" or model.vmap or model.scanned]
RUNS += [(k, "the vmap engine") for k, model in MODELS.items() if model.vmap or model.scanned]

# What torch differentiates once.
ONCE = {
    "embedding bag, sum",
    "embedding bag, mean",
    "embedding bag, max",
    "embedding bag, weights a token, padding_idx",
    "distances to learned centres",
}

FACTORED = [(name, "factored") for name in CASES]
OTHERS = [(name, engine) for engine in ENGINES if engine != "factored" for name in CASES]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("name", "engine"), every(1, FACTORED) + every(3, OTHERS))
def test_a_quantity_is_its_definition(name, engine, law, device):
    rows, weights = rows_of(name)
    LAWS[law](value(name, engine, device), {k: v.to(device) for k, v in rows.items()}, weights.to(device))


@pytest.mark.parametrize(("name", "mode"), every(28, RUNS))
def test_quantities_on_the_zoo(name, mode):
    other = mode == "the vmap engine"
    g, want = posed(name).rows("vmap", engine="vmap") if other else posed(name).rows(mode), looped(name)
    if not bool((torch.cat([v.flatten() for v in want.rows.values()]) != 0).any()):
        pytest.skip("all of its gradients are 0, and so are no ratios")
    rows = {key: want.rows[key] for key in g.names}
    for law in LAWS.values():
        law(g, rows, g.weights)  # weights of the zoo are the losses' own and no gradients


@pytest.mark.parametrize("name", every(23, MODELS))
def test_corrected_kronecker_factors_on_the_zoo(name):
    """Whatever the layers are: the blocks that have factors, in their eigenvectors, and the diagonals of the others."""
    model, want = posed(name), looped(name)
    found = gf.quantities.corrected_kronecker_factors(
        model.losses.rows, model.params, model.losses.tensors, batched=True
    )
    check_turned(found, {key: want.rows[key] for key in found.shapes}, model.rows("native").weights)


def check_hessian(model):
    leaves = {key: value.detach().clone().requires_grad_() for key, value in model.params.items()}
    losses = model.losses.rows(leaves, *model.losses.tensors)
    mean = losses.numerator.sum() / losses.weight.sum()
    first = torch.autograd.grad(mean, list(leaves.values()), create_graph=True, allow_unused=True)
    v = {key: draw(*value.shape, seed=6) for key, value in leaves.items()}
    along = sum((g * v[key]).sum() for key, g in zip(leaves, first, strict=True) if g is not None)
    second = [None] * len(leaves)
    if along.requires_grad:
        second = torch.autograd.grad(along, list(leaves.values()), allow_unused=True)
    want = [torch.zeros_like(x) if h is None else h for h, x in zip(second, leaves.values(), strict=True)]
    found = gf.quantities.hessian_product(model.losses.rows, model.params, model.losses.tensors, batched=True)(v)
    scale = sum(float(h.norm()) for h in want) + float(torch.stack([x.norm() for x in v.values()]).norm())
    for key, true in zip(leaves, want, strict=True):
        close(found[key], true, scale, f"Hessian product of {key}", EXACT)


@pytest.mark.parametrize("name", every(23, MODELS))
def test_hessian_products_on_the_zoo(name):
    """Against torch's own double backward pass of the mean loss; of attention by its formula, which alone has one."""
    with sdpa_kernel(SDPBackend.MATH):
        if name in ONCE:
            with pytest.raises((NotImplementedError, RuntimeError), match="not implemented"):
                check_hessian(posed(name))
        else:
            check_hessian(posed(name))


def test_both_ways_to_sums_of_squares_are_taken():
    """Products of squares where rows are one product, blocks elsewhere; neither forms all rows of a product."""
    rows = value("class weights, an ignored sample")._source.rows(slice(0, 7)).grads
    assert _entries._is_product(rows["one.weight"])
    assert isinstance(rows["one.weight"].factors[0], Outer)
    assert not _entries._is_product(rows["one.bias"])


def formed(self):
    raise AssertionError("rows of a product were formed")


def test_embeddings_are_read_where_they_are_in_use(monkeypatch):
    g = value("an embedding")
    assert _entries._is_table(g._source.rows(slice(0, 5)).grads["table"])
    for block in (2**20, 1):
        monkeypatch.setattr(_entries, "BLOCK", block)
        check_moments(g, *rows_of("an embedding"))
    monkeypatch.setattr(Rows, "dense", formed)
    gf.quantities.variance(g)
    gf.quantities.second_moment(g)
    with pytest.raises(AssertionError, match="rows of a product were formed"):
        g.materialize()


def test_products_of_squares_form_no_rows(monkeypatch):

    g = value("class weights, an ignored sample")
    want = gf.quantities.variance(g)
    monkeypatch.setattr(Outer, "dense", formed)
    assert torch.equal(gf.quantities.variance(g)["one.weight"], want["one.weight"])
    with pytest.raises(AssertionError, match="rows of a product were formed"):
        gf.quantities.variance(value("a recurrence"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_squares_of_low_precision_are_taken_in_float64(dtype):
    """Against exact rows of the same halves: what is lost is rounding of float64, not of the halves' own dtype."""
    loss, params, (x, y) = CASES["class weights, an ignored sample"]
    low = {k: v.to(dtype) for k, v in params.items()}
    g = gf.per_sample_grads(loss, engine="factored", verify=False)(low, x.to(dtype), y)
    factor = g._source.rows(slice(0, 7)).grads["one.weight"].factors[0]
    w = g.weights.double()
    used = w > 0
    rows = (factor.g[used].double().mT @ factor.x[used].double()) / w[used][:, None, None]  # exact: 48 bits at most
    p = w[used] / w[used].sum()
    mean, second = torch.tensordot(p, rows, 1), torch.tensordot(p, rows.square(), 1)
    want = torch.tensordot(p, (rows - mean).square(), 1) / (1 - p.square().sum())
    # n products and sums a few times over, on the scale of the mean square over 1 - q.
    bound = 10 * gamma(7 + 10, unit_roundoff(F64)) * float(second.max()) / float(1 - p.square().sum())
    assert float((gf.quantities.variance(g)["one.weight"] - want).abs().max()) <= bound
    assert float((gf.quantities.second_moment(g)["one.weight"] - second).abs().max()) <= bound


def test_blocks_merge(monkeypatch):
    """Rows of which one at a time is formed."""
    monkeypatch.setattr(_entries, "BLOCK", 1)
    for name in CASES:
        check_moments(value(name), *rows_of(name))


def test_clipped_and_masked_rows_are_what_is_asked():
    g = value("a recurrence")
    c = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=F64)
    rows, weights = rows_of("a recurrence")
    shaped = {k: v * c.reshape(-1, *[1] * (v.dim() - 1)) for k, v in rows.items()}
    for law in LAWS.values():
        law(g.scaled(c), shaped, weights)
        law(g.weighted(c), shaped, weights * c)


def test_a_sample_of_weight_0_may_be_nan():
    loss, params, (x, y) = CASES["class weights, an ignored sample"]
    broken = x.clone()
    broken[3] = torch.nan  # the ignored one
    g = gf.per_sample_grads(loss, verify=False)(params, broken, y)
    want = gf.quantities.variance(value("class weights, an ignored sample"))
    for name, found in gf.quantities.variance(g).items():
        assert torch.equal(found, want[name])
    assert all(bool(v.isfinite().all()) for v in gf.quantities.second_moment(g).values())


def unmerged(a, b):
    part = merged(a, b)
    return part._replace(spread=a.spread + b.spread)


def by_count(g):
    return (g.weights > 0).double() / float((g.weights > 0).sum())


merged = _entries.merged


def uncounted(gradient, c, w):
    return ((at, rows, torch.ones_like(own)) for at, rows, own in columns(gradient, c, w))


def check_weighted_embedding():
    c = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0], dtype=F64)
    rows, weights = rows_of("an embedding")
    shaped = {k: v * c.reshape(-1, *[1] * (v.dim() - 1)) for k, v in rows.items()}
    check_moments(value("an embedding").weighted(c), shaped, weights * c)


def test_a_planted_mistake_in_embeddings_is_noticed(monkeypatch):
    check_weighted_embedding()
    monkeypatch.setattr(_entries, "_columns", uncounted)
    with pytest.raises(AssertionError):
        check_weighted_embedding()


def shifted(g, right, size):
    for block in blocks(g, right, size):
        yield block._replace(values=block.values.flip(0))


columns, blocks, trak = _entries._columns, _kernels._blocks, gf.quantities.trak
MUTANTS = {
    "means of parts do not move the spread": (_entries, "merged", unmerged, "a convolution", "moments"),
    "weights not taken out of rows": (_entries, "per_unit", lambda g: torch.ones(7, dtype=F64), "class", "moments"),
    "weights not taken out of norms": (_moments, "per_unit", lambda g: torch.ones(7, dtype=F64), "class", "moments"),
    "every sample counts alike": (_spectrum, "shares", by_count, "class", "spectrum"),
    "other samples": (gf.quantities, "grad_dot", lambda a, b: a.gram(b).flip(0), "a rec", "influence"),
    "twice the damping of TRAK": (
        gf.quantities,
        "trak",
        lambda phi, psi, damping: trak(phi, psi, damping=2 * damping),
        "class",
        "influence",
    ),
    "the next block of samples": (_kernels, "_blocks", shifted, "class", "influence"),
    "squares of norms": (_similarity, "square_of", lambda v: sum(t.norm() for t in v.values()), "a rec", "similarity"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_mistake_is_noticed(mutant, monkeypatch):
    module, attribute, mistake, case, law = MUTANTS[mutant]
    name = next(name for name in CASES if name.startswith(case))
    monkeypatch.setattr(_entries, "BLOCK", 1)
    LAWS[law](value(name), *rows_of(name))
    monkeypatch.setattr(module, attribute, mistake)
    with pytest.raises(AssertionError):
        LAWS[law](value(name), *rows_of(name))
