"""`CASES`: small models, one for each thing that can go wrong, by name; each of any batch size B and length T."""

from . import attention as attention
from . import broadcast as broadcast
from . import convolutions as convolutions
from . import coupled as coupled
from . import degenerate as degenerate
from . import derived as derived
from . import norms as norms
from . import opaque as opaque
from . import products as products
from . import recurrence as recurrence
from . import routing as routing
from . import shared as shared
from . import tokens as tokens
from ._case import CASES as CASES
from ._case import MODES as MODES
from ._case import Case as Case
from ._case import Draw as Draw
from ._case import Problem as Problem
from ._case import problem as problem
