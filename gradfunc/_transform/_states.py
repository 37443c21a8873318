"""The state of a chain as one flat dictionary of tensors, and back: for any format that stores tensors by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._tree import Tensors
from ._protocol import State


def flatten_state(state: State) -> Tensors:
    """The state of a stage or chain as `{path: tensor}`, for safetensors or `torch.save`.

    A path is the keys on the way, joined by "/": `"adam/scale_by_adam/exp_avg/layer.weight"`; of a
    chain the first key is the stage's name, of a rule made of parts the second the part's. Counts are int64, other
    numbers float64, truth values bool; tensors are the state's own, or copies of those that are not contiguous (formats
    that store bytes take no others). What remembers nothing leaves nothing.

    Raises:
        TypeError: the state holds something else than nested dictionaries, tuples and lists of tensors and numbers.
        ValueError: two of its leaves have one path, by keys with a "/" in them.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.mean() >> gf.sgd(0.1, momentum=0.9)
        >>> flat = gf.flatten_state(step.init({"w": torch.zeros(2)}))
        >>> flat
        {'sgd/momentum/momentum_buffer/w': tensor([0., 0.]), 'sgd/momentum/count': tensor(0)}
        >>> gf.unflatten_state(flat, like=step.init({"w": torch.ones(2)}))["sgd"]["momentum"]["count"]
        0
    """
    flat: Tensors = {}
    for path, leaf in _leaves(state):
        name = "/".join(path)
        if name in flat:
            got, do = f"two leaves at '{name}'", "Name labels and parameters without '/'."
            raise ValueError(message("gf.flatten_state(state)", got=got, expected="a path for each", do=do))
        flat[name] = _tensor(name, leaf)
    return flat


def unflatten_state(flat: Mapping[str, Tensor], like: State) -> State:
    """What `gf.flatten_state` made flat, in the form of `like`, such as `step.init(params)`.

    Tensors are those given, laid out in memory as in `like`; what is a number in `like` becomes one again.

    Raises:
        TypeError: `flat` is no mapping.
        ValueError: paths that `like` has not, or that are missing.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.mean() >> gf.sgd(0.1, momentum=0.9)
        >>> state = step.init({"w": torch.zeros(2)})
        >>> gf.unflatten_state(gf.flatten_state(state), like=state)["sgd"]["momentum"]["count"]
        0
    """
    call = "gf.unflatten_state(flat, like)"
    if not isinstance(flat, Mapping):
        raise TypeError(message(call, got=kind_of(flat), expected="a dict {path: tensor} of gf.flatten_state"))
    wanted = {"/".join(path) for path, _ in _leaves(like)}
    missing, extra = sorted(wanted - set(flat)), sorted(set(flat) - wanted)
    if missing or extra:
        got = f"a state that lacks {missing} and holds besides {extra}"
        raise ValueError(message(call, got=got, expected="the paths of `like`", do="Pass step.init(params) as `like`."))
    return _filled(like, flat, ())


def _leaves(state: State, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from _leaves(value, (*path, str(key)))
    elif isinstance(state, (tuple, list)):
        for k, value in enumerate(state):
            yield from _leaves(value, (*path, str(k)))
    else:
        yield path, state


def _tensor(path: str, leaf: Any) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.contiguous()
    if isinstance(leaf, (bool, int, float)):
        dtype = torch.bool if isinstance(leaf, bool) else torch.int64 if isinstance(leaf, int) else torch.float64
        return torch.tensor(leaf, dtype=dtype)
    expected = "tensors and numbers in nested dictionaries, tuples and lists"
    raise TypeError(message("gf.flatten_state(state)", got=f"{kind_of(leaf)} at '{path}'", expected=expected))


def _filled(like: State, flat: Mapping[str, Tensor], path: tuple[str, ...]) -> State:
    if isinstance(like, Mapping):
        return {key: _filled(value, flat, (*path, str(key))) for key, value in like.items()}
    if isinstance(like, (tuple, list)):
        return type(like)(_filled(value, flat, (*path, str(k))) for k, value in enumerate(like))
    leaf = flat["/".join(path)]
    if not isinstance(like, Tensor):
        return leaf.item() if leaf.dim() == 0 else leaf  # of the kind it was, were it 0 in `like` and is it 0.5
    if leaf.shape != like.shape or leaf.stride() == like.stride():
        return leaf
    return torch.empty_like(like, dtype=leaf.dtype, device=leaf.device).copy_(leaf)
