"""The losses of `gf.losses` as data: their options, the targets they take, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import losses
from ..._weights import Weighted

Shape = tuple[int, ...]
Draw = Callable[[torch.Generator, Shape, dict[str, Any]], tuple[Tensor, ...]]

IGNORED = -100


@dataclass(frozen=True)
class Criterion:
    """One loss.

    Attributes:
        targets: draws what the loss compares one sample's output of a shape `[..., C]` with.
        options: `{name: values}`, the simplest first. A tensor among them is named by a string, see `tensors`.
        before: what the model's output goes through.
        sequence: whether it takes `[T, C]` only.
        linear: whether losses and gradients of huge inputs stay finite and keep their digits.
    """

    targets: Draw
    options: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    before: Callable[[Tensor, dict[str, Any]], Tensor] = lambda output, options: output
    sequence: bool = False
    linear: bool = False


def _normal(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (torch.randn(shape, generator=g, dtype=torch.float64),)


def _probabilities(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (torch.rand(shape, generator=g, dtype=torch.float64),)


def _distribution(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    logs = _normal(g, shape, options)[0].log_softmax(-1)
    return (logs if options.get("log_target") else logs.exp(),)


def _counts(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (torch.randint(5, shape, generator=g).double(),)


def _signs(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (torch.randint(2, shape, generator=g).double() * 2 - 1,)


def _labels(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """Class indices, about a third of which are ignored where that is possible."""
    if options.get("target") == "probabilities":
        return _distribution(g, shape, options)
    labels = torch.randint(shape[-1], shape[:-1], generator=g)
    ignored = torch.rand(shape[:-1], generator=g) < 0.35
    return (labels.masked_fill(ignored, options["ignore_index"]) if "ignore_index" in options else labels,)


def _causal_labels(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return _labels(g, shape, {"ignore_index": IGNORED})


def _label_lists(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    order = torch.rand(shape, generator=g).argsort(-1)
    length = torch.randint(shape[-1] + 1, (*shape[:-1], 1), generator=g)
    return (order.masked_fill(torch.arange(shape[-1]) >= length, -1),)


def _variances(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (*_normal(g, shape, options), *(p + 0.5 for p in _probabilities(g, shape, options)))


def _pair_and_signs(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (*_normal(g, shape, options), *_signs(g, shape, options))


def _pair_and_sign(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (*_normal(g, shape, options), *_signs(g, shape[:-1], options))


def _triplet(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (*_normal(g, shape, options), *_normal(g, shape, options))


def _alignment(g: torch.Generator, shape: Shape, options: dict[str, Any]) -> tuple[Tensor, ...]:
    return (torch.randint(1, shape[-1], (2,), generator=g),)  # class 0 is the blank


def _log_softmax(output: Tensor, options: dict[str, Any]) -> Tensor:
    return output.log_softmax(-1)


PER = ("element", "sample")
FACTOR = (None, "per class")
CLASS_WEIGHT = (None, "per class", "per class, some 0")

# From the simplest on: hypothesis shrinks towards the first.
CRITERIA = {
    "mse": Criterion(_normal, {"per": PER}, linear=True),
    "l1": Criterion(_normal, {"per": PER}, linear=True),
    "huber": Criterion(_normal, {"per": PER, "delta": (1.0, 0.25)}, linear=True),
    "smooth_l1": Criterion(_normal, {"per": PER, "beta": (1.0, 0.25)}, linear=True),
    "cross_entropy": Criterion(
        _labels,
        {
            "target": ("indices", "probabilities"),
            "weight": CLASS_WEIGHT,
            "ignore_index": (IGNORED, 1),
            "label_smoothing": (0.0, 0.25, 1.0),
            "dim": (-1, 0),
        },
    ),
    "nll": Criterion(
        _labels, {"weight": CLASS_WEIGHT, "ignore_index": (IGNORED, 1), "dim": (-1, 0)}, before=_log_softmax
    ),
    "causal_lm": Criterion(_causal_labels, {"shift": (True, False), "label_smoothing": (0.0, 0.25)}, sequence=True),
    "bce": Criterion(_probabilities, {"per": PER, "weight": FACTOR}, before=lambda o, _: o.sigmoid()),
    "bce_with_logits": Criterion(_probabilities, {"per": PER, "weight": FACTOR, "pos_weight": FACTOR}),
    "kl_div": Criterion(
        _distribution, {"per": ("sample", "element"), "log_target": (False, True)}, before=_log_softmax
    ),
    "gaussian_nll": Criterion(_variances, {"per": PER, "full": (False, True)}),
    "poisson_nll": Criterion(
        _counts,
        {"per": PER, "full": (False, True), "log_input": (True, False)},
        before=lambda o, options: o if options["log_input"] else F.softplus(o),
    ),
    "soft_margin": Criterion(_signs),
    "hinge_embedding": Criterion(_signs, {"margin": (1.0, 0.25)}, linear=True),
    "margin_ranking": Criterion(_pair_and_signs, {"margin": (0.0, 0.5)}, linear=True),
    "cosine_embedding": Criterion(_pair_and_sign, {"margin": (0.0, 0.5)}),
    "triplet_margin": Criterion(_triplet, {"swap": (False, True), "margin": (1.0, 0.25)}),
    "multi_margin": Criterion(_labels, {"p": (1, 2), "margin": (1.0, 0.25), "weight": FACTOR}),
    "multilabel_margin": Criterion(_label_lists),
    "multilabel_soft_margin": Criterion(_probabilities, {"weight": FACTOR}),
    "ctc": Criterion(
        _alignment,
        {"mean": ("target_length", "sample"), "zero_infinity": (True,)},
        before=_log_softmax,
        sequence=True,
    ),
}


def evaluate(
    name: str, options: dict[str, Any], output: Tensor, targets: tuple[Tensor, ...], batched: bool
) -> Weighted:
    """`gf.losses.<name>` of an output `[..., C]` and the targets drawn for it; options hold their tensors."""
    given = {key: value for key, value in options.items() if key != "target" and value is not None}
    output = CRITERIA[name].before(output, options)
    if given.get("dim") == 0:  # classes first
        first = int(batched)
        output = output.movedim(-1, first)
        targets = tuple(t.movedim(-1, first) if t.dim() == output.dim() else t for t in targets)
    out: Weighted = getattr(losses, name)(output, *targets, batched=batched, **given)
    return out


def tensors(options: dict[str, Any], classes: int, generator: torch.Generator) -> dict[str, Any]:
    """The options with the tensors that strings name. Weights are quarters, so that sums of weights are exact."""
    drawn = {}
    for key, value in options.items():
        if isinstance(value, str) and value.startswith("per class"):
            quarters = torch.randint(1, 12, (classes,), generator=generator).double() / 4
            value = quarters * (torch.arange(classes) != 1) if value.endswith("some 0") else quarters
        drawn[key] = value
    return drawn
