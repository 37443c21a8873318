"""Sick and healthy trainings, drawn by seed: what `gf.diagnose.doctor` is tried on.

A sick one is made twice from one seed: as it fails, and with its cure, which changes nothing else. A file a
family; in each, `SICK` says which cause must come first.
"""

from __future__ import annotations

import torch

from . import batch, data, flow, loss, numbers, parameters, rate, step
from . import healthy as well
from .draw import Draw

SICK = {
    make: cause
    for family in (loss, data, parameters, flow, rate, step, numbers, batch)
    for make, cause in family.SICK.items()
}
HEALTHY = well.HEALTHY


def sick(make, seed, *, cured=False):
    """The case, drawn with torch's generator forked."""
    with torch.random.fork_rng():
        return make(Draw(seed), cured)


def healthy(make, seed):
    with torch.random.fork_rng():
        return make(Draw(seed))
