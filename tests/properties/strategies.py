"""Hypothesis strategies that draw a case. They draw choices and a seed; values come from the seed."""

from __future__ import annotations

from typing import Any

import torch
from cases import Case
from criteria import CRITERIA
from hypothesis import strategies as st
from models import KINDS

BATCHED = ("batched vmap", "batched loop")
# Small batches first, which is where hypothesis shrinks to; the large one now and then.
SIZES = st.sampled_from([*range(8)] * 4 + [33])


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    models: tuple[str, ...] = tuple(KINDS),
    dropout: bool = True,
    coupled_draws: bool = False,
    huge: bool = True,
) -> Case:
    """One case.

    Args:
        models: to choose from.
        dropout: whether the model may draw random numbers.
        coupled_draws: whether it may where the batch runs as one, so that draws belong to the batch and not to samples.
        huge: whether inputs may be huge, whose squares are finite and whose fourth powers need not be.
    """
    model = draw(st.sampled_from(models))
    kind = KINDS[model]
    loss = draw(st.sampled_from([name for name, c in CRITERIA.items() if kind.sequence or not c.sequence]))
    engine = draw(st.sampled_from((*(("vmap", "auto") if kind.vmap else ()), "loop", *BATCHED)))
    size = draw(SIZES)
    draws = dropout and (coupled_draws or engine not in BATCHED)
    values = ["normal", "repeated", *([] if kind.tokens else ["zeros"])]
    if kind.homogeneous and CRITERIA[loss].linear:
        values += ["denormal", *(["huge"] if huge else [])]
    return Case(
        model=model,
        loss=loss,
        options=_options(draw, loss, kind.sequence),
        size=size,
        seed=draw(st.integers(0, 999)),
        engine=engine,
        chunk_size=draw(st.sampled_from([None, *range(1, size + 2), "auto"])),
        dtype=draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16])),
        sample_weights=draw(st.sampled_from(["none", "positive", "some 0", "all 0"])),
        wrt=draw(st.sampled_from(["all", "half"])),
        values=draw(st.sampled_from(values)),
        dropout=draw(st.sampled_from([0.0, 0.5])) if draws else 0.0,
        ragged=kind.sequence and engine not in BATCHED and draw(st.booleans()),
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
