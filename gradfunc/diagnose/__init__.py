"""What goes wrong with gradients, and where.

_recurrence    gradients through time: growth, vanishing, memory, clipping; the remedies
"""

from ._recurrence import Growth as Growth
from ._recurrence import LinearRecurrence as LinearRecurrence
from ._recurrence import MemoryCapacity as MemoryCapacity
from ._recurrence import RecurrenceReport as RecurrenceReport
from ._recurrence import Remedy as Remedy
from ._recurrence import RemedyReport as RemedyReport
from ._recurrence import memory_capacity as memory_capacity
from ._recurrence import recurrence as recurrence
from ._recurrence import remedies as remedies
