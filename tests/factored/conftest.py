"""The engine under test, in one place.

`GRADFUNC_TEST_ENGINE=vmap` (or `loop`) puts another engine in its stead, to try the tests themselves.
"""

from __future__ import annotations

import os

import pytest

ENGINE = os.environ.get("GRADFUNC_TEST_ENGINE", "factored")
FACTORED = ENGINE == "factored"

factored_only = pytest.mark.skipif(not FACTORED, reason=f"says nothing of engine={ENGINE!r}, which holds no factors")
