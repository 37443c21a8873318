"""Law checkers for a transformation of your own: `assert_...(transformation, grads, params)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._errors import POSITIVE, check_int, check_number, kind_of, message
from .._per_sample import PerSampleGrads
from .._transform import Transformation
from .._transform._chain import name_of
from .._transform._protocol import Guaranteeing
from ._bounds import GUARANTEES, bounded
from ._claims import Asked, Claim
from ._gradient_laws import said
from ._identities import another_order
from ._staged import Staged
from ._stages import LAWS, permuting_samples_permutes_the_output, touches_nothing, twice_is_once

Given = PerSampleGrads | Mapping[str, Tensor]


def assert_transformation_laws(
    transformation: Transformation[Any, Any], grads: Given, params: Mapping[str, Tensor]
) -> None:
    """Assert what every stage of a chain must do, on these gradients.

    The laws: an output for each parameter, of its shape, dtype and device, and as many rows as went in; finite for
    finite gradients (whose fourth powers are finite) and for gradients of 0; gradients, state, parameters, flags and
    global generators stay as they are, and no output shares memory with state or parameters; nothing is remembered
    outside of the state (two updates from one state are one, whatever was asked in between); a state of plain nests
    that can be stored and read back; alone in a chain, beside the identity and in any grouping it gives the same.
    Two runs on the same numbers are compared bit by bit on the CPU, up to rounding on a GPU.

    A stage that gives None while it waits is asked until it gives something, 64 times at most.

    Args:
        transformation: an object with `init(params)` and `update(grads, state, params)`; `>>` is not needed.
        grads: what it takes: a value of `gf.per_sample_grads`, or gradients `{name: tensor}`.
        params: the parameters that the gradients are of.

    Raises:
        AssertionError: which law is broken, at which parameter or sample.
        TypeError: no transformation, or other gradients than it says it takes.
        ValueError: gradients of parameters that are not there.

    Example:
        >>> import gradfunc as gf
        >>> class Halve:
        ...     def init(self, params):
        ...         return ()
        ...     def update(self, grads, state, params=None, /):
        ...         return {name: value / 2 for name, value in grads.items()}, state
        >>> params = {"w": torch.zeros(3)}
        >>> gf.testing.assert_transformation_laws(Halve(), {"w": torch.randn(3)}, params)
    """
    b, asked = read("assert_transformation_laws", transformation, grads, params)
    for law in LAWS:
        asked.hold(said(law), partial(_of, law, b))


def assert_norm_bounded(
    transformation: Transformation[Any, Any],
    grads: Given,
    params: Mapping[str, Tensor],
    *,
    bound: float,
    per_unit_weight: bool = False,
    idempotent: bool = False,
) -> None:
    """Assert that no norm of the output exceeds a bound by more than rounding may.

    Of rows each sample's norm, all parameters together; of gradients the norm of all. Rounding may add
    `gf.testing.rounding.clip_factor` of the bound, which is derived there.

    Args:
        transformation, grads, params: as in `gf.testing.assert_transformation_laws`.
        bound: C > 0.
        per_unit_weight: the bound of sample i is C times its weight.
        idempotent: assert besides that what was bounded once stays as it is, up to rounding. So it is for
            `min(1, C / norm)`; a factor `C / (norm + 1e-6)` moves rows of norm C again.

    Raises:
        AssertionError: which sample exceeds it, by how much, and how much was allowed.
        TypeError, ValueError: a bound that is no number > 0, flags that are none, and as
            `gf.testing.assert_transformation_laws`.

    Example:
        >>> import gradfunc as gf
        >>> params = {"w": torch.zeros(3)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(params, torch.randn(5, 3))
        >>> gf.testing.assert_norm_bounded(gf.clip_per_sample(0.5), g, params, bound=0.5, idempotent=True)
    """
    call = "gf.testing.assert_norm_bounded(transformation, grads, params)"
    check_number(call, "bound", bound, POSITIVE)
    for name, flag in (("per_unit_weight", per_unit_weight), ("idempotent", idempotent)):
        check_flag(call, name, flag)
    b, asked = read("assert_norm_bounded", transformation, grads, params)
    if per_unit_weight and not isinstance(grads, PerSampleGrads):
        expected = "per-sample gradients, which have weights"
        raise TypeError(message(call, got="per_unit_weight=True for gradients", expected=expected))
    asked.hold(f"norms are at most {bound:g}", lambda dtype: bounded(b.to(dtype), bound, per_unit_weight))
    if idempotent:
        asked.hold(said(twice_is_once), partial(_of, twice_is_once, b))


def assert_guarantee_holds(
    transformation: Transformation[Any, Any], grads: PerSampleGrads, params: Mapping[str, Tensor]
) -> None:
    """Assert that what a stage guarantees (`transformation.guarantee(before)`) holds on these samples.

    A bound on every row; independence: row i and its weight stay as they are with other samples beside it; the
    sensitivity of a reduction: some samples are left out and replaced, one at a time (by the opposite, 0, and a
    thousand times another). Asked of the stage, of the stage behind a clip at the median norm, and of rows also behind
    a sum. Bounds may be exceeded by what is derived in `gf.testing.rounding`. A guarantee of nothing always holds.

    Args:
        transformation: a stage or chain with `guarantee(before)`. One that takes gradients is asked behind
            `clip_per_sample(C) >> sum()`, C the median norm.
        grads: per-sample gradients, a few samples at least.
        params: the parameters that they are of.

    Raises:
        AssertionError: what does not hold, of which sample, by how much, and how much was allowed.
        TypeError: no transformation, one that guarantees nothing because it does not say, no per-sample gradients.

    Example:
        >>> import gradfunc as gf
        >>> params = {"w": torch.zeros(3)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(params, torch.randn(5, 3))
        >>> gf.testing.assert_guarantee_holds(gf.clip_per_sample(0.5) >> gf.sum(), g, params)
    """
    call = "gf.testing.assert_guarantee_holds(transformation, grads, params)"
    if not isinstance(grads, PerSampleGrads):
        raise TypeError(message(call, got=f"{kind_of(grads)} as grads", expected="per-sample gradients"))
    b, asked = read("assert_guarantee_holds", transformation, grads, params, any_place=True)
    if not isinstance(transformation, Guaranteeing):
        got = f"{name_of(transformation)}, which has no guarantee(before)"
        raise TypeError(message(call, got=got, expected="a stage that says what holds of its output"))
    for law in GUARANTEES:
        asked.hold(said(law), partial(_of, law, b))


def assert_permutation_of_stage(
    transformation: Transformation[Any, Any], grads: Any, params: Mapping[str, Tensor], seed: int
) -> None:
    """The half of `assert_permutation_equivariant` that takes a transformation."""
    call = "gf.testing.assert_permutation_equivariant(transformation, grads, params)"
    check_int(call, "seed", seed, 0)
    if not isinstance(grads, PerSampleGrads):
        expected = "per-sample gradients: gradients that are reduced have no order"
        raise TypeError(message(call, got=f"{kind_of(grads)} as grads", expected=expected))
    b, asked = read("assert_permutation_equivariant", transformation, grads, params, seed=seed)
    order = another_order(grads.batch_size, torch.Generator().manual_seed(seed))
    law = permuting_samples_permutes_the_output
    asked.hold(said(law), lambda dtype: law(b.to(dtype), order))


def assert_pure_stage(transformation: Transformation[Any, Any], grads: Any, params: Mapping[str, Tensor]) -> None:
    """The half of `assert_pure` that takes a transformation."""
    b, asked = read("assert_pure", transformation, grads, params)
    asked.hold(said(touches_nothing), partial(_of, touches_nothing, b))


def check_flag(call: str, name: str, value: object) -> None:
    """Raise TypeError unless this is True or False."""
    if not isinstance(value, bool):
        raise TypeError(message(call, got=f"{name}={value!r}", expected="True or False"))


def read(
    name: str, transformation: Any, grads: Any, params: Any, *, any_place: bool = False, seed: int | None = None
) -> tuple[Staged, Asked]:
    """The call of a checker, and how its laws are judged."""
    call = f"gf.testing.{name}(transformation, grads, params)"
    b = Staged.of(call, transformation, grads, params, any_place=any_place)
    drawn = "it draws nothing" if seed is None else f"its order comes from seed={seed}"
    plain = "__repr__" not in {key for kind in type(transformation).__mro__[:-1] for key in vars(kind)}
    which = name_of(transformation) if plain else repr(transformation)
    replay = f"the same call on the same gradients, with {which}; {drawn}"
    return b, Asked(call, b.dtype, replay, b.device)


def _of(law: Callable[[Staged], Iterator[Claim]], b: Staged, dtype: torch.dtype | None) -> Iterator[Claim]:
    return law(b.to(dtype))
