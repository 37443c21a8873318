"""Reductions otherwise than by a sum, against numpy on materialised rows, and the laws that they keep."""

from __future__ import annotations

import dataclasses
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import close, flat, same_bits
from problem import F64, KINDS, plain, ran, rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradfunc as gf
from gradfunc._transform._reductions import _entries, _geometric, _per_unit

ROBUST = {
    "median": gf.median,
    "trimmed_mean": lambda **options: gf.trimmed_mean(0.25, **options),
    "geometric_median": lambda **options: gf.geometric_median(tolerance=1e-13, max_iterations=2000, **options),
    "sign_vote": gf.sign_vote,
    "from_gram": lambda **options: gf.from_gram(gf.weightings.mean(), **options),
}


def reduced(stage, matrix, weights=None, **options):
    """The result as one vector."""
    g, params = plain(matrix, weights, **options)
    out, _ = stage.update(g, stage.init(params), params)
    assert all(out[name].dtype == params[name].dtype for name in params)
    return torch.cat([value.flatten() for value in out.values()])


def numbers(seed, n, entries=5, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, entries, generator=generator, dtype=F64) * spread


def distance(z, matrix):
    return float((z - matrix).norm(dim=1).sum())


# --- against the definitions -----------------------------------------------------------------------


def check_median(seed=0):
    for n in (1, 2, 3, 6, 7):
        matrix = numbers(seed, n)
        assert reduced(gf.median(), matrix).tolist() == np.median(matrix.numpy(), axis=0).tolist()


def check_trimmed_mean(seed=0):
    for n in (1, 2, 5, 9, 100):
        for trim, decimal in ((0.0, (0, 1)), (0.1, (1, 10)), (0.29, (29, 100)), (0.49, (49, 100))):
            matrix = numbers(seed, n)
            cut = decimal[0] * n // decimal[1]
            want = np.sort(matrix.numpy(), axis=0)[cut : n - cut].mean(0)
            close(reduced(gf.trimmed_mean(trim), matrix), torch.tensor(want), matrix.abs().amax(0), f"{trim} of {n}")


def check_sign_vote():
    matrix = torch.tensor([[1e9, -1.0, 0.0, 0.0], [-1e-9, -1.0, 0.0, 2.0], [1.0, -1e9, 0.0, -3.0]])
    assert reduced(gf.sign_vote(), matrix).tolist() == [1.0, -1.0, 0.0, 0.0]
    for seed in range(5):
        matrix = numbers(seed, 8).round()
        assert reduced(gf.sign_vote(), matrix).tolist() == np.sign(np.sign(matrix.numpy()).sum(0)).tolist()


def check_geometric_median():
    """The slope of the sum of distances is 0 at the result; on a line it is the median."""
    for seed in range(8):
        matrix = numbers(seed, 5 + seed % 4, spread=10.0 ** (seed - 3))
        z = reduced(gf.geometric_median(tolerance=1e-12, max_iterations=5000), matrix)
        away = z - matrix
        if float(away.norm(dim=1).min()) > 1e-3 * float(matrix.norm(dim=1).max()):
            slope = (away / away.norm(dim=1, keepdim=True)).mean(0)
            assert float(slope.norm()) < 1e-9
        generator = torch.Generator().manual_seed(seed)
        for size in (1e-3, 1e-1, 1.0):
            step = torch.randn(5, generator=generator, dtype=F64) * matrix.norm(dim=1).max() * size
            assert distance(z, matrix) <= distance(z + step, matrix)
    line = torch.tensor([[-3.0], [0.0], [1.0], [2.0], [50.0]], dtype=F64) * torch.tensor([1.0, 2.0], dtype=F64)
    close(reduced(gf.geometric_median(), line), line[2], 1.0, "on a line", 1e-5)
    for z in (line[:2], line[:1]):
        close(reduced(gf.geometric_median(), z), z.mean(0), 1.0, "one or two rows", 1e-9)
    most = torch.cat([line[2:3].expand(4, 2), line[:3]])
    close(reduced(gf.geometric_median(), most), line[2], 1.0, "most rows equal", 1e-7)


