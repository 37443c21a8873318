"""What `gf.diagnose.find_nonfinite` found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..._nonfinite import Input
from ..._report import Report, Table, jsonable, number

CAUSED = "float64 is finite: it is precision"
ALSO = "also in float64"


@dataclass(frozen=True)
class NonfiniteReport(Report):
    """Where a number that is not finite came from.

    Attributes:
        batch_size: how many samples were looked at; 0 where only the loss and gradients were.
        dtype: of the parameters.
        what: "" where all is finite, else "loss", or "gradient" where the loss is finite.
        samples: positions in the batch of those that break, at most eight; empty where it is not a matter of samples.
        alone: whether each of them breaks by itself, and every one where none is named; else it takes these samples
            together, or the whole batch.
        raised: the error of an operation that refused such a number, "" where none did; there is no loss then.
        parameters: whose gradients are not finite, at most eight.
        direction: "forward", or "backward" where the loss is finite and gradients are not; "" where all is.
        operation: of the forward pass, such as "aten.sqrt", or the name of a `torch.autograd.Function`.
        kernel: what made the number: the operation, or one that its derivative is made of ("aten.div.Tensor").
        layer: the path of the module in whose forward pass it is; of a model without modules, as `after`.
        after: the last layer before it whose parameters entered.
        where: "file:line" of the operation in the user's code, "" where all of it is torch's.
        code: that line.
        given: the parameter or input that was not finite as it came, "" where none was.
        ranges: what the operation read, of the first such sample.
        kernel_ranges: what its derivative read, where that made the number.
        precision: whether the same sample is finite in float64, in words.
        pattern: the fault that was recognised, "" where none was.
        why: what happens there.
        safe: a line of code that does not.
    """

    batch_size: int
    dtype: str
    what: str = ""
    samples: tuple[int, ...] = ()
    alone: bool = True
    raised: str = ""
    parameters: tuple[str, ...] = ()
    direction: str = ""
    operation: str = ""
    kernel: str = ""
    layer: str = ""
    after: str = ""
    where: str = ""
    code: str = ""
    given: str = ""
    ranges: tuple[Input, ...] = ()
    kernel_ranges: tuple[Input, ...] = ()
    precision: str = ""
    pattern: str = ""
    why: str = ""
    safe: str = ""

    @property
    def ok(self) -> bool:
        """Whether the loss and all gradients are finite."""
        return not self.what

    @property
    def line(self) -> str:
        """The finding in one line."""
        if self.ok:
            return "the loss and all gradients are finite"
        text = f"a {self.what} is not finite"
        text += f"; samples {', '.join(map(str, self.samples))}" if self.samples else ""
        text += f"; {self.given} is not finite as it comes" if self.given else ""
        text += f"; first in {self.operation} ({self.direction})" if self.operation else ""
        text += f", at {self.where}" if self.where else ""
        text += f", in '{self.layer}'" if self.layer else ""
        return text + (f"; {self.pattern}: {self.safe}" if self.pattern else "")

    def parts(self) -> Sequence[Table | str]:
        """What broke and where, what it read, and how to write it otherwise."""
        if self.ok:
            return [f"The loss and all gradients of {self.batch_size} samples are finite ({self.dtype})."]
        rows = [(name, text) for name, text in self._rows() if text]
        looked = f"{self.batch_size} samples, " if self.batch_size else ""
        title = f"{'A loss' if self.what == 'loss' else 'A gradient'} is not finite ({looked}"
        title += f"{self.dtype})"
        parts: list[Table | str] = [Table(title, ["", "found"], rows) if rows else f"{title}."]
        ranges = [*self.ranges, *(dataclasses.replace(r, name=f"derivative: {r.name}") for r in self.kernel_ranges)]
        if ranges:
            parts.append(Table("What it read", ["input", "dtype", "shape", "min", "max", "not finite"], _cells(ranges)))
        if self.safe:
            parts += [f"{self.pattern}: {self.why}. Safe form:", f"    {self.safe}"]
        return parts

    def _rows(self) -> list[tuple[str, str]]:
        listed = ", ".join(map(str, self.samples))
        whose = (listed or "every one") if self.alone else f"{listed}, together" if listed else "the batch together"
        kernel = f" (made by {self.kernel} in its derivative)" if self.kernel_ranges else ""
        return [
            ("sample", whose if self.batch_size else ""),
            ("raised", self.raised),
            ("given", self.given),
            ("direction", self.direction),
            ("operation", self.operation and self.operation + kernel),
            ("layer", self.layer),
            ("after", self.after),
            ("line", f"{self.where}: {self.code}" if self.where else ""),
            ("parameters", ", ".join(self.parameters)),
            ("precision", self.precision),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready values."""
        out: dict[str, Any] = jsonable({"ok": self.ok, **dataclasses.asdict(self)})
        return out


def _cells(ranges: Sequence[Input]) -> list[list[str]]:
    return [
        [r.name, r.dtype, str(list(r.shape)), number(r.low), number(r.high), str(r.nonfinite or "")] for r in ranges
    ]
