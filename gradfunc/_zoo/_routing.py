"""Rows that leave their places: routed to experts, permuted, cut into windows, counted by the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._model import Net, add, floats


def _experts(count: int = 3, width: int = 12) -> dict[str, Any]:
    """A router and a matrix an expert."""
    return {"router": nn.Linear(width, count), "w": nn.Parameter(0.4 * torch.randn(count, width, width))}


add(
    "mixture of all experts by einsum",
    "one weight for all experts, multiplied by data on two sides",
    lambda: Net(_soft, **_experts()),
    floats((12,), (12,)),
    {"router.weight": "outer", "router.bias": "dense", "w": "dense"},
)
add(
    "mixture of experts, rows gathered by index",
    "rows of all samples are sorted by expert: an expert's batch is not the batch, and its size is data, "
    "which vmap cannot have",
    lambda: Net(_gathered, router=nn.Linear(24, 3), experts=nn.ModuleList([nn.Linear(24, 24) for _ in range(3)])),
    lambda: (torch.randn(6, 2, 24), torch.randn(6, 2, 24)),
    {
        "router.weight": "outer",
        "router.bias": "dense",
        **{f"experts.{e}.weight": "outer" for e in range(3)},
        **{f"experts.{e}.bias": "dense" for e in range(3)},
    },
    vmap=False,
)
add(
    "experts of bounded capacity by bmm",
    "the experts are the batch dimension of a batched product",
    lambda: Net(_capacity, **_experts(6, 16)),
    floats((3, 16), (16,)),
    {"router.weight": "outer", "router.bias": "dense", "w": "grouped"},
    vmapped={"w": "dense"},
)
add(
    "a matrix a sample, looked up by index",
    "the weight of a product is chosen by the sample",
    lambda: Net(lambda m, x, i: torch.einsum("bi,bio->bo", x, m.w[i]), w=(5, 6, 4)),
    lambda: (torch.randn(4, 6), torch.randint(5, (4,)), torch.randn(4, 4)),
    {"w": "rows"},
)
add(
    "rows chosen by a mask",
    "some positions pass the layer, as many as the data says, which vmap cannot have",
    lambda: Net(_chosen, layer=nn.Linear(12, 12), head=nn.Linear(12, 5)),
    lambda: (torch.randn(5, 3, 12), torch.randn(5, 5)),
    {"layer.weight": "outer", "layer.bias": "dense", "head.weight": "outer", "head.bias": "dense"},
    vmap=False,
)
add(
    "batch reversed and back",
    "inside, row i is not sample i",
    lambda: Net(lambda m, x: m.layer(x.flip(0)).exp().flip(0), layer=nn.Linear(12, 10)),
    floats((12,), (10,)),
    {"layer.weight": "outer", "layer.bias": "dense"},
)
add(
    "windows as a batch, shifted",
    "inside, the first dimension is a multiple of the batch, and windows cross where the sequence was rolled",
    lambda: Net(_windows, layer=nn.Linear(16, 16)),
    floats((4, 16), (4, 16)),
    {"layer.weight": "outer", "layer.bias": "dense"},
)
add(
    "max over positions",
    "each feature's gradient goes to one position, and to none of the others",
    lambda: Net(lambda m, x: m.layer(x).amax(1), layer=nn.Linear(12, 10)),
    floats((3, 12), (10,)),
    {"layer.weight": "outer", "layer.bias": "dense"},
)


def _soft(m: Any, x: Tensor) -> Any:
    return torch.einsum("bi,eio,be->bo", x, m.w, m.router(x).softmax(-1))


def _gathered(m: Any, x: Tensor) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    chance = m.router(rows).softmax(-1)
    chosen, out = chance.argmax(-1), torch.zeros_like(rows)
    for e, expert in enumerate(m.experts):
        at = (chosen == e).nonzero().squeeze(1)
        out = out.index_add(0, at, expert(rows[at]).tanh() * chance[at, e, None])
    return out.view_as(x)


def _capacity(m: Any, x: Tensor) -> Any:
    """Each expert takes its two best positions of the sample."""
    best, at = m.router(x).softmax(-1).mT.topk(2, -1)
    taken = torch.gather(x.unsqueeze(1).expand(-1, 6, -1, -1), 2, at[..., None].expand(-1, -1, -1, x.shape[-1]))
    by_expert = taken.transpose(0, 1).flatten(1, 2)
    out = torch.bmm(by_expert, m.w).unflatten(1, (len(x), 2)).transpose(0, 1)
    return (out * best[..., None]).sum((1, 2))


def _chosen(m: Any, x: Tensor) -> Any:
    seen = x[..., 0] > -0.5
    out = torch.zeros_like(x)
    out[seen] = m.layer(x[seen]).tanh()
    return m.head(out.sum(1))


def _windows(m: Any, x: Tensor) -> Any:
    parts = m.layer(x.roll(1, 1).reshape(len(x) * 2, 2, 16))
    return (parts * parts.softmax(1)).reshape(x.shape).roll(-1, 1)
