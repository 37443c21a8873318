"""`TransformationConformance`: every law, asked of a transformation of yours on drawn gradients."""

from __future__ import annotations

import inspect
import textwrap
import unittest
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.vendor.pretty import pretty

from ..._errors import POSITIVE, check_number, kind_of, message
from ..._per_sample import PerSampleGrads
from ..._transform import Grads, Transformation, Updates
from ..._transform._chain import places
from ..._transform._protocol import Guaranteeing
from ..._tree import Tensors
from .._laws import assert_permutation_equivariant
from .._stage_laws import assert_guarantee_holds, assert_norm_bounded, assert_transformation_laws
from .._staged import check_transformation, takes_gradients, takes_rows
from ._per_sample import SyntheticGrads, per_sample_grads
from ._readable import Readable
from ._trees import parameter_trees


@dataclass(frozen=True, kw_only=True, repr=False)
class Drawn(Readable):
    """What a transformation is given: gradients, and parameters that are all 1."""

    rows: SyntheticGrads | None = None
    gradients: Tensors | None = None

    @property
    def grads(self) -> PerSampleGrads | Tensors:
        """Rows, or gradients."""
        if self.rows is not None:
            return self.rows.grads
        return {name: value.clone() for name, value in (self.gradients or {}).items()}

    @property
    def params(self) -> Tensors:
        """Of their shapes."""
        shapes = self.rows.params if self.rows is not None else self.gradients or {}
        return {name: torch.ones_like(value) for name, value in shapes.items()}

    @property
    def lines(self) -> str:
        """Lines of Python that make `grads` and `params` again."""
        if self.rows is None:
            first, shapes = f"grads = {pretty(self.gradients)}", "grads"
        else:
            first = f"drawn = gf.testing.strategies.{self.rows!r}\ngrads = drawn.grads"
            shapes = "drawn.params"
        return f"{first}\nparams = {{name: torch.ones_like(value) for name, value in {shapes}.items()}}"


