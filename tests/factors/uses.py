"""Which factors of one parameter the laws are asked of, and of which sizes."""

from __future__ import annotations

from itertools import combinations_with_replacement

from hypothesis import strategies as st

from gradfunc.testing.strategies._factors import MAKERS, Geometry
from gradfunc.testing.strategies._per_sample import LAYOUTS

# Uses of one parameter: every kind alone, beside each other kind, and several at once.
ALONE: tuple[tuple[str, ...], ...] = ((), *((kind,) for kind in MAKERS))
USES: tuple[tuple[str, ...], ...] = (
    *ALONE,
    *combinations_with_replacement(MAKERS, 2),
    ("outer", "rows", "outer"),
    ("rows", "outer", "turned", "rows"),
    ("rows", "turned", "dense"),
    ("unfolded", "rows", "unfolded"),
    ("grouped", "outer", "grouped"),
)

GEOMETRIES = st.builds(
    Geometry,
    size=st.integers(0, 5),
    t=st.sampled_from([0, 1, 2, 3, 9]),
    inputs=st.integers(0, 5),
    outputs=st.integers(0, 6),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**16),
)
SCRATCH = st.sampled_from([1, 7, 40, 2**16])
