"""Models and criteria as users write them, for the audit's tests. None of them is an example of the library's own.

`MODELS[name](n)` and `CRITERIA[name](n)` make `(model, criterion, batch)` from torch's global generator, in float32.
All of them are healthy: dropout is 0, batch norm in eval mode, one loss a sample with weight 1. The shapes follow n
only in their first dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradfunc as gf

Problem = tuple[nn.Module, Any, Any]

WIDTH, CLASSES, TIME, VOCABULARY = 5, 3, 4, 11


def x(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *(shape or (WIDTH,)))


def y(n: int, *shape: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (n, *shape))


def tokens(n: int, time: int = TIME) -> Tensor:
    return torch.randint(1, VOCABULARY, (n, time))


def mlp(*middle: nn.Module, outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 7), *middle, nn.Tanh(), nn.Linear(7, outputs))


def cnn(*norm: nn.Module, groups: int = 1) -> nn.Sequential:
    """Images `[n, 2, 6, 6]`; `norm` sees 4 channels."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=groups),
        *norm,
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def settled(model: nn.Module, *batches: Tensor) -> nn.Module:
    """Batch norm that has seen data, in eval mode."""
    with torch.no_grad():
        for batch in batches:
            model.train()(batch)
    return model.eval()


class Pooled(nn.Module):
    """A sequence layer, the mean over time, a head. Takes `(out, state)` of recurrent layers as well."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        out = self.body(sequence)
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


class CausalAttention(nn.Module):
    """Written by hand: a mask buffer, an einsum, a softmax."""

    def __init__(self, width: int = 8, heads: int = 2, time: int = TIME) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Parameter(torch.randn(time, width) / 3)
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, CLASSES), heads
        self.register_buffer("mask", torch.ones(time, time, dtype=torch.bool).tril())

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.place[: ids.shape[1]]
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        t = ids.shape[1]
        scores = scores.masked_fill(~self.mask[:t, :t], float("-inf"))
        h = h + torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        return self.out(h[:, -1])


class Tied(nn.Module):
    """Next-token logits `[n, V, T]` with the embedding as the head."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(VOCABULARY, width), nn.Linear(width, width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids)))).transpose(1, 2)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(VOCABULARY, 6, mode="mean"), nn.Linear(6, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))


class Residual(nn.Module):
    """Layer scale, skips, one block used twice."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(WIDTH, 2 * WIDTH if gated else WIDTH) for _ in range(2)])
        self.gain = nn.Parameter(torch.tensor(0.3))
        self.norm, self.head, self.gated = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES), gated

    def forward(self, h: Tensor) -> Tensor:
        for layer in (*self.inner, self.inner[0]):
            update = layer(self.norm(h))
            h = h + self.gain * (F.glu(update) if self.gated else F.silu(update))
        return self.head(h)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.head = nn.Conv2d(1, 3, 3), nn.Bilinear(WIDTH, 3, 4), nn.Linear(4, CLASSES)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(table, self.image(image).mean((2, 3)))))


class Masked(nn.Module):
    """Keyword inputs, as tokenizers give them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 6), nn.Linear(6, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        keep = attention_mask.unsqueeze(-1).to(self.head.weight.dtype)
        return self.head((self.embed(input_ids) * keep).sum(1) / keep.sum(1))


class Tempered(nn.Module):
    """With an input without samples: a temperature, or None."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, h: Tensor, temperature: Tensor | None = None) -> Tensor:
        return self.body(h) if temperature is None else self.body(h) / temperature


class Checkpointed(nn.Module):
    """Activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, 7)
        self.body = nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, CLASSES), nn.Tanh())

    def forward(self, h: Tensor) -> Tensor:
        return checkpoint(self.body, self.stem(h), use_reentrant=False)


