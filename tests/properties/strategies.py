"""The cases that laws are asked of: those of `gf.testing.strategies`, by families of engines."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from gradfunc.testing.strategies import Case, cases

# Each family is asked as often as the others.
FAMILIES = {
    "factored": ("factored", "auto"),
    "vmap": ("vmap",),
    "loop": ("loop",),
    "batched": ("batched factored", "batched vmap", "batched loop"),
}
TYPES = st.sampled_from([torch.float64, torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float16])


def of(family: str, **limits: bool | int) -> st.SearchStrategy[Case]:
    """Cases of a family of engines; batches of up to 7 samples, and now and then of 33 or 257, in at most 33 chunks."""
    return cases(engines=FAMILIES[family], large=(33, 257), dtype=TYPES, **{"most_chunks": 33, **limits})
