"""Kernels of gradients: Gram matrices in blocks, rows of outputs, the empirical neural tangent kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import check_int, message, one_of
from .._per_sample import PerSampleGrads, concatenate, per_sample_grads
from .._tree import static
from ._read import check_value, on_batch

KINDS = ("full", "trace", "pseudo")


class GramBlock(NamedTuple):
    """Inner products `[b, b']` of the samples `rows` of one value with the samples `columns` of another."""

    rows: slice
    columns: slice
    values: Tensor


def gram_blocks(
    g: PerSampleGrads, other: PerSampleGrads | None = None, *, block_size: int = 256
) -> Iterator[GramBlock]:
    """The Gram matrix a block at a time, for as many samples as fit nowhere: `(rows, columns, values)`.

    Within one value only blocks on and above the diagonal come; the others are their transposes.

    Cost: that of `g.gram`; one block is held. Where the rows are not kept (`chunk_size` an int), those of the columns
    are computed again for each block of rows.

    Args:
        g: per-sample gradients.
        other: those of another batch; by default `g` itself.
        block_size: samples on each side of a block.

    Raises:
        TypeError, ValueError: an argument of another type or range.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), chunk_size=2)
        >>> g = f({"w": torch.zeros(1)}, torch.tensor([[1.0], [2.0], [3.0]]))
        >>> for rows, columns, values in gf.quantities.gram_blocks(g, block_size=2):
        ...     print((rows.start, columns.start), values.tolist())
        (0, 0) [[1.0, 2.0], [2.0, 4.0]]
        (0, 2) [[3.0], [6.0]]
        (2, 2) [[9.0]]
    """
    call = "gf.quantities.gram_blocks(g, other)"
    check_value(call, g)
    right = g if other is None else check_value(call, other, "other")
    check_int(call, "block_size", block_size, 1)
    return _blocks(g, right, block_size)


def _blocks(g: PerSampleGrads, right: PerSampleGrads, size: int) -> Iterator[GramBlock]:
    for start in range(0, g.batch_size, size):
        rows = slice(start, min(start + size, g.batch_size))
        mine = g.select(rows)
        for first in range(start if right is g else 0, right.batch_size, size):
            columns = slice(first, min(first + size, right.batch_size))
            same = right is g and first == start
            yield GramBlock(rows, columns, mine.gram() if same else mine.gram(right.select(columns)))


def output_grads(
    outputs: Callable[..., Tensor], params: Mapping[str, Tensor], batch: Any, **options: Any
) -> PerSampleGrads:
    """The Jacobian of a model's outputs as rows: row `i K + k` is the gradient of output k of sample i.

    `outputs` may be the losses of the positions of a sequence: rows are then of tokens.

    Cost: K forward and backward passes of the batch. A full B K x P matrix is never held.

    Args:
        outputs: `outputs(params, *sample, **sample)` of one sample, a tensor of K entries.
        params: `{name: tensor}`.
        batch: a mapping is passed on as keywords, a tuple or list as positionals, anything else as one positional.
        options: those of `gf.per_sample_grads`; with an int as `chunk_size` rows are not kept.

    Raises:
        TypeError, ValueError: what `gf.per_sample_grads` refuses; `batched=True` or `has_aux=True`; no output.

    Example:
        >>> import torch, gradfunc as gf
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> gf.quantities.output_grads(lambda p, x: p["w"] * x, {"w": torch.ones(2)}, x).materialize()["w"]
        tensor([[1., 0.],
                [0., 2.],
                [3., 0.],
                [0., 4.]])
    """
    call = "gf.quantities.output_grads(outputs, params, batch)"
    each, count = by_output(call, outputs, lambda out, k: out[k], params, batch, options)
    return interleaved(each, count)


def by_output(
    call: str,
    outputs: Callable[..., Tensor],
    part: Callable[[Tensor, int], Any],
    params: Mapping[str, Tensor],
    batch: Any,
    options: Mapping[str, Any],
) -> tuple[list[PerSampleGrads], int]:
    """Gradients of `part(outputs [K], k)` for each k, and K."""
    check_options(call, options)
    sizes: list[int] = []

    def loss(p: Mapping[str, Tensor], k: int, *args: Any, **kwargs: Any) -> Any:
        out = flat_output(call, outputs, p, args, kwargs)
        sizes.append(len(out))
        return part(out, k)

    f = per_sample_grads(loss, **options)
    each = [on_batch(f, params, batch, static(0))]
    count = max(sizes)
    each += [on_batch(f, params, batch, static(k)) for k in range(1, count)]
    return each, count


def check_options(call: str, options: Mapping[str, Any]) -> None:
    """Refuse what is not of one sample."""
    for name in ("batched", "has_aux"):
        if options.get(name):
            do = "Write the outputs of one sample."
            raise ValueError(message(call, got=f"{name}=True", expected="a function of one sample", do=do))


def flat_output(call: str, outputs: Callable[..., Tensor], params: Any, args: Any, kwargs: Any) -> Tensor:
    """Outputs of one sample, `[K]`."""
    out = outputs(params, *args, **kwargs)
    if not isinstance(out, Tensor) or not out.is_floating_point() or not out.numel():
        raise TypeError(
            message(call, got=f"{type(out).__name__} from outputs", expected="a floating tensor, not empty")
        )
    return out.flatten()


def interleaved(each: list[PerSampleGrads], count: int) -> PerSampleGrads:
    """The rows of several values of one batch as one value: those of sample 0 first."""
    whole = concatenate(each)
    return whole.select(torch.arange(whole.batch_size).view(count, -1).T.flatten()) if count > 1 else each[0]


def empirical_ntk(
    outputs: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    batch: Any,
    other: Any = None,
    *,
    kind: str = "full",
    **options: Any,
) -> Tensor:
    """The empirical neural tangent kernel of a model's outputs: `Theta_ij = J(x_i) J(x_j)^T`.

    Jacot, Gabriel, Hongler 2018, "Neural tangent kernel" (arXiv 1806.07572), at these parameters, none at its limit.

    | kind     | shape            | entry                                                        | passes |
    |----------|------------------|--------------------------------------------------------------|--------|
    | "full"   | `[n, n', K, K']` | `<grad f_k(x_i), grad f_l(x_j)>`                             | K      |
    | "trace"  | `[n, n']`        | its mean over k = l                                          | K      |
    | "pseudo" | `[n, n']`        | that of `sum_k f_k / root K` (Mohamadi et al. 2023, arXiv 2206.12543) | 1 |

    The kernel of losses is `g.gram()`. For an n whose kernel does not fit, `gram_blocks` of `output_grads` with an int
    as `chunk_size` gives it block by block.

    Bias: none; it is no estimate ("pseudo" tends to "trace" as the width grows). Cost: `passes` forward and backward
    passes, and Gram matrices of as many rows; no Jacobian is held.

    Args:
        outputs, params, batch, options: as `output_grads`.
        other: another batch, for the columns; by default `batch`.
        kind: "full", "trace" or "pseudo".

    Raises:
        TypeError, ValueError: as `output_grads`; another kind.

    Example:
        >>> import torch, gradfunc as gf
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
        >>> gf.quantities.empirical_ntk(lambda p, x: p["w"] @ x, {"w": torch.zeros(3, 2)}, x, kind="trace")
        tensor([[1., 2.],
                [2., 5.]])
    """
    call = "gf.quantities.empirical_ntk(outputs, params, batch, other)"
    one_of(call, "kind", kind, KINDS)

    def rows(given: Any) -> tuple[list[PerSampleGrads], int]:
        if kind == "pseudo":
            check_options(call, options)
            f = per_sample_grads(lambda p, *a, **k: _pseudo(flat_output(call, outputs, p, a, k)), **options)
            return [on_batch(f, params, given)], 1
        return by_output(call, outputs, lambda out, k: out[k], params, given, options)

    left, count = rows(batch)
    right, columns = (left, count) if other is None else rows(other)
    if kind == "trace":
        if columns != count:
            got = f"outputs of {count} and of {columns} entries"
            raise ValueError(message(call, got=got, expected="the same number of both batches"))
        pairs = [a.gram() if other is None else a.gram(b) for a, b in zip(left, right, strict=True)]
        return torch.stack(pairs).mean(0)
    mine = interleaved(left, count)
    kernel = mine.gram() if other is None else mine.gram(interleaved(right, columns))
    if kind == "pseudo":
        return kernel
    return kernel.view(len(kernel) // count, count, kernel.shape[1] // columns, columns).transpose(1, 2)


def _pseudo(out: Tensor) -> Tensor:
    return out.sum() / math.sqrt(len(out))
