"""The public law checkers: sound losses and stages pass, planted mistakes do not, bad calls are refused."""

from __future__ import annotations

import random
import re
import warnings

import numpy as np
import pytest
import torch
from test_mutants import add_means, aliased, weight_lost, weight_twice
from tiers import every, quick
from torch import Tensor, nn

import gradfunc as gf
from gradfunc import _engines, _factors, _weights
from gradfunc._engines import _call, _factored
from gradfunc._per_sample import _function

T = gf.testing
LAWS = {
    "identities": T.assert_reduction_identities,
    "permutation": T.assert_permutation_equivariant,
    "pure": T.assert_pure,
    "chunks": T.assert_chunk_invariant,
    "oracle": T.assert_matches_oracle,
}


class Problem:
    """A model with a dropout, class weights and an ignored sample."""

    def __init__(self, dtype=torch.float32, dropout=0.0, batched=False, size=5):
        torch.manual_seed(0)
        drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), drop, nn.Linear(6, 3)).to(dtype)
        model = gf.stateless(self.module)
        weight = torch.tensor([1.0, 2.0, 0.5], dtype=dtype)

        def loss(params, x, y):
            output = model(params, x) if batched else model.sample(params, x)
            return gf.losses.cross_entropy(output, y, weight=weight.to(output), ignore_index=2, batched=batched)

        self.loss, self.params = loss, model.params
        self.batch = (torch.randn(size, 4, dtype=dtype), torch.arange(size) % 3)

    def ask(self, name, **options):
        LAWS[name](self.loss, self.params, self.batch, **options)


