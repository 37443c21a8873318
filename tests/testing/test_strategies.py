"""The public strategies: what they draw holds what they say, and prints as what makes it again."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import pretty
from tiers import every, quick

import gradfunc as gf

F64 = torch.float64
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
s = gf.testing.strategies


def holds(check, examples=25, **drawn):
    """The check on some draws, the same in every run."""
    plain = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    plain(given(**drawn)(check))()


def test_nothing_else_needs_hypothesis():
    """In a process of its own: it is not loaded, not needed, told of where it is missing, and then found."""
    code = """
import sys
import gradfunc as gf
gf.testing.certify
assert not hasattr(gf.testing, "no_such_name")
assert not any(name.startswith(("hypothesis", "gradfunc.testing.strategies")) for name in sys.modules)
sys.modules["hypothesis"] = None
try:
    gf.testing.strategies
except ModuleNotFoundError as error:
    assert str(error) == "gf.testing.strategies needs hypothesis: pip install 'gradfunc[testing]'", error
else:
    raise AssertionError
del sys.modules["hypothesis"]
gf.testing.strategies.models()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MODEL, LSTM, LOSS, CTC = s.Model(), s.Model(kind="lstm"), s.Loss(), s.Loss(name="ctc")
PLACED = [s.models, s.losses, s.cases, s.problems, s.per_sample_grads, s.weights, s.parameter_trees, s.finite_tensors]
# strategy, arguments, error, what its message says
BAD = [
    *((fn, {"dtype": "float32"}, TypeError, "got dtype='float32'; expected a torch.dtype, or a str") for fn in PLACED),
    *((fn, {"dtype": torch.int64}, ValueError, "got dtype=torch.int64; expected one of torch.float") for fn in PLACED),
    *((fn, {"device": "nowhere"}, ValueError, "got device='nowhere'; expected a device") for fn in PLACED),
    (s.models, {"kinds": "linear"}, TypeError, "got kinds='linear'; expected a list of names"),
    (s.models, {"kinds": []}, ValueError, "expected at least one name"),
    (s.models, {"kinds": ["linaer"]}, ValueError, "expected kinds to be one of 'linear', 'mlp'"),
    (s.models, {"dropout": 0.5}, TypeError, "got dropout=0.5; expected True or False"),
    (s.losses, {"names": ["ctc"]}, ValueError, "expected names to be one of 'mse'"),
    (s.losses, {"sequence": 1}, TypeError, "got sequence=1; expected True or False"),
    (s.batches, {"model": "linear", "loss": LOSS}, TypeError, "got model=a str; expected a Model, as drawn"),
    (s.batches, {"model": MODEL, "loss": "mse"}, TypeError, "got loss=a str; expected a Loss, as drawn"),
    (s.batches, {"model": MODEL, "loss": CTC}, ValueError, "Take a model whose output is [T, C]."),
    (s.batches, {"model": MODEL, "loss": LOSS, "min_size": 9}, ValueError, "expected min_size <= max_size"),
    (s.batches, {"model": MODEL, "loss": LOSS, "max_size": 2.0}, TypeError, "got max_size=2.0; expected an int >= 0"),
    (s.batches, {"model": MODEL, "loss": LOSS, "values": ["big"]}, ValueError, "values to be one of 'normal'"),
    (s.batches, {"model": MODEL, "loss": LOSS, "sample_weights": ["some"]}, ValueError, "to be one of 'none'"),
    (s.cases, {"engines": ["turbo"]}, ValueError, "expected engines to be one of 'vmap', 'factored'"),
    (s.cases, {"models": ["mlp", "rnn"], "losses": ["ctc"]}, ValueError, "expected losses to be one of 'mse'"),
    (s.cases, {"large": (-1,)}, ValueError, "got large=-1; expected an int >= 0"),
    (s.cases, {"most_chunks": 0}, ValueError, "got most_chunks=0; expected an int >= 1"),
    (s.cases, {"huge": "yes"}, TypeError, "got huge='yes'; expected True or False"),
    (s.problems, {"batched": None}, TypeError, "got batched=None; expected True or False"),
    (s.problems, {"min_size": True}, TypeError, "got min_size=True; expected an int >= 0"),
    (s.per_sample_grads, {"kinds": ["sparse"]}, ValueError, "expected kinds to be one of 'dense', 'outer'"),
    (s.per_sample_grads, {"max_side": 0}, ValueError, "got max_side=0; expected an int >= 1"),
    (s.per_sample_grads, {"max_positions": -1}, ValueError, "got max_positions=-1; expected an int >= 0"),
    (s.per_sample_grads, {"tied": 2}, TypeError, "got tied=2; expected True or False"),
    (s.weights, {"size": -1}, ValueError, "got size=-1; expected an int >= 0"),
    (s.weights, {"size": 0, "positive_total": True}, ValueError, "got size=0; expected an int >= 1"),
    (s.weights, {"kinds": ["zeros"]}, ValueError, "expected kinds to be one of 'ones', 'quarters'"),
    (s.parameter_trees, {"shapes": [(2,)]}, TypeError, "got shapes=[(2,)]; expected a mapping of parameter names"),
    (s.parameter_trees, {"shapes": {"w": 2}}, TypeError, "got shapes['w']=2; expected a tuple of ints >= 0"),
    (s.parameter_trees, {"max_parameters": 99}, ValueError, "got max_parameters=99; expected at most 8"),
    (s.parameter_trees, {"min_parameters": 4}, ValueError, "expected min_parameters <= max_parameters"),
    (s.finite_tensors, {"shape": 3}, TypeError, "got shape=3; expected a tuple of ints >= 0"),
    (s.finite_tensors, {"shape": (2, -1)}, ValueError, "got shape=(2, -1); expected a tuple of ints >= 0"),
    (s.finite_tensors, {"min_side": 5}, ValueError, "got min_side=5 and max_side=4; expected min_side <= max_side"),
    (s.finite_tensors, {"nonfinite": "nan"}, TypeError, "got nonfinite='nan'; expected True or False"),
    (s.transformations, {"takes": gf.Updates}, TypeError, "expected gf.PerSampleGrads or gf.Grads"),
    (s.transformations, {"gives": "updates"}, TypeError, "got gives='updates'; expected gf.PerSampleGrads or gf.Gr"),
    (s.transformations, {"takes": gf.Grads, "gives": gf.PerSampleGrads}, ValueError, "gives no less than it takes"),
    (s.transformations, {"takes": gf.Grads, "bounded": True}, ValueError, "expected takes=gf.PerSampleGrads beside it"),
    (s.transformations, {"gives": gf.PerSampleGrads, "linear": True}, ValueError, "expected a chain with a reduction"),
    (s.transformations, {"max_rows": 0, "bounded": True}, ValueError, "room for the stage that bounds rows"),
    (s.transformations, {"parameters": "ab"}, TypeError, "got parameters='ab'; expected a list of parameter names"),
    (s.transformations, {"parameters": ["a"]}, ValueError, "expected two different names or more, or none"),
    (s.transformations, {"own": [3]}, TypeError, "got own=[3]; expected a list of stages"),
    (s.transformations, {"own": [gf.identity()]}, ValueError, "Set its attributes takes and gives"),
]


