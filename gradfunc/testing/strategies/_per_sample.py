"""`per_sample_grads`: values whose factors are of any kind and whose rows are known."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..._engines import Block, KeptSource, SelectedSource
from ..._errors import check_int
from ..._per_sample import PerSampleGrads
from ..._per_sample._chunks import Chunks
from ..._per_sample._scales import Scales
from ..._per_sample._versions import versions
from ..._tree import Tensors
from ._arguments import Device, DTypes, dtypes, flag, place, sizes, some_of
from ._factors import MAKERS, Gathered, Geometry, gathered
from ._models import SEEDS
from ._readable import Readable
from ._weights import QUARTERS

# The simplest first.
KINDS = ("dense", *(kind for kind in MAKERS if kind != "dense"))
LAYOUTS = ("plain", "time first", "strided")
# Of rows, beside 1: powers of two, so that a row is its factors' to the last bit.
LENGTHS = (1.0, 0.0, 2.0**-20, 0.25, 64.0, 2.0**30)
HALF_LENGTHS = (1.0, 0.0, 2.0**-4, 0.25, 64.0)  # float16 ends at 65504


@dataclass(frozen=True, kw_only=True, repr=False)
class SyntheticGrads(Readable):
    """Per-sample gradients that no loss made, and their rows. Drawn by `per_sample_grads`.

    Attributes:
        uses: of each parameter, the kinds of the factors that its rows are the sum of; none for rows of zeros.
        size: B.
        positions: T, which share a weight.
        inputs, outputs: a parameter is `[outputs, inputs]`.
        layout: of factors in memory: "plain", "time first" or "strided".
        lengths: what each row is multiplied by, `[B]`; () for ones.
        weights: of the samples, `[B]`; () for ones.
        chunk_size: rows are given as many at a time; None for rows that are kept.
        seed: of the numbers.
    """

    uses: tuple[tuple[str, ...], ...] = (("dense",),)
    size: int = 1
    positions: int = 1
    inputs: int = 1
    outputs: int = 1
    layout: str = "plain"
    lengths: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    chunk_size: int | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    @property
    def grads(self) -> PerSampleGrads:
        """The value: each time a new one, which holds what the others hold."""
        gradients, shapes = self._made.gradients, self.params
        losses = torch.arange(1, self.size + 1, dtype=self.dtype, device=self.device)
        weights = torch.tensor(self.weights or [1.0] * self.size, dtype=torch.float64).to(losses)
        unused = torch.tensor([[not gradient.factors for gradient in gradients.values()]] * self.size)
        block = Block(gradients, losses, weights, unused.reshape(self.size, len(gradients)))
        kept, streamed = KeptSource(block, None), self.chunk_size is not None
        value = PerSampleGrads(
            tuple(gradients),
            self.size,
            "factored",
            losses,
            weights,
            None,
            SelectedSource(kept, torch.arange(self.size)) if streamed else kept,
            shapes,
            Scales(),
            Chunks.choose(self.chunk_size, shapes, self.size),
            "synthetic",
            dict.fromkeys(gradients, ()),
            set(),
            versions([losses]) if streamed else (),
        )
        return value._rescaled(self._lengths.to(self.device)) if self.lengths else value

    @property
    def rows(self) -> Tensors:
        """Row by row, `{name: [B, outputs, inputs]}`, in float64 on the CPU, by plain loops."""
        each = self._lengths[:, None, None]
        return {name: rows * each for name, rows in self._made.rows.items()}

    @property
    def params(self) -> Tensors:
        """Parameters of these names and shapes, all 0."""
        zeros = torch.zeros(self.outputs, self.inputs, dtype=self.dtype, device=self.device)
        return {name: zeros.clone() for name in self._made.gradients}

    @property
    def _lengths(self) -> Tensor:
        return torch.tensor(self.lengths or [1.0] * self.size, dtype=torch.float64)

    @functools.cached_property
    def _made(self) -> Gathered:
        places = (self.size, self.positions, self.inputs, self.outputs)
        return gathered(Geometry(*places, self.layout, self.device, self.dtype, self.seed), self.uses)


def per_sample_grads(
    *,
    kinds: Sequence[str] | None = None,
    min_size: int = 1,
    max_size: int = 5,
    max_side: int = 4,
    max_positions: int = 4,
    max_parameters: int = 2,
    tied: bool = True,
    lengths: bool = False,
    weights: bool = False,
    chunks: bool = False,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[SyntheticGrads]:
    """Values of `gf.PerSampleGrads` whose factors are of any kind, without a loss; their rows are known.

    `synthetic.grads` is the value, `synthetic.rows` its rows by plain loops. The names of its parameters say what they
    are made of: "0: outer + rows" is a tied embedding and head. Shrinks to one sample of one entry.

    Args:
        kinds: of factors: "dense" (rows as they are), "outer" (inputs and cotangents of a product), "turned" (the same
            for the transposed matrix), "unfolded" (a convolution), "grouped" (one matrix a group), "rows" (of a
            table); None for all.
        min_size, max_size: of B.
        max_side: a parameter is at most `[max_side, max_side]`; at least `[1, 1]`.
        max_positions: T at most.
        max_parameters: how many there are at most.
        tied: whether a parameter may have several factors, of several kinds, or none.
        lengths: whether rows are multiplied by powers of two from 2^-20 to 2^30 (float16: 2^-4 to 2^6), or by 0.
        weights: whether samples have weights, some of them 0.
        chunks: whether rows may be held back and given some samples at a time, as where a batch is streamed.
        dtype: of the factors, or a strategy that draws it.
        device: where they are.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Example:
        >>> from hypothesis import given, settings
        >>> import gradfunc as gf
        >>> @settings(deadline=None)
        ... @given(synthetic=gf.testing.strategies.per_sample_grads(kinds=["outer", "rows"]))
        ... def norms_of_rows(synthetic):
        ...     squares = sum(rows.square().sum((1, 2)) for rows in synthetic.rows.values())
        ...     assert torch.allclose(synthetic.grads.norms(), squares.sqrt(), rtol=1e-12)
        >>> norms_of_rows()
    """
    call = "gf.testing.strategies.per_sample_grads()"
    names = some_of(call, "kinds", kinds, KINDS)
    sizes(call, "size", min_size, max_size)
    for name, value, least in (("side", max_side, 1), ("positions", max_positions, 0)):
        check_int(call, f"max_{name}", value, least)
    check_int(call, "max_parameters", max_parameters, 1)
    for name, given in (("tied", tied), ("lengths", lengths), ("weights", weights), ("chunks", chunks)):
        flag(call, name, given)
    where = place(call, dtype, device)
    one = st.tuples(st.sampled_from(names))
    use = st.lists(st.sampled_from(names), max_size=3).map(tuple) if tied else one
    uses = st.lists(st.one_of(one, use), min_size=1, max_size=max_parameters).map(tuple)
    side = st.integers(1, max_side)

    @st.composite
    def drawn(draw: st.DrawFn) -> SyntheticGrads:
        n, own = draw(st.integers(min_size, max_size)), draw(dtypes(dtype))
        factors = HALF_LENGTHS if own == torch.float16 else LENGTHS
        return SyntheticGrads(
            uses=draw(uses),
            size=n,
            positions=draw(st.integers(min(1, max_positions), max_positions)),
            inputs=draw(side),
            outputs=draw(side),
            layout=draw(st.sampled_from(LAYOUTS)),
            lengths=draw(_numbers(factors, n)) if lengths else (),
            weights=draw(_numbers(QUARTERS, n)) if weights else (),
            chunk_size=draw(st.sampled_from([None, *range(1, n)])) if chunks else None,
            seed=draw(SEEDS),
            dtype=own,
            device=where,
        )

    return drawn()


def _numbers(values: Sequence[float], size: int) -> st.SearchStrategy[tuple[float, ...]]:
    """One a sample, all the first of them or any."""
    each = st.lists(st.sampled_from(values), min_size=size, max_size=size).map(tuple)
    return st.one_of(st.just(()), each)
