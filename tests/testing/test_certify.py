"""The certificate: healthy losses pass it, and every planted engine is caught by the check that is meant to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiers import quick
from torch import Tensor, nn

import gradfunc as gf
from gradfunc import _certificate, _engines, _factors
from gradfunc._engines import _factored
from gradfunc._per_sample import PerSampleGradsFunction

VOCABULARY, WIDTH, TIME, N = 7, 4, 3, 6


class Tied(nn.Module):
    """An embedding that is the head as well, and positions that all samples share."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TIME, WIDTH)
        self.mix, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.place(torch.arange(TIME, device=ids.device))
        return self.drop(torch.tanh(self.mix(h))) @ self.embed.weight.T


def problem(dtype=torch.float32, dropout=0.0, batched=False):
    torch.manual_seed(0)
    model = gf.stateless(Tied(dropout).to(dtype))

    def loss(params, ids, target):
        output = model(params, ids) if batched else model.sample(params, ids)
        return gf.losses.cross_entropy(output, target, batched=batched)

    return loss, model.params, (torch.randint(VOCABULARY, (N, TIME)), torch.randint(VOCABULARY, (N, TIME)))


def certified(**options) -> gf.testing.CheckReport:
    return gf.testing.certify(*problem(batched=options.get("batched", False)), **options)


# --- healthy --------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"engine": "vmap"},
    {"engine": "loop"},
    {"chunk_size": 2},
    pytest.param({"engine": "vmap", "chunk_size": 2}, marks=pytest.mark.slow),
    {"engine": "loop", "chunk_size": 4},
    {"batched": True},
    {"batched": True, "engine": "vmap"},
    {"batched": True, "engine": "loop"},
    {"batched": True, "engine": "vmap", "chunk_size": 4},
    {"wrt": "embed.*"},
]


SLOW = pytest.mark.slow
TYPES = [
    (torch.float32, 0.5),
    (torch.bfloat16, 0.0),
    *(pytest.param(*pair, marks=SLOW) for pair in ((torch.float32, 0.0), (torch.bfloat16, 0.5))),
    *(pytest.param(torch.float64, dropout, marks=SLOW) for dropout in (0.0, 0.5)),
]


@pytest.mark.parametrize(("dtype", "dropout"), TYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_healthy(options, dtype, dropout):
    report = gf.testing.certify(*problem(dtype, dropout, options.get("batched", False)), **options)
    assert report.ok, report
    assert [row.check for row in report.rows] == list(_certificate.CHECKS)
    assert {row.verdict for row in report.rows} <= {"exact", "rounding"}, report


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in range(1, 8))])
@pytest.mark.parametrize("engine", ["factored", "vmap"])
def test_healthy_at_every_seed(engine, seed):
    report = gf.testing.certify(*problem(dropout=0.3), engine=engine, seed=seed)
    assert {row.verdict for row in report.rows} <= {"exact", "rounding"}, report


def test_batch_forms():
    loss, params, (ids, target) = problem()
    for batch in ((ids, target), [ids, target], {"ids": ids, "target": target}):
        assert gf.testing.certify(loss, params, batch).ok
    x = torch.randn(5, WIDTH)
    assert gf.testing.certify(lambda p, x: (p["w"] * x).sum().tanh(), {"w": torch.ones(WIDTH)}, x).batch_size == 5


def test_a_function_that_was_made_already():
    loss, params, batch = problem()
    report = gf.testing.certify(gf.per_sample_grads(loss, engine="loop"), params, batch)
    assert report.ok
    assert "loop" in report.title


def test_one_sample():
    loss, params, (ids, target) = problem()
    assert gf.testing.certify(loss, params, (ids[:1], target[:1])).ok


def test_a_loss_that_refuses_vmap_is_certified_without_a_warning():
    def branching(p, x):
        return (p["w"] * x).sum().square() if bool(x[0] > 0) else (p["w"] * x).sum()

    report = gf.testing.certify(branching, {"w": torch.ones(3)}, torch.randn(6, 3))
    assert report.ok
    assert "loop" in report.title


def test_an_island_of_one_precision_cannot_be_told_and_says_so():
    def loss(p, x):
        return torch.tanh(p["w"].float() @ x.float()).sum()

    report = gf.testing.certify(loss, {"w": torch.randn(5, 4).double()}, torch.randn(6, 4).double())
    assert report.ok
    told = {row.verdict for row in report.rows}
    assert told <= {"exact", "cannot tell"}
    assert "cannot tell" in told
    assert "one precision" in str(report)


def test_a_loss_that_runs_at_one_precision_only():
    def loss(p, x):
        if x.dtype == torch.float64:
            raise ValueError("float32 only")
        return torch.tanh(p["w"] @ x).sum()

    report = gf.testing.certify(loss, {"w": torch.randn(5, 4)}, torch.randn(6, 4))
    assert report.ok
    assert report.other_dtype is None
    assert {row.verdict for row in report.rows} <= {"exact", "cannot tell"}
    assert "float32 only" in str(report)
    assert "could not be told" in str(report)


