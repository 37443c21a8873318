"""`gradfunc check`."""

from __future__ import annotations

from .._report import Report
from ..testing import _demo, check_gradients
from ._shared import DType, Page, Size, load_problem, running, show


def check(
    *,
    model: str | None = None,
    dtype: DType | None = None,
    device: str | None = None,
    batch_size: Size | None = None,
    seed: int = 0,
    json: bool = False,
    report: Page | None = None,
) -> int:
    """Check the gradients of a model: engines, reductions, independence, weights, hooks, and slopes layer by layer.

    Without --model: a healthy perceptron on the digits data, and every kind of fault planted once.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch); a fourth entry, the loop that
            `audit` takes, is not used. Files beside you are found.
        dtype: precision to check in; it is repeated in another one. Default: the model's own.
        device: where to run, such as cuda:0. Default: where the model is.
        batch_size: use the first samples of the batch only.
        seed: of dropout and other draws, and of random directions.
        json: print JSON instead of tables.
        report: write one HTML page with tables and figures to this file.
    """
    with running() as note:
        if model is None:
            found: Report = _demo.demo(
                dtype=dtype or "float32", device=device, batch_size=batch_size or 16, seed=seed, progress=note
            )
        else:
            made, criterion, batch = load_problem("check", model)
            found = check_gradients(
                made,
                criterion,
                batch,
                dtype=dtype,
                device=device,
                batch_size=batch_size,
                seed=seed,
                progress=note,
            )
    return show(found, json, report)
