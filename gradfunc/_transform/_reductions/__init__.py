"""Reductions: per-sample gradients to gradients.

`_sums` has the sum and the mean of rows, `_accumulate` those of several batches. The others combine rows that have been
divided by their weights (`_per_unit`): entry by entry (`_entries`, one parameter at a time), or with coefficients that
are read off the Gram matrix (`_gram`, `_geometric`), which forms no rows.
"""

from ._accumulate import Accumulate as Accumulate
from ._accumulate import accumulate as accumulate
from ._entries import median as median
from ._entries import sign_vote as sign_vote
from ._entries import trimmed_mean as trimmed_mean
from ._geometric import GeometricMedian as GeometricMedian
from ._geometric import geometric_median as geometric_median
from ._gram import FromGram as FromGram
from ._gram import from_gram as from_gram
from ._sums import Reduction as Reduction
from ._sums import mean as mean
from ._sums import sum as sum
