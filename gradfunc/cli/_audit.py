"""`gradfunc audit`."""

from __future__ import annotations

from .._report import Report
from ..audit import _demo, reductions
from ._shared import DType, Page, Size, load, running, show


def audit(
    *,
    model: str | None = None,
    dtype: DType | None = None,
    device: str | None = None,
    batch_size: Size | None = None,
    seed: int = 0,
    json: bool = False,
    report: Page | None = None,
) -> int:
    """Find out why sum, mean and per-sample gradients disagree.

    Without --model: a healthy perceptron on the digits data, the forum question rerun, every mechanism once.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch), or with a fourth: your own
            loop(module, criterion, batch) that collects a gradient. Files beside you are found.
        dtype: precision to audit in; it is repeated in another one. Default: the model's own.
        device: where to run, such as cuda:0. Default: where the model is.
        batch_size: use the first samples of the batch only.
        seed: of dropout and other draws.
        json: print JSON instead of tables.
        report: write one HTML page with tables and figures to this file.
    """
    with running() as note:
        if model is None:
            found: Report = _demo.demo(
                dtype=dtype or "float32", device=device, batch_size=batch_size or 64, seed=seed, progress=note
            )
        else:
            made, criterion, batch, yours = load(model)
            found = reductions(
                made,
                criterion,
                batch,
                yours=yours,
                dtype=dtype,
                device=device,
                batch_size=batch_size,
                seed=seed,
                progress=note,
            )
    return show(found, json, report)