class PartlyFrozen(nn.Module):
    """A frozen stem, a parameter that nothing uses, and a key bias whose gradient is truly 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attend = nn.Linear(WIDTH, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.head, self.unused = nn.Linear(6, CLASSES), nn.Parameter(torch.ones(3))
        self.stem.requires_grad_(False)

    def forward(self, sequence: Tensor) -> Tensor:
        h = self.stem(sequence)
        return self.head(self.attend(h, h, h)[0].mean(1))


def encoder(norm_first: bool = False, dropout: float = 0.0, batch_first: bool = True, layers: int = 2) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout, norm_first=norm_first, batch_first=batch_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def sequence_model(body: nn.Module, width: int = 8) -> Callable[[int], Problem]:
    return lambda n: (Pooled(body, width), nn.CrossEntropyLoss(), (x(n, TIME, 8), y(n)))


def image_model(*norm: nn.Module, groups: int = 1, evaluate: bool = False) -> Callable[[int], Problem]:
    def make(n: int) -> Problem:
        model = cnn(*norm, groups=groups)
        model = settled(model, x(8, 2, 6, 6) * 2 + 1) if evaluate else model
        return model, nn.CrossEntropyLoss(), (x(n, 2, 6, 6), y(n))

    return make


def depthwise(n: int) -> Problem:
    body = [nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4, dilation=1), nn.Conv2d(4, 5, 1), nn.Hardswish()]
    model = nn.Sequential(*body, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(5, CLASSES))
    return model, nn.CrossEntropyLoss(), (x(n, 2, 6, 6), y(n))


def batch_norm_on_vectors(n: int) -> Problem:
    return settled(mlp(nn.BatchNorm1d(7)), x(9) - 2), nn.CrossEntropyLoss(), (x(n), y(n))


def one_dimensional(n: int) -> Problem:
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ELU(), nn.ConvTranspose1d(4, 3, 2, stride=2))
    model = nn.Sequential(model, nn.MaxPool1d(2), nn.Flatten(), nn.Linear(18, CLASSES))
    return model, nn.CrossEntropyLoss(), (x(n, 2, 6), y(n))


def frozen_statistics(n: int) -> Problem:
    """Fine tuning: the model in train mode, its batch norm in eval mode."""
    model = settled(cnn(nn.BatchNorm2d(4)), x(8, 2, 6, 6)).train()
    model[1].eval()
    return model, nn.CrossEntropyLoss(), (x(n, 2, 6, 6), y(n))


def time_first(n: int) -> Any:
    """Recurrent, batch in dimension 1 in and out of the body, given by `in_dims`."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.GRU(8, 5), nn.Linear(5, CLASSES)

        def forward(self, sequence: Tensor) -> Tensor:
            return self.head(self.body(sequence)[0][-1])

    return gf.stateless(Last(), in_dims=1), nn.CrossEntropyLoss(), (torch.randn(TIME, n, 8), y(n))


def language_model(n: int) -> Problem:
    """The mean over tokens taken inside a criterion that returns one loss a sequence."""
    return (
        Tied(),
        lambda out, target: F.cross_entropy(out, target, reduction="none").mean(1),
        (tokens(n), tokens(n)),
    )


def masked_tokens(n: int) -> Problem:
    mask = torch.ones(n, TIME, dtype=torch.long)
    mask[::2, 2:] = 0
    return Masked(), nn.CrossEntropyLoss(), {"input_ids": tokens(n), "attention_mask": mask, "target": y(n)}


