"""Rows whose entries go through a function, and rows of some parameters alone, against the oracle's rows."""

from __future__ import annotations

import pytest
import torch
from oracle import Truth, check_queries, flat
from test_derived import F64, KINDS, B, given, joined, losses, problem, taken, times
from tiers import every, quick
from torch.utils._python_dispatch import TorchDispatchMode

import gradfunc as gf
from gradfunc import _factors
from gradfunc._factors import Mapped, _concatenated
from gradfunc._per_sample import _piece, _scales
from gradfunc._per_sample._scales import Step

C = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, 1e-3], dtype=F64)
SOME = ("v", "idle")
QUICK = ["kept", "factors", "factors, streamed"]


def clamp(values):
    return values.clamp(-0.3, 0.3)


def clip(norms, given=None):
    return (1 / norms).clamp(max=1.0)


def through(want: Truth, fn, names=None) -> Truth:
    rows = {k: fn(v) if names is None or k in names else v for k, v in want.rows.items()}
    return want._replace(rows=rows)


def rescaled(want: Truth, c, names=None) -> Truth:
    """Rows of some parameters times numbers, or times a function of their norm together."""
    own = {k: v for k, v in want.rows.items() if names is None or k in names}
    c = c if isinstance(c, torch.Tensor) else c(flat(own).norm(dim=1))
    c = c.nan_to_num()  # a norm of 0 may have no factor
    scaled = times(Truth(own, want.losses, want.weights), c).rows
    return want._replace(rows={k: scaled.get(k, v) for k, v in want.rows.items()})


def signs(want):
    return through(want, torch.sign)


def on(g, names, change):
    """What a masked stage does."""
    return change(g._focused(names))._unfocused(g.names)


def check_entries(kind, device="cpu"):
    g, want = given(kind, device)
    c = C.to(device)
    check_queries(g._mapped(clamp), through(want, clamp))
    check_queries(g._mapped(torch.sign), through(want, torch.sign))
    check_queries(g.scaled(c)._mapped(clamp).scaled(-c), times(through(times(want, c), clamp), -c))
    check_queries(
        g._rescaled(clip)._mapped(clamp)._rescaled(clip), rescaled(through(rescaled(want, clip), clamp), clip)
    )


def check_entries_selected_and_joined(kind, device="cpu"):
    g, want = given(kind, device)
    index = torch.tensor([4, 0, 3])
    clamped, truth = g.scaled(C.to(device))._mapped(clamp), through(times(want, C.to(device)), clamp)
    check_queries(clamped.select(index), taken(truth, index))
    check_queries(gf.concatenate([clamped, g, clamped]), joined(joined(truth, want), truth))
    check_queries(gf.concatenate([clamped, clamped.select(index)]), joined(truth, taken(truth, index)))
    mixed, both = gf.concatenate([g._mapped(clamp), g._mapped(torch.sign)]), joined(through(want, clamp), signs(want))
    index = torch.tensor([7, 1, 10, 4])
    check_queries(mixed.select(index), taken(both, index))
    check_queries(gf.concatenate([clamped, g]).select(index), taken(joined(truth, want), index))


def check_groups(kind, device="cpu"):
    g, want = given(kind, device)
    c = C.to(device)
    check_queries(on(g, SOME, lambda part: part._rescaled(clip)), rescaled(want, clip, SOME))
    both = on(on(g, SOME, lambda part: part._rescaled(clip)), ("w",), lambda part: part._rescaled(clip))
    truth = rescaled(rescaled(want, clip, SOME), clip, ("w",))
    check_queries(both, truth)
    check_queries(both._rescaled(clip).scaled(c), times(rescaled(truth, clip), c))
    whole = on(g._rescaled(clip), ("w",), lambda part: part._rescaled(clip)._rescaled(c))
    check_queries(whole, rescaled(rescaled(rescaled(want, clip), clip, ("w",)), c, ("w",)))


