"""`transformations`: random chains of stages that fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from ..._errors import check_int, message
from ..._per_sample import PerSampleGrads
from ..._transform import Grads, Transformation, Updates, chain
from ..._transform._chain import Chain
from ._arguments import flag
from ._stages import BATCH, FIXED, LINEAR, REDUCTIONS, ROWS, RULES, Stage

NUMBERS = st.sampled_from([1.0, 0.3, 7.0])
PLACES = (PerSampleGrads, Grads, Updates)
Stages = list[Transformation[Any, Any]]


def transformations(
    *,
    takes: Any = PerSampleGrads,
    gives: Any = Updates,
    parameters: Sequence[str] = (),
    max_rows: int = 3,
    max_batch: int = 2,
    linear: bool = False,
    per_sample_independent: bool = False,
    bounded: bool = False,
    sensitivity: bool = False,
    own: Sequence[Transformation[Any, Any]] = (),
) -> st.SearchStrategy[Chain[Any, Any]]:
    """Random chains in a valid order: per-sample stages, one reduction, stages on gradients, an update rule.

    A chain prints as the expression that makes it, in names of gradfunc. Shrinks to the fewest and simplest stages:
    `sum() >> sgd(1.0)`.

    Args:
        takes: what the chain takes: gf.PerSampleGrads, or gf.Grads for a chain without rows and reduction.
        gives: what it gives: gf.PerSampleGrads, gf.Grads or gf.Updates, not before `takes`.
        parameters: names that stages may single out (groups, masks, partitions): at least two of them, and all that
            the gradients have; none for stages that know no name.
        max_rows, max_batch: how many per-sample stages, and stages on gradients, there are at most.
        linear: the reduction adds rows: a sum, or a mean.
        per_sample_independent: row i that is reduced depends on row i only.
        bounded: the chain, up to its reduction, guarantees a bound on every row's norm.
        sensitivity: the chain up to its update rule guarantees how far one sample moves its output. Both of the above.
        own: stages of your own, drawn beside gradfunc's where their `takes` and `gives` fit.

    Raises:
        TypeError, ValueError: an argument that is none of these; a stage of one's own that does not say its place.

    Example:
        >>> from hypothesis import given, settings
        >>> import gradfunc as gf
        >>> strategies = gf.testing.strategies
        >>> @settings(deadline=None)
        ... @given(
        ...     step=strategies.transformations(gives=gf.PerSampleGrads, bounded=True),
        ...     synthetic=strategies.per_sample_grads(lengths=True),
        ... )
        ... def no_row_is_longer(step, synthetic):
        ...     out, _ = step.update(synthetic.grads, step.init(synthetic.params), synthetic.params)
        ...     assert (out.norms() <= step.guarantee().bound * (1 + 1e-12)).all()
        >>> no_row_is_longer()
    """
    call = "gf.testing.strategies.transformations()"
    first, last = _place(call, "takes", takes, PLACES[:2]), _place(call, "gives", gives, PLACES)
    if last < first:
        got = f"takes={takes.__name__} and gives={gives.__name__}"
        raise ValueError(message(call, got=got, expected="a chain that gives no less than it takes"))
    check_int(call, "max_rows", max_rows, 0)
    check_int(call, "max_batch", max_batch, 0)
    flags = {"linear": linear, "per_sample_independent": per_sample_independent, "bounded": bounded}
    for name, value in {**flags, "sensitivity": sensitivity}.items():
        flag(call, name, value)
        if value and first:
            raise ValueError(message(call, got=f"{name}=True", expected="takes=gf.PerSampleGrads beside it"))
    if (sensitivity or linear) and not last:
        name = "sensitivity" if sensitivity else "linear"
        raise ValueError(message(call, got=f"{name}=True", expected="a chain with a reduction"))
    if (bounded or sensitivity) and max_rows < 1:
        raise ValueError(message(call, got=f"max_rows={max_rows}", expected="room for the stage that bounds rows"))
    names = _names(call, parameters)
    mine = _own(call, own)
    alone = per_sample_independent or sensitivity
    reductions = [*(FIXED if sensitivity else LINEAR if linear else REDUCTIONS)]
    if not (linear or sensitivity):
        reductions += [_constant(stage) for stage in mine.get((0, 1), [])]

    @st.composite
    def stages(draw: st.DrawFn) -> Stages:
        out: Stages = []
        if not first:
            rows = [stage for stage in ROWS if stage.alone or not alone]
            some = [] if alone or bounded else mine.get((0, 0), [])
            if bounded or sensitivity:
                out += draw(_several(rows, names, max_rows - 1))
                out += draw(_several([stage for stage in ROWS if stage.bounds], names, 1, least=1))
                out += draw(_several(rows, names, max_rows - len(out)))
            else:
                out += draw(_several(rows, names, max_rows, some))
        if not first and last:
            out.append(draw(st.sampled_from(reductions))())
        if last:
            out += draw(_several(BATCH, names, max_batch, [] if sensitivity else mine.get((1, 1), [])))
        return out

    def holds(made: Stages) -> bool:
        """Whether the stages state what is asked for."""
        row_stages = made[: next((k for k, stage in enumerate(made) if _reduces(stage)), len(made))]
        if (bounded or sensitivity) and chain(*row_stages).guarantee().bound is None:
            return False
        return not sensitivity or chain(*made).guarantee().sensitivity.add_remove is not None

    made = stages().filter(holds)
    if last < 2:
        return made.map(_chained)
    rules = _several(RULES, names, 1, mine.get((1, 2), []), least=1)
    return st.tuples(made, rules).map(lambda parts: _chained([*parts[0], *parts[1]]))


def _several(
    stages: Sequence[Stage],
    names: tuple[str, ...],
    most: int,
    own: Sequence[Transformation[Any, Any]] = (),
    *,
    least: int = 0,
) -> st.SearchStrategy[Stages]:
    """From `least` to `most` of these, each of a number."""
    makers = [stage.make for stage in stages if names or not stage.named]
    makers += [lambda c, _, stage=stage: stage for stage in own]  # type: ignore[misc]
    one = st.tuples(st.sampled_from(makers), NUMBERS).map(lambda pair: pair[0](pair[1], names))
    return st.lists(one, min_size=least, max_size=max(most, 0))


def _chained(stages: Stages) -> Chain[Any, Any]:
    return chain(*stages)


def _constant(stage: Transformation[Any, Any]) -> Callable[[], Any]:
    return lambda: stage


def _reduces(stage: Any) -> bool:
    return getattr(stage, "takes", None) is PerSampleGrads and getattr(stage, "gives", None) is Grads


def _place(call: str, name: str, value: object, known: Sequence[Any]) -> int:
    if not any(value is one for one in known):
        expected = " or ".join(f"gf.{one.__name__}" for one in known)
        raise TypeError(message(call, got=f"{name}={value!r}", expected=expected))
    return next(k for k, one in enumerate(PLACES) if value is one)


def _names(call: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise TypeError(message(call, got=f"parameters={value!r}", expected="a list of parameter names"))
    if len(value) == 1 or len(set(value)) < len(value):
        expected = "two different names or more, or none"
        raise ValueError(message(call, got=f"parameters={value!r}", expected=expected))
    return tuple(value)


def _own(call: str, own: object) -> dict[tuple[int, int], Stages]:
    """Stages of one's own by their places."""
    if not isinstance(own, (list, tuple)) or not all(isinstance(stage, Transformation) for stage in own):
        raise TypeError(message(call, got=f"own={own!r}", expected="a list of stages"))
    out: dict[tuple[int, int], Stages] = {}
    for stage in own:
        ends = (getattr(stage, "takes", None), getattr(stage, "gives", None))
        at = tuple(next((k for k, place in enumerate(PLACES) if end is place), None) for end in ends)
        if at not in ((0, 0), (0, 1), (1, 1), (1, 2)):
            do = "Set its attributes takes and gives to gf.PerSampleGrads, gf.Grads or gf.Updates."
            got = f"own stage {stage!r}"
            raise ValueError(message(call, got=got, expected="stages that say what they take and give", do=do))
        out.setdefault((at[0] or 0, at[1] or 0), []).append(stage)
    return out
