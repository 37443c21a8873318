"""What factors say of themselves, in numbers: shapes, entries that are read, the method of squares and its cost."""

from __future__ import annotations

import pytest
import torch

from gradfunc import _factors as F
from gradfunc._factors import Dense, Gradient, Grouped, Mapped, Outer, Rows, Steps, Unfolded

BYTE = 8  # flops that moving one is worth


def outer(size, t, inputs, outputs, dtype=torch.float32):
    x, g = (torch.zeros((), dtype=dtype).expand(size, t, n) for n in (inputs, outputs))
    return Outer(x, g, (outputs, inputs))


def rows(size=2, t=3, d=5, count=7, dtype=torch.float32):
    return Rows(torch.zeros(size, t, dtype=torch.int64), torch.zeros(size, t, d, dtype=dtype), (count, d))


def grouped(size=2, t=6, inputs=4, outputs=5, count=3, dtype=torch.float32):
    x, g = torch.zeros(size, t, inputs, dtype=dtype), torch.zeros(size, t, outputs, dtype=dtype)
    return Grouped(torch.zeros(size, t, dtype=torch.int64), x, g, (count, outputs, inputs))


def convolution(size=2, images=1, channels=(4, 6), kernel=3, pixels=9, groups=1, dtype=torch.float32, **laid):
    """Along one dimension."""
    stride, padding, dilation = (laid.get(name, default) for name, default in (("s", 1), ("p", 0), ("d", 1)))
    out = (pixels + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    steps = Steps((channels[1], channels[0] // groups, kernel), (stride,), (padding,), (dilation,), groups)
    x, g = torch.zeros(size, images, channels[0], pixels), torch.zeros(size, images, channels[1], out)
    return Unfolded(x.to(dtype), g.to(dtype), steps.weight, steps)


def through(factor, fn=torch.sin):
    like = torch.empty((), dtype=factor.dtype).expand(factor.shape)
    return Mapped(Gradient(like, factor.size, (factor,)), None, fn)


# factor, kind, shape, features, reads
KINDS = [
    (Dense(torch.zeros(2, 3, 4)), "dense", (3, 4), (), 12),
    (Dense(torch.zeros(2)), "dense", (), (), 1),
    (outer(2, 3, 5, 7), "outer", (7, 5), (5, 7), 36),
    (rows(), "rows", (7, 5), (5,), 18),
    (grouped(), "grouped", (3, 5, 4), (4, 5), 60),
    (through(outer(2, 3, 5, 7)), "mapped", (7, 5), (torch.sin, 7, 5), 35 + 36),
    # 7 positions, of 6 channels and of windows of 4 channels by 3
    (convolution(), "unfolded", (6, 4, 3), ((4, 9), (6, 7), convolution().steps), 7 * (6 + 12)),
    # 2 images of 5 positions each, of 6 channels and windows of both groups
    (
        convolution(images=2, groups=2, s=2, p=1),
        "unfolded",
        (6, 2, 3),
        ((4, 9), (6, 5), convolution(groups=2, s=2, p=1).steps),
        10 * (6 + 12),
    ),
]


@pytest.mark.parametrize(
    ("factor", "kind", "shape", "features", "reads"), KINDS, ids=[f"{k}: {c[1]}" for k, c in enumerate(KINDS)]
)
def test_what_a_factor_is(factor, kind, shape, features, reads):
    assert (factor.kind, factor.size, factor.shape, factor.features) == (kind, 2, shape, features)
    assert factor.reads == reads
    assert [tensor.shape[0] for tensor in factor.tensors if tensor.dim() > len(shape) or kind != "mapped"] in (
        [2],
        [2, 2],
        [2, 2, 2],
    )


def test_how_many_matrices():
    assert grouped().count == 3
    assert grouped(inputs=0).count == 0
    assert rows().count == 7
    assert rows(d=0).count == 7
    assert Rows(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 5), (7, 2, 5)).count == 14


# factor, name, flops, bytes
COSTS = [
    (Dense(torch.zeros(2, 3, 4)), "dense", 48, 96),
    (Dense(torch.zeros(2, 3, 4, dtype=torch.bfloat16)), "dense", 48, 48),
    (rows(), "rows", 90, 240),
    (rows(dtype=torch.bfloat16), "rows", 90, 240),
    (through(outer(2, 3, 5, 7)), "rows", 140, 560),
    (through(outer(2, 3, 5, 7, torch.float64)), "rows", 140, 1120),
    # one position: both halves are read, once
    (outer(2, 1, 5, 7), "gram", 48, 96),
    (outer(2, 1, 5, 7, torch.bfloat16), "gram", 48, 48),
    (outer(2, 0, 5, 7), "gram", 0, 0),
    # 2 samples of 4 * 4 pairs of positions, whose products are written and read three times
    (outer(2, 4, 99, 98), "gram", 2 * 32 * 197, 4 * 8 * 197 + 24 * 32),
    (outer(2, 4, 99, 98, torch.bfloat16), "gram", 2 * 32 * 197, 2 * 8 * 197 + 24 * 32),
    # beyond 128 positions, what lies left of the blocks on the diagonal is left out: 200 * (200 + 128) / 2 pairs
    (outer(1, 200, 1000, 900), "gram", 2 * 32800 * 1900, 4 * 200 * 1900 + 24 * 32800),
    # rows written and read
    (outer(2, 99, 4, 5), "direct", 2 * 2 * 99 * 20, 4 * 198 * 9 + 8 * 2 * 20),
    (outer(2, 99, 4, 5, torch.bfloat16), "direct", 2 * 2 * 99 * 20, 2 * 198 * 9 + 8 * 2 * 20),
    # each of 3 matrices meets 2 of 6 positions; 3 of 7
    (grouped(inputs=40, outputs=50), "gram", 3 * 2 * 4 * 2 * 90, 3 * (4 * 4 * 90 + 24 * 8)),
    (grouped(t=7, inputs=40, outputs=50), "gram", 3 * 2 * 2 * 9 * 90, 3 * (4 * 6 * 90 + 24 * 18)),
    (grouped(t=3), "gram", 3 * 4 * 9, 3 * 4 * 2 * 9),
    (grouped(inputs=0), "direct", 0, 0),
    # windows of 7 positions are written and read, and rows
    (convolution(), "direct", 2 * 2 * 7 * 72, 2 * 8 * (7 * 12 + 72)),
    (convolution(groups=2, s=2, p=1), "direct", 2 * 2 * 5 * 36, 2 * 8 * (5 * 12 + 36)),
    # products of 3 pixels with each other, in 80 channels; of 1 position, 3 of the kernel and 90 channels
    (
        convolution(channels=(80, 90), pixels=3),
        "gram",
        2 * 2 * (9 * 80 + 90 + 3),
        2 * 4 * (2 * 9 + 6),
    ),
    (
        convolution(channels=(80, 90), pixels=6, kernel=5, dtype=torch.bfloat16),
        "gram",
        2 * 2 * (36 * 80 + 4 * (90 + 5)),
        2 * 4 * (2 * 36 + 6 * 4),
    ),
    (
        convolution(channels=(80, 90), images=2, pixels=6, kernel=5, s=2, d=1),
        "gram",
        2 * 2 * (100 * 80 + 4 * (90 + 5)),
        2 * 4 * (2 * 100 + 6 * 4),
    ),
    (convolution(channels=(80, 90), groups=2, pixels=3), "direct", 2 * 2 * 90 * 40 * 3, 16 * (240 + 10800)),
]


@pytest.mark.parametrize(
    ("factor", "name", "flops", "bytes_"), COSTS, ids=[f"{k}: {c[0].kind}" for k, c in enumerate(COSTS)]
)
def test_the_method_and_its_cost(factor, name, flops, bytes_):
    assert tuple(F.method(factor, 2**16)[:3]) == (name, flops, bytes_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 4), (5, 40), (40, 5), (16, 16), (31, 29)])
