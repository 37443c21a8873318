"""Schedules against torch's, their edges, and that they are values."""

from __future__ import annotations

import functools
import pickle
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

import gradfunc as gf
from gradfunc import schedules

STEPS = 100
LR = 0.3


def by_torch(factory, steps=STEPS):
    """What torch's scheduler sets, computed here."""
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=LR)
    scheduler, numbers = factory(optimizer), []
    for _ in range(steps):
        numbers.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SequentialLR's own use of what torch deprecates
            scheduler.step()
    return numbers


def sequential(optimizer):
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.01, end_factor=1.0, total_iters=10)
    return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.CosineAnnealingLR(optimizer, 90)], milestones=[10])


PAIRS = {
    "constant": (schedules.constant(LR), lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0)),
    "linear": (
        schedules.linear(0.5 * LR, 0.1 * LR, steps=40),
        lambda o: lr_scheduler.LinearLR(o, 0.5, 0.1, total_iters=40),
    ),
    "cosine": (schedules.cosine(LR, 0.02, steps=100), lambda o: lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.02)),
    "warmup": (schedules.warmup(schedules.cosine(LR, steps=90), steps=10, start=0.01 * LR), sequential),
    "piecewise": (
        schedules.piecewise(LR, {30: 0.1 * LR, 60: 0.01 * LR}),
        lambda o: lr_scheduler.MultiStepLR(o, [30, 60], gamma=0.1),
    ),
    "exponential": (schedules.exponential(LR, 0.97), lambda o: lr_scheduler.ExponentialLR(o, 0.97)),
    "staircase": (
        schedules.exponential(LR, 0.5, every=7, staircase=True),
        lambda o: lr_scheduler.StepLR(o, 7, gamma=0.5),
    ),
    "one_cycle": (
        schedules.one_cycle(LR, steps=100),
        lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=100, cycle_momentum=False),
    ),
    "one_cycle, linear": (
        schedules.one_cycle(LR, steps=100, rise=0.45, start_divisor=10, end_divisor=100, anneal="linear"),
        lambda o: lr_scheduler.OneCycleLR(
            o,
            LR,
            total_steps=100,
            pct_start=0.45,
            div_factor=10,
            final_div_factor=100,
            anneal_strategy="linear",
            cycle_momentum=False,
        ),
    ),
}


def check_torch(name):
    schedule, factory = PAIRS[name]
    steps = STEPS - 1 if name.startswith("one_cycle") else STEPS  # torch's raises behind its last step
    expected = by_torch(factory, steps)
    assert max(abs(schedule(t) - want) for t, want in enumerate(expected)) <= 1e-12
    assert len(set(expected)) > 1 or name == "constant"


@pytest.mark.parametrize("name", PAIRS)
def test_equal_to_torch(name):
    check_torch(name)


