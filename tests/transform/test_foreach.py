"""Lists of tensors in one kernel or one by one: the same numbers, in the first list's dtypes, and who is written to."""

from __future__ import annotations

import pytest
import torch
from oracle import same_bits

from gradfunc._transform import _foreach

F16, F32, F64 = torch.float16, torch.float32, torch.float64
TYPES = {
    "of one type": ((F64, F64, F64), (F64, F64, F64)),
    "half": ((F16, F16, F16), (F16, F16, F16)),
    "of several types": ((F16, F32, F64), (F16, F32, F64)),
    "others in other types": ((F16, F32, F64), (F64, F16, F32)),
}
FACTOR = 0.3  # not a number of float16 or float32
# name -> (a list that may be written to or not, others or none, one by one)
FUNCTIONS = {
    "multiply": (False, lambda a, b: a * FACTOR),
    "multiply_": (True, lambda a, b: a * FACTOR),
    "add": (False, lambda a, b: a.add(b.to(a.dtype), alpha=FACTOR)),
    "add_": (True, lambda a, b: a.add(b.to(a.dtype), alpha=FACTOR)),
    "lerp": (False, lambda a, b: a.lerp(b, FACTOR)),
    "lerp_": (True, lambda a, b: a.lerp(b, FACTOR)),
}


def lists(types):
    generator = torch.Generator().manual_seed(0)
    shapes = (3,), (2, 2), ()
    return [
        [torch.randn(s, generator=generator, dtype=F64).to(t) for s, t in zip(shapes, each, strict=True)]
        for each in TYPES[types]
    ]


def asked(name, values, others):
    fn = getattr(_foreach, name)
    return fn(values, FACTOR) if name.startswith("multiply") else fn(values, others, FACTOR)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lists_are_their_tensors_one_by_one(name, types):
    if name.startswith("lerp") and types == "others in other types":
        return  # refused by torch
    written, one = FUNCTIONS[name]
    values, others = lists(types)
    want = [one(a, b) for a, b in zip(values, others, strict=True)]
    before = [v.clone() for v in values]
    got = asked(name, values, others)
    assert type(got) is list
    assert [v.dtype for v in got] == list(TYPES[types][0])
    assert same_bits(got, want)
    assert same_bits(others, lists(types)[1])
    if not written:
        assert same_bits(values, before)
        assert not {v.data_ptr() for v in got} & {v.data_ptr() for v in values}
    elif types == "of one type":
        assert [v.data_ptr() for v in got] == [v.data_ptr() for v in values]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inside_a_transform_nothing_is_written(name):
    _, one = FUNCTIONS[name]
    values, others = lists("of one type")
    before = [v.clone() for v in values]
    batched = [torch.stack([v, 2 * v]) for v in others]
    got = torch.vmap(lambda *b: asked(name, list(values), list(b)))(*batched) if "multiply" not in name else None
    if got is not None:
        assert same_bits(
            list(got), [torch.stack([one(a, b), one(a, 2 * b)]) for a, b in zip(values, others, strict=True)]
        )
    scaled = torch.vmap(lambda *a: asked(name, list(a), list(others)))(*[torch.stack([v, -v]) for v in values])
    assert same_bits(list(scaled), [torch.stack([one(a, b), one(-a, b)]) for a, b in zip(values, others, strict=True)])
    assert same_bits(values, before)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_list(name):
    assert asked(name, [], []) == []
