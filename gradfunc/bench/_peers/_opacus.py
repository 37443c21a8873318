"""Opacus: rows by hooks, and ghost clipping."""

from __future__ import annotations

from torch import nn

from .. import _by_hand
from .._contender import Call, Contender, Library, Limit
from .._workload import Case
from ._copy import Copy, has, has_buffers, shares

OPACUS = Library(("opacus",), ("opacus",), "pip install 'opacus>=1.6', or gradfunc[bench]")
ATTENTION = (nn.MultiheadAttention,)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LIMITS = (
    Limit(has(nn.LSTM, nn.GRU), "nn.LSTM and nn.GRU are to be replaced by DPLSTM and DPGRU", "opacus/validators"),
    Limit(has(*ATTENTION), "nn.MultiheadAttention is to be replaced by DPMultiheadAttention", "opacus/validators"),
    Limit(has(*BATCH_NORM), "BatchNorm is to be replaced by GroupNorm", "opacus/validators/batch_norm.py"),
    Limit(has_buffers, "strict=True refuses modules with buffers", "docstring of GradSampleModule"),
)
TIED = Limit(shares, "ghost clipping does not support tied parameters", "its own error message")


def _hooks(case: Case, quantity: str) -> Call:
    from opacus.grad_sample import GradSampleModule

    copy = Copy.of(case)
    model = GradSampleModule(copy.module, batch_first=copy.batch_first, loss_reduction="sum")

    def call() -> object:
        copy.losses(model).sum().backward()
        return _by_hand.answer(quantity, copy.rows("grad_sample"), case.max_norm)

    return call


def _ghost(case: Case, quantity: str) -> Call:
    """What `DPLossFastGradientClipping` does in its `backward()`, with the factor min(1, C / norm) as it is.

    Opacus adds 1e-6 to the norm, which a comparison would call wrong.
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    copy = Copy.of(case)
    options = {"batch_first": copy.batch_first, "loss_reduction": "sum", "max_grad_norm": case.max_norm}
    model = GradSampleModuleFastGradientClipping(copy.module, use_ghost_clipping=True, **options)

    def call() -> object:
        losses = copy.losses(model)
        losses.sum().backward(retain_graph=quantity != "norms")
        norms = copy.one_each("the norms", model.get_norm_sample().detach())
        copy.clear("_norm_sample", "grad_sample")
        if quantity == "norms":
            return norms
        model.disable_hooks()
        (_by_hand.clip_factors(norms, case.max_norm) * losses).sum().backward()
        model.enable_hooks()
        return copy.grads()

    return call


CONTENDERS = (
    Contender(
        "opacus",
        _hooks,
        peer=True,
        settings="GradSampleModule(loss_reduction='sum'), the default grad_sample_mode 'hooks'; strict as by default",
        library=OPACUS,
        limits=LIMITS,
    ),
    Contender(
        "opacus-ghost",
        _ghost,
        ("clip-and-sum", "norms"),
        peer=True,
        settings="GradSampleModuleFastGradientClipping(use_ghost_clipping=True), two backward passes of one graph; "
        "clipped by min(1, C / norm), without the 1e-6 that Opacus adds to the norm",
        library=OPACUS,
        limits=(*LIMITS, TIED),
    ),
)
