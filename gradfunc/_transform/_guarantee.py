"""What holds of a stage's output whatever the data: the bound on a sample's norm, and what one sample can change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Sensitivity:
    """How far (Euclidean norm, all parameters together) one sample can move a reduction; None where nothing bounds it.

    Attributes:
        add_remove: by being added or left out.
        replace_one: by becoming another sample.
        over_n: what `replace_one` is times n, the number of samples, where each has weight 1. For a report alone: n and
            the weights are data, so no statement about privacy may rest on it.
    """

    add_remove: float | None = None
    replace_one: float | None = None
    over_n: float | None = None


@dataclass(frozen=True)
class Guarantee:
    """What holds of some stage's output for all data, up to rounding, and as long as no sum overflows.

    Made when a chain is built, without running it.

    Attributes:
        bound: on the norm of every row, all parameters together; None for no bound.
        per_unit_weight: the bound is on a row over its weight.
        per_sample_independent: row i and its weight depend on sample i only, given the states of the stages before.
        learns: such a state depends on the samples of earlier batches, so that rows of several batches are not
            independent together.
        sensitivity: of a reduction's output.

    Example:
        A stage of one's own that gives rows no longer than 1 says so; `before` is what holds of its input:

        >>> import dataclasses
        >>> import gradfunc as gf
        >>> before = gf.Guarantee(per_sample_independent=True)
        >>> dataclasses.replace(before, bound=1.0).bound
        1.0
        >>> gf.clip_per_sample(2.0).guarantee(before).bound
        2.0
    """

    bound: float | None = None
    per_unit_weight: bool = False
    per_sample_independent: bool = False
    sensitivity: Sensitivity = Sensitivity()
    learns: bool = False


NOTHING = Guarantee()
# Of the rows of a loss of one sample. (A loss with `batched=True` may couple them: it promises NOTHING.)
SAMPLES = Guarantee(per_sample_independent=True)


def times(before: Guarantee, factor: float | None) -> Guarantee:
    """Of output that is the input times a number of at most this size; None where no number is known."""
    if factor is None:
        return NOTHING
    least = before.sensitivity
    moved = (None if x is None else x * factor for x in (least.add_remove, least.replace_one, least.over_n))
    return dataclasses.replace(before, bound=None, sensitivity=Sensitivity(*moved))


def sensitivity(rows: Guarantee, denominator: float | None) -> Sensitivity:
    """Of the sum of the rows over a denominator that was fixed beforehand, or (None) over their realised weight.

    | rows                               | reduction                | add or remove | replace one | over n |
    |------------------------------------|--------------------------|---------------|-------------|--------|
    | independent, norms <= C            | sum (denominator 1)      | C             | 2C          | -      |
    | the same                           | sum over a fixed D       | C/D           | 2C/D        | -      |
    | the same                           | mean by realised weight  | -             | -           | 2C     |
    | independent, norms <= C per weight | any: weights are data    | -             | -           | -      |
    | not bounded                        | any                      | -             | -           | -      |
    | a row depends on other samples     | any                      | -             | -           | -      |
    """
    if rows.bound is None or rows.per_unit_weight or not rows.per_sample_independent:
        return Sensitivity()
    if denominator is None:
        return Sensitivity(over_n=2 * rows.bound)
    return Sensitivity(rows.bound / denominator, 2 * rows.bound / denominator)
