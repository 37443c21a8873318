"""Every law on every combination of factors, over drawn geometries, layouts and budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factors.laws import LAWS, Law
from factors.uses import GEOMETRIES, SCRATCH, USES
from hypothesis import example, given, settings

from gradfunc.testing.strategies._factors import Geometry, gathered


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@settings(max_examples=4)
@given(geometry=GEOMETRIES, scratch=SCRATCH)
@example(geometry=Geometry(0, 2, 3, 4), scratch=7)
@example(geometry=Geometry(3, 0, 3, 4), scratch=7)
@example(geometry=Geometry(3, 2, 0, 4), scratch=7)
@example(geometry=Geometry(3, 2, 3, 0), scratch=7)
@example(geometry=Geometry(4, 1, 3, 5, "time first"), scratch=7)
@example(geometry=Geometry(4, 9, 2, 3, "strided"), scratch=1)
@example(geometry=Geometry(4, 3, 3, 3), scratch=2**16)
def test_law(law: Law, device: str, geometry: Geometry, scratch: int):
    law(gathered(replace(geometry, device=device), USES), scratch)
