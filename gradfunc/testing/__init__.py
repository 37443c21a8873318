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

rounding           unit roundoffs, bounds with their derivation, error scales: equal up to rounding, for your numbers
_error_bounds      its functions
_claims            what a law yields, judged by a bound or by precision
_oracle            one plain autograd call a sample
_subject           a loss, parameters and a batch, any part of it, at any precision
_identities        the laws of gradients          _gradient_laws     assert_...(loss, params, batch)
_purity            what is left behind, what is shared
_staged            a stage and what it is given     _stages, _bounds   the laws of transformations
_stage_laws        assert_...(transformation, grads, params)               _laws   those that take either
plugin             `-p gradfunc.testing.plugin`: a fixture of devices for pytest
strategies/        random models, losses, batches, rows and chains for hypothesis, and laws asked of a transformation of
                   yours in three lines: loaded when it is asked for
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import rounding as rounding
from ._certify import certify as certify
from ._check import check_gradients as check_gradients
from ._gradient_laws import assert_chunk_invariant as assert_chunk_invariant
from ._gradient_laws import assert_matches_oracle as assert_matches_oracle
from ._gradient_laws import assert_reduction_identities as assert_reduction_identities
from ._laws import assert_permutation_equivariant as assert_permutation_equivariant
from ._laws import assert_pure as assert_pure
from ._report import CheckReport as CheckReport
from ._report import CheckRow as CheckRow
from ._stage_laws import assert_guarantee_holds as assert_guarantee_holds
from ._stage_laws import assert_norm_bounded as assert_norm_bounded
from ._stage_laws import assert_transformation_laws as assert_transformation_laws

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
