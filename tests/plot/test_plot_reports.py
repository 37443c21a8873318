"""Clipping, recurrences, training, audit, benchmark, check: the numbers drawn are the report's, the title says them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from drawn import audited, benched, certified, flow_of, grid, linear, of, recurrent, series, title, trained
from torch import nn

import gradfunc as gf
from gradfunc.audit._demo import DemoReport, Triggered

TENS = math.log(10)


# --- clipping --------------------------------------------------------------------------------------------------


def test_the_geometry_of_clipping():
    figure = gf.plot.clip_geometry([2.5, 0.8])
    assert title(figure) == "Clipping by value turns the gradient by 20.92°, by norm by 0°"
    (axes,) = figure.axes
    ends = [tuple(float(line.get_data()[k][0]) for k in (0, 1)) for line in axes.lines if line.get_label()[0] != "_"]
    assert ends[0] == (2.5, 0.8)
    assert ends[1] == (1.0, 0.8)
    assert ends[2] == pytest.approx((0.9524, 0.3048), abs=5e-5)
    assert math.hypot(*ends[2]) == pytest.approx(1.0, abs=1e-15)
    square, circle = axes.patches[:2]
    assert (square.get_x(), square.get_width(), circle.radius) == (-1.0, 2.0, 1.0)
    assert axes.get_aspect() == 1.0


@pytest.mark.parametrize("gradient", [[0.3, 0.2], [-3.0, 3.0], [0.0, 2.0]])
def test_what_clipping_does_not_turn(gradient):
    assert title(gf.plot.clip_geometry(gradient)).startswith("Clipping by value turns the gradient by 0°")


# --- through time ----------------------------------------------------------------------------------------------


def test_growth_of_a_matrix_beside_theory():
    report = linear()
    (axes,) = gf.plot.through_time(report).axes
    (growth,) = of(axes, "growth")
    assert growth.get_ydata() == pytest.approx(report.log_norms.numpy() / TENS)
    radius, bound = of(axes, "theory")
    lags = np.array(report.lags)
    assert radius.get_ydata() == pytest.approx(lags * math.log10(0.9))
    assert bound.get_ydata() == pytest.approx(lags * math.log10(report.spectral_norm))
    (gradient,) = of(axes, "gradient")
    assert gradient.get_ydata() == pytest.approx(np.log10((report.gradients / report.gradients[0]).numpy()))


def test_titles_of_growth():
    assert title(gf.plot.through_time(linear())) == (
        "Gradients vanish: below 0.01 beyond 111 steps back, after a peak of 38.7 at 9"
    )
    assert title(gf.plot.through_time(linear("explodes"))) == "Gradients explode: 6.38e8-fold at 50 steps back"
    assert title(gf.plot.through_time(linear("turns"))) == "Gradients neither vanish nor explode in 50 steps"


def test_growth_of_a_model_beside_its_exponent():
    report = recurrent()
    (axes,) = gf.plot.through_time(report).axes
    assert of(axes, "growth")[0].get_ydata() == pytest.approx(np.median(report.log_growth.numpy(), 0) / TENS)
    rate = float(np.median(report.exponents[:, 0].numpy()))
    assert of(axes, "theory")[0].get_ydata() == pytest.approx(rate * np.array(report.lags) / TENS)
    (band,) = (child for child in axes.collections if child.get_label() == "least to most of 4 samples")
    low, high = report.log_growth.min(0).values / TENS, report.log_growth.max(0).values / TENS
    extent = band.get_paths()[0].vertices[:, 1]
    assert (extent.min(), extent.max()) == pytest.approx((float(low.min()), float(high.max())))


def test_growth_of_several():
    figure = gf.plot.through_time({"W": linear(), "LSTM": recurrent()})
    assert len(of(figure.axes[0], "growth")) == 2
    reach = sorted(recurrent().horizons)[2]
    assert title(figure) == f"Gradients reach back farthest in W: 111 steps above 0.01, against {reach} (LSTM)"


def test_growth_to_nothing():
    report = gf.diagnose.recurrence(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), steps=5)
    assert title(gf.plot.through_time(report)).startswith("Gradients vanish")
    assert np.isnan(of(gf.plot.through_time(report).axes[0], "growth")[0].get_ydata()[2:]).all()


def test_growth_where_losses_do_not_depend_on_the_last_state(recwarn):
    for gradients, drawn in ((torch.zeros(2, 3), 0), (torch.tensor([[1.0, 1.0, 0.0], [0.25, 0.5, 1.0]]), 1)):
        report = dataclasses.replace(recurrent(), gradients=gradients.double())
        lines = of(gf.plot.through_time(report).axes[0], "gradient")
        assert len(lines) == drawn
    assert 10.0 ** lines[0].get_ydata() == pytest.approx([1.0, 0.5, 0.25])
    assert not recwarn.list


# --- eigenvalues and remedies ------------------------------------------------------------------------------------


def test_eigenvalues_in_and_out_of_the_circle():
    figure = gf.plot.eigenvalues(linear("explodes"))
    (axes,) = figure.axes
    assert title(figure) == (
        "1 of 2 eigenvalues lies outside of the unit circle, the largest at 1.5: x 6.38e8 in 50 steps"
    )
    found = {child.get_label(): child.get_offsets().tolist() for child in axes.collections}
    assert found == {"inside: decays": [[0.5, 0.0]], "outside: grows": [[1.5, 0.0]]}
    circle = next(line for line in axes.lines if line.get_label() == "unit circle")
    assert np.hypot(*circle.get_data()) == pytest.approx(1.0)
    assert axes.get_aspect() == 1.0


def test_eigenvalues_on_the_circle_as_far_as_is_known():
    figure = gf.plot.eigenvalues(linear("turns"))
    assert title(figure) == "2 of 2 eigenvalues lie on the unit circle, none outside"


def test_eigenvalues_that_are_one():
    figure = gf.plot.eigenvalues(linear())
    assert title(figure) == "All 2 eigenvalues lie inside of the unit circle, the largest at 0.9"
    assert [text.get_text() for text in figure.axes[0].texts] == ["2 times"]


@pytest.mark.parametrize(
    ("scale", "says"),
    [(1.2, "At least 3 of 40 eigenvalues lie outside of"), (1.0, "At least 3 of 40 eigenvalues lie on"),
     (0.7, "All 40 eigenvalues lie inside")],
)  # fmt: skip
def test_eigenvalues_of_which_only_the_largest_are_known(scale, says):
    w = scale * torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    figure = gf.plot.eigenvalues(gf.diagnose.recurrence(w, steps=5, dense=2, exponents=3))
    assert title(figure).startswith(says)
    assert "nan" not in figure.get_label()


def test_the_eigenvalue_of_one_state():
    figure = gf.plot.eigenvalues(gf.diagnose.recurrence(torch.tensor([[2.0]]), steps=1))
    assert title(figure) == "The eigenvalue lies outside of the unit circle, at 2: x 2 in 1 step"


def test_remedies():
    report = gf.diagnose.remedies(steps=10, hidden=3, forget_biases=(1.0,))
    figure = gf.plot.remedies(report)
    assert title(figure).startswith(f"Through 10 steps, plain leaves {report.row('plain').whole:.3g} of a gradient; ")
    (axes,) = figure.axes
    x, y = series(axes, "closed form")
    assert x == pytest.approx([math.log10(row.closed) for row in report.rows if row.closed])
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.name for row in report.rows]
    assert len(y) == sum(row.closed is not None for row in report.rows)


# --- training ----------------------------------------------------------------------------------------------------


def test_losses_and_clip_events():
    history = trained()
    figure = gf.plot.losses(history)
    above, below = figure.axes
    assert of(above, "batch")[0].get_ydata() == pytest.approx(history["loss"])
    assert series(above, "epoch")[1] == pytest.approx(history["epoch_loss"])
    clipped = np.flatnonzero(history["clip/clipped"] > 0)
    assert len(clipped) > 0
    assert of(below, "events")[0].get_xdata() == pytest.approx(clipped)
    first, last = history["epoch_loss"][[0, -1]]  # of two epochs; single batches go the other way here
    word = "fell" if last < first else "rose"
    assert (
        title(figure) == f"Mean loss {word} from {first:.3g} to {last:.3g} in 6 steps; {len(clipped)} of them clipped"
    )


def test_losses_without_clips_validated_and_broken():
    parts = {name: trained().series[name] for name in ("loss", "weight", "epoch", "epoch_loss")}
    steps, values = parts["loss"]
    broken = np.array([*values[:4], math.inf, math.nan])
    history = gf.train.History({**parts, "validation/loss": parts["epoch_loss"]})
    (axes,) = gf.plot.losses(history).axes
    assert series(axes, "validation")[1] == pytest.approx(history["validation/loss"])
    figure = gf.plot.losses(gf.train.History({**parts, "loss": parts["loss"]._replace(values=broken)}))
    assert title(figure) == "Loss is not finite from step 4 on"
    assert any(line.get_label() == "not finite (step 4)" for line in figure.axes[0].lines)
    once = np.array([*values[:2], math.nan, *values[3:]])
    figure = gf.plot.losses(gf.train.History({**parts, "loss": parts["loss"]._replace(values=once)}))
    assert title(figure) == "Loss is not finite at 1 of 6 steps, first at step 2"
    flat = parts["loss"]._replace(values=np.full(len(steps), 0.5))
    steps_alone = {name: parts[name] for name in ("weight", "epoch")}
    assert title(gf.plot.losses(gf.train.History({**steps_alone, "loss": flat}))) == "Loss is 0.5 after 6 steps"
    wide = parts["loss"]._replace(values=np.geomspace(1e3, 1e-3, len(steps)))
    assert gf.plot.losses(gf.train.History({**parts, "loss": wide})).axes[0].get_yscale() == "log"


def test_flow_over_training():
    history = trained()
    figure = gf.plot.flow_over_training(history)
    (mesh,) = figure.axes[0].collections
    expected = np.array([[row["gradient"]["rms"] for row in report["rows"]] for report in history["flow"]]).T
    assert np.asarray(mesh.get_array()) == pytest.approx(np.log10(expected))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["fc1", "fc2"]
    change = np.abs(np.log(expected[:, -1] / expected[:, 0]))
    k = int(change.argmax())
    word = "fell" if expected[k, -1] < expected[k, 0] else "rose"
    assert title(figure).startswith(f"RMS of the gradients changed most in layer fc{k + 1}: {word} from")
    ratio = gf.plot.flow_over_training(history, of="ratio").axes[0].collections[0].get_array()
    assert np.asarray(ratio)[:, 0] == pytest.approx([math.log10(row["ratio"]) for row in history["flow"][0]["rows"]])


def test_a_heat_map_has_whole_steps_and_no_colour_for_holes():
    figure = gf.plot.flow_over_training(trained())
    axes = figure.axes[0]
    assert all(tick == round(tick) for tick in axes.get_xticks())
    hole = axes.get_facecolor()
    colours = axes.collections[0].cmap(np.linspace(0, 1, 256))
    assert np.abs(colours - hole).max(1).min() > 0.5
    assert "White: 0" in figure.get_label()


def test_a_heat_map_with_holes():
    series_ = trained().series["flow"]
    reports = [{**report, "rows": [dict(row) for row in report["rows"]]} for report in series_.values]
    reports[0]["rows"][0]["gradient"] = {**reports[0]["rows"][0]["gradient"], "rms": 0.0}
    reports[1]["rows"][1]["gradient"] = {**reports[1]["rows"][1]["gradient"], "rms": "nan"}
    history = gf.train.History({"flow": series_._replace(values=reports)})
    mask = gf.plot.flow_over_training(history).axes[0].collections[0].get_array().mask
    assert mask[0, 0]
    assert mask[1, 1]
    assert mask.sum() == 2


# --- audit, benchmark, check -------------------------------------------------------------------------------------


def test_discrepancies_of_a_sound_model():
    report = audited()
    figure = gf.plot.discrepancies(report)
    assert title(figure) == (
        "The reductions agree: no difference beyond rounding in 10 pairs (the forum's loop differs in 5 more)"
    )
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{p.a} - {p.b}" for p in report.pairs]
    x, y = series(axes, "rounding")
    pairs = [report.pairs[int(k)] for k in y]
    assert x == pytest.approx([math.log10(pair.discrepancy) for pair in pairs])
    assert {pair.verdict for pair in pairs} == {"rounding"}


def test_discrepancies_of_a_faulty_one():
    report = audited(weighted=True)
    figure = gf.plot.discrepancies(report)
    wrong = [pair for pair in report.pairs if pair.fault]
    assert wrong
    assert title(figure) == f"{len(wrong)} of 15 pairs disagree beyond rounding: class_weights"
    bold = [label.get_text() for label in figure.axes[0].get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == [f"{pair.a} - {pair.b}" for pair in wrong]
    x, y = series(figure.axes[0], "predicted by its cause")
    assert x == pytest.approx([math.log10(report.pairs[int(k)].causes[0].predicted) for k in y])


def test_figures_of_the_default_audit():
    rows = (
        Triggered("padding", "a - b", 0.1, 0.1, 0.0, True, None),
        Triggered("dropout", "a - b", 0.2, None, None, False, None),
    )
    figures = gf.plot.figures(DemoReport(audited(), (), rows))
    assert list(figures) == ["discrepancies", "mechanisms"]
    assert title(figures["mechanisms"]) == "1 of 2 mechanisms are found by their closed forms"


def test_costs():
    figure = gf.plot.costs(benched())
    assert title(figure) == "gradfunc: clip-and-sum costs 1.25 times a plain backward pass"
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "mlp: 784-10, B = 4"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["clip-and-sum: gradfunc", "clip-and-sum: opacus", "clip-and-sum: backpack"]
    ends = [patch.get_x() + patch.get_width() for patch in axes.patches]
    assert ends == pytest.approx([1.25, 41.0])
    assert [patch.get_hatch() for patch in axes.patches] == [None, "////"]
    assert [text.get_text().strip() for text in axes.texts] == ["1.25 x", "41 x  wrong", "refused"]
    faulty = dataclasses.replace(benched().rows[1], verdict="wrong")
    assert title(gf.plot.costs(dataclasses.replace(benched(), rows=(faulty,)))) == "gradfunc is wrong on mlp"


def test_checks():
    report = certified()
    figure = gf.plot.checks(report)
    ran = sum(row.verdict not in ("cannot tell", "not run") for row in report.rows)
    assert title(figure) == f"{ran} of {len(report.rows)} checks hold"
    x, y = series(figure.axes[0], "rounding")
    rows = [report.rows[int(k)] for k in y]
    assert x == pytest.approx([math.log10(row.measured / row.scale) for row in rows])
    broken = dataclasses.replace(report.rows[0], verdict="wrong", measured=0.5, scale=1.0, parameter="fc.weight")
    faulty = gf.plot.checks(dataclasses.replace(report, rows=(broken, *report.rows[1:])))
    assert title(faulty) == f"1 of {len(report.rows)} checks found a fault: fc.weight"
    assert faulty.axes[0].get_yticklabels()[0].get_fontweight() == "bold"


# --- what fits ---------------------------------------------------------------------------------------------------

FITTING = {
    "audit": (audited, ["discrepancies"]),
    "check": (certified, ["checks"]),
    "bench": (benched, ["costs"]),
    "flow": (flow_of, ["flow", "gradient-norms"]),
    "grid": (grid, ["factors"]),
    "matrix": (linear, ["through-time", "eigenvalues"]),
    "model": (recurrent, ["through-time"]),
    "history": (trained, ["losses", "flow-over-training"]),
    "other": (lambda: gf.train.History({}), []),
}


@pytest.mark.parametrize("name", FITTING)
def test_figures_that_fit(name):
    made, names = FITTING[name]
    assert list(gf.plot.figures(made())) == names


BAD = {
    "figures": (lambda: gf.plot.figures({"a": 1}), TypeError, r"gf\.plot\.figures\(report\): got a dict"),
    "geometry, three": (lambda: gf.plot.clip_geometry([1.0, 2.0, 3.0]), ValueError, "expected two finite numbers"),
    "geometry, zero": (lambda: gf.plot.clip_geometry([0.0, 0.0]), ValueError, "not both 0"),
    "geometry, nan": (lambda: gf.plot.clip_geometry([math.nan, 0.0]), ValueError, "finite"),
    "geometry, text": (lambda: gf.plot.clip_geometry("ab"), TypeError, "got a str; expected two finite numbers"),
    "geometry, limit text": (lambda: gf.plot.clip_geometry(limit="1"), TypeError, "got limit='1'"),
    "geometry, limit": (lambda: gf.plot.clip_geometry(limit=0.0), ValueError, r"got limit=0\.0"),
    "time": (lambda: gf.plot.through_time(flow_of()), TypeError, "got a FlowReport"),
    "time, none": (lambda: gf.plot.through_time({}), ValueError, "got no report"),
    "eigenvalues": (lambda: gf.plot.eigenvalues(recurrent()), TypeError, "got a RecurrenceReport"),
    "remedies": (lambda: gf.plot.remedies(linear()), TypeError, "got a LinearRecurrence"),
    "losses": (lambda: gf.plot.losses(flow_of()), TypeError, "got a FlowReport"),
    "losses, empty": (lambda: gf.plot.losses(gf.train.History({})), ValueError, "a history without steps"),
    "losses, series": (lambda: gf.plot.losses(trained(), clipped="cut"), ValueError, "got clipped='cut'"),
    "heat map": (lambda: gf.plot.flow_over_training(trained(), "loss"), ValueError, "a series of something else"),
    "heat map, series": (lambda: gf.plot.flow_over_training(trained(), "flows"), ValueError, "got series='flows'"),
    "heat map, of": (lambda: gf.plot.flow_over_training(trained(), of="loss"), ValueError, "got of='loss'"),
    "audit": (lambda: gf.plot.discrepancies(certified()), TypeError, "got a CheckReport"),
    "bench": (lambda: gf.plot.costs(audited()), TypeError, "got a ReductionReport"),
    "bench, empty": (lambda: gf.plot.costs(dataclasses.replace(benched(), rows=())), ValueError, "without timed"),
    "check": (lambda: gf.plot.checks(nn.Linear(1, 1)), TypeError, "got a Linear"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, says = BAD[name]
    with pytest.raises(error, match=says):
        call()
