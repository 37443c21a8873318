"""For every rule, by the node type that it is for, the graphs that meet it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradfunc._recurrent import Cell, fast, gru_step

from .graphs import F64, Model

aten = torch.ops.aten
B, T, I, O = 4, 3, 5, 6  # noqa: E741
RULE_GRAPHS: dict[str, dict[str, Model]] = {}
PULL_GRAPHS: dict[str, dict[str, Model]] = {}
_seeds = itertools.count(1)


def drawn(*shape: int, seed: int | None = None) -> Tensor:
    """Normal numbers, others at each call without a seed."""
    seed = next(_seeds) if seed is None else seed
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def scored(out: Tensor, dim: int = 0) -> Tensor:
    """`[B]`: entries count differently."""
    flat = out.movedim(dim, 0).flatten(1)
    return (flat * torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)).sin().sum(1)


def rule(name: str, what: str, params: dict[str, tuple[int, ...]], batch: Any, fn: Callable[..., Tensor]) -> None:
    """`fn(params, *batch)` gives `[B, ...]`, or `[..., B]` if `what` says so."""
    _add(RULE_GRAPHS, name, what, params, batch, fn)


def pull(name: str, what: str, params: dict[str, tuple[int, ...]], batch: Any, fn: Callable[..., Tensor]) -> None:
    """The same."""
    _add(PULL_GRAPHS, name, what, params, batch, fn)


def _add(table, name, what, params, batch, fn):
    dim = -1 if what.endswith("last") else 1 if what.endswith("second") else 0
    made = {key: drawn(*shape) * 0.7 for key, shape in params.items()}
    tensors = tuple(drawn(*t) if isinstance(t, tuple) else t for t in batch)
    assert what not in table.setdefault(name, {})
    table[name][what] = Model(lambda p, *batch: scored(fn(p, *batch), dim), made, tensors)


# --- matrix products ------------------------------------------------------------------------------------------------

rule("MmBackward0", "right", {"w": (I, O)}, [(B, I)], lambda p, x: x @ p["w"])
rule("MmBackward0", "right, time in rows", {"w": (I, O)}, [(B * T, I)], lambda p, x: (x @ p["w"]).view(B, T, O))
rule(
    "MmBackward0", "right, time first", {"w": (I, O)}, [(T * B, I)],
    lambda p, x: (x @ p["w"]).view(T, B, O).transpose(0, 1),
)  # fmt: skip
rule("MmBackward0", "left, last", {"w": (O, I)}, [(I, B)], lambda p, x: p["w"] @ x)
rule(
    "MmBackward0", "rows routed", {"w": (I, O)}, [(B * T, I), torch.randperm(B * T)],
    lambda p, x, i: torch.zeros(B * T, O, dtype=F64).index_add(0, i, x[i] @ p["w"]).view(B, T, O),
)  # fmt: skip
rule(
    "MmBackward0", "uneven rows", {"w": (I, O)}, [(6, I), torch.tensor([0, 3, 1, 3, 3, 1])],
    lambda p, x, i: torch.zeros(B, O, dtype=F64).index_add(0, i, (x @ p["w"]).tanh()),
)  # fmt: skip
for a, b in ((1.0, 1.0), (0.5, -1.5)):
    rule(
        "AddmmBackward0", f"right, {a} {b}", {"b": (O,), "w": (I, O)}, [(B, I)],
        lambda p, x, a=a, b=b: torch.addmm(p["b"], x, p["w"], beta=a, alpha=b),
    )  # fmt: skip
    rule(
        "AddmmBackward0", f"left, {a} {b}, last", {"b": (O, 1), "w": (O, I)}, [(I, B)],
        lambda p, x, a=a, b=b: torch.addmm(p["b"], p["w"], x, beta=a, alpha=b),
    )  # fmt: skip
    rule(
        "BaddbmmBackward0", f"right, {a} {b}", {"b": (1, O), "w": (I, O)}, [(B, T, I)],
        lambda p, x, a=a, b=b: torch.baddbmm(p["b"], x, p["w"].expand(B, I, O), beta=a, alpha=b),
    )  # fmt: skip
    rule(
        "BaddbmmBackward0", f"left, {a} {b}", {"b": (O, 1), "w": (O, I)}, [(B, I, T)],
        lambda p, x, a=a, b=b: torch.baddbmm(p["b"], p["w"].expand(B, O, I), x, beta=a, alpha=b),
    )  # fmt: skip
rule("MvBackward0", "vector", {"w": (I,)}, [(B, I)], lambda p, x: torch.mv(x, p["w"])[:, None])
for what, dim in (("right", 1), ("left", 0)):
    rule(
        "BmmBackward0", f"experts {what}", {"w": (3, I, O) if dim else (3, O, I)}, [(3, B * T, I)],
        lambda p, x, d=dim: (x @ p["w"] if d else (p["w"] @ x.mT).mT).sin().sum(0).view(B, T, O),
    )  # fmt: skip
rule(
    "BmmBackward0", "experts, time first, second", {"w": (3, I, O)}, [(3, T * B, I)],
    lambda p, x: torch.bmm(x, p["w"]).sin().sum(0).view(T, B, O),
)  # fmt: skip
rule(
    "BaddbmmBackward0", "experts, 0.5", {"w": (3, I, O)}, [(3, B * T, O), (3, B * T, I)],
    lambda p, b, x: torch.baddbmm(b, x, p["w"], alpha=0.5).sin().sum(0).view(B, T, O),
)  # fmt: skip
rule(
    "TrilinearBackward0", "time, first", {"w": (O, I, 2), "b": (O,)}, [(B, T, I), (B, T, 2)],
    lambda p, x, y: F.bilinear(x, y, p["w"], p["b"]),
)  # fmt: skip
rule(
    "TrilinearBackward0", "few outputs", {"w": (2, I, 3)}, [(B, T, I), (B, T, 3)],
    lambda p, x, y: F.bilinear(x, y, p["w"]),
)  # fmt: skip
rule(
    "TrilinearBackward0", "time, second", {"w": (O, I, 2)}, [(T, B, I), (T, B, 2)],
    lambda p, x, y: F.bilinear(x, y, p["w"]),
)  # fmt: skip
rule("MvBackward0", "vector, time", {"w": (I,)}, [(B * T, I)], lambda p, x: torch.mv(x, p["w"]).view(B, T))
rule("BmmBackward0", "right", {"w": (I, O)}, [(B, T, I)], lambda p, x: torch.bmm(x, p["w"].expand(B, I, O)))
rule("BmmBackward0", "left", {"w": (O, I)}, [(B, I, T)], lambda p, x: torch.bmm(p["w"].expand(B, O, I), x))
rule("BmmBackward0", "right, second", {"w": (I, O)}, [(T, B, I)], lambda p, x: torch.bmm(x, p["w"].expand(T, I, O)))
rule(
    "BmmBackward0",
    "left, all but one, last",
    {"w": (O, I)},
    [(T, I, B)],
    lambda p, x: torch.bmm(p["w"].expand(T, O, I), x),
)
rule("BmmBackward0", "one matrix, second", {"w": (1, I, O)}, [(1, B, I)], lambda p, x: torch.bmm(x, p["w"]))


def hidden(p: dict[str, Tensor], x: Tensor, dim: int) -> Tensor:
    """The outputs of a GRU by hand, samples in a dimension of x `[T, N, features]`."""
    state = x.new_zeros(x.shape[1], I)
    cell = Cell(drawn(3 * I, I, seed=7), p["w"], None, p.get("b"))
    out = fast(x, None, (state,), cell, gru_step, reverse=False)[0]
    return out.transpose(0, 1) if dim == 1 else out


rule(
    "RecurrentProductBackward", "rows, time first", {"w": (3 * I, I), "b": (3 * I,)}, [(T, B, I)],
    lambda p, x: hidden(p, x, 1),
)  # fmt: skip
rule(
    "RecurrentProductBackward", "two rows a sample", {"w": (3 * I, I)}, [(T, B * 2, I)],
    lambda p, x: hidden(p, x, 1).unflatten(0, (B, 2)),
)  # fmt: skip
rule("RecurrentProductBackward", "one step a sample", {"w": (3 * I, I)}, [(1, B, I)], lambda p, x: hidden(p, x, 1))

# --- lookups --------------------------------------------------------------------------------------------------------

tokens = torch.tensor([[0, 1, 1], [4, 2, 0], [3, 3, 3], [6, 0, 5]])
signed = torch.tensor([[0, -1, 1], [-7, 2, 0], [3, 3, -4], [6, 0, 5]])
rule("EmbeddingBackward0", "plain", {"w": (7, I)}, [tokens], lambda p, i: F.embedding(i, p["w"]))
rule("EmbeddingBackward0", "padding", {"w": (7, I)}, [tokens], lambda p, i: F.embedding(i, p["w"], padding_idx=0))
rule(
    "EmbeddingBackward0", "padding, time first", {"w": (7, I)}, [tokens.T.contiguous()],
    lambda p, i: F.embedding(i, p["w"], padding_idx=3).transpose(0, 1),
)  # fmt: skip
rule("EmbeddingBackward0", "one a sample", {"w": (7, I)}, [tokens[:, 0]], lambda p, i: F.embedding(i, p["w"]))
rule("IndexBackward0", "tokens", {"w": (7, I)}, [tokens], lambda p, i: p["w"][i])
rule("IndexBackward0", "from the end", {"w": (7, I)}, [signed], lambda p, i: p["w"][i])
rule("IndexBackward0", "of a vector", {"w": (7,)}, [tokens], lambda p, i: p["w"][i])
rule("IndexBackward0", "of matrices", {"w": (7, 2, 3)}, [tokens], lambda p, i: p["w"][i])
rule("IndexSelectBackward0", "a row a sample", {"w": (7, I)}, [tokens[:, 1]], lambda p, i: p["w"].index_select(0, i))
rule(
    "IndexSelectBackward0", "time first", {"w": (7, I)}, [tokens.T.flatten()],
    lambda p, i: p["w"].index_select(0, i).view(T, B, I).transpose(0, 1),
)  # fmt: skip

for mode in ("sum", "mean", "max"):
    rule(
        "EmbeddingBagBackward0", f"{mode}, bags of one size", {"w": (7, I)}, [tokens],
        lambda p, i, m=mode: F.embedding_bag(i, p["w"], mode=m),
    )  # fmt: skip
    rule(
        "EmbeddingBagBackward0", f"{mode}, padding, bags of two", {"w": (7, I)}, [tokens[:, :2].repeat(2, 1)],
        lambda p, i, m=mode: F.embedding_bag(i, p["w"], mode=m, padding_idx=int(tokens[0, 0])).view(2, B, I).sum(0),
    )  # fmt: skip
    rule(
        "EmbeddingBagBackward0", f"{mode}, bags of any size, one empty", {"w": (7, I)}, [tokens],
        lambda p, i, m=mode: F.embedding_bag(i.flatten()[:10], p["w"], torch.tensor([0, 1, 5, 5]), mode=m),
    )  # fmt: skip
rule(
    "EmbeddingBagBackward0", "mean, first bags empty, then one of any size", {"w": (7, I)}, [tokens],
    lambda p, i: F.embedding_bag(i.flatten()[:10], p["w"], torch.tensor([0, 0, 0, 0])),
)  # fmt: skip
rule(
    "EmbeddingBagBackward0", "weights of their own", {"w": (7, I)}, [tokens, drawn(B, T)],
    lambda p, i, s: F.embedding_bag(i, p["w"], mode="sum", per_sample_weights=s),
)  # fmt: skip

# --- convolutions ---------------------------------------------------------------------------------------------------

for what, channels_out, kernel, options in (
    ("plain", 6, (3,), {}),
    ("stride, padding and dilation", 6, (3,), {"stride": 2, "padding": 3, "dilation": 2}),
    ("positions left over", 6, (2,), {"stride": 3}),
    ("groups", 6, (3,), {"groups": 2, "padding": 1}),
    ("depthwise", 4, (3,), {"groups": 4}),
    ("one position", 6, (9,), {}),
    ("no padding, in words", 5, (3, 2), {"padding": "valid"}),
    ("two dimensions", 5, (3, 2), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
    ("three dimensions", 3, (2, 1, 2), {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
):
    rank = len(kernel)
    sizes = {1: (9,), 2: (5, 6), 3: (3, 4, 3)}[rank]
    weight = (channels_out, 4 // options.get("groups", 1), *kernel)
    rule(
        "ConvolutionBackward0", what, {"w": weight, "b": (channels_out,)}, [(B, 4, *sizes)],
        lambda p, x, o=options: getattr(F, f"conv{x.dim() - 2}d")(x, p["w"], p["b"], **o),
    )  # fmt: skip
for what, weight, sizes, options in (
    ("transposed", (4, 6, 3), (7,), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("transposed, padding beyond the kernel", (4, 6, 3), (7,), {"padding": 3}),
    ("transposed, groups", (4, 3, 3, 2), (3, 4), {"stride": 2, "groups": 2, "dilation": (1, 2)}),
    ("transposed, one position", (4, 3, 5), (1,), {}),
    ("transposed, more left out than a stride", (4, 6, 3), (7,), {"dilation": 3, "output_padding": 2}),
):
    channels_out = weight[1] * options.get("groups", 1)
    rule(
        "ConvolutionBackward0", what, {"w": weight, "b": (channels_out,)}, [(B, 4, *sizes)],
        lambda p, x, o=options: getattr(F, f"conv_transpose{x.dim() - 2}d")(x, p["w"], p["b"], **o),
    )  # fmt: skip
rule(
    "ConvolutionBackward0", "images of a sample", {"w": (6, 4, 3), "b": (6,)}, [(B * T, 4, 7)],
    lambda p, x: F.conv1d(x, p["w"], p["b"]).view(B, T, -1),
)  # fmt: skip
rule(
    "ConvolutionBackward0", "images of a sample, one position, second", {"w": (6, 4, 7)}, [(T * B, 4, 7)],
    lambda p, x: F.conv1d(x, p["w"]).view(T, B, -1),
)  # fmt: skip

# --- norms ----------------------------------------------------------------------------------------------------------

affine = {"w": (I,), "b": (I,)}
rule("NativeLayerNormBackward0", "one", affine, [(B, I)], lambda p, x: F.layer_norm(x, (I,), p["w"], p["b"]))
rule("NativeLayerNormBackward0", "time", affine, [(B, T, I)], lambda p, x: F.layer_norm(x, (I,), p["w"], p["b"]))
rule(
    "NativeLayerNormBackward0", "time first, second", affine, [(T, B, I)],
    lambda p, x: F.layer_norm(x, (I,), p["w"], p["b"]),
)  # fmt: skip
rule(
    "NativeLayerNormBackward0", "two dimensions", {"w": (T, I), "b": (T, I)}, [(B, T, I)],
    lambda p, x: F.layer_norm(x, (T, I), p["w"], p["b"]),
)  # fmt: skip
channels = {"w": (O,), "b": (O,)}
for g in (1, 2, O):
    rule(
        "NativeGroupNormBackward0", f"{g} groups", channels, [(B, O, T)],
        lambda p, x, g=g: F.group_norm(x, g, p["w"], p["b"]),
    )  # fmt: skip
for what, shape in (("channels", (B, O)), ("images", (B, O, T, 2))):
    rule(
        "NativeBatchNormBackward0", f"running statistics, {what}", channels, [shape, drawn(O), drawn(O).square() + 0.1],
        lambda p, x, m, v: F.batch_norm(x, m, v, p["w"], p["b"]),
    )  # fmt: skip
rule(
    "NativeGroupNormBackward0", "nothing but channels", channels, [(B, O)],
    lambda p, x: F.group_norm(x, 2, p["w"], p["b"]),
)  # fmt: skip

# --- elementwise ----------------------------------------------------------------------------------------------------

SHAPES = {"features": (I,), "time": (T, I), "column": (T, 1), "number": (), "row": (1, T, I), "all": (B, T, I)}
BINARY: dict[str, list[Callable[..., Tensor]]] = {
    "AddBackward0": [lambda w, x: torch.add(w, x, alpha=-2.5), lambda w, x: torch.add(x, w, alpha=-2.5)],
    "SubBackward0": [lambda w, x: torch.sub(w, x, alpha=2.5), lambda w, x: torch.sub(x, w, alpha=2.5)],
    "MulBackward0": [lambda w, x: w * x, lambda w, x: x * w],
    "RsubBackward0": [lambda w, x: torch.rsub(w, x, alpha=2), lambda w, x: torch.rsub(x, w, alpha=2)],
    "DivBackward0": [lambda w, x: w / (x.square() + 1), lambda w, x: x / (w.square() + 1), lambda w, x: x / w.cosh()],
    "WhereBackward0": [lambda w, x: torch.where(x > 0, w, x), lambda w, x: torch.where(x > 0, x, w)],
    "PowBackward1": [lambda w, x: (x.square() + 0.5) ** w, lambda w, x: w.square() ** (x.square() + 1.5)],
    "LerpBackward0": [lambda w, x: torch.lerp(w, x, 0.3), lambda w, x: torch.lerp(x, w, 0.3)],
    "LerpBackward1": [lambda w, x: torch.lerp(x, x.sin(), w), lambda w, x: torch.lerp(w, x, x.cos())],
    "AddcmulBackward0": [
        lambda w, x: torch.addcmul(w, x, x, value=0.5),
        lambda w, x: torch.addcmul(x, w, x, value=0.5),
        lambda w, x: torch.addcmul(x, x, w, value=0.5),
    ],
    "AddcdivBackward0": [
        lambda w, x: torch.addcdiv(w, x, x.cosh(), value=0.5),
        lambda w, x: torch.addcdiv(x, w, x.cosh(), value=0.5),
        lambda w, x: torch.addcdiv(x, x, w.cosh(), value=0.5),
    ],
    "MaximumBackward0": [lambda w, x: torch.maximum(w, x), lambda w, x: torch.maximum(x, w)],
    "MinimumBackward0": [lambda w, x: torch.minimum(w, x), lambda w, x: torch.minimum(x, w)],
    "FmaxBackward0": [lambda w, x: torch.fmax(w, x), lambda w, x: torch.fmax(x, w)],
    "FminBackward0": [lambda w, x: torch.fmin(w, x), lambda w, x: torch.fmin(x, w)],
    "ExpandBackward0": [lambda w, x: w.expand(x.shape) * x],
}
# Here the parameter is computed with before it is used, which at a row a sample shares nothing.
NOT_ALL = {
    ("ExpandBackward0", 0),
    ("DivBackward0", 1),
    ("DivBackward0", 2),
    ("PowBackward1", 1),
    ("AddcdivBackward0", 2),
}
for name, functions in BINARY.items():
    for k, fn in enumerate(functions):
        for what, shape in SHAPES.items():
            if what != "all" or (name, k) not in NOT_ALL:
                rule(name, f"{what} {k}", {"w": shape}, [(B, T, I)], lambda p, x, fn=fn: fn(p["w"], x))
        rule(name, f"time first {k}, second", {"w": (T, 1, I)}, [(T, B, I)], lambda p, x, fn=fn: fn(p["w"], x))
rule(
    "AddBackward0", "merged rows", {"w": (I,)}, [(B * T, I)], lambda p, x: (x + p["w"]).view(B, T, I)
)  # fmt: skip
rule(
    "AddBackward0", "a row each", {"w": (B * T, I)}, [(B * T, I)], lambda p, x: (x + p["w"]).view(B, T, I)
)  # fmt: skip
for what, shape, repeats, batch in (
    ("instance norm's, merged", (I,), (B,), (B * I,)),
    ("time in a sample, merged", (I,), (B * T,), (B * T * I,)),
    ("features", (I,), (B, 2), (B, 2 * I)),
    ("a row", (1, I), (B, 2), (B, 2 * I)),
    ("two dimensions", (T, I), (B, 2, 3), (B, 2 * T, 3 * I)),
    ("time first, second", (I,), (T, B, 1), (T, B, I)),
    ("features first, last", (I, 1), (2, B), (2 * I, B)),
):
    rule(
        "RepeatBackward0", what, {"w": shape}, [batch],
        lambda p, x, r=repeats: (lambda out: out.view(B, -1) if out.dim() == 1 else out)(p["w"].repeat(r) * x),
    )  # fmt: skip
# of a value and a number: a row of the parameter a sample
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "AddBackward1": lambda w: aten.add.Scalar(w, 2.0),
    "SubBackward1": lambda w: aten.sub.Scalar(w, 2.0),
    "MulBackward1": lambda w: aten.mul.Scalar(w, 2.0),
    "RsubBackward1": lambda w: aten.rsub.Scalar(w, 2.0),
    "DivBackward1": lambda w: aten.div.Scalar(w, 2.0),
    "PowBackward0": lambda w: w**3,
}
for name, number in UNARY.items():
    rule(name, "rows", {"w": (B, I)}, [(B, I)], lambda p, x, fn=number: fn(p["w"]) * x)
    rule(name, "columns, last", {"w": (I, B)}, [(I, B)], lambda p, x, fn=number: fn(p["w"]) * x)
rule("PreluKernelBackward0", "channels", {"w": (O,)}, [(B, O, T)], lambda p, x: F.prelu(x, p["w"]))
rule("PreluKernelBackward0", "one", {"w": (1,)}, [(B, T)], lambda p, x: F.prelu(x, p["w"]))

# --- carried back from derived values -------------------------------------------------------------------------------


def linear(w: Tensor, x: Tensor) -> Tensor:
    """Uses w as a matrix: its factor is an `Outer`."""
    return F.linear(x, w)


def gated(w: Tensor, x: Tensor) -> Tensor:
    """Uses w elementwise: `Dense`."""
    return w * x[:, : w.numel()].reshape(-1, *w.shape)


def looked_up(w: Tensor, x: Tensor) -> Tensor:
    """Uses rows of w: `Rows`."""
    return F.embedding(x[:, :3].abs().mul(7).long() % len(w), w)


WIDE = 120


def derived(
    name: str, what: str, shape: tuple[int, ...], fn: Callable[[Tensor], Tensor], uses: str = "outer dense"
) -> None:
    """`fn(w)` used in these ways."""
    for use in uses.split():
        user = {"outer": linear, "dense": gated, "rows": looked_up}[use]

        def out(p: Any, x: Tensor, fn: Any = fn, user: Any = user) -> Tensor:
            value = fn(p["w"])
            return user(value, x[:, : value.shape[-1]] if user is linear else x)

        pull(name, f"{what}, {use}", {"w": shape}, [(B, WIDE)], out)


every = "outer dense rows"
derived("ViewBackward0", "two to two", (2, O, I), lambda w: w.view(2 * O, I))
derived("ViewBackward0", "from three", (O, 2, 3), lambda w: w.view(O, 6), every)
derived("ViewBackward0", "vector", (O * I,), lambda w: w.view(O, I))
derived("UnsafeViewBackward0", "joined", (2, O, I), lambda w: aten._unsafe_view(w, [2 * O, I]))
derived("ReshapeAliasBackward0", "joined", (2, O, I), lambda w: aten._reshape_alias(w, [2 * O, I], [I, 1]))
derived("UnsqueezeBackward0", "dense", (O,), lambda w: w.unsqueeze(1), "dense")
derived("UnsqueezeBackward0", "a row", (I,), lambda w: w.unsqueeze(0), "dense outer")
derived("SqueezeBackward0", "all", (1, O, 1, I), lambda w: w.squeeze(), every)
derived("SqueezeBackward1", "one", (O, 1, I), lambda w: w.squeeze(1), every)
derived("SqueezeBackward2", "some", (O, 1, 1, I), lambda w: w.squeeze((1, 2)), every)
derived("AliasBackward0", "alias", (O, I), lambda w: aten.alias(w), every)
derived("ToCopyBackward0", "copied", (O, I), lambda w: w.to(F64, copy=True), every)
derived("CloneBackward0", "cloned", (O, I), lambda w: w.clone(), every)
derived("RepeatBackward0", "a matrix", (O, I), lambda w: w.repeat(2, 1), "dense outer")
derived("RepeatBackward0", "a vector", (I,), lambda w: w.repeat(O, 2), "dense")
derived("ExpandBackward0", "leading", (1, O, I), lambda w: w.expand(3, O, I), "dense")
derived("ExpandBackward0", "as it is", (O, I), lambda w: w.expand(1, O, I)[0].expand(O, I), "dense outer")
derived("ExpandBackward0", "a column", (O, 1), lambda w: w.expand(O, I), "dense outer")
derived("TBackward0", "matrix", (I, O), lambda w: w.t())
derived("TBackward0", "of a square", (O, O), lambda w: w.t(), "dense")
derived("TransposeBackward0", "matrix", (I, O), lambda w: w.transpose(-1, 0))
derived("TransposeBackward0", "of three", (I, 2, O), lambda w: w.transpose(1, 2), "dense")
derived("TransposeBackward0", "with ones", (O, 1, I), lambda w: w.transpose(0, 1).reshape(O, I), "dense outer")
derived("PermuteBackward0", "matrix", (I, O), lambda w: w.permute(-1, 0))
derived("PermuteBackward0", "of three", (2, O, 3), lambda w: w.permute(2, 0, 1), "dense")
derived("PermuteBackward0", "of a cube", (3, 3, 3), lambda w: w.permute(2, 0, 1), "dense")
derived("PermuteBackward0", "with ones", (1, I, O), lambda w: w.permute(2, 0, 1).view(O, I), "dense outer")
scale, rows_, columns = drawn(O, I), drawn(O, 1), drawn(I)
derived("MulBackward0", "number", (O, I), lambda w: w * torch.tensor(1.5, dtype=F64), every)
derived("MulBackward0", "by row", (O, I), lambda w: w * rows_)
derived("MulBackward0", "by column", (O, I), lambda w: columns * w)
derived("MulBackward0", "by entry", (O, I), lambda w: scale * w)
derived("MulBackward0", "broadcast", (1, I), lambda w: w * rows_)
derived("MulBackward1", "number", (O, I), lambda w: aten.mul.Scalar(w, -1.5), every)
derived("AddBackward0", "twice", (O, I), lambda w: torch.add(w, w, alpha=-2.5), every)
derived("AddBackward0", "constant", (O, I), lambda w: torch.add(scale, w, alpha=-2.5))
derived("AddBackward0", "broadcast", (1, I), lambda w: torch.add(scale, w, alpha=-2.5), "dense")
derived("SubBackward0", "transposed", (O, O), lambda w: torch.sub(w, w.t(), alpha=2.5))
derived("SubBackward0", "constant", (O, I), lambda w: scale - w, every)
derived("NegBackward0", "negative", (O, I), lambda w: -w, every)
derived("MmBackward0", "constant right", (O, 2), lambda w: w @ scale[:2], "outer")
derived("MmBackward0", "constant left", (2, I), lambda w: scale[:, :2] @ w, "outer")
pull(
    "MmBackward0", "low rank", {"a": (O, 2), "b": (2, I)}, [(B, I)], lambda p, x: F.linear(x, p["a"] @ p["b"])
)  # fmt: skip
pull(
    "AddmmBackward0", "low rank, alpha", {"a": (O, 2), "b": (2, I)}, [(B, I)],
    lambda p, x: F.linear(x, torch.addmm(scale, p["a"], p["b"], beta=0.5, alpha=-1.5)),
)  # fmt: skip
for d in (0, 1, -1):
    pull(
        "CatBackward0", f"parameters, {d}", {"a": (O, I), "b": (O, I), "c": (O, I)}, [(B, WIDE)],
        lambda p, x, d=d: F.linear(x[:, : I * (1 if d == 0 else 3)], torch.cat([p["a"], p["b"], p["c"]], d)),
    )  # fmt: skip
    derived("CatBackward0", f"with a constant, {d}", (O, I), lambda w, d=d: torch.cat([scale, w], d))
    derived("SliceBackward0", f"inside, {d}", (O + 3, I + 3), lambda w, d=d: aten.slice(w, d, 1, -1))
    derived("SliceBackward0", f"end, {d}", (O + 3, I + 3), lambda w, d=d: aten.slice(w, d, -3))
    derived("SplitBackward0", f"middle, {d}", (O, O), lambda w, d=d: w.split(2, d)[1])
    derived("SplitBackward0", f"two, {d}", (O, O), lambda w, d=d: w.split(3, d)[1] * 2 - w.split(3, d)[0])
    derived("SplitWithSizesBackward0", f"middle, {d}", (O, O), lambda w, d=d: w.split([1, 3, 2], d)[1])
    derived("SplitWithSizesBackward0", f"last, {d}", (O, O), lambda w, d=d: w.split([1, 3, 2], d)[2])
derived("SelectBackward0", "a matrix of a stack", (3, O, I), lambda w: w[1])
derived("SelectBackward0", "from the end", (3, O, I), lambda w: w[-1])
derived("SelectBackward0", "inside", (O, 3, I), lambda w: w[:, 1], "dense")
pull(
    "SelectBackward0", "two of a stack", {"w": (3, O, I)}, [(B, I)],
    lambda p, x: F.linear(x, p["w"][2]) + F.linear(x.sin(), p["w"][0]),
)  # fmt: skip
positions = torch.tensor([3, 0, 3, 1])
derived("EmbeddingBackward0", "positions", (O, I), lambda w: F.embedding(positions, w), "dense")
derived("EmbeddingBackward0", "padded", (O, I), lambda w: F.embedding(positions, w, padding_idx=3), "dense")
derived("IndexBackward0", "positions", (O, I), lambda w: w[positions], "dense")
derived("IndexBackward0", "from the end", (O, I), lambda w: w[positions - 2], "dense")
