"""Each planted mistake turns the test of its graph red, and `gf.testing.certify` sees it where it can."""

from __future__ import annotations

import pytest
import torch
from oracle import close

import gradfunc as gf
from gradfunc._capture import Plans, _pull, _rules

from .graphs import Model, captured, exact, rows
from .layouts import model
from .mutants import ABSORBED, ONE_CALL, OTHER_GRAPHS, SECOND_CALL, Mutant, lines
from .rules_table import PULL_GRAPHS, RULE_GRAPHS
from .test_plans import DATA, PARAMS, drawn, h, read, xs


def named(mutant: Mutant) -> str:
    return f"{mutant.function}, {mutant.on}: {mutant.old} -> {mutant.new}"


def graph(on: str) -> Model:
    kind, _, rest = on.partition(" ")
    if kind not in ("rule", "pull"):
        return OTHER_GRAPHS[on]
    name, _, what = rest.partition(": ")
    return (RULE_GRAPHS if kind == "rule" else PULL_GRAPHS)[name][what]


def check(made: Model) -> None:
    """Rows, and their norms."""
    exact(made)
    g = gf.per_sample_grads(made.losses, engine="factored", batched=True, verify=False)(made.params, *made.batch)
    norms = torch.cat([value.flatten(1) for value in rows(made).values()], 1).norm(dim=1)
    close(g.norms(), norms, norms, "norms")


def certified(made: Model, f=None) -> bool:
    f = f or gf.per_sample_grads(made.losses, engine="factored", batched=True)
    return gf.testing.certify(f, made.params, made.batch).ok


@pytest.mark.parametrize("mutant", lines(ONE_CALL), ids=named)
def test_a_mistake_in_one_call(mutant, monkeypatch):
    made = graph(mutant.on)
    check(made)
    mutant.plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(made)
    assert not certified(made)


@pytest.mark.slow
@pytest.mark.parametrize("on", sorted({mutant.on for mutant in lines(ONE_CALL)}))
def test_certify_accuses_no_right_answer(on):
    assert certified(graph(on))


def sequence(on: str) -> tuple[Model, Model]:
    """Two batches of the same shapes."""
    if on == "softmax along either":
        batches = [(drawn(5, 3, seed=3), dim) for dim in (1, 0)]
        return tuple(Model(lambda p, x, dim: read(p, h(p, x).softmax(dim)), PARAMS, batch) for batch in batches)
    losses, others, count = DATA[on]
    return tuple(Model(losses, PARAMS, (x, other)) for (x,), other in zip(xs(2, count), others[:2], strict=True))


@pytest.mark.parametrize("mutant", lines(SECOND_CALL), ids=named)
def test_a_mistake_that_shows_on_other_data(mutant, monkeypatch):
    """A plan that is used where it must not be. `certify` sees it if it is given the function that has the plan."""
    first, second = sequence(mutant.on)
    plans = Plans()
    exact(first, plans)
    exact(second, plans)
    mutant.plant(monkeypatch)
    plans = Plans()
    exact(first, plans)
    with pytest.raises(AssertionError):
        exact(second, plans)
    f = gf.per_sample_grads(first.losses, engine="factored", batched=True)
    f(first.params, *first.batch)
    assert not certified(second, f)
    assert certified(second)  # a new function learns from what it is given


def beside(layout: str, samples: int, large: int) -> Model:
    """In float32, one sample with a gradient 1e30 times larger than the others."""
    factor = torch.ones(samples).index_fill(0, torch.tensor(large), 1e30)
    made = model(layout, samples, 2, 3, 2, dtype=torch.float32)
    return made._replace(losses=lambda p, x: made.losses(p, x) * factor)


def lost(made: Model) -> bool:
    """Whether some row is far from the truth on its own scale."""
    got, want = captured(made).gradients, rows(made)
    gaps, own = (
        torch.cat([v.double().reshape(len(v), -1) for v in values], 1).norm(dim=1)
        for values in ([got[k].dense().double() - want[k].double() for k in want], want.values())
    )
    return bool((gaps > 1e-3 * own).any())


@pytest.mark.parametrize("mutant", lines(ABSORBED), ids=named)
def test_a_mistake_that_is_lost_in_rounding(mutant, monkeypatch):
    """A row lost beside one 1e30 times larger: to no weighted sum of both does it make a difference.

    So `certify` sees nothing, and this test alone stands guard.
    """
    layout, samples = mutant.on.split(", ")
    each = [beside(layout, int(samples), large) for large in range(int(samples))]
    assert not any(lost(made) for made in each)
    mutant.plant(monkeypatch)
    wrong = [made for made in each if lost(made)]
    assert wrong
    assert all(certified(made) for made in wrong)


def test_every_rule_has_a_mistake():
    functions = {f"{f.__module__.rpartition('.')[2].strip('_')}.{f.__name__}" for f in rules()}
    elsewhere = {"products.grouped_mm"}  # in single precision: `test_grouped.py`
    assert functions - {mutant.function for mutant in lines(ONE_CALL)} == elsewhere


def rules():
    return [*_rules.RULES.values(), *_rules.LATE.values(), *_pull._PULLS.values()]


def test_the_call_itself_raises():
    """`verify="first"`, which is the default."""
    made = graph("rule AddmmBackward0: right, 0.5 -1.5")
    for mutant in lines(ONE_CALL)[:2]:
        with pytest.MonkeyPatch.context() as patch:
            mutant.plant(patch)
            with pytest.raises(RuntimeError, match="verification"):
                gf.per_sample_grads(made.losses, engine="factored", batched=True)(made.params, *made.batch)
