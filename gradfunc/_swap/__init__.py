"""Inside a loss: draws become functions of (seed, step, sample, use), recurrent operators become scans."""

from ._levels import is_transformed as is_transformed
from ._levels import levels as levels
from ._levels import transforms as transforms
from ._mode import Scans as Scans
from ._mode import Swap as Swap
