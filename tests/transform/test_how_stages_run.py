"""What each stage is told of how it is run: what it may overwrite, whether it lands, who listens, which parameters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from problem import F64, loss, plain, problem

import gradfunc as gf
from gradfunc._transform._chain import Same, Stage
from gradfunc._transform._landing import Landing
from gradfunc._transform._stage import AnyStage, How

STARTS = [How(said, *flags) for said in (None, []) for flags in itertools.product((False, True), repeat=3)]


@dataclass(frozen=True, repr=False)
class Told(Stage[Any, Any]):
    """Passes on what it is given, and notes how; flushes what it is told to hold."""

    label: str = "told"
    fresh: bool = True
    takes: Any = gf.Grads
    gives: Any = gf.Grads
    holds: Any = None
    notes: list[Any] = field(default_factory=list, compare=False)

    @property
    def name(self):
        return self.label

    def init(self, params):
        return {"params": list(params)}

    def apply(self, grads, state, params, how, /):
        self.notes.append((how, None if params is None else list(params), state))
        how.say(self.name, lambda: {"entries": float(len(state["params"]))})
        return grads, state

    def flushed(self, state, params, how, /):
        self.notes.append((how, None if params is None else list(params), state))
        return self.holds, state

    def flush(self, state, params=None, /):
        return self.flushed(state, params, How())


class Own:
    """A user's stage."""

    takes = gives = gf.Grads

    def init(self, params):
        return {"params": list(params)}

    def update(self, grads, state, params=None, /):
        return grads, state


def values():
    return {k: torch.full((2,), float(n), dtype=F64) for n, k in enumerate(("a", "b", "c"))}


def noted(stage):
    """What it was told, once; `said` must be the very list."""
    (note,) = stage.notes
    stage.notes.clear()
    return note


def same_how(got, want):
    assert got.said is want.said
    assert (got.owned, got.donate, got.lands) == (want.owned, want.donate, want.lands)
    assert all(type(flag) is bool for flag in (got.owned, got.donate, got.lands))


# --- a chain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", list(itertools.product((False, True), repeat=2)))
def test_a_chain_tells_each_stage_what_is_its_own(fresh):
    """Owned is what the caller gave up, or what a stage before made; the last stage alone may land."""
    a, b, c = (Told(label, made) for label, made in zip("abc", (*fresh, True), strict=True))
    for start in STARTS:
        step = gf.chain(a, b, c)
        out, state = step.apply(values(), step.init(values()), values(), start)
        assert list(out) == list(state) == ["a", "b", "c"]
        own = start.owned, start.owned or fresh[0], start.owned or any(fresh)
        for stage, owned in zip((a, b, c), own, strict=True):
            how, params, kept = noted(stage)
            same_how(how, How(start.said, owned, start.donate, start.lands and stage is c))
            assert params == kept["params"] == ["a", "b", "c"]
        step.apply(values(), step.init(values()), None, start)
        assert [noted(stage)[1] for stage in (a, b, c)] == [None] * 3
    assert gf.chain(a, b).fresh is any(fresh)
    assert gf.chain(a, Own()).fresh is gf.chain().fresh is False
    assert gf.chain(Own(), c).fresh is True


def test_behind_a_users_stage_nothing_is_owned():
    a, b = Told("a"), Told("b")
    step = a >> Own() >> b
    for start in STARTS:
        step.apply(values(), step.init(values()), values(), start)
        same_how(noted(a)[0], How(start.said, start.owned, start.donate, False))
        same_how(noted(b)[0], How(start.said, False, start.donate, start.lands))


@pytest.mark.parametrize("fresh", [False, True])
def test_what_waited_goes_through_the_stages_behind(fresh):
    before, waits = Told("before"), Told("waits", holds=values())
    behind, last = Told("behind", fresh), Told("last")
    step = Own() >> before >> waits >> behind >> last
    state = step.init(values())
    for start in STARTS:
        out, kept = step.flushed(state, values(), start)
        assert list(out) == ["a", "b", "c"]
        assert kept == state
        for stage in (before, waits):
            how, params, own = noted(stage)
            assert how is start
            assert params == own["params"] == ["a", "b", "c"]
        for stage in (behind, last):  # what waited is nobody else's
            how, params, own = noted(stage)
            same_how(how, How(start.said, True, start.donate, False))
            assert params == own["params"] == ["a", "b", "c"]
    assert step.flush(state, values()) == (waits.holds, state)
    same_how(noted(waits)[0], How())
    same_how(noted(last)[0], How(owned=True))
    assert (before >> behind).flush((before >> behind).init(values())) == (None, (before >> behind).init(values()))
    behind_own = waits >> Own() >> last
    last.notes.clear()
    behind_own.flushed(behind_own.init(values()), None, How())
    same_how(noted(last)[0], How())


# --- parts ------------------------------------------------------------------------------------------------