def check_a_part_alone(kind, device="cpu"):
    """What a stage within `masked` sees: the value as if there were no other parameters."""
    g, want = given(kind, device)
    part = want._replace(rows={k: want.rows[k] for k in SOME})
    check_queries(g._focused(SOME), part)
    assert g._focused(SOME).unused == tuple(name for name in g.unused if name in SOME)
    clipped = rescaled(want, clip)
    seen = g._rescaled(clip)._focused(SOME)
    check_queries(seen, want._replace(rows={k: clipped.rows[k] for k in SOME}))


def check_groups_selected_and_joined(kind, device="cpu"):
    g, want = given(kind, device)
    index = torch.tensor([5, 1])
    some = on(g, SOME, lambda part: part._rescaled(clip))
    other = on(g, ("w",), lambda part: part._rescaled(C.to(device)))
    a, b = rescaled(want, clip, SOME), rescaled(want, C.to(device), ("w",))
    check_queries(some.select(index), taken(a, index))
    check_queries(gf.concatenate([some, other, g]), joined(joined(a, b), want))
    check_queries(
        gf.concatenate([some, some]).select(torch.tensor([11, 2])), taken(joined(a, a), torch.tensor([11, 2]))
    )


def check_entries_of_some(kind, device="cpu"):
    g, want = given(kind, device)
    changed = on(g._rescaled(clip), SOME, lambda part: part._mapped(clamp))
    check_queries(changed, through(rescaled(want, clip), clamp, SOME))


LAWS = [
    check_entries,
    check_entries_selected_and_joined,
    check_groups,
    check_a_part_alone,
    check_groups_selected_and_joined,
    check_entries_of_some,
]


@pytest.mark.parametrize("kind", quick(QUICK, KINDS))
@pytest.mark.parametrize("law", LAWS)
def test_laws(law, kind, device):
    law(kind, device)


def test_what_is_scaled_alone_stays_factored():
    """Clipped rows, of which the entries of one parameter are mapped: the others are no rows."""
    torch.manual_seed(0)
    params = {"w": torch.randn(64, 64, dtype=F64), "b": torch.randn(64, dtype=F64)}

    def one(p, x):
        return torch.tanh(x @ p["w"] + p["b"]).square().sum()

    g = gf.per_sample_grads(one, engine="factored")(params, torch.randn(40, 3, 64, dtype=F64))
    c = torch.ones(40, dtype=F64)
    c[3] = 0
    changed = on(g._rescaled(clip)._rescaled(c), ("b",), lambda part: part._mapped(clamp))
    rows = g._rescaled(clip)._rescaled(c).materialize()
    with Largest() as largest:
        sums, norms = changed.sum(), changed.norms()
    assert largest.entries <= 40 * 3 * 64 < 40 * 64 * 64  # a scaled half of its factor
    want = {"w": rows["w"], "b": clamp(rows["b"])}
    scale = flat(want).norm(dim=1)
    assert bool(((norms - scale).abs() <= 1e-12 * scale).all())
    assert all(bool(((sums[k] - v.sum(0)).abs() <= 1e-12 * scale.sum()).all()) for k, v in want.items())