@pytest.mark.parametrize(("fn", "given_", "error", "says"), BAD, ids=lambda v: getattr(v, "__name__", None))
def test_bad_calls_are_refused_at_the_call(fn, given_, error, says):
    with pytest.raises(error) as raised:
        fn(**given_)
    text = str(raised.value)
    assert says in text
    assert text.startswith(f"gf.testing.strategies.{fn.__name__ if fn is not s.problems else ''}") or "cases()" in text


@pytest.mark.parametrize("fn", [*PLACED, s.batches, s.transformations], ids=lambda fn: fn.__name__)
def test_arguments_are_by_keyword(fn):
    with pytest.raises(TypeError, match="positional argument"):
        fn("anything")


# --- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", quick([torch.float32, torch.bfloat16], FLOATS), ids=str)
def test_everything_has_the_dtype_and_device_asked_for(dtype, device):
    def right(problem, synthetic, tree, w, x):
        assert isinstance(problem.batch()[0], (torch.Tensor, type(gf.ragged([]))))
        floats = [t for sample in problem.samples for t in sample if t.is_floating_point()]
        options = [t for t in problem.criterion.filled.values() if isinstance(t, torch.Tensor)]
        params, rows = problem.params.values(), synthetic.grads.materialize().values()
        for tensor in [*floats, *options, *params, *rows, *tree.values(), w, x]:
            assert tensor.dtype == dtype
            assert tensor.device.type == device
        assert synthetic.grads.losses.dtype == dtype

    place = {"dtype": dtype, "device": device}
    drawn = {"problem": s.problems(ragged=True, **place), "synthetic": s.per_sample_grads(**place)}
    drawn |= {"tree": s.parameter_trees(**place), "w": s.weights(**place), "x": s.finite_tensors(**place)}
    holds(right, **drawn)


