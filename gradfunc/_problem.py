"""What tools on a user's model take, read once: `(model, criterion, batch)`.

A batch is `(*inputs, target)`, or a mapping whose entry "target" is the target and whose other entries are keyword
inputs. A criterion is `criterion(output, target)` whose reduction can be varied (a torch loss module or functional, or
anything else with a `reduction` attribute or parameter), one that gives a loss per sample (`gf.losses`, a function
returning `[B]` or `Weighted`), or `gf.whole(fn)`. A target that is a tuple is passed on as several arguments, as
`CTCLoss` wants them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import losses
from ._errors import kind_of, message
from ._stateless import PureModel, Stateless, stateless
from ._tree import cast, copy_of, map_tensors, map_with_dims, read_batch, tensors_of
from ._weights import Weighted, as_weighted

_FAMILIES: dict[str, tuple[tuple[type, ...], tuple[Any, ...]]] = {
    "class": ((nn.CrossEntropyLoss, nn.NLLLoss), (F.cross_entropy, F.nll_loss)),
    "ctc": ((nn.CTCLoss,), (F.ctc_loss,)),
    "kl": ((nn.KLDivLoss,), (F.kl_div,)),
}


@dataclass(frozen=True)
class Criterion:
    """A criterion of any accepted form.

    Attributes:
        given: as the user passed it.
        form: "reducible" (its reduction can be varied), "rows" (one loss a sample), "whole", or "scalar" (of output and
            target, one number for the batch; a tool that takes such a criterion says so).
        family: for a reducible one, whose weight rule torch's mean follows: "class", "ctc", "kl" or "element".
        copies: whether it is called on copies, since it may write to them and others use them again.
    """

    given: Any
    form: str
    family: str
    copies: bool = True

    def option(self, name: str, default: Any = None) -> Any:
        """An option such as `weight` or `ignore_index`, from the module or the partial's keywords."""
        if isinstance(self.given, functools.partial):
            return self.given.keywords.get(name, default)
        return getattr(self.given, name, default) if isinstance(self.given, nn.Module) else default

    @property
    def given_mean(self) -> str:
        """What "mean" is for this criterion: "batchmean" where it was given so."""
        return "batchmean" if self.option("reduction") == "batchmean" else "mean"

    def reduced(self, output: Any, target: Any, reduction: str) -> Tensor:
        """The loss of a reducible criterion under "none" (elements), "sum" or "mean"."""
        reduction = self.given_mean if reduction == "mean" else reduction
        out: Tensor = _varied(self.given, reduction)(*self._arguments(output, target))
        return out

    def called(self, output: Any, target: Any) -> Any:
        """What it returns, row by row if it can."""
        batched = {"batched": True} if _has_parameter(self.given, "batched") else {}
        return self.given(*self._arguments(output, target), **batched)

    def rows(self, output: Any, target: Any) -> Weighted:
        """Numerators and weights `[B]` of a criterion of the form "rows"."""
        out = self.called(output, target)
        numerator = out.numerator if isinstance(out, Weighted) else out
        if isinstance(numerator, Tensor) and numerator.dim() == 0:
            raise ValueError(
                message(
                    "criterion(output, target)",
                    got="a scalar from a criterion whose reduction cannot be varied",
                    expected="a `reduction` attribute or parameter, one loss a sample [B], or gf.Weighted",
                    do="Wrap a function of model and batch with gf.whole(fn).",
                )
            )
        return as_weighted("criterion(output, target)", out, batched=True)

    def cast(self, dtype: torch.dtype | None, device: torch.device | str | None) -> Criterion:
        """The same criterion with its own tensors (class weights) in another type."""
        given = self.given
        if isinstance(given, nn.Module):
            given = copy.deepcopy(given).to(device=device, dtype=dtype)
        elif isinstance(given, functools.partial):
            moved = cast((given.args, given.keywords), dtype, device)
            given = functools.partial(given.func, *moved[0], **moved[1])
        return dataclasses.replace(self, given=given)

    def _arguments(self, output: Any, target: Any) -> tuple[Any, ...]:
        targets = target if isinstance(target, (tuple, list)) else (target,)
        if not self.copies:
            return (output, *targets)
        copies: tuple[Any, ...] = (map_tensors(torch.clone, output), *map_tensors(copy_of, targets))
        return copies


