"""Per-sample stages: rows to rows."""

from ._clip import ClipPerSample as ClipPerSample
from ._clip import clip_per_sample as clip_per_sample
