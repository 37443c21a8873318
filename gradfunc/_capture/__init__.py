"""A loss that was run once, natively or under vmap -> the factors of every sample's gradient.

Nothing is intercepted. What exists after the forward pass is an ordinary autograd graph, in which every differentiable
use of a parameter is an edge. The graph is walked (`_graph`), the owner of every row measured (`_owners`), the graph
cut where samples meet what they share (`_plan`); one backward pass to the cut gives the cotangents, of which rules by
node type (`_rules/`) make factors, mostly while it runs. `_pull` carries factors on derived values back to parameters,
where `_arrivals` joins them.
"""

from ._arrivals import Used as Used
from ._capture import Captured as Captured
from ._capture import Plans as Plans
from ._capture import capture as capture
