"""Which sample owns which slot of a tensor: one dimension tells.

Along `dim`, slot i belongs to sample `(i // inner) % B`, or to `table[i]`. That covers `[B, ...]`, time first,
`[B T, d]`, `[T B, d]`, windows, heads and groups; the table covers rows that are routed or packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The owner of each slot along one dimension.

    Attributes:
        dim: of the tensor.
        inner: consecutive slots of one sample, where the layout is regular.
        table: `[slots]` owners, -1 for a slot that is no one's; None where the layout is regular.
    """

    dim: int
    inner: int = 1
    table: Tensor | None = None

    def owners(self, slots: int, samples: int, device: torch.device) -> Tensor:
        """`[slots]`."""
        if self.table is not None:
            return self.table.to(device)
        return torch.arange(slots, device=device) // self.inner % samples

    def split(self, tensor: Tensor, samples: int, dim: int | None = None) -> Tensor:
        """`[..., n, ...]` as `[B, n / B, ...]`: every sample's slots, in order; a view where it can be.

        By a table, samples with fewer slots than others are filled up with zeros.
        """
        dim = self.dim if dim is None else dim
        tensor = tensor.movedim(dim, 0) if dim else tensor
        slots, *rest = tensor.shape
        if self.table is not None:
            return self._gathered(tensor, samples)
        outer = slots // (samples * self.inner)
        if outer == 1:
            return tensor.reshape(samples, self.inner, *rest)
        return (
            tensor.reshape(outer, samples, self.inner, *rest).movedim(1, 0).reshape(samples, outer * self.inner, *rest)
        )

    def masked(self, tensor: Tensor, samples: Tensor, total: int) -> Tensor:
        """`[b, *tensor.shape]`: for each of `samples`, the tensor with zeros where a slot is another's."""
        slots = tensor.shape[self.dim] if tensor.dim() else 1
        own = self.owners(slots, total, tensor.device) == samples.to(tensor.device)[:, None]
        own = own.reshape(len(samples), *(-1 if d == self.dim else 1 for d in range(tensor.dim())))
        return torch.where(own, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))

    def _gathered(self, tensor: Tensor, samples: int) -> Tensor:
        assert self.table is not None
        table = self.table.to(tensor.device)
        order = table.argsort(stable=True)
        order = order[table[order] >= 0]
        owner = table[order]
        counts = torch.bincount(owner, minlength=samples)
        place = torch.arange(len(order), device=tensor.device) - (counts.cumsum(0) - counts)[owner]
        out = tensor.new_zeros((samples, int(counts.max()), *tensor.shape[1:]))
        out[owner, place] = tensor[order]
        return out