def parts(a, b=None):
    """A stage on `a` and `c`; or two, of which the second has `b`."""
    return gf.masked(a, ["a", "c"]) if b is None else gf.partition({"x": a, "y": b}, {"b": "y", ".*": "x"})


@pytest.mark.parametrize("whole", [False, True], ids=["masked", "partition"])
def test_parts_are_told_the_same_but_do_not_land(whole):
    a, b = Told("a"), Told("b")
    step = parts(a, b if whole else None)
    state = step.init({**values(), "b": values()["b"]})
    for start in STARTS:
        for params in (values(), {k: v for k, v in values().items() if k != "c"}, None):
            out, new = step.apply(values(), state, params, start)
            assert list(out) == ["a", "b", "c"]
            assert new == state
            expected = [(a, ["a", "c"])] + ([(b, ["b"])] if whole else [])
            for stage, names in expected:
                how, given, own = noted(stage)
                same_how(how, How(start.said, start.owned, start.donate, False))
                assert own["params"] == names
                assert given == (None if params is None else [name for name in names if name in params])


@pytest.mark.parametrize("whole", [False, True], ids=["masked", "partition"])
def test_parts_of_rows_are_told_the_same(whole):
    g, _ = plain(torch.eye(3, dtype=F64))
    a, b = (Told(label, takes=gf.PerSampleGrads, gives=gf.PerSampleGrads) for label in "ab")
    step = gf.partition({"x": a, "y": b}, {"b": "y", ".*": "x"}) if whole else gf.masked(a, "a")
    params = {"a": torch.zeros(1), "b": torch.zeros(2)}
    for start in STARTS:
        out, _ = step.apply(g, step.init(params), params, start)
        assert out.names == ("a", "b")
        for stage, names in ((a, ["a"]), (b, ["b"]))[: 1 + whole]:
            how, given, own = noted(stage)
            same_how(how, How(start.said, start.owned, start.donate, False))
            assert given == own["params"] == names


@pytest.mark.parametrize("whole", [False, True], ids=["masked", "partition"])
def test_parts_flush_what_waits_in_them(whole):
    a, b = Told("a", holds={"c": torch.ones(1), "a": torch.ones(2)}), Told("b", holds={"b": torch.zeros(1)})
    step = parts(a, b if whole else None)
    state = step.init(values())
    for start in STARTS:
        out, new = step.flushed(state, values(), start)
        assert list(out) == (["c", "a", "b"] if whole else ["c", "a"])
        assert new == state
        for stage in (a, b)[: 1 + whole]:
            how, given, own = noted(stage)
            assert how is start
            assert given == ["a", "b", "c"]
            assert own == stage.init(["b"] if stage is b else ["a", "c"])
    out, new = step.flush(state, values())
    assert list(out)[:2] == ["c", "a"]
    assert new == state
    same_how(noted(a)[0], How())
    none = parts(Told("a"), Told("b") if whole else None)
    assert none.flush(state, values()) == (None, state)
    own = parts(Own(), Own() if whole else None)
    assert own.flush(state, values()) == (None, state)
    if whole:
        half = parts(a, Told("b"))
        with pytest.raises(ValueError, match=r"some wait for more batches and some do not; expected parts"):
            half.flush(state, values())
        waiting = parts(gf.stateless_transform(lambda g: g), gf.stateless_transform(lambda g: None))
        with pytest.raises(ValueError, match=r"^partition.*some wait for more batches and some do not; expected parts"):
            waiting.update(values(), waiting.init(values()))


def test_a_part_without_parameters_is_not_run():
    a, b = Told("a"), Told("b")
    step = parts(a, b)
    given = {k: v for k, v in values().items() if k == "b"}
    labels = gf.partition(step.stages, lambda name, value: "y" if name == "b" else "x")
    out, state = labels.update(given, labels.init(values()))
    assert list(out) == ["b"]
    assert state == labels.init(values())
    assert a.notes == []
    assert labels.update({}, state) == ({}, state)


# --- the ways to ask --------------------------------------------------------------------------------------


class Passes(Same):
    """A stage of any place, by the shortest way."""

    name = "passes"

    def __init__(self):
        self.notes = []

    apply = Told.apply


class Least(AnyStage):
    """The same of the class of all."""

    name = "least"
    takes = gives = gf.Grads

    def __init__(self):
        self.notes = []

    apply = Told.apply


