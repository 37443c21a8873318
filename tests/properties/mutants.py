"""Planted mistakes, the law that each must break, and the cases on which it is looked for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import laws
import purity
import pytest
import torch
from claims import Law
from test_mutants import add_means, aliased, live_buffers, weight_lost, weight_twice

import gradfunc as gf
from gradfunc import _engines, _factors, _stateless, _weights
from gradfunc._engines import _call, _factored, _loop, _source, _vmap
from gradfunc._per_sample import _function, _join, _value
from gradfunc._stateless import _replica
from gradfunc.testing.strategies import Case, _models
from gradfunc.testing.strategies._kinds import Tied

LABELS = {"target": "indices", "weight": "per class", "ignore_index": -100, "label_smoothing": 0.25, "dim": -1}
ELEMENTS = {"per": "element"}
# Few, since every law is asked of each under every mistake. Together they have weights that differ, draws, ties, ragged
# samples, unused and frozen parameters, and every engine; chunks come from the laws.
CASES = [
    Case(loss="cross_entropy", options=LABELS, size=4, sample_weights="some 0", dropout=0.5, frozen=True, seed=1),
    Case(
        model="tied", loss="cross_entropy", options=LABELS, size=3, engine="loop", unused=True, wrt="half", ragged=True
    ),
    Case(
        model="tied", loss="cross_entropy", options=LABELS, size=3, engine="factored", sample_weights="positive", seed=1
    ),
    Case(options=ELEMENTS, size=4, engine="factored", dropout=0.5, frozen=True, seed=3),
    Case(model="gru", options=ELEMENTS, size=3, engine="batched loop", unused=True, sample_weights="positive", seed=5),
]

weighted_sum, sample_ids, replica, zero_filled = (
    _factors.weighted_sum,
    _function.sample_ids,
    _replica.replica,
    _source.zero_filled,
)


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        law: that must break; more may.
        where, attribute, mistake: what is put in whose place.
    """

    law: Law
    where: object
    attribute: str
    mistake: object

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until the end of a test."""
        monkeypatch.setattr(self.where, self.attribute, self.mistake)


def one_buffer(each, leaves):
    """Every sample's gradient is written where the one before it was."""
    kept = [zero_filled(each[-1], leaves)] * len(each)
    return {name: torch.stack([grads[name] for grads in kept]) for name in leaves}


def scaled_after_the_sum(rows, c, **_):
    sums = weighted_sum(rows, None)
    return sums if c is None else {name: value * c.to(value.dtype).mean() for name, value in sums.items()}


def first_chunks_draws(self, transform, at, params, vmapped=_vmap.VmapSource._vmapped):
    draws = self.call.draws
    ids = draws.ids.clone()
    ids[at] = ids[: len(ids[at])].clone()
    call = dataclasses.replace(self.call, draws=dataclasses.replace(draws, ids=ids))
    return vmapped(dataclasses.replace(self, call=call), transform, at, params)


def first_chunks_draws_traced(self, at, traced=_vmap.VmapSource.traced):
    draws = self.call.draws
    ids = draws.ids.clone()
    ids[at] = ids[: len(ids[at])].clone()
    call = dataclasses.replace(self.call, draws=dataclasses.replace(draws, ids=ids))
    return traced(dataclasses.replace(self, call=call), at)


def changed_factors(change):
    """Rows as factors, each parameter's changed."""

    def factored(*args, made=_factored.factored, **options):
        block = made(*args, **options)
        rows = {name: change(name, value) for name, value in _factors.dense(block.grads).items()}
        return block._replace(grads=_factors.from_rows(rows))

    return _factored, "factored", factored


def first_row_lost(rows, c, **_):
    if c is not None:
        return weighted_sum(rows, c)
    return {name: value[1:].sum(0) for name, value in _factors.dense(rows).items()}


def detached_head(module, made):
    copy = replica(module, made)
    if isinstance(module, Tied) and copy.head.weight is copy.embedding.weight:
        held = copy.head.__dict__["_parameters"]
        held["weight"] = held["weight"].detach()
    return copy


def frozen_too(module, stateless=gf.stateless, **options):
    model = stateless(module, **options)
    return dataclasses.replace(model, params={**model.frozen, **model.params}, frozen={})


def other_seed(randomness, seed, *rest, calls=itertools.count(1)):  # noqa: B008  # counts across calls, as a mistake does
    return _engines.Draws(randomness, seed + next(calls), *rest)


