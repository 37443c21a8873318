"""`gradfunc recurrence`."""

from __future__ import annotations

from .._report import Report
from ..diagnose import _recurrence_demo, recurrence
from ._shared import Folder, Page, Rate, Size, keep, load_problem, of_a_model, running, show


def recurrence_(
    *,
    model: str | None = None,
    clip_norm: Rate | None = None,
    clip_value: Rate | None = None,
    samples: Size | None = None,
    batch_size: Size | None = None,
    seed: int = 0,
    json: bool = False,
    save: Folder | None = None,
    report: Page | None = None,
) -> int:
    """Follow gradients back through time: do they vanish, explode, and what does clipping change.

    Without --model: two matrices, an LSTM on the digits data, and what helps beside its closed forms.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch) with one recurrent layer; a fourth
            entry, the loop that `audit` takes, is not used. Files beside you are found.
        clip_norm: compare clipping of --model by norm at this number; the default, at 1.
        clip_value: compare clipping by value instead.
        samples: how many samples' Jacobians are taken of --model; the default, 4.
        batch_size: use the first samples of the batch only.
        seed: of draws.
        json: print JSON instead of tables.
        save: write report.json and the figures into this folder.
        report: write one HTML page with tables and figures to this file.
    """
    with running() as note:
        if model is None:
            of_a_model("recurrence", clip_norm=clip_norm, clip_value=clip_value, samples=samples)
            found: Report = _recurrence_demo.demo(batch_size=batch_size or 32, seed=seed, progress=note)
        else:
            made, criterion, batch = load_problem("recurrence", model, batch_size)
            found = recurrence(
                made, criterion, batch, clip_norm=clip_norm, clip_value=clip_value, samples=samples or 4, seed=seed
            )
    keep(found, save)
    return show(found, json, report)