def test_per_unit_of_weight():
    g, want = given("kept")
    unit = g._per_unit()
    check_queries(unit, times(want, 1 / want.weights)._replace(weights=torch.ones(B, dtype=F64)))
    masked = g.weighted(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=F64))._per_unit()
    assert masked.weights.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert float(masked.norms()[0]) == float(masked.losses[0]) == 0.0


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
def test_entries_and_groups_are_differentiated_again(engine):
    """Of the sum of clamped, group-clipped rows, by its own graph against autograd of the same in plain torch."""
    params, (x, y) = problem()
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}

    def one(p, x, y):
        return ((torch.tanh(x @ p["w"]) @ p["v"] - y).square()).sum()

    def clipped(rows):
        c = (1 / rows["w"].flatten(1).norm(dim=1)).clamp(max=1.0)
        return {k: (v * c[:, None, None] if k == "w" else v).clamp(-0.3, 0.3) for k, v in rows.items()}

    used = {k: leaves[k] for k in ("w", "v")}
    g = gf.per_sample_grads(one, engine=engine, wrt=["w", "v"])(used, x, y)
    value = on(g, ("w",), lambda part: part._rescaled(clip))._mapped(clamp)
    total = sum(v.square().sum() for v in value.sum().values())
    got = torch.autograd.grad(total, list(used.values()))

    grads = [torch.autograd.grad(one(used, x[i], y[i]), list(used.values()), create_graph=True) for i in range(len(x))]
    rows = {k: torch.stack([each[n] for each in grads]) for n, k in enumerate(used)}
    plain = sum(v.sum(0).square().sum() for v in clipped(rows).values())
    want = torch.autograd.grad(plain, list(used.values()))
    for mine, theirs in zip(got, want, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12 * float(theirs.abs().max()))


def test_coupled_batches_too():
    params, batch = problem()
    g = gf.per_sample_grads(losses, batched=True, engine="factored")(params, *batch)
    assert g._mapped(clamp).norms().max() <= 0.3 * sum(v.numel() for v in params.values()) ** 0.5


class Largest(TorchDispatchMode):
    """The most entries that one tensor made here has."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def check_never_all_rows():
    """64 rows of 256 x 256: the whole would be 2^22 entries, the scratch budget is 2^16 or one row."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, 256)
    g = gf.per_sample_grads(lambda p, x: (x @ p["w"]).square().sum(), engine="factored")(
        {"w": torch.randn(256, 256)}, x
    )
    assert "outer" in g.explain()
    clamped = g._mapped(clamp)
    v = g.sum()
    with Largest() as largest:
        clamped.sum()
        clamped.norms()
        clamped.dot(v)
        clamped.gram()
    assert largest.entries <= 2 * 2**16


def test_rows_are_never_formed_all_at_once():
    check_never_all_rows()


def test_a_function_of_entries_is_shown():
    g, _ = given("factors")
    assert "mapped" in g._mapped(clamp).explain()


# --- mistakes -------------------------------------------------------------------------------------------------------


def unscaled(self):
    return self.fn(self.inner.dense())


def forgotten(self, index):
    return Step(self.fixed[index], self.functions, self.which[index])


def everywhere(rows, c, scaled=_factors.scaled):
    return _factors.through(rows, clamp, c)


def unscaled_others(rows, c):
    return rows


def first_group(self, name):
    return self.groups[0][1]


def formed_whole(self, scratch):
    yield slice(0, self.size), self.dense().flatten(1).to(self.dtype)


MUTANTS = {
    "scales behind the function": (Mapped, "dense", unscaled, lambda: check_entries("factors")),
    "a selection forgets the group": (Step, "select", forgotten, lambda: check_groups_selected_and_joined("streamed")),
    "all parameters mapped": (_factors, "scaled", everywhere, lambda: check_entries_of_some("factors")),
    "the others as they were": (_factors, "scaled", unscaled_others, lambda: check_entries_of_some("factors")),
    "one coefficient for all groups": (_piece.Piece, "coefficient", first_group, lambda: check_groups("kept")),
    "the norm of the first group alone": (
        _scales,
        "_by_then",
        lambda norms, total, groups: norms(groups[0][0]),
        lambda: check_groups("streamed"),
    ),
    "formed whole": (Mapped, "_blocks", formed_whole, check_never_all_rows),
    "maps of different functions joined": (
        _concatenated,
        "_maps",
        lambda parts: [(at, f) for at, g in parts for f in g.factors if isinstance(f, Mapped)] or None,
        lambda: check_entries_selected_and_joined("kept"),
    ),
}


@pytest.mark.parametrize("name", every(3, MUTANTS))
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, RuntimeError, IndexError, KeyError, ValueError)):
        law()
