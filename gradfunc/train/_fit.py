"""`fit`: a chain of stages trained on data, watched, stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._errors import check_int, message, one_of
from .._per_sample import PerSampleGradsFunction, per_sample_grads
from .._transform import Transformation, Updates, flatten_state, make_step
from .._tree import Tensors
from ._checkpoint import CheckpointError, check_writable
from ._data import Order, read_data
from ._evaluate import Metric, first_floating
from ._history import ALWAYS, Recorder
from ._loop import Loop, Place, Setup, Stopped
from ._progress import noting
from ._result import Fit, Interrupted
from ._resume import identity, resumed
from ._snapshot import Snapshot


def fit(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    step: Transformation[Any, Updates],
    params: Tensors,
    data: Any,
    *,
    epochs: int = 1,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    seed: int = 0,
    state: Any = None,
    validation: Any = None,
    validation_loss: Callable[..., Any] | PerSampleGradsFunction | None = None,
    metrics: Mapping[str, Metric] | None = None,
    capture: Mapping[str, Callable[[Snapshot], Any]] | None = None,
    capture_every: int = 1,
    callbacks: Sequence[Callable[[Snapshot], str | None]] = (),
    on_nonfinite: str = "stop",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    progress: bool | None = None,
) -> Fit:
    """Train: batches through a chain from per-sample gradients to updates, epoch after epoch.

    Nothing that is given changes: parameters and states are values, and a step is a function of them. The order of
    samples is a function of (seed, epoch), the draws of the loss of (seed, step, sample), so the same call gives the
    same run, and a run that is resumed from its checkpoint gives the same parameters, bit by bit, on the same machine.

    Args:
        loss: of one sample, `loss(params, *sample)`, or what `gf.per_sample_grads` made of one, with its options.
        step: a chain that ends in a rule, such as `gf.clip_per_sample(1.0) >> gf.mean() >> gf.adam(1e-3)`.
        params: `{name: tensor}`, such as `model.params`.
        data: tensors or numpy arrays with the samples in dimension 0: one, a tuple of them or a mapping of keywords,
            whose entries may be mappings and tuples again beside one that is none; floating arrays take the dtype of
            the first floating parameter. Or a `DataLoader`, or whatever gives batches each time it is
            iterated; its draws from torch's global generator come from one of (seed, epoch) instead. Beside
            `checkpoint` it has no persistent workers, whose draws no file could hold.
        epochs: how often the data are gone through, counted from the first start.
        batch_size: of data in memory, 32 by default; the last batch may be shorter, unless `drop_last`.
        shuffle: whether samples in memory come in a new order each epoch, by default yes.
        drop_last: whether a shorter last batch is left out, by default no.
        seed: of the order, and of the draws of a loss that is given as a function.
        state: of the chain, to go on from; by default `step.init(params)`.
        validation: data on which the mean loss is computed after each epoch, in any form that `data` takes.
        validation_loss: if it is another one, such as that of a model in eval mode.
        metrics: `{name: metric(params, *batch) -> [B] | Weighted}`, of a whole batch each: their means over the
            validation data.
        capture: `{name: function(snapshot)}`: numbers, tensors, mappings or reports for the history, of every
            `capture_every`-th step; see `gf.train.Snapshot`.
        callbacks: functions of the snapshot of every step, in order; one that returns a string stops training with it
            as the reason. They keep nothing that a checkpoint would have to hold: `snapshot.history` is there.
        on_nonfinite: "stop" before the first update that would make a parameter inf or NaN, or whose loss or gradient
            is, and say where that began; or "ignore".
        checkpoint: a file, written by atomic replacement every `checkpoint_every` steps, at the end, and before an
            error or an interrupt goes on. (SIGTERM is no interrupt but the end, which costs what was made since the
            last save, unless the program says `signal.signal(signal.SIGTERM, signal.default_int_handler)`.)
        resume: go on from that file if it is there. Without, a file that is there is refused, not overwritten.
        progress: a bar on stderr with loss and rate; by default on a terminal only. Elsewhere True gives a line an
            epoch.

    Raises:
        TypeError, ValueError: arguments that do not fit; a checkpoint of another run; an epoch without a batch.
        gf.train.CheckpointError: a checkpoint that cannot be read, or written (its `fit` is what training had reached).
        gf.train.Interrupted: on Ctrl-C, a `KeyboardInterrupt` whose `fit` is what training had reached.

    Example:
        >>> import torch, gradfunc as gf
        >>> from sklearn.datasets import load_digits
        >>> x, y = load_digits(return_X_y=True)
        >>> model = gf.stateless(gf.models.mlp([64, 32, 10]))
        >>> def loss(params, x, y):
        ...     return gf.losses.cross_entropy(model.sample(params, x), y)
        >>> def right(params, x, y):
        ...     return model(params, x).argmax(-1) == y
        >>> fit = gf.train.fit(loss, gf.clip_per_sample(1.0) >> gf.mean() >> gf.adam(3e-3), model.params,
        ...                    (x[:1500] / 16, y[:1500]), epochs=5, validation=(x[1500:] / 16, y[1500:]),
        ...                    metrics={"accuracy": right})
        >>> fit.steps, bool(fit.history["validation/accuracy"][-1] > 0.85)
        (235, True)
    """
    call = "gf.train.fit(loss, step, params, data)"
    check_int(call, "epochs", epochs, 0)
    check_int(call, "capture_every", capture_every, 1)
    check_int(call, "checkpoint_every", checkpoint_every, 1)
    if resume and checkpoint is None:
        raise ValueError(message(call, got=f"resume={resume!r} without checkpoint=", expected="the file to go on from"))
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(message(call, got=f"seed={seed!r}", expected="an int"))
    one_of(call, "on_nonfinite", on_nonfinite, ("stop", "ignore"))
    capture, metrics = _functions(call, "capture", capture, ALWAYS), _functions(call, "metrics", metrics, ("loss",))
    if not all(callable(callback) for callback in callbacks):
        raise TypeError(message(call, got=f"callbacks={callbacks!r}", expected="a sequence of functions"))
    if validation is None and (metrics or validation_loss is not None):
        raise ValueError(message(call, got="metrics without validation=", expected="data to compute them on"))
    like = first_floating(call, params)
    f = loss if isinstance(loss, PerSampleGradsFunction) else per_sample_grads(loss, seed=seed)
    run = make_step(f, step)
    if run.gives is not Updates:
        do = "End it with one, such as gf.sgd(0.1) or gf.adam(1e-3)."
        raise TypeError(message(call, got=f"{step!r}, which gives gradients", expected="a chain with a rule", do=do))
    train = read_data(call, "data", data, like, Order(batch_size, shuffle, drop_last, seed))
    held = (
        None if validation is None else read_data(call, "validation", validation, like, Order(batch_size, either=True))
    )
    path = None if checkpoint is None else Path(checkpoint)
    setup = Setup(
        run, train, epochs, held, _function(validation_loss, f, seed), metrics, capture, capture_every,
        tuple(callbacks), on_nonfinite == "stop", path, checkpoint_every, identity(seed, f, train, held, params),
    )  # fmt: skip
    place = Place(
        {name: value.detach() for name, value in params.items()},
        step.init(params) if state is None else state,
        generators=setup.states(),
    )
    loop = Loop(setup, place, Recorder())
    if path is not None:
        if getattr(data, "persistent_workers", False):
            do = "Its workers keep draws from epoch to epoch, which no checkpoint holds: pass persistent_workers=False."
            expected = "a loader that begins each epoch anew"
            raise ValueError(message(call, got="a loader with persistent_workers=True", expected=expected, do=do))
        check_writable(call, path)
        flatten_state(place.state)  # refuses now what no file could hold
        loop = resumed(call, loop, path, resume, state) if path.exists() else loop
    return _run(loop, progress)


def _run(loop: Loop, progress: bool | None) -> Fit:
    batches, epochs = loop.setup.data.batches, loop.setup.epochs
    try:
        with noting(progress, loop.at.step, None if batches is None else epochs * batches, epochs) as note:
            stopped = loop.run(note)
        loop.save()
        return _reached(loop, stopped)
    except BaseException as error:
        where = _rescued(loop)
        if isinstance(error, KeyboardInterrupt):
            text = f"training was interrupted after {loop.at.step} updates{where}"
            raise Interrupted(text, _reached(loop, Stopped("interrupted", loop.at.step, interrupted=True))) from None
        if isinstance(error, CheckpointError):
            error.fit = _reached(loop, None)
        error.add_note(f"gf.train.fit had made {loop.at.step} updates{where}.")
        raise


def _rescued(loop: Loop) -> str:
    """Write the checkpoint on the way out, and say so."""
    try:
        loop.save()
    except Exception as error:  # what went wrong before is what the caller hears of
        return f"; they could not be saved ({error})"
    return "" if loop.setup.path is None else f"; resume=True goes on from {str(loop.setup.path)!r}"


def _reached(loop: Loop, stopped: Stopped | None) -> Fit:
    at, saved = loop.at, loop.checkpoint
    before = at.step if stopped is None or stopped.nonfinite is None else None
    return Fit(at.params, at.state, loop.recorder.history(before), at.step, stopped, saved)


def _function(
    loss: Callable[..., Any] | PerSampleGradsFunction | None, other: PerSampleGradsFunction, seed: int
) -> PerSampleGradsFunction:
    if loss is None:
        return other
    return loss if isinstance(loss, PerSampleGradsFunction) else per_sample_grads(loss, seed=seed)


def _functions(call: str, name: str, given: Any, taken: Sequence[str]) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(k, str) and callable(v) for k, v in given.items()):
        raise TypeError(message(call, got=f"{name}={given!r}", expected="a mapping {name: function}"))
    if used := [key for key in given if key.partition("/")[0] in taken]:
        raise ValueError(message(call, got=f"{name} of {used}", expected=f"other names than fit's own, {list(taken)}"))
    return dict(given)
