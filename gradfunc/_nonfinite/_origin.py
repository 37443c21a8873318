"""The operation that a number which is not finite began with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Input:
    """A tensor that an operation read.

    Attributes:
        name: as torch calls the argument, such as "self".
        shape: of it.
        dtype: such as "float32".
        low: its smallest finite entry, NaN where there is none.
        high: its largest.
        zero: whether an entry is exactly 0.
        nonfinite: how many entries are NaN or infinite.
        differentiable: whether gradients flow into it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    zero: bool
    nonfinite: int
    differentiable: bool

    def __str__(self) -> str:
        text = f"{self.name} {self.dtype}{list(self.shape)} in [{self.low:.6g}, {self.high:.6g}]"
        return text + (f", {self.nonfinite} not finite" if self.nonfinite else "")


@dataclass(frozen=True)
class Origin:
    """Where a number that is not finite came from.

    Attributes:
        operation: of the forward pass, such as "aten.sqrt", or the name of a `torch.autograd.Function`; "" where the
            number was given.
        kernel: what made the number: the operation itself, or one that its derivative is made of ("aten.div.Tensor").
        backward: whether it ran in the backward pass.
        given: the name of the parameter or input that was not finite as it came, else "".
        layer: the path of the module in whose forward pass the operation is (the class of the outermost).
        after: the last layer before it whose parameters entered, where layers are followed.
        where: "file:line" of the operation in the user's code, "" where it is all torch's.
        code: that line.
        inputs: what the operation read.
        kernel_inputs: what the kernel read, in the backward pass.
        made_by: nodes of autograd's graph that made its first differentiable input, nearest first.
        facts: what the tensors show, in the words of `_facts`.
    """

    operation: str
    kernel: str
    backward: bool
    given: str
    layer: str
    after: str
    where: str
    code: str
    inputs: tuple[Input, ...]
    kernel_inputs: tuple[Input, ...]
    made_by: tuple[str, ...]
    facts: frozenset[str]

    @property
    def name(self) -> str:
        """The operation without namespace and overload: "sqrt"."""
        return short(self.operation)

    @property
    def same(self) -> tuple[str, str, bool, str, str]:
        """What two origins that are one have in common, whatever batch they were met with."""
        return self.operation, self.kernel, self.backward, self.given, self.where or self.layer

    def __str__(self) -> str:
        if self.given:
            return f"{self.given} is not finite as it comes"
        text = self.kernel
        if self.backward:
            text += f" of the backward pass of {self.operation}" if self.operation else " of the backward pass"
        else:
            text += " of the forward pass"
        text += f", at {self.where}" if self.where else ""
        text += f", in module '{self.layer}'" if self.layer else ""
        return text + (f": `{self.code}`" if self.code else "")


def short(operation: str) -> str:
    """An operation without namespace and overload."""
    parts = operation.split(".")
    name = parts[1] if parts[0] == "aten" and len(parts) > 1 else operation
    return name.rstrip("_")
