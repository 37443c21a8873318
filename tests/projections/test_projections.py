"""A projection is one matrix, whatever asks it; and it keeps inner products as far as it says."""

from __future__ import annotations

import inspect
import math
import textwrap

import pytest
import torch
from factors.uses import ALONE
from oracle import flat
from scipy import stats
from tiers import every

import gradfunc as gf
from gradfunc import _factors as F
from gradfunc._factors import _compressed
from gradfunc.projections import _count_sketch, _dense, _entrywise, _two_sided
from gradfunc.testing.strategies._factors import Geometry, gathered

P = gf.projections
KINDS = {
    "gaussian": lambda seed=0: P.gaussian(32, seed),
    "rademacher": lambda seed=0: P.rademacher(32, seed),
    "count_sketch": lambda seed=0: P.count_sketch(32, seed),
    "two_sided": lambda seed=0: P.two_sided((4, 8), seed),
    "per_parameter": lambda seed=0, names=("0", "1", "2"): P.per_parameter(P.two_sided((4, 8), seed), names),
}
# Of each claim that rests on draws: two-sided, and the file makes fewer than 60 of them.
ALARM = 1e-9


def matrix(projection, name, shape):
    """All columns of one parameter's part, `[entries, size]`, in float64."""
    entries = torch.arange(math.prod(shape))
    if isinstance(projection, P.PerParameter):
        part = matrix(projection.each, name, shape)
        out = part.new_zeros(len(part), projection.size)
        out[:, projection.block(name)] = part
        return out
    if isinstance(projection, P.TwoSided):
        return projection.columns(name, entries, shape).double()
    return projection.columns(name, entries).double()


def check_equals_the_matrix(projection, some):
    """Factors through a projection are their rows times its matrix, to rounding."""
    want, scale = torch.zeros(some.size, projection.size, dtype=torch.float64), torch.zeros(some.size, 1).double()
    for name, rows in some.rows.items():
        columns = matrix(projection, name, rows.shape[1:])
        want += flat({"": rows}) @ columns
        scale += flat({"": rows}).norm(dim=1, keepdim=True) * columns.norm()
    got = F.project(some.gradients, projection).cpu().double()
    assert bool(((got - want).abs() <= 1e-12 * scale).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uses", [("outer",), ("rows",), ("outer", "rows"), *every(3, [(kind,) for kind in ALONE])])
def test_factors_equal_their_rows_times_the_matrix(kind, uses, device):
    uses = (uses,) if isinstance(uses, str) else uses
    for geometry in (Geometry(4, 3, 6, 4, device=device), Geometry(3, 1, 2, 9, device=device)):
        some = gathered(geometry, (uses, uses, ()))
        names = {"names": some.rows} if kind == "per_parameter" else {}
        check_equals_the_matrix(KINDS[kind](**names), some)


@pytest.mark.parametrize("kind", ["outer", "rows", "unfolded"])
def test_two_sided_is_the_kronecker_product_in_float64(kind):
    some = gathered(Geometry(4, 3, 6, 4), ((kind,),))
    ((name, rows),) = some.rows.items()
    projection = P.two_sided((3, 5), seed=7)
    (outputs, o), (inputs, i) = projection._sides(name)
    left = outputs.columns(o, torch.arange(rows.shape[1])).double()
    right = inputs.columns(i, torch.arange(rows[0, 0].numel())).double()
    want = flat({"": rows}) @ torch.kron(left.contiguous(), right.contiguous())
    got = F.project(some.gradients, projection)
    scale = flat({"": rows}).norm(dim=1, keepdim=True) * left.norm() * right.norm()
    assert bool(((got - want).abs() <= 1e-13 * scale).all())


def check_vectors_equal_the_matrix(projection, device="cpu"):
    """A vector and a number, to rounding."""
    made = torch.Generator().manual_seed(2)
    x = torch.randn(5, 9, generator=made, dtype=torch.float64).to(device)
    params = {"0": x[0].clone(), "1": x[1, 0].clone()}
    g = gf.per_sample_grads(lambda p, x: (p["0"] * x).sin().sum() * p["1"])(params, x)
    got, want, scale = g.project(projection).cpu(), 0, 0
    for name, rows in g.materialize().items():
        columns = matrix(projection, name, rows.shape[1:])
        want = want + flat({"": rows.cpu()}) @ columns
        scale = scale + flat({"": rows.cpu()}).norm(dim=1, keepdim=True) * columns.norm()
    assert bool(((got - want).abs() <= 1e-13 * scale).all())


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_equal_their_rows_times_the_matrix(kind, device):
    check_vectors_equal_the_matrix(KINDS[kind](), device)


def check_vectors_take_one_draw_an_entry(monkeypatch):
    """As many words as there are entries, and none of normal numbers."""
    drawn = []

    def counted(self, name, entries):
        drawn.append(len(entries))
        return _places(self, name, entries)

    def normal(*_):
        raise AssertionError("normal numbers were drawn")

    monkeypatch.setattr(P.CountSketch, "places", counted)
    monkeypatch.setattr(P.Gaussian, "columns", normal)
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.zeros(50)}, torch.ones(3, 50))
    g.project(P.two_sided((4, 8)))
    assert drawn == [50]


