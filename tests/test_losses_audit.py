"""Every loss of `gf.losses` is a criterion as it stands, or as a partial: the audit explains all it finds."""

from __future__ import annotations

import functools

import pytest
import torch
from test_losses import COMBINATIONS, LOSSES, combination
from torch import nn

import gradfunc as gf


class Scaled(nn.Module):
    """The raw output times one factor a column, then what the loss takes."""

    def __init__(self, case):
        super().__init__()
        self.last = nn.Linear(case.raw.shape[-1], case.raw.shape[-1])
        self.case = case

    def forward(self, raw):
        out = self.last(raw)
        if not self.case.options.get("log_input", True):
            out = out.exp()
        return self.case.loss.output(out)


def audited(name, i, size=5):
    torch.manual_seed(0)
    case = combination(name, i, size=size, seed=1)
    options = {k: v for k, v in case.options.items() if k != "probabilities"}
    criterion = getattr(gf.losses, name.split()[0])
    criterion = functools.partial(criterion, **options) if options else criterion
    target = tuple(case.targets) if len(case.targets) > 1 else case.targets[0]
    return case, gf.audit.reductions(Scaled(case).double(), criterion, (case.raw, target), dtype="float64")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_the_audit_takes_every_loss(name):
    for i in {0, len(COMBINATIONS[name]) - 1}:
        case, report = audited(name, i)
        out = case.ours(case.raw, *case.targets, batched=True)
        same = bool((out.weight == 1).all())
        assert report.ok, f"{name}\n{report}"  # weights that a loss declares are no fault
        assert ("differ only by the weights" in str(report)) == (not same)
        for pair in report.pairs:
            if "forum loop" in (pair.a, pair.b):
                continue
            assert pair.verdict in (("exact", "rounding") if same else ("exact", "rounding", "wrong")), str(report)
            if pair.verdict == "wrong":
                assert [cause.mechanisms for cause in pair.causes] == [("sample_weights",)], str(report)
        assert report.pair("none", "sum / n").verdict in ("exact", "rounding")
