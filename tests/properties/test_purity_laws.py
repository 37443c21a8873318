"""A call touches nothing, shares nothing, and is the same when it is made twice."""

from __future__ import annotations

import pytest
from examples import EXAMPLES, MANY, ask
from purity import PURITY
from strategies import FAMILIES, of

# Half as many as of an identity: every query is asked, two or three times over.
NUMBERS = [pytest.param(EXAMPLES // 2, id="some"), pytest.param(MANY // 2, id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("examples", NUMBERS)
@pytest.mark.parametrize("law", PURITY, ids=lambda law: law.__name__)
@pytest.mark.parametrize("engines", FAMILIES)
def test_purity(law, engines, examples, device):
    ask(law, of(engines, coupled_draws=True, most_chunks=7), device, examples)
