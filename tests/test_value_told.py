"""What a value says of itself, and that it answers alike kept, streamed, joined, spent and inside a transform."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from oracle import check_queries, close, flat, same_bits, truth

import gradfunc as gf
from gradfunc import _factors
from gradfunc._certificate import Difference
from gradfunc._engines import Block, KeptSource
from gradfunc._per_sample import _chunks, _explain, _verify, factors_of, from_source
from gradfunc._weights import ratio

F64 = torch.float64
SIZE = 5
W = {"w": torch.tensor([1.0, -2.0])}
ROWS = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]])


def linear(p, x):
    return (p["w"] * x).sum()


def loss(p, x, y):
    out = torch.tanh(x @ p["w"]) @ p["v"] + 0 * p["idle"].sum() + p["none"].sum()
    return gf.Weighted((out - y).square().sum() * (1 + x[0].abs()), 1 + x[0].abs())


def problem(dtype=F64):
    generator = torch.Generator().manual_seed(3)
    shapes = {"w": (3, 4), "v": (4, 2), "idle": (2,), "none": (0, 2)}
    params = {k: torch.randn(s, generator=generator, dtype=F64).to(dtype) for k, s in shapes.items()}
    return params, tuple(torch.randn(SIZE, n, generator=generator, dtype=F64).to(dtype) for n in (3, 2))


# --- printed, compared ------------------------------------------------------------------------------

VALUES = {
    "value": (gf.per_sample_grads(linear)(W, ROWS), "PerSampleGrads(names=('w',), batch_size=3, engine='factored')"),
    "function": (gf.per_sample_grads(linear, seed=3).at(2), None),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_prints_without_what_it_holds(name):
    value, text = VALUES[name]
    assert text is None or repr(value) == text
    assert "tensor" not in repr(value)
    assert "_learnt" not in repr(value)
    assert all(not field.repr for field in dataclasses.fields(value) if field.name.startswith("_"))


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_itself_alone(name):
    """Values hold tensors, which have no truth value to compare by: they are equal as objects are, and keys."""
    value, _ = VALUES[name]
    again = dataclasses.replace(value)
    assert {value: 1, again: 2}[value] == 1
    assert value == value
    assert value != again
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.step = 3


# --- explained --------------------------------------------------------------------------------------


def words(text):
    return [" ".join(line.split()) for line in text.splitlines() if line.strip(" ─")]


HEAD = ["How the rows of each parameter are held", "parameter uses kind method cost why"]
NOTE = "cost: floating-point operations of the squared norms of all samples, and bytes that the factor holds"
KEPT = [
    "engine factored: rows are held as factors. 5 rows of 22 entries in 4 parameters, kept.",
    *HEAD,
    "w 1 (Mm) outer gram 70 280B one position: |x|^2 |g|^2",
    "v 1 (Mm) dense, of outer dense 80 320B rows are formed: one product serves all",
    "idle 1 (Add through Sum) dense dense, pulled back 20 80B rows are held as they are",
    "none 1 (Add through Sum) none zero 0 0B it has no entries",
    NOTE,
]
AGAIN = "5 rows of 22 entries in 4 parameters, computed again at each query, 2 at a time."
STREAMED = [
    f"engine factored: rows are held as factors. {AGAIN}",
    *HEAD,
    "w 1 (Mm) outer ? 0 0B rows are computed at each query",
    "v 1 (Mm) outer ? 0 0B rows are computed at each query",
    "idle 1 (Add through Sum) dense ? 0 0B rows are computed at each query",
    "none 1 (Add through Sum) dense ? 0 0B rows are computed at each query",
    NOTE,
]
EXPLAINED = {
    "kept": ({}, KEPT),
    "streamed": ({"chunk_size": 2}, STREAMED),
    "looped": ({"engine": "loop"}, ["engine loop: as asked. 5 rows of 22 entries in 4 parameters, kept."]),
    "looped, streamed": ({"engine": "loop", "chunk_size": 2}, [f"engine loop: as asked. {AGAIN}"]),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explanations(name):
    options, want = EXPLAINED[name]
    params, batch = problem()
    got = words(gf.per_sample_grads(loss, verify=False, **options)(params, *batch).explain())
    assert " ".join(got) == " ".join(want)


def test_an_idle_parameter_and_tied_uses_are_explained():
    params = {"w": torch.ones(2, 2), "idle": torch.ones(1)}
    g = gf.per_sample_grads(lambda p, x: ((x @ p["w"]).tanh() @ p["w"]).sum() + p["w"].sin().sum())(params, ROWS)
    got = words(g.explain())
    assert any(line.startswith("idle 0 none zero 0 0B no loss depends on it") for line in got)
    assert any(re.match(r"w 3 \(Mm, Add through Sum\) dense", line) for line in got)


SHORT = {0: "0", 7: "7", 999: "999", 1000: "1k", 1234: "1.23k", 10**6: "1M", 2_500_000_000: "2.5G", 10**12: "1T"}


@pytest.mark.parametrize("number", SHORT)
def test_costs_are_short(number):
    assert _explain._short(number) == SHORT[number]


def test_an_explanation_is_a_report():
    line = _explain.Line("w", "1 (Mm)", "outer", "gram", 1500, 280, "why not")
    report = _explain.Explanation("factored", "a summary", (line,))
    assert report.to_dict() == {
        "engine": "factored",
        "summary": "a summary",
        "parameters": [
            {
                "parameter": "w",
                "uses": "1 (Mm)",
                "kind": "outer",
                "method": "gram",
                "flops": 1500,
                "held": 280,
                "why": "why not",
            }
        ],
    }
    assert report.ok
    assert words(str(report))[1:] == [*HEAD, "w 1 (Mm) outer gram 1.5k 280B why not", NOTE]


# --- kept, streamed, live -----------------------------------------------------------------------------

INDEX = torch.tensor([4, 0, 0, 2])
C = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0], dtype=F64)


def sines(entries):
    return entries.sin()


# What is made of a value.
MADE = {
    "itself": lambda g: g,
    "selected": lambda g: g.select(INDEX),
    "split": lambda g: g.split(2)[2],
    "scaled": lambda g: g.scaled(C),
    "weighted": lambda g: g.weighted(C.abs()),
    "rescaled": lambda g: g.rescaled(C),
    "by norms": lambda g: g.rescaled(lambda norms: 1 / (1 + norms)),
    "clipped per unit": lambda g: gf.clip_per_sample(0.5, per_unit_weight=True).update(g, ())[0],
    "mapped": lambda g: g._mapped(sines),
    "per unit": lambda g: g._per_unit(),
    "focused": lambda g: g._focused(("v", "idle")).scaled(C)._unfocused(g.names),
    "joined": lambda g: gf.concatenate([g.scaled(C), g]),
    "focused, joined": lambda g: gf.concatenate([g._focused(("v",)).scaled(C)] * 2)._unfocused(g.names),
    "none": lambda g: g.select([]),
}
V = {"w": torch.ones(3, 4), "v": -torch.ones(4, 2), "idle": torch.ones(2), "none": torch.ones(0, 2)}


def total(name, factor):
    return factor.dense().flatten(1).sum(1, keepdim=True)


class Total:
    size = 1
    apply = staticmethod(total)


ASKED = {
    "losses": lambda g: g.losses,
    "weights": lambda g: g.weights,
    "mean_loss": lambda g: g.mean_loss,
    "norms": lambda g: g.norms(),
    "norms of each": lambda g: g.norms(per_parameter=True),
    "gram": lambda g: g.gram(),
    "gram of each": lambda g: g.gram(per_parameter=True),
    "gram of two": lambda g: g.gram(other=g.select(slice(0, 3))),
    "dot": lambda g: g.dot({k: V[k].to(like.dtype) for k, like in g._shapes.items()}),
    "sum": lambda g: g.sum(),
    "wide sum": lambda g: g.sum(wide=True),
    "weighted sum": lambda g: g.weighted_sum(torch.arange(g.batch_size).double()),
    "mean": lambda g: g.mean() if g.batch_size else g.mean(on_zero_weight="zero"),
    "rows": lambda g: g.materialize(),
    "project": lambda g: g.project(Total()),
}


def answers(g):
    out = {}
    for query, ask in ASKED.items():
        answer = ask(g)
        out |= {f"{query} of {k}": v for k, v in answer.items()} if isinstance(answer, dict) else {query: answer}
    return out


def check_alike(made, dtype):
    """Inside a transform every answer has the value, type and shape that it has outside; so has a streamed one."""
    params, batch = problem(dtype)
    f = gf.per_sample_grads(loss, engine="vmap", verify=False)
    streamed = gf.per_sample_grads(loss, engine="vmap", verify=False, chunk_size=2)
    want = answers(MADE[made](f(params, *batch)))

    def inside(s):
        return s, answers(MADE[made](f({k: v * s for k, v in params.items()}, *batch)))

    _, live = torch.func.grad(inside, has_aux=True)(torch.ones((), dtype=dtype))
    roundoff = torch.finfo(torch.float32 if dtype == torch.bfloat16 else dtype).eps
    for got in (live, answers(MADE[made](streamed(params, *batch)))):
        assert list(got) == list(want)
        for query, value in want.items():
            assert (got[query].dtype, got[query].shape) == (value.dtype, value.shape), query
            if not value.numel() or (query == "mean_loss" and made == "none"):
                assert not value.numel() or bool(got[query].isnan()), query
                continue
            scale = 1 + float(value.double().abs().max())
            # sums of some 10 rows of some 20 entries, and the rounding of the answer itself to a half type
            error = 500 * roundoff + 2 * torch.finfo(value.dtype).eps
            close(got[query], value, scale, f"{query}, {made}", error)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", MADE)
def test_alike_inside_a_transform_and_streamed(made, dtype):
    check_alike(made, dtype)


def test_the_first_chunk():
    params, batch = problem()
    for chunk_size, size in ((None, SIZE), (2, 2)):
        g = gf.per_sample_grads(loss, chunk_size=chunk_size)(params, *batch)
        assert same_bits(answers(g.first_chunk()), answers(g.select(slice(0, size))))
        assert g.select([]).first_chunk().batch_size == 0


SLOPES = {
    "joined": lambda g, c: gf.concatenate([g, g.scaled(c)]).sum(),
    "joined, one of them plain": lambda g, c: gf.concatenate([g, g.rescaled(torch.ones(3, dtype=F64))]).norms(),
    "gram by its keyword": lambda g, c: g.gram(other=g.scaled(c)),
    "the other alone": lambda g, c: g.gram(other=g.rescaled(c)),
    "clipped per unit": lambda g, c: gf.clip_per_sample(0.5, per_unit_weight=True).update(g.weighted(c), ())[0].sum(),
}
C3 = torch.tensor([1.0, 0.25, 2.0], dtype=F64)


@pytest.mark.parametrize("where", ["after", "inside"])
@pytest.mark.parametrize("name", SLOPES)
def test_slopes(name, where):
    """In parameters and coefficients, against central differences."""
    x = ROWS.double() / 2
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum().tanh(), engine="vmap")

    def value(w, c):
        out = SLOPES[name](f({"w": w}, x), c)
        return (torch.cat([v.flatten() for v in out.values()]) if isinstance(out, dict) else out).square().sum()

    point = torch.tensor([0.3, -0.7], dtype=F64), C3
    if where == "inside":
        got = torch.func.grad(value, argnums=(0, 1))(*point)
    else:
        leaves = [t.clone().requires_grad_() for t in point]
        got = torch.autograd.grad(value(*leaves), leaves, allow_unused=True)
    for k, slope in enumerate(got):
        each = []
        for e in 1e-6 * torch.eye(len(point[k]), dtype=F64):
            up, down = ([t + (s * e if i == k else 0) for i, t in enumerate(point)] for s in (1, -1))
            each.append((value(*up) - value(*down)) / 2e-6)
        want = torch.stack(each)
        close(torch.zeros_like(want) if slope is None else slope, want, want.norm() + 1, f"{name}, {k}", 1e-7)


@pytest.mark.parametrize("query", ["sum", "mean", "materialize"])
@pytest.mark.parametrize("asked", ["w", "b"])
def test_the_slope_of_one_answer_of_several(query, asked):
    """What nobody asks has no share: not of a parameter of no dimension either, whose cotangent torch would make up."""
    p = {"w": torch.tensor([0.3, -0.7], dtype=F64), "b": torch.tensor(0.5, dtype=F64)}
    leaves = {k: v.clone().requires_grad_() for k, v in p.items()}

    def both(p, x):
        return ((p["w"] * x).sum() * p["b"]).sin()

    got = getattr(gf.per_sample_grads(both, engine="factored")(leaves, ROWS.double()), query)()[asked]
    rows = torch.func.vmap(torch.func.grad(both), (None, 0))(leaves, ROWS.double())[asked]
    want = {"sum": rows.sum(0), "mean": rows.sum(0) / 3, "materialize": rows}[query]
    slopes = (torch.autograd.grad(value.square().sum(), list(leaves.values())) for value in (got, want))
    for mine, theirs in zip(*slopes, strict=True):
        close(mine, theirs, theirs.norm() + 1, f"{query} of {asked}")


@pytest.mark.parametrize("made", ["scaled", "weighted", "rescaled"])
def test_under_no_grad_a_value_keeps_no_graph(made):
    """Neither its rows nor what they are multiplied by, also where it is asked later."""
    g = gf.per_sample_grads(linear)(W, ROWS)
    c = torch.ones(3, dtype=F64, requires_grad=True)
    with torch.no_grad():
        kept = getattr(g, made)(c)
    assert not any(
        t.requires_grad for t in (kept.losses, kept.weights, kept.norms(), kept.gram(), *kept.sum().values())
    )


@pytest.mark.parametrize("what", ["a tensor", "a function"])
def test_bad_coefficients_are_seen_inside_a_transform_too(what):
    """But where a vmap maps over them, Python may look."""
    c = torch.tensor([1.0, torch.nan, 1.0], dtype=F64)
    given = c if what == "a tensor" else lambda norms: c

    def asked(s):
        return gf.per_sample_grads(linear)({"w": W["w"] * s}, ROWS).rescaled(given).sum()["w"].sum()

    match = "coefficient nan for sample 1" if what == "a tensor" else "a function that gives nan for a norm of"
    with pytest.raises(ValueError, match=rf"^g\.rescaled\(c\): got {match}"):
        torch.func.grad(asked)(torch.ones(()))


# --- changed since ------------------------------------------------------------------------------------

STALE = {
    "norms()": lambda g, h: g.norms(),
    "gram()": lambda g, h: g.gram(),
    "gram() of another": lambda g, h: h.gram(g),
    "dot()": lambda g, h: g.dot(W),
    "project()": lambda g, h: g.project(Total()),
    "sum()": lambda g, h: g.sum(),
    "weighted_sum(c)": lambda g, h: g.weighted_sum(torch.ones(3)),
    "materialize()": lambda g, h: g.materialize(),
    "unused": lambda g, h: g.unused,
}


@pytest.mark.parametrize("query", STALE)
def test_a_query_that_comes_too_late_is_named(query):
    x = ROWS.clone()
    f = gf.per_sample_grads(linear, chunk_size=2)
    g, h = f(W, x), f(W, ROWS)
    x.add_(1)
    with pytest.raises(RuntimeError, match=rf"^g\.{re.escape(query.split(' of')[0])}: got .*changed in place"):
        STALE[query](g, h)


# --- a sum at the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["factored", "vmap"])
@pytest.mark.parametrize("clipped", [False, True])
def test_a_spent_value_gives_up_its_rows(engine, clipped):
    params, batch = problem()
    g = gf.per_sample_grads(loss, engine=engine)(params, *batch)
    kept = gf.clip_per_sample(0.5).update(g, ())[0] if clipped else g
    want, rows = kept.sum(), g._source.kept.grads
    assert list(rows) == list(params)
    held = [tensor for gradient in rows.values() for factor in gradient.factors for tensor in factor.tensors]
    assert held
    spent = dataclasses.replace(kept, _spent=True)
    assert same_bits(spent.sum(), want)
    assert not rows


def test_factors_are_told_that_they_are_spent(monkeypatch):
    params, batch = problem()
    g, told, weighted_sum = gf.per_sample_grads(loss)(params, *batch), [], _factors.weighted_sum

    def noted(rows, c, *, spent):
        told.append(spent)
        return weighted_sum(rows, c, spent=spent)

    monkeypatch.setattr(_factors, "weighted_sum", noted)
    g.sum()
    dataclasses.replace(g, _spent=True).sum()
    assert told == [False, True]


# --- weights and means --------------------------------------------------------------------------------


def test_a_mean_leaves_the_accumulator_as_it_was():
    acc = gf.Accumulator.init(W).add(gf.per_sample_grads(linear)(W, ROWS))
    before = acc.sum()["w"].clone(), acc.weight.clone()
    for policy in ("raise", "zero"):
        first, again = acc.mean(on_zero_weight=policy), acc.mean(on_zero_weight=policy)
        assert first["w"].tolist() == again["w"].tolist() == (ROWS.sum(0) / 3).tolist()
    assert torch.equal(acc.sum()["w"], before[0])
    assert torch.equal(acc.weight, before[1])


@pytest.mark.parametrize("owned", [False, True])
def test_a_ratio_is_taken_in_place_where_nobody_else_holds_the_sum(owned):
    sums = {"w": torch.tensor([2.0, 4.0], dtype=F64), "followed": torch.tensor([2.0], requires_grad=True) * 3}
    given, where = dict(sums), sums["w"].data_ptr()
    out = ratio("", given, torch.tensor(2.0, dtype=F64), "raise", owned=owned)
    assert [v.tolist() for v in out.values()] == [[1.0, 2.0], [3.0]]
    assert (out["w"].data_ptr() == where) is owned
    assert sums["w"].tolist() == ([1.0, 2.0] if owned else [2.0, 4.0])
    assert out["followed"].data_ptr() != sums["followed"].data_ptr()


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [None, 2, True])
def test_weights_are_in_the_accumulation_dtype(dtype, weight):
    params, x = {"w": W["w"].to(dtype)}, ROWS.to(dtype)
    f = gf.per_sample_grads(lambda p, x: linear(p, x) if weight is None else gf.Weighted(linear(p, x), weight))
    g, wide = f(params, x), F64 if dtype == F64 else torch.float32
    assert g.weights.dtype == wide
    assert g.losses.dtype == g.mean_loss.dtype == dtype
    assert f.losses(params, x).weight.dtype == wide
    for policy in ("raise", "zero"):
        mean = g.mean(on_zero_weight=policy)["w"]
        assert mean.dtype == dtype
        assert torch.equal(mean, (x.to(wide).sum(0) / (3 * (weight or 1))).to(dtype))


# --- rows from elsewhere, factors for elsewhere ---------------------------------------------------------


def elsewhere():
    like = {"w": torch.empty(2), "b": torch.empty(())}
    rows = _factors.from_rows({"w": ROWS, "b": torch.tensor([1.0, 2.0, 3.0])})
    unused = torch.tensor([[False, True]]).expand(3, 2)
    weights = torch.tensor([1.0, 2.0, 0.0])
    block = Block(rows, torch.arange(3.0), weights, unused)
    return from_source(KeptSource(block, None), like, block.losses, block.weights, "given"), block


def test_rows_from_elsewhere_are_a_value():
    g, block = elsewhere()
    assert (g.names, g.batch_size, g.engine, g.aux) == (("w", "b"), 3, "given", None)
    assert g.unused == ("b",)
    rows = _factors.dense(block.grads)
    want = type(truth(linear, W, 1, (ROWS[:1],)))(
        {k: v.double() for k, v in rows.items()}, block.losses.double(), block.weights.double()
    )
    check_queries(g, want, 1e-6)
    assert g.explain() == "engine given: rows are read, not computed. 3 rows of 3 entries in 2 parameters, kept."


def test_factors_for_elsewhere_are_the_rows_times_their_coefficients():
    params, batch = problem()
    for options in ({}, {"chunk_size": 2}, {"engine": "loop", "chunk_size": 1}):
        g = gf.per_sample_grads(loss, **options)(params, *batch).scaled(C)._focused(("w", "v"))
        rows = g.materialize()
        seen = []
        for at, part in factors_of(g, "given away"):
            own = torch.arange(SIZE)[at]
            seen += own.tolist()
            assert list(part) == ["w", "v"]
            for name, value in _factors.dense(part).items():
                close(value, rows[name][own], flat(rows).norm(dim=1).max() + 1, name)
        assert sorted(seen) == list(range(SIZE))


LONE = {"first": [1.0, 0.0, 0.0], "last": [0.0, 0.0, 2.0], "two": [1.0, 0.0, 3.0], "none": [0.0, 0.0, 0.0]}


@pytest.mark.parametrize("chunk_size", ["auto", 1, 2])
@pytest.mark.parametrize("name", LONE)
def test_factors_of_samples_that_count(name, chunk_size):
    """Of a chunk in which one sample alone counts, that one; of a chunk in which some do, all; of others nothing."""
    weights = torch.tensor(LONE[name], dtype=F64)
    params = {"w": torch.tensor([[1.0], [-2.0]], dtype=F64)}

    def scored(p, x, w):
        return gf.Weighted((x @ p["w"]).square().sum() * w, w)

    x = ROWS.double() + 1
    run = gf.per_sample_grads(scored, chunk_size=chunk_size, loss_scale=4.0).evaluation(params, (x, weights), {})
    rows = truth(scored, params, 3, (x, weights)).rows["w"]
    want, got = [], []
    for at in torch.arange(3).split(3 if chunk_size == "auto" else chunk_size):
        counted = at[weights[at] > 0]
        if len(counted):
            want.append(counted if len(counted) == 1 else at)
    for factors, counted, scale in run.factors():
        assert scale == 4.0
        got.append((_factors.dense(factors)["w"] / scale, counted))
    assert len(got) == len(want)
    for (value, counted), own in zip(got, want, strict=True):
        close(value, rows[own], 1 + rows.abs().max(), "rows")
        assert torch.equal(counted, weights[own])


# --- what is said -------------------------------------------------------------------------------------


def test_what_is_said_where_torch_alone_can_draw():
    def drawn(p, x):
        return (p["w"] * x).sum() * torch.poisson(torch.ones(()))

    with pytest.warns(gf.GradfuncWarning) as caught:
        gf.per_sample_grads(drawn).at(0)(W, ROWS)
    (text,) = [str(one.message) for one in caught]
    assert text == (
        "gf.per_sample_grads(loss)(params, ...): torch.func cannot run this loss (it draws what torch alone can draw, "
        "which vmap gives to a batch and not to a sample by its name); using one autograd call a sample. Results are "
        "exact but cost one backward pass a sample; pass engine='loop' to say that this is meant."
    )


def outside():
    return torch._C._functorch.peek_interpreter_stack() is None


@pytest.mark.parametrize("only", [None, torch.float32])
def test_a_loss_that_is_another_one_under_vmap_is_told_by_sample(only):
    """By the sample that runs alone; also where it runs alone in one precision only."""

    def loss(p, x):
        if only is not None and outside() and x.dtype != only:
            raise ValueError("one precision only")
        return (p["w"] * x).sum().square() * (1.0 if outside() else 2.0)

    said = r"the row of sample 0, and one autograd call of that sample outside of vmap differ by .* for sample 0, and"
    with pytest.raises(RuntimeError, match=rf"engine factored that fail verification: {said}"):
        gf.per_sample_grads(loss, engine="factored")(W, ROWS)


# --- chunks -------------------------------------------------------------------------------------------

P3 = {"a": torch.zeros(5, dtype=F64), "b": torch.zeros(3, dtype=torch.float16)}  # 8 entries, 46 bytes
CHOSEN = {
    "asked": ((3, P3, 7), {}, (3, False)),
    "asked for more than there are": ((9, P3, 7), {}, (9, False)),
    "all": ((None, P3, 7), {}, (7, False)),
    "all of none": ((None, P3, 0), {}, (1, False)),
    "auto": (("auto", P3, 7), {}, (2, True)),
    "auto, few samples": (("auto", P3, 1), {}, (1, True)),
    "auto, no samples": (("auto", P3, 0), {}, (1, True)),
    "auto, no rows": (("auto", P3, 7), {"whole": True}, (7, True)),
    "auto, no rows, no samples": (("auto", P3, 0), {"whole": True}, (1, True)),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_size_of_a_chunk(name, monkeypatch):
    """Of a machine in which two rows are a sixteenth of the memory."""
    monkeypatch.setattr(_chunks, "_machine_memory", lambda: 16 * (2 * 46 + 45))
    args, options, (size, automatic) = CHOSEN[name]
    got = _chunks.Chunks.choose(*args, **options)
    assert got == _chunks.Chunks(size, automatic, 8, 46)
    assert got.automatic is automatic


@pytest.mark.parametrize(("entries", "size"), [(0, 4), (2**40, 1)])
def test_rows_of_no_bytes_and_rows_that_nothing_holds(entries, size):
    params = {"w": torch.empty(entries, device="meta")}
    assert _chunks.Chunks.choose("auto", params, 4).size == size


def test_what_does_not_fit_is_told_in_numbers():
    def tight(p, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = "B x P = 3 x 2 entries, 24 bytes in all, besides what the forward pass keeps"
    for chunk_size, at_once, do in (
        (2, "2 samples at a time", "Set a smaller chunk_size=, or chunk_size='auto'; or ask for sum()"),
        (1, "one sample at a time", "Set wrt= to differentiate fewer parameters; or ask for sum()"),
        ("auto", "one sample at a time", "Set wrt= to differentiate fewer parameters; or ask for sum()"),
    ):
        with pytest.raises(torch.OutOfMemoryError) as raised:
            gf.per_sample_grads(tight, chunk_size=chunk_size)(W, ROWS)
        assert f"out of memory with {at_once}: {rows}; expected rows that fit. {do}" in str(raised.value)


@pytest.mark.parametrize("query", ["norms", "sum", "materialize", "gram"])
def test_what_does_not_fit_later_is_told_in_numbers(query):
    room = [True]

    def tight(p, x):
        if not room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return linear(p, x)

    g = gf.per_sample_grads(tight, chunk_size=2)(W, ROWS)
    room.clear()
    with pytest.raises(torch.OutOfMemoryError, match=rf"^g\.{query}\(\): got .* 3 x 2 entries, 24 bytes in all"):
        getattr(g, query)()


# --- calls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "factored", "vmap", "loop"])
def test_an_empty_batch_runs_nothing(engine):
    calls = []

    def counted(p, x):
        calls.append(1)
        return linear(p, x)

    f = gf.per_sample_grads(counted, engine=engine)
    g, losses = f(W, ROWS[:0]), f.losses(W, ROWS[:0])
    assert not calls
    assert (g.batch_size, g.losses.shape, g.weights.shape) == (0, (0,), (0,))
    assert (losses.numerator.shape, losses.weight.shape, losses.weight.dtype) == ((0,), (0,), torch.float32)
    assert g.sum()["w"].tolist() == [0.0, 0.0]
    assert not calls


@pytest.mark.parametrize("options", [{"randomness": "same"}, {"batched": True}])
def test_one_draw_for_all_needs_no_loop(options):
    def drawn(p, x):
        return (p["w"] * x).sum(-1) * (1 + torch.poisson(torch.ones(())))

    g = gf.per_sample_grads(drawn, **options).at(0)(W, ROWS)
    assert g.engine == "factored"
    rows = g.materialize()["w"] / ROWS
    each = rows[ROWS != 0]
    assert torch.equal(each, each[:1].expand_as(each))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.float16])
@pytest.mark.parametrize("made", ["scaled", "weighted", "rescaled", "by norms"])
def test_coefficients_are_held_in_float64(made, dtype):
    g = gf.per_sample_grads(linear)(W, ROWS)
    c = torch.ones(3, dtype=dtype)
    out = g.rescaled(lambda norms: c) if made == "by norms" else getattr(g, made)(c)
    assert [step.fixed.dtype for step in out._scales.steps] == [F64]
    assert same_bits(out.sum(), g.sum())


def test_coefficients_that_meet_again_neither_overflow_nor_underflow():
    g = gf.per_sample_grads(linear)(W, ROWS)
    small, large = torch.full((3,), 1e-30), torch.full((3,), 1e30)
    out = g.rescaled(small).rescaled(small).rescaled(large).rescaled(large)
    close(out.sum()["w"], ROWS.sum(0), ROWS.abs().sum(), "sum", 4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_an_accumulator_answers_in_the_parameters_types(dtype):
    params, x = {"w": W["w"].to(dtype)}, torch.ones(257, 2, dtype=dtype)
    acc = gf.Accumulator.init(params)
    for part in x.split(1 if dtype == F64 else 257):
        acc = acc.add(gf.per_sample_grads(linear, verify=False)(params, part))
    assert acc.totals["w"].dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert acc.totals["w"].tolist() == [257.0, 257.0]
    assert (acc.weight.dtype, float(acc.weight)) == (F64, 257.0)
    for out in (acc.sum(), acc.mean(), acc.mean(on_zero_weight="zero")):
        assert out["w"].dtype == dtype
    assert acc.mean()["w"].tolist() == [1.0, 1.0]


# --- judged -------------------------------------------------------------------------------------------

U, U2 = 2.0**-24, 2.0**-53
# name -> sizes of a difference on a scale of 1 in two precisions (None: not repeated), how far the data's own rounding
# moves it, how far it moves by itself; what is raised
JUDGED = {
    "rounding": ((1e-6, 1e-15), 0.0, 0.0, None),
    "wrong in both": ((1e-3, 1e-3), 0.0, 0.0, "that is no rounding"),
    "wrong, small": ((1e-5, 1e-5), 0.0, 0.0, "that is no rounding"),
    "moved by its data": ((1e-3, 1e-3), 2e-3, 0.0, None),
    "half the digits of what is moved": ((1e-3, 1e-3), 2e-6, 0.0, None),
    "less than half of them": ((1e-3, 1e-3), 5e-7, 0.0, "that is no rounding"),
    "not repeated, half the digits": ((1e-4, None), 0.0, 0.0, None),
    "not repeated, wrong": ((1e-3, None), 0.0, 0.0, "that is no rounding"),
    "not a number": ((float("nan"), float("nan")), 1.0, 0.0, "that is no rounding"),
    "another one each time": ((1e-3, 1e-3), 0.0, 1e-2, "something else at each run"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_judgements(name, monkeypatch):
    sizes, moved, unchanged, said = JUDGED[name]
    value, asked = gf.per_sample_grads(linear)(W, ROWS), []

    def measured(size, u):
        found = {check: Difference(0.0, 1.0) for check in ("weighted sum", "alone")}
        found["norms"] = Difference(size, 1.0, sample=2)
        return _verify._Measured("a call", value, found, u, lambda nest: nest)

    def apart(value, other):
        asked.append(1)
        size = unchanged if len(asked) == 1 else moved
        return {"weighted sum": 0.0, "alone": 0.0, "norms": size}

    monkeypatch.setattr(_verify, "_repeated", lambda *_: None if sizes[1] is None else measured(sizes[1], U2))
    monkeypatch.setattr(_verify, "_apart", apart)
    if said is None:
        _verify._judge(measured(sizes[0], U), lambda change: (None, value))
    else:
        with pytest.raises(RuntimeError, match=rf"^a call: got .*{said}"):
            _verify._judge(measured(sizes[0], U), lambda change: (None, value))
