"""What drawn cases reach: kinds of models and losses, engines, kinds of factors, and methods by which norms come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gradfunc._per_sample._explain import lines
from gradfunc.testing.strategies import Case, Problem
from gradfunc.testing.strategies._cases import ENGINES
from gradfunc.testing.strategies._criteria import CRITERIA
from gradfunc.testing.strategies._kinds import KINDS

Reached = Counter[tuple[str, str]]  # (what, which) -> examples
TO_REACH = {
    "models": set(KINDS),
    "losses": set(CRITERIA),
    "engines": set(ENGINES),
    "factors": {"outer", "unfolded", "grouped", "rows", "dense"},
    "methods": {"gram", "direct", "rows", "dense", "generic", "pulled back"},
}


# What the run has measured, for its record: of each strategy the share of its examples.
MEASURED: dict[str, dict[str, dict[str, float]]] = {}


def reach(drawn: Iterable[st.SearchStrategy[Case]], examples: int) -> Reached:
    """Draw so many cases of each strategy, the same in every run, and note where they come to."""
    reached: Reached = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def noted(case: Case) -> None:
        reached.update({("models", case.model), ("losses", case.loss), ("engines", case.engine), ("all", "examples")})
        if case.engine.endswith(("factored", "auto")) and case.size:
            reached.update(ways(case.build()))

    for strategy in drawn:
        given(case=strategy)(noted)()
    return reached


def ways(problem: Problem) -> set[tuple[str, str]]:
    """Kinds of factors and methods in one value of the factored engine."""
    g = problem.grads(chunk_size=None, verify=False)
    found = lines(g._source.rows(slice(0, g.batch_size)).grads, g._uses) if g.engine == "factored" else ()
    methods = {("methods", name) for line in found for name in line.method.split(", ")}
    return {("factors", line.kind.partition(",")[0]) for line in found} | methods


def missing(reached: Reached) -> dict[str, set[str]]:
    """What no example has come to."""
    return {what: left for what, names in TO_REACH.items() if (left := {n for n in names if not reached[what, n]})}


def shares(reached: Reached) -> dict[str, dict[str, float]]:
    """Of each, the share of the examples that came to it."""
    every = reached["all", "examples"]
    return {
        what: {name: round(reached[what, name] / every, 4) for name in sorted(names)}
        for what, names in TO_REACH.items()
    }
