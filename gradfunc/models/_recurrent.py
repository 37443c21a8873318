"""Recurrent models as functions of one step, and what is done against vanishing gradients.

The hidden state h of one sample is a vector; `w_hh` stands as in torch, so a linear recurrence is `h_t = w_hh h_{t-1}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import check_int, message
from .._tree import Tensors

State = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Recurrent:
    """A recurrent model as three functions; `apply` runs all steps. Made by the functions of `gf.models`.

    Attributes:
        init: `() -> params`.
        start: `params -> h_0` of one sample, zeros; a tensor, or a tuple whose first is what is read.
        step: `(params, h, x) -> h` of one sample, or of a batch with a leading dimension in both.
    """

    init: Callable[[], Tensors]
    start: Callable[[Mapping[str, Tensor]], State]
    step: Callable[[Mapping[str, Tensor], State, Tensor], State]

    def apply(self, params: Mapping[str, Tensor], xs: Tensor) -> Tensor:
        """The hidden states of all steps, `[B, T, hidden]`, of inputs `[B, T, inputs]`."""
        start = self.start(params)
        first = (start,) if isinstance(start, Tensor) else start
        # what is added is batched where the inputs are, also under vmap
        zero = torch.zeros_like(xs[:, 0, :1])
        parts = tuple(part + zero for part in first)
        state: State = parts[0] if isinstance(start, Tensor) else parts
        outputs = []
        for x in xs.unbind(1):
            state = self.step(params, state, x)
            outputs.append(state if isinstance(state, Tensor) else state[0])
        return torch.stack(outputs, 1)


def rnn(
    inputs: int,
    hidden: int,
    *,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    recurrent: Tensor | str = "uniform",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Recurrent:
    """The plain recurrence `h_t = activation(w_hh h_{t-1} + w_ih x_t + b)`.

    Args:
        inputs: entries of x.
        hidden: entries of h.
        activation: any function of tensors; `lambda z: z` makes it linear.
        recurrent: what `w_hh` starts from: "uniform", as in `nn.RNN`; "orthogonal", whose linear recurrence keeps every
            norm (Saxe, McClelland and Ganguli 2014, arXiv 1312.6120; Le, Jaitly and Hinton 2015, arXiv 1504.00941,
            take the identity); or a tensor `[hidden, hidden]`.
        seed: of the parameters; what is not given is uniform within `1 / sqrt(hidden)`.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: sizes below 1, a tensor of another shape, an unknown name.

    Example:
        >>> import torch, gradfunc as gf
        >>> model = gf.models.rnn(3, 8, recurrent="orthogonal")
        >>> model.apply(model.init(), torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 8])
    """
    call = f"gf.models.rnn({inputs}, {hidden}, ...)"
    return _leaky(call, inputs, hidden, 1.0, activation, recurrent, seed, dtype)


def leaky_rnn(
    inputs: int,
    hidden: int,
    *,
    leak: float,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    recurrent: Tensor | str = "uniform",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Recurrent:
    """Leaky units, `h_t = (1 - a) h_{t-1} + a activation(w_hh h_{t-1} + w_ih x_t + b)`.

    An eigenvalue lambda of `w_hh` becomes `1 - a + a lambda` (linear), which is nearer to 1 (Jaeger et al. 2007,
    "Optimization and applications of echo state networks with leaky-integrator neurons", Neural Networks 20).

    Args:
        inputs: entries of x.
        hidden: entries of h.
        leak: a, in (0, 1]; 1 is the plain recurrence.
        activation: as in `gf.models.rnn`.
        recurrent: as in `gf.models.rnn`.
        seed: as in `gf.models.rnn`.
        dtype: as in `gf.models.rnn`.

    Raises:
        TypeError, ValueError: as in `gf.models.rnn`; a leak outside (0, 1].

    Example:
        >>> import torch, gradfunc as gf
        >>> w = torch.tensor([[0.5]])
        >>> model = gf.models.leaky_rnn(1, 1, leak=0.1, activation=lambda z: z, recurrent=w)
        >>> params = {**model.init(), "b": torch.zeros(1)}
        >>> model.step(params, torch.ones(1), torch.zeros(1))
        tensor([0.9500])
    """
    call = f"gf.models.leaky_rnn({inputs}, {hidden}, leak={leak!r})"
    if not isinstance(leak, (int, float)) or not 0 < leak <= 1:
        raise ValueError(message(call, got=f"leak={leak!r}", expected="a number in (0, 1]"))
    return _leaky(call, inputs, hidden, float(leak), activation, recurrent, seed, dtype)


def skip_rnn(
    inputs: int,
    hidden: int,
    *,
    delay: int,
    direct: bool = True,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    recurrent: Tensor | str = "uniform",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Recurrent:
    """Skip connections through time, `h_t = activation(w_hh h_{t-1} + w_skip h_{t-d} + w_ih x_t + b)`.

    A gradient has T/d steps to go instead of T (Lin, Horne, Tino and Giles 1996, "Learning long-term dependencies in
    NARX recurrent neural networks"). The state is a tuple `(h_{t-1}, ..., h_{t-d})`.

    Args:
        inputs: entries of x.
        hidden: entries of h.
        delay: d >= 1.
        direct: whether there is `w_hh h_{t-1}` besides; without, d recurrences run side by side.
        activation: as in `gf.models.rnn`.
        recurrent: of `w_skip`, and of `w_hh`, whose draws are others; as in `gf.models.rnn`.
        seed: as in `gf.models.rnn`.
        dtype: as in `gf.models.rnn`.

    Raises:
        TypeError, ValueError: as in `gf.models.rnn`; a delay below 1.

    Example:
        >>> import torch, gradfunc as gf
        >>> model = gf.models.skip_rnn(1, 4, delay=3, direct=False)
        >>> sorted(model.init()), len(model.start(model.init()))
        (['b', 'w_ih', 'w_skip'], 3)
    """
    call = f"gf.models.skip_rnn({inputs}, {hidden}, delay={delay!r})"
    check_int(call, "delay", delay, 1)

    def init() -> Tensors:
        names = ["w_skip", "w_hh"] if direct else ["w_skip"]
        return _plain_params(call, inputs, hidden, names, recurrent, seed, dtype)

    def start(params: Mapping[str, Tensor]) -> State:
        return tuple(params["b"].new_zeros(hidden) for _ in range(delay))

    def step(params: Mapping[str, Tensor], state: State, x: Tensor) -> State:
        z = F.linear(x, params["w_ih"], params["b"]) + F.linear(state[-1], params["w_skip"])
        z = z + F.linear(state[0], params["w_hh"]) if direct else z
        return (activation(z), *state[:-1])

    return checked(Recurrent(init, start, step))


def _leaky(
    call: str,
    inputs: int,
    hidden: int,
    leak: float,
    activation: Callable[[Tensor], Tensor],
    recurrent: Tensor | str,
    seed: int,
    dtype: torch.dtype,
) -> Recurrent:
    def init() -> Tensors:
        return _plain_params(call, inputs, hidden, ["w_hh"], recurrent, seed, dtype)

    def start(params: Mapping[str, Tensor]) -> State:
        return params["b"].new_zeros(hidden)

    def step(params: Mapping[str, Tensor], state: State, x: Tensor) -> State:
        assert isinstance(state, Tensor)
        new = activation(F.linear(x, params["w_ih"], params["b"]) + F.linear(state, params["w_hh"]))
        return new if leak == 1 else (1 - leak) * state + leak * new

    return checked(Recurrent(init, start, step))


def checked(model: Recurrent) -> Recurrent:
    """Its arguments are refused when it is made."""
    model.init()
    return model


def _plain_params(
    call: str,
    inputs: int,
    hidden: int,
    recurrences: Sequence[str],
    recurrent: Tensor | str,
    seed: int,
    dtype: torch.dtype,
) -> Tensors:
    check_int(call, "inputs", inputs, 1)
    check_int(call, "hidden", hidden, 1)
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(hidden)

    def uniform(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)

    params = {"w_ih": uniform(hidden, inputs), "b": uniform(hidden)}
    for name in recurrences:
        if isinstance(recurrent, Tensor):
            if recurrent.shape != (hidden, hidden):
                got = f"recurrent {tuple(recurrent.shape)}"
                raise ValueError(message(call, got=got, expected=f"a tensor [{hidden}, {hidden}]"))
            params[name] = recurrent.detach().to(dtype, copy=True)
        elif recurrent == "uniform":
            params[name] = uniform(hidden, hidden)
        elif recurrent == "orthogonal":
            params[name] = torch.nn.init.orthogonal_(torch.empty(hidden, hidden, dtype=dtype), generator=generator)
        else:
            expected = "'uniform', 'orthogonal' or a tensor"
            raise ValueError(message(call, got=f"recurrent={recurrent!r}", expected=expected))
    return params
