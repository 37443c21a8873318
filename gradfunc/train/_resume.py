"""From a checkpoint to where training stands: the same run, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .._errors import message
from .._per_sample import PerSampleGradsFunction
from .._transform import unflatten_state
from .._tree import Tensors
from ._checkpoint import load_checkpoint
from ._data import Data
from ._history import Recorder
from ._loop import Loop, Place


def resumed(call: str, loop: Loop, path: Path, resume: bool, given: Any) -> Loop:
    """Where the checkpoint stands."""
    if not resume:
        do = "Pass resume=True to go on from it, or another path."
        raise ValueError(message(call, got=f"checkpoint={str(path)!r}, which is there", expected="a new file", do=do))
    found = load_checkpoint(path)
    _check_same(call, path, found.identity or {}, dict(loop.setup.identity))
    params = {name: found.params[name].to(value.device) for name, value in loop.at.params.items()}
    like = loop.setup.run.step.init(params) if given is None else given  # laid out as these parameters are
    state = _on_devices(unflatten_state(found.state, like=like), like)
    for generator, kept in zip(loop.setup.generators(), found.generators, strict=True):
        generator.set_state(kept)
    place = Place(params, state, found.step, found.epoch, found.batch, found.generators)
    return Loop(loop.setup, place, Recorder(found.history), owns=True)


def identity(seed: int, f: PerSampleGradsFunction, data: Data, held: Data | None, params: Tensors) -> dict[str, Any]:
    """What two runs must have in common for the one to go on where the other stopped."""
    shapes = {name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in params.items()}
    count = [len(data.generators()), len(held.generators()) if held else 0]
    return {
        "seed": seed,
        "seed of the loss": f.options.seed,
        **data.identity(),
        "params": shapes,
        "generators of loaders": count,
    }


def _check_same(call: str, path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    other = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if other:
        said = "; ".join(f"{name} {found.get(name)!r}, here {wanted.get(name)!r}" for name in other)
        do = "Repeat the call that wrote it, or begin anew at another path."
        got = f"a checkpoint {str(path)!r} of another run: {said}"
        raise ValueError(message(call, got=got, expected="the same data, order and parameters", do=do))


def _on_devices(state: Any, like: Any) -> Any:
    """Tensors of the state on the devices of those in `like`."""
    if isinstance(like, Mapping):
        return {key: _on_devices(state[key], value) for key, value in like.items()}
    if isinstance(like, (tuple, list)):
        return type(like)(_on_devices(a, b) for a, b in zip(state, like, strict=True))
    return state.to(like.device) if isinstance(like, Tensor) else state
