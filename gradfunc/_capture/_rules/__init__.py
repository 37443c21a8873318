"""Rules by what the node is: from the cotangent of a use to a factor; one file a family.

A rule is asked before the backward pass: it reads what the operation saved, and gives a function of the cotangent, or
None where it does not know the case. What no rule claims is exact by `generic`.
"""

from __future__ import annotations

from collections.abc import Callable

from . import _convolutions, _elementwise, _lookups, _norms, _products, _recurrences
from ._generic import generic as generic
from ._site import Maker as Maker
from ._site import Site as Site
from ._site import sum_copies as sum_copies
from ._site import sum_to as sum_to

Rule = Callable[[Site], Maker | None]
RULES: dict[str, Rule] = {
    **_products.RULES,
    **_convolutions.RULES,
    **_lookups.RULES,
    **_norms.RULES,
    **_elementwise.RULES,
    **_recurrences.RULES,
}
LATE: dict[str, Rule] = {**_elementwise.BY_THE_NODE}  # called after the backward pass, on a node that must last