SLOW = pytest.mark.slow
KINDS = [
    {},
    pytest.param({"dtype": torch.bfloat16}, marks=SLOW),
    pytest.param({"dtype": torch.float64}, marks=SLOW),
    pytest.param({"dtype": torch.float16}, marks=SLOW),
    pytest.param({"size": 1}, marks=SLOW),
    pytest.param({"size": 0}, marks=SLOW),
    pytest.param({"size": 33}, marks=SLOW),
]
OPTIONS = [
    {"engine": "factored"},
    *(pytest.param({"engine": engine}, marks=SLOW) for engine in ("vmap", "loop")),
    pytest.param({"chunk_size": 2}, marks=SLOW),
    pytest.param({"wrt": "3.*", "seed": 7}, marks=SLOW),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", quick(["identities", "pure"], LAWS))
def test_sound_losses_pass(name, options, kind):
    Problem(**kind).ask(name, **options)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("name", LAWS)
def test_losses_that_run_the_batch_pass(name, engine):
    Problem(batched=True).ask(name, engine=engine, batched=True)


@pytest.mark.parametrize("name", quick(["permutation"], [name for name in LAWS if name != "oracle"]))
def test_draws_stay_with_their_samples(name):
    Problem(dropout=0.5).ask(name)


def test_draws_have_no_oracle():
    with pytest.raises(ValueError, match=r"got a loss that draws; .* Use .eval\(\), or gf.testing.certify"):
        Problem(dropout=0.5).ask("oracle")


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_other_forms_of_call(name):
    made = Problem()
    law = LAWS[name]
    law(gf.per_sample_grads(made.loss, engine="loop").at(3, index=[7, 1, 9, 4, 2]), made.params, made.batch)
    law(made.loss, made.params, dict(zip("xy", made.batch, strict=True)))
    lengths = [torch.randn(n, 2) for n in (1, 3, 2, 3)]
    law(lambda p, x: (x @ p["w"]).tanh().sum(), {"w": torch.randn(2)}, gf.ragged(lengths))
    scale = gf.static(torch.tensor([0.5, 2.0]))
    law(lambda p, x, s: (p["w"] * x * s).sum().tanh(), {"w": torch.randn(2)}, (torch.randn(4, 2), scale))
    law(lambda p, x: (p["w"] @ x).tanh(), {"w": torch.randn(2)}, torch.randn(4, 2))
    law(lambda p, x: ((p["w"] @ x).tanh(), x), {"w": torch.randn(2)}, torch.randn(4, 2), has_aux=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_a_loss_that_only_the_loop_can_run(name):
    def branching(p, x):
        return (p["w"] * x).sum().square() if bool(x[0] > 0) else (p["w"] * x).sum()

    with pytest.warns(gf.GradfuncWarning, match="torch.func cannot run this loss"):
        LAWS[name](branching, {"w": torch.ones(3)}, torch.randn(6, 3))
    LAWS[name](branching, {"w": torch.ones(3)}, torch.randn(6, 3), engine="loop")


def test_a_coupled_batch_has_no_parts():
    """Batch norm: no part of the batch is run alone, and what is said of the value holds."""
    model = gf.stateless(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double(), batch_stats="batch")

    def losses(params, x):
        return model(params, x).square().sin().sum(1)

    for name in ("identities", "oracle"):
        LAWS[name](losses, model.params, torch.randn(5, 3).double(), batched=True)


# --- planted mistakes -----------------------------------------------------------------------------------------------


def changed_factors(change):
    def factored(*args, made=_factored.factored, **options):
        block = made(*args, **options)
        rows = {name: change(name, value) for name, value in _factors.dense(block.grads).items()}
        return block._replace(grads=_factors.from_rows(rows))

    return _factored, "factored", factored


def slightly(name, rows):
    rows = rows.clone()
    rows[1:2] *= 1 + 1e-5 * name.endswith("0.weight")
    return rows


def other_seed(randomness, seed, *rest, calls=iter(range(10**9))):  # noqa: B008  # counts across calls
    return _engines.Draws(randomness, seed + next(calls), *rest)


def generator_moved(self, materialize=gf.PerSampleGrads.materialize):
    random.random()
    return materialize(self)


def grad_off(self, materialize=gf.PerSampleGrads.materialize):
    torch.set_grad_enabled(False)
    return materialize(self)


weighted_sum, sample_ids = _factors.weighted_sum, _function.sample_ids
PLACE = r"of '0.weight', sample 1: .* apart on a scale of .* in float32, .* in float64: that is no rounding"
MISTAKES = {
    "mean of means": ("identities", "any split", "mean of", (_weights.Accumulator, "add", add_means)),
    "weight lost": (
        "identities",
        "mean times weight",
        "weights, and those of the loss",
        (_call, "as_weighted", weight_lost),
    ),
    "weight twice": ("oracle", "one autograd call", "rows, and plain", (_call, "as_weighted", weight_twice)),
    "sums 0.1% off": (
        "identities",
        "sum of none is sum",
        r"g.sum\(\)",
        (_factors, "weighted_sum", lambda rows, c, **_: {k: v * 1.001 for k, v in weighted_sum(rows, c).items()}),
    ),
    "one row 1e-5 off": ("oracle", "one autograd call", PLACE, changed_factors(slightly)),
    "rows rolled": (
        "permutation",
        "permuting the batch",
        "sample",
        changed_factors(lambda name, rows: rows.roll(1, 0)),
    ),
    "rows averaged": (
        "oracle",
        "one autograd call",
        "rows",
        changed_factors(lambda name, r: r.mean(0).expand_as(r).clone()),
    ),
    "a parameter halved": (
        "oracle",
        "one autograd call",
        "of '3.bias'",
        changed_factors(lambda n, r: r / (1 + (n == "3.bias"))),
    ),
    "last of a chunk lost": (
        "chunks",
        "chunks change nothing",
        "rows in chunks of 1 of",
        changed_factors(lambda name, r: torch.cat([r[:-1], 0 * r[-1:]]) if len(r) < 4 else r),
    ),
    "an answer is what is kept": (
        "pure",
        "answers share nothing",
        "none again shares the storage of none",
        (gf.PerSampleGrads, "materialize", aliased),
    ),
    "a generator moved": (
        "pure",
        "nothing is touched",
        "Python's generator moved",
        (gf.PerSampleGrads, "materialize", generator_moved),
    ),
    "a flag left": ("pure", "nothing is touched", "grad mode changed", (gf.PerSampleGrads, "materialize", grad_off)),
    "another seed each call": ("pure", "twice is once", "has other bits", (_function, "Draws", other_seed)),
    "draws by position": (
        "permutation",
        "permuting the batch",
        "sample",
        (_function, "sample_ids", lambda call, index, size: sample_ids(call, None, size)),
    ),
}


@pytest.mark.parametrize("name", every(5, MISTAKES))
def test_a_planted_mistake_breaks_a_law(name, monkeypatch):
    law, which, how, planted = MISTAKES[name]
    made = Problem(dropout=0.5 if name in ("another seed each call", "draws by position") else 0.0)
    monkeypatch.setattr(*planted)
    with torch.enable_grad(), pytest.raises(AssertionError) as caught:
        made.ask(law, engine="factored")
    text = str(caught.value)
    assert text.startswith(f"gf.testing.{LAWS[law].__name__}(loss, params, batch): broken: ")
    assert which in text
    assert re.search(how, text), text
    assert "Replay: the same call; its splits, orders and coefficients come from seed=0 alone." in text


def test_a_module_that_is_touched():
    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            SEEN.append(1)
            return super().forward(x)

    SEEN: list[int] = []
    module = Counts(3, 2)
    module.seen = SEEN
    model = gf.stateless(module)
    with pytest.raises(AssertionError, match="nothing is touched"):
        T.assert_pure(lambda p, x: model.sample(p, x).sum(), model.params, torch.randn(4, 3), module=module)


def test_a_batch_that_is_written_to():
    def loss(p, x):
        out = (p["w"] * x).sum()
        STORED.add_(1)
        return out

    STORED = torch.zeros(())
    params = {"w": torch.ones(3), "count": STORED}
    with pytest.raises(AssertionError, match=r"count has other values|count was written to"):
        T.assert_pure(loss, params, torch.randn(4, 3), engine="loop", wrt="w")


def test_what_cannot_be_repeated_says_so():
    """Half of the digits must agree then, and a warning says that more was not asked."""

    def loss(p, x):
        if x.dtype == torch.float64:
            raise ValueError("float32 only")
        return torch.tanh(p["w"] @ x).sum()

    params, x = {"w": torch.randn(5, 4)}, torch.randn(6, 4)
    with pytest.warns(gf.GradfuncWarning, match=r"cannot be repeated .*float32 only.*up to 2.4e-04 of the scale pass"):
        T.assert_reduction_identities(loss, params, x)


def test_weights_that_a_loss_computes_may_be_rounded():
    """A batched sum of 300 numbers and the same sum of one sample need not have equal bits."""
    matrix = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))

    def loss(p, x):
        return gf.Weighted((p["w"] * x).sum().tanh(), (x @ matrix.to(x)).exp().sum())

    params, x = {"w": torch.ones(40)}, torch.randn(17, 40, generator=torch.Generator().manual_seed(1)) / 7
    alone = torch.stack([loss(params, one).weight for one in x])
    assert not torch.equal(gf.per_sample_grads(loss)(params, x).weights, alone)
    T.assert_reduction_identities(loss, params, x)
    T.assert_matches_oracle(loss, params, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_parameters_that_require_grad_pass_without_a_warning(name):
    made = Problem()
    made.params = {key: value.clone().requires_grad_() for key, value in made.params.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.ask(name)


@pytest.mark.slow
def test_stages_of_parameters_that_require_grad_pass_without_a_warning():
    params = {"w": torch.randn(4, requires_grad=True)}
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum().tanh())(params, torch.randn(5, 4))
    clip = gf.clip_per_sample(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        T.assert_guarantee_holds(clip >> gf.sum(), g, params)
        T.assert_norm_bounded(clip, g, params, bound=0.1, idempotent=True)
        T.assert_transformation_laws(clip >> gf.mean() >> gf.adam(1e-3), g, params)
        T.assert_permutation_equivariant(clip >> gf.mean(), g, params)


def test_a_loss_that_seeds_or_sets_is_not_pure():
    """Both are the same after the second call as before it."""

    def seeds(p, x):
        random.seed(0), np.random.seed(0)
        return (p["w"] * x).sum(1)

    def sets(p, x):
        torch.set_float32_matmul_precision("high")
        return (p["w"] * x).sum(1)

    params, x = {"w": torch.ones(3)}, torch.randn(4, 3)
    random.seed(0), np.random.seed(0)
    with pytest.raises(AssertionError, match=r"Python's generator moved; numpy's generator moved"):
        T.assert_pure(seeds, params, x, batched=True)
    kept = torch.get_float32_matmul_precision()
    try:
        with pytest.raises(AssertionError, match="matmul precision changed"):
            T.assert_pure(sets, params, x, batched=True)
    finally:
        torch.set_float32_matmul_precision(kept)


def test_a_gradient_that_is_not_finite_says_so():
    x = torch.tensor([[1.0], [float("nan")]])
    with pytest.raises(AssertionError, match="not finite, on both sides: nothing can be compared there"):
        T.assert_reduction_identities(lambda p, x: (p["w"] * x).sum(), {"w": torch.ones(1)}, x)


# --- bounds and stages ----------------------------------------------------------------------------------------------


def value(dtype=torch.float64, size=5):
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    params = {"w": torch.zeros(3, dtype=dtype)}
    return gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), verify=False)(params, x), params


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_clip_is_within_its_rounding(dtype):
    g, params = value(dtype, 200)
    T.assert_norm_bounded(gf.clip_per_sample(0.7), g, params, bound=0.7)
    off = 32 * torch.finfo(dtype).eps
    with pytest.raises(AssertionError, match=r"sample \d+: a norm of .* over 0.[67].*; allowed .*gamma_24"):
        T.assert_norm_bounded(gf.clip_per_sample(0.7 * (1 + off)), g, params, bound=0.7)


