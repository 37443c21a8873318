"""Reports and histories as flat numbers; TensorBoard takes them and gives them back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from torch import nn

import gradfunc as gf
from gradfunc._report import Report


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    return gf.diagnose.gradient_flow(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), nn.MSELoss(),
                                     (x, x[:, :2]))  # fmt: skip


@pytest.fixture(scope="module")
def history(flow):
    def loss(p, x):
        return (p["w"] - x).square()

    capture = {"flow": lambda snapshot: flow, "norms": lambda snapshot: snapshot.g.norms(),
               "clip": lambda snapshot: snapshot.report["clip_per_sample"]}  # fmt: skip
    step = gf.clip_per_sample(1.0) >> gf.mean() >> gf.sgd(0.25)
    return gf.train.fit(loss, step, {"w": torch.zeros(())}, torch.tensor([1.0, 0.4, 2.0]), batch_size=2, epochs=2,
                        capture=capture).history  # fmt: skip


def test_a_report(flow):
    numbers = gf.scalars(flow)
    assert numbers["ok"] == float(flow.ok)
    assert numbers["loss"] == flow.loss
    assert numbers["trend/factor"] == flow.trend.factor
    assert numbers["rows/2/weights/rms"] == flow.row("2").weights.rms
    assert numbers["rows/0/activations/histogram"].tolist() == list(flow.row("0").activations.histogram)
    assert "rows/0/function" not in numbers
    assert not any("verdict" in name for name in numbers)


def test_every_value_is_a_number_or_an_array(flow, history):
    for source in (flow, history, gf.diagnose.recurrence(torch.eye(3) / 2, steps=4)):
        for name, value in gf.scalars(source).items():
            assert name
            assert not name.startswith("/")
            assert isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"), name


def test_kinds_of_values():
    @dataclass(frozen=True)
    class Row:
        name: str
        value: float | None

    @dataclass(frozen=True)
    class Kinds(Report):
        number: int
        yes: bool
        text: str
        none: None
        odd: float
        tensor: Any
        many: tuple
        rows: tuple
        nested: dict

        @property
        def ok(self):
            return False

        def parts(self):
            return []

        def to_dict(self):
            return {}

    numbers = gf.scalars(
        Kinds(3, True, "word", None, math.nan, torch.ones(2, dtype=torch.bfloat16), (1, 2.5),
              (Row("a", 1.0), Row("nan", 2.0), Row("a", None), Row("a", 3.0)), {"x": {"y": "inf"}, "z": []})
    )  # fmt: skip
    odd = numbers.pop("odd")
    assert math.isnan(odd)
    arrays = {name: numbers.pop(name).tolist() for name in ("tensor", "many")}
    assert arrays == {"tensor": [1.0, 1.0], "many": [1.0, 2.5]}
    assert numbers == {
        "ok": 0.0, "number": 3.0, "yes": 1.0, "rows/a/value": 1.0, "rows/nan/value": 2.0, "rows/a#3/value": 3.0,
        "nested/x/y": math.inf,
    }  # fmt: skip


def test_a_history_whole_and_by_step(history):
    whole = gf.scalars(history)
    assert whole["loss"].tolist() == history["loss"].tolist()
    assert whole["clip/clipped"].tolist() == history["clip/clipped"].tolist()
    assert whole["flow/rows/0/weights/rms"].shape == (4,)
    for k, step in enumerate(history.steps("loss")):
        one = gf.scalars(history, step=int(step))
        assert one["loss"] == whole["loss"][k]
        assert one["flow/trend/factor"] == whole["flow/trend/factor"][k]
    assert "epoch_loss" not in gf.scalars(history, step=0)
    assert gf.scalars(history, step=1)["epoch_loss"] == history["epoch_loss"][0]


def read_back(folder):
    """`{(tag, step): value}` and `{(tag, step): histogram}` of the event files of a folder."""
    scalars, histograms = {}, {}
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                kind = scalars if value.HasField("simple_value") else histograms
                kind[value.tag, event.step] = value.simple_value if kind is scalars else value.histo
    return scalars, histograms


def test_tensorboard_takes_it_and_gives_it_back(history, tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in map(int, history.steps("loss")):
            for name, value in gf.scalars(history, step=step).items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, step)
                else:
                    writer.add_histogram(name, value, step)
    scalars, histograms = read_back(tmp_path)
    for step in map(int, history.steps("loss")):
        for name, value in gf.scalars(history, step=step).items():
            if isinstance(value, float):
                assert scalars[name, step] == np.float32(value)
            else:
                assert histograms[name, step].num == value.size
                assert histograms[name, step].sum == pytest.approx(value.sum())
    assert len(scalars) > 20


BAD = {
    "no report": (lambda h, f: gf.scalars({"a": 1}), TypeError, r"gf\.scalars\(source\): got a dict"),
    "a step of a report": (lambda h, f: gf.scalars(f, step=1), TypeError, "got step=1 with a FlowReport"),
    "a step that is none": (lambda h, f: gf.scalars(h, step=1.0), TypeError, "expected an int"),
    "a step not made": (lambda h, f: gf.scalars(h, step=99), ValueError, "at which something was seen"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, history, flow):
    call, error, says = BAD[name]
    with pytest.raises(error, match=says):
        call(history, flow)
