"""Per-sample stages: rows to rows."""

from ._adaptive import adaptive_clip_per_sample as adaptive_clip_per_sample
from ._by_loss import focal_weights as focal_weights
from ._by_loss import top_k_loss as top_k_loss
from ._by_norm import POLICIES as POLICIES
from ._by_norm import left_out as left_out
from ._by_norm import refused as refused
from ._clip import ClipPerSample as ClipPerSample
from ._clip import clip_per_sample as clip_per_sample
from ._entries import clip_value_per_sample as clip_value_per_sample
from ._entries import sign_per_sample as sign_per_sample
from ._normalize import normalize_per_sample as normalize_per_sample
from ._policy import nonfinite_per_sample as nonfinite_per_sample
from ._reweighted import mask_per_sample as mask_per_sample
from ._reweighted import reweight_per_sample as reweight_per_sample
from ._unit import normalize_weights as normalize_weights