def test_a_stage_of_gradients_is_bounded_as_a_whole():
    g, params = value()
    T.assert_norm_bounded(gf.clip_by_global_norm(0.3), g.sum(), params, bound=0.3, idempotent=True)
    with pytest.raises(AssertionError, match=r"a norm of 0\.3"):
        T.assert_norm_bounded(gf.clip_by_global_norm(0.31), g.sum(), params, bound=0.3)


def test_equal_samples_have_no_order_that_top_k_could_keep():
    g, params = value()  # losses that are all 0
    with pytest.raises(AssertionError, match="permuting samples permutes the output"):
        T.assert_permutation_equivariant(gf.top_k_loss(3), g, params)


@pytest.mark.parametrize("seed", range(4))
def test_no_order_is_the_one_that_was(seed):
    """Of two samples every other random order is."""

    class First:
        def init(self, params):
            return ()

        def update(self, g, state, params=None, /):
            return g.select([0]).sum(), state

    g, params = value(size=2)
    with pytest.raises(AssertionError, match="permuting samples permutes the output"):
        T.assert_permutation_equivariant(First(), g, params, seed=seed)


def test_a_stage_may_leave_out_what_came_with_a_loss_of_nan():
    x = torch.tensor([[1.0], [float("nan")], [2.0]])
    params = {"w": torch.ones(1)}
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum().square(), verify=False)(params, x)
    T.assert_transformation_laws(gf.nonfinite_per_sample("skip"), g, params)


