"""Answers that can be differentiated again, at no cost until a backward pass asks.

Three states of a value. *Plain*: nothing that it was made of is followed by autograd; it answers without a graph.
*Attached*: a tensor given to `f`, or a coefficient, requires grad. It answers by whichever engine it has, detached, and
each answer gets one node of autograd whose backward pass runs the loss again, asks the same of the rows *live*, and
differentiates that. *Live*: rows with their own graph (`_live`); the only state inside a transform of torch.func,
where gradients are taken around a call rather than after it.

How to run again is kept with the value (`Origin`), and what makes values of values is repeated on the live ones
(`derives`), so that a selection of a scaled value is recomputed as that.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

from .._engines import limitation
from .._errors import message
from .._swap import is_transformed, levels, transforms
from .._tree import map_all, map_tensors, tensors_of
from ._versions import Versions, changed, versions

F = TypeVar("F", bound=Callable[..., Any])


class Want(NamedTuple):
    """What is to be made live: the rows too, or losses alone; and what stands in for the tensors of a nest.

    In a backward pass inputs are replaced by aliases, each with a place of its own in the graph: where one input was
    computed from another, as a clip's factor from the parameters, its share would else be counted twice.
    """

    rows: bool = True
    alias: Callable[[Any], Any] = lambda nest: nest


EVERYTHING = Want()
Run = Callable[[Want], Any]  # the value, live


class Refused(RuntimeError):
    """What cannot be inside a transform of torch.func, said once."""


@dataclass(frozen=True, eq=False)
class Origin:
    """What an attached value was made of.

    Attributes:
        run: makes it again, live.
        inputs: what it depends on and autograd follows, each once.
        watched: tensors that it reads again, with the versions that they had.
    """

    run: Run
    inputs: tuple[Tensor, ...]
    watched: Versions

    @classmethod
    def of(cls, run: Run, read: Iterable[Tensor]) -> Origin | None:
        """None where autograd follows nothing of what is read, or no one asks it to."""
        tensors = _once(read)
        inputs = tuple(tensor for tensor in tensors if tensor.requires_grad)
        if not inputs or not torch.is_grad_enabled() or levels():
            return None
        return cls(run, inputs, versions(tensors))

    def and_of(self, read: Iterable[Tensor]) -> Origin:
        """With what a query or another value reads besides."""
        tensors = [tensor for tensor in _once(read) if all(tensor is not seen for seen, _ in self.watched)]
        inputs = tuple(tensor for tensor in tensors if tensor.requires_grad)
        return dataclasses.replace(self, inputs=self.inputs + inputs, watched=self.watched + versions(tensors))

    def check_unchanged(self, call: str) -> None:
        """Raise unless everything still is what it was."""
        if changed(self.watched):
            raise RuntimeError(
                message(
                    call,
                    got="parameters, a batch or coefficients that were changed in place since, in its backward pass",
                    expected="the values at which it was asked, since its derivative runs the model again",
                    do="Differentiate before the update, or update out of place.",
                )
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Differentiable:
    """What a value knows of its derivative."""

    # How it is made again with a graph behind its rows, where autograd follows what it was made of.
    _origin: Origin | None = field(repr=False, default=None)
    # Whether its rows have that graph.
    _live: bool = field(repr=False, default=False)


V = TypeVar("V", bound=Differentiable)


def live_of(value: V, want: Want = EVERYTHING) -> V:
    """The same value with a graph behind its rows; constant rows where it is plain."""
    if value._live:
        return value
    return dataclasses.replace(value, _live=True) if value._origin is None else value._origin.run(want)


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes a value live, and holds no rows of one that can be computed again."""

    run: Run

    @classmethod
    def of(cls, value: Differentiable) -> Maker:
        """Of this value."""
        return cls(functools.partial(live_of, value) if value._origin is None else value._origin.run)


def derives(method: F) -> F:
    """A method that makes a value of a value: the live value is made likewise."""

    @functools.wraps(method)
    def made(self: Differentiable, *args: Any, **kwargs: Any) -> Differentiable:
        if _followed(self, args, kwargs):
            value: Differentiable = _said(self, method, args, kwargs)
            return value
        if self._live:
            return method(self, *args, **kwargs)  # type: ignore[no-any-return]
        plain = dataclasses.replace(self, _origin=None)
        value = method(plain, *args, **kwargs)

        origin = joint_origin(_repeated(method, self, args, kwargs), [self], _tensors(args, kwargs))
        return dataclasses.replace(value, _origin=origin)

    return made  # type: ignore[return-value]


def joint_origin(run: Run, values: Iterable[Differentiable], read: Iterable[Tensor] = ()) -> Origin | None:
    """Of what is made of several values, and of tensors besides; None where nothing is attached."""
    if not torch.is_grad_enabled():
        return None
    origin: Origin | None = None
    for value in values:
        if value._origin is not None:
            origin = value._origin if origin is None else _both(origin, value._origin)
    if origin is None:
        return Origin.of(run, read)
    return dataclasses.replace(origin.and_of(read), run=run)


