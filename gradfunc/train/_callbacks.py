"""Reasons to stop, as functions of a snapshot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._errors import check_int, one_of
from ._snapshot import Snapshot


def patience(epochs: int, of: str = "validation/loss", *, better: str = "lower") -> Callable[[Snapshot], str | None]:
    """Stop when a series has not improved for this many epochs: a callback for `gf.train.fit`.

    Args:
        epochs: without an improvement.
        of: the series, such as "validation/accuracy" or "epoch_loss"; of one with several entries an epoch, the best.
        better: "lower" or "higher".

    Raises:
        TypeError, ValueError: `epochs` is no positive int; while training, no such series.

    Example:
        >>> import torch, gradfunc as gf
        >>> fit = gf.train.fit(lambda p, x: (p["w"] - x).square(), gf.mean() >> gf.sgd(0.0), {"w": torch.zeros(())},
        ...                    torch.ones(4), epochs=10, callbacks=[gf.train.patience(2, "epoch_loss")])
        >>> fit.stopped.reason, fit.steps
        ('epoch_loss has not improved for 2 epochs', 3)
    """
    call = f"gf.train.patience({epochs!r})"
    check_int(call, "epochs", epochs, 1)
    one_of(call, "better", better, ("lower", "higher"))

    def stop(snapshot: Snapshot) -> str | None:
        if not snapshot.epoch_ends:
            return None
        values = np.asarray(snapshot.history[of], dtype=float)
        # NaN is no improvement, on anything
        worst = np.inf if better == "lower" else -np.inf
        values = np.where(np.isnan(values), worst, values)
        best = int(np.argmin(values) if better == "lower" else np.argmax(values))
        steps, epoch = snapshot.history.steps("epoch"), snapshot.history["epoch"]
        waited = snapshot.epoch - epoch[np.searchsorted(steps, snapshot.history.steps(of)[best])]
        return f"{of} has not improved for {epochs} epochs" if waited >= epochs else None

    return stop