def test_a_stage_that_sets_a_flag():
    class Sets:
        def init(self, params):
            return ()

        def update(self, grads, state, params=None, /):
            torch.set_float32_matmul_precision("high")
            return {name: value / 2 for name, value in grads.items()}, state

    kept = torch.get_float32_matmul_precision()
    try:
        with pytest.raises(AssertionError, match=r"touches nothing.\n  matmul precision changed"):
            T.assert_transformation_laws(Sets(), {"w": torch.ones(3)}, {"w": torch.ones(3)})
    finally:
        torch.set_float32_matmul_precision(kept)


@pytest.mark.slow
def test_nothing_stays_behind():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), list(warnings.filters)
    g, params = value()
    step = gf.clip_per_sample(1.0) >> gf.mean() >> gf.adam(0.1)
    T.assert_transformation_laws(step, g, params)
    T.assert_guarantee_holds(gf.clip_per_sample(1.0) >> gf.sum(), g, params)
    Problem().ask("identities")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), list(warnings.filters)
    torch.manual_seed(0)  # which Problem does
    assert before[:2] == after[:2]
    assert len(before[3]) == len(after[3])


# --- bad calls ------------------------------------------------------------------------------------------------------

G, PARAMS = value()
CLIP, LINEAR = gf.clip_per_sample(1.0), lambda p, x: (p["w"] * x).sum()
X = torch.ones(2, 3)
BAD = [
    (T.assert_reduction_identities, (3, PARAMS, X), {}, TypeError, "got an int; expected a loss(params, *sample), or"),
    (T.assert_reduction_identities, (LINEAR, [1], X), {}, TypeError, "got a list as params; expected a dict {name:"),
    (T.assert_reduction_identities, (LINEAR, PARAMS, X), {"engine": "x"}, ValueError, "got engine='x'; expected"),
    (T.assert_reduction_identities, (LINEAR, PARAMS, X), {"nope": 1}, TypeError, "unexpected keyword argument 'nope'"),
    (
        T.assert_matches_oracle,
        (gf.per_sample_grads(LINEAR), PARAMS, X),
        {"seed": 1},
        TypeError,
        "options ['seed'] beside",
    ),
    (
        T.assert_chunk_invariant,
        (LINEAR, PARAMS, X),
        {"chunk_sizes": 2},
        TypeError,
        "an int as chunk_sizes; expected a seq",
    ),
    (
        T.assert_chunk_invariant,
        (LINEAR, PARAMS, X),
        {"chunk_sizes": [0]},
        ValueError,
        "chunk_sizes=0; expected an int >= 1",
    ),
    (
        T.assert_chunk_invariant,
        (LINEAR, PARAMS, X),
        {"chunk_sizes": [1.0]},
        TypeError,
        "chunk_sizes=1.0; expected an int",
    ),
    (
        T.assert_chunk_invariant,
        (LINEAR, PARAMS, X),
        {"chunk_sizes": []},
        ValueError,
        "got chunk_sizes=[]; expected at least one size",
    ),
    (
        T.assert_pure,
        (LINEAR, PARAMS, X),
        {"module": 3},
        TypeError,
        "got an int as module; expected an nn.Module, or None",
    ),
    (
        T.assert_pure,
        (CLIP, G, PARAMS),
        {"module": nn.Linear(1, 1)},
        TypeError,
        "options ['module']; expected none beside",
    ),
    (
        T.assert_pure,
        (CLIP, G, PARAMS),
        {"seed": 1},
        TypeError,
        "got options ['seed']; expected none beside a transform",
    ),
    (
        T.assert_permutation_equivariant,
        (CLIP, G, PARAMS),
        {"engine": "loop"},
        TypeError,
        "options ['engine']; expected seed",
    ),
    (
        T.assert_permutation_equivariant,
        (CLIP, G, PARAMS),
        {"seed": -1},
        ValueError,
        "got seed=-1; expected an int >= 0",
    ),
    (
        T.assert_permutation_equivariant,
        (gf.ema(0.5), PARAMS, PARAMS),
        {},
        TypeError,
        "a dict as grads; expected per-sample",
    ),
    (
        T.assert_permutation_equivariant,
        (lambda p, x, m: (p["w"] * (x @ m)).sum(1), PARAMS, (X.double(), torch.eye(3).double())),
        {"batched": True},
        ValueError,
        "a tensor of shape (3, 3) in a batch of 2 samples; expected samples in dimension 0. Mark what all samples",
    ),
    (
        T.assert_transformation_laws,
        (gf.Transformation, G, PARAMS),
        {},
        TypeError,
        "the class Transformation; expected an",
    ),
    (
        T.assert_transformation_laws,
        ("clip", G, PARAMS),
        {},
        TypeError,
        "got a str; expected an object with init(params)",
    ),
    (T.assert_transformation_laws, (CLIP, [G], PARAMS), {}, TypeError, "got a list as grads; expected per-sample grad"),
    (
        T.assert_transformation_laws,
        (CLIP, PARAMS, PARAMS),
        {},
        TypeError,
        "a dict for clip_per_sample; expected per-sample",
    ),
    (T.assert_transformation_laws, (gf.ema(0.5), G, PARAMS), {}, TypeError, "which it takes. Pass g.mean()."),
    (
        T.assert_transformation_laws,
        (CLIP, G, None),
        {},
        TypeError,
        "got None as params; expected a dict {name: tensor}",
    ),
    (T.assert_transformation_laws, (CLIP, G, {}), {}, ValueError, "of 'w' (3,), and no parameter; expected the param"),
    (
        T.assert_transformation_laws,
        (CLIP, G, {"w": X}),
        {},
        ValueError,
        "of 'w' (3,), and (2, 3); expected the parameter",
    ),
    (T.assert_norm_bounded, (CLIP, G, PARAMS), {"bound": 0}, ValueError, "got bound=0; expected a finite number > 0"),
    (T.assert_norm_bounded, (CLIP, G, PARAMS), {"bound": None}, TypeError, "got bound=None; expected a number"),
    (
        T.assert_norm_bounded,
        (CLIP, G, PARAMS),
        {"bound": 1, "idempotent": 1},
        TypeError,
        "idempotent=1; expected True or",
    ),
    (
        T.assert_norm_bounded,
        (gf.clip_by_global_norm(1.0), PARAMS, PARAMS),
        {"bound": 1, "per_unit_weight": True},
        TypeError,
        "per_unit_weight=True for gradients; expected per-sample gradients",
    ),
    (T.assert_guarantee_holds, (CLIP, PARAMS, PARAMS), {}, TypeError, "a dict as grads; expected per-sample gradients"),
]


