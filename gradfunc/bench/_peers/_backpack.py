"""BackPACK: rows by BatchGrad, and their norms by BatchL2Grad with a second backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _by_hand
from .._contender import Call, Contender, Library, Limit
from .._workload import Case
from ._copy import Copy, has, of_its_own

BACKPACK = Library(
    ("backpack",),
    ("backpack-for-pytorch",),
    "pip install einops unfoldNd einconv opt_einsum linear_operator && "
    "pip install --no-deps backpack-for-pytorch==1.7.1 (it asks for torchvision, and needs none)",
)
PAGE = "docs.backpack.pt, supported models"
WITHOUT = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.MultiheadAttention, nn.GRU, nn.RNNCellBase, nn.Bilinear, nn.PReLU,
    nn.EmbeddingBag, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
LIMITS = (
    Limit(has(*WITHOUT), "parameters of linear, convolution, embedding, LSTM and BatchNorm layers only", PAGE),
    Limit(of_its_own, "sequences of torch's own layers; what else may work is not tested", PAGE),
)


def _rows(case: Case, quantity: str) -> Call:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    copy = Copy.of(case)
    copy.has_samples_first()
    model = extend(copy.module)

    def call() -> object:
        with backpack(BatchGrad()):
            copy.losses(model).sum().backward()
        return _by_hand.answer(quantity, copy.rows("grad_batch"), case.max_norm)

    return call


def _norms(case: Case, quantity: str) -> Call:
    from backpack import backpack, disable, extend
    from backpack.extensions import BatchL2Grad

    copy = Copy.of(case)
    copy.has_samples_first()
    model = extend(copy.module)

    def squares(param: Tensor) -> Tensor:
        return param.flatten(1).sum(1) if param.dim() > 1 else param  # zeros of an unused parameter have its shape

    def call() -> object:
        losses = copy.losses(model)
        with backpack(BatchL2Grad()):
            losses.sum().backward(retain_graph=quantity != "norms")
        norms = torch.stack([squares(value) for value in copy.rows("batch_l2").values()]).sum(0).sqrt()
        if quantity == "norms":
            return norms
        with disable():
            (_by_hand.clip_factors(norms, case.max_norm) * losses).sum().backward()
        return copy.grads()

    return call


CONTENDERS = (
    Contender(
        "backpack",
        _rows,
        peer=True,
        settings="extend(module), backpack(BatchGrad()) around the backward pass of the sum",
        library=BACKPACK,
        limits=LIMITS,
    ),
    Contender(
        "backpack-l2",
        _norms,
        ("clip-and-sum", "norms"),
        peer=True,
        settings="extend(module), backpack(BatchL2Grad()), then a backward pass of the weighted sum on the same graph",
        library=BACKPACK,
        limits=LIMITS,
    ),
)
