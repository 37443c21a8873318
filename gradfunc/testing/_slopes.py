"""Is the gradient the derivative? Rows of the check: a layer's parameters each, and the layers at fault."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .._problem import Problem
from ..audit._case import Case, attempt, value_of
from ..diagnose._slopes import Slope, culprits, groups, judged
from ._report import CheckRow

LAYER = "a layer's own backward pass, and central differences of its own forward pass"
CAUSE = (
    "It is {measured:.6g} where autograd says {claimed:.6g}: a custom backward, a hook or a detach changes the "
    "gradient on its way to this layer."
)


def slopes(problem: Problem, seed: int) -> Iterator[CheckRow]:
    """One row a layer with parameters; where one is wrong, rows for the layers whose own backward pass is."""
    case = Case.of(problem, seed)
    ones = torch.ones_like(value_of(case.forward))
    gradient = case.gradient(ones)
    wrong = False
    for layer, names in groups(problem).items():
        found = judged(case, gradient, names, seed)
        wrong |= found.verdict == "wrong"
        yield CheckRow(
            "slope",
            f"the derivative along parameters of {layer}, and central differences",
            abs(found.measured - found.claimed),
            found.scale,
            None,
            found.verdict,
            layer if found.verdict == "wrong" else None,
            cause=_says(found),
        )
    if wrong:
        rows, failed = attempt(lambda: list(_culprits(problem, seed)))
        yield from rows if rows is not None else [CheckRow("layer", LAYER, verdict="not run", cause=failed or "")]


def _says(found: Slope) -> str:
    if found.verdict == "wrong":
        return CAUSE.format(measured=found.measured, claimed=found.claimed)
    why = "the loss is not smooth here (a kink, or noise), or not finite, in every direction tried"
    return why if found.verdict == "cannot tell" else ""


def _culprits(problem: Problem, seed: int) -> Iterator[CheckRow]:
    if problem.model.module is None:
        yield CheckRow("layer", LAYER, verdict="not run", cause="the model has no layers that could be run alone")
        return
    guilty = False
    for name, found in culprits(problem, seed):
        guilty = True
        yield CheckRow(
            "layer",
            LAYER,
            abs(found.measured - found.claimed),
            found.scale,
            None,
            "wrong",
            name,
            cause=f"Its backward pass gives {found.claimed:.6g} where its forward pass moves by "
            f"{found.measured:.6g}. Check its autograd.Function, hooks and detach.",
        )
    if not guilty:
        cause = "no layer's own backward pass is at fault: look at the criterion, and at hooks on parameters"
        yield CheckRow("layer", LAYER, verdict="cannot tell", cause=cause)