@pytest.mark.parametrize(
    ("law", "given", "options", "kind", "text"), BAD, ids=[f"{k} {b[4][:30]}" for k, b in enumerate(BAD)]
)
def test_bad_calls(law, given, options, kind, text):
    with pytest.raises(kind) as caught:
        law(*given, **options)
    assert text in str(caught.value)
    if "keyword" not in text and "engine=" not in text:
        assert str(caught.value).startswith(f"gf.testing.{law.__name__}(")


def test_a_stage_that_does_not_say():
    class Halved:
        def init(self, params):
            return ()

        def update(self, g, state, params=None, /):
            return g, state

    with pytest.raises(TypeError, match="Halved, which has no guarantee"):
        T.assert_guarantee_holds(Halved(), G, PARAMS)


R = T.rounding
BAD_ROUNDING = [
    (R.clip_factor, (3, "float32"), TypeError, "(entries, dtype): got dtype='float32'; expected a floating torch.dt"),
    (R.clip_factor, (3, torch.int64), TypeError, "got dtype=torch.int64; expected a floating torch.dtype"),
    (R.clip_factor, (-3, torch.float32), ValueError, "got entries=-3; expected an int >= 0"),
    (R.norm_factor, (3.5, torch.float32), TypeError, "got entries=3.5; expected an int"),
    (R.sum_bound, ([1.0],), TypeError, "got a list; expected a floating tensor [n, ...]"),
    (R.sum_bound, (torch.ones(2, dtype=torch.int64),), TypeError, "a tensor of torch.int64, 1-d; expected a floating"),
    (R.row_scale, (G,), TypeError, "got a PerSampleGrads; expected {name: [B, ...]}. Pass g.materialize()."),
]


@pytest.mark.parametrize(("bound", "given", "kind", "text"), BAD_ROUNDING, ids=[bad[3][-20:] for bad in BAD_ROUNDING])
def test_bad_calls_of_bounds(bound, given, kind, text):
    with pytest.raises(kind) as caught:
        bound(*given)
    assert str(caught.value).startswith(f"gf.testing.rounding.{bound.__name__}(")
    assert text in str(caught.value)