def test_vectors_of_two_sided_take_one_draw_an_entry(monkeypatch):
    check_vectors_take_one_draw_an_entry(monkeypatch)


def test_a_dense_matrix_for_vectors_is_noticed(monkeypatch):
    dense = property(lambda self: P.Gaussian(self.size, self.seed, self.drawn))
    monkeypatch.setattr(P.TwoSided, "_of_vectors", dense)
    with pytest.raises(AssertionError, match="normal numbers"):
        check_vectors_take_one_draw_an_entry(monkeypatch)


def check_sides_are_drawn_once(monkeypatch):
    """However many blocks of formed rows go through them."""
    some, drawn = gathered(Geometry(5, 3, 6, 4), (("dense",),)), []

    def counted(self, name, entries):
        drawn.append(len(entries))
        return _gaussian(self, name, entries)

    monkeypatch.setattr(P.Gaussian, "columns", counted)
    F.project(some.gradients, P.TwoSided((2, 2), 0, 48))
    assert sum(drawn) == 6 + 4


def test_sides_are_drawn_once_for_formed_rows(monkeypatch):
    check_sides_are_drawn_once(monkeypatch)


def test_sides_drawn_for_each_block_are_noticed(monkeypatch):
    monkeypatch.setattr(_compressed, "_kept", lambda side, *_: side)
    with pytest.raises(AssertionError):
        check_sides_are_drawn_once(monkeypatch)


def test_two_sided_forms_no_rows(monkeypatch):
    """Of products, embeddings and convolutions."""
    some = gathered(Geometry(4, 3, 6, 4), (("outer",), ("rows",), ("unfolded",)))
    projection = P.two_sided((2, 2))
    want = F.project(some.gradients, projection)

    def formed(*_):
        raise AssertionError("rows were formed")

    for kind in (F.Outer, F.Rows, F.Unfolded):
        monkeypatch.setattr(kind, "dense", formed)
        monkeypatch.setattr(kind, "pieces", formed)
    assert torch.equal(F.project(some.gradients, projection), want)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "count_sketch", "two_sided"])
def test_columns_depend_on_seed_name_and_entry_alone(kind, device):
    shape = (2**21, 2**21)
    entries = torch.tensor([5, 0, 70_000, 2**40], device=device)
    extra = (shape,) if kind == "two_sided" else ()
    columns = KINDS[kind](3).columns("w", entries, *extra)
    assert columns.dtype == (torch.float64 if extra else torch.float32)
    for k, entry in enumerate(entries):
        assert torch.equal(KINDS[kind](3).columns("w", entry[None], *extra)[0], columns[k])
    for other in (KINDS[kind](4).columns("w", entries, *extra), KINDS[kind](3).columns("v", entries, *extra)):
        assert not torch.equal(other, columns)
    if kind in ("rademacher", "count_sketch"):
        assert torch.equal(KINDS[kind](3).columns("w", entries.cpu(), *extra), columns.cpu())


def model_and_batch():
    model = gf.stateless(gf.models.mlp([6, 8, 3], dtype=torch.float64))
    x = torch.randn(12, 6, dtype=torch.float64)
    return model.params, x, lambda p, x: model.sample(p, x).sin().sum()


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "count_sketch", "two_sided"])
def test_the_numbers_of_a_sample_do_not_depend_on_the_batch(kind):
    params, x, loss = model_and_batch()
    projection = KINDS[kind]()
    g = gf.per_sample_grads(loss)(params, x)
    want, scale = g.project(projection), 1e-13 * g.norms()[:, None] * 32
    for chunk in (1, 5, None):
        got = gf.per_sample_grads(loss, chunk_size=chunk)(params, x).project(projection)
        assert bool(((got - want).abs() <= scale).all())
    for engine in ("vmap", "loop"):
        got = gf.per_sample_grads(loss, engine=engine)(params, x).project(projection)
        assert bool(((got - want).abs() <= scale).all())
    split = torch.cat([part.project(projection) for part in g.split(5)])
    assert bool(((split - want).abs() <= scale).all())
    few = type(projection)(**{**vars(projection), "drawn": 40})
    assert few == projection
    assert bool(((g.project(few) - want).abs() <= scale).all())


