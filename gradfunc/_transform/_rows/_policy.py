"""What is done to rows that are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..._errors import one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._chain import RowStage
from .._guarantee import SAMPLES, Guarantee
from .._protocol import State
from .._stage import How, check_rows
from ._by_norm import POLICIES, left_out, refused


@dataclass(frozen=True)
class NonfinitePerSample(RowStage):
    """What is done to rows that are not finite. Made by `gf.nonfinite_per_sample`."""

    policy: str
    name = "nonfinite_per_sample"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """What held before."""
        return before

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[PerSampleGrads, State]:
        """The rows, those that are not finite by the policy."""
        g = check_rows(self, grads)
        if self.policy == "keep":
            return g, state
        finite = g.norms().isfinite()
        how.say(self.name, lambda: {"nonfinite": 1 - finite.double().mean() if len(finite) else 0.0})
        if self.policy == "raise":
            if not bool(finite.all()):
                raise ValueError(refused(f"{self!r}.update(g, state)", g))
            return g, state
        return left_out(g, finite, self.policy), state

    def __repr__(self) -> str:
        return f"{self.name}({self.policy!r})"


def nonfinite_per_sample(policy: str) -> NonfinitePerSample:
    """What is done to samples whose gradient is not finite: a stage from rows to rows.

    Args:
        policy: "raise" (naming sample and parameters; waits for the device), "skip" (the sample counts as absent:
            gradient, loss and weight 0), "zero" (gradient and loss 0, weight kept), or "keep".

    Formal guarantee: what held before.

    | row                        | raise   | skip                   | zero                    | keep   |
    |----------------------------|---------|------------------------|-------------------------|--------|
    | finite, such as 1e20, or 0 | stays   | stays                  | stays                   | stays  |
    | inf, NaN                   | refused | absent: weight 0       | zeros, weight kept      | stays  |

    Raises:
        ValueError: another policy; in an update with "raise", a norm that is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(1)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0], [torch.inf]]))
        >>> step = gf.nonfinite_per_sample("skip") >> gf.mean()
        >>> step.update(g, step.init(p))[0]["w"]
        tensor([3.])
    """
    one_of("gf.nonfinite_per_sample(policy)", "policy", policy, POLICIES)
    return NonfinitePerSample(policy)
