"""Weightings of the Gram matrix, against their definitions and against another implementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import close

import gradfunc as gf
from gradfunc import weightings
from gradfunc.weightings import _aligned, _gram, _krum, _mgda

F64 = torch.float64
SEEDS = st.integers(0, 10**6)


def numbers(seed, n, entries=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, entries, generator=generator, dtype=F64)


def check_mgda(seed=0, n=6, entries=6, shift=0.0, alike=False, dtype=F64):
    """A weighted mean whose product with no row is less than its squared length: none is shorter."""
    matrix = numbers(seed, n, entries) + shift
    if alike:
        matrix[-1] = matrix[0]
    gram = (matrix @ matrix.T).to(dtype)
    c = gf.weightings.mgda()(gram)
    assert c.dtype == dtype
    assert bool((c >= 0).all())
    # coefficients and the matrix are rounded to the dtype
    rounding = 4 * (n + entries) * torch.finfo(dtype).eps
    assert abs(float(c.double().sum()) - 1) <= rounding
    largest = float(matrix.norm(dim=1).square().max())
    products = matrix @ (c.double() @ matrix)
    assert float(c.double() @ products - products.min()) <= (1e-9 + rounding) * largest
    gap = gf.weightings.duality_gap(matrix @ matrix.T, c)
    close(gap, c.double() @ products - products.min(), largest, "duality gap")


@given(
    seed=SEEDS,
    n=st.integers(1, 12),
    entries=st.integers(1, 12),
    shift=st.sampled_from([0.0, 1.0, 30.0]),
    alike=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_mgda(seed, n, entries, shift, alike, dtype):
    check_mgda(seed, n, entries, shift, alike, dtype)


def check_mgda_of_known_shapes():
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=F64)
    close(gf.weightings.mgda()(two @ two.T), torch.tensor([0.8, 0.2], dtype=F64), 1.0, "two rows at a right angle")
    corner = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 5.0]], dtype=F64)
    assert gf.weightings.mgda()(corner @ corner.T).tolist() == [1.0, 0.0, 0.0]
    around = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0], [5.0, 5.0]], dtype=F64)
    c = gf.weightings.mgda()(around @ around.T)
    close(c @ around, torch.zeros(2), 1.0, "0 is inside", 1e-7)
    assert gf.weightings.mgda()(torch.zeros(4, 4)).tolist() == [0.25] * 4
    assert gf.weightings.mgda()(torch.zeros(0, 0)).shape == (0,)


def test_mgda_of_known_shapes():
    check_mgda_of_known_shapes()


@given(seed=SEEDS, n=st.integers(1, 10), scale=st.sampled_from([1e-30, 1e30]))
def test_mgda_does_not_depend_on_the_unit(seed, n, scale):
    gram = numbers(seed, n) @ numbers(seed, n).T
    c, scaled = (gf.weightings.mgda()(k) for k in (gram, gram * scale))
    assert float(gf.weightings.duality_gap(gram, scaled)) <= 1e-9 * float(gram.diagonal().max())
    close(scaled, c, 1.0, "coefficients", 1e-4)


def test_a_gap_that_is_left_is_an_error():
    matrix = numbers(0, 12) + 0.5
    with pytest.raises(RuntimeError, match=r"a duality gap of .* after 1 iterations"):
        gf.weightings.mgda(max_iterations=1)(matrix @ matrix.T)


def check_gap_bounds_the_distance():
    for seed in range(20):
        matrix = numbers(seed, 7)
        gram = matrix @ matrix.T
        best = gf.weightings.mgda(tolerance=1e-13)(gram) @ matrix
        c = torch.rand(7, dtype=F64, generator=torch.Generator().manual_seed(seed))
        c = c / c.sum()
        assert float((c @ matrix - best).square().sum()) <= float(gf.weightings.duality_gap(gram, c)) * (1 + 1e-9)


def test_the_gap_bounds_the_distance():
    check_gap_bounds_the_distance()


def check_aligned(scale="min", seed=0, n=4, entries=6, dependent=False):
    """All singular values of the rows become one."""
    matrix = numbers(seed, n, entries)
    if dependent:
        matrix[-1] = matrix[0] - matrix[1]
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > s[0] * 1e-7
    u, s, vt = u[:, kept], s[kept], vt[kept]
    common = {"min": s[-1], "median": s.square().median().sqrt(), "rmse": s.square().mean().sqrt()}[scale]
    want = common * (u @ vt).mean(0)
    got = gf.weightings.aligned_mtl(scale=scale)(matrix @ matrix.T) @ matrix
    close(got, want, float(common * (s[0] / s[-1]) ** 2), f"aligned, {scale}", 1e-10)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("dependent", [False, True])
def test_aligned(scale, dependent):
    for seed in range(10):
        check_aligned(scale, seed, n=3 + seed % 3, dependent=dependent)
    assert gf.weightings.aligned_mtl(scale=scale)(torch.zeros(2, 2)).tolist() == [0.5, 0.5]


def scores(matrix, byzantine):
    """As the definition has them, row by row."""
    out = []
    for i, row in enumerate(matrix):
        squares = sorted(float((row - other).square().sum()) for j, other in enumerate(matrix) if j != i)
        out.append(sum(squares[: len(matrix) - byzantine - 2]))
    return out


def check_krum(seed=0):
    for n, byzantine, select in ((5, 1, 1), (9, 3, 1), (9, 3, 4), (6, 0, 6), (4, 1, 2)):
        matrix = numbers(seed, n)
        each = scores(matrix, byzantine)
        chosen = sorted(range(n), key=each.__getitem__)[:select]
        want = [1 / select if i in chosen else 0.0 for i in range(n)]
        assert gf.weightings.krum(byzantine, select=select)(matrix @ matrix.T).tolist() == want


def test_krum():
    for seed in range(20):
        check_krum(seed)


def test_ties_go_to_the_first_row():
    equal = torch.ones(5, 3) @ torch.ones(3, 5)
    assert gf.weightings.krum(1)(equal).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert gf.weightings.krum(1, select=2)(equal).tolist() == [0.5, 0.5, 0.0, 0.0, 0.0]


def test_krum_needs_enough_rows():
    with pytest.raises(ValueError, match=r"krum\(2, select=1\)\(gram\): got 4 rows; expected at least 5"):
        gf.weightings.krum(2)(torch.eye(4))
    with pytest.raises(ValueError, match="got 4 rows; expected at least 6"):
        gf.weightings.krum(0, select=6)(torch.eye(4))


def check_order(make, seed=1, n=7):
    """Rows in another order have the same coefficients."""
    matrix = numbers(seed, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    c, other = make()(matrix @ matrix.T), make()(matrix[order] @ matrix[order].T)
    close(other @ matrix[order], c @ matrix, matrix.norm(dim=1).max(), "in another order", 1e-4)


OURS = {
    "mean": gf.weightings.mean,
    "mgda": gf.weightings.mgda,
    "aligned_mtl": gf.weightings.aligned_mtl,
    "krum": lambda: gf.weightings.krum(2, select=2),
}


@pytest.mark.parametrize("name", OURS)
@given(seed=SEEDS)
def test_order_of_rows(name, seed):
    check_order(OURS[name], seed)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_are_constants_like_the_matrix(name, dtype):
    matrix = numbers(0, 6).to(dtype).requires_grad_()
    gram = matrix @ matrix.T
    before = gram.detach().clone()
    c = OURS[name]()(gram)
    assert (c.dtype, c.shape, c.requires_grad) == (dtype, (6,), False)
    assert torch.equal(gram, before)


NO_GRAM = {
    "a list": ([[1.0]], TypeError, "got a list; expected a Gram matrix"),
    "integers": (torch.ones(2, 2, dtype=torch.int64), TypeError, "dtype torch.int64"),
    "no square": (torch.ones(2, 3), ValueError, r"shape \(2, 3\)"),
    "NaN": (torch.full((2, 2), math.nan), ValueError, "not finite"),
}


@pytest.mark.parametrize("what", NO_GRAM)
@pytest.mark.parametrize("name", OURS)
def test_no_gram_matrix(name, what):
    gram, error, match = NO_GRAM[what]
    with pytest.raises(error, match=match):
        OURS[name]()(gram)


ARGUMENTS = {
    "tolerance 0": (lambda: weightings.mgda(tolerance=0), ValueError, "tolerance=0"),
    "a tolerance in words": (lambda: weightings.mgda(tolerance="little"), TypeError, "tolerance='little'"),
    "no iterations": (lambda: weightings.mgda(max_iterations=0), ValueError, "max_iterations=0"),
    "another scale": (lambda: weightings.aligned_mtl(scale="max"), ValueError, "scale='max'"),
    "byzantine below 0": (lambda: weightings.krum(-1), ValueError, "byzantine=-1"),
    "half a row": (lambda: weightings.krum(1, select=0.5), TypeError, "select=0.5"),
    "no row": (lambda: weightings.krum(1, select=0), ValueError, "select=0"),
    "coefficients of other rows": (
        lambda: weightings.duality_gap(torch.eye(2), torch.ones(3)),
        ValueError,
        r"c of shape \(3,\)",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    make, error, match = ARGUMENTS[name]
    with pytest.raises(error, match=match):
        make()


# --- another implementation ------------------------------------------------------------------------


def theirs():
    return pytest.importorskip("torchjd.aggregation")


def batch(seed=0, n=6):
    matrix = numbers(seed, n)
    params = {"w": torch.zeros(6, dtype=F64)}
    return gf.per_sample_grads(lambda p, row: (p["w"] * row).sum())(params, matrix), matrix


THEIRS = ["MeanWeighting", "SumWeighting", "MGDAWeighting", "AlignedMTLWeighting"]
THEIRS += ["IMTLGWeighting", "PCGradWeighting", "KrumWeighting", "RandomWeighting"]


@pytest.mark.parametrize("name", THEIRS)
def test_weightings_of_torchjd_plug_in(name):
    make = getattr(theirs(), name)
    weighting = make(1) if name == "KrumWeighting" else make()
    g, matrix = batch()
    torch.manual_seed(0)
    out, _ = gf.from_gram(weighting).update(g, ())
    torch.manual_seed(0)
    c = weighting(matrix @ matrix.T)
    close(out["w"], c.double() @ matrix, float((c.abs().double() * matrix.norm(dim=1)).sum()), name, 1e-10)


def test_the_same_as_torchjds():
    jd = theirs()
    for seed in range(3):
        matrix = numbers(seed, 7)
        gram = matrix @ matrix.T
        largest = float(gram.diagonal().max())
        slow = jd.MGDAWeighting(epsilon=1e-12, max_iters=2000)(gram)
        gap = float(gf.weightings.duality_gap(gram, slow))
        distance = float((gf.weightings.mgda()(gram) @ matrix - slow @ matrix).norm())
        assert distance <= math.sqrt(gap) + math.sqrt(1e-9 * largest)  # each within the root of its gap of the shortest
        assert float(gf.weightings.duality_gap(gram, gf.weightings.mgda()(gram))) <= gap + 1e-9 * largest
        for scale in ("min", "median", "rmse"):
            want = jd.AlignedMTLWeighting(scale_mode=scale)(gram)
            close(gf.weightings.aligned_mtl(scale=scale)(gram), want, want.abs().max(), scale, 1e-9)
        assert torch.equal(gf.weightings.mean()(gram), jd.MeanWeighting()(gram))
        # its Krum adds up distances rather than their squares: one nearest row gives both the same order
        want = jd.KrumWeighting(n_byzantine=4, n_selected=2)(gram)
        assert torch.equal(gf.weightings.krum(4, select=2)(gram), want)


# --- planted mistakes ------------------------------------------------------------------------------

on_face, nearest = _mgda._on_face, _mgda._nearest_to_zero


def face_with_negatives(k, c, active):
    rows = active.nonzero()[:, 0]
    out = torch.zeros_like(c)
    out[rows] = _mgda._shortest_affine(k[rows[:, None], rows])
    return out


def clamped_face(k, c, active):
    out = face_with_negatives(k, c, active).clamp(min=0)
    return out / out.sum()


def shortest_row(k, tolerance, max_iterations):
    c = torch.zeros(len(k), dtype=k.dtype)
    c[k.diagonal().argmin()] = 1.0
    return c, 0.0


def distances_not_squared(self, gram):
    own = gram.diagonal()
    distances = (own[:, None] + own - 2 * gram).clamp(min=0).sqrt().fill_diagonal_(math.inf)
    return chosen(self, gram, distances)


def itself_counted(self, gram):
    own = gram.diagonal()
    return chosen(self, gram, (own[:, None] + own - 2 * gram).clamp(min=0))


def one_more(self, gram):
    own = gram.diagonal()
    distances = (own[:, None] + own - 2 * gram).clamp(min=0).fill_diagonal_(math.inf)
    return chosen(self, gram, distances, 1)


def chosen(self, gram, distances, less=2):
    total = distances.sort(1).values[:, : len(gram) - self.byzantine - less].sum(1)
    c = torch.zeros(len(gram), dtype=gram.dtype)
    c[total.sort(stable=True).indices[: self.select]] = 1 / self.select
    return c


def whole_krum():
    for seed in range(20):
        check_krum(seed)


def many_mgda():
    for seed in range(20):
        check_mgda(seed, n=9)


def aligned_by_squares(self, gram):
    values, vectors = torch.linalg.eigh(gram)
    return vectors @ ((values[0] / values) * (vectors.T @ torch.full((len(gram),), 1 / len(gram), dtype=gram.dtype)))


def aligned_to_the_longest(self, gram):
    values, vectors = torch.linalg.eigh(gram)
    mean = torch.full((len(gram),), 1 / len(gram), dtype=gram.dtype)
    return vectors @ ((values[-1] / values).sqrt() * (vectors.T @ mean))


def in_double(c, like):
    return c


MUTANTS = {
    "affine, not convex": (_mgda, "_on_face", face_with_negatives, many_mgda),
    "negative ones cut off": (_mgda, "_on_face", clamped_face, many_mgda),
    "the shortest row": (_mgda, "_nearest_to_zero", shortest_row, many_mgda),
    "coefficients of another dtype": (_mgda, "given", in_double, lambda: check_mgda(dtype=torch.float32)),
    "distances not squared": (_krum.Krum, "__call__", distances_not_squared, whole_krum),
    "itself among the nearest": (_krum.Krum, "__call__", itself_counted, whole_krum),
    "one neighbour more": (_krum.Krum, "__call__", one_more, whole_krum),
    "squares aligned": (_aligned.AlignedMtl, "__call__", aligned_by_squares, check_aligned),
    "the longest component": (_aligned.AlignedMtl, "__call__", aligned_to_the_longest, check_aligned),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):  # or by its own duality gap
        law()


def test_a_matrix_that_is_not_quite_symmetric():
    gram = torch.tensor([[1.0, 0.25], [0.75, 1.0]])
    assert torch.equal(_gram.checked("", gram), torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=F64))
