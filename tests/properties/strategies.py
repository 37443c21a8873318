"""Hypothesis strategies that draw a case. They draw choices and a seed; values come from the seed."""

from __future__ import annotations

from typing import Any

import torch
from cases import Case
from criteria import CRITERIA
from hypothesis import strategies as st
from models import KINDS

ENGINES = {
    "factored": ("factored", "auto"),
    "vmap": ("vmap",),
    "loop": ("loop",),
    "batched": ("batched factored", "batched vmap", "batched loop"),
}
# Repeated entries come more often; hypothesis shrinks towards the first.
SIZES = [0, 1, *[2, 3, 4, 5, 6, 7] * 3, 33]
TYPES = [torch.float64, torch.float64, torch.float32, torch.bfloat16]
SAMPLE_WEIGHTS = [*["none", "positive", "some 0"] * 3, "all 0"]


@st.composite
def cases(
    draw: st.DrawFn,
    engines: str,
    *,
    dropout: bool = True,
    coupled_draws: bool = False,
    huge: bool = True,
    most_chunks: int | None = None,
) -> Case:
    """One case.

    Args:
        engines: a family of them, of `ENGINES`: each is asked as often as the others.
        dropout: whether the model may draw random numbers.
        coupled_draws: whether it may where the batch runs as one, so that draws belong to the batch and not to samples.
        huge: whether inputs may be huge, whose squares are finite and whose fourth powers need not be.
        most_chunks: in how many chunks the batch may come, of which a Gram matrix takes the square in passes.
    """
    model = draw(st.sampled_from(list(KINDS)))
    kind = KINDS[model]
    loss = draw(st.sampled_from([name for name, c in CRITERIA.items() if kind.sequence or not c.sequence]))
    size = draw(st.sampled_from(SIZES))
    smallest = 1 if most_chunks is None else max(1, -(-size // most_chunks))
    # The cosine of a vector of which dropout leaves one entry is 1 or -1: its gradient is 0 on paper, rounding in fact.
    draws = dropout and (coupled_draws or engines != "batched") and loss != "cosine_embedding"
    choices = [*["normal"] * 5, "repeated", *([] if kind.tokens else ["zeros"])]
    if kind.homogeneous and CRITERIA[loss].linear:
        choices += ["denormal", *(["huge"] if huge else [])]
    values = draw(st.sampled_from(choices))
    return Case(
        model=model,
        loss=loss,
        options=_options(draw, loss, kind.sequence),
        size=size,
        seed=draw(st.integers(0, 999)),
        engine=draw(st.sampled_from(ENGINES[engines])),
        chunk_size=draw(st.sampled_from([None, *range(smallest, size + 2), "auto"])),
        dtype=draw(st.sampled_from(TYPES)),
        sample_weights=draw(st.sampled_from(SAMPLE_WEIGHTS)),
        # A row of denormal numbers alone has no digits to compare; beside the bias's they must not disturb.
        wrt="all" if values == "denormal" else draw(st.sampled_from(["all", "half"])),
        values=values,
        dropout=draw(st.sampled_from([0.0, 0.5])) if draws else 0.0,
        ragged=kind.sequence and engines != "batched" and draw(st.booleans()),
        frozen=draw(st.booleans()),
        unused=draw(st.booleans()),
    )


def _options(draw: st.DrawFn, loss: str, sequence: bool) -> dict[str, Any]:
    options = {name: draw(st.sampled_from(values)) for name, values in CRITERIA[loss].options.items()}
    if options.get("target") == "probabilities":
        del options["ignore_index"]  # torch has it for indices only
    if not sequence and "dim" in options:
        options["dim"] = -1
    return options
