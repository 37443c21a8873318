"""Nothing beyond the budget is allocated beside the answer: counted on every tensor that an operator returns."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradfunc import _factors as F
from gradfunc._factors import Gradient, Outer, Rows, _outer


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operator returned in new storage."""

    def __init__(self, held):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in held}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known | given:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def gradients(device, dtype, size=16, t=24, inputs=40, outputs=600):
    x, g = torch.randn(size, t, inputs).to(device, dtype), torch.randn(size, t, outputs).to(device, dtype)
    index = torch.randint(outputs, (size, t)).to(device)
    like = torch.empty((), dtype=dtype, device=device).expand(outputs, inputs)
    head, embedding = Outer(x, g, (outputs, inputs)), Rows(index, torch.randn_like(x), (outputs, inputs))
    return {
        "head": {"w": Gradient.of(like, size, [head])},
        "embedding": {"w": Gradient.of(like, size, [embedding])},
        "tied": {"w": Gradient.of(like, size, [head, embedding])},
    }


QUERIES = {
    "norms": lambda rows, s: F.norms(rows, s),
    "norms each": lambda rows, s: F.norms_each(rows, s),
    "gram": lambda rows, s: F.gram(rows, rows, s),
    "dots": lambda rows, s: F.dots(rows, {"w": torch.ones(rows["w"].like.shape, device=rows["w"].like.device)}, s),
    "sum": lambda rows, s: F.weighted_sum(rows, None, s),
    "weighted sum": lambda rows, s: F.weighted_sum(rows, torch.ones(16), s),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("which", ["head", "embedding", "tied"])
def test_nothing_beyond_the_budget(device, which, query, dtype):
    rows = gradients(device, dtype)[which]
    entries = rows["w"].like.numel()
    scratch = 16 * 24 * 40
    answer = 0 if query in ("norms", "norms each", "dots", "gram") else entries
    with Largest(F.tensors(rows)) as seen:
        QUERIES[query](rows, scratch)
    # Indices are int64, and one sample's own block is allowed: its halves, or its entries where a parameter's uses
    # of several kinds meet without a formula.
    own = max(24 * 640, entries if query == "dots" else 0)
    assert seen.bytes <= max(4 * max(scratch, answer, own), 8 * 16 * 24), "beyond the budget"
    assert seen.bytes < 4 * 16 * entries, "all rows were held"


def test_holding_all_rows_would_be_seen(device):
    rows = gradients(device, torch.float32)["head"]
    with Largest(F.tensors(rows)) as seen:
        F.dense(rows)
    assert seen.bytes == 4 * 16 * rows["w"].like.numel()


@pytest.mark.parametrize(
    ("t", "inputs", "outputs", "name"), [(1, 9, 9, "gram"), (4, 99, 99, "gram"), (99, 4, 4, "direct")]
)
def test_squares_take_the_way_that_method_names(monkeypatch, t, inputs, outputs, name):
    taken = []
    for way in ("gram", "rows"):
        real = getattr(_outer, f"squares_by_{way}")
        monkeypatch.setattr(_outer, f"squares_by_{way}", lambda *a, way=way, real=real: taken.append(way) or real(*a))
    factor = Outer(torch.randn(2, t, inputs), torch.randn(2, t, outputs), (outputs, inputs))
    method = F.method(factor, 2**16)
    assert method.name == name
    assert method.flops > 0
    assert method.bytes > 0
    assert method.why
    F.norms({"w": Gradient.of(torch.zeros(outputs, inputs), 2, [factor])})
    assert taken == [{"gram": "gram", "direct": "rows"}[name]]


def test_halves_that_are_time_first_are_not_copied():
    x, g = (torch.randn(7, 5, n).transpose(0, 1) for n in (30, 40))
    factor = Outer(x, g, (40, 30))
    with Largest(factor.tensors) as seen:
        factor.weighted_sum(None, 2**16)
    assert seen.bytes == 4 * 30 * 40 > 4 * 7 * 5 * 30


def test_no_coefficient_0_no_selection(monkeypatch):
    monkeypatch.setattr(Gradient, "select", lambda *_: pytest.fail("rows were copied"))
    F.weighted_sum(gradients("cpu", torch.float32)["tied"], torch.ones(16))
