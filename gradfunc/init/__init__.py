"""Initialisation as pure functions: schemes are values, parameters take them by rules.

A scheme makes a tensor of a shape, from a generator or a key, and states mean and variance that its entries aim at:

    scheme = gf.init.kaiming_normal(nonlinearity="relu")
    scheme((64, 32), key=0)                                   a tensor; the same for the same key
    scheme.std((64, 32))                                      0.25
    gf.init.initialize(model, {r".*weight": scheme, r".*bias": gf.init.zeros()}, seed=0)

Theory beside them: `variance_factor` is what a wide layer does to the size of signals and gradients,
`variance_path` layers in a row, `gain_for` the gain that keeps it.

Torch's functions of `torch.nn.init` do the drawing where it has them: the same generator gives the same bits. Draws are
made on the CPU and moved; the global generators are left alone.
"""

from ._default import torch_default as torch_default
from ._entries import constant as constant
from ._entries import normal as normal
from ._entries import ones as ones
from ._entries import truncated_normal as truncated_normal
from ._entries import uniform as uniform
from ._entries import zeros as zeros
from ._fans import fans as fans
from ._initialize import initialize as initialize
from ._initialize import initialize_with_report as initialize_with_report
from ._lsuv import LsuvReport as LsuvReport
from ._lsuv import LsuvRow as LsuvRow
from ._lsuv import lsuv as lsuv
from ._lsuv import lsuv_with_report as lsuv_with_report
from ._place import Place as Place
from ._report import InitReport as InitReport
from ._report import InitRow as InitRow
from ._scaled import depth_scaled as depth_scaled
from ._scaled import layer_scale as layer_scale
from ._scaled import lstm_forget_bias as lstm_forget_bias
from ._scaled import scaled as scaled
from ._scaled import spectral_radius as spectral_radius
from ._scheme import Scheme as Scheme
from ._scheme import generator as generator
from ._structured import delta_orthogonal as delta_orthogonal
from ._structured import dirac as dirac
from ._structured import identity as identity
from ._structured import orthogonal as orthogonal
from ._structured import sparse as sparse
from ._theory import gain_for as gain_for
from ._theory import variance_factor as variance_factor
from ._theory import variance_path as variance_path
from ._variance import VarianceFactor as VarianceFactor
from ._variance import VariancePath as VariancePath
from ._variance_scaling import kaiming_normal as kaiming_normal
from ._variance_scaling import kaiming_uniform as kaiming_uniform
from ._variance_scaling import lecun_normal as lecun_normal
from ._variance_scaling import lecun_uniform as lecun_uniform
from ._variance_scaling import variance_scaling as variance_scaling
from ._variance_scaling import xavier_normal as xavier_normal
from ._variance_scaling import xavier_uniform as xavier_uniform