MODELS: dict[str, Callable[[int], Any]] = {
    "linear": lambda n: (nn.Linear(WIDTH, CLASSES), nn.CrossEntropyLoss(), (x(n), y(n))),
    "mlp": lambda n: (mlp(), nn.CrossEntropyLoss(), (x(n), y(n))),
    "deep mlp": lambda n: (
        mlp(*[m for _ in range(4) for m in (nn.ReLU(), nn.Linear(7, 7, bias=False))]),
        nn.CrossEntropyLoss(),
        (x(n), y(n)),
    ),
    "layer norm": lambda n: (mlp(nn.LayerNorm(7)), nn.CrossEntropyLoss(), (x(n), y(n))),
    "rms norm": lambda n: (mlp(nn.RMSNorm(7)), nn.CrossEntropyLoss(), (x(n), y(n))),
    "batch norm on vectors, eval": batch_norm_on_vectors,
    "gradfunc's perceptron": lambda n: (gf.models.mlp([WIDTH, 6, CLASSES]), nn.CrossEntropyLoss(), (x(n), y(n))),
    "cnn": image_model(),
    "cnn with group norm": image_model(nn.GroupNorm(2, 4)),
    "cnn with instance norm": image_model(nn.InstanceNorm2d(4, affine=True)),
    "cnn with batch norm, eval": image_model(nn.BatchNorm2d(4), evaluate=True),
    "cnn with frozen statistics": frozen_statistics,
    "cnn with dropout, eval": image_model(nn.Dropout2d(0.5), evaluate=True),
    "grouped convolution": image_model(groups=2),
    "depthwise convolution": depthwise,
    "one-dimensional convolution": one_dimensional,
    "transformer, post-norm": lambda n: sequence_model(encoder())(n),
    "transformer, pre-norm": lambda n: sequence_model(encoder(norm_first=True))(n),
    "transformer, eval": lambda n: (
        Pooled(encoder(dropout=0.3), 8).eval(),
        nn.CrossEntropyLoss(),
        (x(n, TIME, 8), y(n)),
    ),
    "causal attention": lambda n: (CausalAttention(), nn.CrossEntropyLoss(), (tokens(n), y(n))),
    "frozen stem and attention": lambda n: (PartlyFrozen(), nn.CrossEntropyLoss(), (x(n, TIME, WIDTH), y(n))),
    "tied embedding": language_model,
    "embedding bag": lambda n: (Bag(), nn.CrossEntropyLoss(), (tokens(n), y(n))),
    "lstm": lambda n: sequence_model(nn.LSTM(8, 6, 2, batch_first=True), 6)(n),
    "gru, both ways": lambda n: sequence_model(nn.GRU(8, 3, bidirectional=True, batch_first=True), 6)(n),
    "rnn": lambda n: sequence_model(nn.RNN(8, 6, nonlinearity="relu", batch_first=True), 6)(n),
    "gru, time first": time_first,
    "residual": lambda n: (Residual(), nn.CrossEntropyLoss(), (x(n), y(n))),
    "gated": lambda n: (Residual(gated=True), nn.CrossEntropyLoss(), (x(n), y(n))),
    "two inputs": lambda n: (TwoInputs(), nn.CrossEntropyLoss(), (x(n, 1, 5, 5), x(n), y(n))),
    "mapping": masked_tokens,
    "a number that all samples share": lambda n: (Tempered(), nn.CrossEntropyLoss(), (x(n), torch.tensor(0.5), y(n))),
    "nothing for an input": lambda n: (Tempered(), nn.CrossEntropyLoss(), (x(n), None, y(n))),
    "activation checkpointing": lambda n: (Checkpointed(), nn.CrossEntropyLoss(), (x(n), y(n))),
    "weight norm": lambda n: (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 6)), nn.Mish(), nn.Linear(6, CLASSES)),
        nn.CrossEntropyLoss(),
        (x(n), y(n)),
    ),
}


