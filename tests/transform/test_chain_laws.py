"""The algebra of stages as properties: of chains put together at random, on rows of very different lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import same_bits
from problem import F64, Sgd, plain

import gradfunc as gf
from gradfunc._transform import _chain, _parts, _reductions, _rows
from gradfunc._transform._rows import _by_norm
from gradfunc._transform._stage import How
from gradfunc.testing._bounds import GUARANTEES, bounded
from gradfunc.testing._claims import Asked
from gradfunc.testing._staged import Staged
from gradfunc.testing._stages import (
    composes,
    has_a_plain_state,
    permuting_samples_permutes_the_output,
    remembers_in_its_state_alone,
    touches_nothing,
    trace,
)
from gradfunc.testing.strategies import transformations

QUICK, LONG = 15, 300
P = 4  # entries of a row, one in parameter "a", the others in "b"


NAMES_OF_ROWS = ("a", "b")
bounds = st.sampled_from([0.3, 1.0, 7.0])


def chains(**options):
    """Lists of stages: rows, a reduction, what is behind it, mostly a rule."""
    given = {"parameters": NAMES_OF_ROWS, **options}
    without, behind = (transformations(gives=gives, **given) for gives in (gf.Grads, gf.Updates))
    return st.one_of(without, behind).map(lambda chain: list(chain.stages))


def bounded_chains():
    """Chains that state a sensitivity, and others that might."""
    given = {"gives": gf.Grads, "parameters": NAMES_OF_ROWS, "max_batch": 1}
    return st.one_of(transformations(sensitivity=True, **given), transformations(bounded=True, linear=True, **given))


@st.composite
def batches(draw):
    """Rows of lengths over many orders of magnitude, one of them 0, and their weights; some are not kept."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    n = draw(st.integers(2, 6))
    sizes = torch.tensor(draw(st.lists(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 40.0, 1e8]), min_size=n, max_size=n)))
    matrix = torch.randn(n, P, generator=generator, dtype=F64) * sizes[:, None].double()
    weights = torch.ones(n, dtype=F64) if draw(st.booleans()) else torch.rand(n, generator=generator, dtype=F64) + 0.1
    return matrix, weights, draw(st.sampled_from([None, 2]))


def value(batch):
    matrix, weights, chunk = batch
    return plain(matrix, weights, F64, chunk)


def staged(step, batch):
    """What laws of transformations are asked of."""
    g, params = value(batch)
    return Staged.of("a chain", step, g, {k: v + 1 for k, v in params.items()})


def hold(law, step, batch, *options):
    """As `gf.testing` asks it, to 1e-13 of the scale."""
    asked = staged(step, batch)
    Asked("a chain", F64, tolerance=1e-13).hold(law.__name__, lambda dtype: law(asked.to(dtype), *options))


def law(*strategies):
    """A property with few examples, and one with many that is slow; `check_...` runs either."""

    def decorated(fn):
        def check(examples=QUICK, phases=tuple(Phase)):
            kept = settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
                phases=phases,
            )
            kept(given(*strategies)(fn))()

        return check

    return decorated


def grouped(stages, cuts):
    """The stages, put together in an order that the numbers decide."""
    parts = list(stages)
    for cut in cuts:
        if len(parts) > 1:
            at = cut % (len(parts) - 1)
            parts[at : at + 2] = [gf.chain(parts[at]) >> gf.chain(parts[at + 1])]
    return gf.chain(*parts)


@law(chains(own=[Sgd(0.3)]), batches(), st.lists(st.integers(0, 9), max_size=6))
def check_associativity(stages, batch, cuts):
    same(gf.chain(*stages), grouped(stages, cuts), batch)


def same(one, other, batch):
    """As values, in what they give and in what they remember."""
    assert one == other
    asked = staged(one, batch)
    mine, theirs = trace(one, asked), trace(other, asked)
    assert same_bits(mine, theirs)
    assert [list(gf.flatten_state(state)) for _, state in mine] == [
        list(gf.flatten_state(state)) for _, state in theirs
    ]


@law(chains(own=[Sgd(0.3)]), batches(), st.lists(st.integers(0, 9), min_size=1, max_size=3))
def check_identity(stages, batch, places):
    more = list(stages)
    for place in places:
        more.insert(place % (len(more) + 1), gf.identity())
    same(gf.chain(*stages), gf.chain(*more), batch)
    hold(composes, gf.chain(*stages), batch)


@law(chains(own=[Sgd(0.3)]), batches())
def check_purity(stages, batch):
    """Nothing given is changed, nothing is shared, and twice is once; a report changes nothing."""
    for asked in (touches_nothing, remembers_in_its_state_alone, has_a_plain_state):
        hold(asked, gf.chain(*stages), batch)


