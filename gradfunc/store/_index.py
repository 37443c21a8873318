"""An approximate index by faiss, behind the same question."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import partial_of, replace_file
from ._error import reason, refused
from ._ids import at as ids_at
from ._manifest import signed
from ._query import Queries, TopK, check_k
from ._view import View

INDEX, FACTS = "index.faiss", "index.json"
# How many candidates are ranked again for each one that is asked for.
SPARE = 4


def build(call: str, folder: Path, view: View, links: int) -> None:
    """Write the index, and after it what it is of."""
    _check_rows(call, view)
    faiss = _faiss(call)
    index = faiss.IndexHNSWSQ(view.manifest.size, faiss.ScalarQuantizer.QT_fp16, links, faiss.METRIC_INNER_PRODUCT)
    # One factor for all rows changes no order, and what float16 cannot hold as it is, it can to this scale.
    largest = max((float(rows.abs().max()) for _, rows in view.blocks()), default=0.0)
    scale = 1 / largest if largest else 1.0
    for _, rows in view.blocks():
        scaled = rows.double().mul_(scale).float().numpy()
        if not index.is_trained:
            index.train(scaled)
        index.add(scaled)
    facts = {"of": view.manifest.digest, "rows": len(view)}
    partial = partial_of(folder / INDEX)
    try:
        faiss.write_index(index, str(partial))
        os.replace(partial, folder / INDEX)
        replace_file(folder / FACTS, json.dumps(signed(facts)).encode())
    except (OSError, RuntimeError) as error:
        got = reason(error) if isinstance(error, OSError) else str(error)
        raise refused(call, got=got, expected="a folder that can be written") from error
    finally:
        partial.unlink(missing_ok=True)


def top_k(call: str, folder: Path, view: View, queries: Queries, k: int) -> TopK:
    """Candidates from the index, ranked by their exact inner products."""
    check_k(call, view, k)
    _check_rows(call, view)
    faiss = _faiss(call)
    do = "store.build_index() makes one."
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        if facts != signed(facts) or facts["of"] != view.manifest.digest:
            raise refused(call, got="an index of other rows", expected="one of these", do=do)
        index = faiss.read_index(str(folder / INDEX))
    except (FileNotFoundError, RuntimeError, ValueError, KeyError) as error:
        raise refused(call, got=f"no index to read ({type(error).__name__})", expected="one", do=do) from error
    assert isinstance(queries, Tensor)  # of factored gradients there is no index
    index.hnsw.efSearch = max(64, SPARE * k)
    found = torch.from_numpy(index.search(queries.float().numpy(), min(len(view), SPARE * k))[1])
    values, positions = [], []
    for query, candidates in zip(queries, found, strict=True):
        own = candidates[candidates >= 0].sort().values
        if len(own) < k:  # the graph has parts that a search does not reach
            own = torch.cat([own, _others(own, k - len(own), len(view))]).sort().values
        exact = view.rows(own).to(view.dtype) @ query
        best = exact.sort(descending=True, stable=True)
        values.append(best.values[:k])
        positions.append(own[best.indices[:k]])
    where = torch.stack(positions) if positions else torch.empty(0, k, dtype=torch.int64)
    return TopK(
        torch.stack(values) if values else torch.empty(0, k, dtype=view.dtype), ids_at(view.ids(), where), where
    )


def _check_rows(call: str, view: View) -> None:
    if view.manifest.is_factored:
        do = "Ask without approximate=True, or keep projected gradients."
        raise refused(call, got="factored gradients", expected="rows, which an index copies", do=do)


def _others(own: Tensor, count: int, rows: int) -> Tensor:
    """The first positions that are not among these."""
    first = torch.arange(min(rows, len(own) + count))
    return first[~torch.isin(first, own)][:count]


def _faiss(call: str) -> Any:
    try:
        import faiss
    except ImportError as error:
        do = "pip install 'gradfunc[store]', or ask without approximate=True."
        raise refused(call, got="no faiss", expected="the extra that has it", do=do) from error
    return faiss