class Focal(nn.Module):
    """A criterion of one's own with the usual attribute."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(output, target, reduction="none")
        each = (1 - torch.exp(-each)) ** 2 * each
        return {"none": lambda: each, "sum": each.sum, "mean": each.mean}[self.reduction]()


def squared(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    each = (output - target).square().sum(1)
    return each if reduction == "none" else getattr(each, reduction)()


def _classes(criterion: Any) -> Callable[[int], Any]:
    return lambda n: (mlp(), criterion, (x(n), y(n)))


def _numbers(criterion: Any, target: Callable[[int], Any] = lambda n: x(n, 1)) -> Callable[[int], Any]:
    return lambda n: (mlp(outputs=1), criterion, (x(n), target(n)))


def _whole(kind: str) -> Callable[[int], Any]:
    def criterion(model: Any, batch: Any) -> Any:
        each = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        return {"scalar": each.mean(), "rows": each, "weighted": gf.Weighted(each, torch.ones_like(each))}[kind]

    return lambda n: (mlp(), gf.whole(criterion), {"x": x(n), "y": y(n)})


def _log_softmax(criterion: Any) -> Callable[[int], Any]:
    return lambda n: (nn.Sequential(mlp(), nn.LogSoftmax(-1)), criterion, (x(n), y(n)))


def _signs(n: int) -> Tensor:
    return torch.randint(2, (n,)) * 2.0 - 1


CRITERIA: dict[str, Callable[[int], Any]] = {
    "cross entropy": _classes(nn.CrossEntropyLoss()),
    "cross entropy, sum": _classes(nn.CrossEntropyLoss(reduction="sum")),
    "label smoothing": _classes(nn.CrossEntropyLoss(label_smoothing=0.1)),
    "class weights of 1": _classes(nn.CrossEntropyLoss(weight=torch.ones(CLASSES))),
    "ignore_index that is not there": _classes(nn.CrossEntropyLoss(ignore_index=CLASSES + 1)),
    "probabilities": lambda n: (mlp(), nn.CrossEntropyLoss(), (x(n), x(n, CLASSES).softmax(-1))),
    # torch divides by n here, whatever the weights
    "probabilities and class weights": lambda n: (
        mlp(),
        nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 4.0])),
        (x(n), x(n, CLASSES).softmax(-1)),
    ),
    "functional": _classes(F.cross_entropy),
    "partial": _classes(functools.partial(F.cross_entropy, label_smoothing=0.2)),
    "nll": _log_softmax(nn.NLLLoss()),
    "nll functional": _log_softmax(F.nll_loss),
    "multi margin": _classes(nn.MultiMarginLoss()),
    "multilabel": lambda n: (mlp(), nn.MultiLabelSoftMarginLoss(), (x(n), torch.rand(n, CLASSES).round())),
    "mse of one output": _numbers(nn.MSELoss()),
    "mse of a vector of n": lambda n: (
        nn.Sequential(mlp(outputs=1), nn.Flatten(0)),
        nn.MSELoss(),
        (x(n), x(n, 1)[:, 0]),
    ),
    "l1": _numbers(nn.L1Loss()),
    "huber": _numbers(nn.HuberLoss(delta=0.3)),
    "smooth l1 functional": _numbers(F.smooth_l1_loss),
    "bce": _numbers(nn.BCEWithLogitsLoss(), lambda n: torch.rand(n, 1)),
    "bce with pos_weight": _numbers(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])), lambda n: torch.rand(n, 1)),
    "poisson": _numbers(nn.PoissonNLLLoss(), lambda n: torch.rand(n, 1) * 5),
    "gaussian, variance given": _numbers(nn.GaussianNLLLoss(), lambda n: (x(n, 1), torch.rand(n, 1) + 0.5)),
    "soft margin": _numbers(nn.SoftMarginLoss(), lambda n: _signs(n)[:, None]),
    "triplet": lambda n: (mlp(), nn.TripletMarginLoss(), (x(n), (x(n, CLASSES), x(n, CLASSES)))),
    "cosine embedding": lambda n: (mlp(), nn.CosineEmbeddingLoss(), (x(n), (x(n, CLASSES), torch.ones(n)))),
    "focal": _classes(Focal()),
    "a function with `reduction`": lambda n: (mlp(), squared, (x(n), x(n, CLASSES))),
    "a function that returns rows": _classes(lambda out, target: F.cross_entropy(out, target, reduction="none")),
    "gf.losses.cross_entropy": _classes(gf.losses.cross_entropy),
    "gf.losses.mse": _numbers(gf.losses.mse),
    "whole, scalar": _whole("scalar"),
    "whole, rows": _whole("rows"),
    "whole, weighted": _whole("weighted"),
}
