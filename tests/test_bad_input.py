"""Bad calls, and a piece of what each is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradfunc as gf

P = {"w": torch.ones(3)}
X = torch.ones(4, 3)


def loss(p, x, y=None):
    return (p["w"] * x).sum()


def call(fn=loss, params=P, *args, engine="auto", batched=False, **kwargs):
    return gf.per_sample_grads(fn, engine=engine, batched=batched)(params, *(args or (X,)), **kwargs)


def made(**options):
    return gf.per_sample_grads(loss, **options)


def value():
    return made()(P, X)


# id: (call, type of the error, what the message says)
OPTIONS = {
    "unknown engine": (lambda: made(engine="fast"), ValueError, r"engine='fast'.*'auto', 'factored', 'vmap', 'loop'"),
    "engine None": (lambda: made(engine=None), ValueError, r"engine=None"),
    "unknown randomness": (lambda: made(randomness="none"), ValueError, r"'different', 'same', 'error'"),
    "chunk of 0": (lambda: made(chunk_size=0), ValueError, r"chunk_size=0; expected a positive int, None"),
    "negative chunk": (lambda: made(chunk_size=-1), ValueError, r"chunk_size=-1"),
    "chunk of words": (lambda: made(chunk_size="all"), ValueError, r"chunk_size='all'.*'auto'"),
    "fractional chunk": (lambda: made(chunk_size=2.0), ValueError, r"chunk_size=2\.0"),
    "chunk True": (lambda: made(chunk_size=True), ValueError, r"chunk_size=True"),
    "loss is a number": (lambda: gf.per_sample_grads(3), TypeError, r"got an int; expected a function loss"),
    "unknown batch_stats": (
        lambda: gf.stateless(nn.Linear(2, 2), batch_stats="ignore"),
        ValueError,
        r"batch_stats='ignore'.*'error', 'frozen', 'batch'",
    ),
    "unknown reduction": (lambda: gf.reduce(value(), "avg"), ValueError, r"reduction='avg'.*'none', 'sum', 'mean'"),
    "reduction None": (lambda: gf.reduce(value(), None), ValueError, r"reduction=None"),
    "unknown on_zero_weight": (lambda: value().mean(on_zero_weight="nan"), ValueError, r"on_zero_weight='nan'"),
    "wrt names": (lambda: made(wrt=["w", "v"])(P, X), ValueError, r"wrt with \['v'\].*\['w'\]"),
    "wrt pattern": (lambda: made(wrt="v.*")(P, X), ValueError, r"wrt='v\.\*', which matches nothing.*re\.fullmatch"),
    "wrt predicate": (lambda: made(wrt=lambda n, t: False)(P, X), ValueError, r"matches nothing"),
    "wrt empty": (lambda: made(wrt=[])(P, X), ValueError, r"matches nothing"),
    "wrt number": (lambda: made(wrt=5)(P, X), TypeError, r"gf\.per_sample_grads\(loss\).*wrt"),
    "seed": (lambda: made(seed="now")(P, X), TypeError, r"gf\.per_sample_grads\(loss\).*seed"),
}

MODELS = {
    "a string": (
        lambda: gf.stateless("resnet"),
        TypeError,
        r"gf\.stateless\(model\): got a str; expected an nn\.Module",
    ),
    "None": (lambda: gf.stateless(None), TypeError, r"got None; expected an nn\.Module"),
    "a class": (lambda: gf.stateless(nn.Linear), TypeError, r"got a type; expected an nn\.Module"),
    "a function": (lambda: gf.stateless(loss), TypeError, r"got a function; expected"),
    "a lazy module": (lambda: gf.stateless(nn.LazyLinear(2)), ValueError, r"uninitialised 'weight', 'bias'.*once"),
}

PARAMS = {
    "a module": (lambda: call(params=nn.Linear(3, 1)), TypeError, r"got a Linear as params.*model\.params"),
    "a list": (lambda: call(params=[torch.ones(3)]), TypeError, r"got a list as params; expected a dict"),
    "values not tensors": (lambda: call(params={"w": 1.0}), TypeError, r"as params; expected a dict \{name: tensor\}"),
    "empty": (lambda: call(params={}), ValueError, r"no differentiable parameter"),
    "integers": (lambda: call(params={"w": torch.ones(3, dtype=torch.long)}), ValueError, r"no differentiable param"),
    "all frozen": (
        lambda: call(params=gf.stateless(nn.Linear(3, 1).requires_grad_(False)).params),
        ValueError,
        r"no differentiable parameter",
    ),
}

BATCHES = {
    "sizes": (
        lambda: call(loss, P, X, torch.ones(5)),
        ValueError,
        r"disagree in the number of samples: args\[0\] \(4, 3\), args\[1\] \(5,\)",
    ),
    "sizes, nested": (
        lambda: call(loss, P, {"a": X}, y=[torch.ones(5)]),
        ValueError,
        r"args\[0\]\['a'\] \(4, 3\), kwargs\['y'\]\[0\] \(5,\)",
    ),
    "a scalar tensor": (
        lambda: call(loss, P, X, torch.tensor(1.0)),
        ValueError,
        r"args\[1\] without a dimension.*gf\.static",
    ),
    "numpy": (lambda: call(loss, P, X, np.ones(4)), TypeError, r"a numpy array in the batch.*torch\.as_tensor"),
    "numpy, batched": (lambda: call(loss, P, X, np.ones(4), batched=True), TypeError, r"numpy array"),
    "no tensor": (lambda: call(loss, P, 3, "x"), ValueError, r"a batch without a tensor"),
    "nothing": (lambda: made()(P), ValueError, r"a batch without a tensor"),
}


LOSSES = {
    "a vector": (
        lambda e: call(lambda p, x: p["w"] * x, engine=e),
        ValueError,
        r"shape \(3,\); expected a scalar.*\.sum",
    ),
    "one entry": (lambda e: call(lambda p, x: p["w"][:1], engine=e), ValueError, r"a loss of shape \(1,\)"),
    "None": (lambda e: call(lambda p, x: None, engine=e), TypeError, r"got None from the loss; expected a tensor"),
    "a float": (lambda e: call(lambda p, x: 1.0, engine=e), TypeError, r"got a float from the loss"),
    "a tuple": (lambda e: call(lambda p, x: (loss(p, x), 1), engine=e), TypeError, r"got a tuple from the loss"),
    "integers": (lambda e: call(lambda p, x: x.long().sum(), engine=e), TypeError, r"a loss of dtype torch\.int64"),
    "complex": (lambda e: call(lambda p, x: loss(p, x) * 1j, engine=e), TypeError, r"a loss of dtype torch\.complex64"),
    "batched scalar": (
        lambda e: call(lambda p, x: loss(p, x), engine=e, batched=True),
        ValueError,
        r"shape \(\); expected one loss a sample.*drop batched=True",
    ),
    "batched matrix": (
        lambda e: call(lambda p, x: p["w"] * x, engine=e, batched=True),
        ValueError,
        r"shape \(4, 3\); expected one loss a sample, shape \[B\]",
    ),
    "weight of another shape": (
        lambda e: call(lambda p, x: gf.Weighted(loss(p, x), torch.ones(2)), engine=e),
        ValueError,
        r"numerator of shape \(\) and a weight of shape \(2,\)",
    ),
    "numerator not a tensor": (
        lambda e: call(lambda p, x: gf.Weighted(1.0, 1.0), engine=e),
        TypeError,
        r"got a float from the loss",
    ),
}

QUERIES = {
    "c too long": (lambda: value().weighted_sum(torch.ones(5)), ValueError, r"c of shape \(5,\); expected \[4\]"),
    "c a column": (lambda: value().weighted_sum(torch.ones(4, 1)), ValueError, r"c of shape \(4, 1\)"),
    "c a list": (lambda: value().weighted_sum([1, 2, 3, 4]), TypeError, r"g\.weighted_sum\(c\): got a list"),
    "direction lacks": (lambda: value().dot({}), ValueError, r"got nothing for 'w'; expected shape \(3,\)"),
    "direction shape": (lambda: value().dot({"w": torch.ones(4)}), ValueError, r"shape \(4,\) for 'w'"),
    "other names": (
        lambda: value().gram(made()({"w": torch.ones(3), "v": torch.ones(1)}, X)),
        ValueError,
        r"g\.gram\(other\): got gradients of parameters \{'w': \(3,\), 'v': \(1,\)\}; expected of \{'w': \(3,\)\}",
    ),
}

GROUPS = {"option": OPTIONS, "model": MODELS, "params": PARAMS, "batch": BATCHES, "query": QUERIES}
TABLE = {f"{kind}: {name}": row for kind, rows in GROUPS.items() for name, row in rows.items()}


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_call_is_told_what_is_wrong(name):
    call, error, match = TABLE[name]
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("engine", ["auto", "factored", "vmap", "loop"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_bad_loss_is_told_what_is_wrong(name, engine):
    call, error, match = LOSSES[name]
    with pytest.raises(error, match=match):
        call(engine)


@pytest.mark.parametrize("engine", ["auto", "factored", "vmap", "loop"])
@pytest.mark.parametrize("batched", [False, True])
def test_inference_mode_is_refused(engine, batched):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"got inference mode; expected tensors"):
        call(engine=engine, batched=batched)
    with torch.inference_mode():
        made_there = torch.ones(4, 3)
    with pytest.raises(RuntimeError, match=r"a tensor made under inference mode.*clone"):
        call(loss, P, made_there, engine=engine, batched=batched)
