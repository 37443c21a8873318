"""Values made from values (`select`, `split`, `scaled`, `weighted`, `gf.concatenate`) against the oracle's rows."""

from __future__ import annotations

import pytest
import torch
from oracle import Truth, check_queries, same_bits, storages, truth, truth_batched

import gradfunc as gf

F64 = torch.float64
B = 6
# kind -> options
KINDS = {
    "kept": {"engine": "vmap", "chunk_size": None},
    "streamed": {"engine": "vmap", "chunk_size": 4},
    "factors": {"engine": "factored", "chunk_size": None},
    "factors, streamed": {"engine": "factored", "chunk_size": 4},
    "looped": {"engine": "loop", "chunk_size": 1},
    "batched": {"engine": "vmap", "chunk_size": None, "batched": True},
    "batched, streamed": {"engine": "vmap", "chunk_size": 2, "batched": True},
    "batched, factors": {"engine": "factored", "chunk_size": None, "batched": True},
}
SOME_KINDS = ["kept", "factors, streamed", "looped", "batched, streamed"]


def loss(p, x, y):
    out = torch.tanh(x @ p["w"]) @ p["v"] + 0 * p["idle"].sum()
    return gf.Weighted((out - y).square().sum() * (1 + x[0].abs()), 1 + x[0].abs())


def losses(p, x, y):
    out = torch.tanh(x @ p["w"]) @ p["v"]
    scale = 1 + x[:, 0].abs()
    return gf.Weighted((out - y).square().sum(1) * scale * out.mean(), scale)  # coupled: out.mean() is of all


def problem(device="cpu"):
    generator = torch.Generator().manual_seed(3)
    shapes = {"w": (3, 4), "v": (4, 2), "idle": (2,)}
    params = {k: torch.randn(s, generator=generator, dtype=F64).to(device) for k, s in shapes.items()}
    batch = tuple(torch.randn(B, n, generator=generator, dtype=F64).to(device) for n in (3, 2))
    return params, batch


def given(kind, device="cpu"):
    """A value of this kind, and its true rows."""
    params, batch = problem(device)
    if "batched" in KINDS[kind]:
        return gf.per_sample_grads(losses, **KINDS[kind])(params, *batch), truth_batched(losses, params, batch)
    return gf.per_sample_grads(loss, **KINDS[kind])(params, *batch), truth(loss, params, B, batch)


def taken(want: Truth, index) -> Truth:
    return Truth({k: v[index] for k, v in want.rows.items()}, want.losses[index], want.weights[index])


def times(want: Truth, c, weights=False) -> Truth:
    rows = {k: v * c.reshape(-1, *[1] * (v.dim() - 1)) for k, v in want.rows.items()}
    return Truth(rows, want.losses * c, want.weights * c if weights else want.weights)


INDICES = {
    "some": [4, 0, 3],
    "repeated, from the end": [-1, 2, 2, -6],
    "one": torch.tensor([5]),
    "mask": torch.tensor([True, False, True, True, False, False]),
    "list of bools": [False, True, False, False, False, True],
    "slice": slice(1, 5),
    "slice backwards": slice(None, None, -2),
    "range": range(0, 6, 2),
    "all": torch.arange(6),
    "int32": torch.tensor([3, 1], dtype=torch.int32),
    "none": [],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", INDICES)
def test_select(kind, name, device):
    g, want = given(kind, device)
    index = INDICES[name]
    chosen = torch.arange(B)[index] if not isinstance(index, slice) else torch.tensor(range(B)[index])
    check_queries(g.select(index), taken(want, chosen.long() if len(chosen) else torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize("kind", KINDS)
def test_selecting_twice(kind, device):
    g, want = given(kind, device)
    check_queries(g.select([5, 1, 3, 0]).select([2, -1]), taken(want, torch.tensor([3, 0])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 6, 9))])
def test_split_and_concatenate_are_inverse(kind, size, device):
    g, want = given(kind, device)
    parts = g.split(size)
    assert [part.batch_size for part in parts] == [len(t) for t in torch.arange(B).split(size)]
    for part, index in zip(parts, torch.arange(B).split(size), strict=True):
        check_queries(part, taken(want, index))
    check_queries(gf.concatenate(parts), want)
    check_queries(gf.concatenate(parts[::-1]), taken(want, torch.cat(torch.arange(B).split(size)[::-1])))


@pytest.mark.parametrize("kinds", [SOME_KINDS, pytest.param(list(KINDS), marks=pytest.mark.slow)], ids=["some", "all"])
def test_concatenate_values_of_different_kinds(kinds, device):
    parts = [given(kind, device) for kind in kinds]
    whole = Truth(
        {k: torch.cat([want.rows[k] for _, want in parts]) for k in parts[0][1].rows},
        torch.cat([want.losses for _, want in parts]),
        torch.cat([want.weights for _, want in parts]),
    )
    joined = gf.concatenate([g for g, _ in parts])
    check_queries(joined, whole)
    assert joined.engine == "vmap, factored, loop"
    index = torch.randperm(len(whole.losses), generator=torch.Generator().manual_seed(0))
    check_queries(joined.select(index), taken(whole, index))
    check_queries(joined.select(index[:7]).weighted(torch.ones(7)), taken(whole, index[:7]))


def check_scaled(kind, device="cpu"):
    g, want = given(kind, device)
    c = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, 1e-3], dtype=F64, device=device)
    check_queries(g.scaled(c), times(want, c))
    check_queries(g.scaled(c).scaled(c), times(times(want, c), c))
    check_queries(g.scaled(c).select([4, 2, 1]), taken(times(want, c), torch.tensor([4, 2, 1])))
    assert torch.equal(g.scaled(c).weights, g.weights)


