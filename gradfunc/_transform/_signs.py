"""Signs."""

from __future__ import annotations

import torch
from torch import Tensor


def signs(values: Tensor) -> Tensor:
    """-1, 0 or 1 of every entry; NaN stays, of which torch's own sign says 0."""
    return torch.where(values.isnan(), values, values.sign())