@law(
    transformations(gives=gf.PerSampleGrads, parameters=NAMES_OF_ROWS, per_sample_independent=True),
    batches(),
    st.randoms(use_true_random=False),
)
def check_permutation(step, batch, random):
    """Of stages that look at each sample alone; any reduction of them stays as it is."""
    order = list(range(len(batch[0])))
    random.shuffle(order)
    hold(permuting_samples_permutes_the_output, step, batch, torch.tensor(order))


@law(bounds, batches(), st.booleans())
def check_clip(bound, batch, per_unit):
    """Bounded, idempotent, and with a mean the weighted sum by hand."""
    clip, (g, params) = gf.clip_per_sample(bound, per_unit_weight=per_unit), value(batch)
    once, _ = clip.update(g, clip.init(params))
    twice, _ = clip.update(once, clip.init(params))
    unit = g.weights if per_unit else torch.ones_like(g.weights)
    hold(bounded, clip, batch, bound, per_unit)
    assert same_bits(once.materialize(), twice.materialize())
    factor = (bound * unit / g.norms()).clamp(max=1).nan_to_num(1.0)
    want = g.weighted_sum(factor / g.weights.sum())
    got, _ = (clip >> gf.mean()).update(g, (clip >> gf.mean()).init(params))
    scale = (factor * g.norms()).sum() / g.weights.sum()
    assert all(bool(((got[k] - want[k]).abs() <= 1e-13 * scale).all()) for k in want)


@law(transformations(gives=gf.Grads, linear=True, max_rows=1, per_sample_independent=True), batches())
def check_parts(step, batch):
    """A chain on the part "b" alone is that chain where there is nothing else."""
    matrix, weights, chunk = batch
    alone = plain_b(matrix, weights, chunk)
    want, _ = step.update(alone, step.init(ones_b()), ones_b())
    g, params = value((matrix, weights, chunk))
    both = gf.partition({"part": step, "rest": gf.sum()}, {"b": "part", "a": "rest"})
    got, _ = both.update(g, both.init(params), {"a": torch.ones(1, dtype=F64), **ones_b()})
    scale = matrix[:, 1:].norm(dim=1).sum() + sum(float(v.abs().sum()) for v in want.values()) + 1e-300
    assert bool(((got["b"] - want["b"]).abs() <= 1e-12 * scale).all())
    assert torch.allclose(got["a"], matrix[:, :1].sum(0), rtol=1e-12, atol=1e-12 * float(matrix.abs().sum()))


def ones_b():
    return {"b": torch.ones(P - 1, dtype=F64)}


def plain_b(matrix, weights, chunk):
    def linear(p, row, w):
        return gf.Weighted((p["b"] * row[1:]).sum() + 0 * row[0], w)

    f = gf.per_sample_grads(linear, verify=False, chunk_size=chunk)
    return f({"b": torch.zeros(P - 1, dtype=F64)}, matrix, weights)


EQUIVARIANT = {
    "clip": lambda s: gf.clip_per_sample(0.7 * s) >> gf.mean(),
    "clip by group": lambda s: gf.clip_per_sample(2.0 * s, groups={"a": 0.5 * s}) >> gf.sum(),
    "normalise": lambda s: gf.normalize_per_sample(0.7 * s, stability=0.3 * s) >> gf.mean(),
    "clip by value": lambda s: gf.clip_value_per_sample(0.2 * s) >> gf.mean(),
    "median": lambda s: gf.median(),
    "trimmed": lambda s: gf.trimmed_mean(0.2),
    "geometric median": lambda s: gf.geometric_median(),
    "global norm": lambda s: gf.sum() >> gf.clip_by_global_norm(0.7 * s),
    "ema": lambda s: gf.mean() >> gf.ema(0.9),
    "momentum": lambda s: gf.mean() >> gf.sgd(0.1, momentum=0.9),
}


@law(st.sampled_from(list(EQUIVARIANT)), st.sampled_from([2.0**-30, 2.0**-3, 8.0, 2.0**40]), batches())
def check_scale(name, s, batch):
    """Gradients in other units, thresholds too: the same result in these units. Powers of two are exact."""
    matrix, weights, chunk = batch
    g, params = value(batch)
    h, _ = value((matrix * s, weights, chunk))
    one, other = EQUIVARIANT[name](1.0), EQUIVARIANT[name](s)
    out, _ = one.update(g, one.init(params), params)
    scaled, _ = other.update(h, other.init(params), params)
    scale = max(float(v.abs().max()) for v in out.values()) + 1e-300
    tolerance = 1e-5 if name == "geometric median" else 1e-13  # which stops at its own tolerance
    longest = float(matrix.norm(dim=1).max()) if name == "geometric median" else scale
    assert all(bool(((scaled[k] / s - out[k]).abs() <= tolerance * longest).all()) for k in out)


