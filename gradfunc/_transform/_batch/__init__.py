"""Gradients to gradients: stages on the batch's gradient; a noun a file.

`_norms` has norms and what is done where they are not finite. A stage keeps the sensitivity of what it is given where
no two inputs leave it farther apart than they came: projections, translations, noise.
"""

from ._adaptive import adaptive_gradient_clip as adaptive_gradient_clip
from ._adaptive import clip_by_ema as clip_by_ema
from ._average import ema as ema
from ._clips import clip_by_global_norm as clip_by_global_norm
from ._clips import clip_by_parameter_norm as clip_by_parameter_norm
from ._clips import clip_by_value as clip_by_value
from ._decay import AddDecayedWeights as AddDecayedWeights
from ._decay import add_decayed_weights as add_decayed_weights
from ._entries import centralize as centralize
from ._entries import sign as sign
from ._noise import add_noise as add_noise
from ._noise import gaussian_mechanism as gaussian_mechanism
from ._nonfinite import skip_nonfinite as skip_nonfinite
from ._nonfinite import zero_nonfinite as zero_nonfinite