@pytest.mark.parametrize("name", [name for name in PAIRS if not name.startswith("one_cycle")])
def test_from_torch_is_torch(name):
    factory = PAIRS[name][1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = schedules.from_torch(factory, lr=LR)
        assert [schedule(t) for t in range(STEPS)] == by_torch(factory)


def check_a_function_of_the_count():
    """In any order, however often: torch's cosine is a recurrence, which a scheduler that is kept would go on with."""
    factory = functools.partial(lr_scheduler.CosineAnnealingLR, T_max=50)
    expected = by_torch(factory, 400)
    for order in ([399, 3, 130, 3, 0], list(range(200)), [130, 129, 399]):
        schedule = schedules.from_torch(factory, lr=LR)
        assert [schedule(t) for t in order] == [expected[t] for t in order]


def test_from_torch_is_a_function_of_the_count():
    check_a_function_of_the_count()


def test_from_torch_leaves_no_trace():
    state = torch.get_rng_state()
    schedules.from_torch(functools.partial(lr_scheduler.StepLR, step_size=3))(5)
    assert torch.equal(torch.get_rng_state(), state)


EDGES = {
    "linear, at its end": (schedules.linear(1.0, 0.25, steps=4), {0: 1.0, 4: 0.25, 5: 0.25, 10**9: 0.25}),
    "linear, one step": (schedules.linear(1.0, 0.0, steps=1), {0: 1.0, 1: 0.0}),
    "cosine, behind its end": (schedules.cosine(1.0, 0.25, steps=4), {0: 1.0, 4: 0.25, 8: 0.25}),
    "exponential, with an end": (schedules.exponential(1.0, 0.5, end=0.2), {0: 1.0, 2: 0.25, 3: 0.2, 2000: 0.2}),
    "exponential, growing to an end": (schedules.exponential(1.0, 2.0, end=3.0), {1: 2.0, 2: 3.0, 9: 3.0}),
    "exponential, between": (schedules.exponential(4.0, 0.25, every=2), {1: 2.0, 2: 1.0}),
    "piecewise, nothing": (schedules.piecewise(2.0, {}), {0: 2.0, 7: 2.0}),
    "piecewise, in any order": (schedules.piecewise(2.0, {5: 0.0, 3: 1.0}), {2: 2.0, 3: 1.0, 4: 1.0, 5: 0.0}),
    "warmup to a number": (schedules.warmup(0.5, steps=2), {0: 0.0, 1: 0.25, 2: 0.5, 9: 0.5}),
    "one cycle, behind its end": (schedules.one_cycle(1.0, steps=10), {10: 1 / 25 / 1e4, 1000: 1 / 25 / 1e4}),
    "one cycle, its peak first": (schedules.one_cycle(1.0, steps=4, rise=0.25), {0: 1.0}),
    "one cycle of two": (schedules.one_cycle(1.0, steps=2, rise=0.5), {0: 1.0, 1: 1 / 25 / 1e4}),
    "join": (
        schedules.join([schedules.linear(0.0, 1.0, steps=2), 5.0, schedules.linear(0.0, 1.0, steps=2)], [2, 4]),
        {0: 0.0, 1: 0.5, 2: 5.0, 3: 5.0, 4: 0.0, 5: 0.5, 6: 1.0},
    ),
}


def check_edge(name):
    schedule, expected = EDGES[name]
    assert {t: schedule(t) for t in expected} == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize("name", EDGES)
def test_an_edge(name):
    check_edge(name)


SOME = [schedule for schedule, _ in [*PAIRS.values(), *EDGES.values()]]
SOME.append(schedules.from_torch(functools.partial(lr_scheduler.StepLR, step_size=3)))


@pytest.mark.parametrize("schedule", SOME, ids=repr)
def test_a_schedule_is_a_value(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert [again(t) for t in range(20)] == [schedule(t) for t in range(20)]
    assert type(schedule(3)) is float
    if isinstance(schedule, schedules.FromTorch):
        assert repr(schedule).startswith("from_torch(functools.partial(")
    else:
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert repr(eval(repr(schedule), vars(schedules))) == repr(schedule)  # it shows how it was made


def test_in_a_stage():
    stage = gf.scale(schedules.piecewise(1.0, {1: 0.5}))
    state, out = stage.init({}), []
    for _ in range(3):
        grads, state = stage.update(gf.Grads({"w": torch.ones(1)}), state)
        out.append(float(grads["w"]))
    assert out == [1.0, 0.5, 0.5]
    assert repr(stage) == "scale(piecewise(1.0, {1: 0.5}))"


BAD = {
    "a text": (lambda: schedules.constant("1"), TypeError, "value='1'"),
    "NaN": (lambda: schedules.constant(float("nan")), ValueError, "value=nan"),
    "no steps": (lambda: schedules.linear(1.0, 0.0, steps=0), ValueError, "steps=0"),
    "half a step": (lambda: schedules.cosine(1.0, steps=1.5), TypeError, "steps=1.5"),
    "a rate of 0": (lambda: schedules.exponential(1.0, 0.0), ValueError, "rate=0.0"),
    "boundaries in a list": (lambda: schedules.piecewise(1.0, [3]), TypeError, "a list"),
    "a boundary at 0": (lambda: schedules.piecewise(1.0, {0: 2.0}), ValueError, "a boundary=0"),
    "as many schedules as boundaries": (lambda: schedules.join([1.0], [3]), ValueError, "1 schedules and 1 boundaries"),
    "boundaries in no order": (lambda: schedules.join([1.0, 2.0, 3.0], [5, 5]), ValueError, "boundaries=[5, 5]"),
    "a cycle of one": (lambda: schedules.one_cycle(1.0, steps=1), ValueError, "steps=1"),
    "no way up": (lambda: schedules.one_cycle(1.0, steps=9, rise=0.0), ValueError, "rise=0.0"),
    "no divisor": (lambda: schedules.one_cycle(1.0, steps=9, end_divisor=0.0), ValueError, "end_divisor=0.0"),
    "an unknown shape": (lambda: schedules.one_cycle(1.0, steps=9, anneal="x"), ValueError, "anneal='x'"),
    "no factory": (lambda: schedules.from_torch(3), TypeError, "an int"),
    "one that waits": (lambda: schedules.from_torch(lr_scheduler.ReduceLROnPlateau)(0), TypeError, "ReduceLROnPlateau"),
    "no scheduler": (lambda: schedules.from_torch(lambda o: o)(0), TypeError, "a SGD"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    make, error, text = BAD[name]
    with pytest.raises(error) as raised:
        make()
    assert text in str(raised.value)


ramp, piece, cycle = schedules.Ramp.__call__, schedules.Piecewise.__call__, schedules.OneCycle.__call__
MUTANTS = {
    "a ramp off by one": (schedules.Ramp, "__call__", lambda s, t: ramp(s, t + 1), lambda: check_torch("linear")),
    "a ramp without an end": (
        schedules.Ramp,
        "__call__",
        lambda s, t: s.start + (s.end - s.start) * t / s.steps,
        lambda: check_edge("linear, at its end"),
    ),
    "a boundary late by one": (
        schedules.Piecewise,
        "__call__",
        lambda s, t: piece(s, t - 1),
        lambda: check_torch("piecewise"),
    ),
    "the peak late by one": (
        schedules.OneCycle,
        "__call__",
        lambda s, t: cycle(s, t - 1),
        lambda: check_torch("one_cycle"),
    ),
    "counts that go on": (
        schedules.Joined,
        "__call__",
        lambda s, t: s.schedules[sum(t >= b for b in s.boundaries)](t),
        lambda: check_torch("warmup"),
    ),
    "no stairs": (
        schedules.Exponential,
        "__call__",
        lambda s, t: s.start * s.rate ** (t / s.every),
        lambda: check_torch("staircase"),
    ),
    "numbers in the order they are asked for": (
        schedules.FromTorch,
        "__call__",
        lambda s, t: (s._known.append(0), _ordered(s)[len(s._known) - 1])[1],
        check_a_function_of_the_count,
    ),
}


def _ordered(schedule):
    return schedules._ran(schedule.factory, schedule.lr, 400)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises(AssertionError):
        law()


def test_an_exponential_that_grows_stops_at_its_end():
    assert schedules.exponential(1e-3, 1.1, end=1.0)(10_000) == 1.0  # 1.1^10000 is no float
    assert schedules.exponential(1.0, 1.0, end=0.5)(3) == 1.0  # of rate 1 none is reached
