"""The layers of a model in the order in which a forward pass meets them, with places where autograd can differentiate.

A function mode runs with the forward pass. It knows the parameters by identity and follows what is made of parameters
alone (a transpose, a normalised weight, a cast). A function that mixes such tensors with data is a *use*; the
activation that follows is attached to it. Places are edges of autograd's graph, not tensors: they stay what they were
when a tensor is written to later, and they hold no values. Nothing is hooked, and the model is not asked for modules.

_kinds  what torch's functions are: activations, entrywise, in place
_use    a use, from when it is met until its last tensor is noted
_walk   the mode
"""

from ._kinds import ACTIVATIONS as ACTIVATIONS
from ._kinds import KINDS as KINDS
from ._kinds import entrywise as entrywise
from ._use import Open as Open
from ._use import Use as Use
from ._walk import Walk as Walk