def test_gradients_that_are_not_finite_are_not_the_engines_fault():
    x = torch.randn(6, 4)
    x[2, 1] = torch.inf
    report = gf.testing.certify(lambda p, x: (p["w"] * x).sum().exp(), {"w": torch.ones(4)}, x)
    assert report.ok
    assert "not finite" in str(report)


def test_a_report_is_a_value():
    report = certified()
    assert report.to_dict()["ok"] is True
    assert {row["check"] for row in report.to_dict()["rows"]} == set(_certificate.CHECKS)
    assert max(len(line) for line in str(report).splitlines()) <= 118
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = ""
    with pytest.raises(KeyError, match="no check 'nothing'"):
        report.row("nothing")


# --- planted engines ------------------------------------------------------------------------------------------


def norms_without_cross_term(rows):
    """What two uses of a tied weight, squared apart, leave out is a part of that weight's square."""
    parts = {name: value for name, value in rows.items() if name != "embed.weight"}
    tied = rows["embed.weight"]
    return (norms(parts).square() + 1.1 * norms({"": tied}).square()).sqrt()


norms, dots, weighted_sum = _factors.norms, _factors.dots, _factors.weighted_sum
gram, materialize = gf.PerSampleGrads.gram, gf.PerSampleGrads.materialize
# engine -> what gives its rows
ROWS = {"factored": (_factored, "factored"), "vmap": (_engines.VmapSource, "rows")}


def plant(monkeypatch, engine, where, attribute, mistake):
    """A mistake in a function; where there is no function, in the rows that this engine gives."""
    if where is not None:
        monkeypatch.setattr(where, attribute, mistake)
        return
    where, attribute = ROWS[engine]
    rows = getattr(where, attribute)

    def changed(*args, **options):
        got = rows(*args, **options)
        return got._replace(grads=_factors.from_rows(mistake(dict(_factors.dense(got.grads)))))

    monkeypatch.setattr(where, attribute, changed)


def changed_rows(change):
    return None, "", change


def shared_summed(grads):
    """A broadcast embedding: the total of the batch, spread over the samples. Their sum stays right."""
    value = grads["place.weight"]
    return {**grads, "place.weight": (value.sum(0) / len(value)).expand_as(value).clone()}


def permuted(grads):
    """Two samples swapped: every symmetric reduction stays right."""
    order = torch.tensor([0, 1, 3, 2, *range(4, len(grads["mix.bias"]))])
    return {name: value[order] for name, value in grads.items()}


def lost(grads):
    return {**grads, "mix.bias": torch.zeros_like(grads["mix.bias"])}


def one_sample_off(grads):
    grads["mix.weight"] = grads["mix.weight"].clone()
    grads["mix.weight"][4] *= 1.001
    return grads


def gram_off(self, other=None, **options):
    out = gram(self, other, **options).clone()
    out[0, 1] *= 1.01
    return out


def dots_off(rows, direction):
    return dots({k: v for k, v in rows.items() if k != "mix.bias"}, direction)


def rows_off(self):
    return {name: value * (1.01 if name == "mix.weight" else 1) for name, value in materialize(self).items()}


def every_row_the_mean(grads):
    return {name: value.mean(0).expand_as(value).clone() for name, value in grads.items()}


def sample_lost(grads):
    return {name: value.index_fill(0, torch.tensor([4]), 0.0) for name, value in grads.items()}


def half(grads):
    return {**grads, "mix.weight": grads["mix.weight"] / 2}


# fault -> (where, attribute, mistake, the check that must say so, parameter, sample; None: not told)
ENGINES = {
    "a missing tied cross term": (_factors, "norms", norms_without_cross_term, "norms", None, None),
    "norms that overflow": (_factors, "norms", lambda rows: norms(rows) * torch.inf, "norms", None, None),
    "a broadcast embedding summed": (*changed_rows(shared_summed), "weighted sum", "place.weight", 0),
    "rows permuted": (*changed_rows(permuted), "weighted sum", None, 2),
    "a lost parameter": (*changed_rows(lost), "weighted sum", "mix.bias", 0),
    "every row the mean": (*changed_rows(every_row_the_mean), "weighted sum", None, 0),
    "a sample lost": (*changed_rows(sample_lost), "weighted sum", None, 4),
    "half of a parameter": (*changed_rows(half), "weighted sum", "mix.weight", 0),
    "one sample 0.1% off": (*changed_rows(one_sample_off), "weighted sum", "mix.weight", 4),
    "gram": (gf.PerSampleGrads, "gram", gram_off, "gram", None, None),
    "dot": (_factors, "dots", dots_off, "dot", None, None),
    "rows": (gf.PerSampleGrads, "materialize", rows_off, "rows", "mix.weight", None),
    "signs lost in a weighted sum": (
        _factors,
        "weighted_sum",
        lambda rows, c, **_: weighted_sum(rows, None if c is None else c.abs()),
        "weighted sum",
        None,
        None,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=SLOW)])
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("engine", ROWS)
def test_a_planted_engine_is_caught(engine, name, dtype, monkeypatch):
    *mistake, check, parameter, sample = ENGINES[name]
    made = problem(dtype)
    assert gf.testing.certify(*made, engine=engine).ok
    plant(monkeypatch, engine, *mistake)
    report = gf.testing.certify(*made, engine=engine)
    assert not report.ok
    row = report.row(check)
    assert row.verdict == "wrong", report
    if parameter is not None:
        assert row.parameter == parameter
        assert f"{parameter}" in str(report)
    if sample is not None:
        assert row.sample == sample, report


