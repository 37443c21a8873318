"""A reduction of several batches as if they were one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._errors import kind_of, message
from ..._per_sample import PerSampleGrads
from ..._swap import levels
from ..._tree import Tensors, zeros
from ..._weights import total
from .._chain import Chain, Stage
from .._guarantee import NOTHING, SAMPLES, Guarantee
from .._protocol import Grads, State
from .._said import Facts
from .._stage import AnyStage, How, check_params, check_rows
from ._sums import Reduction


@dataclass(frozen=True, repr=False)
class Accumulate(Stage[PerSampleGrads, Grads]):
    """Made by `gf.accumulate`, which has the meanings.

    The state counts batches and holds the sum of all rows since the last result in the accumulation dtype, the total
    weight, and of which parameters there were gradients.
    """

    reduction: Reduction
    every: int
    takes, gives = PerSampleGrads, Grads
    name = "accumulate"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """That of the reduction: a sample is in one batch, and one batch in one result; none if it moves later rows."""
        return NOTHING if before.learns and self.every > 1 else self.reduction.guarantee(before)

    def init(self, params: Tensors, /) -> State:
        """Nothing gathered."""
        device = next(iter(params.values())).device if params else None
        weight = torch.zeros((), dtype=torch.float64, device=device)
        return {"count": 0, "totals": zeros(params), "weight": weight, "seen": dict.fromkeys(params, False)}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads | None, State]:
        """None, or the result of all batches since the last."""
        g = check_rows(self, grads)
        call = f"{self!r}.update(g, state)"
        self._check_names(call, g, state)
        dtypes = {name: like.dtype for name, like in g._shapes.items()}
        weights = g.weights.detach()
        # a graph behind the totals would keep every batch; a transform of torch.func around the step holds one anyway
        with nullcontext() if levels() else torch.no_grad():
            sums = g.sum(wide=True)
            for name in g.names:
                sums[name] = state["totals"][name] + sums[name]
        now = {
            "count": int(state["count"]) + 1,
            "totals": {**state["totals"], **sums},
            "weight": state["weight"] + total(weights).to(state["weight"].device),
            "seen": {name: name in sums for name in state["totals"]},
        }
        how.say(self.name, partial(_facts, len(weights), now["weight"], now["count"]))
        if now["count"] < self.every:
            return None, now
        return self._given(call, now, dtypes)

    def flush(self, state: State, params: Tensors | None = None, /) -> tuple[Grads | None, State]:
        """The result of what was gathered since the last, None for no batch, and the state without it.

        Raises:
            ValueError: no `params`, which say the dtypes of the result.
        """
        if int(state["count"]) == 0:
            return None, state
        dtypes = {name: value.dtype for name, value in check_params(self, params).items()}
        return self._given(f"{self!r}.flush(state, params)", state, dtypes)

    def _given(self, call: str, state: State, dtypes: dict[str, torch.dtype]) -> tuple[Grads, State]:
        totals = {name: value for name, value in state["totals"].items() if state["seen"][name]}
        out = self.reduction.of_totals(call, totals, state["weight"])
        grads = {name: value.to(dtypes[name], copy=value is totals[name]) for name, value in out.items()}
        return Grads(grads), self.init(state["totals"])

    def _check_names(self, call: str, g: PerSampleGrads, state: State) -> None:
        totals = state["totals"]
        wrong = [k for k, like in g._shapes.items() if k not in totals or totals[k].shape != like.shape]
        if wrong:
            got = f"gradients of '{wrong[0]}', shape {tuple(g._shapes[wrong[0]].shape)}"
            expected = "parameters that init(params) was given, of their shapes"
            raise ValueError(message(call, got=got, expected=expected))
        before = {name for name, seen in state["seen"].items() if seen}
        if int(state["count"]) and before != set(g.names):
            got = f"gradients of {list(g.names)} after gradients of {sorted(before)}"
            raise ValueError(message(call, got=got, expected="the same parameters in every batch of one result"))

    def __repr__(self) -> str:
        return f"accumulate({self.reduction!r}, every={self.every!r})"


def accumulate(reduction: Reduction, every: int) -> Accumulate:
    """The sum or mean of `every` batches as if they were one: a stage from per-sample gradients to gradients.

    It gives None until that many batches have come, and the stages behind it wait; then the reduction of all their
    samples: the sum of all rows, over the sum of all weights for a mean, however samples were spread over batches. An
    empty batch is one of them. `step.flush(state, params)` gives what is left over, such as at the end of the data.

    Sums are held in float32 for half types, and rounded to the gradients' dtype once, at the end; the total weight in
    float64. The result has no graph: what was gathered outlives its batches. Inside a transform of torch.func it does.

    The guarantee is that of the reduction, since a sample is in one batch and a batch in one result. (Data that come
    again in another batch of the same result are other samples.) Behind `gf.adaptive_clip_per_sample`, whose limit in
    one batch depends on the samples of those before, none is stated.

    Args:
        reduction: `gf.sum()`, `gf.mean()` or `gf.mean(denominator=D)`, where D stands for all batches of a result
            together; a mean's `on_zero_weight` applies to their total weight. No other reduction of all samples follows
            from sums over parts of them.
        every: how many batches, an int >= 1. No schedule: the state counts batches, not results.

    Raises:
        TypeError: another reduction; `every` is no int.
        ValueError: `every` below 1; in an update: parameters that `init` was not given, or other ones than in the
            batches before; a total weight of 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> p, x = {"w": torch.ones(2)}, torch.arange(6.0).reshape(3, 2)
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> step = gf.accumulate(gf.mean(), every=2)
        >>> first, state = step.update(f(p, x[:1]), step.init(p), p)
        >>> both, state = step.update(f(p, x[1:]), state, p)
        >>> first, both
        (None, {'w': tensor([2., 3.])})
    """
    call = "gf.accumulate(reduction, every)"
    if type(reduction) is not Reduction:
        raise TypeError(message(call, got=_named(reduction), expected="gf.sum() or gf.mean()", do=_way_out(reduction)))
    if not isinstance(every, int) or isinstance(every, bool):
        raise TypeError(message(call, got=f"every={every!r}", expected="an int (no schedule)"))
    if every < 1:
        raise ValueError(message(call, got=f"every={every!r}", expected="an int >= 1"))
    return Accumulate(reduction, every)


def _named(reduction: object) -> str:
    """What was given instead, and why it will not do."""
    if isinstance(reduction, Accumulate):
        return "accumulate, which waits for several batches itself"
    if isinstance(reduction, (Chain, Reduction)) or not isinstance(reduction, AnyStage):
        return f"{reduction!r}" if isinstance(reduction, Chain) else kind_of(reduction)
    if reduction.takes is PerSampleGrads and reduction.gives is Grads:
        return f"{reduction.name}, which does not follow from sums over parts of the samples"
    return f"{reduction.name}, which is no reduction"


def _way_out(reduction: object) -> str:
    if isinstance(reduction, Chain):
        return "Stages on samples come before: gf.clip_per_sample(C) >> gf.accumulate(gf.mean(), every=k)."
    return "Others need all samples at once: gf.concatenate joins per-sample gradients."


def _facts(samples: int, weight: Tensor, count: int) -> Facts:
    return {"samples": samples, "gathered_weight": weight, "gathered_batches": count}
