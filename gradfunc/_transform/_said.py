"""What the stages of one update said of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._errors import one_of
from .._report import Report, Table, jsonable

Facts = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class StepReport(Report):
    """What each stage of one update said, in order. Numbers stay on their device until they are read.

    Attributes:
        stages: `(name, {fact: number})` of every stage that says something.

    Example:
        >>> import torch, gradfunc as gf
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(2)}, torch.eye(2) * 3)
        >>> step = gf.clip_per_sample(1.0) >> gf.sum()
        >>> _, _, report = step.update_with_report(g, step.init({"w": torch.ones(2)}))
        >>> float(report["clip_per_sample"]["clipped"])
        1.0
    """

    stages: tuple[tuple[str, Facts], ...] = ()

    def __getitem__(self, stage: str) -> Facts:
        """What the first stage of this name said.

        Raises:
            ValueError: no stage of this name said anything.
        """
        one_of("report[stage]", "stage", stage, [name for name, _ in self.stages])
        return next(facts for name, facts in self.stages if name == stage)

    @property
    def ok(self) -> bool:
        """Whether no stage met a gradient that is not finite."""
        return not any(float(facts.get("nonfinite", 0)) for _, facts in self.stages)

    def parts(self) -> Sequence[Table | str]:
        """One table: stage, fact, number."""
        rows = [[name, fact, f"{float(value):.4g}"] for name, facts in self.stages for fact, value in facts.items()]
        return [Table("One update, stage by stage", ["stage", "fact", "value"], rows)]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready values."""
        each = [{"stage": name, **{k: float(v) for k, v in facts.items()}} for name, facts in self.stages]
        return {"ok": self.ok, "stages": jsonable(each)}
