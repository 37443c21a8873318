"""Law checkers for the gradients of your own loss: `assert_...(loss, params, batch)`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import check_int, kind_of, message
from .._per_sample._function import PerSampleGradsFunction
from ._claims import Asked, Claim
from ._identities import IDENTITIES, agrees, chunks_change_nothing, permuting_the_batch_permutes_the_rows, same_samples
from ._purity import Snapshot, everything, generators_elsewhere, results_of, same_bits, shared
from ._subject import Given, Loss


def assert_reduction_identities(
    loss: Loss | PerSampleGradsFunction, params: Mapping[str, Tensor], batch: Any, **options: Any
) -> None:
    """Assert that none, sum and mean of a loss's gradients are one another's.

    The laws: the rows of "none" add up to "sum", weighted ones to `weighted_sum`; the mean times the weights that the
    loss states is the sum; any split into micro-batches, parts or chunks has the same mean; a scaled loss has scaled
    gradients; joined parts are the whole; a selection has the rows it names. Each sum of computed rows is held to its
    bound, `2 gamma_k` of `sum |c_i| |g_i|`; what two runs compute is judged by precision (`gf.testing.rounding`).

    Args:
        loss: a loss of one sample, one of a whole batch with `batched=True` (whose parts are then taken from the value,
            since samples may be coupled: a division by n inside is seen by `gf.testing.check_gradients`, not here), or
            a function of `gf.per_sample_grads`.
        params: `{name: tensor}`.
        batch: a mapping is passed on as keywords, a tuple or list as positionals, anything else as one positional.
        options: those of `gf.per_sample_grads`; none for a function that was made by it. `seed` is also that of the
            splits and coefficients.

    Raises:
        AssertionError: which law is broken, at which parameter and sample, by how much, what was allowed.
        TypeError, ValueError: what `gf.per_sample_grads` refuses, and options beside a function that has its own.

    Warns:
        GradfuncWarning: the loss does not run at another precision, so that half of the digits are all that was asked.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(nn.Linear(4, 3))
        >>> def loss(params, x, y):
        ...     return gf.losses.cross_entropy(model.sample(params, x), y)
        >>> x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> gf.testing.assert_reduction_identities(loss, model.params, (x, y))
    """
    b, asked = _read("assert_reduction_identities", loss, params, batch, options)
    for law in IDENTITIES:
        asked.hold(said(law), partial(_of, law, b))


def assert_permutation_of_gradients(
    loss: Loss | PerSampleGradsFunction, params: Mapping[str, Tensor], batch: Any, options: Mapping[str, Any]
) -> None:
    """The half of `assert_permutation_equivariant` that takes a loss."""
    b, asked = _read("assert_permutation_equivariant", loss, params, batch, options)
    b.check_rows()
    law = permuting_the_batch_permutes_the_rows
    asked.hold(said(law), partial(_of, law, b))


def assert_chunk_invariant(
    loss: Loss | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    chunk_sizes: Sequence[int] | None = None,
    **options: Any,
) -> None:
    """Assert that every answer is the same in chunks of any size: rows, losses, weights, norms, dot, Gram, sum, mean.

    Judged by precision, as rows are computed anew in each chunk; weights are the same numbers. What torch alone can
    draw (`torch.multinomial`, `torch.poisson`) belongs to a chunk under `engine="vmap"`, so that a loss with such draws
    rightly fails there.

    Args:
        loss, params, batch, options: as in `gf.testing.assert_reduction_identities`; a `chunk_size` among them is not
            used.
        chunk_sizes: each >= 1; default 1, 2 and half of the batch.

    Raises:
        AssertionError: which answer differs, at which parameter and sample, by how much, what was allowed.
        TypeError, ValueError: sizes that are no positive ints, and as `gf.testing.assert_reduction_identities`.

    Example:
        >>> import gradfunc as gf
        >>> loss = lambda params, x: (params["w"] @ x).tanh().sum()
        >>> gf.testing.assert_chunk_invariant(loss, {"w": torch.randn(3, 4)}, torch.randn(5, 4), chunk_sizes=(1, 4))
    """
    call = _call("assert_chunk_invariant")
    if chunk_sizes is not None:
        if not isinstance(chunk_sizes, Sequence) or isinstance(chunk_sizes, str):
            expected = "a sequence of ints >= 1, or None"
            raise TypeError(message(call, got=f"{kind_of(chunk_sizes)} as chunk_sizes", expected=expected))
        if not chunk_sizes:
            raise ValueError(message(call, got=f"chunk_sizes={chunk_sizes!r}", expected="at least one size, or None"))
        for size in chunk_sizes:
            check_int(call, "chunk_sizes", size, 1)
    b, asked = _read("assert_chunk_invariant", loss, params, batch, options)
    sizes = chunk_sizes or sorted({1, 2, max((b.size + 1) // 2, 1)})
    asked.hold("chunks change nothing", lambda dtype: chunks_change_nothing(b.to(dtype), sizes))


def assert_matches_oracle(
    loss: Loss | PerSampleGradsFunction, params: Mapping[str, Tensor], batch: Any, **options: Any
) -> None:
    """Assert that every answer is that of plain autograd: one `torch.autograd.grad` a sample, added in float64.

    Of a loss with `batched=True`, one a row of its losses, the whole batch in place. The oracle holds B x P. Judged by
    precision (`gf.testing.rounding`); a loss of which autograd itself loses half of the digits passes on the others.

    Args:
        loss, params, batch, options: as in `gf.testing.assert_reduction_identities`.

    Raises:
        AssertionError: which answer differs, at which parameter and sample, by how much, what was allowed.
        TypeError: as `gf.testing.assert_reduction_identities`.
        ValueError: besides, a loss that draws, as plain autograd would draw other numbers: `gf.testing.certify` it.

    Example:
        >>> import gradfunc as gf
        >>> loss = lambda params, x: (params["w"] @ x).tanh().sum()
        >>> gf.testing.assert_matches_oracle(loss, {"w": torch.randn(3, 4)}, torch.randn(5, 4), engine="factored")
    """
    b, asked = _read("assert_matches_oracle", loss, params, batch, options)

    def law(dtype: torch.dtype | None) -> Iterator[Claim]:
        own = b.to(dtype)
        return agrees(", and plain autograd's,", own.grads(), own.truth())

    asked.hold("every answer is that of one autograd call a sample", law)


def assert_pure_gradients(
    loss: Loss | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    batch: Any,
    module: nn.Module | None,
    options: Mapping[str, Any],
) -> None:
    """The half of `assert_pure` that takes a loss."""
    b = Given.of(_call("assert_pure"), loss, params, batch, options)
    if module is not None and not isinstance(module, nn.Module):
        raise TypeError(message(b.call, got=f"{kind_of(module)} as module", expected="an nn.Module, or None"))
    with generators_elsewhere():
        before = Snapshot.of(module, (b.args, b.kwargs), params)  # before the loss runs for the first time
        asked = _asked(b)
        everything(b.grads(), params)
        changed = [f"{name} {what}" for name, what in before.changed(module, params)]
    if changed:
        raise AssertionError(asked.broken("nothing is touched", "; ".join(changed[:4])))
    if found := shared(b.grads(), b.params, (b.args, b.kwargs)):
        raise AssertionError(asked.broken("answers share nothing", f"{found[1]} shares the storage of {found[0]}"))
    asked.hold("twice is once", lambda dtype: twice_is_once(b.to(dtype)))


def twice_is_once(b: Any) -> Iterator[Claim]:
    """The same question has the same answer, of the same value and of another call; bit by bit on the CPU."""
    g = b.grads()
    first = results_of(g)
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)  # draws of others make no difference
        second = b.grads()
    if g.losses.device.type == "cpu":
        for what, again in (("asked again", results_of(g)), ("of a second call", results_of(second))):
            for name, value in first.items():
                if not same_bits(value, again[name]):
                    raise AssertionError(f"{name}, {what}, has other bits")
    else:  # atomic additions of a GPU have no order
        yield from same_samples("asked again", g.select(slice(None)), g, torch.arange(g.batch_size))
        yield from same_samples("of a second call", second, g, torch.arange(g.batch_size))


def _call(name: str) -> str:
    return f"gf.testing.{name}(loss, params, batch)"


def _of(law: Callable[[Given], Iterator[Claim]], b: Given, dtype: torch.dtype | None) -> Iterator[Claim]:
    return law(b.to(dtype))


def said(law: Any) -> str:
    """How messages call a law."""
    return str(law.__name__).replace("_", " ")


def _read(name: str, loss: Any, params: Any, batch: Any, options: Mapping[str, Any]) -> tuple[Given, Asked]:
    b = Given.of(_call(name), loss, params, batch, options)
    return b, _asked(b)


def _asked(b: Given) -> Asked:
    """How its laws are judged; runs the loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the loop is slow is no finding
        dtype, device = b.dtype, b.device
    replay = f"the same call; its splits, orders and coefficients come from seed={b.f.options.seed} alone"
    return Asked(b.call, dtype, replay, device)
