"""Planted mistakes, each with the property that must notice it.

A property that no mistake can break says nothing. Every row plants one in a copy of gradfunc that lives for one
test, and the property, green without it, must go red.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys

import pytest
import torch
from test_per_sample import (
    check_calling_twice_is_calling_once,
    check_case,
    check_coupled_batch,
    check_norms_are_safe,
    check_shares_nothing,
    check_stale_queries_are_refused,
    check_zero_coefficient_leaves_out,
)
from test_random import check_global_state_is_unchanged
from test_reduce import check_split
from test_stateless import check_running_statistics_stay
from test_weights import check_half_types_accumulate_in_float32

import gradfunc as gf
from gradfunc import _engines, _factors, _stateless, _tree, _weights
from gradfunc._engines import _call, _factored, _vmap
from gradfunc._per_sample import _value

as_weighted, weighted_sum, total = _weights.as_weighted, _factors.weighted_sum, _weights.total


def add_means(self, g):
    mean = g.mean(on_zero_weight="zero")
    totals = {name: value + mean[name] for name, value in self.totals.items()}
    return dataclasses.replace(self, totals=totals, weight=self.weight + 1)


def weight_lost(call, out, *, batched):
    read = as_weighted(call, out, batched=batched)
    return gf.Weighted(read.numerator, torch.ones_like(read.weight))


def weight_twice(call, out, *, batched):
    read = as_weighted(call, out, batched=batched)
    return gf.Weighted(read.numerator * read.weight, read.weight)


def multiplied(rows, c, **_):
    if c is None:
        return weighted_sum(rows, c)
    return {name: torch.tensordot(c.to(value.dtype), value, 1) for name, value in _factors.dense(rows).items()}


def absolute(rows, c, **_):
    return weighted_sum(rows, None if c is None else c.abs())


def naive_norms(rows):
    values = _factors.dense(rows).values()
    return torch.stack([v.reshape(len(v), -1).square().sum(1) for v in values]).sum(0).sqrt()


def norm_of_norms_lost(rows):
    return torch.stack([v.reshape(len(v), -1).norm(dim=1) for v in _factors.dense(rows).values()]).amax(0)


def aliased(self):
    source = self._source
    return _factors.dense(source.kept.grads) if isinstance(source, _engines.KeptSource) else materialize(self)


materialize = gf.PerSampleGrads.materialize


def short_chunk_dropped(size, chunk):
    return [slice(start, start + chunk) for start in range(0, size - chunk + 1, chunk)] or [slice(0, size)]


def rows_run_alone(call, *, run=_engines.CotangentSource.run, **options):
    """Each row beside a copy of itself, which is another function where rows are coupled."""
    source = run(call, **options)
    tensors = call.batch.tensors
    each = [call.value(source.leaves, [t[[i, i]] for t in tensors], batched=True) for i in range(len(tensors[0]))]
    numerator, weight = (torch.stack([getattr(e, k)[0] for e in each]) for k in ("numerator", "weight"))
    return dataclasses.replace(source, value=source.value._replace(numerator=numerator, weight=weight))


def with_rows(change):
    """Rows as factors, changed."""

    def factored(*args, made=_factored.factored, **options):
        block = made(*args, **options)
        return block._replace(grads=_factors.from_rows(change(_factors.dense(block.grads))))

    return _factored, "factored", factored


def lost(rows):
    return torch.cat([rows[:-1], torch.zeros_like(rows[-1:])])


def averaged(rows):
    return rows.mean(0).expand_as(rows).clone()


def one_halved(grads):
    first = next(iter(grads))
    return {**grads, first: grads[first] / 2}


def factors_of_linear():
    check_case("linear", "factored", None)


def streamed_factors():
    check_case("linear", "factored", 2)


def split_of_factors():
    check_split("tokens", [3, 2], chunk_size=2, engine="factored")


def not_forked(*_, **__):
    return contextlib.nullcontext()


def live_buffers(self, params):
    return {**self.frozen, **params, **self.buffers}


def split():
    # two micro-batches of unequal weight, ignored tokens and class weights
    check_split("tokens", [3, 2], chunk_size=2)


# mutant -> (where, attribute, the mistake, the property)
MUTANTS = {
    "mean of means": (_weights.Accumulator, "add", add_means, split),
    "weight lost": (_call, "as_weighted", weight_lost, split),
    "weight applied twice": (_call, "as_weighted", weight_twice, split),
    "sum / B for the mean": (
        _value,
        "total",
        lambda weights: torch.tensor(float(len(weights)), dtype=torch.float64),
        split,
    ),
    "chunks averaged": (
        _factors,
        "weighted_sum",
        lambda rows, c, **_: {k: v / 2 for k, v in weighted_sum(rows, c).items()},
        split,
    ),
    "short last chunk dropped": (_vmap, "spans", short_chunk_dropped, split),
    "short last chunk of factors dropped": (_factored, "spans", short_chunk_dropped, split_of_factors),
    "factors permuted": (*with_rows(lambda g: {k: v.roll(1, 0) for k, v in g.items()}), factors_of_linear),
    "factors permuted within a chunk": (*with_rows(lambda g: {k: v.flip(0) for k, v in g.items()}), streamed_factors),
    "a sample lost among factors": (*with_rows(lambda g: {k: lost(v) for k, v in g.items()}), factors_of_linear),
    "factors of the mean": (*with_rows(lambda g: {k: averaged(v) for k, v in g.items()}), factors_of_linear),
    "half of a parameter's factors": (*with_rows(one_halved), factors_of_linear),
    "factors: sign of a coefficient lost": (_factors, "weighted_sum", absolute, streamed_factors),
    "factors: largest instead of total norm": (_factors, "norms", norm_of_norms_lost, factors_of_linear),
    "factors: norms without scaling": (_factors, "norms", naive_norms, lambda: check_norms_are_safe("factored")),
    "factors: draws not seeded": (
        _call,
        "forked",
        not_forked,
        lambda: check_calling_twice_is_calling_once("factored", 2),
    ),
    "factors: draws not forked": (
        _call,
        "forked",
        not_forked,
        lambda: check_global_state_is_unchanged("factored"),
    ),
    "factors: stale values answered for": (
        gf.PerSampleGrads,
        "_check_unchanged",
        lambda self, query: None,
        lambda: check_stale_queries_are_refused("factored", False, "params"),
    ),
    "0 * NaN": (_factors, "weighted_sum", multiplied, check_zero_coefficient_leaves_out),
    "sign of a coefficient lost": (_factors, "weighted_sum", absolute, lambda: check_case("linear", "vmap", 2)),
    "norms without scaling": (_factors, "norms", naive_norms, check_norms_are_safe),
    "largest instead of total norm": (
        _factors,
        "norms",
        norm_of_norms_lost,
        lambda: check_case("linear", "vmap", None),
    ),
    "rows returned without a copy": (
        gf.PerSampleGrads,
        "materialize",
        aliased,
        lambda: check_shares_nothing("loop", None),
    ),
    "coupled rows run alone": (
        _engines.CotangentSource,
        "run",
        rows_run_alone,
        lambda: check_coupled_batch("loop", None),
    ),
    "half types added in half types": (
        _tree._rows,
        "wide",
        lambda dtype: dtype,
        check_half_types_accumulate_in_float32,
    ),
    "draws not forked": (
        _call,
        "forked",
        not_forked,
        lambda: check_global_state_is_unchanged("loop"),
    ),
    "draws not seeded": (
        _call,
        "forked",
        not_forked,
        lambda: check_calling_twice_is_calling_once("vmap", 2),
    ),
    "stale values answered for": (
        gf.PerSampleGrads,
        "_check_unchanged",
        lambda self, query: None,
        lambda: check_stale_queries_are_refused("loop", False, "params"),
    ),
    "buffers not copied": (_stateless.Stateless, "_filled", live_buffers, check_running_statistics_stay),
    "gradient of the wrong sample": (
        _engines.LoopSource,
        "_run",
        lambda self, i, run=_engines.LoopSource._run, **how: run(self, max(i - 1, 0), **how),
        lambda: check_case("mlp", "loop", None),
    ),
}


def plant(name, monkeypatch):
    where, attribute, mistake, _ = MUTANTS[name]
    monkeypatch.setattr(where, attribute, mistake)
    if name == "short last chunk of factors dropped":
        monkeypatch.setattr(_vmap, "spans", mistake)  # whose forward passes they are: else the verification stumbles
    if name == "half types added in half types":
        for module in list(sys.modules.values()):
            if module.__name__.startswith("gradfunc.") and hasattr(module, "wide"):
                monkeypatch.setattr(module, "wide", mistake)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    law = MUTANTS[name][-1]
    torch.manual_seed(0)
    law()
    plant(name, monkeypatch)
    torch.manual_seed(0)
    assert red(law)


def red(law):
    """Whether the law fails. An engine that is verified says so before any test looks at its answer."""
    try:
        law()
    except (AssertionError, pytest.fail.Exception):  # Failed: a pytest.raises that did not see an error
        return True
    except (RuntimeError, ValueError) as error:  # of the verification, or of a query that it makes
        texts = ("fail verification", "returns something else at each run", "g.weighted_sum(c)")
        return any(text in str(error) for text in texts)
    return False
