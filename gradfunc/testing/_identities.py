"""The identities of per-sample gradients: one function a law, which takes a subject and yields what must be equal.

Of a loss that runs the batch as one, samples may be coupled: no part of the batch is run alone, parts are taken from
the value.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .._per_sample import PerSampleGrads, concatenate
from .._reduce import reduce
from .._tree import Tensors
from .._weights import Accumulator
from ._claims import F64, Claim, equal, norms, rows, sums, weights_of
from ._oracle import Truth
from ._subject import Subject, times


def sum_of_none_is_sum(b: Subject) -> Iterator[Claim]:
    """The rows of "none" add up to "sum"; weighted, to the weighted sum."""
    g = b.grads()
    none, total = reduce(g, "none"), reduce(g, "sum")
    if set(total) != set(b.names):
        raise AssertionError(f"a sum of {sorted(total)}, not of {sorted(b.names)}")
    yield from sums("the rows added up, and g.sum(),", total, added(none), norms(none).sum(), of_rows(b))
    yield from sums("g.sum(), and gf.reduce(g, 'sum'),", g.sum(), total, norms(none).sum(), terms(b))
    c = coefficients(b, 1)
    scale = (c.abs() * norms(none)).sum()
    yield from sums("weighted_sum, and the rows weighted,", g.weighted_sum(c), added(none, c), scale, of_rows(b))


def mean_times_weight_is_sum(b: Subject) -> Iterator[Claim]:
    """The mean times the total of the weights that the loss itself states is the sum."""
    g, weights = b.grads(), b.weights()
    # a weight is cast to the type of the losses once
    yield weights_of(", and those of the loss itself", g.weights, weights.to(g.weights))
    total, added_up, scale = g.weights.double().sum(), g.sum(), norms(g.materialize()).sum()
    if total == 0:
        with contextlib.suppress(ValueError):
            g.mean()
            raise AssertionError("a mean over a total weight of 0 is given, not refused")
        zeros = {name: torch.zeros_like(value) for name, value in added_up.items()}
        yield from sums("mean without weight", g.mean(on_zero_weight="zero"), zeros, scale, 0)
        if not bool(g.mean_loss.isnan()):
            raise AssertionError(f"the mean loss without weight is {float(g.mean_loss)}, not NaN")
        return
    mean = {name: value.double() * total for name, value in reduce(g, "mean").items()}
    yield from sums("mean times weight, and sum,", mean, doubled(added_up), scale, terms(b))
    losses = g.losses.double()
    yield Claim("mean_loss times weight", g.mean_loss * total, losses.sum(), losses.abs().sum(), terms(b))


def any_split_gives_the_same_mean(b: Subject) -> Iterator[Claim]:
    """Micro-batches, parts of a value and chunks of any sizes: one sum, one weight, divided once."""
    g = b.grads()
    weight = g.weights.double().sum()
    scale = norms(g.materialize()).sum()
    per_weight = scale / weight if weight else scale
    mean = g.mean(on_zero_weight="zero")
    micro, parts = (Accumulator.init({name: b.params[name] for name in b.names}) for _ in range(2))
    for index in cuts(b, 1):
        micro = micro.add(part_of(b, g, index))
    for part in g.split(draw(b, 2, 1, 4)):
        parts = parts.add(part)
    chunked = b.grads(chunk_size=draw(b, 3, 1, 4))
    yield from sums("mean of micro-batches", micro.mean(on_zero_weight="zero"), mean, per_weight)
    yield from sums("sum of micro-batches", micro.sum(), g.sum(), scale)
    yield from sums("mean of parts", parts.mean(on_zero_weight="zero"), mean, per_weight)
    yield from sums("mean in other chunks", chunked.mean(on_zero_weight="zero"), mean, per_weight)
    yield from rows("rows in other chunks", chunked.materialize(), g.materialize())


def permuting_the_batch_permutes_the_rows(b: Subject) -> Iterator[Claim]:
    """With the samples in another order, ids with them, the rows are the same in that order."""
    order = another_order(b.size, b.generator(1))
    g, permuted = b.grads(), b.grads(order.tolist())
    yield from same_samples("permuted", permuted, g, order)


def scaling_the_loss_scales_the_gradient(b: Subject) -> Iterator[Claim]:
    """By one factor in the loss, by one a sample in the value, by a factor that is taken out again."""
    g, c = b.grads(), coefficients(b, 1)
    none, factor = g.materialize(), draw(b, 2, -8, 8) / 4
    loud = b.grads(loss=times(b.loss, factor))
    yield from rows("rows of c * loss", loud.materialize(), scaled(none, factor), abs(factor) * norms(none))
    yield equal("weights of c * loss", loud.weights, g.weights, samples=True)
    yield from rows("rows under loss_scale", b.grads(loss_scale=2.0**4).materialize(), none)
    by_row, scale = g.scaled(c), (c.abs() * norms(none)).sum()
    yield from rows("rows of scaled(c)", by_row.materialize(), scaled(none, c), c.abs() * norms(none), 1)
    yield from sums("sum of scaled(c)", by_row.sum(), added(none, c), scale, of_rows(b))
    yield equal("weights of scaled(c)", by_row.weights, g.weights, samples=True)
    losses = g.losses.double() * c
    yield Claim("losses of scaled(c)", by_row.losses, losses, losses.abs(), 1, samples=True)
    weighted, weights = g.weighted(c.abs()), g.weights.double() * c.abs()
    weight = weights.sum()
    yield Claim("weights of weighted(c)", weighted.weights, weights, weights, 1, samples=True)
    want = {name: value / weight if weight else value * 0 for name, value in added(none, c.abs()).items()}
    mean = doubled(weighted.mean(on_zero_weight="zero"))
    yield from sums("mean of weighted(c)", mean, want, scale / weight if weight else scale, of_rows(b))


def joining_parts_gives_the_whole(b: Subject) -> Iterator[Claim]:
    """Values of parts of the batch, concatenated, are the value of the batch."""
    g = b.grads()
    joined = concatenate([part_of(b, g, index) for index in cuts(b, 1)])
    yield from same_samples("joined", joined, g, torch.arange(b.size))
    none = g.materialize()
    scale = norms(none)
    yield Claim("gram of joined", joined.gram(), g.gram(), scale[:, None] * scale, samples=True)
    yield from sums("sum of joined", joined.sum(), g.sum(), scale.sum())


def reducing_a_selection_reduces_its_rows(b: Subject) -> Iterator[Claim]:
    """A selection has the rows, losses and weights it names, and its sum is that of as many of each."""
    n = b.size
    index = torch.randint(n, (draw(b, 1, 0, 5),), generator=b.generator(2)) if n else torch.zeros(0, dtype=torch.int64)
    g = b.grads()
    none, chosen = g.materialize(), g.select(index)
    yield from same_samples("selected", chosen, g, index)
    c = torch.bincount(index, minlength=n).double().to(g.losses.device)
    scale = (c * norms(none)).sum()
    yield from sums("sum of a selection", chosen.sum(), g.weighted_sum(c), scale)
    weight = (g.weights.double() * c).sum()
    mean = {k: v.double() / weight if weight else v * 0 for k, v in g.weighted_sum(c, wide=True).items()}
    got = doubled(chosen.mean(on_zero_weight="zero"))
    yield from sums("mean of a selection", got, mean, scale / weight if weight else scale)
    mask = c > 0
    yield from same_samples("masked", g.select(mask), g, mask.nonzero()[:, 0].cpu())
    for i in range(min(n, 2)):
        own = norms({name: value[None] for name, value in g.select([i]).sum().items()})
        yield Claim(f"norm of sample {i}, and of its row", g.norms()[i : i + 1], own, own)


IDENTITIES = [
    sum_of_none_is_sum,
    mean_times_weight_is_sum,
    any_split_gives_the_same_mean,
    scaling_the_loss_scales_the_gradient,
    joining_parts_gives_the_whole,
    reducing_a_selection_reduces_its_rows,
]


def chunks_change_nothing(b: Subject, sizes: Iterable[int]) -> Iterator[Claim]:
    """Every answer in chunks of each size is the answer at once."""
    whole = b.grads(chunk_size=None)
    none = whole.materialize()
    want = Truth(none, whole.losses, whole.weights)
    for size in sizes:
        yield from agrees(f" in chunks of {size}", b.grads(chunk_size=size), want)


def agrees(where: str, g: PerSampleGrads, want: Truth) -> Iterator[Claim]:
    """Every answer of `g`, and the rows, losses and weights of `want`."""
    none, scale = want.rows, norms(want.rows)
    if g.batch_size != len(want.losses):
        raise AssertionError(f"{g.batch_size} samples{where}, not {len(want.losses)}")
    yield from rows(f"rows{where}", g.materialize(), none)
    yield Claim(f"losses{where}", g.losses, want.losses, want.losses.double().abs() + 1, samples=True)
    yield weights_of(where, g.weights, want.weights.to(g.weights))
    yield Claim(f"norms{where}", g.norms(), scale, scale, samples=True)
    direction = {name: torch.ones_like(value.sum(0)) for name, value in none.items()}
    flat = torch.cat([v.double().reshape(len(v), math.prod(v.shape[1:])) for v in none.values()], 1)
    yield Claim(f"dot(ones){where}", g.dot(direction), flat.sum(1), scale * flat.shape[1] ** 0.5, samples=True)
    yield Claim(f"gram{where}", g.gram(), flat @ flat.T, scale[:, None] * scale, samples=True)
    yield from sums(f"sum{where}", g.sum(), added(none), scale.sum())
    weight = want.weights.double().sum()
    if weight:
        mean = {name: value / weight for name, value in added(none).items()}
        yield from sums(f"mean{where}", g.mean(), mean, scale.sum() / weight)


# --- parts ----------------------------------------------------------------------------------------------------------


def same_samples(what: str, g: PerSampleGrads, whole: PerSampleGrads, index: Tensor) -> Iterator[Claim]:
    """`g` is the samples `index` of `whole`: rows, losses, weights."""
    if g.batch_size != len(index):
        raise AssertionError(f"{g.batch_size} samples, {what}, not {len(index)}")
    here = index.to(whole.losses.device)
    want = {name: value[here] for name, value in whole.materialize().items()}
    yield from rows(f"rows, {what},", g.materialize(), want)
    losses = whole.losses[here]
    yield Claim(f"losses, {what}", g.losses, losses, losses.double().abs() + 1, samples=True)
    yield weights_of(f", {what}", g.weights, whole.weights[here])
    yield Claim(f"norms, {what}", g.norms(), whole.norms()[here], norms(want), samples=True)


def part_of(b: Subject, g: PerSampleGrads, index: Sequence[int]) -> PerSampleGrads:
    """Some of the samples, run alone where they can be."""
    return b.grads(index) if b.separable else g.select(torch.as_tensor(index, dtype=torch.int64))


def added(none: Tensors, c: Tensor | None = None) -> Tensors:
    """Rows, times coefficients, added in float64."""
    each = doubled(none)
    return {k: v.sum(0) if c is None else torch.tensordot(c, v, 1) for k, v in each.items()}


def scaled(none: Tensors, c: Tensor | float) -> Tensors:
    """Rows times a factor, or one a row, in float64."""
    each = doubled(none)
    return {k: v * (c.reshape(-1, *[1] * (v.dim() - 1)) if isinstance(c, Tensor) else c) for k, v in each.items()}


def doubled(values: Tensors) -> Tensors:
    """In float64."""
    return {name: value.double() for name, value in values.items()}


def terms(b: Subject) -> int:
    """Additions and products in a sum over the batch, in whatever chunks."""
    return 2 * b.size + 2


def of_rows(b: Subject) -> int | None:
    """The same of a sum of rows as they are handed out; None where the sum is of factors, which no row has rounded."""
    return None if b.factored else terms(b)


def another_order(n: int, generator: torch.Generator) -> Tensor:
    """A random order of n samples, not the one they have."""
    order = torch.randperm(n, generator=generator)
    return order.roll(1) if torch.equal(order, torch.arange(n)) else order


def draw(b: Subject, stream: int, low: int, high: int) -> int:
    """An integer from low to high."""
    return int(torch.randint(low, high + 1, (), generator=b.generator(stream)))


def coefficients(b: Subject, stream: int) -> Tensor:
    """One quarter-integer a sample, `[B]`, some of them 0."""
    c = torch.randint(-6, 7, (b.size,), generator=b.generator(stream)).to(F64) / 4
    return c.to(next(iter(b.params.values())).device)


def cuts(b: Subject, stream: int) -> list[list[int]]:
    """The batch in consecutive parts of any sizes, perhaps of none."""
    n = b.size
    inner = torch.randint(0, n + 1, (draw(b, stream + 10, 0, 3),), generator=b.generator(stream)).sort().values
    return [list(range(start, stop)) for start, stop in itertools.pairwise([0, *inner.tolist(), n])]
