"""Initialisation: what a layer does to the variance of signals and gradients."""

from ._theory import gain_for as gain_for
from ._theory import variance_factor as variance_factor
from ._theory import variance_path as variance_path
from ._variance import VarianceFactor as VarianceFactor
from ._variance import VariancePath as VariancePath