@dataclass(frozen=True)
class Problem:
    """A model, a criterion and a batch of `size` samples."""

    model: Stateless
    criterion: Criterion
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    size: int
    _whole: Any = None

    @property
    def batch(self) -> Any:
        """The batch in the form in which it was given."""
        if self.criterion.form == "whole":
            return self._whole
        return {**self.kwargs, "target": self.target} if self.kwargs else (*self.args, self.target)

    def output(self, model: Callable[..., Any]) -> Any:
        """The output for the whole batch of the model as a function of its inputs."""
        args, kwargs = self._passed((self.args, self.kwargs))
        return model(*args, **kwargs)

    def whole(self, model: Callable[..., Any]) -> Any:
        """What a criterion made by `gf.whole` returns for the whole batch."""
        return self.criterion.given.fn(model, self._passed(self.batch))

    def uncopied(self) -> Problem:
        """The same problem, whose passes run on its tensors themselves: for timing."""
        return dataclasses.replace(self, criterion=dataclasses.replace(self.criterion, copies=False))

    def _passed(self, batch: Any) -> Any:
        return map_tensors(copy_of, batch) if self.criterion.copies else batch  # a forward may write to its input

    def rows(self, start: int, stop: int) -> Problem:
        """The same problem on samples start to stop."""
        return self.rearranged(lambda tensor, dim: tensor.narrow(dim, start, stop - start))

    def rearranged(self, fn: Callable[[Tensor, int], Tensor], *, inputs_only: bool = False) -> Problem:
        """The same problem with `fn(tensor, dimension of the samples)` applied to the batch."""
        call = "batch"

        def each(tensor: Tensor, dim: int) -> Tensor:
            return fn(tensor, dim) if tensor.dim() else tensor  # a number is shared by all samples

        if self.criterion.form == "whole":
            batch = map_with_dims(call, each, self.batch, 0)
            return dataclasses.replace(self, _whole=batch, size=tensors_of(batch)[0].shape[0])
        named = 0 if isinstance(self.model.in_dims, (tuple, list)) else self.model.in_dims
        args = map_with_dims(call, each, self.args, self.model.in_dims)
        kwargs = map_with_dims(call, each, self.kwargs, named)
        target = self.target if inputs_only else map_with_dims(call, each, self.target, 0)
        size = _size("batch", args, kwargs, self.model.in_dims)
        return dataclasses.replace(self, args=args, kwargs=kwargs, target=target, size=size)

    def on(self, module: nn.Module) -> Problem:
        """The same problem, with the same values of its parameters, on another object of the module's kind."""
        dims = {"in_dims": self.model.in_dims, "out_dims": self.model.out_dims, "batch_stats": self.model.batch_stats}
        held = {name: getattr(self.model, name) for name in ("params", "frozen", "buffers")}
        return dataclasses.replace(self, model=dataclasses.replace(stateless(module, **dims), **held))

    def output_rows(self, output: Any, start: int, stop: int) -> Any:
        """Rows of an output that was computed for the whole batch."""

        def cut(tensor: Tensor, dim: int) -> Tensor:
            return tensor.narrow(dim, start, stop - start)

        return map_with_dims("model(params, ...)", cut, output, self.model.out_dims)

    def cast(self, dtype: torch.dtype | None, device: torch.device | str | None = None) -> Problem:
        """The same problem in another floating type, or on another device."""
        fields = ("params", "frozen", "buffers")
        model = dataclasses.replace(self.model, **{f: cast(getattr(self.model, f), dtype, device) for f in fields})
        data = {f: cast(getattr(self, f), dtype, device) for f in ("args", "kwargs", "target", "_whole")}
        return dataclasses.replace(self, model=model, criterion=self.criterion.cast(dtype, device), **data)


