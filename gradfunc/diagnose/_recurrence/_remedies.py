"""What is done against vanishing gradients: every remedy's gradient through time beside its closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import models
from ..._errors import check_int, message
from ..._rounding import gamma, unit_roundoff
from ..._tree import Tensors
from ...models import Recurrent
from ._capacity import memory_capacity
from ._remedy_report import Remedy, RemedyReport

CALL = "gf.diagnose.remedies(...)"
Run = Callable[[Tensor], Tensor]  # h_0 -> h_T


def remedies(
    *,
    eigenvalue: float = 0.9,
    steps: int = 50,
    hidden: int = 16,
    leak: float = 0.1,
    delay: int = 5,
    forget_biases: Sequence[float] = (1.0, 3.0, 5.0),
    seed: int = 0,
) -> RemedyReport:
    """Measure what each remedy makes of a gradient that has to go back T steps, beside its closed form.

    | model                               | closed form of the gradient over T steps                       |
    |-------------------------------------|----------------------------------------------------------------|
    | plain, linear                       | `lambda^T`                                                     |
    | leaky, `(1 - a) h + a W h`          | `(1 - a + a lambda)^T`                                         |
    | delay, `W h_{t-d}`                  | `lambda^(T/d)`, T a multiple of d                              |
    | skip, `W h_{t-1} / 2 + W h_{t-d} / 2` | `c_T = lambda (c_{T-1} + c_{T-d}) / 2`, `c_0 = 1`            |
    | LSTM, along c                       | `max_j prod_t f_tj`                                            |
    | GRU, along h                        | `max_j prod_t z_tj`                                            |
    | orthogonal, linear                  | 1                                                              |
    | orthogonal, tanh                    | at most 1                                                      |
    | echo state                          | none: nothing is sent back; memory capacity instead            |

    Goodfellow, Bengio and Courville 2016, sections 10.7 to 10.10. Linear models have a symmetric recurrent weight whose
    largest eigenvalue is `eigenvalue`, so that norms are eigenvalues. All in float64, inputs normal draws.

    Args:
        eigenvalue: lambda > 0.
        steps: T, a multiple of `delay`.
        hidden: n >= 2.
        leak: a, in (0, 1].
        delay: d.
        forget_biases: an LSTM each; one as torch starts it (both biases uniform, so about 0) comes besides.
        seed: of weights and inputs.

    Raises:
        TypeError, ValueError: numbers out of range; T that is no multiple of d.

    Example:
        >>> import gradfunc as gf
        >>> report = gf.diagnose.remedies(eigenvalue=0.9, steps=50)
        >>> report.ok, f"{report.row('plain').measured:.4g}", f"{report.row('delay').measured:.4g}"
        (True, '0.005154', '0.3487')
    """
    for name, value, least in (("steps", steps, 1), ("hidden", hidden, 2), ("delay", delay, 1), ("seed", seed, 0)):
        check_int(CALL, name, value, least)
    if not isinstance(eigenvalue, (int, float)) or not 0 < eigenvalue < math.inf:
        raise ValueError(message(CALL, got=f"eigenvalue={eigenvalue!r}", expected="a number > 0"))
    if steps % delay:
        raise ValueError(message(CALL, got=f"steps={steps}, delay={delay}", expected="steps a multiple of delay"))
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator, dtype=torch.float64))[0]
    w = q @ torch.diag(torch.linspace(eigenvalue / hidden, eigenvalue, hidden, dtype=torch.float64)) @ q.T
    xs = torch.randn(steps, 1, generator=generator, dtype=torch.float64)
    options: dict[str, Any] = {"seed": seed, "dtype": torch.float64}
    line: dict[str, Any] = {"activation": _identity, "recurrent": w, **options}
    rate = 1 - leak + leak * eigenvalue
    skip = models.skip_rnn(1, hidden, delay=delay, **{**line, "recurrent": w / 2})
    rows = [
        _linear("plain", "lambda^T", eigenvalue**steps, models.rnn(1, hidden, **line), xs),
        _linear("leaky", "(1 - a + a lambda)^T", rate**steps, models.leaky_rnn(1, hidden, leak=leak, **line), xs),
        _linear(
            "delay", "lambda^(T/d)", eigenvalue ** (steps // delay),
            models.skip_rnn(1, hidden, delay=delay, direct=False, **line), xs,
        ),
        _linear("skip", "c_T, a recursion", _recursion(eigenvalue, delay, steps), skip, xs),
        _lstm("LSTM, as torch starts", _torch_lstm(hidden, options), xs),
        *(_lstm(f"LSTM, forget bias {b:g}", models.lstm(1, hidden, forget_bias=b, **options), xs)
          for b in forget_biases),
        _gru(models.gru(1, hidden, **options), xs),
        _linear("orthogonal, linear", "1", 1.0, models.rnn(1, hidden, **{**line, "recurrent": "orthogonal"}), xs),
        _unbounded("orthogonal, tanh", "at most 1", models.rnn(1, hidden, recurrent="orthogonal", **options), xs),
        *(_reservoir(radius, hidden, options, xs) for radius in (0.5, 0.9, 0.99)),
    ]  # fmt: skip
    return RemedyReport(float(eigenvalue), steps, hidden, tuple(rows))


def _identity(z: Tensor) -> Tensor:
    return z


def _recursion(eigenvalue: float, delay: int, steps: int) -> float:
    """dh_T / dh_0 of `h_t = lambda (h_{t-1} + h_{t-d}) / 2`, the other states of the start held."""
    c = [0.0] * (delay - 1) + [1.0]
    for _ in range(steps):
        c.append(eigenvalue * (c[-1] + c[-delay]) / 2)
    return c[-1]


def _linear(name: str, formula: str, closed: float, model: Recurrent, xs: Tensor) -> Remedy:
    measured = _norm(_run(model, model.init(), xs), model)
    # T products of [n, n] with as many additions, measured and closed; and the rounding of W's own eigenvalue
    n = len(model.init()["b"])
    bound = gamma(len(xs) * (3 * n + 4), unit_roundoff(torch.float64))
    return Remedy(name, formula, closed, measured, bound, measured)


def _unbounded(name: str, formula: str, model: Recurrent, xs: Tensor, capacity: float | None = None) -> Remedy:
    measured = _norm(_run(model, model.init(), xs), model)
    return Remedy(name, formula, None, measured, None, measured, capacity)


def _reservoir(radius: float, hidden: int, options: dict[str, Any], xs: Tensor) -> Remedy:
    model = models.echo_state(1, hidden, spectral_radius=radius, input_scale=0.1, **options)
    return _unbounded(
        f"echo state, radius {radius:g}", "", model, xs, memory_capacity(model, length=2000, washout=200).total
    )


def _torch_lstm(hidden: int, options: dict[str, Any]) -> Recurrent:
    """Biases of the forget gate uniform as all others."""
    other = models.lstm(1, hidden, **options)

    def init() -> Tensors:
        cell = torch.empty(2, hidden, dtype=options["dtype"])
        bound = 1 / math.sqrt(hidden)
        cell.uniform_(-bound, bound, generator=torch.Generator().manual_seed(options["seed"] + 1))
        params = other.init()
        params["b_ih"][hidden : 2 * hidden], params["b_hh"][hidden : 2 * hidden] = cell
        return params

    return Recurrent(init, other.start, other.step)


def _lstm(name: str, model: Recurrent, xs: Tensor) -> Remedy:
    """`dc_T / dc_0` with h held: a diagonal, whose entries are one backward pass of the sum."""
    params, gates = model.init(), []
    h, c = model.start(params)
    first = c.clone().requires_grad_()
    c = first
    for x in xs:
        z = params["w_ih"] @ x + params["b_ih"] + params["w_hh"] @ h.detach() + params["b_hh"]
        gates.append(z.chunk(4)[1].sigmoid())
        h, c = model.step(params, (h.detach(), c), x)
    (direct,) = torch.autograd.grad(c.sum(), first)
    return _gated(name, "max prod f_t", torch.stack(gates), direct, _norm(_run(model, params, xs), model))


def _gru(model: Recurrent, xs: Tensor) -> Remedy:
    """`dh_T / dh_0` along `z h` with gates and candidate held."""
    params, gates = model.init(), []
    h = model.start(params)
    assert isinstance(h, Tensor)
    first = h.clone().requires_grad_()
    h = first
    for x in xs:
        given = params["w_ih"] @ x + params["b_ih"], params["w_hh"] @ h.detach() + params["b_hh"]
        z = (given[0].chunk(3)[1] + given[1].chunk(3)[1]).sigmoid()
        gates.append(z.detach())
        new = model.step(params, h.detach(), x)
        assert isinstance(new, Tensor)
        # the step's own value; of its derivative the direct path alone
        h = new.detach() + z * (h - h.detach())
    (direct,) = torch.autograd.grad(h.sum(), first)
    return _gated("GRU", "max prod z_t", torch.stack(gates), direct, _norm(_run(model, params, xs), model))


def _gated(name: str, formula: str, gates: Tensor, direct: Tensor, whole: float) -> Remedy:
    closed = float(gates.prod(0).max())
    bound = gamma(2 * len(gates) * 8, unit_roundoff(torch.float64))  # a sigmoid is within a few units each
    return Remedy(name, formula, closed, float(direct.max()), bound, whole)


def _run(model: Recurrent, params: Tensors, xs: Tensor) -> Run:
    """The state's first part after all steps, as a function of the whole state before them."""
    alone = isinstance(model.start(params), Tensor)
    sizes = [part.numel() for part in _parts(model, params)]

    def run(z: Tensor) -> Tensor:
        state: Any = z if alone else tuple(z.split(sizes))
        for x in xs:
            state = model.step(params, state, x)
        out: Tensor = state if alone else state[0]
        return out

    return run


def _norm(run: Run, model: Recurrent) -> float:
    """`|dh_T / dh_0|_2`, h the part that is read: the newest of delayed ones; by (h, c) of an LSTM."""
    params = model.init()
    parts = _parts(model, params)
    jacobian = torch.func.jacrev(run)(torch.cat(parts))
    kept = jacobian.shape[1] if "b_hh" in params else parts[0].numel()
    return float(torch.linalg.matrix_norm(jacobian[:, :kept], 2))


def _parts(model: Recurrent, params: Tensors) -> tuple[Tensor, ...]:
    start = model.start(params)
    return (start,) if isinstance(start, Tensor) else start
