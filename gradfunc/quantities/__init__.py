"""Research quantities of per-sample gradients: one pure function each, with its estimator, bias and cost."""

from ._noise_scale import NoiseScale as NoiseScale
from ._noise_scale import gradient_noise_scale as gradient_noise_scale
