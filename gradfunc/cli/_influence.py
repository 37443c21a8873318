"""`gradfunc influence`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .._errors import message
from .._problem import read
from .._report import Report
from . import _influence_demo
from ._influence_report import Curvature, Method, influence_on, own_influence
from ._shared import Page, Rate, Size, counting, load_problem, of_a_model, running, show

CALL = "gradfunc influence"


def influence(
    *,
    model: str | None = None,
    on: Annotated[list[int] | None, Parameter(consume_multiple=True, negative_iterable=())] = None,
    method: Method | None = None,
    k: Annotated[Size, Parameter(name="-k")] = 10,
    damping: Rate | None = None,
    curvature: Curvature | None = None,
    seed: int = 0,
    json: bool = False,
    report: Page | None = None,
) -> int:
    """Find the samples of most influence: on their own loss, or on that of others.

    Without --model: digits, a tenth of whose labels are made wrong, and how well each score finds them. Exit code 1:
    neither GraNd nor self-influence does.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch), the batch with all training
            samples; a fourth entry is not used. Files beside you are found.
        on: positions in the batch, from 0, of the samples whose loss is asked about; without, each sample's own.
        method: without --on "grand"; with it "grad-dot" (the default), "grad-cos" or "influence".
        k: how many samples are shown (for each that is asked about).
        damping: a multiple of the identity, added to the curvature, for --method influence; by default a tenth of each
            parameter's mean eigenvalue, for the Hessian 0.01.
        curvature: for --method influence: the empirical Fisher matrix, which is never negative, by Kronecker factors
            with corrected eigenvalues (ekfac, the default) or as they are (kronecker); or the Hessian, by conjugate
            gradients.
        seed: of labels, initialisation and order of the default; of dropout and other draws of --model.
        json: print JSON instead of tables.
        report: write one HTML page with the tables to this file.
    """
    if model is None:
        of_a_model("influence", on=on, method=method, damping=damping, curvature=curvature)
        with running() as stage:
            found: Report = _influence_demo.demo(seed=seed, k=k, progress=stage)
        return show(found, json, report)
    ids = None if on is None else list(dict.fromkeys(on))
    _check(ids, method, damping, curvature)
    with counting("samples/s") as note:
        problem = read(CALL, *load_problem("influence", model))
        if ids is None:
            found = own_influence(problem, k=k, seed=seed, progress=note)
        else:
            if outside := [i for i in ids if not 0 <= i < problem.size]:
                expected = f"positions in the batch, 0 to {problem.size - 1}"
                raise ValueError(message(CALL, got=f"--on {outside[0]}", expected=expected))
            how = "grad-dot" if method is None else method
            assert how != "grand"
            found = influence_on(
                problem, ids, method=how, k=k, seed=seed, damping=damping, curvature=curvature or "ekfac", progress=note
            )  # fmt: skip
    return show(found, json, report)


def _check(on: list[int] | None, method: Method | None, damping: float | None, curvature: Curvature | None) -> None:
    """Before a model is read."""
    if on is None and method not in (None, "grand"):
        expected = "--on with the samples whose loss is asked about"
        raise ValueError(message(CALL, got=f"--method {method} without --on", expected=expected))
    if on is not None and method == "grand":
        expected = "grad-dot, grad-cos or influence"
        raise ValueError(message(CALL, got="--method grand beside --on", expected=expected))
    for name, value in (("damping", damping), ("curvature", curvature)):
        if value is not None and method != "influence":
            raise ValueError(message(CALL, got=f"--{name} without --method influence", expected="both, or neither"))
