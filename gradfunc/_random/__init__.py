"""Random numbers: generators forked; draws refused, recorded, replayed; draws keyed by (seed, step, sample, use)."""

from ._forked import drawing_from as drawing_from
from ._forked import forked as forked
from ._forked import generator_states as generator_states
from ._forked import mixed as mixed
from ._forked import same_states as same_states
from ._keyed import Draw as Draw
from ._keyed import derived_key as derived_key
from ._named import named_generator as named_generator
from ._record import CannotReplay as CannotReplay
from ._record import Record as Record
from ._record import RecordDraws as RecordDraws
from ._record import RefuseDraws as RefuseDraws
from ._record import ReplayDraws as ReplayDraws
from ._record import refused_draw as refused_draw