def check_from_gram():
    """The function sees the Gram matrix of rows over weights, and its numbers multiply these."""
    seen = []

    def weighting(gram):
        seen.append(gram)
        return torch.arange(len(gram)).double() - 1

    matrix, weights = numbers(0, 4), torch.tensor([2.0, 1.0, 0.0, 0.5], dtype=F64)
    unit = (matrix / weights[:, None])[weights > 0]
    got = reduced(gf.from_gram(weighting), matrix, weights)
    close(got, torch.arange(3).double().sub(1) @ unit, unit.norm(dim=1).sum(), "sum")
    close(seen[0], unit @ unit.T, unit.norm(dim=1)[:, None] * unit.norm(dim=1), "gram")


def check_weights(name):
    """The reduction is that of g_i / w_i over samples of weight above 0, one vote each."""
    matrix = numbers(3, 9)
    weights = torch.tensor([1.0, 0.5, 0.0, 20.0, 1.0, 0.0, 3.0, 0.1, 7.0], dtype=F64)
    matrix[2], matrix[5] = torch.inf, torch.nan  # of weight 0: whatever it is
    used = weights > 0
    unit = (matrix / weights[:, None])[used]
    scale = unit.norm(dim=1).max()
    close(reduced(ROBUST[name](), matrix, weights), reduced(ROBUST[name](), unit), scale, name, 1e-9)


ORACLES = {
    "median": check_median,
    "trimmed_mean": check_trimmed_mean,
    "sign_vote": check_sign_vote,
    "geometric_median": check_geometric_median,
    "from_gram": check_from_gram,
}


@pytest.mark.parametrize("name", ORACLES)
def test_against_the_definition(name):
    ORACLES[name]()


