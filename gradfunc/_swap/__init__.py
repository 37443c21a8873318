"""Inside a loss: draws become functions of (seed, step, sample, use), recurrent operators become scans."""

from ._mode import Swap as Swap
