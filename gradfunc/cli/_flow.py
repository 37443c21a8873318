"""`gradfunc flow`."""

from __future__ import annotations

from .._report import Report
from ..diagnose import _flow_demo, gradient_flow
from ._shared import Folder, Page, Rate, Size, keep, load_problem, of_a_model, running, show


def flow(
    *,
    model: str | None = None,
    lr: Rate | None = None,
    per_sample: bool = False,
    batch_size: Size | None = None,
    seed: int = 0,
    json: bool = False,
    save: Folder | None = None,
    report: Page | None = None,
) -> int:
    """Look at activations and gradients layer by layer: where do they vanish, explode, die or saturate.

    Without --model: blocks of 100 units on the digits data, initialised and normalised in six ways.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch); a fourth entry, the loop that
            `audit` takes, is not used. Files beside you are found.
        lr: the learning rate, to judge updates of --model by.
        per_sample: look at how the gradients of single samples of --model differ, too.
        batch_size: use the first samples of the batch only.
        seed: of dropout and other draws.
        json: print JSON instead of tables.
        save: write report.json and the figures into this folder.
        report: write one HTML page with tables and figures to this file.
    """
    with running() as note:
        if model is None:
            of_a_model("flow", lr=lr, per_sample=per_sample)
            found: Report = _flow_demo.demo(batch_size=batch_size or 128, seed=seed, progress=note)
        else:
            made, criterion, batch = load_problem("flow", model, batch_size)
            found = gradient_flow(made, criterion, batch, lr=lr, per_sample=per_sample, theory=True, seed=seed)
    keep(found, save)
    return show(found, json, report)
