"""A training on disk: one file in the format of safetensors, replaced as a whole, read without running any code."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._errors import message
from .._files import partial_of, replace_file, target_of
from .._tree import Tensors
from ._history import History, Series

FORMAT = "gradfunc checkpoint 1"


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read. The message says which file, why, and what to do.

    Attributes:
        fit: for one that `gf.train.fit` could not write: what training had reached, to be saved elsewhere; else None.

    Example:
        >>> import gradfunc as gf
        >>> try:
        ...     gf.train.load_checkpoint("no/such/file.safetensors")
        ... except gf.train.CheckpointError as error:
        ...     print(str(error)[:41])
        gf.train.load_checkpoint('no/such/file.sa
    """

    def __init__(self, text: str, fit: Any = None) -> None:
        super().__init__(text)
        self.fit = fit


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands.

    Attributes:
        params: `{name: tensor}`.
        state: of the chain, flat: `gf.unflatten_state(state, like=step.init(params))` is the chain's own.
        history: what was seen so far.
        step: updates made, which is the number of the next one.
        epoch: of the next batch.
        batch: how many batches of that epoch are done.
        generators: states of the loader's own generators, when that epoch began.
        identity: what a run that goes on must have in common.
    """

    params: Tensors
    state: Tensors
    history: History
    step: int
    epoch: int
    batch: int
    generators: tuple[Tensor, ...] = ()
    identity: Mapping[str, Any] | None = None


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`: whole, or not at all.

    A file beside it is written and synced, then takes its place, so that at any moment `path` is the old checkpoint or
    the new one. Tensors are written as they are, in the format of safetensors, with a checksum (SHA-256), and come
    back laid out in memory as they were, on which sums depend in their last bits.

    Raises:
        CheckpointError: it cannot be written; what was there is as it was.

    Example:
        >>> import os, tempfile, torch, gradfunc as gf
        >>> fit = gf.train.fit(lambda p, x: (p["w"] - x).square(), gf.mean() >> gf.sgd(0.1), {"w": torch.zeros(())},
        ...                    torch.ones(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "run.safetensors")
        ...     gf.train.save_checkpoint(path, fit.checkpoint())
        ...     bool(gf.train.load_checkpoint(path).params["w"] == fit.params["w"])
        True
    """
    call = f"gf.train.save_checkpoint({str(path)!r}, ...)"
    try:
        replace_file(target_of(path), _bytes(checkpoint))
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        # OSError: the file cannot be written; the others: no file can hold that
        do = "What was there before is as it was; free some space or choose another path."
        got = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
        raise CheckpointError(message(call, got=got, expected="a file that can be written", do=do)) from error


def load_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Checkpoint:
    """Read what `gf.train.fit` or `gf.train.save_checkpoint` wrote. The file is data: nothing in it is run.

    Args:
        path: of the file.
        device: where the tensors go.

    Raises:
        CheckpointError: no such file, no checkpoint, or one whose bytes are not those that were written.

    Example:
        >>> import os, tempfile, torch, gradfunc as gf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "run.safetensors")
        ...     fit = gf.train.fit(lambda p, x: (p["w"] - x).square(), gf.mean() >> gf.adam(0.1),
        ...                        {"w": torch.zeros(())}, torch.ones(64), checkpoint=path)
        ...     saved = gf.train.load_checkpoint(path)
        >>> saved.step, sorted(saved.state)[:2]
        (2, ['adam/scale_by_adam/count', 'adam/scale_by_adam/exp_avg/w'])
    """
    call = f"gf.train.load_checkpoint({str(path)!r})"
    do = "The file is left as it is. Take another checkpoint, or begin anew at another path."
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # copies: the format's own tensors are the file, and change with it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:  # missing, no such format, cut short
        text = " ".join(str(error).split())
        raise CheckpointError(
            message(call, got=f"{type(error).__name__}: {text}", expected="a checkpoint", do=do)
        ) from error
    if metadata.get("gradfunc") != FORMAT:
        got = f"a file of safetensors that says {metadata.get('gradfunc')!r}"
        raise CheckpointError(message(call, got=got, expected=f"{FORMAT!r}", do=do))
    try:
        facts = json.loads(metadata["facts"])
        if facts.pop("sha256") != _digest(tensors, facts):
            raise ValueError("its bytes are not those that were written (SHA-256)")
        return _read(tensors, facts, torch.device(device))
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(message(call, got=f"a corrupt file: {error}", expected="a checkpoint", do=do)) from error