MIXED = {"0": (3, 4), "1": (5,), "2": (2, 3)}
VECTORS = {"0": (20,), "1": (20,), "2": ()}


def pairs(kind, count, shapes=None):
    """u, v of unit norm and <Pu, Pv> under so many seeds; of matrices and a vector unless shapes are given."""
    shapes = shapes or MIXED
    generator = torch.Generator().manual_seed(5)
    sizes = [math.prod(shape) for shape in shapes.values()]
    u = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    v = u + 0.7 * torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    u[0] = v[0] = 6.0  # one large entry: fourth moments matter
    if shapes is VECTORS:  # of one sign, since what adds entries up unsigned is then far off
        u, v = u.abs(), v.abs()
    u, v = u / u.norm(), v / v.norm()
    products = torch.empty(count, dtype=torch.float64)
    for seed in range(count):
        projection = KINDS[kind](seed)
        parts = [matrix(projection, name, shape) for name, shape in shapes.items()]
        p = torch.cat(parts)
        products[seed] = (u @ p) @ (v @ p)
    return u, v, products


def check_inner_products(kind, count, shapes=None, stated=None):
    """Unbiased, and off by more than `error(failure)` no more often than stated; a false alarm once in 1 / ALARM runs.

    The mean of so many products is normal enough, and its variance at most the stated one.
    """
    u, v, products = pairs(kind, count, shapes)
    projection = stated or KINDS[kind]()
    off = products - u @ v
    z = float(stats.norm.isf(ALARM / 2))
    assert abs(float(off.mean())) <= z * math.sqrt(projection.variance / count), "biased"
    for failure in (0.5, 0.1, 0.01):
        exceeded = int((off.abs() > projection.error(failure)).sum())
        assert exceeded <= stats.binom.isf(ALARM, count, failure), f"{exceeded} of {count} beyond the bound"
    return off


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_unbiased_and_within_the_bound(kind):
    check_inner_products(kind, 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_unbiased_and_within_the_bound_at_length(kind):
    check_inner_products(kind, 3000)


def check_vectors_of_two_sided(count=200):
    """Their own bound is that of as many numbers of a count sketch, 2 / (k_o k_i)."""
    check_inner_products("two_sided", count, VECTORS, P.count_sketch(32))


def test_vectors_of_two_sided_are_unbiased_and_within_their_own_bound():
    check_vectors_of_two_sided()


@pytest.mark.slow
def test_vectors_of_two_sided_are_unbiased_and_within_their_own_bound_at_length():
    check_vectors_of_two_sided(3000)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "count_sketch"])
def test_the_variance_is_that_of_the_docstring(kind):
    """(1 + c^2 - 2 sum u^2 v^2 or 0) / size, by a bootstrap-free interval: fourth moments are measured, alarm 1e-9."""
    u, v, products = pairs(kind, 1000)
    c, fourth = u @ v, (u.square() * v.square()).sum()
    want = float(1 + c**2 - (0 if kind == "gaussian" else 2 * fourth)) / 32
    square = (products - c).square()
    z = float(stats.norm.isf(ALARM / 2))
    assert abs(float(square.mean()) - want) <= z * float(square.std()) / math.sqrt(len(square))


def test_bounds_of_many_numbers_come_from_tails():
    """1% at 4096 numbers: Chebyshev gives 0.22, Achlioptas' lemma its eps, at which the formula returns the failure."""
    projection = P.rademacher(4096)
    eps = projection.error(0.01)
    assert eps < math.sqrt(projection.variance / 0.01)
    assert 4 * math.exp(-4096 / 2 * (eps**2 / 2 - eps**3 / 3)) == pytest.approx(0.01, rel=1e-4)


def test_descriptions_name_projections():
    for make in KINDS.values():
        projection = make(9)
        assert P.from_dict(projection.to_dict()) == projection
        assert P.from_dict(projection.to_dict()) != make(8)
    for wrong in ({}, {"kind": "other"}, {"kind": "gaussian"}, {"kind": "gaussian", "size": 3, "more": 1}):
        with pytest.raises(ValueError, match="from_dict"):
            P.from_dict(wrong)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: P.gaussian(0), ValueError),
        (lambda: P.rademacher(2.5), TypeError),
        (lambda: P.count_sketch(True), TypeError),
        (lambda: P.gaussian(4, seed=-1), ValueError),
        (lambda: P.two_sided(4), TypeError),
        (lambda: P.two_sided((4, 0)), ValueError),
        (lambda: P.per_parameter(P.two_sided((2, 2)), []), ValueError),
        (lambda: P.per_parameter(P.two_sided((2, 2)), ["a", "a"]), ValueError),
        (lambda: P.per_parameter("gaussian", ["a"]), TypeError),
        (lambda: P.gaussian(4).error(0.0), ValueError),
    ],
    ids=lambda value: None if isinstance(value, type) else value.__code__.co_firstlineno,
)
def test_what_names_no_projection_is_refused(call, error):
    with pytest.raises(error, match=r"gf\.projections|error\(failure\)"):
        call()


