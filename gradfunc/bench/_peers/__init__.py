"""Other libraries for per-sample gradients, each as its own documentation uses it; one file a library.

They hook and write to modules, so each starts from a copy. They are told that the loss is a sum: rows are the gradients
of each sample's numerator. Libraries are imported where a contender is made, so that none has to be there.

_copy      a copied module, its losses, and what is left on its parameters
_opacus    hooks, ghost clipping         _expanded  torch's expanded weights
_backpack  BatchGrad, BatchL2Grad        _torchjd   the engine for Gram matrices
_jax       vmap(grad) compiled, with optax
"""

from __future__ import annotations

from .._contender import Contender
from . import _backpack, _expanded, _jax, _opacus, _torchjd

_FILES = (_expanded, _opacus, _backpack, _torchjd, _jax)
PEERS: dict[str, Contender] = {peer.name: peer for file in _FILES for peer in file.CONTENDERS}
"""Other libraries' ways, `{name: contender}`; whether one is installed is asked when it is measured."""


def installed() -> list[Contender]:
    """The peers that are there."""
    return [peer for peer in PEERS.values() if peer.library is None or peer.library.installed]


def missing() -> list[str]:
    """A line for each library that is not."""
    found: dict[str, list[str]] = {}
    for peer in PEERS.values():
        if peer.library is not None and not peer.library.installed:
            found.setdefault(peer.library.install, []).append(peer.name)
    return [f"not installed: {' and '.join(names)}; {install}" for install, names in found.items()]


def versions() -> dict[str, str]:
    """Of every library that is installed."""
    libraries = [peer.library for peer in installed() if peer.library is not None]
    return {name: version for library in libraries for name, version in library.versions.items()}
