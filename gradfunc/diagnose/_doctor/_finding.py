"""A finding, and the probe that makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

SEVERITIES = ("severe", "warning", "note")
CONFIDENCES = ("certain", "likely", "possible")
TIERS = ("cheap", "deep")


class NotRun(Exception):
    """Raised by a probe that cannot look, with the reason.

    Example:
        >>> import gradfunc as gf
        >>> str(gf.diagnose.NotRun("no optimizer was given"))
        'no optimizer was given'
    """


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        cause: a stable identifier; `gf.diagnose.CAUSES` says each in words.
        severity: "severe" (training fails or learns something else), "warning" (it suffers) or "note".
        evidence: what was measured, and the threshold.
        fix: a line of code. It runs where `model`, `criterion`, `x`, `y`, `optimizer` and, in a step, `loss` are yours;
            what to change in code that the doctor does not see comes behind a "#".
        confidence: "certain" (an identity, or a closed form that matched), "likely" (a threshold was passed) or
            "possible" (a healthy case can look the same).
        where: the layer, parameter, feature or sample; "" where it is the whole.

    Example:
        >>> import gradfunc as gf
        >>> gf.diagnose.Finding("too_cold", "note", "3 K, below 10 K", "heater.on()", "certain").where
        ''
    """

    cause: str
    severity: str
    evidence: str
    fix: str
    confidence: str
    where: str = ""

    def __post_init__(self) -> None:
        for value, known in ((self.severity, SEVERITIES), (self.confidence, CONFIDENCES)):
            if value not in known:
                raise ValueError(f"Finding({self.cause!r}): got {value!r}; expected one of {known}.")

    @property
    def rank(self) -> tuple[int, int]:
        """What is worse, then what is surer, comes first."""
        return SEVERITIES.index(self.severity), CONFIDENCES.index(self.confidence)


def _never(case: Any) -> str:
    return ""


@dataclass(frozen=True)
class Probe:
    """One look at a case, for some causes.

    Attributes:
        name: what it looks at.
        causes: identifiers of the causes that it may name.
        run: `run(case)` gives findings, none where all is healthy; a pure function. It raises `NotRun` with the reason
            where it cannot look. Of the case it may read `problem`, `criterion`, `output`, `loss`, `gradient`, ...
        tier: "cheap" ones always run, "deep" ones on a symptom or with `deep=True`.
        symptom: of a deep one: `symptom(case)` says why to look, "" for no reason.

    Example:
        >>> import torch, gradfunc as gf
        >>> def large(case):
        ...     if case.loss > 100:
        ...         yield gf.diagnose.Finding("large_loss", "note", f"{case.loss:.0f} > 100", "y / y.std()", "certain")
        >>> probe = gf.diagnose.Probe("size of the loss", ("large_loss",), large)
        >>> x, y = torch.ones(4, 3), torch.full((4, 1), 1000.0)
        >>> data, probes = (x, y), (probe,)
        >>> gf.diagnose.doctor(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data, probes=probes).causes
        ('large_loss',)
    """

    name: str
    causes: tuple[str, ...]
    run: Callable[[Any], Iterable[Finding]]  # of a Case
    tier: str = "cheap"
    symptom: Callable[[Any], str] = _never

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ValueError(f"Probe({self.name!r}): got tier={self.tier!r}; expected one of {TIERS}.")
