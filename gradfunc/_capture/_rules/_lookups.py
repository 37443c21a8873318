"""Embeddings and indexing: `Rows` factors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._factors import Rows
from .._layout import Layout
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


def embedding_bag(site: Site) -> Maker | None:
    """Sums, means or maxima of the rows of a bag; one bag is one row of the output."""
    node, layout = site.node, site.layout
    indices, offsets = site.saved("indices"), site.saved("offsets")
    if site.input != 0 or layout.dim != 0 or indices is None or offsets is None or node._saved_scale_grad_by_freq:
        return None
    bags, features = site.out
    starts = offsets[:bags]
    sizes = torch.diff(starts, append=starts.new_tensor([len(indices)]))
    if node._saved_mode == 2:
        return _largest(site, bags, features)
    bag = torch.repeat_interleave(sizes)
    own = Layout(0, table=layout.owners(bags, site.samples, bag.device)[bag])
    each = len(indices) // max(1, bags)
    if each and bool((sizes == each).all()) and layout.table is None:
        own = Layout(0, layout.inner * each)
    scale, counts = site.saved("per_sample_weights"), site.saved("result2")
    if node._saved_mode == 1:
        if counts is None:
            return None
        scale = counts.clamp_min(1)[bag].double().reciprocal()
    padding = node._saved_padding_idx
    pads = (indices == padding)[:, None] if 0 <= padding < site.shape[0] else None

    def make(g: Tensor) -> Rows:
        received = g[bag] if scale is None else g[bag] * scale.to(g.dtype)[:, None]
        received = received if pads is None else received.masked_fill_(pads, 0)
        return Rows(own.split(indices, site.samples), own.split(received, site.samples), site.shape)

    return make


def _largest(site: Site, bags: int, features: int) -> Maker | None:
    """Each entry of the output is one entry of the weight: rows of a matrix with one column."""
    counts, found = site.saved("result2"), site.saved("result3")
    if counts is None or found is None or found.shape != (bags, features):
        return None
    empty = (counts == 0)[:, None] | (found < 0)
    places = found.clamp_min(0) * features + torch.arange(features, device=found.device)

    def make(g: Tensor) -> Rows:
        index, received = site.split(places).flatten(1), site.split(g.masked_fill(empty, 0)).flatten(1)
        return Rows(index, received[..., None], site.shape)

    return make


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
    "EmbeddingBagBackward0": embedding_bag,
    "IndexBackward0": index,
    "IndexSelectBackward0": index_select,
}