@pytest.mark.parametrize("name", ROBUST)
def test_rows_over_their_weights(name):
    check_weights(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("engine", ["vmap", "factored"])
def test_every_kind_of_rows(name, kind, engine):
    """The same as on rows that are given as numbers."""
    g, want = rows(kind, engine=engine)
    unit = flat(want.rows) / want.weights[:, None]
    stage = ROBUST[name]()
    got = torch.cat([value.flatten() for value in ran(stage, g)[0].values()])
    if name == "sign_vote":  # the sign of what rounding leaves is anybody's
        fine = (unit.abs() > 1e-9) | (unit == 0)
        assert torch.equal(got[fine.all(0)], reduced(stage, unit)[fine.all(0)])
    else:
        close(got, reduced(stage, unit), unit.norm(dim=1).max(), name, 1e-9)


# --- laws ------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 10**6)


def check_order(name, seed=5, n=6):
    matrix = numbers(seed, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    exact = name in ("median", "trimmed_mean", "sign_vote")
    a, b = reduced(ROBUST[name](), matrix), reduced(ROBUST[name](), matrix[order])
    if exact:
        assert same_bits(a, b)
    close(a, b, matrix.norm(dim=1).max(), "in another order", 1e-8)


def check_equivariance(name, seed=5, n=6):
    """Moving all rows moves the result, scaling them scales it."""
    matrix, move = numbers(seed, n), numbers(seed + 1, 1)[0]
    first = reduced(ROBUST[name](), matrix)
    scale = (matrix.norm(dim=1) + move.norm()).max()
    close(reduced(ROBUST[name](), 1e3 * matrix), first * (1 if name == "sign_vote" else 1e3), 1e3 * scale, name, 1e-8)
    if name != "sign_vote":
        close(reduced(ROBUST[name](), matrix + move), first + move, scale, name, 1e-7)
    close(reduced(ROBUST[name](), -matrix), -first, scale, name, 1e-8)


@pytest.mark.parametrize("name", ROBUST)
@settings(max_examples=12)
@given(seed=SEEDS, n=st.integers(1, 9))
def test_order_of_samples_does_not_matter(name, seed, n):
    check_order(name, seed, n)


@pytest.mark.parametrize("name", ROBUST)
@settings(max_examples=12)
@given(seed=SEEDS, n=st.sampled_from([1, 2, 3, 5, 7]))
def test_equivariance(name, seed, n):
    check_equivariance(name, seed, n)


def check_breakdown(name):
    """With few rows far away the result stays near the others, wherever they are; the mean does not."""
    matrix = numbers(1, 9)
    bad = 2 if name == "trimmed_mean" else 4
    results = []
    for size in (1e3, 1e6, 1e12, 1e25):
        far = matrix.clone()
        far[:bad] = size * numbers(2, bad).abs()
        results.append(reduced(ROBUST[name](), far))
        assert float(results[-1].norm()) < 10 * float(matrix.norm(dim=1).max())
        assert float(far.mean(0).norm()) > size / 100
    if name == "geometric_median":  # the pull of a far row is its direction alone
        close(results[3], results[1], 1.0, "however far", 1e-4)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median"])
def test_a_few_rows_cannot_move_it_far(name):
    check_breakdown(name)


def check_precision():
    """Half types: the entries are rounded once on the way in and once on the way out."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        u = torch.finfo(dtype).eps / 2
        matrix = numbers(4, 64).to(dtype)
        exact = matrix.double()
        for name, want in {
            "median": np.median(exact.numpy(), axis=0),
            "trimmed_mean": np.sort(exact.numpy(), axis=0)[16:48].mean(0),
        }.items():
            got = reduced(ROBUST[name](), matrix, dtype=dtype)
            # 32 additions and a division in float32, one rounding to the dtype
            error = u + 34 * torch.finfo(torch.float32).eps / 2
            close(got, torch.tensor(want), exact.abs().amax(0), f"{name}, {dtype}", error)


def test_lower_precision():
    check_precision()


def test_numbers_near_overflow_have_a_middle():
    largest = torch.finfo(F64).max
    matrix = torch.tensor([[largest, -largest], [largest, largest]], dtype=F64) * 0.7
    assert _entries._middle(matrix, 0).tolist() == [0.7 * largest, 0.0]


# --- edges -----------------------------------------------------------------------------------------


def check_no_samples(name):
    stage, zeros = ROBUST[name](), ROBUST[name](on_zero_weight="zero")
    for matrix, weights in ((numbers(0, 0), None), (numbers(0, 3), torch.zeros(3, dtype=F64))):
        with pytest.raises(ValueError, match=r"got no samples; expected at least one with weight > 0.*='zero'"):
            reduced(stage, matrix, weights)
        assert reduced(zeros, matrix, weights).tolist() == [0.0] * 5


@pytest.mark.parametrize("name", ROBUST)
def test_no_samples(name):
    check_no_samples(name)


def check_nonfinite(name, value=torch.nan):
    matrix = numbers(2, 6)
    matrix[4, 3] = value
    with pytest.raises(ValueError, match=r"for sample 4 in 'b'; expected finite norms. Pass nonfinite='skip'"):
        reduced(ROBUST[name](), matrix)
    rest = matrix[[0, 1, 2, 3, 5]]
    got = reduced(ROBUST[name](nonfinite="skip"), matrix)
    close(got, reduced(ROBUST[name](), rest), rest.norm(dim=1).max(), name, 1e-9)
    g, _ = plain(matrix)
    _, _, report = ran(ROBUST[name](nonfinite="skip"), g, report=True)
    assert float(report[name]["nonfinite"]) == 1
    assert float(report[name]["samples"]) == 5
    assert not report.ok


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ROBUST)
def test_rows_that_are_not_finite(name, value):
    check_nonfinite(name, value)


@pytest.mark.parametrize("name", ROBUST)
def test_nothing_is_guaranteed_behind_it(name):
    assert (gf.clip_per_sample(1.0) >> ROBUST[name]()).guarantee() == gf._transform.Guarantee()


@pytest.mark.parametrize("name", ROBUST)
def test_purity(name):
    g, params = plain(numbers(1, 6), torch.arange(6.0, dtype=F64))
    before = [v.clone() for v in (g.losses, g.weights, g.materialize()["b"])]
    stage = ROBUST[name]()
    first, _ = stage.update(g, stage.init(params), params)
    again, _ = stage.update(g, stage.init(params), params)
    assert same_bits(first, again)
    assert same_bits(before, [g.losses, g.weights, g.materialize()["b"]])


def test_a_gram_matrix_that_overflows():
    matrix = torch.tensor([[1e20, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"a Gram matrix that overflows, of rows of norm up to 1\.0e\+20"):
        reduced(gf.geometric_median(), matrix, dtype=torch.float32)
    assert reduced(gf.median(), matrix, dtype=torch.float32).tolist() == [float(matrix[0, 0]) / 2, 0.5]


BAD_COEFFICIENTS = {
    "a list": (lambda k: [1.0] * len(k), "got a list from the weighting"),
    "another shape": (lambda k: torch.ones(len(k), 1), r"coefficients of shape \(3, 1\).*shape \[3\]"),
    "NaN": (lambda k: torch.full((len(k),), torch.nan), "not finite"),
}


@pytest.mark.parametrize("name", BAD_COEFFICIENTS)
def test_coefficients_that_are_none(name):
    weighting, match = BAD_COEFFICIENTS[name]
    with pytest.raises(ValueError, match=match):
        reduced(gf.from_gram(weighting), numbers(0, 3))


ARGUMENTS = {
    "trim of one half": (lambda: gf.trimmed_mean(0.5), ValueError, r"trim=0\.5; expected a number in \[0, 0\.5\)"),
    "trim below 0": (lambda: gf.trimmed_mean(-0.1), ValueError, "trim"),
    "trim of a list": (lambda: gf.trimmed_mean([0.1]), TypeError, "trim"),
    "no iterations": (lambda: gf.geometric_median(max_iterations=0), ValueError, "max_iterations=0"),
    "half an iteration": (lambda: gf.geometric_median(max_iterations=1.5), TypeError, "max_iterations"),
    "tolerance below 0": (lambda: gf.geometric_median(tolerance=-1), ValueError, "tolerance"),
    "no smoothing": (lambda: gf.geometric_median(smoothing=0.0), ValueError, "smoothing"),
    "no weighting": (lambda: gf.from_gram(3), TypeError, "got an int; expected a function from the Gram matrix"),
    **{
        f"{name}, {option}": (lambda make=make, option=option: make(**{option: "keep"}), ValueError, option)
        for name, make in ROBUST.items()
        for option in ("nonfinite", "on_zero_weight")
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    make, error, match = ARGUMENTS[name]
    with pytest.raises(error, match=match):
        make()


def test_trim_by_a_schedule():
    stage = gf.trimmed_mean(lambda count: [0.0, 0.25][count])
    matrix = numbers(0, 4)
    g, params = plain(matrix)
    state = stage.init(params)
    first, state = stage.update(g, state, params)
    second, state = stage.update(g, state, params)
    assert same_bits(first, gf.trimmed_mean(0.0).update(g, ())[0])
    assert same_bits(second, gf.trimmed_mean(0.25).update(g, ())[0])
    assert state == {"count": 2}


def test_how_it_reads():
    assert repr(gf.median(nonfinite="skip")) == "median(nonfinite='skip')"
    assert repr(gf.trimmed_mean(0.2)) == "trimmed_mean(0.2)"
    assert repr(gf.sign_vote(on_zero_weight="zero")) == "sign_vote(on_zero_weight='zero')"
    assert repr(gf.geometric_median(tolerance=0.1)) == "geometric_median(tolerance=0.1)"
    assert repr(gf.from_gram(gf.weightings.krum(2))) == "from_gram(krum(2, select=1))"


def test_the_iterations_are_reported():
    g, _ = plain(numbers(0, 6))
    _, _, report = ran(gf.geometric_median(tolerance=1e-3), g, report=True)
    assert 1 <= report["geometric_median"]["iterations"] < 200
    assert report["geometric_median"]["residual"] <= 1e-3
    _, _, report = ran(gf.geometric_median(max_iterations=2, tolerance=0.0), g, report=True)
    assert report["geometric_median"]["iterations"] == 2


# --- what is held ----------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that an operator returned."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


SIZE, WIDTH = 24, 96


def wide_mlp():
    module = torch.nn.Sequential(
        *[torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()],
        torch.nn.Linear(WIDTH, 3),
    )
    model = gf.stateless(module)
    f = gf.per_sample_grads(lambda p, x: model(p, x).square().sum(1), batched=True, engine="factored", verify=False)
    return f(model.params, torch.randn(SIZE, WIDTH))


def entries_held(stage):
    g = wide_mlp()
    with Largest() as seen, torch.no_grad():
        stage.update(g, stage.init({}))
    return seen.entries


def check_nothing_is_materialised():
    """By the Gram matrix: nothing larger than one parameter. By entries: nothing larger than its rows."""
    for weighting in (gf.weightings.mgda(), gf.weightings.aligned_mtl(), gf.weightings.krum(3), gf.weightings.mean()):
        assert entries_held(gf.clip_per_sample(0.5) >> gf.from_gram(weighting)) <= WIDTH * WIDTH
    assert entries_held(gf.geometric_median()) <= WIDTH * WIDTH
    for stage in (gf.median(), gf.trimmed_mean(), gf.sign_vote()):
        assert WIDTH * WIDTH < entries_held(stage) <= SIZE * WIDTH * WIDTH


def test_nothing_is_materialised():
    check_nothing_is_materialised()


def check_one_parameter_at_a_time():
    """Or as many small ones together as have no more entries than the largest."""
    asked, materialize = [], gf.PerSampleGrads.materialize

    def noted(g):
        asked.append(g.names)
        return materialize(g)

    g = wide_mlp()
    with patch.object(gf.PerSampleGrads, "materialize", noted):
        gf.median().update(g, ())
    assert asked == [("0.weight",), ("0.bias",), ("2.weight",), ("2.bias", "4.weight", "4.bias")]


def test_one_parameter_at_a_time():
    check_one_parameter_at_a_time()


def test_a_large_batch_is_sorted_in_blocks(monkeypatch):
    matrix = numbers(0, 7, 30)
    want = reduced(gf.median(), matrix)
    monkeypatch.setattr(_entries, "BLOCK", 16)
    assert same_bits(reduced(gf.median(), matrix), want)


def test_parameters_without_entries():
    params = {"w": torch.ones(2), "none": torch.ones(0, 3)}
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum() + p["none"].sum())(params, torch.ones(3, 2))
    for make in ROBUST.values():
        assert ran(make(), g)[0]["none"].shape == (0, 3)


def check_derivative():
    """Of the iterations, by central differences."""
    x = numbers(6, 5, 3)
    f = gf.per_sample_grads(lambda p, row: (p["w"] * row).sum().square() / 2, engine="vmap")

    def value(w):
        stage = gf.geometric_median(tolerance=1e-13, max_iterations=3000)
        return ran(stage, f({"w": w}, x))[0]["w"].square().sum()

    w = numbers(7, 1, 3)[0].requires_grad_()
    (got,) = torch.autograd.grad(value(w), w)
    w = w.detach()
    step = 1e-6 * torch.eye(3, dtype=F64)
    want = torch.stack([(value(w + e) - value(w - e)) / 2e-6 for e in step])
    close(got, want, want.norm(), "derivative", 1e-6)


def test_the_geometric_median_has_the_derivative_of_its_iterations():
    check_derivative()


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_sorted_rows_have_their_derivative(name):
    """With a graph behind the rows, and inside a transform: the same numbers, and the derivative."""
    x, w = numbers(6, 5, 3), numbers(7, 1, 3)[0]
    f = gf.per_sample_grads(lambda p, row: (p["w"] * row).sum().square() / 2, engine="vmap")

    def value(w):
        return ran(ROBUST[name](), f({"w": w}, x))[0]["w"].square().sum()

    leaf = w.clone().requires_grad_()
    (got,) = torch.autograd.grad(value(leaf), leaf)
    step = 1e-6 * torch.eye(3, dtype=F64)
    want = torch.stack([(value(w + e) - value(w - e)) / 2e-6 for e in step])
    close(got, want, want.norm(), "derivative", 1e-6)
    close(torch.func.grad(value)(w), got, got.norm(), "in a transform")
    assert same_bits(value(leaf).detach(), value(w))


def test_inside_parts():
    g, params = plain(numbers(0, 7))
    step = gf.partition({"a": gf.median(), "b": gf.geometric_median()}, {"a": "a", "b": "b"})
    out, _ = step.update(g, step.init(params), params)
    assert same_bits(out["a"], gf.median().update(g, ())[0]["a"])
    other, _ = plain(numbers(0, 7) * torch.tensor([0.0, 1, 1, 1, 1]))
    close(out["b"], gf.geometric_median().update(other, ())[0]["b"], 1.0, "the rows of b alone")


# --- planted mistakes ------------------------------------------------------------------------------

per_unit, weiszfeld, apply = _per_unit.per_unit, _geometric.weiszfeld, _per_unit.OverRows.apply


def lower_middle(entries, cut):
    return entries.sort(0).values[cut]


def nothing_trimmed(entries, cut):
    return entries.mean(0)


def trimmed_below(entries, cut):
    return entries.sort(0).values[cut:].mean(0)


def over_all(entries, cut):
    return entries.sort(0).values[cut : len(entries) - cut].sum(0) / len(entries)


def ties_up(entries):
    return torch.where(entries.sign().sum(0) >= 0, 1.0, -1.0).to(entries)


def by_size(entries):
    return entries.sum(0).sign()


def absent_ones_vote(call, g, nonfinite):
    return g._per_unit(), torch.tensor(0)


def not_per_unit(call, g, nonfinite):
    kept = (g.weights > 0) & (g.norms().isfinite() | (nonfinite == "raise"))
    return g.select(kept), torch.tensor(0)


def nothing_refused(call, g, nonfinite):
    return per_unit(call, g, "skip")


def nothing_left_out(call, g, nonfinite):
    return g, torch.tensor(1)


def squared_pulls(k, *rest):
    c, iterations, residual = weiszfeld(k, *rest)
    own = k.diagonal()
    squares = own - 2 * (k @ c) + c @ k @ c
    c = 1 / squares.clamp(min=1e-300)
    return c / c.sum(), iterations, residual


def the_mean(k, *rest):
    return torch.full((len(k),), 1 / len(k), dtype=k.dtype), 1, 0.0


def one_iteration(k, *rest):
    return weiszfeld(k, 1, *rest[1:])


def by_position(k, *rest):
    c, iterations, residual = weiszfeld(k, *rest)
    return c.roll(1), iterations, residual


def zeros_anyway(self, grads, state, params, how):
    return apply(dataclasses.replace(self, on_zero_weight="zero"), grads, state, params, how)


def materialising(g):
    yield g.names


def one_by_one(g):
    return [(name,) for name in g.names]


MUTANTS = {
    "torch's median": (_entries, "_middle", lower_middle, check_median),
    "nothing trimmed": (_entries, "_inner_mean", nothing_trimmed, check_trimmed_mean),
    "trimmed below alone": (_entries, "_inner_mean", trimmed_below, check_trimmed_mean),
    "divided by all": (_entries, "_inner_mean", over_all, check_trimmed_mean),
    "the share in binary": (_entries, "Fraction", float, check_trimmed_mean),
    "a mean is no trimmed mean": (_entries, "_inner_mean", nothing_trimmed, lambda: check_breakdown("trimmed_mean")),
    "ties go up": (_entries, "_majority", ties_up, check_sign_vote),
    "votes by size": (_entries, "_majority", by_size, check_sign_vote),
    "all parameters at once": (_entries, "_together", materialising, check_one_parameter_at_a_time),
    "a pass for each small parameter": (_entries, "_together", one_by_one, check_one_parameter_at_a_time),
    **{
        f"samples of weight 0 vote, {name}": (
            _per_unit,
            "per_unit",
            absent_ones_vote,
            lambda name=name: check_weights(name),
        )
        for name in ("median", "trimmed_mean", "geometric_median", "from_gram")
    },
    **{
        f"weights ignored, {name}": (_per_unit, "per_unit", not_per_unit, lambda name=name: check_weights(name))
        for name in ("median", "trimmed_mean", "geometric_median", "from_gram")
    },
    "nothing refused": (_per_unit, "per_unit", nothing_refused, lambda: check_nonfinite("median")),
    "nothing left out": (_per_unit, "per_unit", nothing_left_out, lambda: check_nonfinite("sign_vote")),
    "zeros unasked": (_per_unit.OverRows, "apply", zeros_anyway, lambda: check_no_samples("median")),
    "pulls of squared distances": (_geometric, "weiszfeld", squared_pulls, check_geometric_median),
    "the mean": (_geometric, "weiszfeld", the_mean, lambda: check_breakdown("geometric_median")),
    "one iteration": (_geometric, "weiszfeld", one_iteration, check_geometric_median),
    "coefficients of other rows": (_geometric, "weiszfeld", by_position, lambda: check_order("geometric_median")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law()
