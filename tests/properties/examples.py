"""How many examples a law is asked, and which they were."""

from __future__ import annotations

import os
import zlib
from collections import Counter

from claims import Law, check
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from gradfunc.testing.strategies import Case

# Of each law with each family of engines, in the quick tier and by `pytest -m slow`; GRADFUNC_PROFILE=nightly asks ten
# times as many of both.
TIMES = 10 if os.environ.get("GRADFUNC_PROFILE") == "nightly" else 1
EXAMPLES, MANY = 4 * TIMES, 80 * TIMES

# (law, what was counted, of which kind) -> examples
COUNTS: Counter[tuple[str, str, str]] = Counter()


def ask(law: Law, cases: st.SearchStrategy[Case], device: str, examples: int) -> None:
    """Check the law on cases that are the same in every run."""

    @seeded(zlib.crc32(law.__name__.encode()))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
    )
    @given(case=cases)
    def holds(case: Case) -> None:
        kinds = {
            "examples": "all",
            "models": case.model,
            "engines": case.engine,
            "draws": "dropout" if case.dropout else "none",
            "types": str(case.dtype).removeprefix("torch."),
            "B": str(case.size) if case.size < 2 else "2..",
        }
        COUNTS.update((f"{law.__name__} [{device}]", *pair) for pair in kinds.items())
        check(law, case, device)

    holds()


def summary() -> list[str]:
    """One line a law: examples in all, then by kind of model, engine, type and size of the batch."""
    lines = []
    for law in dict.fromkeys(law for law, *_ in COUNTS):
        whats = dict.fromkeys(what for name, what, _ in COUNTS if name == law)
        parts = [
            f"{what} "
            + ", ".join(f"{kind} {n}" for (name, w, kind), n in COUNTS.most_common() if (name, w) == (law, what))
            for what in whats
            if what != "examples"
        ]
        lines.append(f"{law}: {COUNTS[law, 'examples', 'all']} examples; " + "; ".join(parts))
    return lines