def check_weighted(kind, device="cpu"):
    g, want = given(kind, device)
    c = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0, 1e-3], dtype=F64, device=device)
    check_queries(g.weighted(c), times(want, c, weights=True))
    check_queries(
        gf.concatenate([g.weighted(c), g]).select(slice(3, 9)), taken(joined(times(want, c, True), want), slice(3, 9))
    )


def joined(a: Truth, b: Truth) -> Truth:
    return Truth(
        {k: torch.cat([a.rows[k], b.rows[k]]) for k in a.rows},
        torch.cat([a.losses, b.losses]),
        torch.cat([a.weights, b.weights]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_scaled(kind, device):
    check_scaled(kind, device)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted(kind, device):
    check_weighted(kind, device)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_a_selection(kind):
    """Weights 0 leave samples out of sum, mean and mean_loss, as selecting the others does."""
    g, want = given(kind)
    mask = torch.tensor([True, True, False, True, False, True])
    masked, chosen = g.weighted(mask), g.select(mask)
    left = taken(want, mask)
    assert torch.allclose(masked.mean_loss, chosen.mean_loss, rtol=1e-14)
    for name, value in chosen.mean().items():
        scale = left.rows[name].norm() + 1
        assert bool(((masked.mean()[name] - value).abs() <= 1e-12 * scale).all())


def check_zeros_mask_nan(chunk_size=None):
    def bad(p, x):
        return (p["w"] * x).sum()

    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 4.0]])
    g = gf.per_sample_grads(bad, chunk_size=chunk_size)({"w": torch.ones(2)}, x)
    c = torch.tensor([1.0, 0.0, 2.0])
    for masked in (g.scaled(c), g.weighted(c)):
        assert torch.equal(masked.losses, torch.tensor([3.0, 0.0, 14.0]))
        assert torch.equal(masked.materialize()["w"], torch.tensor([[1.0, 2.0], [0.0, 0.0], [6.0, 8.0]]))
        assert torch.equal(masked.sum()["w"], torch.tensor([7.0, 10.0]))
        assert torch.equal(masked.norms()[1], torch.tensor(0.0))
        assert torch.equal(masked.norms(per_parameter=True)["w"][1], torch.tensor(0.0))
        assert torch.equal(masked.dot({"w": torch.ones(2)}), torch.tensor([3.0, 0.0, 14.0]))
        assert torch.equal(masked.gram(), torch.tensor([[5.0, 0.0, 22.0], [0.0, 0.0, 0.0], [22.0, 0.0, 100.0]]))
        assert torch.equal(masked.weighted_sum(torch.ones(3))["w"], torch.tensor([7.0, 10.0]))
    assert torch.equal(g.weighted(c).weights, c)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_a_zero_leaves_out_what_is_not_finite(chunk_size):
    check_zeros_mask_nan(chunk_size)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_shared_between_values(kind):
    g, _ = given(kind)
    before = g.materialize(), g.losses
    other = g.select(slice(0, 3)).scaled(torch.ones(3))
    for tensor in (*other.materialize().values(), other.losses, other.weights, *other.sum().values()):
        tensor.fill_(7.0)
    assert same_bits((g.materialize(), g.losses), before)
    assert not storages(other.materialize()) & storages(g.materialize())


@pytest.mark.parametrize("kind", KINDS)
def test_unused_of_a_derived_value(kind):
    g, _ = given(kind)
    idle = ("idle",) if "batched" in kind else ()
    assert g.select([1, 3]).unused == idle
    assert gf.concatenate([g, g.select([0])]).unused == idle


