"""`cases` and `problems`: a loss, parameters and a batch that fit together, and how per-sample gradients are asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from ..._errors import check_int
from ._arguments import Device, DTypes, dtypes, flag, place, sizes, some_of
from ._batches import SAMPLE_WEIGHTS, values_of
from ._case import Case, Problem
from ._criteria import CRITERIA
from ._kinds import KINDS
from ._losses import fitting, options
from ._models import SEEDS

ENGINES = ("vmap", "factored", "auto", "loop", "batched factored", "batched vmap", "batched loop")
# Small ones with a meaning of their own come first, and more often: hypothesis shrinks towards the first.
OFTEN = {"none": 3, "positive": 3, "some 0": 3, "all 0": 1}


def cases(
    *,
    models: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    engines: Sequence[str] = ENGINES,
    min_size: int = 0,
    max_size: int = 7,
    large: Sequence[int] = (),
    most_chunks: int | None = None,
    sample_weights: Sequence[str] = SAMPLE_WEIGHTS,
    dropout: bool = True,
    coupled_draws: bool = False,
    hard_values: bool = True,
    huge: bool = True,
    ragged: bool = True,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[Case]:
    """Whole calls of `gf.per_sample_grads`, as the choices that make them; `case.build()` is the problem.

    Shrinks to a linear layer under the mean squared error, the smallest batch, seed 0, engine "vmap", no chunks.

    Args:
        models: kinds of models to draw from, as in `models`; None for all.
        losses: names of losses, as in `losses`; None for all. A loss of sequences goes with a model of sequences.
        engines: to draw from: "vmap", "factored", "loop", "auto", and the first three behind "batched ".
        min_size, max_size: of B.
        large: further sizes that are drawn now and then, such as `(33, 257)`.
        most_chunks: in how many chunks a batch may come; None for as many as there are samples.
        sample_weights: to draw from: "none", "positive", "some 0", "all 0".
        dropout: whether the model may draw random numbers.
        coupled_draws: whether it may where the batch runs as one, so that draws belong to the batch and not to samples.
        hard_values: whether inputs may be zeros, denormal, huge, or the same in every sample.
        huge: whether they may be huge: squares are finite, fourth powers need not be.
        ragged: whether the lengths of sequences may differ from sample to sample.
        dtype: of parameters, inputs and targets, or a strategy that draws it.
        device: where they are.

    Raises:
        TypeError, ValueError: an argument that is none of these; no loss that fits a model.

    Example:
        >>> from hypothesis import given, settings
        >>> import gradfunc as gf
        >>> @settings(max_examples=5, deadline=None)
        ... @given(case=gf.testing.strategies.cases(models=["linear", "mlp"], engines=["factored"], max_size=3))
        ... def sum_of_none_is_sum(case):
        ...     g = case.build().grads()
        ...     for name, rows in g.materialize().items():
        ...         assert torch.allclose(rows.sum(0), g.sum()[name], atol=1e-12 * float(1 + g.norms().sum()))
        >>> sum_of_none_is_sum()
    """
    call = "gf.testing.strategies.cases()"
    kinds = some_of(call, "models", models, KINDS)
    some = some_of(call, "losses", losses, fitting(all(KINDS[kind].sequence for kind in kinds) or losses is None))
    ways = some_of(call, "engines", engines, ENGINES)
    sizes(call, "size", min_size, max_size)
    for size in large:
        check_int(call, "large", size, 0)
    if most_chunks is not None:
        check_int(call, "most_chunks", most_chunks, 1)
    weighing = some_of(call, "sample_weights", sample_weights, SAMPLE_WEIGHTS)
    flags = {"dropout": dropout, "coupled_draws": coupled_draws, "hard_values": hard_values, "huge": huge}
    for name, value in {**flags, "ragged": ragged}.items():
        flag(call, name, value)
    where = place(call, dtype, device)
    of_b = [*range(min_size, min(2, max_size + 1)), *list(range(max(2, min_size), max_size + 1)) * 3, *large]
    of_weights = [each for each in weighing for _ in range(OFTEN[each])]

    @st.composite
    def drawn(draw: st.DrawFn) -> Case:
        model = draw(st.sampled_from(kinds))
        kind = KINDS[model]
        loss = draw(st.sampled_from([name for name in some if kind.sequence or not CRITERIA[name].sequence]))
        engine, size, own = draw(st.sampled_from(ways)), draw(st.sampled_from(of_b)), draw(dtypes(dtype))
        batched = engine.startswith("batched")
        smallest = 1 if most_chunks is None else max(1, -(-size // most_chunks))
        # The cosine of a vector of which dropout leaves one entry is 1 or -1: a gradient of 0 on paper, rounding in
        # fact.
        draws = dropout and (coupled_draws or not batched) and loss != "cosine_embedding"
        choices = [value for value in values_of(kind, loss, huge=huge) if hard_values or value == "normal"]
        values = draw(st.sampled_from([*["normal"] * (5 if hard_values else 0), *choices]))
        # As many choices in every case, needed or not: hypothesis prefers examples of fewer to simpler ones.
        return Case(
            model=model,
            loss=loss,
            options=options(draw, loss, kind.sequence),
            size=size,
            seed=draw(SEEDS),
            engine=engine,
            chunk_size=draw(st.sampled_from([None, *range(smallest, size + 2), "auto"])),
            dtype=own,
            sample_weights=draw(st.sampled_from(of_weights)),
            # A row of denormal numbers alone has no digits to compare; beside the bias's they must not disturb.
            wrt="half" if draw(st.booleans()) and values != "denormal" else "all",
            values=values,
            dropout=draw(st.sampled_from([0.0, 0.5])) * draws,
            ragged=draw(st.booleans()) and ragged and kind.sequence and not batched,
            frozen=draw(st.booleans()),
            unused=draw(st.booleans()),
            device=where,
        )

    return drawn()


def problems(
    *,
    models: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    batched: bool = False,
    min_size: int = 1,
    max_size: int = 7,
    sample_weights: Sequence[str] = SAMPLE_WEIGHTS[:3],
    dropout: bool = False,
    hard_values: bool = True,
    ragged: bool = False,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[Problem]:
    """A loss, parameters and a batch that fit together: `loss, params, batch = problem`.

    `loss(params, *sample) -> Weighted` is what `gf.per_sample_grads` takes and `batch` what its function takes behind
    the parameters. A failing example prints as `Case(...).build()`. Shrinks as `cases`.

    Args:
        models, losses, min_size, max_size, sample_weights, dropout, hard_values, ragged, dtype, device: as in `cases`.
        batched: whether `loss` runs the whole batch and returns one loss a sample, as `batched=True` wants it.

    Raises:
        TypeError, ValueError: as `cases`.

    Example:
        >>> from hypothesis import given, settings
        >>> import gradfunc as gf
        >>> @settings(max_examples=5, deadline=None)
        ... @given(problem=gf.testing.strategies.problems(models=["linear"], max_size=3))
        ... def clipped_to_the_bound(problem):
        ...     loss, params, batch = problem
        ...     g = gf.per_sample_grads(loss)(params, *batch)
        ...     clipped, _ = gf.clip_per_sample(1.0).update(g, ())
        ...     assert (clipped.norms() <= 1.0 + 1e-12).all()
        >>> clipped_to_the_bound()
    """
    flag("gf.testing.strategies.problems()", "batched", batched)
    return cases(
        models=models,
        losses=losses,
        engines=["batched vmap" if batched else "vmap"],
        min_size=min_size,
        max_size=max_size,
        sample_weights=sample_weights,
        dropout=dropout,
        coupled_draws=True,
        hard_values=hard_values,
        ragged=ragged,
        dtype=dtype,
        device=device,
    ).map(_built)


def _built(case: Case) -> Problem:
    return case.build()
