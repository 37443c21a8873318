"""Research quantities of per-sample gradients: one pure function each, with its estimator, bias and cost."""

from ._curvature import Eigenpair as Eigenpair
from ._curvature import HessianExtremes as HessianExtremes
from ._curvature import hessian_extremes as hessian_extremes
from ._noise_scale import NoiseScale as NoiseScale
from ._noise_scale import gradient_noise_scale as gradient_noise_scale
