"""The layers of a model in the order in which a forward pass meets them, with places where autograd can differentiate.

A function mode runs with the forward pass. It knows the parameters by identity and follows what is made of parameters
alone (a transpose, a normalised weight, a cast). A function that mixes such tensors with data is a *use*; the
activation that follows is attached to it. Places are edges of autograd's graph, not tensors: they stay what they were
when a tensor is written to later, and they hold no values. Nothing is hooked, and the model is not asked for modules.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ._tree import tensors_of

ACTIVATIONS = [
    *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
    *("softsign", "tanh", "tanhshrink", "sigmoid", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish"),
    *("hardshrink", "softshrink", "threshold"),
]
_KINDS = {
    getattr(place, name + end): kind
    for kind in ACTIVATIONS
    for name in (kind, {"sigmoid": "expit", "logsigmoid": "log_sigmoid"}.get(kind, kind))
    for end in ("", "_")
    for place in (torch, F, Tensor, torch.special, torch._C._nn)
    if hasattr(place, name + end)
}
ENTRYWISE = {"add", "sub", "mul", "div", "true_divide"}
_SAME_ENTRIES = {
    *("dropout", "dropout_", "alpha_dropout", "view", "reshape", "flatten", "unflatten", "contiguous", "clone", "T"),
    *("transpose", "permute", "movedim", "squeeze", "unsqueeze", "to", "type", "float", "double", "half", "bfloat16"),
}


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer's parameters.

    Attributes:
        layer: the module that holds them ("fc1" of "fc1.weight"), or the parameter where that is the model itself.
        names: every parameter that enters here, in the order of the model's.
        function: torch's name of what mixes them with data; a custom one's node in the graph.
        shape: of the output.
        direct: whether these parameters enter as they are, and not through functions of parameters.
        output: where it is in autograd's graph; None once `without_graph`.
        activation: the kind of the activation that follows, such as "relu"; None without.
        activated: where its output is, None without.
        phi: the activation as a function of one tensor; None without, or where it takes other tensors.
        value: what `note` gave for the output of the activation, or of the use where none follows.
        sources: indices of the uses whose outputs this one reads, through whatever has no parameters.
        straight: whether there is one, and nothing behind it but its activation, dropout, and changes of shape or type.
        number: which use of the layer it is, from 1.
        of: how many uses the layer has.
    """

    layer: str
    names: tuple[str, ...]
    function: str
    shape: torch.Size
    direct: bool
    output: GradientEdge | None
    activation: str | None
    activated: GradientEdge | None
    phi: Callable[[Tensor], Tensor] | None
    value: Any
    sources: tuple[int, ...]
    straight: bool
    number: int = 1
    of: int = 1

    @property
    def last(self) -> GradientEdge:
        """The output of the activation, or of the use where none follows."""
        edge = self.output if self.activated is None else self.activated
        assert edge is not None
        return edge

    def without_graph(self) -> Use:
        """The same without its places, so that the graph can go."""
        return dataclasses.replace(self, output=None, activated=None)


