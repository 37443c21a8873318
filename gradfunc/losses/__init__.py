"""Losses that carry their weight: each returns `Weighted(numerator, weight)`, never a bare mean.

Without `batched`, a loss is of one sample, and dimensions before those it needs are its positions (tokens, pixels).
With `batched=True` it is the same loss row by row: dimension 0 is samples, numerator and weight have shape `[B]`.
So `sum`, the sum of numerators, is torch's `reduction="sum"`, and `mean`, numerators over weights, is torch's
`reduction="mean"`, under every option, for every split of the batch. Each docstring has the table
option -> (numerator, weight).

| file | losses | weight of a sample |
|---|---|---|
| `_classes` | `cross_entropy`, `nll`, `causal_lm` | counted targets, each with its class weight |
| `_regression` | `mse`, `l1`, `huber`, `smooth_l1` | elements; with `per="sample"` 1 |
| `_binary` | `bce`, `bce_with_logits` | elements; with `per="sample"` 1 |
| `_likelihood` | `gaussian_nll`, `poisson_nll` | elements; with `per="sample"` 1 |
| `_divergence` | `kl_div` | 1, torch's "batchmean"; with `per="element"` elements |
| `_ctc` | `ctc` | 1, under two named conventions |
| `_margin` | `soft_margin`, `hinge_embedding`, `margin_ranking` | elements |
| `_multiclass` | `multi_margin`, `multilabel_margin`, `multilabel_soft_margin` | positions |
| `_embedding` | `triplet_margin`, `cosine_embedding` | positions |

Three rules hold for all of them:

- Nothing is broadcast between what depends on the sample: an output and a target of other shapes are refused.
- What does not count (an ignored target, an empty sample of a counting loss, B = 0) is (0, 0), never NaN.
- Values are not read, so that everything runs under `vmap`. Where torch would read one and raise (a negative variance,
  a CTC length beyond its tensor), the numerator is NaN.
"""

from ._binary import bce as bce
from ._binary import bce_with_logits as bce_with_logits
from ._classes import causal_lm as causal_lm
from ._classes import class_weights as class_weights
from ._classes import cross_entropy as cross_entropy
from ._classes import nll as nll
from ._ctc import ctc as ctc
from ._divergence import kl_div as kl_div
from ._embedding import cosine_embedding as cosine_embedding
from ._embedding import triplet_margin as triplet_margin
from ._likelihood import gaussian_nll as gaussian_nll
from ._likelihood import poisson_nll as poisson_nll
from ._margin import hinge_embedding as hinge_embedding
from ._margin import margin_ranking as margin_ranking
from ._margin import soft_margin as soft_margin
from ._multiclass import multi_margin as multi_margin
from ._multiclass import multilabel_margin as multilabel_margin
from ._multiclass import multilabel_soft_margin as multilabel_soft_margin
from ._regression import huber as huber
from ._regression import l1 as l1
from ._regression import mse as mse
from ._regression import smooth_l1 as smooth_l1
from ._whole import Whole as Whole
from ._whole import whole as whole

# A loss says where to import it from, and doctest finds its example there.
for _public in [value for name, value in list(globals().items()) if not name.startswith("_")]:
    _public.__module__ = __name__