def read(call: str, model: nn.Module | PureModel | Stateless, criterion: Any, batch: Any) -> Problem:
    """Read `(model, criterion, batch)` as every tool does.

    Raises:
        TypeError: a model, criterion or batch of another form.
        ValueError: an empty batch, or tensors that disagree in the number of samples.
    """
    model = dataclasses.replace(stateless(model), batch_stats="batch")
    criterion = _criterion(call, criterion)
    args, kwargs, target = _split(call, criterion, batch)
    if criterion.form == "whole":
        size = read_batch(call, (batch,), {}, rows=True).size or 0
    else:
        read_batch(call, (*args, target), kwargs, rows=False)  # refuses numpy arrays
        if isinstance(target, list):
            raise TypeError(message(call, got="a list as target", expected="a tensor, or a tuple of several arguments"))
        size = _size(call, args, kwargs, model.in_dims)
        targets = {tensor.shape[0] for tensor in tensors_of(target) if tensor.dim()}
        if targets - {size}:
            raise ValueError(
                message(
                    call,
                    got=f"{size} samples in the inputs and {sorted(targets)} in the target",
                    expected="the same number of samples",
                    do="Say where the batch sits with gf.stateless(model, in_dims=...), or use gf.whole(fn).",
                )
            )
    if size == 0:
        raise ValueError(message(call, got="a batch of 0 samples", expected="at least one"))
    return Problem(model, criterion, args, kwargs, target, size, batch if criterion.form == "whole" else None)


def _criterion(call: str, criterion: Any) -> Criterion:
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, losses.Whole):
        return Criterion(criterion, "whole", "element")
    if not callable(criterion):
        expected = "criterion(output, target), such as nn.CrossEntropyLoss(), or gf.whole(fn)"
        raise TypeError(message(call, got=f"{kind_of(criterion)} as criterion", expected=expected))
    base = criterion.func if isinstance(criterion, functools.partial) else criterion
    if isinstance(base, type):
        do = f"Make one: {base.__name__}()."
        raise TypeError(message(call, got=f"the class {base.__name__}", expected="a criterion", do=do))
    reducible = isinstance(getattr(criterion, "reduction", None), str) or _has_parameter(criterion, "reduction")
    return Criterion(criterion, "reducible" if reducible else "rows", _family(criterion))


def _family(criterion: Any) -> str:
    base = criterion.func if isinstance(criterion, functools.partial) else criterion
    for family, (modules, functions) in _FAMILIES.items():
        if base in functions or isinstance(base, modules):
            return family
    return "element"


def _split(call: str, criterion: Criterion, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if criterion.form == "whole":
        return (), {}, None
    if isinstance(batch, Mapping):
        if "target" not in batch:
            do = "Name the target 'target', or use gf.whole(fn), which sees the batch as it is."
            raise TypeError(message(call, got=f"a mapping with keys {list(batch)}", expected="a 'target'", do=do))
        return (), {key: value for key, value in batch.items() if key != "target"}, batch["target"]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    raise TypeError(message(call, got=f"{kind_of(batch)} as batch", expected="(*inputs, target) or a mapping"))


def _size(call: str, args: tuple[Any, ...], kwargs: dict[str, Any], in_dims: Any) -> int:
    sizes: list[int] = []

    def note(tensor: Tensor, dim: int) -> Tensor:
        if tensor.dim():
            sizes.append(tensor.shape[dim])
        return tensor

    map_with_dims(call, note, args, in_dims)
    map_with_dims(call, note, kwargs, 0 if isinstance(in_dims, (tuple, list)) else in_dims)
    if len(set(sizes)) != 1:
        raise ValueError(
            message(
                call,
                got=f"inputs with {sizes or 'no'} samples",
                expected="the same number of samples in every input",
                do="Say where the batch sits with gf.stateless(model, in_dims=...); None for what all samples share.",
            )
        )
    return sizes[0]


def _varied(criterion: Any, reduction: str) -> Callable[..., Any]:
    if isinstance(criterion, nn.Module):
        varied = copy.copy(criterion)
        setattr(varied, "reduction", reduction)  # noqa: B010  # a module's attributes are typed Tensor | Module
        return varied
    return functools.partial(criterion, reduction=reduction)


def _has_parameter(fn: Any, name: str) -> bool:
    try:
        return name in inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False
