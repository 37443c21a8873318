"""JAX and optax on perceptrons, the one kind of model that is translated here."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.dlpack import from_dlpack

from ... import losses
from .._contender import Call, Contender, Library, Refused
from .._workload import Case

JAX = Library(("jax", "optax"), ("jax", "jaxlib", "optax"), "pip install 'jax>=0.10' 'optax>=0.2', or gradfunc[bench]")


def _jitted(case: Case, quantity: str) -> Call:
    """`vmap(grad)` and what follows in one compiled function; tensors cross by dlpack, which copies nothing."""
    import jax
    import jax.numpy as jnp
    import optax

    layers = _layers(case)

    def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
        for name, layer in layers:
            if isinstance(layer, nn.Linear):
                x = params[f"{name}.weight"] @ x
                x = x if layer.bias is None else x + params[f"{name}.bias"]
            else:
                x = jax.nn.relu(x) if isinstance(layer, nn.ReLU) else jnp.tanh(x)
        return -jax.nn.log_softmax(x)[y]

    def answer(params: dict[str, Any], x: Any, y: Any) -> Any:
        rows = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, x, y)
        if quantity == "materialise":
            return rows
        if quantity == "norms":
            return jax.vmap(optax.tree.norm)(rows)
        if quantity == "gram":
            return sum(row.reshape(len(row), -1) @ row.reshape(len(row), -1).T for row in rows.values())
        return optax.per_example_global_norm_clip(rows, case.max_norm)[0]

    with jax.enable_x64(case.dtype == torch.float64):
        params = {name: jnp.asarray(value.detach().numpy()) for name, value in case.model.params.items()}
        x, y = (jnp.asarray(tensor.numpy()) for tensor in case.batch)
    compiled = functools.partial(jax.jit(answer), params, x, y)

    def call() -> Any:
        with jax.enable_x64(case.dtype == torch.float64):
            found = jax.block_until_ready(compiled())
        if isinstance(found, dict):
            return {name: from_dlpack(value) for name, value in found.items()}
        return from_dlpack(found)

    return call


def _layers(case: Case) -> list[tuple[str, nn.Module]]:
    """The layers of a perceptron with cross entropy, on the CPU.

    Raises:
        Refused: another model.
    """
    module, known = case.module, (nn.Linear, nn.ReLU, nn.Tanh)
    plain = type(module) is nn.Sequential and all(type(layer) in known for layer in module)
    trained = all(param.requires_grad for param in module.parameters()) and not case.model.aliases
    if not (plain and trained and _is_cross_entropy(case) and case.device.type == "cpu"):
        raise Refused("no translation: only a perceptron with cross entropy, on a CPU, is written in JAX here")
    return list(module.named_children())


def _is_cross_entropy(case: Case) -> bool:
    """Of one class index a sample, without options."""
    target, given = case.batch[-1], case.workload.criterion
    plain = given in (F.cross_entropy, losses.cross_entropy) or (
        isinstance(given, nn.CrossEntropyLoss)
        and given.weight is None
        and given.label_smoothing == 0
        and not bool((target == given.ignore_index).any())
    )
    return target.dim() == 1 and (plain or case.workload.loss is losses.cross_entropy)


CONTENDERS = (
    Contender(
        "jax",
        _jitted,
        peer=True,
        foreign=True,
        settings="jit of vmap(grad) and optax.per_example_global_norm_clip, the same weights, on XLA's own threads; "
        "x plain is against torch's plain pass; memory is not seen",
        library=JAX,
    ),
)
