"""The mode that follows a forward pass."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .._tree import tensors_of
from ._kinds import KINDS, NORMS, SAME_ENTRIES, applied, in_place, name_of
from ._use import Open, Use, layer_of


class Walk(TorchFunctionMode):
    """Follows forward passes of one model.

    Args:
        params: the tensors that the model is called with, which require grad.
        note: called with each use's last tensor and the use, while its values are there; its answer is kept, the
            tensor is not.
        before: the last tensor is the one before the activation.

    >>> w = torch.ones(3, 2, requires_grad=True)
    >>> walk = Walk({"fc.weight": w}, lambda tensor, use: tensor.sum().item())
    >>> out = walk.around(lambda x: torch.relu(torch.nn.functional.linear(x, w * 2)))(torch.ones(1, 2))
    >>> [(use.layer, use.function, use.activation, use.value) for use in walk.uses()]
    [('fc', 'linear', 'relu', 12.0)]
    """

    def __init__(
        self, params: Mapping[str, Tensor], note: Callable[[Tensor, Use], Any], *, before: bool = False
    ) -> None:
        super().__init__()
        self._params = dict(params)
        self._order = list(params)
        self._note, self._before = note, before
        self._open: list[Open] = []
        self._phi: Callable[[Tensor], Tensor] | None = None  # of the call that runs
        self._known: Any = WeakTensorKeyDictionary()
        self._nodes: dict[Any, _Origin] = {}
        for name, param in params.items():
            origin = _Origin(roots=frozenset([name]), graded=True)
            self._known[param] = origin
            if param.requires_grad:
                self._nodes[get_gradient_edge(param).node] = origin

    def around(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, followed."""

        @functools.wraps(model, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            for tensor in tensors_of((args, kwargs)):
                self._known[tensor] = _Origin(data=True)
            with self:
                out = model(*args, **kwargs)
            for tensor in tensors_of(out):
                if (origin := self._origin(tensor)) and origin.roots:
                    self._use("output", [origin], tensor)
            return out

        return run

    def uses(self) -> tuple[Use, ...]:
        """What was met, in forward order; the walk lets go of everything else."""
        for opened in self._open:
            opened.close(self._note)
        self._known, self._nodes = WeakTensorKeyDictionary(), {}
        total = Counter(opened.use.layer for opened in self._open)
        met: Counter[str] = Counter()
        found = []
        for opened in self._open:
            met[opened.use.layer] += 1
            number, of = met[opened.use.layer], total[opened.use.layer]
            found.append(dataclasses.replace(opened.use, value=opened.value, number=number, of=of))
        self._open = []
        return tuple(found)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        if not given or any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in given):
            return func(*args, **kwargs)  # what a vmap makes is found by its graph once it is out
        origins = [origin for tensor in given if (origin := self._origin(tensor))]
        name = name_of(func)
        kind = KINDS.get(func)
        written = given[0] if name == "__setitem__" or kwargs.get("inplace") or in_place(func) else None
        if written is not None:
            self._close_sharing(written, kind is not None)
        out = func(*args, **kwargs)
        made = [written] if name == "__setitem__" else tensors_of(out)
        made = [t for t in made if isinstance(t, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(t)]
        if origins and made:
            if kind is not None and len(given) == 1:
                self._phi = functools.partial(applied, func, args[1:], kwargs)
            self._place(name, kind, origins, given, made)
            self._phi = None
        if written is not None and written._base is not None:
            self._known[written._base] = self._known.get(written, _NOTHING)
        return out

    def _place(self, name: str, kind: str | None, origins: list[_Origin], given: list[Tensor], made: list[Any]) -> None:
        data = any(origin.data for origin in origins)
        graded = [tensor for tensor in made if tensor.requires_grad]
        if data and graded and any(origin.roots for origin in origins):
            first = next((t for t in graded if t.is_floating_point() or t.is_complex()), graded[0])
            origin = self._use(name, origins, first, [t for t in given if t is not first])
        else:
            sources = frozenset[int]().union(*(origin.sources for origin in origins))
            made_of = frozenset[str]().union(*(origin.roots for origin in origins))
            origin = _Origin(data, frozenset() if data else made_of, sources)
            attached, whole = False, _whole(name, origins)
            if kind is not None and graded and any(origin.whole for origin in origins):
                attached = self._activate(self._open[max(sources)], kind, graded[0])
            straight = _straight(origins) and (attached or name in SAME_ENTRIES)
            origin = dataclasses.replace(origin, straight=straight, whole=whole)
        for tensor in made:
            # what autograd does not see is data or a constant, whatever it was made of
            roots = origin.roots if tensor.requires_grad else frozenset[str]()
            known = dataclasses.replace(origin, roots=roots, graded=tensor.requires_grad)
            self._known[tensor] = known
            if tensor.grad_fn is not None:
                self._nodes[tensor.grad_fn] = known

    def _activate(self, opened: Open, kind: str, out: Tensor) -> bool:
        if self._before:
            opened.close(self._note)
        return opened.activate(kind, out, self._phi)

    def _use(self, name: str, origins: list[_Origin], out: Tensor, given: Sequence[Tensor] = ()) -> _Origin:
        roots = frozenset[str]().union(*(origin.roots for origin in origins))
        sources = frozenset[int]().union(*(origin.sources for origin in origins))
        names = tuple(key for key in self._order if key in roots)
        layer, previous = layer_of(names), self._open[max(sources)] if sources else None
        if previous is not None and previous.continues(name, names, given):
            previous.extend(tuple(key for key in self._order if key in (*previous.use.names, *names)), out)
            return _Origin(True, frozenset(), frozenset([max(sources)]), straight=True, whole=True)
        for index in sources:
            self._open[index].close(self._note)
        direct = all(any(self._params[key] is tensor for tensor in given) for key in names)
        place = get_gradient_edge(out)
        reads = tuple(sorted(sources))
        use = Use(layer, names, name, out.shape, direct, place, None, None, None, None, reads, _straight(origins))
        self._open.append(Open(use, out))
        return _Origin(True, frozenset(), frozenset([len(self._open) - 1]), straight=True, whole=True)

    def _origin(self, tensor: Tensor) -> _Origin | None:
        """What is known of a tensor; one that came past the mode (a custom function's) is placed by its graph."""
        origin: _Origin | None = self._known.get(tensor)
        if tensor.grad_fn is None or (origin is not None and origin.graded):
            return origin
        node: Any = tensor.grad_fn
        origins, unseen, seen = [], [node], set()
        while unseen:
            node = unseen.pop()
            if node is None:
                origins.append(_Origin(data=True))  # a tensor that needs no gradient
            elif node in self._nodes:
                origins.append(self._nodes[node])
            elif node not in seen:
                seen.add(node)
                unseen += [before for before, _ in node.next_functions]
        if any(origin.roots for origin in origins) or any(origin.sources for origin in origins):
            self._place(tensor.grad_fn.name(), None, origins, [], [tensor])
        found: _Origin | None = self._known.get(tensor)
        return found

    def _close_sharing(self, written: Tensor, by_activation: bool) -> None:
        """Note what is about to be overwritten."""
        for opened in self._open:
            shares = opened.tensor is not None and _storage(opened.tensor) == _storage(written)
            if shares and (self._before or not (by_activation and opened.tensor is written)):
                opened.close(self._note)


@dataclass(frozen=True)
class _Origin:
    """Of a tensor: whether data is in it; the parameters it is made of alone; the uses whose outputs it carries on.

    `graded` is whether it required grad when it was met: a custom function's output does so only once that is left.
    `straight` is as of `Use`. An activation of a tensor that is `whole` is one of the last use's output.
    """

    data: bool = False
    roots: frozenset[str] = frozenset()
    sources: frozenset[int] = frozenset()
    graded: bool = False
    straight: bool = False
    whole: bool = False


_NOTHING = _Origin()


def _whole(name: str, origins: list[_Origin]) -> bool:
    """Whether the result is the last use's output but for its shape, a norm without parameters, or a skip added."""
    sourced = [origin for origin in origins if origin.sources]
    if name in SAME_ENTRIES or name in NORMS:
        return len(sourced) == 1 and sourced[0].whole
    if name.strip("_") not in ("add", "iadd", "radd"):
        return False
    last = max((max(origin.sources) for origin in sourced), default=-1)
    carrying = [origin for origin in sourced if last in origin.sources]
    return len(carrying) == 1 and carrying[0].whole


def _straight(origins: list[_Origin]) -> bool:
    sourced = [origin for origin in origins if origin.sources]
    return len(sourced) == 1 and sourced[0].straight


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
