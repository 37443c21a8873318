"""Embeddings and indexing: `Rows` factors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._factors import Rows
from ._site import Maker, Site


def embedding(site: Site) -> Maker | None:
    """`weight[indices]`; the row `padding_idx` receives nothing."""
    node = site.node
    indices = site.saved("indices")
    if indices is None or node._saved_scale_grad_by_freq:  # counted over the batch
        return None
    padding = node._saved_padding_idx
    make = _rows(site, indices)
    if make is None or not 0 <= padding < site.shape[0]:
        return make
    pads = (indices == padding)[..., None]
    return lambda g: make(g.masked_fill(pads, 0))


def index(site: Site) -> Maker | None:
    """`values[indices]`, integers along the first dimension."""
    first, *others = site.node._saved_indices
    if first is None or any(t is not None for t in others) or first.dtype in (torch.bool, torch.uint8):
        return None
    return _rows(site, torch.where(first < 0, first + site.shape[0], first))


def index_select(site: Site) -> Maker | None:
    """`values.index_select(0, index)`."""
    indices = site.saved("index")
    return None if indices is None or site.node._saved_dim != 0 else _rows(site, indices)


def _rows(site: Site, indices: Tensor) -> Maker | None:
    if site.layout.dim >= indices.dim():  # the samples are in the features
        return None
    own = site.split(indices)
    flat, rank = own.reshape(site.samples, -1), indices.dim()

    def make(g: Tensor) -> Rows:
        rows = site.split(g.reshape(*g.shape[:rank], -1))
        return Rows(flat, rows.reshape(site.samples, flat.shape[1], rows.shape[-1]), site.shape)

    return make


RULES = {
    "EmbeddingBackward0": embedding,
    "IndexBackward0": index,
    "IndexSelectBackward0": index_select,
}
