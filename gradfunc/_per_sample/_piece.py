"""Some samples' rows, as one query holds them, and what they are multiplied by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _factors
from .._factors import Gradients, Projection
from .._tree import At, Tensors, row_norms, weighed
from ._scales import Group, Names, Scales


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows as the source has them, of the samples `at`, the scales of the value that is asked, and its parameters.

    Answers about rows are multiplied, never the rows: clipping, masking and unscaling touch none of them until a sum.
    """

    at: At
    rows: Gradients
    scales: Scales
    names: Names

    @functools.cached_property
    def groups(self) -> list[Group]:
        """Parameters of the value whose rows are multiplied by the same numbers, `[b]` in float64; None for ones."""
        found = self.scales.at(self.at, tuple(self.rows), self._norms_of, self.total)
        asked = set(self.names)
        if all(asked.issuperset(names) for names, _ in found):
            return found
        chosen = [(tuple(name for name in names if name in asked), c) for names, c in found]
        return [(names, c) for names, c in chosen if names]

    def coefficient(self, name: str) -> Tensor | None:
        """What the rows of one parameter are multiplied by."""
        return self._coefficients[name]

    def scaled(self, values: Tensor, c: Tensor | None, dim: int = 0) -> Tensor:
        """`values`, one a sample along `dim`, times coefficients."""
        return values if c is None else weighed(values, c, dim)

    def total(self, parts: list[Tensor]) -> Tensor:
        """The norm of all from those of parts, `[b]` each."""
        return row_norms({"": torch.stack([norm.to(parts[0].device) for norm in parts], 1)})

    def norms(self) -> Tensor:
        """Of the rows times their coefficients, `[b]`."""
        each = [self._sized(self._norms_of(names), c) for names, c in self.groups]
        return each[0] if len(each) == 1 else self.total(each)

    def norms_each(self) -> Tensors:
        """The same of each parameter."""
        return {
            name: self._sized(value, self.coefficient(name)) for name, value in _factors.norms_each(self._asked).items()
        }

    def gram(self, other: Piece) -> Tensors:
        """Inner products with the rows of another piece, `{name: [b, b']}`."""
        return {
            name: self.scaled(other.scaled(products, other.coefficient(name), dim=1), self.coefficient(name))
            for name, products in _factors.gram(self._asked, other._asked).items()
        }

    def dots(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Inner products with a direction, `[b]`."""
        return self._added(lambda rows: _factors.dots(rows, direction))

    def project(self, projection: Projection) -> Tensor:
        """The rows under a linear map, `[b, k]`."""
        return self._added(lambda rows: _factors.project(rows, projection))

    def dense(self) -> Tensors:
        """The rows times their coefficients, `{name: [b, *shape]}`, in storage of their own."""
        held = {tensor.untyped_storage().data_ptr() for tensor in _factors.tensors(self.rows)}
        rows = _factors.dense(self._asked)
        values = {name: self.scaled(value, self.coefficient(name)) for name, value in rows.items()}
        return {k: v.clone() if v.untyped_storage().data_ptr() in held else v for k, v in values.items()}

    def weighted_sum(self, c: Tensor | None, *, spent: bool = False) -> Tensors:
        """Sum of `c[i]` times row i times its coefficient, in the accumulation dtype; `c` is `[b]`, None for all 1.

        With `spent` the piece holds no rows afterwards.
        """
        parts = [(self._part(names), own) for names, own in self.groups]
        if spent and len(parts) > 1:
            self.rows.clear()  # the parts alone hold them now
        sums: Tensors = {}
        for rows, own in parts:
            both = c if own is None else own if c is None else weighed(own, c)
            sums |= _factors.weighted_sum(rows, both, spent=spent)
        return sums if len(parts) == 1 else {name: sums[name] for name in self.names}

    @functools.cached_property
    def _coefficients(self) -> dict[str, Tensor | None]:
        return {name: c for names, c in self.groups for name in names}

    @functools.cached_property
    def _asked(self) -> Gradients:
        """The rows of the value's parameters."""
        return self._part(self.names)

    def _part(self, names: Names) -> Gradients:
        """The rows of some parameters; all of them are the dictionary itself."""
        return self.rows if len(names) == len(self.rows) else {name: self.rows[name] for name in names}

    def _norms_of(self, names: Names) -> Tensor:
        """Norms of rows of the source, of some parameters together; each asked once."""
        if names not in self._known:
            self._known[names] = self._measured(names)
        return self._known[names]

    @functools.cached_property
    def _known(self) -> dict[Names, Tensor]:
        return {}

    def _measured(self, names: Names) -> Tensor:
        return _factors.norms(self._part(names))

    def _added(self, answer: Callable[[Gradients], Tensor]) -> Tensor:
        """What is asked of all rows at once, added up over the groups."""
        parts = [self.scaled(answer(self._part(names)), c) for names, c in self.groups]
        return functools.reduce(lambda a, b: a + b.to(a), parts)

    def _sized(self, norms: Tensor, c: Tensor | None) -> Tensor:
        return norms if c is None else weighed(norms, c.abs())
