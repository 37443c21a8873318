"""What a call may leave behind, and what its answers may share: modules, tensors, generators, flags."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._per_sample import PerSampleGrads, concatenate
from .._tree import tensors_of
from .._weights import Accumulator


def results_of(g: PerSampleGrads) -> dict[str, Any]:
    """Every answer, each asked once, the rows twice."""
    c = torch.linspace(-1, 1, g.batch_size, dtype=torch.float64, device=g.losses.device)
    sums = g.sum()
    return {
        "losses": g.losses,
        "weights": g.weights,
        "norms": g.norms(),
        "norms per parameter": g.norms(per_parameter=True),
        "gram": g.gram(),
        "gram per parameter": g.gram(per_parameter=True),
        "dot": g.dot(sums),
        "sum": sums,
        "weighted_sum": g.weighted_sum(c),
        "mean": g.mean(on_zero_weight="zero"),
        "none": g.materialize(),
        "none again": g.materialize(),
    }


def everything(g: PerSampleGrads, params: Mapping[str, Tensor]) -> None:
    """Every query, and every way to make a value of values."""
    results_of(g)
    ones = torch.ones_like(g.losses)
    for value in (g.select(slice(0, 2)), g.scaled(ones), g.weighted(ones), concatenate([g, g]), *g.split(2)):
        value.sum()
    Accumulator.init({name: params[name] for name in g.names}).add(g).mean(on_zero_weight="zero")
    g.explain(), g.unused


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nests hold bitwise equal tensors (NaN equal to NaN)."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def storages(tree: Any) -> set[int]:
    """Addresses of the storages of all tensors in a nest."""
    return {_storage(tensor) for tensor in tensors_of(tree) if tensor.numel()}


def shared(g: PerSampleGrads, params: Mapping[str, Tensor], batch: Any) -> tuple[str, str] | None:
    """Who owns a storage that an answer shares, and which answer."""
    owners = {_storage(value): f"parameter {name}" for name, value in params.items()}
    owners |= {_storage(tensor): "the batch" for tensor in tensors_of(batch)}
    results = results_of(g)  # held, so that no storage is used for a second one
    for what, result in results.items():
        for tensor in tensors_of(result):
            if tensor.numel() and (owner := owners.setdefault(_storage(tensor), what)) is not what:
                return owner, what
    return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# --- what is left behind ------------------------------------------------------------------------------------------

Held = tuple[Tensor, Tensor, int, bool, Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A module, its batch and the generators, as they are at one time."""

    tensors: dict[str, Held]
    attributes: dict[str, Any]
    batch: list[tuple[Tensor, Tensor, int]]
    generators: dict[str, Any]
    flags: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module | None, batch: Any, named: Mapping[str, Tensor] | None = None) -> Snapshot:
        """Take one; `named` tensors are told apart in what is said of them."""
        return cls(
            tensors=_tensors(module, named),
            attributes=_attributes(module),
            batch=[(tensor, tensor.detach().clone(), _version(tensor)) for tensor in tensors_of(batch)],
            generators=_generators(),
            flags=flags_now(),
        )

    def changed(self, module: nn.Module | None, named: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, str]]:
        """`(name, what about it)` for all that is not as it was."""
        now = _tensors(module, named)
        for name, (tensor, values, version, requires_grad, grad, grad_values) in self.tensors.items():
            if name not in now or now[name][0] is not tensor:
                yield name, "is another tensor"
            elif not _same(tensor, values):
                yield name, "has other values"
            elif _version(tensor) != version:
                yield name, "was written to"
            elif tensor.requires_grad is not requires_grad:
                yield name, "requires grad otherwise"
            elif now[name][4] is not grad or (grad is not None and not _same(grad, grad_values)):
                yield name, "has another .grad"
        yield from ((name, "is new") for name in now if name not in self.tensors)
        attributes = _attributes(module)
        for name in {**self.attributes, **attributes}:
            missing = object()
            if not _unchanged(self.attributes.get(name, missing), attributes.get(name, missing)):
                yield name, "changed"
        if not all(_same(tensor, values) for tensor, values, _ in self.batch):
            yield "the batch", "has other values"
        elif not all(_version(tensor) == version for tensor, _, version in self.batch):
            yield "the batch", "was written to"
        generators = _generators()
        yield from (
            (name, "moved") for name, state in self.generators.items() if not _same_state(state, generators[name])
        )
        flags = flags_now()
        yield from ((name, "changed") for name, value in self.flags.items() if flags[name] != value)


def _tensors(module: nn.Module | None, named: Mapping[str, Tensor] | None) -> dict[str, Held]:
    held = dict(named or {})
    if module is not None:
        held |= dict(module.named_parameters(remove_duplicate=False))
        held |= dict(module.named_buffers(remove_duplicate=False))
    return {name: (t, t.detach().clone(), _version(t), t.requires_grad, *_grad(t)) for name, t in held.items()}


def _grad(tensor: Tensor) -> tuple[Tensor | None, Tensor | None]:
    grad = tensor.grad if tensor.is_leaf else None
    return grad, None if grad is None else grad.detach().clone()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # which such tensors do not have


def _attributes(module: nn.Module | None) -> dict[str, Any]:
    """`__dict__` of every layer (modes, hooks and what a forward pass assigns), containers copied."""
    out = {}
    for name, layer in module.named_modules() if module is not None else ():
        for key, value in layer.__dict__.items():
            if key in ("_parameters", "_buffers"):  # compared as tensors
                continue
            copied = isinstance(value, (dict, list, set))
            out[f"{name}.{key}".lstrip(".")] = type(value)(value) if copied and type(value) in _COPIED else value
    return out


_COPIED = (dict, list, set, type(nn.Module()._forward_hooks))


def _unchanged(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_unchanged(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(_unchanged(x, y) for x, y in zip(a, b, strict=True))
    if a is b:
        return True
    plain = (bool, int, float, str, set, bytes, type(None))
    return isinstance(a, plain) and isinstance(b, plain) and a == b


def flags_now() -> dict[str, Any]:
    """Modes and settings of torch that hold for the whole process."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "cudnn": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
    }


@contextlib.contextmanager
def generators_elsewhere() -> Iterator[None]:
    """The global generators one draw on, so that who seeds one anew, as before, is seen; put back behind."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        for device in ("cpu", *(f"cuda:{k}" for k in cuda)):
            torch.rand((), device=device)
        random.random(), np.random.random()
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


def _generators() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch's generator": torch.get_rng_state(),
        "Python's generator": random.getstate(),
        "numpy's generator": np.random.get_state(legacy=False),
    }
    if torch.cuda.is_initialized():
        states |= {f"generator of cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_same_state(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    return bool(torch.equal(a, b)) if isinstance(a, Tensor) else bool(a == b)


def _same(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    a = a.detach()
    return bool(((a == b) | ((a != a) & (b != b))).all())
