"""Arguments that say how to read them: `gf.static(x)` is shared by all samples, `gf.ragged(samples)` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._errors import kind_of, message


@dataclass(frozen=True, eq=False)
class Static:
    """An argument that is the same for every sample. Made by `gf.static`."""

    value: Any


@dataclass(frozen=True, eq=False)
class Ragged:
    """An argument whose samples are listed, since their shapes differ. Made by `gf.ragged`."""

    samples: tuple[Any, ...]


def static(value: Any) -> Static:
    """Mark an argument of a per-sample gradient function as the same for every sample.

    Tensors in it are passed to the loss as they are, not split along dimension 0. They are constants: a loss must not
    write to them.

    Args:
        value: a tensor, or a nest that holds some.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda params, x, shift: ((x + shift) * params["w"]).sum())
        >>> f({"w": torch.ones(2)}, torch.zeros(3, 2), gf.static(torch.tensor([1.0, 2.0]))).sum()["w"]
        tensor([3., 6.])
    """
    return value if isinstance(value, Static) else Static(value)


def ragged(samples: Sequence[Any]) -> Ragged:
    """An argument whose samples may differ in shape: sample i is `samples[i]`, a tensor or a nest of them.

    Samples of the same shapes run together, so a batch of sequences costs one vmapped call for each length that
    occurs. Other arguments of the call may be ragged too, or ordinary tensors with the samples in dimension 0.

    Args:
        samples: a list or tuple, one entry a sample, without batch dimension.

    Raises:
        TypeError: something else, such as one tensor.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda params, x: (params["w"] * x).sum())
        >>> f({"w": torch.ones(())}, gf.ragged([torch.ones(3), torch.ones(5), torch.ones(3)])).norms()
        tensor([3., 5., 3.])
    """
    if isinstance(samples, (Tensor, str, bytes)) or not isinstance(samples, Sequence):
        raise TypeError(
            message(
                "gf.ragged(samples)",
                got=kind_of(samples),
                expected="a list with one entry a sample",
                do="A tensor with the samples in dimension 0 is passed as it is.",
            )
        )
    return Ragged(tuple(samples))