def check_writable(call: str, path: Path) -> None:
    """Raise CheckpointError unless a file can be made there, before anything is computed."""
    try:
        target = target_of(path)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        partial = partial_of(target)  # whose name is the longer one
        partial.open("wb").close()
        partial.unlink()
    except (OSError, ValueError) as error:  # a ValueError: no name of a file
        got = f"checkpoint={str(path)!r} ({type(error).__name__}: {getattr(error, 'strerror', None) or error})"
        do = "Nothing was run. Make the folder, or choose another path."
        raise CheckpointError(
            message(call, got=got, expected="a file in a folder that can be written", do=do)
        ) from error


def _bytes(checkpoint: Checkpoint) -> bytes:
    tensors, facts = _flat(checkpoint)
    facts["sha256"] = _digest(tensors, facts)
    return safetensors.torch.save(tensors, metadata={"gradfunc": FORMAT, "facts": json.dumps(facts)})


def _flat(checkpoint: Checkpoint) -> tuple[Tensors, dict[str, Any]]:
    """Tensors by name, and what is no tensor, JSON-ready."""
    tensors = {f"params/{name}": value for name, value in checkpoint.params.items()}
    tensors |= {f"state/{name}": value for name, value in checkpoint.state.items()}
    tensors |= {f"generator/{k}": value for k, value in enumerate(checkpoint.generators)}
    texts: dict[str, Any] = {}
    for name, (steps, values) in checkpoint.history.series.items():
        tensors[f"steps/{name}"] = torch.from_numpy(steps)
        if isinstance(values, np.ndarray):
            tensors[f"history/{name}"] = torch.from_numpy(values)
        else:
            texts[name] = values
    # copies: the format takes neither shared storage nor other layouts, and not all complex numbers
    copies = {name: value.detach().cpu().resolve_conj().clone() for name, value in tensors.items()}
    strides = {name: list(value.stride()) for name, value in copies.items() if value.stride() != _plain(value)}
    paired = [name for name, value in copies.items() if value.is_complex()]
    flat = {name: value.contiguous() for name, value in copies.items()}
    flat |= {name: torch.view_as_real(flat[name]) for name in paired}
    facts = {
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "batch": checkpoint.batch,
        "identity": None if checkpoint.identity is None else dict(checkpoint.identity),
        "texts": texts,
        "order": list(tensors),
        "complex": paired,
        "strides": strides,
    }
    return flat, facts


def _plain(value: Tensor) -> tuple[int, ...]:
    """The strides of a tensor of this shape that was just made."""
    return torch.empty(value.shape, device="meta").stride()


def _read(tensors: Tensors, facts: dict[str, Any], device: torch.device) -> Checkpoint:
    kinds: dict[str, Tensors] = {"params": {}, "state": {}, "generator": {}, "steps": {}, "history": {}}
    for name in facts["order"]:
        kind, _, rest = name.partition("/")
        value = torch.view_as_complex(tensors[name]) if name in facts["complex"] else tensors[name]
        if name in facts["strides"]:
            value = torch.empty_strided(value.shape, facts["strides"][name], dtype=value.dtype).copy_(value)
        kinds[kind][rest] = value
    series = {
        name: Series(
            steps.numpy(), kinds["history"][name].numpy() if name in kinds["history"] else facts["texts"][name]
        )
        for name, steps in kinds["steps"].items()
    }
    params, state = ({name: value.to(device) for name, value in kinds[kind].items()} for kind in ("params", "state"))
    generators = tuple(kinds["generator"].values())
    step, epoch, batch = (int(facts[name]) for name in ("step", "epoch", "batch"))
    return Checkpoint(params, state, History(series), step, epoch, batch, generators, facts["identity"])


def _digest(tensors: Tensors, facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
