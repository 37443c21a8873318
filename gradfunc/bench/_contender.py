"""One way to compute the quantities, and what it needs, says of itself and does not claim."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ._truth import QUANTITIES
from ._workload import Case

Call = Callable[[], Any]


class Refused(NotImplementedError):
    """A contender does not take a case."""


@dataclass(frozen=True)
class Library:
    """What a contender is made of, where that is not torch.

    Attributes:
        modules: to be imported.
        distributions: whose versions are reported, the main one first.
        install: how to get it, in a line.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.Library(("torch",), ("torch",), "pip install torch").installed
        True
    """

    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str

    @property
    def installed(self) -> bool:
        """Whether its modules are found; they are not imported."""
        return all(importlib.util.find_spec(name) is not None for name in self.modules)

    @property
    def versions(self) -> dict[str, str]:
        """Of the distributions that are there."""
        return {name: version for name in self.distributions if (version := version_of(name)) is not None}


@dataclass(frozen=True)
class Limit:
    """What a peer documents as unsupported.

    Attributes:
        applies: whether a module has it.
        says: the words of the documentation, shortened.
        source: where they stand.

    Example:
        >>> import gradfunc as gf
        >>> limit = gf.bench.Limit(lambda module: isinstance(module, nn.LSTM), "no nn.LSTM", "its front page")
        >>> limit.applies(nn.LSTM(2, 3)), limit.applies(nn.Linear(2, 3))
        (True, False)
    """

    applies: Callable[[nn.Module], bool]
    says: str
    source: str


@dataclass(frozen=True)
class Contender:
    """One way to compute the quantities.

    Attributes:
        name: by which it is asked for.
        make: `make(case, quantity) -> call`; what can be prepared once is prepared here, and `call()` is timed. It
            returns `{name: tensor}` for "clip-and-sum", `[B]` for "norms", `[B, B]` for "gram" and
            `{name: [B, *shape]}` for "materialise". A contender that writes to modules does so on a copy.
        quantities: what it can compute. What is not one of `gf.bench.QUANTITIES` is a base line: always measured,
            and not compared with anything.
        peer: whether it is somebody else's. Where it raises it has refused, and its errors are no fault of gradfunc's.
        beside: quantities beside which a base line is measured; default: always.
        foreign: whether it runs outside torch: models have to be translated for it, and its memory is not seen.
        settings: how it is used, in words.
        library: what it is made of; None for torch alone.
        limits: what it documents as unsupported.

    Example:
        >>> import gradfunc as gf
        >>> def make(case, quantity):
        ...     return lambda: sum(len(x) for x in case.batch)
        >>> gf.bench.Contender("count", make, quantities=("the batch",)).name
        'count'
    """

    name: str
    make: Callable[[Case, str], Call]
    quantities: tuple[str, ...] = QUANTITIES
    peer: bool = False
    beside: tuple[str, ...] = ()
    foreign: bool = False
    settings: str = ""
    library: Library | None = None
    limits: tuple[Limit, ...] = ()

    @property
    def made_of(self) -> str:
        """The versions of its library, or torch."""
        versions = {} if self.library is None else self.library.versions
        return ", ".join(f"{name} {version}" for name, version in versions.items()) or "torch"

    @property
    def family(self) -> str:
        """The name of its library, or its own."""
        return self.name if self.library is None else self.library.modules[0]

    def asked(self, quantities: tuple[str, ...]) -> list[str]:
        """What of it is measured where these quantities are asked for."""
        besides = not self.beside or any(quantity in quantities for quantity in self.beside)
        return [name for name in self.quantities if name in quantities or (name not in QUANTITIES and besides)]


def version_of(distribution: str) -> str | None:
    """Its version, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
