"""`nn.Module` -> a pure function of its parameters. The module is never changed, not even its mode.

_value    the model as a value: parameters, buffers, and calls
_replica  what a call runs on
_read     from a module or a pure model to the value
"""

from ._read import stateless as stateless
from ._read import unwrapped as unwrapped
from ._value import PureModel as PureModel
from ._value import Stateless as Stateless