def differentiable(*, rows: bool = True) -> Callable[[F], F]:
    """A query, by whichever engine the value has, that is differentiated through live rows (`rows=False`: losses)."""

    def decorated(query: F) -> F:
        @functools.wraps(query)
        def asked(self: Differentiable, *args: Any, **kwargs: Any) -> Any:
            if _followed(self, args, kwargs):
                return _said(self, query, args, kwargs)
            if self._live or not torch.is_grad_enabled() or levels():
                return query(self, *args, **kwargs)
            values = [self, *(arg for arg in (*args, *kwargs.values()) if isinstance(arg, Differentiable))]
            read = _tensors(args, kwargs)
            if all(v._origin is None for v in values) and not any(tensor.requires_grad for tensor in read):
                return query(self, *args, **kwargs)
            origin = joint_origin(_repeated(query, self, args, kwargs), values, read)
            assert origin is not None
            with torch.no_grad():
                answer = query(self, *args, **kwargs)
            return _attached(f"g.{query.__name__}", answer, origin, rows)

        return asked  # type: ignore[return-value]

    return decorated


class _Again(torch.autograd.Function):
    """The identity on an answer; backwards, the derivative of the same answer of live rows."""

    @staticmethod
    def forward(ctx: Any, call: str, origin: Origin, rows: bool, answers: list[Tensor], *_: Tensor) -> Any:
        ctx.call, ctx.origin, ctx.rows = call, origin, rows
        ctx.set_materialize_grads(False)
        return tuple(answers)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        origin, create_graph = ctx.origin, torch.is_grad_enabled()
        origin.check_unchanged(ctx.call)
        with torch.enable_grad():
            aliases = {id(tensor): tensor.view_as(tensor) for tensor in origin.inputs}
            want = Want(ctx.rows, functools.partial(map_all, lambda tensor: aliases.get(id(tensor), tensor)))
            answers = _floating(origin.run(want))
        asked = [
            (answer, c) for answer, c in zip(answers, cotangents, strict=True) if c is not None and answer.requires_grad
        ]
        wanted = [
            aliases[id(tensor)] for tensor, need in zip(origin.inputs, ctx.needs_input_grad[4:], strict=True) if need
        ]
        found = iter(
            torch.autograd.grad(
                [answer for answer, _ in asked],
                wanted,
                [c for _, c in asked],
                create_graph=create_graph,
                allow_unused=True,
            )
            if asked
            else [None] * len(wanted)
        )
        return None, None, None, None, *(next(found) if need else None for need in ctx.needs_input_grad[4:])


def _attached(call: str, answer: Any, origin: Origin, rows: bool) -> Any:
    """`answer`, its floating tensors with one node of autograd behind them."""
    # torch's stubs leave `apply` untyped
    nodes = iter(_Again.apply(call, origin, rows, _floating(answer), *origin.inputs))  # type: ignore[no-untyped-call]
    return map_tensors(lambda tensor: next(nodes) if tensor.is_floating_point() else tensor, answer)


def _floating(answer: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_of(answer) if tensor.is_floating_point()]


def _repeated(method: Callable[..., Any], value: Differentiable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """The same asked of the same values, live."""
    makers = [Maker.of(arg) if isinstance(arg, Differentiable) else arg for arg in _plain((value, *args))]
    named = {key: Maker.of(arg) if isinstance(arg, Differentiable) else arg for key, arg in kwargs.items()}

    def run(want: Want) -> Any:
        def one(arg: Any) -> Any:
            return arg.run(want) if isinstance(arg, Maker) else want.alias(arg)

        return method(*map(one, makers), **{key: one(arg) for key, arg in named.items()})

    return run


def _followed(value: Differentiable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a transform of torch.func is running that follows what is asked, or may."""
    if not levels():
        return False
    values = [value, *(arg for arg in (*args, *kwargs.values()) if isinstance(arg, Differentiable))]
    return any(v._live or v._origin for v in values) or any(is_transformed(t) for t in _tensors(args, kwargs))


def _said(value: Differentiable, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The method on the live value, inside a transform; what cannot be is said in our own words."""
    try:
        return method(live_of(value), *args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        name = method.__name__
        refuse("gf.clip_per_sample(max_norm).update(g, state)" if name == "_rescaled" else f"g.{name}", error)


def refuse(call: str, error: Exception) -> NoReturn:
    """Raise `error`; in other words where it is torch.func's own of what it cannot do inside a transform."""
    limit = limitation(error)
    if limit is None or isinstance(error, Refused):
        raise error
    raise Refused(
        message(
            call,
            got=f"the transform torch.func.{transforms()}, under which torch cannot do this ({limit})",
            expected="what torch.func can run: no Python control flow on values, no storage, no torch.autograd inside",
            do="Call it outside of the transform with tensors that require grad: answers are differentiable by "
            "torch.autograd, and second derivatives by create_graph=True.",
        )
    ) from error


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among arguments, also those of mappings that are no pytrees."""
    given = (*args, *kwargs.values())
    return tensors_of(_plain(given)) if given else []


def _plain(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict(arg) if isinstance(arg, Mapping) else arg for arg in args)


def _both(first: Origin, second: Origin) -> Origin:
    inputs = tuple(_once((*first.inputs, *second.inputs)))
    return dataclasses.replace(first, inputs=inputs, watched=first.watched + second.watched)


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
