"""The mechanisms by which reductions come to disagree, as data: one list, read by the audit, its tests and its tables.

Each has a closed form. All of them say the same kind of thing: an estimator of the mean gradient is `sum c * d(e)` over
the elements e of `reduction="none"`, and the mechanism changes the coefficients c, or the forward pass that gives e.

- A *weight* mechanism gives each element a weight w (and says whether a sample's elements are counted or averaged).
  Then torch's mean has c = 1 / sum w, one sample alone has c = 1 / (n w_i), while sum / n has c = 1 / n.
- A *forward* mechanism says under which intervention one pass of the whole batch repeats what passes over parts of it
  do.
- A *loop* mechanism lies in the code that collects gradients. With m_k the gradient of the mean of part k of K:
  it says which coefficients the m_k get instead of those of the mean.
"""

from ._base import Mechanism as Mechanism
from ._base import Parts as Parts
from ._base import parts_of as parts_of
from ._base import singles as singles
from ._base import spread as spread
from ._forward import FORWARD
from ._forward import layers_of as layers_of
from ._loop import LOOP
from ._weight import WEIGHT

MECHANISMS: tuple[Mechanism, ...] = (*LOOP, *WEIGHT, *FORWARD)
"""What can make reductions disagree, as data: each `Mechanism` has its formula, its prediction and its remedy."""
BY_NAME: dict[str, Mechanism] = {mechanism.name: mechanism for mechanism in MECHANISMS}
