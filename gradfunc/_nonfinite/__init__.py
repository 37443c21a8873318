"""Where numbers stop being finite: a mode that runs with both passes, and the operation that it began with.

_origin  what is known of that operation
_facts   what its tensors show
_watch   the mode
"""

from ._facts import all_finite as all_finite
from ._origin import Input as Input
from ._origin import Origin as Origin
from ._watch import Watch as Watch