@law(bounded_chains(), batches())
def check_guarantees(step, batch):
    """What a chain says one sample can do is more than leaving it out, or replacing it, does."""
    for guaranteed in GUARANTEES:
        hold(guaranteed, step, batch)


@law(chains(own=[Sgd(0.3)], linear=True), st.lists(batches(), min_size=1, max_size=4))
def check_accumulation(stages, parts):
    """Micro-batches through `accumulate` are one big batch; later stages count once. Rowwise stages see each part."""
    at = next(k for k, stage in enumerate(stages) if isinstance(stage, _reductions.Reduction))
    reduction, later = stages[at], stages[at + 1 :]
    gathered = gf.chain(gf.accumulate(reduction, every=len(parts)), *later)
    whole = gf.chain(reduction, *later)
    values = [value(part)[0] for part in parts]
    params = {k: v + 1 for k, v in value(parts[0])[1].items()}
    state = gathered.init(params)
    for k, g in enumerate(values):
        out, state = gathered.update(g, state, params)
        assert (out is None) == (k < len(parts) - 1)
    want, after = whole.update(gf.concatenate(values), whole.init(params), params)
    size = sum(float(g.norms().sum()) for g in values) + 1
    for key, theirs in gf.flatten_state(after).items():
        assert torch.allclose(gf.flatten_state(state)[key].double(), theirs.double(), rtol=1e-9, atol=1e-9 * size**2)
    if not any(isinstance(stage, (type(gf.sign()), type(gf.lion(0.1)), type(gf.adam(0.1)))) for stage in later):
        scale = size + max(float(v.abs().max()) for v in want.values())  # of what signs do not tear apart
        if "RMSprop" not in repr(whole):
            assert all(bool(((out[k] - want[k]).abs() <= 1e-11 * scale).all()) for k in want)


LAWS = [
    check_associativity,
    check_identity,
    check_purity,
    check_permutation,
    check_clip,
    check_parts,
    check_scale,
    check_guarantees,
    check_accumulation,
]
NAMES = [name for name, fn in list(globals().items()) if fn in LAWS]


@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_laws(law):
    law()


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_laws_at_length(law):
    law(LONG)


# --- mistakes -------------------------------------------------------------------------------------------------------

quotient = _by_norm.quotient
apply_of_chain, apply_of_scale = _chain.Chain.apply, type(gf.scale(1.0)).apply
flat = _chain._flat


def nested(*stages):
    return tuple(stage for stage in stages if not isinstance(stage, _chain.Identity))


def identity_kept(*stages):
    parts = (stage.stages if isinstance(stage, _chain.Chain) else (stage,) for stage in stages)
    return tuple(one for part in parts for one in part)


def always_owned(self, grads, state, params, how):
    return apply_of_chain(self, grads, state, params, How(how.said, True, True))


def by_the_largest(norms, limit, unit, eps, *, least):
    return (limit * unit / norms.max().double().clamp_min(limit)).clamp(max=1).to(norms)


def off_by_a_little(norms, limit, unit, eps, *, least):
    return (quotient(norms, limit, unit, eps, least=least).double() * (1 + 1e-12)).to(norms)


def fixed_threshold(norms, limit, unit, eps, *, least):
    return quotient(norms, 0.7, unit, eps, least=least)


def bounded_by_half(self, before=gf._transform._guarantee.SAMPLES):
    said = guarantee_of_clip(self, before)
    return said if said.bound is None else type(said)(said.bound / 2, said.per_unit_weight, said.per_sample_independent)


def trusted(before, stage):
    return stage.guarantee(before) if hasattr(stage, "guarantee") else before


def unweighted(self, g):
    return {k: v / len(g.weights) for k, v in g.sum().items()} if self.averaged else g.sum()


def last_alone(self, acc, g):
    return g


guarantee_of_clip = _rows.ClipPerSample.guarantee
names_of = _parts.Partition._groups

MUTANTS = {
    "chains in chains": (_chain, "_flat", nested, check_associativity),
    "identities kept": (_chain, "_flat", identity_kept, check_identity),
    "everything overwritten": (_chain.Chain, "apply", always_owned, check_purity),
    "clipped by the longest": (_rows._clip, "quotient", by_the_largest, check_clip),
    "not quite bounded": (_rows._clip, "quotient", off_by_a_little, check_clip),
    "a threshold in fixed units": (_rows._clip, "quotient", fixed_threshold, check_scale),
    "half the bound claimed": (_rows.ClipPerSample, "guarantee", bounded_by_half, check_guarantees),
    "parts that see the whole": (
        gf.PerSampleGrads,
        "_focused",
        lambda self, names: self,
        check_parts,
    ),
    "a mean over samples": (_reductions.Reduction, "reduced", unweighted, check_clip),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, KeyError, ValueError, AttributeError, RuntimeError)):
        law(60, phases=(Phase.generate,))  # the smallest failure is not asked for
