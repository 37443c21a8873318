"""A net of equal blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import check_int, one_of
from .._tree import Tensors
from ._mlp import Pure, linear_params


def block(
    n_features: int,
    *,
    layers: int = 5,
    width: int = 100,
    activation: Callable[[Tensor], Tensor] | None = torch.relu,
    norm: str | None = None,
    outputs: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Pure:
    """Equal blocks of a linear layer, a norm and an activation, then a linear layer: what depth does to gradients.

    Parameters are `h1.weight`, `h1.bias`, `n1.weight`, `n1.bias`, ..., `o.weight`, `o.bias`.

    Args:
        n_features: of the input `[B, n_features]`.
        layers: number of blocks.
        width: of each.
        activation: of each; None for none.
        norm: between them: "batch" (by the statistics of the batch it is given, always; a batch of one is refused),
            "layer", or None.
        outputs: of the last layer.
        seed: of the parameters, drawn as `nn.Linear` draws them; norms begin with scale 1 and shift 0.
        dtype: of the parameters.

    Raises:
        TypeError: a size that is not an int.
        ValueError: a size that is not positive, or an unknown norm.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(gf.models.block(10, layers=1, norm="batch"))
        >>> list(model.params), model(model.params, torch.randn(4, 10)).shape
        (['h1.weight', 'h1.bias', 'n1.weight', 'n1.bias', 'o.weight', 'o.bias'], torch.Size([4, 1]))
    """
    call = "gf.models.block(n_features)"
    for name, value in {"n_features": n_features, "layers": layers, "width": width, "outputs": outputs}.items():
        check_int(call, name, value, 1)
    if norm is not None:
        one_of(call, "norm", norm, ("batch", "layer"), do="Or None.")

    def init() -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        params: Tensors = {}
        for i in range(1, layers + 1):
            params.update(linear_params(f"h{i}", n_features if i == 1 else width, width, True, dtype, generator))
            if norm is not None:
                params[f"n{i}.weight"] = torch.ones(width, dtype=dtype)
                params[f"n{i}.bias"] = torch.zeros(width, dtype=dtype)
        return {**params, **linear_params("o", width, outputs, True, dtype, generator)}

    def apply(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        for i in range(1, layers + 1):
            x = F.linear(x, params[f"h{i}.weight"], params[f"h{i}.bias"])
            if norm == "batch":
                x = F.batch_norm(x, None, None, params[f"n{i}.weight"], params[f"n{i}.bias"], training=True)
            elif norm == "layer":
                x = F.layer_norm(x, x.shape[-1:], params[f"n{i}.weight"], params[f"n{i}.bias"])
            x = x if activation is None else activation(x)
        return F.linear(x, params["o.weight"], params["o.bias"])

    return Pure(init, apply)