def test_a_parameter_without_a_block_is_refused():
    params, x, loss = model_and_batch()
    projection = P.per_parameter(P.count_sketch(4), list(params)[:1])
    with pytest.raises(ValueError, match="one of the 1 that have a block"):
        gf.per_sample_grads(loss)(params, x).project(projection)


def outer_case():
    return gathered(Geometry(4, 3, 6, 4), (("outer",), ("rows",), ("unfolded",)))


MUTANTS = {
    "sign lost": (_count_sketch.CountSketch, "_add", "rows * sign.to(rows.dtype)", "rows", "count_sketch"),
    "place of a piece": (_entrywise.Entrywise, "apply", "at.start, at.stop", "0, at.stop - at.start", "rademacher"),
    "sides swapped": (_two_sided.TwoSided, "apply", "left, right, self.sizes", "right, left, self.sizes", "two_sided"),
    "left of embeddings": (_compressed, "_of_rows", "place - at.start", "place * 0", "two_sided"),
    "positions mixed": (_compressed, "compressed", "scratch).mT @ x", "scratch).flip(1).mT @ x", "two_sided"),
    "one sample's windows": (_compressed, "_of_windows", "out[at] =", "out[:1] +=", "two_sided"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_matrix_law_catches_it(name, monkeypatch):
    owner, function, old, new, kind = MUTANTS[name]
    projection = KINDS[kind]() if kind == "two_sided" else type(KINDS[kind]())(32, 0, 8)
    check_equals_the_matrix(projection, outer_case())
    source = textwrap.dedent(inspect.getsource(getattr(owner, function)))
    assert old in source
    scope: dict = {}
    exec(compile(source.replace(old, new), "<mutant>", "exec"), getattr(owner, function).__globals__, scope)
    monkeypatch.setattr(owner, function, scope[function])
    if function == "compressed":
        monkeypatch.setattr(_two_sided, "compressed", scope[function])
    with pytest.raises((AssertionError, RuntimeError)):
        check_equals_the_matrix(projection, outer_case())


BIASED = {
    "gaussian": lambda self, name, entries: _gaussian(self, name, entries) * 1.3,
    "rademacher": lambda self, name, entries: _rademacher(self, name, entries).abs(),
}
_gaussian, _rademacher, _places = P.Gaussian.columns, P.Rademacher.columns, P.CountSketch.places


@pytest.mark.parametrize("kind", BIASED)
def test_the_law_of_inner_products_catches_it(kind, monkeypatch):
    monkeypatch.setattr(type(KINDS[kind]()), "columns", BIASED[kind])
    with pytest.raises(AssertionError):
        check_inner_products(kind, 400)


def test_the_law_of_inner_products_catches_one_matrix_for_all_parameters(monkeypatch):
    """Parameters then meet in one number with one sign: sums of them are no longer unbiased."""
    monkeypatch.setattr(_dense, "key_of", lambda seed, name: (seed, 0))
    with pytest.raises(AssertionError):
        check_inner_products("gaussian", 1000)


@pytest.mark.parametrize("what", ["unsigned", "one key for all parameters", "one number for all entries"])
def test_the_law_of_vectors_catches_it(what, monkeypatch):
    """The last is unbiased, with a variance of its own: 32 times the stated one."""
    mutants = {
        "unsigned": lambda self, name, entries: (_places(self, name, entries)[0], torch.ones(len(entries))),
        "one key for all parameters": lambda self, name, entries: _places(self, "0", entries),
        "one number for all entries": lambda self, name, entries: (entries * 0, _places(self, name, entries)[1]),
    }
    monkeypatch.setattr(P.CountSketch, "places", mutants[what])
    with pytest.raises(AssertionError):
        check_vectors_of_two_sided()


def test_the_matrix_law_catches_a_lost_sign_of_vectors(monkeypatch):
    lost = inspect.getsource(P.CountSketch._add).replace("rows * sign.to(rows.dtype)", "rows")
    scope: dict = {}
    exec(compile(textwrap.dedent(lost), "<mutant>", "exec"), P.CountSketch._add.__globals__, scope)
    monkeypatch.setattr(P.CountSketch, "_add", scope["_add"])
    with pytest.raises(AssertionError):
        check_vectors_equal_the_matrix(P.two_sided((4, 8)))
