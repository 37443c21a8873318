"""The laws of composition; order is checked when a chain is built; what a stage guarantees travels with it."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from oracle import same_bits
from problem import B, Doubled, Sgd, plain, problem, rows

import gradfunc as gf
from gradfunc._transform import Guarantee, Sensitivity
from gradfunc._transform._guarantee import NOTHING, SAMPLES, sensitivity


def ran(step, kind="kept"):
    g, _ = rows(kind)
    params, _ = problem()
    return step.update(g, step.init(params), params)


def check_associativity():
    a, b, c, d = gf.clip_per_sample(2.0), Doubled(), gf.mean(), Sgd()
    params, _ = problem()
    ways = [
        ((a >> b) >> c) >> d,
        (a >> (b >> c)) >> d,
        a >> ((b >> c) >> d),
        a >> (b >> (c >> d)),
        (a >> b) >> (c >> d),
        gf.chain(a, b, c, d),
        gf.chain(gf.chain(a, b), c, gf.chain(d)),
    ]
    first, (updates, state) = ways[0], ran(ways[0])
    for other in ways[1:]:
        assert other == first
        assert repr(other) == repr(first)
        assert same_nest(other.init(params), first.init(params))
        theirs, their_state = ran(other)
        assert same_bits(theirs, updates)
        assert same_nest(their_state, state)
        assert other.guarantee() == first.guarantee()


def same_nest(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (tuple, dict)):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        return type(a) is type(b) and len(a) == len(b) and all(same_nest(a[k], b[k]) for k in keys)
    return type(a) is type(b) and a == b


def test_composition_is_associative_and_flat_state_included():
    check_associativity()


def test_the_empty_chain_is_the_identity():
    step, identity = gf.clip_per_sample(2.0) >> gf.mean(), gf.chain()
    assert identity >> step == step >> identity == step == gf.chain(step)
    g, _ = rows()
    out, state = identity.update(g, identity.init({}))
    assert out is g
    assert state == {}
    assert identity.guarantee(SAMPLES) == SAMPLES
    assert repr(identity) == "gf.chain()"


def check_a_chain_is_its_stages_in_turn():
    g, _ = rows()
    params, _ = problem()
    clip, mean, rule = gf.clip_per_sample(2.0), gf.mean(), Sgd(0.5)
    clipped, _ = clip.update(g, clip.init(params), params)
    grads, _ = mean.update(clipped, mean.init(params), params)
    updates, own = rule.update(grads, rule.init(params), params)
    got, state = ran(clip >> mean >> rule)
    assert same_bits(got, updates)
    assert same_nest(state, {"clip_per_sample": (), "mean": (), "Sgd": own})


def test_a_chain_is_its_stages_in_turn():
    check_a_chain_is_its_stages_in_turn()


def check_purity():
    """Calling twice is calling once, also where a report was asked for in between."""
    params, _ = problem()
    for kind, nonfinite in itertools.product(("kept", "streamed"), ("raise", "skip")):
        g, _ = rows(kind)
        step = gf.clip_per_sample(2.0, nonfinite=nonfinite) >> gf.mean() >> Sgd()
        state = step.init(params)
        before = g.materialize(), g.losses, g.weights, params["w"].clone()
        once = step.update(g, state, params)
        reported = step.update_with_report(g, state, params)
        assert same_nest(once, step.update(g, state, params))
        assert same_nest(once, reported[:2])
        assert same_nest(state, step.init(params))
        assert same_nest(before, (g.materialize(), g.losses, g.weights, params["w"]))


def test_calling_twice_is_calling_once():
    check_purity()


def test_the_state_is_plain_and_loads_as_weights_only():
    _, state = ran(gf.clip_per_sample(2.0) >> gf.mean() >> Sgd())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert same_nest(torch.load(file, weights_only=True), state)


def test_a_state_of_another_chain_is_refused():
    g, _ = rows()
    with pytest.raises(
        ValueError,
        match=r"\(clip_per_sample\(1.0\) >> sum\(\)\).update.*stages \['sum'\].*one of \['clip_per_sample', 'sum'\]",
    ):
        (gf.clip_per_sample(1.0) >> gf.sum()).update(g, {"sum": ()})
    with pytest.raises(ValueError, match="None as state"):
        (gf.clip_per_sample(1.0) >> gf.sum()).update(g, None)


WRONG = {
    "rows after a reduction": (
        lambda: gf.mean() >> gf.clip_per_sample(1.0),
        "mean >> clip_per_sample: got Grads from mean; expected PerSampleGrads, which clip_per_sample takes",
    ),
    "two reductions": (lambda: gf.sum() >> gf.mean(), "sum >> mean: got Grads from sum; expected PerSampleGrads"),
    "a rule before the reduction": (
        lambda: gf.chain(gf.clip_per_sample(1.0), Sgd()),
        "clip_per_sample >> Sgd: got PerSampleGrads from clip_per_sample; expected Grads, which Sgd takes",
    ),
    "a stage after a rule": (lambda: Sgd() >> gf.mean(), "Sgd >> mean: got Updates from Sgd; expected PerSampleGrads"),
    "within a chain of chains": (
        lambda: gf.clip_per_sample(1.0) >> (gf.chain(Sgd()) >> Sgd()),
        "Sgd >> Sgd: got Updates from Sgd; expected Grads",
    ),
    "between two chains": (
        lambda: (gf.clip_per_sample(1.0) >> gf.mean()) >> (gf.clip_per_sample(1.0) >> gf.mean()),
        "mean >> clip_per_sample: got Grads",
    ),
}


def check_order(name):
    build, text = WRONG[name]
    with pytest.raises(TypeError) as error:
        build()
    assert text in str(error.value)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_order_is_an_error_when_built(name):
    check_order(name)


def test_no_stage_at_all_is_refused():
    with pytest.raises(TypeError, match="got an int; expected stages"):
        gf.clip_per_sample(1.0) >> 3
    for stage in (gf.mean(), gf.clip_per_sample(1.0)):
        with pytest.raises(TypeError, match="got a dict; expected per-sample gradients"):
            stage.update({"w": torch.ones(2)}, ())


def test_a_users_stage_is_accepted_on_either_side():
    g, want = rows()
    params, _ = problem()
    for step in (Doubled() >> gf.sum(), gf.chain(Doubled(), gf.sum())):
        out, state = step.update(g, step.init(params))
        assert state == {"Doubled": {"calls": 1}, "sum": ()}
        for name, value in want.rows.items():
            assert torch.allclose(out[name], 2 * value.sum(0))
    assert (gf.clip_per_sample(1.0) >> Doubled()).takes is gf.PerSampleGrads
    assert (gf.clip_per_sample(1.0) >> Doubled()).gives is None


# --- guarantees ----------------------------------------------------------------------------------------

BOUNDED = Guarantee(bound=3.0, per_sample_independent=True)
# the table of `sensitivity`, row by row: rows, denominator, and what one sample can do
TABLE = {
    "sum": (BOUNDED, 1.0, Sensitivity(3.0, 6.0)),
    "sum over a fixed D": (BOUNDED, 8.0, Sensitivity(3.0 / 8, 6.0 / 8)),
    "mean by realised weight": (BOUNDED, None, Sensitivity(over_n=6.0)),
    "bounded per weight, sum": (Guarantee(3.0, True, True), 1.0, Sensitivity()),
    "bounded per weight, mean": (Guarantee(3.0, True, True), None, Sensitivity()),
    "not bounded": (SAMPLES, 1.0, Sensitivity()),
    "rows that depend on others": (Guarantee(bound=3.0), 1.0, Sensitivity()),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_sensitivities(row):
    given, denominator, expected = TABLE[row]
    assert sensitivity(given, denominator) == expected


def clip(c, **options):
    return gf.clip_per_sample(c, **options)


CHAINS = {
    "clip, sum": (clip(3.0) >> gf.sum(), Sensitivity(3.0, 6.0)),
    "clip, mean": (clip(3.0) >> gf.mean(), Sensitivity(over_n=6.0)),
    "sum alone": (gf.chain(gf.sum()), Sensitivity()),
    "the tighter clip, first": (clip(3.0) >> clip(5.0) >> gf.sum(), Sensitivity(3.0, 6.0)),
    "the tighter clip, last": (clip(5.0) >> clip(3.0) >> gf.sum(), Sensitivity(3.0, 6.0)),
    "per unit weight": (clip(3.0, per_unit_weight=True) >> gf.sum(), Sensitivity()),
    "per unit weight, then plain": (clip(1.0, per_unit_weight=True) >> clip(3.0) >> gf.sum(), Sensitivity(3.0, 6.0)),
    "plain, then per unit weight": (clip(3.0) >> clip(1.0, per_unit_weight=True) >> gf.sum(), Sensitivity(3.0, 6.0)),
    "infinite": (clip(math.inf) >> gf.sum(), Sensitivity()),
    "non-finite kept": (clip(3.0, nonfinite="keep") >> gf.sum(), Sensitivity()),
    "non-finite kept after a bound": (clip(3.0) >> clip(1.0, nonfinite="keep") >> gf.sum(), Sensitivity(3.0, 6.0)),
    "skipped": (clip(3.0, nonfinite="skip") >> gf.sum(), Sensitivity(3.0, 6.0)),
    "a user's stage after the clip": (clip(3.0) >> Doubled() >> gf.sum(), Sensitivity()),
    "a user's stage before the clip": (Doubled() >> clip(3.0) >> gf.sum(), Sensitivity()),
    "a stage after the sum": (clip(3.0) >> gf.sum() >> Sgd(), Sensitivity()),
}


def check_guarantee(name):
    step, expected = CHAINS[name]
    assert step.guarantee().sensitivity == expected
    assert step.guarantee(NOTHING).sensitivity == Sensitivity()  # of rows that may depend on one another


@pytest.mark.parametrize("name", CHAINS)
def test_what_a_chain_guarantees(name):
    check_guarantee(name)


def check_sensitivity_is_attained_and_never_exceeded():
    """Leaving a sample out moves the sum by at most C, replacing one by at most 2C; opposite long rows attain it."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(B, 4, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, B)[:, None].double()
    matrix[5] = -matrix[6]
    step = clip(3.0) >> gf.sum()
    least = step.guarantee().sensitivity

    def total(m):
        g, params = plain(m)
        out, _ = step.update(g, step.init(params))
        return torch.cat(list(out.values()))

    whole = total(matrix)
    removed = [float((total(matrix[torch.arange(B) != i]) - whole).norm()) for i in range(B)]
    replaced = []
    for i, j in itertools.permutations(range(B), 2):
        other = matrix.clone()
        other[i] = matrix[j]
        replaced.append(float((total(other) - whole).norm()))
    for moved, bound in ((removed, least.add_remove), (replaced, least.replace_one)):
        assert abs(max(moved) - bound) <= 1e-12 * 3.0 * B


def test_sensitivity_is_attained_and_never_exceeded():
    check_sensitivity_is_attained_and_never_exceeded()