@pytest.mark.parametrize("make", [Told, Passes, Least])
def test_update_says_what_may_be_overwritten(make):
    stage = make()
    state = {"params": ["a"]}
    for options in ({}, {"donate": False}, {"donate": True}):
        donate = options.get("donate", False)
        given = values()
        out, kept = stage.update(given, state, given, **options)
        how, params, own = noted(stage)
        same_how(how, How(None, donate, donate))
        assert (out is given, kept is own is state, params) == (True, True, ["a", "b", "c"])
        out, kept, report = stage.update_with_report(given, state, given, **options)
        how, params, own = noted(stage)
        same_how(how, How(how.said, donate, donate))
        assert (out is given, kept is own is state, params) == (True, True, ["a", "b", "c"])
        assert [(name, dict(facts)) for name, facts in report.stages] == [(stage.name, {"entries": 1.0})]
        for ask in (stage.update, stage.update_with_report):
            ask(given, state, **options)
            assert noted(stage)[1] is None
    assert Least().init(values()) == ()
    assert Least().flush(state) == Least().flushed(state, None, How()) == (None, state)
    assert (Least.fresh, Least.transparent, Least.acts_on) == (True, False, ())
    assert (Same.fresh, Same.transparent) == (False, True)
    assert Passes().takes is Passes().gives is None
    assert Same.acts_on == (gf.PerSampleGrads, gf.Grads, gf.Updates)


@pytest.mark.parametrize("report", [False, True])
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("gives", [gf.Grads, gf.Updates])
def test_a_step_owns_its_rows_and_lands_updates(gives, donate, report):
    params, batch = problem()
    last = Told("last", gives=gives)
    step = gf.mean() >> last
    run = gf.make_step(loss, step, donate=donate, report=report)
    _, _, said = run(params, step.init(params), *batch)
    how, given, _ = noted(last)
    same_how(how, How(how.said, True, donate, gives is gf.Updates))
    assert (how.said is not None) is report
    assert given == list(params)
    assert [name for name, _ in said.stages] == (["mean", "last"] if report else [])
    usual = gf.make_step(loss, step)
    assert (usual.donate, usual.report) == (False, True)


class Lands(Told):
    """Ends at zeros, all at once where that is asked for."""

    def apply(self, grads, state, params, how, /):
        self.notes.append((how, None, state))
        zeros = {k: torch.zeros_like(v) for k, v in params.items()}
        return (Landing.at_once(zeros) if how.lands else {k: z - params[k] for k, z in zeros.items()}), state


@pytest.mark.parametrize("behind", [gf.scale(0.5), gf.stateless_transform(lambda updates: updates)])
def test_updates_that_a_stage_behind_reads_do_not_land(behind):
    """Behind a rule that could land at once stands a stage on its updates: it sees differences."""
    params, batch = problem()
    rule = Lands("rule", gives=gf.Updates)
    step = gf.mean() >> rule >> behind
    step.update(gf.per_sample_grads(loss)(params, *batch), step.init(params), params)
    assert not noted(rule)[0].lands
    alone = gf.make_step(loss, gf.mean() >> rule)
    now, _, _ = alone(params, (gf.mean() >> rule).init(params), *batch)
    assert noted(rule)[0].lands
    assert not any(value.any() for value in now.values())
    if behind.name != "scale":
        return
    now, _, _ = gf.make_step(loss, step)(params, step.init(params), *batch)
    assert not noted(rule)[0].lands
    assert all(torch.equal(now[k], params[k] + 0.5 * -params[k]) for k in params)


@dataclass(frozen=True, repr=False)
class Gives(Told):
    """Updates made beforehand."""

    def apply(self, grads, state, params, how, /):
        return gf.Updates(self.holds), state


class OwnGives(Own):
    """The same of a user's."""

    gives = gf.Updates

    def __init__(self, holds):
        self.holds = holds

    def update(self, grads, state, params=None, /):
        return gf.Updates(self.holds), state


@pytest.mark.parametrize("whole", [False, True], ids=["in a chain", "alone"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("kind", ["fresh", "handed on", "own"])
def test_updates_that_nobody_holds_become_the_parameters(kind, dtype, whole):
    """A stage's own of the parameters' dtype do, so that a step makes no tensor more; all others stay as they are."""
    params, batch = problem()
    holds = {k: torch.full_like(v, 0.5, dtype=dtype) for k, v in params.items()}
    rule = OwnGives(holds) if kind == "own" else Gives("gives", kind == "fresh", gives=gf.Updates, holds=holds)
    if whole:
        object.__setattr__(rule, "takes", gf.PerSampleGrads)
    step = rule if whole else gf.mean() >> rule
    now, _, _ = gf.make_step(loss, step)(params, step.init(params), *batch)
    taken = dtype == F64 and (kind == "fresh" or (kind == "handed on" and not whole))  # handed on: what a mean made
    for k, value in params.items():
        assert torch.equal(now[k], value + 0.5)
        assert (now[k].data_ptr() == holds[k].data_ptr()) is taken
        assert torch.equal(holds[k], now[k] if taken else torch.full_like(value, 0.5, dtype=dtype))
    holds = {k: torch.full_like(v, 0.5, dtype=dtype) for k, v in params.items()}
    again = gf.apply_updates(params, gf.Updates(holds))
    assert all(bool((v == 0.5).all()) and again[k].data_ptr() != v.data_ptr() for k, v in holds.items())
