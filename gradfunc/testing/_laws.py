"""Law checkers that take either a loss or a transformation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from torch import Tensor, nn

from .._errors import message
from .._per_sample import PerSampleGrads
from .._per_sample._function import PerSampleGradsFunction
from .._transform import Transformation
from ._gradient_laws import assert_permutation_of_gradients, assert_pure_gradients
from ._stage_laws import Given, assert_permutation_of_stage, assert_pure_stage
from ._subject import Loss


@overload
def assert_permutation_equivariant(
    subject: Transformation[Any, Any], grads: PerSampleGrads, params: Mapping[str, Tensor], /, *, seed: int = 0
) -> None: ...
@overload
def assert_permutation_equivariant(
    subject: Loss | PerSampleGradsFunction, params: Mapping[str, Tensor], batch: Any, /, **options: Any
) -> None: ...
def assert_permutation_equivariant(subject: Any, one: Any, other: Any, /, **options: Any) -> None:
    """Assert that samples in another order give the same in that order: of a loss, or of a transformation.

    `(loss, params, batch)`: rows, losses, weights and norms of the permuted batch, the samples' ids with them, so that
    draws stay with their samples; of a loss with `batched=True` every tensor of the batch must carry the samples in
    dimension 0, or be marked with `gf.static`. `(transformation, grads, params)`: rows that come out, with their losses
    and weights; a reduction of the samples gives the same, on the scale of what it makes of rows without signs. Asked
    at the first and the second update. Judged by precision (`gf.testing.rounding`).

    Args:
        subject: a loss, a function of `gf.per_sample_grads`, or a transformation.
        one, other: parameters and batch, or per-sample gradients and parameters.
        options: of a loss those of `gf.per_sample_grads`, of a transformation `seed=0`, that of the order.

    Raises:
        AssertionError: what differs, at which parameter and sample, by how much, what was allowed.
        TypeError, ValueError: as `gf.testing.assert_reduction_identities` or `gf.testing.assert_transformation_laws`.

    Example:
        >>> import gradfunc as gf
        >>> params, x = {"w": torch.zeros(3)}, torch.randn(5, 3)
        >>> loss = lambda params, x: (params["w"] * x).sum().exp()
        >>> gf.testing.assert_permutation_equivariant(loss, params, x)
        >>> g = gf.per_sample_grads(loss)(params, x)
        >>> gf.testing.assert_permutation_equivariant(gf.clip_per_sample(1.0) >> gf.mean(), g, params)
    """
    if not isinstance(subject, Transformation):
        assert_permutation_of_gradients(subject, one, other, options)
        return
    if unknown := sorted(set(options) - {"seed"}):
        call = "gf.testing.assert_permutation_equivariant(transformation, grads, params)"
        raise TypeError(message(call, got=f"options {unknown}", expected="seed alone"))
    assert_permutation_of_stage(subject, one, other, **{"seed": 0, **options})


@overload
def assert_pure(subject: Transformation[Any, Any], grads: Given, params: Mapping[str, Tensor], /) -> None: ...
@overload
def assert_pure(
    subject: Loss | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    batch: Any,
    /,
    *,
    module: nn.Module | None = None,
    **options: Any,
) -> None: ...
def assert_pure(subject: Any, one: Any, other: Any, /, *, module: nn.Module | None = None, **options: Any) -> None:
    """Assert that nothing is left behind: by the gradients of a loss, or by a transformation.

    `(loss, params, batch)`: every query leaves parameters, batch, `.grad`, flags and global generators as they are, of
    `module` besides its buffers, hooks, modes and attributes; no answer shares memory with what was given or with
    another answer; asked twice, of one value or of two calls, the answer is the same (bits on the CPU, up to rounding
    on a GPU, whose atomic additions have no order). `(transformation, grads, params)`: an update leaves what it was
    given as it is, and its output shares no memory with parameters or states.

    Args:
        subject: a loss, a function of `gf.per_sample_grads`, or a transformation.
        one, other: parameters and batch, or gradients and parameters.
        module: the module that a loss runs, to be watched.
        options: of a loss, those of `gf.per_sample_grads`.

    Raises:
        AssertionError: what is changed or shared.
        TypeError, ValueError: as `gf.testing.assert_reduction_identities` or `gf.testing.assert_transformation_laws`.

    Example:
        >>> import gradfunc as gf
        >>> module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
        >>> model = gf.stateless(module)
        >>> loss = lambda params, x: model.sample(params, x).square().sum()
        >>> gf.testing.assert_pure(loss, model.params, torch.randn(5, 4), module=module)
    """
    if not isinstance(subject, Transformation):
        assert_pure_gradients(subject, one, other, module, options)
        return
    if options or module is not None:
        given = sorted(options) + (["module"] if module is not None else [])
        call = "gf.testing.assert_pure(transformation, grads, params)"
        raise TypeError(message(call, got=f"options {given}", expected="none beside a transformation"))
    assert_pure_stage(subject, one, other)
