"""Checks for your own tests: are these gradients right, on this model?

_report      one row a check
_verdict     rounding or wrong, by two precisions
_certify     per-sample gradients against autograd and against themselves
_side        a problem at one precision: its losses as functions, its rows by every engine
_agreement   engines, reductions, splits, orders, weights
_effects     dtypes, shared storage, repetition, purity
_slopes      is the gradient the derivative, layer by layer
_hooks       hooks that change gradients
_check       all of it on one model
_planted     every kind of fault, planted once
_demo        what the command shows without a model
strategies/  random models, losses, batches, rows and chains for hypothesis: loaded when it is asked for
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from ._certify import certify as certify
from ._check import check_gradients as check_gradients
from ._report import CheckReport as CheckReport
from ._report import CheckRow as CheckRow

if TYPE_CHECKING:
    from . import strategies as strategies


def __getattr__(name: str) -> ModuleType:
    """`strategies`, which alone needs hypothesis."""
    if name != "strategies":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}.strategies")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "hypothesis":
            raise
        raise ModuleNotFoundError(
            "gf.testing.strategies needs hypothesis: pip install 'gradfunc[testing]'", name="hypothesis"
        ) from error
