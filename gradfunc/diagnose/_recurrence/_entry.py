"""`gf.diagnose.recurrence`: what comes is read, then measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import check_int, kind_of, message
from ..._stateless import PureModel, Stateless
from ...models import Recurrent
from ._exponents import exponents as lyapunov
from ._gradients import Clip, clippings, through_time
from ._jacobians import OfTape
from ._linear import linear
from ._linear_report import LinearRecurrence
from ._products import dense as dense_products
from ._products import matrix_free
from ._report import RecurrenceReport
from ._system import CALL, CELLS, System, cell_step, of_model, of_step
from ._tape import Tape

ENTRIES = 1 << 25  # of all Jacobians of one sample at once: 256 MiB in float64


def recurrence(
    system: Any,
    criterion: Any = None,
    batch: Any = None,
    *,
    steps: int | None = None,
    params: Mapping[str, Tensor] | None = None,
    state: Any = None,
    cotangent: Tensor | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    share: float = 0.01,
    samples: int = 4,
    exponents: int = 8,
    warmup: int = 0,
    dense: int = 128,
    seed: int = 0,
) -> LinearRecurrence | RecurrenceReport:
    """Find out how gradients go back through time: do they vanish, explode, and what does clipping change.

    | system                                | other arguments                             | gives              |
    |---------------------------------------|---------------------------------------------|--------------------|
    | W, a square tensor: `h_t = W^T h_t-1` | `steps=T`; `state=h_0`, `cotangent=dL/dh_T` | `LinearRecurrence` |
    | a model that calls one `nn.RNN`,      | `criterion, batch`, as of all tools         | `RecurrenceReport` |
    | `nn.GRU` or `nn.LSTM`                 |                                             |                    |
    | `nn.RNNCell`, `GRUCell`, `LSTMCell`;  | `criterion, batch`; `state=h_0`, else zeros | `RecurrenceReport` |
    | recurrent `gf.models`                 |                                             |                    |
    | `step(params, h, x) -> h`, of one     | `criterion, batch, params=, state=h_0`      | `RecurrenceReport` |
    | sample, h a tensor or a tuple of them |                                             |                    |

    For the last two rows the batch is `(xs, target)` with xs `[B, T, ...]`, and the criterion's output is h of every
    step, `[B, T, ...]` (of a tuple its first). Without a criterion the batch is the inputs alone, and nothing is said
    of losses. The criterion gives one loss a sample, or has a reduction that can be varied.

    For W: eigenvalues with growth (closed form beside measurement), `|dh_T / dh_t|`, the spectrum of `dh_T / dh_0`,
    the transient of a W that is not normal, the share of the gradient in the dominating direction, and what clipping
    does to it. For models: the same norms along each sample's trajectory, per-step spectra, Lyapunov exponents (by QR:
    Benettin et al. 1980, Meccanica 15), `|dL_i / dh_t|` of every sample, memory horizons, clipping. For the question:
    Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.

    Clipping compares the gradient of the mean loss: not clipped; clipped after the backward pass (`clip_by_value`, or
    `clip_by_global_norm` and `clip_by_parameter_norm`); by hooks on parameters, which see the total gradient once and
    so do the same as clipping after; on the state, whose cotangent `gf.clip_cotangent` clips at every step.

    Cost, dense: T Jacobians and 2 T singular value decompositions of `[n, n]` a sample. With n above `dense` (or beyond
    256 MiB of Jacobians) matrix-free: some 40 pushes and pulls through T steps for each power of 2 below T; memory is
    that of a backward pass and T linearised steps (an `nn.RNN` of 1024 over 512 steps: half a minute, below 1 GiB).
    Nothing of the model changes; no hook is left.

    Args:
        system: what is iterated, in the mode it is used in; dropout between layers is refused.
        criterion: `criterion(output, target)`, or `gf.whole(fn)` that gives one loss a sample; None for none.
        batch: `(*inputs, target)` or a mapping; inputs alone without a criterion.
        steps: T >= 1, for W alone; models take it from their inputs.
        params: of a step function.
        state: h_0 of one sample; for W a tensor `[n]`, else normal draws of variance 1/n.
        cotangent: for W, `dL/dh_T`; normal draws likewise.
        clip_norm: compare clipping by norm at this number; the default, at 1.
        clip_value: compare clipping by value instead.
        share: below it `|dh_T / dh_t|` counts as vanished, above its inverse as exploded.
        samples: how many samples' Jacobians are taken, the first ones.
        exponents: how many Lyapunov exponents, at most n; eigenvalues of W where matrix-free.
        warmup: steps before exponents are counted, in which tangent vectors find their directions.
        dense: the largest n whose Jacobians are formed; 2 at least.
        seed: of draws of its own: h_0 and the cotangent of W, starting vectors of iterations.

    Raises:
        TypeError, ValueError: arguments that do not belong to this kind of system; W that is not square, complex or
            not finite; a state that is not finite, naming the step; packed sequences, two directions, several
            recurrent layers one after the other, dropout between layers.

    Example:
        >>> import torch, gradfunc as gf
        >>> report = gf.diagnose.recurrence(torch.tensor([[0.9, 10.0], [0.0, 0.9]]), steps=200)
        >>> report.defective, round(report.peak, 1), report.peak_lag, report.vanishes
        (True, 38.7, 9, True)
        >>> net = torch.nn.LSTM(3, 4, batch_first=True)
        >>> found = gf.diagnose.recurrence(net, lambda out, y: (out[0][:, -1] - y).square().sum(1),
        ...                                (torch.randn(5, 30, 3), torch.zeros(5, 4)))
        >>> found.vanishes, found.gradients.shape
        (True, torch.Size([5, 31]))
    """
    clip = _clip(clip_norm, clip_value)
    for name, value, least in (("samples", samples, 1), ("exponents", exponents, 1), ("warmup", warmup, 0),
                               ("dense", dense, 0), ("seed", seed, 0)):  # fmt: skip
        check_int(CALL, name, value, least)
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ValueError(message(CALL, got=f"share={share!r}", expected="a number between 0 and 1"))
    if isinstance(system, Tensor):
        _only(CALL, "a matrix", criterion=criterion, batch=batch, params=params)
        if steps is None:
            raise TypeError(message(CALL, got="a matrix without steps", expected="steps=T", do="Pass steps=50."))
        check_int(CALL, "steps", steps, 1)
        return linear(system, steps, state, cotangent, clip, share, exponents, dense, seed)
    _only(CALL, kind_of(system), steps=steps, cotangent=cotangent)
    if batch is None:
        raise TypeError(message(CALL, got="no batch", expected="(*inputs, target), or inputs without a criterion"))
    return _measured(_read(system, criterion, batch, params, state), criterion, clip, share, samples, exponents,
                     warmup, dense, seed)  # fmt: skip


def _read(system: Any, criterion: Any, batch: Any, params: Any, state: Any) -> System:
    if isinstance(system, nn.RNNCellBase):
        if type(system) not in CELLS:
            do = "Give its step: step(params, h, x)."
            got, expected = f"a {type(system).__name__}, which may step otherwise", "one of torch's own cells"
            raise TypeError(message(CALL, got=got, expected=expected, do=do))
        _only(CALL, "a cell", params=params)
        step, own, zero = cell_step(system)
        return of_step(step, own, _start(zero if state is None else state), criterion, batch)
    if isinstance(system, Recurrent):
        chosen = system.init() if params is None else params
        begin = system.start(chosen) if state is None else state
        return of_step(system.step, chosen, _start(begin), criterion, batch)
    if isinstance(system, (nn.Module, Stateless, PureModel)):
        _only(CALL, "a model", params=params, state=state)
        return of_model(system, criterion, batch)
    if not callable(system):
        expected = "a square tensor, a recurrent model, or step(params, h, x)"
        raise TypeError(message(CALL, got=kind_of(system), expected=expected))
    if params is None or state is None:
        got = f"a step function with {'no params' if params is None else 'no state'}"
        raise TypeError(message(CALL, got=got, expected="params={name: tensor} and state=h_0 of one sample"))
    return of_step(system, params, _start(state), criterion, batch)


def _measured(
    system: System, criterion: Any, clip: Clip, share: float, samples: int, count: int, warmup: int, limit: int,
    seed: int,
) -> RecurrenceReport:  # fmt: skip
    tape = Tape()
    with torch.no_grad():
        system.run({name: value.detach() for name, value in system.params.items()}, tape)
    _check_finite(tape)
    size, steps = tape.states[0].shape[1], len(tape.steps)
    if warmup >= steps:
        raise ValueError(message(CALL, got=f"warmup={warmup} of {steps} steps", expected="steps left to count"))
    small = size <= max(limit, 2) and steps * size**2 <= ENTRIES
    found, spectrum = [], []
    for k in range(min(samples, system.size)):
        jacobians = OfTape(_tape_of(system.rows(k, k + 1)))
        found.append(dense_products(jacobians) if small else matrix_free(jacobians, seed))
        spectrum.append(lyapunov(jacobians, min(count, size), warmup, seed))
    spectra = [each.step_spectra for each in found if each.step_spectra is not None]
    values = [each.log_spectrum for each in found if each.log_spectrum is not None]
    judged = criterion is not None
    return RecurrenceReport(
        size=size,
        steps=steps,
        batch_size=system.size,
        samples=len(found),
        matrix_free=not small,
        at=found[0].at,
        step_norms=torch.stack([each.step_norms for each in found]),
        step_spectra=torch.stack(spectra) if small else None,
        lags=found[0].lags,
        log_growth=torch.stack([each.log_growth for each in found]),
        log_spectrum=torch.stack(values) if small else None,
        residual=max(each.residual for each in found),
        exponents=torch.stack(spectrum),
        warmup=warmup,
        gradients=through_time(system)[0] if judged else None,
        clip=clip,
        clipping=clippings(system, clip) if judged else (),
        share=share,
    )


def _tape_of(system: System) -> Tape:
    tape = Tape()
    with torch.no_grad():
        system.run({name: value.detach() for name, value in system.params.items()}, tape)
    return tape


def _check_finite(tape: Tape) -> None:
    for t, z in enumerate(tape.states):
        if not z.isfinite().all():
            sample = int((~z.isfinite()).any(1).nonzero()[0])
            got = f"a state of sample {sample} that is not finite at step {t}"
            do = "gf.diagnose says how gradients grow only where the forward pass is finite."
            raise ValueError(message(CALL, got=got, expected="finite states", do=do))


def _start(state: Any) -> Any:
    parts = (state,) if isinstance(state, Tensor) else state
    if not isinstance(parts, (tuple, list)) or not parts or not all(isinstance(p, Tensor) for p in parts):
        raise TypeError(message(CALL, got=f"state {kind_of(state)}", expected="a tensor, or a tuple of them"))
    if not all(part.is_floating_point() for part in parts):
        raise TypeError(message(CALL, got=f"a state of {parts[0].dtype}", expected="a real floating type"))
    return state


def _clip(by_norm: float | None, by_value: float | None) -> Clip:
    if by_norm is not None and by_value is not None:
        got = f"clip_norm={by_norm!r} and clip_value={by_value!r}"
        raise ValueError(message(CALL, got=got, expected="one of them"))
    name, limit = ("value", by_value) if by_value is not None else ("norm", 1.0 if by_norm is None else by_norm)
    if not isinstance(limit, (int, float)) or isinstance(limit, bool):
        raise TypeError(message(CALL, got=f"clip_{name}={limit!r}", expected="a number"))
    if not limit > 0 or math.isnan(limit):
        raise ValueError(message(CALL, got=f"clip_{name}={limit!r}", expected="a number > 0"))
    return Clip(name, float(limit))


def _only(call: str, what: str, **others: Any) -> None:
    for name, value in others.items():
        if value is not None:
            raise TypeError(message(call, got=f"{what} with {name}=", expected=f"no {name}"))
