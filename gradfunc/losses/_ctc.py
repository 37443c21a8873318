"""Connectionist temporal classification."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import message, one_of
from .._tree import wide
from .._weights import Weighted
from ._rows import check_indices, check_number


def ctc(
    log_probs: Tensor,
    targets: Tensor,
    input_length: Tensor | int | None = None,
    target_length: Tensor | int | None = None,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    mean: str = "target_length",
    batched: bool = False,
) -> Weighted:
    """Connectionist temporal classification: l = -log of the total probability of all alignments of a target.

    Source: Graves et al., "Connectionist temporal classification" (2006), section 4.1, in logarithms; its gradient is
    the derivative, -(expected number of uses of a class in a frame). torch's own hands back probability minus that,
    which is the same after `log_softmax` and only there.

    torch's sum and mean have different numerators: its mean divides each loss by its target's length first. So there
    are two conventions, and `sum` and `mean` of either go together.

    Args:
        log_probs: log probabilities `[T, C]`; batched `[B, T, C]`: dimension 0 is samples here as everywhere (torch's
            own layout is `[T, B, C]`).
        targets: class indices without blanks, `[S]`; batched `[B, S]`, padded with anything.
        input_length: number of frames that count, from the first; default all. An int, or a tensor `[]`; batched an
            int for all, or a tensor `[B]`. What lies beyond never counts, not even NaN.
        target_length: number of targets that count, likewise.
        blank: class index of the blank.
        zero_infinity: whether a target that no alignment reaches (too few frames) adds 0, value and gradient. Without,
            it adds infinity, and its gradient is NaN, as in torch.
        mean: "target_length" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `mean="target_length"` (default; torch's mean) | l / max(target_length, 1) | 1 |
    | `mean="sample"` (torch's sum; the mean is torch's sum over n) | l | 1 |
    | `zero_infinity=True` | 0 where l is infinite | 1, as in torch |

    Lengths beyond their tensors, which torch refuses, give NaN.

    Raises:
        TypeError: targets that are no integers.
        ValueError: shapes that do not fit; an unknown `mean`; `blank` that is no class.

    Example:
        >>> half = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()    # two frames: a-, -a, aa; 3/4 of the paths
        >>> ctc(half, torch.tensor([1])).numerator.exp()
        tensor(1.3333)
    """
    call = "gf.losses.ctc(log_probs, targets, input_length, target_length)"
    one_of(call, "mean", mean, ("target_length", "sample"))
    check_indices(call, "targets", targets)
    if log_probs.dim() != 2 + batched or targets.dim() != 1 + batched or (batched and len(log_probs) != len(targets)):
        raise ValueError(
            message(
                call,
                got=f"log_probs {tuple(log_probs.shape)} and targets {tuple(targets.shape)}",
                expected="log_probs [B, T, C] and targets [B, S]" if batched else "log_probs [T, C] and targets [S]",
                do="torch's layout [T, B, C] is log_probs.transpose(0, 1) here; concatenated targets are to be padded."
                if batched
                else "Pass batched=True where dimension 0 is samples.",
            )
        )
    check_number(call, "blank", blank, 0 <= blank < log_probs.shape[-1], f"to be a class, below {log_probs.shape[-1]}")
    if not batched:
        log_probs, targets = log_probs.unsqueeze(0), targets.unsqueeze(0)
    frames = _lengths(call, "input_length", input_length, log_probs, batched)
    labels = _lengths(call, "target_length", target_length, targets, batched)
    loss = -_log_likelihood(log_probs.to(wide(log_probs.dtype)), targets.long(), frames, labels, blank, zero_infinity)
    possible = (frames >= 0) & (frames <= log_probs.shape[1]) & (labels >= 0) & (labels <= targets.shape[1])
    loss = loss.masked_fill(~possible, torch.nan)
    if mean == "target_length":
        loss = loss / labels.clamp(min=1)
    weight = torch.ones_like(loss).detach()
    loss = loss.to(log_probs.dtype)
    return Weighted(loss, weight) if batched else Weighted(loss.squeeze(0), weight.squeeze(0))


def _lengths(call: str, name: str, length: Tensor | int | None, of: Tensor, batched: bool) -> Tensor:
    """One length a sample, `[B]`."""
    if length is None:
        length = of.shape[1]
    if not isinstance(length, Tensor):
        return torch.full((len(of),), length, device=of.device)
    if length.shape != of.shape[: int(batched)]:
        expected = f"an int or a tensor {tuple(of.shape[: int(batched)])}"
        raise ValueError(message(call, got=f"{name} {tuple(length.shape)}", expected=expected))
    length = length.to(of.device).long()
    return length if batched else length.unsqueeze(0)


def _log_likelihood(
    log_probs: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank: int, zero_infinity: bool
) -> Tensor:
    """Log probability of the targets, `[B]`: the forward recursion over blank, l_1, blank, l_2, ..., l_S, blank."""
    steps = log_probs.shape[1]
    counts = torch.arange(steps, device=log_probs.device) < frames.unsqueeze(1)
    log_probs = log_probs.masked_fill(~counts.unsqueeze(2), 0)
    inside = torch.arange(targets.shape[1], device=targets.device) < labels.unsqueeze(1)
    targets = targets.masked_fill(~inside, blank)
    between = torch.full_like(targets, blank)
    states = F.pad(torch.stack((between, targets), 2).flatten(1), (0, 1), value=blank)  # [B, 2S + 1]
    # a label may follow the label before it, two states earlier, unless they are the same
    skips = states != F.pad(states, (2, 0), value=blank)[:, :-2]
    emitted = log_probs.gather(2, states.unsqueeze(1).expand(-1, steps, -1))
    never = torch.full_like(states, 0, dtype=log_probs.dtype) - torch.inf
    alpha = torch.cat((torch.zeros_like(never[:, :1]), never[:, 1:]), 1)  # before the first frame
    for t in range(steps):
        one = F.pad(alpha, (1, 0), value=-torch.inf)[:, :-1]
        two = F.pad(alpha, (2, 0), value=-torch.inf)[:, :-2].masked_fill(~skips, -torch.inf)
        alpha = torch.where(counts[:, t : t + 1], _log_sum_exp(alpha, one, two) + emitted[:, t], alpha)
    last = (2 * labels).clamp(0, states.shape[1] - 1).unsqueeze(1)
    on_blank = alpha.gather(1, last).squeeze(1)
    on_label = alpha.gather(1, (last - 1).clamp(min=0)).squeeze(1).masked_fill(labels < 1, -torch.inf)
    likelihood = _log_sum_exp(on_blank, on_label)
    lost = likelihood == -torch.inf
    likelihood = likelihood.masked_fill(lost, 0)
    if zero_infinity:
        return likelihood
    # 0 * inf makes the gradient of what is lost NaN, and of nothing else
    one = 1 + 0 * log_probs.nan_to_num(neginf=0).sum((1, 2))
    return likelihood + torch.zeros_like(likelihood).masked_fill(lost, -torch.inf) * one


def _log_sum_exp(*terms: Tensor) -> Tensor:
    """As torch's, but with gradient 0 where every term is -inf."""
    stacked = torch.stack(terms)
    largest = stacked.detach().amax(0)
    largest = largest.masked_fill(largest == -torch.inf, 0)
    total = (stacked - largest).exp().sum(0)
    none = total == 0
    return (total.masked_fill(none, 1).log() + largest).masked_fill(none, -torch.inf)
