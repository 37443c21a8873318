"""Per-sample stages: rows to rows."""

from ._by_norm import POLICIES as POLICIES
from ._by_norm import left_out as left_out
from ._by_norm import refused as refused
from ._clip import ClipPerSample as ClipPerSample
from ._clip import clip_per_sample as clip_per_sample
