"""Which cases of a long list the quick tier asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def every(n: int, cases: Iterable[Any]) -> list[Any]:
    """All of them: each n-th in the quick tier, the others in the slow one."""
    params = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[pytest.mark.slow] if k % n else []) for k, case in enumerate(params)]


def quick(chosen: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """All of them: these in the quick tier, the others in the slow one."""
    first = list(chosen)
    return [pytest.param(case, marks=[] if case in first else [pytest.mark.slow]) for case in cases]