def almost_zero(grads, leaves):
    return {k: torch.full_like(leaf, 1e-30) if grads[k] is None else grads[k] for k, leaf in leaves.items()}


def batch_size(weights):
    return torch.tensor(float(len(weights)), dtype=torch.float64)


def generator_moved(self, materialize=gf.PerSampleGrads.materialize):
    torch.rand(())
    return materialize(self)


def by(fn: Callable[..., object], change: Callable[..., tuple[object, ...]]) -> Callable[..., object]:
    """`fn` of changed arguments."""
    return lambda *args: fn(*change(*args))


flattened = _join._flattened
MUTANTS = {
    "no clone of an answer": Mutant(purity.answers_share_nothing, gf.PerSampleGrads, "materialize", aliased),
    "no clone of a sample's gradient": Mutant(laws.rows_are_plain_autograd, _loop, "stacked_grads", one_buffer),
    "mean of means": Mutant(laws.any_split_gives_the_same_mean, _weights.Accumulator, "add", add_means),
    "lost weight": Mutant(laws.mean_times_weight_is_sum, _call, "as_weighted", weight_lost),
    "weight applied twice": Mutant(laws.a_sum_of_losses_gives_the_sum_of_gradients, _call, "as_weighted", weight_twice),
    "rows scaled after the sum": Mutant(
        laws.scaling_the_loss_scales_the_gradient, _factors, "weighted_sum", scaled_after_the_sum
    ),
    "mask reused across chunks": Mutant(
        laws.any_split_gives_the_same_mean, _vmap.VmapSource, "_vmapped", first_chunks_draws
    ),
    "mask of factors reused across chunks": Mutant(
        laws.any_split_gives_the_same_mean, _vmap.VmapSource, "traced", first_chunks_draws_traced
    ),
    "factors permuted": Mutant(
        laws.permuting_the_batch_permutes_the_rows, *changed_factors(lambda name, rows: rows.roll(1, 0))
    ),
    "a sample lost among factors": Mutant(
        laws.joining_parts_gives_the_whole,
        *changed_factors(lambda name, rows: torch.cat([rows[:-1], torch.zeros_like(rows[-1:])])),
    ),
    "factors of the mean": Mutant(
        laws.rows_are_plain_autograd, *changed_factors(lambda name, rows: rows.mean(0).expand_as(rows).clone())
    ),
    "half of a parameter's factors": Mutant(
        laws.rows_are_plain_autograd,
        *changed_factors(lambda name, rows: rows / 2 if name.endswith("weight") else rows),
    ),
    "sum / B for mean": Mutant(laws.mean_times_weight_is_sum, _value, "total", batch_size),
    "first row lost": Mutant(laws.sum_of_none_is_sum, _factors, "weighted_sum", first_row_lost),
    "draws by position": Mutant(
        laws.permuting_the_batch_permutes_the_rows,
        _function,
        "sample_ids",
        lambda call, index, size: sample_ids(call, None, size),
    ),
    "parts joined backwards": Mutant(
        laws.joining_parts_gives_the_whole,
        _join,
        "_flattened",
        lambda values: (lambda parts, positions: (parts, [p.flip(0) for p in positions]))(*flattened(values)),
    ),
    "selection sorted": Mutant(
        laws.reducing_a_selection_reduces_its_rows,
        _value,
        "SelectedSource",
        by(_engines.SelectedSource, lambda source, index: (source, index.sort().values)),
    ),
    "unused not listed": Mutant(
        laws.unused_parameters_are_zero_and_listed, gf.PerSampleGrads, "unused", property(lambda self: ())
    ),
    "almost zero": Mutant(laws.unused_parameters_are_zero_and_listed, _source, "zero_filled", almost_zero),
    "wrt ignored": Mutant(
        laws.frozen_parameters_are_absent, _function, "_selected", lambda call, params, wrt: list(params)
    ),
    "frozen ones too": Mutant(laws.frozen_parameters_are_absent, _models, "stateless", frozen_too),
    "one use of a tied weight lost": Mutant(laws.tied_is_the_sum_of_untied, _replica, "replica", detached_head),
    "buffers not copied": Mutant(purity.nothing_is_touched, _stateless.Stateless, "_filled", live_buffers),
    "a generator moved": Mutant(purity.nothing_is_touched, gf.PerSampleGrads, "materialize", generator_moved),
    "another seed each call": Mutant(purity.twice_is_once, _function, "Draws", other_seed),
}
