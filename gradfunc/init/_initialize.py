"""Schemes for the parameters of a model, by rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._errors import check_int, kind_of, message
from .._random import forked, generator_states, same_states
from .._stateless import PureModel, Stateless, stateless
from .._tree import Tensors, by_rules
from ._place import Place
from ._report import InitReport, InitRow
from ._scheme import Scheme, Shape, generator

Params = Mapping[str, Tensor] | Stateless | nn.Module | PureModel
Rules = Mapping[str, Scheme | Callable[..., Tensor]]


@dataclass(frozen=True, repr=False, kw_only=True)
class Given(Scheme):
    """A function of the user's."""

    function: Callable[..., Tensor]

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        with forked(0, devices=()):
            before = generator_states()
            out = self.function(shape, generator=source, dtype=dtype, device=torch.device("cpu"))
            if not same_states(before, generator_states()):
                got = "a draw from torch's global generator"
                do = "What it draws must depend on seed and name alone."
                raise ValueError(message(self._call, got=got, expected="draws from generator=", do=do))
        if not isinstance(out, Tensor):
            raise TypeError(message(self._call, got=kind_of(out), expected="a tensor"))
        if tuple(out.shape) != shape or out.dtype != dtype:
            got = f"{out.dtype} of shape {tuple(out.shape)}"
            raise ValueError(message(self._call, got=got, expected=f"{dtype} of shape {shape}"))
        return out.detach().clone()

    @property
    def _call(self) -> str:
        return f"{self}(shape, generator=..., dtype=..., device=...)"

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return math.nan, math.nan


def initialize(params: Params, rules: Rules, seed: int = 0) -> Tensors:
    """New parameters by rules: `{name: tensor}` with the names, order, shapes, dtypes and devices of those given.

    Each parameter takes the first rule whose pattern matches its whole name (`re.fullmatch`). What no rule matches is
    the tensor that was given, itself; `initialize_with_report` lists it. A rule that initialises nothing, since no name
    matches or earlier rules took all that do, is an error: the order of the rules counts.

    What is drawn depends on seed and name alone (`gf.init.generator(seed, name)`): not on the order of parameters or
    rules, on other parameters, or the device. Nothing that was given changes, nor do torch's global generators.

    Args:
        params: `{name: tensor}`; or a model (`gf.stateless`, `nn.Module` or pure), for its trainable parameters. A
            scheme may ask the model about a layer, as `torch_default()` does. `gf.load_params` writes the result back.
        rules: `{pattern: scheme}`. A function `(shape, *, generator, dtype, device) -> Tensor` of yours is a scheme; it
            draws from that generator, on that device (the CPU).
        seed: an int >= 0.

    Raises:
        TypeError, ValueError: something else; a rule that initialises nothing, or whose scheme is not for the shape; a
            function that gives another shape or dtype, or draws from a global generator.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.models.mlp([3, 8, 2])
        >>> rules = {
        ...     r".*weight": gf.init.kaiming_normal(nonlinearity="relu"),
        ...     r".*bias": gf.init.zeros(),
        ... }
        >>> params = gf.init.initialize(model, rules, seed=0)
        >>> {name: tuple(value.shape) for name, value in params.items()}
        {'fc1.weight': (8, 3), 'fc1.bias': (8,), 'fc2.weight': (2, 8), 'fc2.bias': (2,)}
    """
    call = "gf.init.initialize(params, rules)"
    values, model = _read(call, params)
    return _made(values, _chosen(call, values, model, rules), _seed(call, seed))


def initialize_with_report(params: Params, rules: Rules, seed: int = 0) -> tuple[Tensors, InitReport]:
    """What `initialize` gives, and a report: rule, scheme, aimed and measured standard deviation of each parameter.

    Example:
        >>> import gradfunc as gf
        >>> given = {"fc.weight": torch.zeros(4, 4), "fc.bias": torch.zeros(4)}
        >>> params, report = gf.init.initialize_with_report(given, {r".*weight": gf.init.identity()}, seed=0)
        >>> print(report)
        Initialisation with seed 0
        parameter   shape   rule       scheme           aimed std   measured std
        ────────────────────────────────────────────────────────────────────────
        fc.weight   4x4     .*weight   identity()       4.33e-01    4.33e-01
        fc.bias     4       -          kept its value   -           0
        <BLANKLINE>
        1 of 2 keep their value: fc.bias.
        >>> report.ok, report.unmatched
        (False, ('fc.bias',))
    """
    call = "gf.init.initialize_with_report(params, rules)"
    values, model = _read(call, params)
    chosen = _chosen(call, values, model, rules)
    out = _made(values, chosen, _seed(call, seed))
    return out, InitReport(
        seed, tuple(_row(name, value, *chosen.get(name, (None, None))) for name, value in out.items())
    )


def _read(call: str, params: Params) -> tuple[Mapping[str, Tensor], nn.Module | None]:
    if not isinstance(params, Mapping):
        model = stateless(params)
        return model.params, model.module
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            got = f"{name!r}: {kind_of(value)}"
            raise TypeError(message(call, got=got, expected="{name: tensor}, or a model"))
    return params, None


def _seed(call: str, seed: int) -> int:
    check_int(call, "seed", seed, 0)
    return seed


def _chosen(
    call: str, values: Mapping[str, Tensor], model: nn.Module | None, rules: Rules
) -> dict[str, tuple[str, Scheme]]:
    """Rule and scheme of each parameter that has one."""
    if not isinstance(rules, Mapping):
        raise TypeError(message(call, got=f"{kind_of(rules)} as rules", expected="{pattern: scheme}"))
    schemes = {rule: _scheme(call, rule, given) for rule, given in rules.items()}
    found = by_rules(call, "rules", values, schemes, exact=False)
    for rule in schemes:
        if rule not in found.values():
            do = "The first match wins: put a special rule before a general one."
            got = f"rules with {rule!r}, all of whose matches earlier rules have taken"
            raise ValueError(message(call, got=got, expected="a parameter left for every rule", do=do))
    chosen = {}
    for name, rule in found.items():
        scheme = schemes[rule].at(Place(name, values, model))
        scheme.check(f"{call} for {name!r}: {scheme}", tuple(values[name].shape))
        chosen[name] = (rule, scheme)
    return chosen


def _scheme(call: str, rule: str, given: object) -> Scheme:
    if isinstance(given, Scheme):
        return given
    if isinstance(given, type) or not callable(given):
        got, expected = f"{given!r} for {rule!r}", "a scheme, such as gf.init.zeros()"
        raise TypeError(message(call, got=got, expected=expected))
    said = str(getattr(given, "__name__", given))
    if getattr(given, "__module__", "").startswith(__package__):
        raise TypeError(message(call, got=f"{said} for {rule!r}", expected=f"a scheme: gf.init.{said}()"))
    return Given(said=said, function=given)


def _made(values: Mapping[str, Tensor], chosen: Mapping[str, tuple[str, Scheme]], seed: int) -> Tensors:
    out = dict(values)
    for name, (_, scheme) in chosen.items():
        value, source = values[name], generator(seed, scheme.stream(name))
        out[name] = scheme(tuple(value.shape), generator=source, dtype=value.dtype, device=value.device)
    return out


def _row(name: str, value: Tensor, rule: str | None, scheme: Scheme | None) -> InitRow:
    shape = tuple(value.shape)
    aimed = math.nan if scheme is None else scheme.std(shape)
    wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
    measured = float(wide.std(correction=0)) if value.numel() else None
    said = None if scheme is None else str(scheme)
    return InitRow(name, shape, rule, said, None if math.isnan(aimed) else aimed, measured)
