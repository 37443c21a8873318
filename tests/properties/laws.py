"""The laws of gradients: those of `gradfunc.testing`, and what only the suite can ask, since it made model and loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from oracle import truth, truth_batched
from torch import Tensor

import gradfunc as gf
from gradfunc.testing._claims import Claim, equal, norms, rows, sums
from gradfunc.testing._identities import (
    added,
    agrees,
    any_split_gives_the_same_mean,
    coefficients,
    joining_parts_gives_the_whole,
    mean_times_weight_is_sum,
    permuting_the_batch_permutes_the_rows,
    reducing_a_selection_reduces_its_rows,
    scaling_the_loss_scales_the_gradient,
    sum_of_none_is_sum,
)
from gradfunc.testing._oracle import Truth
from gradfunc.testing.strategies import Problem
from gradfunc.testing.strategies._kinds import Net, Tied

Rows = dict[str, Tensor]


def a_sum_of_losses_gives_the_sum_of_gradients(b: Problem) -> Iterator[Claim]:
    """Gradients are linear in the loss, whatever the loss, and are the numerator's whatever the weight."""

    def other(output: Tensor) -> Tensor:
        return output.square().flatten(1).sum(1) if b.case.batched else output.square().sum()

    def second(params: Rows, *args: Tensor) -> Tensor:
        return other(b.output(params, args[0]))

    def both(params: Rows, *args: Tensor) -> gf.Weighted:
        output = b.output(params, args[0])
        one = b.read(output, *args[1:])
        return gf.Weighted(one.numerator * 2 - other(output) * 0.5, one.weight)

    one, two, sum_ = (b.grads(loss=loss) for loss in (b.plain, second, both))
    first, last = one.materialize(), two.materialize()
    want = {name: 2 * first[name].double() - 0.5 * last[name].double() for name in first}
    scale = 2 * norms(first) + 0.5 * norms(last)
    yield from rows("2 a - b / 2", sum_.materialize(), want, scale)
    yield from sums("sum of 2 a - b / 2", sum_.sum(), added(want), scale.sum())
    losses = 2 * one.losses.double() - 0.5 * two.losses.double()
    magnitude = 2 * one.losses.double().abs() + 0.5 * two.losses.double()
    yield Claim("losses of 2 a - b / 2", sum_.losses, losses, magnitude)


def unused_parameters_are_zero_and_listed(b: Problem) -> Iterator[Claim]:
    """Exact zeros in every answer; and nothing else is listed."""
    g = b.grads()
    unused = [name for name in b.names if name == "unused" or not b.samples]
    assert list(g.unused) == unused, f"unused {g.unused}, not {unused}"
    c = coefficients(b, 1)
    answers = {
        "none": g.materialize(),
        "sum": g.sum(),
        "weighted_sum": g.weighted_sum(c),
        "mean": g.mean(on_zero_weight="zero"),
        "norms": g.norms(per_parameter=True),
        "gram": g.gram(per_parameter=True),
        "scaled": g.scaled(c).materialize(),
    }
    for what, answer in answers.items():
        for name in unused:
            yield equal(f"{what} of {name}", answer[name], torch.zeros_like(answer[name]))


def frozen_parameters_are_absent(b: Problem) -> Iterator[Claim]:
    """So are those that `wrt` leaves out; the gradients of the others are what they are among all."""
    g, whole = b.grads(), b.grads(wrt=None)
    frozen = {name for name, p in b.module.named_parameters() if not p.requires_grad}
    assert not frozen & set(whole.names)
    assert set(whole.names) == {name for name, _ in b.module.named_parameters()} - frozen
    assert g.names == b.names
    none, every = g.materialize(), whole.materialize()
    for answer in (none, g.sum(), g.mean(on_zero_weight="zero"), g.norms(per_parameter=True)):
        assert tuple(answer) == b.names
    yield from rows("wrt", none, {name: every[name] for name in b.names}, norms(every))


def tied_is_the_sum_of_untied(b: Problem) -> Iterator[Claim]:
    """A parameter used in two places has the sum of the gradients it would have in each."""
    untied = {f"{place}.{name}": value for place in "ab" for name, value in b.params.items()}

    def twice(params: Rows, *args: Tensor) -> gf.Weighted:
        """The outputs of two models, multiplied: each place's gradient depends on the other."""
        outputs = [b.output({n: params[f"{place}.{n}"] for n in b.params}, args[0]) for place in "ab"]
        return b.read(outputs[0] * (1 + outputs[1].tanh()), *args[1:])

    def tied(params: Rows, *args: Tensor) -> gf.Weighted:
        return twice({f"{place}.{name}": params[name] for place in "ab" for name in params}, *args)

    one = b.grads(loss=tied).materialize()
    two = b.grads(loss=twice, params=untied, wrt=None).materialize()
    want = {name: two[f"a.{name}"].double() + two[f"b.{name}"].double() for name in b.names}
    scale = norms(two)
    yield from rows("tied", one, want, scale)
    if b.case.model != "tied" or b.case.frozen:
        return
    head, embedding = "body.head.weight", "body.embedding.weight"
    apart = Net(Tied(untied=True), b.case.dropout, b.case.unused)
    model = gf.stateless(apart.to(b.like[0].device, next(iter(b.params.values())).dtype))

    def separate(params: Rows, *args: Tensor) -> gf.Weighted:
        output = model(params, args[0]) if b.case.batched else model.sample(params, args[0])
        return b.read(output, *args[1:])

    assert head not in b.params
    params = {name: b.params.get(name, b.params[embedding]) for name in model.params}
    two = b.grads(loss=separate, params=params, wrt=None).materialize()
    want = {name: two[name].double() for name in b.params}
    want[embedding] = two[embedding].double() + two[head].double()
    yield from rows("embedding and head", b.grads(wrt=None).materialize(), want, norms(two))


def rows_are_plain_autograd(b: Problem) -> Iterator[Claim]:
    """The definition: row i is the gradient of sample i's numerator. Of deterministic losses."""
    each = []
    selected = {name: b.params[name] for name in b.names}

    def loss(params: Rows, *args: Tensor) -> gf.Weighted:
        return b.loss({**b.params, **params}, *args)

    for sample in b.samples:
        args = [t[None] for t in sample]
        each.append(truth_batched(loss, selected, args) if b.case.batched else truth(loss, selected, 1, args))
    want = {
        name: torch.cat([t.rows[name] for t in each]) if each else value.new_zeros((0, *value.shape))
        for name, value in selected.items()
    }
    none = next(iter(selected.values())).new_zeros(0)
    losses, weights = (torch.cat([getattr(t, k) for t in each]) if each else none for k in ("losses", "weights"))
    yield from agrees("", b.grads(), Truth(want, losses, weights))


LAWS = [
    sum_of_none_is_sum,
    mean_times_weight_is_sum,
    any_split_gives_the_same_mean,
    permuting_the_batch_permutes_the_rows,
    scaling_the_loss_scales_the_gradient,
    a_sum_of_losses_gives_the_sum_of_gradients,
    joining_parts_gives_the_whole,
    reducing_a_selection_reduces_its_rows,
    unused_parameters_are_zero_and_listed,
    frozen_parameters_are_absent,
    tied_is_the_sum_of_untied,
    rows_are_plain_autograd,
]
