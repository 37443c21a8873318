"""Research quantities of per-sample gradients: one pure function each, with its estimator, bias and cost.

Most take the value that `gf.per_sample_grads(loss)(params, ...)` gives and ask it for norms, Gram matrices and sums, so
that rows are not formed. Those that need the model again take `(loss, params, batch)`.

| file | quantities |
|---|---|
| `_moments`, `_variance` | `moments` (which merge), `variance`, `second_moment`, `signal_to_noise` |
| `_noise_scale` | `gradient_noise_scale` |
| `_critical_batch` | `two_batch_noise_scale`, `RunningNoiseScale`, `batch_efficiency`, `critical_batch_size` |
| `_similarity` | `cosine_similarity`, `coherence`, `diversity`, `near_duplicates` |
| `_scores`, `_tokens` | `grand`, `el2n`; `token_norms` |
| `_kernels`, `_spectrum` | `gram_blocks`, `output_grads`, `empirical_ntk`; `gradient_spectrum` |
| `_fisher` | `fisher_rows`, `fisher_diagonal`, `fisher_product` |
| `_kronecker`, `_eigen`, `_corrected` | `kronecker_factors`; `corrected_kronecker_factors` (EKFAC) |
| `_products`, `_curvature` | `hessian_product`, `ggn_product`, `hutchinson_trace`; `hessian_extremes` |
| `_influence` | `grad_dot`, `grad_cos`, `tracin`, `self_influence`, `margin`, `trak` |
| `_influence_functions` | `influence_functions`, `self_influence_functions` |

How to add one. It is a function of answers: pick the cheapest that has it (`norms` and `dot` before `gram`, `gram`
before `project`, all of them before `materialize`), say what is done with weights, and divide once. A quantity of rows
is one of `u_i = g_i / w_i` with shares `p_i = w_i / sum w`, samples of weight 0 absent; one of the numerators'
gradients takes `g_i` as they are. Differences of large numbers are taken in float64. The docstring has formula, source,
bias, cost; the test compares it with the definition on materialised rows in float64, and is shown to notice a mistake.

For instance the stiffness of Fort et al. 2019 (arXiv 1901.09491), the mean cosine between different samples:

    >>> import torch, gradfunc as gf
    >>> def stiffness(g):
    ...     cosines = gf.quantities.cosine_similarity(g)
    ...     return (cosines.sum() - cosines.diagonal().sum()) / (len(cosines) * (len(cosines) - 1))
    >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
    >>> stiffness(f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [0.6, 0.8]])))
    tensor(0.6000)
"""

from ._corrected import corrected_kronecker_factors as corrected_kronecker_factors
from ._critical_batch import BatchEfficiency as BatchEfficiency
from ._critical_batch import CriticalBatch as CriticalBatch
from ._critical_batch import RunningNoiseScale as RunningNoiseScale
from ._critical_batch import batch_efficiency as batch_efficiency
from ._critical_batch import critical_batch_size as critical_batch_size
from ._critical_batch import two_batch_noise_scale as two_batch_noise_scale
from ._curvature import Eigenpair as Eigenpair
from ._curvature import HessianExtremes as HessianExtremes
from ._curvature import hessian_extremes as hessian_extremes
from ._eigen import EigenFactors as EigenFactors
from ._fisher import fisher_diagonal as fisher_diagonal
from ._fisher import fisher_product as fisher_product
from ._fisher import fisher_rows as fisher_rows
from ._influence import grad_cos as grad_cos
from ._influence import grad_dot as grad_dot
from ._influence import margin as margin
from ._influence import self_influence as self_influence
from ._influence import tracin as tracin
from ._influence import trak as trak
from ._influence_functions import influence_functions as influence_functions
from ._influence_functions import self_influence_functions as self_influence_functions
from ._kernels import GramBlock as GramBlock
from ._kernels import empirical_ntk as empirical_ntk
from ._kernels import gram_blocks as gram_blocks
from ._kernels import output_grads as output_grads
from ._kronecker import KroneckerFactors as KroneckerFactors
from ._kronecker import kronecker_factors as kronecker_factors
from ._moments import Moments as Moments
from ._moments import moments as moments
from ._noise_scale import NoiseScale as NoiseScale
from ._noise_scale import gradient_noise_scale as gradient_noise_scale
from ._products import TraceEstimate as TraceEstimate
from ._products import ggn_product as ggn_product
from ._products import hessian_product as hessian_product
from ._products import hutchinson_trace as hutchinson_trace
from ._scores import el2n as el2n
from ._scores import grand as grand
from ._similarity import Duplicates as Duplicates
from ._similarity import coherence as coherence
from ._similarity import cosine_similarity as cosine_similarity
from ._similarity import diversity as diversity
from ._similarity import near_duplicates as near_duplicates
from ._spectrum import GradientSpectrum as GradientSpectrum
from ._spectrum import gradient_spectrum as gradient_spectrum
from ._tokens import token_norms as token_norms
from ._variance import second_moment as second_moment
from ._variance import signal_to_noise as signal_to_noise
from ._variance import variance as variance