class Walk(TorchFunctionMode):
    """Follows forward passes of one model.

    Args:
        params: the tensors that the model is called with, which require grad.
        note: called with each use's last tensor and the use, while its values are there; its answer is kept, the
            tensor is not.

    >>> w = torch.ones(3, 2, requires_grad=True)
    >>> walk = Walk({"fc.weight": w}, lambda tensor, use: tensor.sum().item())
    >>> out = walk.around(lambda x: F.relu(F.linear(x, w * 2)))(torch.ones(1, 2))
    >>> [(use.layer, use.function, use.activation, use.value) for use in walk.uses()]
    [('fc', 'linear', 'relu', 12.0)]
    """

    def __init__(self, params: Mapping[str, Tensor], note: Callable[[Tensor, Use], Any]) -> None:
        super().__init__()
        self._params = dict(params)
        self._order = list(params)
        self._note = note
        self._open: list[_Open] = []
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
        name = _name_of(func)
        kind = _KINDS.get(func)
        written = given[0] if name == "__setitem__" or kwargs.get("inplace") or _in_place(func) else None
        if written is not None:
            self._close_sharing(written, kind is not None)
        out = func(*args, **kwargs)
        made = [written] if name == "__setitem__" else tensors_of(out)
        made = [t for t in made if isinstance(t, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(t)]
        if origins and made:
            if kind is not None and len(given) == 1:
                self._phi = functools.partial(_applied, func, args[1:], kwargs)
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
            attached = False
            if kind is not None and sources and graded:
                attached = self._open[max(sources)].activate(kind, graded[0], self._phi)
            origin = dataclasses.replace(origin, straight=_straight(origins) and (attached or name in _SAME_ENTRIES))
        for tensor in made:
            # what autograd does not see is data or a constant, whatever it was made of
            roots = origin.roots if tensor.requires_grad else frozenset[str]()
            known = dataclasses.replace(origin, roots=roots, graded=tensor.requires_grad)
            self._known[tensor] = known
            if tensor.grad_fn is not None:
                self._nodes[tensor.grad_fn] = known

    def _use(self, name: str, origins: list[_Origin], out: Tensor, given: Sequence[Tensor] = ()) -> _Origin:
        roots = frozenset[str]().union(*(origin.roots for origin in origins))
        sources = frozenset[int]().union(*(origin.sources for origin in origins))
        names = tuple(key for key in self._order if key in roots)
        layer, previous = _layer_of(names), self._open[max(sources)] if sources else None
        if previous is not None and previous.continues(name, names, given):
            previous.extend(tuple(key for key in self._order if key in (*previous.use.names, *names)), out)
            return _Origin(True, frozenset(), frozenset([max(sources)]), straight=True)
        for index in sources:
            self._open[index].close(self._note)
        direct = all(any(self._params[key] is tensor for tensor in given) for key in names)
        place = get_gradient_edge(out)
        reads = tuple(sorted(sources))
        use = Use(layer, names, name, out.shape, direct, place, None, None, None, None, reads, _straight(origins))
        self._open.append(_Open(use, out))
        return _Origin(True, frozenset(), frozenset([len(self._open) - 1]), straight=True)

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
            if shares and not (by_activation and opened.tensor is written):
                opened.close(self._note)


@dataclass(frozen=True)
class _Origin:
    """Of a tensor: whether data is in it; the parameters it is made of alone; the uses whose outputs it carries on.

    `graded` is whether it required grad when it was met: a custom function's output does so only once that is left.
    `straight` is as of `Use`.
    """

    data: bool = False
    roots: frozenset[str] = frozenset()
    sources: frozenset[int] = frozenset()
    graded: bool = False
    straight: bool = False


_NOTHING = _Origin()


class _Open:
    """A use, and its last tensor until that is noted."""

    def __init__(self, use: Use, tensor: Tensor) -> None:
        self.use, self.value = use, None
        self.tensor: Tensor | None = tensor
        self._entries = tensor.numel()

    def activate(self, kind: str, out: Tensor, phi: Callable[[Tensor], Tensor] | None) -> bool:
        """An activation follows; the first one counts, if it is of the whole output. Whether this one does."""
        if self.use.activation is not None or out.numel() != self._entries:
            return False
        self.use = dataclasses.replace(self.use, activation=kind, activated=get_gradient_edge(out), phi=phi)
        self.tensor = out
        return True

    def continues(self, name: str, names: tuple[str, ...], given: Sequence[Tensor]) -> bool:
        """Whether a scale or shift by other parameters of the same module belongs to this use."""
        return (
            entrywise(name)
            and self.tensor is not None
            and self.use.activation is None
            and any(tensor is self.tensor for tensor in given)
            and not set(names) & set(self.use.names)
            and all(_module_of(key) == _module_of(self.use.names[0]) for key in names)
        )

    def extend(self, names: tuple[str, ...], out: Tensor) -> None:
        """It does: the output is the later one."""
        self.use = dataclasses.replace(self.use, names=names, shape=out.shape, output=get_gradient_edge(out))
        self.tensor, self._entries = out, out.numel()

    def close(self, note: Callable[[Tensor, Use], Any]) -> None:
        """Note the last tensor, and let go of it."""
        if self.tensor is not None:
            with torch.no_grad():
                self.value = note(self.tensor.detach(), self.use)
            self.tensor = None


def _straight(origins: list[_Origin]) -> bool:
    sourced = [origin for origin in origins if origin.sources]
    return len(sourced) == 1 and sourced[0].straight


def _applied(func: Any, others: tuple[Any, ...], options: dict[str, Any], tensor: Tensor) -> Tensor:
    """The same call on another tensor, which it may not write to."""
    out: Tensor = func(tensor.clone(), *others, **options)
    return out


def entrywise(function: str) -> bool:
    """Whether a function of this name adds or multiplies entry by entry."""
    return function.strip("_").removeprefix("i") in ENTRYWISE


def _layer_of(names: tuple[str, ...]) -> str:
    """The module with most of these parameters, or the parameter itself where that is the model."""
    modules = Counter(_module_of(name) for name in names)
    module = max(modules, key=lambda key: modules[key])
    return module or next(_plain(name) for name in names if not _module_of(name))


def _module_of(name: str) -> str:
    plain = _plain(name)
    module, _, last = plain.rpartition(".")
    return plain if last.isdigit() else module  # an entry of a list of parameters is a layer of its own


def _plain(name: str) -> str:
    """As it was before a parametrization took its place."""
    return re.sub(r"(^|\.)parametrizations\.([^.]+)\.original\d*$", r"\1\2", name)


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return str(name)


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name.startswith("__i") and name not in ("__index__", "__int__", "__invert__", "__iter__")
    return name.endswith("_")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
