"""The identities, over generated models, losses and batches, on every device asked for."""

from __future__ import annotations

import pytest
from examples import EXAMPLES, MANY, ask
from laws import LAWS, a_sum_of_losses_gives_the_sum_of_gradients, rows_are_plain_autograd
from strategies import FAMILIES, of

NUMBERS = [pytest.param(EXAMPLES, id="some"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
# What a law cannot be asked of.
LIMITS = {
    rows_are_plain_autograd: {"dropout": False},  # plain autograd would draw other numbers
    a_sum_of_losses_gives_the_sum_of_gradients: {"huge": False},  # one of the losses is a square
}


@pytest.mark.parametrize("examples", NUMBERS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("engines", [pytest.param(e, marks=pytest.mark.slow) if e == "loop" else e for e in FAMILIES])
def test_law(law, engines, examples, device):
    # half as many of factors: each example reads some thirty graphs, and a recurrence's has hundreds of nodes
    number = examples // 2 if engines == "factored" else examples
    ask(law, of(engines, **LIMITS.get(law, {})), device, number)
