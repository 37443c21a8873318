"""`gradfunc doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from .._errors import ModelPathError, kind_of, message
from .._report import Report
from ..diagnose import _doctor_demo
from ..diagnose import doctor as diagnosed
from ._shared import Names, Page, load, running, show

FOURTH = "an optimizer or (optimizer, step)"


def doctor(
    *,
    model: str | None = None,
    case: Names | None = None,
    deep: bool = False,
    seed: int = 0,
    json: bool = False,
    report: Page | None = None,
) -> int:
    """Find out why training does not work: causes, evidence, and the fix of each as a line of code.

    Without --model: trainings on scikit-learn's data with one thing wrong each, and what is found once it is cured.

    Exit code 1: something severe was found; without --model and --case, a cause was missed or a cure was not quiet.

    Args:
        model: package.module:factory, a function returning (model, criterion, data), data being a batch or batches; a
            fourth entry is your optimizer, or (optimizer, step), or a mapping of these two names, with your own
            step(model, optimizer, batch). Files beside you are found.
        case: names of embedded trainings, to see what is found in them in full; a wrong name lists them.
        deep: run all deep probes too, not only on a symptom.
        seed: of dropout and other draws, and of the embedded trainings.
        json: print JSON instead of tables.
        report: write one HTML page with tables to this file.
    """
    if model is not None and case is not None:
        raise ValueError(message("gradfunc doctor", got="--model and --case", expected="one of them, or neither"))
    with running() as note:
        if model is not None:
            made, criterion, data, fourth = load(model, FOURTH)
            optimizer, step = _trained_by(model, fourth)
            found: Report = diagnosed(made, criterion, data, optimizer, step, deep, seed=seed, progress=note)
        elif case is not None:
            found = _doctor_demo.cases(case, deep=deep, seed=seed, progress=note)
        else:
            found = _doctor_demo.demo(deep=deep, seed=seed, progress=note)
    return show(found, json, report)


def _trained_by(path: str, fourth: Any) -> tuple[Any, Any]:
    """Optimiser and step of a fourth entry; what they are, `gf.diagnose.doctor` checks."""
    if fourth is None or isinstance(fourth, Optimizer):
        return fourth, None
    if isinstance(fourth, tuple) and len(fourth) == 2:
        return fourth
    if isinstance(fourth, Mapping) and fourth.keys() <= {"optimizer", "step"}:
        return fourth.get("optimizer"), fourth.get("step")
    came = f"a tuple of {len(fourth)}" if isinstance(fourth, tuple) else kind_of(fourth)
    raise ModelPathError(f"--model {path!r}: the fourth entry is {came}, expected {FOURTH}")