def test_a_strategy_of_dtypes_is_drawn_from():
    seen = set()

    def noted(model):
        seen.add(model.dtype)

    holds(noted, model=s.models(dtype=st.sampled_from(FLOATS)))
    assert seen == set(FLOATS)


def test_what_is_drawn_touches_no_global_generator():
    before = torch.get_rng_state()

    def made(problem):
        assert list(problem)

    holds(made, problem=s.problems(dropout=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_problem_is_a_loss_parameters_and_a_batch_that_fit_together(device):
    def fits(problem):
        loss, params, batch = problem
        g = gf.per_sample_grads(loss)(params, *batch)
        assert g.batch_size == problem.case.size >= 1
        assert torch.equal(g.weights.double(), problem.weights())

    holds(fits, 15, problem=s.problems(device=device))


def test_a_problem_of_whole_batches_fits_too():
    def fits(problem):
        loss, params, batch = problem
        assert loss(params, *batch).numerator.shape == (problem.case.size,)

    holds(fits, problem=s.problems(batched=True))


def test_batches_of_a_model_and_a_loss_of_ones_own(device):
    model, loss = s.Model(kind="gru", device=device), s.Loss(name="cross_entropy", options=LABELS, device=device)

    def fits(batch):
        if batch.ragged:
            return
        x, y = batch.args
        assert loss(model.module(x), y, batched=True).numerator.shape == (batch.size,)

    holds(fits, batch=s.batches(model=model, loss=loss, ragged=True))


LABELS = {"target": "indices", "weight": "per class", "ignore_index": -100, "label_smoothing": 0.25, "dim": -1}


def test_weights_are_what_they_say():
    def right(w, some, hard):
        assert w.shape == (4,)
        assert bool((w >= 0).all())
        assert float(some.sum()) > 0
        assert bool((hard.isfinite() & (hard >= 0)).all())

    drawn = {"w": s.weights(size=4), "some": s.weights(positive_total=True)}
    holds(right, **drawn, hard=s.weights(kinds=["hard"]))


@pytest.mark.parametrize(("dtype", "shape"), every(5, itertools.product(FLOATS, [None, (3,), (9, 9)])), ids=str)
def test_tensors_are_finite_and_hard(dtype, shape):
    info, seen = torch.finfo(dtype), set()

    def right(x):
        assert bool(x.isfinite().all())
        size = x.abs().double()
        seen.update(
            {
                "zero": bool((size == 0).any()),
                "denormal": bool(((size > 0) & (size < info.smallest_normal)).any()),
                "huge": bool((size > info.max / 4).any()),
                "one": bool((x == 1).any()),
                "negative": bool((x < 0).any()),
                "repeated": x.numel() > 1 and bool((x == x.flatten()[0]).all()),
            }.items()
        )

    holds(right, 150, x=s.finite_tensors(shape=shape, dtype=dtype))
    assert {what for what, yes in seen if yes} == {"zero", "denormal", "huge", "one", "negative", "repeated"}


def test_nonfinite_and_nonnegative_on_request():
    seen = set()

    def right(x):
        assert not bool((x < 0).any())
        seen.update({"inf": bool(x.isinf().any()), "nan": bool(x.isnan().any())}.items())

    holds(right, 100, x=s.finite_tensors(nonfinite=True, nonnegative=True))
    assert seen >= {("inf", True), ("nan", True)}


def test_trees_have_the_shapes_asked_for():
    shapes = {"fc.weight": (2, 3), "fc.bias": (2,), "scale": ()}

    def right(tree):
        assert {name: tuple(value.shape) for name, value in tree.items()} == shapes

    holds(right, tree=s.parameter_trees(shapes=shapes))


def same_rows(synthetic):
    g, want = synthetic.grads, synthetic.rows
    scale = sum(rows.square().sum((1, 2)) for rows in want.values()).sqrt()
    got = g.materialize()
    assert list(got) == list(want) == list(synthetic.params)
    for name, rows in want.items():
        assert bool(((got[name].cpu() - rows).abs() <= 1e-12 * scale[:, None, None]).all()), name
    assert torch.allclose(g.norms().cpu(), scale, rtol=1e-12, atol=0)
    weights = synthetic.weights or [1.0] * synthetic.size
    assert g.weights.tolist() == list(weights)
    assert g.unused == tuple(name for name in want if name.endswith("nothing") or not synthetic.size)


ROWS = s.per_sample_grads(min_size=0, lengths=True, weights=True, chunks=True)


def test_rows_of_synthetic_values_are_known():
    holds(same_rows, 40, synthetic=ROWS)


def test_a_wrong_row_is_noticed(monkeypatch):
    rows = gf.PerSampleGrads.materialize
    monkeypatch.setattr(gf.PerSampleGrads, "materialize", lambda g: {k: v.flip(0) for k, v in rows(g).items()})
    with pytest.raises(AssertionError):
        holds(same_rows, synthetic=ROWS)


@pytest.mark.parametrize(
    ("gives", "bounded"),
    every(3, [(gives, bounded) for bounded in (True, False) for gives in (gf.PerSampleGrads, gf.Grads, gf.Updates)]),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_chains_take_and_give_what_they_say(gives, bounded):
    names = ("0: outer", "1: dense")

    def right(step, seed):
        synthetic = s.SyntheticGrads(uses=(("outer",), ("dense",)), size=3, inputs=2, outputs=2, seed=seed)
        assert step.gives in (gives, None)
        assert step.guarantee().per_sample_independent or gives is not gf.PerSampleGrads
        if bounded and gives is gf.PerSampleGrads:
            out, _ = step.update(synthetic.grads, step.init(synthetic.params), synthetic.params)
            assert bool((out.norms() <= step.guarantee().bound * (1 + 1e-12)).all())
        else:
            step.update(synthetic.grads, step.init(synthetic.params), synthetic.params)

    chains = s.transformations(gives=gives, parameters=names, bounded=bounded, per_sample_independent=True)
    holds(right, 40, step=chains, seed=st.integers(0, 99))


def test_chains_of_known_sensitivity():
    def right(step):
        assert step.guarantee().sensitivity.add_remove > 0

    holds(right, 60, step=s.transformations(gives=gf.Grads, sensitivity=True))


class Halved:
    takes = gives = gf.PerSampleGrads

    def init(self, params):
        return ()

    def update(self, g, state, params=None, /):
        return g.scaled(torch.full((g.batch_size,), 0.5)), state


@pytest.mark.slow
def test_stages_of_ones_own_are_drawn_too():
    own = Halved()
    found = find(s.transformations(own=[own]), lambda step: own in step.stages, settings=QUIET)
    assert repr(found) == "Halved >> sum() >> sgd(1.0)"


# --- shrinking: what a person reads ---------------------------------------------------------------------------------

QUIET = settings(deadline=None, derandomize=True, database=None, max_examples=500)
SMALLEST = {
    "anything": (s.cases(), lambda case: True, "Case(options={'per': 'element'}, size=0)"),
    "two samples": (s.cases(), lambda case: case.size >= 2, "Case(options={'per': 'element'}, size=2)"),
    "a recurrence": (
        s.cases(min_size=1),
        lambda case: case.model in ("gru", "lstm"),
        "Case(model='gru', options={'per': 'element'})",
    ),
    "problem": (
        s.problems(),
        lambda problem: problem.case.values == "repeated",
        "Case(options={'per': 'element'}, values='repeated').build()",
    ),
    "model": (s.models(unused=True), lambda model: model.unused, "Model(unused=True)"),
    "loss": (s.losses(), lambda loss: loss.name == "soft_margin", "Loss(name='soft_margin')"),
    "batch": (
        s.batches(model=MODEL, loss=LOSS),
        lambda batch: batch.size > 2,
        "Batch(size=3)",
    ),
    "rows": (s.per_sample_grads(), lambda x: True, "SyntheticGrads()"),
    "tied rows": (
        s.per_sample_grads(),
        lambda x: any(len(set(use)) > 1 for use in x.uses) and x.size > 1,
        "SyntheticGrads(uses=(('dense', 'outer'),), size=2)",
    ),
    "chain": (s.transformations(), lambda step: True, "sum() >> sgd(1.0)"),
    "clipped chain": (
        s.transformations(gives=gf.Grads),
        lambda step: "clip" in repr(step) and "ema" in repr(step),
        "sum() >> clip_by_global_norm(1.0) >> ema(0.5)",
    ),
}


@pytest.mark.parametrize("what", quick(["anything", "tied rows", "clipped chain"], SMALLEST))
def test_a_failing_example_shrinks_to_what_a_person_reads(what):
    strategy, fails, smallest = SMALLEST[what]
    assert repr(find(strategy, fails, settings=QUIET)) == smallest


@pytest.mark.slow
def test_tensors_shrink_to_zeros_and_ones():
    tensor = s.finite_tensors(shape=(2, 2))
    assert find(tensor, lambda x: True, settings=QUIET).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert find(tensor, lambda x: bool((x > 0).any()), settings=QUIET).unique().tolist() == [1.0]
    assert find(s.finite_tensors(shape=(99,)), lambda x: True, settings=QUIET).count_nonzero() == 0
    assert find(s.weights(), lambda w: len(w) > 1, settings=QUIET).tolist() == [1.0, 1.0]
    assert find(s.parameter_trees(), lambda tree: True, settings=QUIET)["w"].tolist() == 0.0


# --- printing: what makes it again ----------------------------------------------------------------------------------

NAMES = {**vars(torch.optim), **vars(gf.schedules), **vars(gf), **vars(s), "torch": torch, "gf": gf}
PRINTED = [s.models(dropout=True), s.losses(sequence=True), s.cases(large=(33,)), ROWS]


@pytest.mark.parametrize("strategy", PRINTED, ids=["models", "losses", "cases", "per_sample_grads"])
def test_what_is_printed_makes_it_again(strategy):
    def again(value):
        assert eval(repr(value), NAMES) == value

    holds(again, 40, value=strategy)


def test_a_printed_chain_is_the_chain():
    def again(step):
        made = eval(repr(step), NAMES)
        assert repr(gf.chain(made)) == repr(step)
        assert gf.chain(made).guarantee() == step.guarantee()
        assert gf.chain(made) == step or any(of in repr(step) for of in ("(heavy", "(deviation", "top_k_loss"))

    holds(again, 100, step=s.transformations(parameters=("a", "b")))


@pytest.mark.parametrize("dtype", quick([torch.bfloat16], FLOATS), ids=str)
def test_a_printed_tensor_is_the_tensor_to_the_last_bit(dtype):
    def again(x):
        made = eval(pretty(x), NAMES)
        assert made.dtype == x.dtype
        assert made.shape == x.shape
        assert torch.equal(made.nan_to_num(7.5), x.nan_to_num(7.5))
        assert torch.equal(made.signbit() | made.isnan(), x.signbit() | x.isnan())

    holds(again, 60, x=s.finite_tensors(min_side=0, nonfinite=True, dtype=dtype))


def test_the_report_of_a_failure_can_be_pasted():
    @settings(derandomize=True, database=None, deadline=None)
    @given(problem=s.problems(), x=s.finite_tensors(shape=(1,)))
    def wrong(problem, x):
        assert problem.case.size < 3

    with pytest.raises(AssertionError) as raised:
        wrong()
    text = "\n".join(raised.value.__notes__)
    assert "problem=Case(options={'per': 'element'}, size=3).build()" in text
    assert "x=torch.tensor([0.0], dtype=torch.float64)" in text


def test_a_tensor_inside_of_a_value_is_printed_whole():
    """torch itself prints four digits of 1 / 3."""
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert "torch.tensor(0.3333333333333333, dtype=torch.float64)" in repr(s.Loss(options={"weight": third}))


@pytest.mark.parametrize("kind", quick(["mlp"], ["mlp", "tied", "lstm", "embedding, padding"]))
def test_a_drawn_problem_runs_at_another_precision(kind, recwarn):
    """With what it holds: frozen parameters, buffers, class weights. So laws ask for all digits, and nothing warns."""
    options = {"weight": "per class", "label_smoothing": 0.1}
    for dtype in (torch.float32, torch.float64):
        case = s.Case(model=kind, loss="cross_entropy", options=options, size=3, frozen=True, dtype=dtype, wrt="half")
        gf.testing.assert_reduction_identities(*case.build(), wrt=case.build().names)
    assert not [one for one in recwarn if issubclass(one.category, gf.GradfuncWarning)]


def test_functions_that_drawn_chains_name_say_what_they_say():
    f = gf.per_sample_grads(lambda p, x, w: gf.Weighted((p["w"] * x).sum(), w))
    g = f({"w": torch.ones(1)}, torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([0.5, 0.75, 2.0]))
    assert gf.testing.strategies.heavy(g).tolist() == [False, True, True]  # 1/2 itself is not above it
    assert gf.testing.strategies.deviation(g).tolist() == [2.0, 1.0, 3.0]