def test_products_take_the_cheaper_method(inputs, outputs, dtype):
    item, each = dtype.itemsize, max(4, dtype.itemsize)
    for t in range(2, 45):
        pairs, read = t * t, t * (inputs + outputs) * item
        gram = 2 * pairs * (inputs + outputs) + BYTE * (read + 6 * pairs * each)
        direct = 2 * t * inputs * outputs + BYTE * (read + 2 * inputs * outputs * each)
        assert outer(1, t, inputs, outputs, dtype).method(1).name == ("gram" if gram <= direct else "direct"), t


def test_of_two_that_cost_the_same_products_of_positions():
    t, n = 256, 384
    pairs = t * (t + 128) // 2
    assert 2 * pairs * 2 * n + BYTE * 6 * pairs * 4 == 2 * t * n * n + BYTE * 2 * n * n * 4
    assert outer(1, t, n, n).method(1).name == "gram"


@pytest.mark.parametrize("channels", [(4, 6), (20, 10), (60, 70)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolutions_take_the_cheaper_method(channels, kernel):
    for pixels in range(kernel, 28):
        t, entries = pixels - kernel + 1, channels[0] * kernel
        gram = 2 * (pixels**2 * channels[0] + t**2 * (channels[1] + kernel)) + BYTE * 4 * (2 * pixels**2 + 6 * t**2)
        direct = 2 * t * entries * channels[1] + BYTE * 8 * (t * entries + entries * channels[1])
        found = convolution(channels=channels, kernel=kernel, pixels=pixels).method(1).name
        assert found == ("gram" if gram <= direct else "direct"), pixels


# --- which rows are formed ------------------------------------------------------------------------------------------


def gradient(*factors):
    like = torch.empty((), dtype=factors[0].tensors[-1].dtype).expand(factors[0].shape)
    return Gradient(like, factors[0].size, factors)


def held(size, t, inputs, outputs, dtype=torch.float32):
    """In storage of its own."""
    return Outer(
        torch.zeros(size, t, inputs, dtype=dtype), torch.zeros(size, t, outputs, dtype=dtype), (outputs, inputs)
    )


FORMED = [
    # rows of 6 by 6 are 36 entries, halves 12 a position: as many at T = 3, 1.5 times at T = 2
    (held(2, 3, 6, 6), True),
    (held(2, 2, 6, 6), False),
    (held(2, 1, 6, 6), False),
    # alone, up to 1.3 times: 900 entries beside 60 a position, at T = 12 and 11
    (held(2, 12, 30, 30), True),
    (held(2, 11, 30, 30), False),
    (rows(t=2, d=5, count=2), True),
    (rows(t=1, d=5, count=2), False),
    (rows(t=20, d=5, count=50), False),
    # squares would form them anyway: up to twice what is read, 3 and 2 positions of 16 and 3 * 16 entries
    (convolution(channels=(16, 16), groups=2, pixels=5), True),
    (convolution(channels=(16, 16), groups=2, pixels=4), False),
    # what is read is not held: up to 4 times the 20 pixels of 32 channels that are
    (convolution(channels=(32, 32), groups=2, kernel=5, pixels=12), True),
    (convolution(channels=(34, 34), groups=2, kernel=5, pixels=12), False),
    (convolution(channels=(32, 32), groups=2, kernel=5, pixels=12, dtype=torch.bfloat16), False),  # rows are wider
]


@pytest.mark.parametrize(("factor", "formed"), FORMED, ids=range(len(FORMED)))
def test_rows_no_larger_than_their_factors_are_formed(factor, formed):
    assert F.formed({"w": gradient(factor)}) == ({"w"} if formed else set())


def test_rows_are_formed_while_what_is_held_stays_within_1_3_times():
    """Each takes 256 bytes more than its factors, or 480, which is more than twice as much."""
    large = {"large": gradient(held(2, 1, 400, 400))}  # 6400 bytes
    for n, count, chosen in ((8, 1, 1), (8, 6, 6), (8, 60, 25), (10, 1, 0)):
        small = {f"{k}": gradient(held(2, 2, n, n)) for k in range(count)}
        assert len(F.formed({**large, **small})) == chosen, (n, count)


def test_the_least_larger_are_formed_first():
    """Either takes 96 or 256 bytes more, of 278 that there are."""
    some = {"large": (1, 30), "a": (2, 8), "b": (2, 6)}
    assert F.formed({name: gradient(held(2, t, n, n)) for name, (t, n) in some.items()}) == {"b"}


def test_what_factors_share_is_held_until_the_last_of_them_is_formed():
    """Rows of 64 entries of factors of 34, 32 of them shared: 98 stay if one is formed. 100 are held beside them."""
    x = torch.zeros(2, 1, 32)
    one, other = (gradient(Outer(half, torch.zeros(2, 1, 2), (2, 32))) for half in (x, x))
    apart = gradient(held(2, 1, 32, 2))
    large = gradient(held(2, 1, 50, 50))
    assert F.formed({"large": large, "one": one, "other": other}) == set()
    assert F.formed({"large": large, "one": one, "other": apart}) == {"one"}


def test_rows_that_are_dense_are_not_formed_again():
    values = Dense(torch.zeros(2, 6, 6))
    assert F.formed({"w": gradient(values), "none": Gradient(torch.zeros(6), 2, ())}) == set()
    assert gradient(values).formed().factors == (values,)
