"""A mode that runs with a forward and a backward pass and follows numbers that are not finite to where they began.

Not every such number is a fault: attention fills masks with -inf, the norm at 0 divides by 0 and fills the result. So
each one carries its *root*, the earliest operation that made a number which is not finite out of finite ones, and only
the root of a loss or gradient that is not finite is asked for. Nodes of the backward pass are matched with operations
of the forward pass by autograd's sequence numbers.
"""

from __future__ import annotations

import bisect
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._frames import place_of
from .._tree import map_all, map_floats, tensors_of
from ._facts import facts_of, finite, floats, inputs_of, literal, made_by, masked
from ._origin import Input, Origin, short

_NARROW = (torch.float16, torch.bfloat16, torch.float32)
_UNWRITTEN = ("empty", "new_empty", "resize")  # what these hold is nobody's


@dataclass(frozen=True)
class _Site:
    """An operation of the forward pass."""

    operation: str
    layer: str
    where: str
    code: str
    inputs: tuple[Input, ...]
    made_by: tuple[str, ...]
    own: bool = False


@dataclass
class _Root:
    """What a number that is not finite began with; `purposeful` if that is where the user's code says infinity."""

    order: int
    purposeful: bool
    origin: Origin
    sequence: int = -1
    node: Any = None


class Watch(TorchDispatchMode):
    """Follows numbers that are not finite.

    Args:
        named: tensors that were given, by name.
        own: those that are the same for all samples: parameters and buffers.
        widen: make what the passes make in narrower types float64.
        ranges: note what each operation reads, and not only where it is.

    >>> x = torch.zeros(3, requires_grad=True)
    >>> with Watch({"x": x}) as watch:
    ...     found = torch.autograd.grad(x.sqrt().sum(), x)
    >>> origin = watch.origin(found)
    >>> origin.operation, origin.kernel, origin.inputs[0].low
    ('aten.sqrt', 'aten.div.Tensor', 0.0)
    """

    def __init__(
        self, named: Mapping[str, Any] | None = None, *, own: Any = (), widen: bool = False, ranges: bool = True
    ) -> None:
        # torch has no types for its modes, nor stubs for the number below; a frame may have none before it
        super().__init__()  # type: ignore[no-untyped-call]
        self._widen, self._ranges = widen, ranges
        self._order = 0
        self._roots: dict[int, _Root] = {}  # by storage
        self._kept: list[Tensor] = []  # so that no storage of these is used again
        self._sites: dict[int, _Site] = {}
        self._sequences: list[int] = []
        self._nodes: list[Any] = []
        self._outer: Any = None
        self._read: _Root | None = None  # what the operation that runs has read
        self._own: dict[int, Tensor] = {}  # by storage: these, and what is made of them alone
        self._note(own, True)
        for name, tree in (named or {}).items():
            for tensor in floats(tree):
                if not finite(tensor):
                    given = _given(name, tensor)
                    self._keep(tensor, _Root(0, not bool(tensor.isnan().any()), given))

    def __enter__(self) -> Watch:
        self._outer = sys._getframe(1)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._outer = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def origin(self, results: Any, layers: Sequence[tuple[int, str]] = ()) -> Origin | None:
        """Where the first of these results that is not finite began; None if all are finite, or nothing is known.

        Args:
            results: tensors of the passes.
            layers: `(sequence number, name)` of layers in forward order.
        """
        roots = [self._roots.get(_storage(t)) for t in floats(results) if not finite(t)]
        return self._told(_chosen([root for root in roots if root is not None]), layers)

    def refused(self) -> Origin | None:
        """Where what an operation read began that was not finite, if that operation raised."""
        return self._told(self._read, ())

    def _told(self, root: _Root | None, layers: Sequence[tuple[int, str]]) -> Origin | None:
        if root is None:
            return None
        facts = set(root.origin.facts)
        if root.sequence >= 0 and masked(self._nodes, root.sequence):
            facts.add("masked")
        after = [name for sequence, name in layers if sequence <= root.sequence]
        return dataclasses.replace(root.origin, after=after[-1] if after else "", facts=frozenset(facts))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._widen:
            args, kwargs = _widened(func, args, kwargs)
        self._order += 1
        node = torch._C._current_autograd_node() if torch._C._current_graph_task_id() != -1 else None
        bad = [tensor for tensor in floats((args, kwargs)) if not finite(tensor)]
        inputs = inputs_of(func, args, kwargs) if self._ranges else ()
        alone = self._alone(func, args, kwargs)
        site, sequence = self._site(func, args, inputs, node, alone)
        nan = any(bool(tensor.isnan().any()) for tensor in bad)
        roots = [root for tensor in bad if (root := self._roots.get(_storage(tensor))) is not None]
        before = map_all(torch.clone, args) if _writes(func) else args
        self._read = _chosen(roots)
        out = func(*args, **kwargs)
        self._read = None
        if self._widen and not tensors_of((args, kwargs)):  # a constant in the default type
            out = map_floats(lambda made: made.to(torch.float64) if made.dtype in _NARROW else made, out)
        self._note(out, alone)
        broken = [tensor for tensor in floats(out) if not finite(tensor)]
        if broken and not short(str(func)).startswith(_UNWRITTEN):
            makes_nan = not nan and any(bool(tensor.isnan().any()) for tensor in broken)
            root = self._root(func, before, kwargs, out, inputs, (site, sequence, node), roots, bool(bad), makes_nan)
            for tensor in broken:
                self._keep(tensor, root)
        return out

    def _root(
        self,
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        out: Any,
        inputs: tuple[Input, ...],
        at: tuple[_Site | None, int, Any],
        roots: list[_Root],
        bad: bool,
        makes_nan: bool,
    ) -> _Root:
        """What the output's numbers began with: the inputs' root, or this operation."""
        earlier = _chosen(roots)
        facts = facts_of(func, args, kwargs, out) if not bad or makes_nan else set()
        site, sequence, node = at
        facts |= {"its own"} if site and site.own else set()
        if makes_nan and earlier is not None and node is not None and node is earlier.node:
            marks = facts & {"zero cotangent"}
            earlier.origin = dataclasses.replace(earlier.origin, facts=earlier.origin.facts | marks)
        if bad and "empty slice" not in facts:
            named = earlier is not None and (not earlier.purposeful or bool(earlier.origin.given))
            if earlier is not None and (named or not makes_nan):
                return earlier
        origin = Origin(
            operation=site.operation if site else "",
            kernel=str(func).removesuffix(".default"),
            backward=node is not None,
            given="",
            layer=site.layer if site else "",
            after="",
            where=site.where if site else "",
            code=site.code if site else "",
            inputs=site.inputs if site else (),
            kernel_inputs=inputs if node is not None else (),
            made_by=site.made_by if site else (),
            facts=frozenset(facts),
        )
        return _Root(self._order, literal(func, out), origin, sequence, node)

    def _site(self, func: Any, args: Any, inputs: tuple[Input, ...], node: Any, own: bool) -> tuple[_Site | None, int]:
        """The operation of the forward pass that this is, or is of the derivative of."""
        if node is not None:
            if not any(node is one for one in self._nodes[-1:]):
                self._nodes.append(node)
            sequence = node._sequence_nr()
            k = bisect.bisect_right(self._sequences, sequence) - 1
            sequence = self._sequences[k] if k >= 0 else sequence
            site = self._sites.get(sequence)
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                site = self._custom(node, site)
            if not torch.is_grad_enabled():
                return site, sequence
        sequence = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        here = place_of(self._frames())
        operation = str(func).removesuffix(".default")
        site = _Site(operation, here.module, here.where, here.code, inputs, made_by(tensors_of(args)), own)
        if sequence not in self._sites:
            self._sites[sequence] = site
            bisect.insort(self._sequences, sequence)
        return site, sequence

    def _custom(self, node: Any, site: _Site | None) -> _Site:
        """A `torch.autograd.Function`, by the line of its own backward."""
        here = place_of(self._frames())
        name = node.name().removesuffix("Backward")
        if site is None:
            return _Site(name, "", here.where, here.code, (), ())
        where, code = (here.where, here.code) if here.where else (site.where, site.code)
        return dataclasses.replace(site, operation=name, where=where, code=code)

    def _frames(self) -> list[tuple[Any, int]]:
        frames, frame = [], sys._getframe(1)
        while frame is not None and frame is not self._outer:
            frames.append((frame, frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]
        return frames[::-1]

    def _alone(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether an operation reads parameters and constants alone, and draws nothing."""
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        return not drawn and all(_storage(tensor) in self._own for tensor in tensors_of((args, kwargs)))

    def _note(self, tree: Any, alone: bool) -> None:
        """Keep what was made, or written to, of these alone: no storage of them is used again."""
        for tensor in tensors_of(tree):
            key = _storage(tensor)
            if alone and key:
                self._own[key] = tensor
            else:
                self._own.pop(key, None)

    def _keep(self, tensor: Tensor, root: _Root) -> None:
        self._roots[_storage(tensor)] = root
        self._kept.append(tensor)


def _chosen(roots: list[_Root]) -> _Root | None:
    """The earliest, of those that nobody meant where there are any."""
    return min(roots, key=lambda root: (root.purposeful, root.order), default=None)


def _given(name: str, tensor: Tensor) -> Origin:
    tensors = (dataclasses.replace(_only(tensor), name=name),)
    return Origin("", "", False, name, "", "", "", "", tensors, (), (), frozenset())


def _only(tensor: Tensor) -> Input:
    return inputs_of(torch.ops.aten.detach.default, (tensor,), {})[0]


def _storage(tensor: Tensor) -> int:
    tensor = tensor._values() if tensor.is_sparse else tensor
    return tensor.untyped_storage().data_ptr()


def _widened(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What is asked in a narrower type is asked in float64; so are constants that meet a float64 tensor."""
    if kwargs.get("dtype") in _NARROW:
        kwargs["dtype"] = torch.float64
    kinds = {tensor.dtype for tensor in tensors_of((args, kwargs))}
    if torch.float64 in kinds and kinds & set(_NARROW) and not _writes(func):
        args, kwargs = map_floats(lambda tensor: tensor.to(torch.float64), (args, kwargs))
    return args, kwargs


def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)