@pytest.mark.parametrize("name", ["a broadcast embedding summed", "rows permuted"])
@pytest.mark.parametrize("engine", quick(["factored"], ROWS))
def test_a_plain_sum_would_not_catch_it(engine, name, monkeypatch):
    """Why the coefficients are random: with r = 1 the same checks pass."""
    plant(monkeypatch, engine, *ENGINES[name][:3])
    monkeypatch.setattr(_certificate, "coefficients", lambda like, seed: torch.ones_like(like))
    assert gf.testing.certify(*problem(), engine=engine).row("weighted sum").verdict in ("exact", "rounding")


@pytest.mark.parametrize("engine", ROWS)
def test_norms_are_not_covered_by_weighted_sums(engine, monkeypatch):
    """A missing cross term passes (i): that is why (ii) is there."""
    monkeypatch.setattr(_factors, "norms", norms_without_cross_term)
    report = gf.testing.certify(*problem(), engine=engine)
    assert report.row("weighted sum").verdict in ("exact", "rounding")
    assert {row.check for row in report.faults} == {"norms", "diagonal"}


@pytest.mark.parametrize("engine", ROWS)
def test_where_it_cannot_be_repeated_a_large_difference_is_still_wrong(engine, monkeypatch):
    def loss(p, x):
        if x.dtype == torch.float64:
            raise ValueError("float32 only")
        return torch.tanh(p["w"] @ x).sum()

    plant(monkeypatch, engine, *changed_rows(lambda grads: {"w": grads["w"] * 1.01}))
    report = gf.testing.certify(loss, {"w": torch.randn(5, 4)}, torch.randn(6, 4), engine=engine)
    assert report.row("weighted sum").verdict == "wrong"


# --- the second route ------------------------------------------------------------------------------------------


def test_other_draws_would_be_noticed(monkeypatch):
    """A second route that drew other masks than the engine did."""
    made = problem(dropout=0.5)
    evaluation = PerSampleGradsFunction.evaluation
    answered = []

    def elsewhere(f, *given):
        """The engine's own call draws as asked, the second route otherwise."""
        answered.append(f)
        return evaluation(f if len(answered) % 2 else f.at(7), *given)

    monkeypatch.setattr(PerSampleGradsFunction, "evaluation", elsewhere)
    assert gf.testing.certify(*made).row("weighted sum").verdict == "wrong"


# --- bad calls -------------------------------------------------------------------------------------------------

loss, params, batch = problem()
BAD = {
    "not a function": (lambda: gf.testing.certify(3, params, batch), TypeError, "got an int"),
    "options beside a function": (
        lambda: gf.testing.certify(gf.per_sample_grads(loss), params, batch, engine="loop"),
        TypeError,
        r"options \['engine'\].*Give them to gf\.per_sample_grads",
    ),
    "unknown option": (lambda: gf.testing.certify(loss, params, batch, speed=1), TypeError, "speed"),
    "unknown engine": (lambda: gf.testing.certify(loss, params, batch, engine="fast"), ValueError, "engine='fast'"),
    "params": (lambda: gf.testing.certify(loss, [1], batch), TypeError, "as params"),
    "no sample": (lambda: gf.testing.certify(loss, params, (batch[0][:0], batch[1][:0])), ValueError, "0 samples"),
    "sizes": (lambda: gf.testing.certify(loss, params, (batch[0], batch[1][:2])), ValueError, "disagree"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_is_told_what_is_wrong(name):
    call, error, match = BAD[name]
    with pytest.raises(error, match=match):
        call()


# --- every form of a call ---------------------------------------------------------------------------------------


def test_named_draws():
    made, batch = problem(dropout=0.5)[:2], problem()[2]
    f = gf.per_sample_grads(made[0], chunk_size=2).at(3, index=[9, 4, 1, 0, 7, 8])
    report = gf.testing.certify(f, made[1], batch)
    assert {row.verdict for row in report.rows} <= {"exact", "rounding"}, report


@pytest.mark.parametrize("engine", quick(["factored"], ["factored", "vmap", "loop"]))
def test_static_ragged_aux_and_a_loss_scale(engine):
    def loss(p, x, power):
        value = torch.tanh(x @ p["w"]).pow(power).sum()
        return value, value.detach()

    lengths = [3, 2, 3, 5, 2]
    batch = (gf.ragged([torch.randn(n, 4) for n in lengths]), gf.static(torch.tensor(2.0)))
    report = gf.testing.certify(
        loss, {"w": torch.randn(4)}, batch, engine=engine, has_aux=True, loss_scale=2.0**10, chunk_size=2
    )
    assert report.batch_size == 5
    assert {row.verdict for row in report.rows} <= {"exact", "rounding"}, report