def test_unused_is_asked_of_the_selected_samples():
    def branches(p, x):
        return (p["a"] * x).sum() if bool(x.sum() > 0) else (p["b"] * x).sum()

    params, x = {"a": torch.ones(2), "b": torch.ones(2)}, torch.tensor([[1.0, 1.0], [-1.0, -1.0], [2.0, 0.0]])
    for chunk in (None, 1):
        g = gf.per_sample_grads(branches, engine="loop", chunk_size=chunk)(params, x)
        assert g.unused == ()
        assert g.select([0, 2]).unused == ("b",)
        assert g.select([1]).unused == ("a",)
        assert gf.concatenate(g.split(1)[::2]).unused == ("b",)


def test_a_selection_of_a_streamed_value_computes_its_samples_only():
    calls = []

    def counted(p, x):
        calls.append(1)
        return (p["w"] * x).sum()

    g = gf.per_sample_grads(counted, engine="loop", chunk_size=2)({"w": torch.ones(2)}, torch.ones(6, 2))
    calls.clear()
    g.select([5, 0, 3]).norms()
    assert len(calls) == 3


def test_a_selection_is_stale_when_its_batch_is():
    x = torch.ones(4, 2)
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), chunk_size=1)({"w": torch.ones(2)}, x)
    chosen, whole = g.select([1]), gf.concatenate([g, g])
    x.add_(1)
    for stale in (chosen, whole, g.scaled(torch.ones(4))):
        with pytest.raises(RuntimeError, match="changed in place"):
            stale.norms()


def some():
    return gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(2)}, torch.ones(3, 2))


def ordered(*names, dtype=torch.float32):
    params = {name: torch.ones(2, dtype=dtype) for name in names}
    return gf.per_sample_grads(lambda p, x: (p["a"] * x).sum())(params, torch.ones(3, 2, dtype=dtype))


def narrow():
    return gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(1)}, torch.ones(2, 1))


def other():
    return gf.per_sample_grads(lambda p, x: (p["v"] * x).sum())({"v": torch.ones(2)}, torch.ones(3, 2))


def test_joining_again_and_again_stays_flat():
    acc = one = some()
    for _ in range(600):
        acc = gf.concatenate([acc, one])
    assert acc.norms().shape == (1803,)


BAD = {
    "gram: other shapes": (
        lambda: some().gram(
            gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(1)}, torch.ones(2, 1))
        ),
        ValueError,
        r"\{'w': \(1,\)\}.*\{'w': \(2,\)\}",
    ),
    "select: an int": (lambda: some().select(1), TypeError, r"g\.select\(index\): got an? int"),
    "select: floats": (lambda: some().select(torch.ones(2)), TypeError, "dtype torch.float32"),
    "select: two dimensions": (lambda: some().select([[0, 1]]), TypeError, r"shape \(1, 2\)"),
    "select: beyond": (lambda: some().select([0, 3]), IndexError, "position 3.*batch of 3"),
    "select: before": (lambda: some().select([-4]), IndexError, "position -4"),
    "select: short mask": (lambda: some().select([True, False]), IndexError, "a mask of 2 samples.*one of 3"),
    "split: zero": (lambda: some().split(0), ValueError, "a positive int"),
    "split: a bool": (lambda: some().split(True), ValueError, "a positive int"),
    "scaled: a list": (lambda: some().scaled([1, 1, 1]), TypeError, r"g\.scaled\(c\): got a list"),
    "scaled: another size": (lambda: some().scaled(torch.ones(2)), ValueError, r"c of shape \(2,\).*\[3\]"),
    "scaled: a scalar": (lambda: some().scaled(torch.ones(())), ValueError, r"c of shape \(\)"),
    "scaled: NaN": (lambda: some().scaled(torch.tensor([1, 1, torch.nan])), ValueError, "coefficient nan for sample 2"),
    "weighted: negative": (
        lambda: some().weighted(torch.tensor([1, -1, 1])),
        ValueError,
        "coefficient -1.0 for sample 1",
    ),
    "weighted: inf": (lambda: some().weighted(torch.tensor([torch.inf, 1, 1])), ValueError, "coefficient inf"),
    "concatenate: one value": (lambda: gf.concatenate(some()), TypeError, "a list of per-sample gradients"),
    "concatenate: another order": (
        lambda: gf.concatenate([ordered("a", "b"), ordered("b", "a")]),
        ValueError,
        "the same order",
    ),
    "concatenate: another precision": (
        lambda: gf.concatenate([ordered("a"), ordered("a", dtype=F64)]),
        ValueError,
        "torch.float64.*torch.float32",
    ),
    "concatenate: nothing": (lambda: gf.concatenate([]), ValueError, "an empty list"),
    "concatenate: tensors": (lambda: gf.concatenate([torch.ones(3)]), TypeError, "in the list"),
    "concatenate: other parameters": (
        lambda: gf.concatenate([some(), other()]),
        ValueError,
        r"'v': \(2,\).*'w': \(2,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_told_what_is_wrong(name):
    bad, error, text = BAD[name]
    with pytest.raises(error, match=text):
        bad()
