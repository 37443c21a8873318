"""What tools on a user's model are asked with: precision, device, how many samples, and which seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._errors import message, one_of
from .._problem import Problem, read
from .._stateless import PureModel, Stateless
from .._tree import tensors_of

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def asked_problem(
    call: str,
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    batch: Any,
    *,
    dtype: str | torch.dtype | None,
    device: torch.device | str | None,
    batch_size: int | None,
    seed: int,
) -> tuple[Problem, torch.dtype]:
    """The problem, cast and cut as asked, and the precision asked for: the parameters' own by default.

    Raises:
        TypeError: a model, criterion, batch or seed of another form.
        ValueError: an unknown dtype or device; a batch size or a batch of no samples; no trainable parameter.
        RuntimeError: inference mode.
    """
    _check_numbers(call, batch_size, seed)
    problem = read(call, model, criterion, batch)
    _check_parameters(call, problem)
    if batch_size is not None:
        problem = problem.rows(0, min(batch_size, problem.size))
    asked = _dtype(call, dtype) if dtype is not None else next(iter(problem.model.params.values())).dtype
    place = None if device is None else device_of(call, device)
    return problem.cast(asked if dtype is not None else None, place), asked


def name_of(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def device_of(call: str, device: torch.device | str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: this machine has none.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            message(call, got=f"device={str(device)!r} ({reason})", expected="a device of this machine")
        ) from error


def _check_numbers(call: str, batch_size: int | None, seed: int) -> None:
    if isinstance(batch_size, bool) or (
        batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1)
    ):
        raise ValueError(message(call, got=f"batch_size={batch_size!r}", expected="a positive int"))
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(message(call, got=f"seed={seed!r}", expected="an int"))


def _check_parameters(call: str, problem: Problem) -> None:
    params = problem.model.params
    if not params:
        raise ValueError(message(call, got="no trainable parameter", expected="at least one"))
    if odd := [name for name, value in params.items() if not value.is_floating_point()]:
        raise ValueError(
            message(call, got=f"parameters {odd} that are not real floating tensors", expected="real ones")
        )
    given = (params, problem.args, problem.kwargs, problem.target, problem.batch)
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors_of(given)):
        got = "inference mode, or a tensor made under it"
        do = "Leave torch.inference_mode(), and clone tensors that were made in it."
        raise RuntimeError(message(call, got=got, expected="tensors that autograd can record", do=do))


def _dtype(call: str, dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        dtype = name_of(dtype)
    one_of(call, "dtype", dtype, DTYPES)
    return DTYPES[dtype]
