"""Bad calls of the audit, and a piece of what each is told."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradfunc as gf

X, Y = torch.ones(4, 3) * torch.arange(4.0)[:, None], torch.tensor([0, 1, 0, 1])


def model() -> nn.Module:
    return nn.Linear(3, 2)


def audit(criterion=None, batch=(X, Y), *, module=None, **options):
    return gf.audit.reductions(module or model(), criterion or nn.CrossEntropyLoss(), batch, **options)


def scalar(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


class Stubborn(nn.Module):
    """A `reduction` that is never read."""

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.head(h).mean(0)


class Flat(nn.Module):
    """Token logits joined into `[n T, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.head(h).flatten(0, 1)


def flat_criterion(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(output, target.flatten(), reduction=reduction)


# id: (call, type of the error, what the message says)
CRITERIA = {
    "a string": (lambda: audit("mse"), TypeError, r"got a str as criterion; expected .*nn\.CrossEntropyLoss\(\)"),
    "a number": (lambda: audit(3), TypeError, r"got an int as criterion"),
    "a class": (
        lambda: audit(nn.CrossEntropyLoss),
        TypeError,
        r"got the class CrossEntropyLoss; expected a criterion.*Make one: CrossEntropyLoss\(",
    ),
    "a scalar": (lambda: audit(scalar), ValueError, r"a scalar from a criterion whose reduction cannot be varied"),
    "a scalar, and the way out": (lambda: audit(scalar), ValueError, r"gf\.whole\(fn\)"),
    "a reduction that is never read": (lambda: audit(Stubborn()), ValueError, r"losses of shape \(\) under reduction"),
    "a loss a token": (
        lambda: audit(flat_criterion, (torch.randn(4, 5, 3), torch.zeros(4, 5, dtype=torch.long)), module=Flat()),
        ValueError,
        r"losses of shape \(20,\) under reduction='none' for 4 samples; expected the samples in dimension 0",
    ),
    "one loss for all rows": (
        lambda: audit(nn.CrossEntropyLoss(), module=Unbatched()),
        (ValueError, RuntimeError),
        r"(?i)sample|batch|target",
    ),
    "rows of another number": (
        lambda: audit(lambda out, target: F.cross_entropy(out, target, reduction="none")[:2]),
        ValueError,
        r"2 losses for 4 samples; expected one loss a sample",
    ),
    "rows of two dimensions": (
        lambda: audit(lambda out, target: out.square()),
        (TypeError, ValueError),
        r"criterion\(output, target\)",
    ),
    "a number returned": (lambda: audit(lambda out, target: 3.0), (TypeError, ValueError), r"criterion"),
    "None returned": (lambda: audit(lambda out, target: None), (TypeError, ValueError), r"criterion"),
    "integer losses": (
        lambda: audit(lambda out, target: (out.argmax(1) != target).long()),
        (TypeError, ValueError),
        r"criterion",
    ),
    "whole of nothing callable": (lambda: audit(gf.whole(3)), TypeError, r"expected a function fn\(model, batch\)"),
    "whole returning rows of another number": (
        lambda: audit(gf.whole(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")[:3])),
        ValueError,
        r"3 losses for 4 samples",
    ),
    "whole returning None": (lambda: audit(gf.whole(lambda m, b: None)), (TypeError, ValueError), r"gf\.whole\(fn\)"),
    "a partial of a class": (
        lambda: audit(functools.partial(nn.CrossEntropyLoss)),
        (TypeError, ValueError),
        r"criterion",
    ),
}

BATCHES = {
    "a tensor": (
        lambda: audit(batch=X),
        TypeError,
        r"got a Tensor as batch; expected \(\*inputs, target\) or a mapping",
    ),
    "a string": (lambda: audit(batch="train"), TypeError, r"got a str as batch"),
    "None": (lambda: audit(batch=None), TypeError, r"got None as batch|got a NoneType as batch"),
    "one entry": (lambda: audit(batch=(X,)), TypeError, r"as batch; expected \(\*inputs, target\)"),
    "a loader": (lambda: audit(batch=iter([(X, Y)])), TypeError, r"as batch; expected \(\*inputs, target\)"),
    "a mapping without a target": (
        lambda: audit(batch={"input": X, "labels": Y}),
        TypeError,
        r"a mapping with keys \['input', 'labels'\]; expected a 'target'.*gf\.whole",
    ),
    "a mapping of a target alone": (lambda: audit(batch={"target": Y}), ValueError, r"inputs with no samples"),
    "a target of another size": (
        lambda: audit(batch=(X, Y[:3])),
        ValueError,
        r"4 samples in the inputs and \[3\] in the target; expected the same number",
    ),
    "inputs of other sizes": (
        lambda: audit(batch=(X, X[:2], Y)),
        ValueError,
        r"inputs with \[4, 2\] samples; expected the same number of samples in every input",
    ),
    "no samples": (lambda: audit(batch=(X[:0], Y[:0])), ValueError, r"a batch of 0 samples; expected at least one"),
    "numpy": (lambda: audit(batch=(np.ones((4, 3)), Y)), TypeError, r"(?i)numpy|ndarray"),
    "a numpy target": (lambda: audit(batch=(X, Y.numpy())), TypeError, r"(?i)numpy|ndarray"),
    "a list of rows": (lambda: audit(batch=([1.0, 2.0, 3.0], Y)), (TypeError, ValueError), r"gf\.audit\.reductions"),
    "whole without tensors": (
        lambda: audit(gf.whole(lambda m, b: m(X).sum(1)), "nothing"),
        (TypeError, ValueError),
        r"gf\.audit\.reductions",
    ),
}

MODELS = {
    "a function": (
        lambda: gf.audit.reductions(lambda x: x, nn.MSELoss(), (X, Y)),
        TypeError,
        r"got a function; expected an nn\.Module",
    ),
    "a class": (lambda: gf.audit.reductions(nn.Linear, nn.MSELoss(), (X, Y)), TypeError, r"expected an nn\.Module"),
    "no parameter": (lambda: audit(module=nn.Flatten()), ValueError, r"no trainable parameter; expected at least one"),
    "all frozen": (lambda: audit(module=model().requires_grad_(False)), ValueError, r"no trainable parameter"),
    "lazy": (lambda: audit(module=nn.LazyLinear(2)), ValueError, r"uninitialised 'weight', 'bias'.*once on a batch"),
}

OPTIONS = {
    "unknown dtype": (lambda: audit(dtype="float8"), ValueError, r"dtype='float8'.*'float64', 'float32', 'bfloat16'"),
    "an integer dtype": (lambda: audit(dtype=torch.int64), ValueError, r"dtype='int64'"),
    "a complex dtype": (lambda: audit(dtype="complex64"), ValueError, r"dtype='complex64'"),
    "a number for a dtype": (lambda: audit(dtype=32), (TypeError, ValueError), r"dtype=32"),
    "unknown device": (lambda: audit(device="tpu7"), ValueError, r"device='tpu7'.*expected a device of this machine"),
    "no samples asked for": (lambda: audit(batch_size=0), ValueError, r"batch_size|0 samples"),
    "negative batch size": (lambda: audit(batch_size=-2), ValueError, r"batch_size|samples"),
    "a fractional batch size": (lambda: audit(batch_size=2.5), (TypeError, ValueError), r"batch_size"),
    "a seed in words": (lambda: audit(seed="now"), (TypeError, ValueError), r"seed"),
    "yours not callable": (lambda: audit(yours=3), TypeError, r"yours"),
}

TABLE = {
    f"{kind}: {name}": case
    for kind, table in {"criterion": CRITERIA, "batch": BATCHES, "model": MODELS, "option": OPTIONS}.items()
    for name, case in table.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_message(name):
    call, kind, says = TABLE[name]
    with pytest.raises(kind, match=says):
        call()


def test_a_message_is_one_line_and_names_the_call():
    with pytest.raises(TypeError) as caught:
        audit("mse")
    text = str(caught.value)
    assert text.startswith("gf.audit.reductions(model, criterion, batch): got")
    assert "\n" not in text


def test_inference_mode():
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"inference mode, .*; expected tensors that autograd can record"),
    ):
        audit()


YOURS = {
    "a tensor": (lambda m, c, b: torch.ones(3), r"got a Tensor; expected \{name: gradient\}"),
    "a list": (lambda m, c, b: [p.detach() for p in m.parameters()], r"got a list; expected \{name: gradient\}"),
    "keys that are missing": (lambda m, c, b: {"weight": m.weight.detach()}, r"keys \['weight'\]; expected \{name"),
    "keys of another": (lambda m, c, b: {"w": m.weight.detach(), "b": m.bias.detach()}, r"keys \['b', 'w'\]"),
    "shapes of another": (
        lambda m, c, b: {"weight": m.weight.detach().T, "bias": m.bias.detach()},
        r"shape|weight",
    ),
    "values of another kind": (lambda m, c, b: {"weight": 1.0, "bias": 2.0}, r"gradient|tensor"),
}


@pytest.mark.parametrize("name", YOURS)
def test_yours_returning_the_wrong_thing(name):
    """The loop is the user's own: it fails alone, the rest of the report stands and says why."""
    loop, says = YOURS[name]
    report = audit(yours=loop)
    row = next(row for row in report.estimators if row.name == "yours")
    assert row.norm is None
    assert row.why_not is not None
    assert re.search(says, row.why_not), row.why_not
    assert report.pair("mean", "yours").verdict == "not run"
    assert report.pair("none", "mean").verdict in ("exact", "rounding")


@pytest.mark.parametrize(
    "error", [RuntimeError, ValueError, KeyError, AttributeError, AssertionError, ZeroDivisionError]
)
def test_yours_raising(error):
    def loop(module, criterion, batch):
        raise error("the loop's own fault")

    report = audit(yours=loop)
    row = next(row for row in report.estimators if row.name == "yours")
    assert row.norm is None
    assert f"{error.__name__}: " in row.why_not
    assert "the loop's own fault" in row.why_not


def test_yours_of_a_pure_model():
    pure = gf.models.mlp([3, 2])
    report = audit(module=pure, yours=lambda m, c, b: None)
    row = next(row for row in report.estimators if row.name == "yours")
    assert (row.norm is None) == (gf.stateless(pure).module is None)


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyError, ZeroDivisionError])
def test_a_forward_that_fails_is_the_users_error(error):
    """It reaches the user as it is: the model can't be audited, and the audit knows no better."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, h: Tensor) -> Tensor:
            raise error("inside the model")

    with pytest.raises(error, match="inside the model"):
        audit(module=Broken())


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyError, ZeroDivisionError, AttributeError])
def test_a_forward_that_fails_on_one_sample_alone(error):
    """Only the re-fed estimator is lost."""

    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, h: Tensor) -> Tensor:
            if len(h) < 4:
                raise error("too few")
            return self.head(h)

    report = audit(module=Fussy())
    row = next(row for row in report.estimators if row.name == "re-fed")
    assert row.norm is None
    assert "too few" in row.why_not
    assert report.pair("none", "mean").verdict in ("exact", "rounding")
    assert report.ok


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyError, AttributeError])
def test_a_forward_that_fails_in_float64(error):
    """Verdicts without the second precision: by the bound, or "cannot tell". Nothing is claimed."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, h: Tensor) -> Tensor:
            if h.dtype == torch.float64:
                raise error("no kernel")
            return self.head(torch.tanh(self.inner(h)))

    report = audit(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), module=Single())
    assert report.other_dtype is None
    assert any("could not be repeated in float64" in note for note in report.notes)
    assert {pair.verdict for pair in report.pairs} <= {"exact", "rounding", "cannot tell"}
    assert report.pair("none", "mean").verdict == "cannot tell"
    assert report.causes == ()


def test_a_loss_that_is_nan():
    """NaN in one sample: no verdict of rounding, no cause."""
    batch = (X.clone(), Y)
    batch[0][2, 1] = float("nan")
    report = audit(batch=batch)
    assert report.causes == ()
    assert report.pair("none", "mean").verdict not in ("exact", "rounding")