class TransformationConformance:
    """Every law of `gf.testing`, asked of a transformation of yours on gradients that hypothesis draws.

    Give a subclass whose name pytest collects (or that is a `unittest.TestCase` besides) a function that makes the
    transformation; each example gets a new one. Per-sample gradients are of any kind of factor, with weights of which
    some are 0, rows that are 0 or 2^30 times another, kept or given in chunks; gradients have hard values, as of
    `finite_tensors`, but for those whose norm overflows. A failing example shrinks to what a person reads, beside
    which law is broken, where and by how much, and the lines that ask for it again.

    Attributes:
        transformation: a function without arguments that makes one.
        takes: gf.PerSampleGrads, gf.Grads or gf.Updates for a transformation that does not say so itself; by default
            the first.
        bound: no norm of what comes out is above it; None where the transformation bounds nothing, or says so itself in
            `guarantee`, which is always asked.
        per_unit_weight: the bound is on a row over its weight.
        idempotent: what was bounded once stays as it is.
        permutation_equivariant: False for one that looks at the order of the samples.
        dtypes: of gradients and parameters.
        settings: of hypothesis; None for those of the profile in use, without a deadline.

    Raises:
        TypeError, ValueError: when a test runs, an attribute that is none of these.

    Example:
        >>> import gradfunc as gf
        >>> class Clip:
        ...     takes = gives = gf.PerSampleGrads
        ...     def init(self, params):
        ...         return ()
        ...     def update(self, g, state, params=None, /):
        ...         return g.scaled((1 / g.norms().clamp_min(1)).double()), state
        >>> class TestClip(gf.testing.strategies.TransformationConformance):
        ...     transformation = staticmethod(lambda: Clip())
        ...     bound = 1.0
        >>> TestClip().test_norm_bounded()
    """

    transformation: ClassVar[Callable[[], Transformation[Any, Any]]]
    takes: ClassVar[Any] = None
    bound: ClassVar[float | None] = None
    per_unit_weight: ClassVar[bool] = False
    idempotent: ClassVar[bool] = False
    permutation_equivariant: ClassVar[bool] = True
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float64, torch.float32)
    settings: ClassVar[hypothesis.settings | None] = None

    def test_transformation_laws(self) -> None:
        """`gf.testing.assert_transformation_laws`."""
        self._ask(assert_transformation_laws, self._takes_rows())

    def test_permutation_equivariant(self) -> None:
        """`gf.testing.assert_permutation_equivariant`, of one that takes rows."""
        if not self._takes_rows():
            raise unittest.SkipTest("gradients that are reduced have no order")
        if not self._flag("permutation_equivariant"):
            raise unittest.SkipTest("permutation_equivariant = False")
        self._ask(assert_permutation_equivariant, True)

    def test_norm_bounded(self) -> None:
        """`gf.testing.assert_norm_bounded`, of one with a `bound`."""
        bound = self.bound
        if bound is None:
            raise unittest.SkipTest("no bound is stated")
        check_number(self._call, "bound", bound, POSITIVE)
        options: dict[str, Any] = {name: self._flag(name) for name in ("per_unit_weight", "idempotent")}
        self._ask(assert_norm_bounded, self._takes_rows(), bound=bound, **options)

    def test_guarantee_holds(self) -> None:
        """`gf.testing.assert_guarantee_holds`, of one with `guarantee(before)`."""
        if not isinstance(self._made(), Guaranteeing):
            raise unittest.SkipTest("the transformation has no guarantee(before)")
        self._ask(assert_guarantee_holds, True)

    @property
    def _call(self) -> str:
        return f"gf.testing.strategies.TransformationConformance ({type(self).__name__})"

    def _ask(self, law: Callable[..., None], rows: bool, **options: Any) -> None:
        """The law, of each drawn example."""
        make, kinds = self._made, st.sampled_from(self._kinds())
        if rows:
            values = per_sample_grads(lengths=True, weights=True, chunks=True, dtype=kinds)
            drawn = values.filter(lambda one: any(one.weights or [1.0])).map(lambda one: Drawn(rows=one))
        else:
            drawn = parameter_trees(dtype=kinds).filter(_has_a_norm).map(lambda one: Drawn(gradients=one))

        silent = rows and self.takes is None and places(make())[0] is None

        def conforms(drawn: Drawn) -> None:
            try:
                law(make(), drawn.grads, drawn.params, **options)
            except Exception as error:
                error.add_note(self._replay(law, drawn, options))
                if silent:
                    error.add_note("It says not what it takes, and was given rows. For gradients: takes = gf.Grads.")
                raise

        conforms.__name__ = conforms.__qualname__ = f"{type(self).__name__}_conforms"
        # hypothesis keeps failing examples by source and signature: without this, all classes would have each other's
        conforms.__annotations__["drawn"] = f"{type(self).__module__}.{type(self).__qualname__}.{law.__name__}"
        self._settings()(hypothesis.given(drawn=drawn)(conforms))()

    def _replay(self, law: Callable[..., None], drawn: Drawn, options: dict[str, Any]) -> str:
        """Lines of Python that ask the law of one example again."""
        name = type(self).__name__ + "()" * _takes_self(self._given())
        given = "".join(f", {key}={value!r}" for key, value in options.items())
        lines = f"{drawn.lines}\ngf.testing.{law.__name__}({name}.transformation(), grads, params{given})"
        return f"Replay, beside {type(self).__name__}:\n" + textwrap.indent(lines, "    ")

    def _given(self) -> Any:
        given = inspect.getattr_static(type(self), "transformation", None)
        return given.__func__ if isinstance(given, staticmethod) else given

    def _made(self) -> Transformation[Any, Any]:
        """A new one.

        Raises:
            TypeError: no function, or one that makes no transformation.
        """
        given = self._given()
        if not inspect.isfunction(given) and not (callable(given) and inspect.isclass(given)):
            do = "Write `transformation = staticmethod(lambda: MyClip(1.0))`."
            got = f"{kind_of(given)} as transformation"
            raise TypeError(message(self._call, got=got, expected="a function that makes one", do=do))
        make: Any = given
        made: Transformation[Any, Any] = make(self) if _takes_self(given) else make()
        check_transformation(self._call, made)
        return made

    def _takes_rows(self) -> bool:
        if self.takes is not None:
            if not any(self.takes is one for one in (PerSampleGrads, Grads, Updates)):
                expected = "gf.PerSampleGrads, gf.Grads, gf.Updates, or None for what it says itself"
                raise TypeError(message(self._call, got=f"takes={self.takes!r}", expected=expected))
            return self.takes is PerSampleGrads
        made = self._made()
        return takes_rows(made) or not takes_gradients(made)

    def _flag(self, name: str) -> bool:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise TypeError(message(self._call, got=f"{name}={value!r}", expected="True or False"))
        return value

    def _kinds(self) -> list[torch.dtype]:
        given = self.dtypes
        if not isinstance(given, (list, tuple)) or not given or not all(isinstance(k, torch.dtype) for k in given):
            raise TypeError(message(self._call, got=f"dtypes={given!r}", expected="a list of torch dtypes"))
        return list(given)

    def _settings(self) -> hypothesis.settings:
        if self.settings is None:
            default = hypothesis.settings()
            quiet = [*default.suppress_health_check, HealthCheck.too_slow]
            # what it explains is which lines of the laws ran
            phases = [phase for phase in default.phases if phase != Phase.explain]
            return hypothesis.settings(default, deadline=None, suppress_health_check=quiet, phases=phases)
        if not isinstance(self.settings, hypothesis.settings):
            got = f"settings={self.settings!r}"
            raise TypeError(message(self._call, got=got, expected="hypothesis.settings(...), or None"))
        return self.settings


def _takes_self(given: Any) -> bool:
    return inspect.isfunction(given) and len(inspect.signature(given).parameters) > 0


def _has_a_norm(gradients: Tensors) -> bool:
    """Whether the norm of all entries is finite in their dtype."""
    values = [value for value in gradients.values() if value.numel()]
    entries = sum(value.numel() for value in values)
    return all(float(value.double().abs().max()) < torch.finfo(value.dtype).max / entries for value in values)
