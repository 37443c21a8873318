"""`per_sample_grads`: reading the call, the choice of engine."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._capture import Plans
from .._engines import Call, Draws, Noticed, limitation
from .._errors import GradfuncWarning, kind_of, message, one_of
from .._swap import levels, transforms
from .._tree import Group, Selection, check_selection, read_batch, read_groups, selected, tensors_of
from .._weights import Weighted
from ._cannot import cannot
from ._chunks import Chunks
from ._differentiable import Origin, Want, refuse
from ._evaluation import Evaluation, Options
from ._indices import sample_ids
from ._value import PerSampleGrads
from ._verify import signature, verify

# Engines that run samples together, the quickest first, and why.
_BATCHED = (("factored", "rows are held as factors"), ("vmap", "torch.func runs this loss"))


@dataclass
class _Learnt:
    """What calls of one function have shown; shared by `f.at(...)`."""

    refused: dict[str, str] = field(default_factory=dict)  # engine -> why: later calls pass it over, without a warning
    plans: Plans = field(default_factory=Plans)
    warned_of_draws: bool = False
    warned_of_loop: bool = False
    verified: set[Any] = field(default_factory=set)  # signatures


@dataclass(frozen=True, eq=False)
class PerSampleGradsFunction:
    """`f(params, *args, **kwargs) -> PerSampleGrads`. Made by `gf.per_sample_grads`."""

    loss: Callable[..., Any]
    options: Options
    step: int | None = None
    index: Any = None
    call: str = "gf.per_sample_grads(loss)"
    _learnt: _Learnt = field(default_factory=_Learnt, repr=False)

    def at(self, step: int, index: Tensor | Sequence[int] | None = None) -> PerSampleGradsFunction:
        """The same function with its random draws named: they depend on (seed, step, sample id) and nothing else.

        Args:
            step: of the training, or whatever tells one evaluation from another.
            index: `[B]` integers that identify the samples, such as their positions in the data set; by default their
                positions in the batch. A sample draws the same numbers in whichever batch, chunk or order it comes.

        Raises:
            TypeError: `step` is not an int.
            ValueError: a negative step; an index beside `batched=True`, where draws belong to the batch.

        Example:
            >>> import torch, gradfunc as gf
            >>> f = gf.per_sample_grads(lambda p, x: torch.nn.functional.dropout(p["w"] * x).sum())
            >>> p, x = {"w": torch.ones(4)}, torch.ones(3, 4)
            >>> a = f.at(0, index=[7, 8, 9])(p, x)
            >>> b = f.at(0, index=[9])(p, x[:1])
            >>> torch.equal(a.select([2]).norms(), b.norms())
            True
        """
        call = f"{self.call}.at(step, index)"
        if not isinstance(step, int) or isinstance(step, bool):
            raise TypeError(message(call, got=f"step={step!r}", expected="an int"))
        if not 0 <= step < 2**63:
            raise ValueError(message(call, got=f"step={step}", expected="0 <= step < 2**63"))
        if index is not None and self.options.batched:
            do = "The batch runs as one, so its draws depend on seed and step alone."
            raise ValueError(message(call, got="an index beside batched=True", expected="index=None", do=do))
        return dataclasses.replace(self, step=step, index=index)

    def losses(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Weighted:
        """The losses alone, by a forward pass: numerators and weights `[B]` of the batch `args, kwargs`, without graph.

        Inside a transform of torch.func they carry its derivative.

        Raises:
            TypeError, ValueError, RuntimeError: as the call itself.

        Example:
            >>> import torch, gradfunc as gf
            >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
            >>> f.losses({"w": torch.ones(2)}, torch.arange(6.0).reshape(3, 2)).numerator
            tensor([1., 5., 9.])
        """
        run = self.evaluation(params, args, kwargs)
        if levels():
            inside = self._inside(run, rows=False)
            return Weighted(inside.losses, inside.weights)
        why: str | None = None
        if self.options.engine != "loop" and "vmap" not in self._learnt.refused:
            try:
                with torch.no_grad():
                    losses = run.losses("vmap")
            except Exception as error:
                if (limit := run.limit(error)) is None:
                    raise
                why = f"torch.func cannot run this loss ({limit})"
            else:
                if self.options.engine != "auto" or not self._loop_draws(run):
                    return losses
        with torch.no_grad():
            looped = run.losses("loop")
        if why is not None:  # as the call learns it: once the loop has done it, later batches go there at once
            self._learnt.refused = {**self._learnt.refused, "vmap": why}
        return looped

    def unverified(self) -> PerSampleGradsFunction:
        """The same function, for tools that check its answers themselves."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, verify=False))

    def __call__(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> PerSampleGrads:
        """The gradients of every sample of the batch `args, kwargs` at `params`."""
        run = self.evaluation(params, args, kwargs)
        if levels():
            return self._inside(run)
        value = self._chosen(run)
        self._warn_of_draws(run)
        if self.options.verify and (key := signature(run, value)) not in self._learnt.verified:
            verify(run, value, lambda changed: self._again(value.engine, changed((dict(params), args, kwargs))))
            self._learnt.verified.add(key)
        return dataclasses.replace(value, _origin=self._origin(run, value, (dict(params), args, kwargs)))

    def _origin(self, run: Evaluation, value: PerSampleGrads, given: tuple[Any, Any, Any]) -> Origin | None:
        """How to make `value` again with a graph behind its rows; None where nothing that was given requires grad."""
        engine, chunk = value.engine, value._chunks.size

        def again(want: Want) -> PerSampleGrads:
            return self.evaluation(*want.alias(given)).live_or_looped(engine, chunk, rows=want.rows)

        return Origin.of(again, run.watched)

    def _inside(self, run: Evaluation, *, rows: bool = True) -> PerSampleGrads:
        """The call inside a transform of torch.func: nothing is detached, kept elsewhere or verified.

        Without `rows`, losses alone.
        """
        if self.options.engine not in ("auto", "vmap"):
            got = f"engine={self.options.engine!r} inside the transform torch.func.{transforms()}"
            do = "Pass engine='vmap', or call f outside of the transform: its answers are differentiable by autograd."
            raise RuntimeError(message(run.call, got=got, expected="engine='vmap' or 'auto' there", do=do))
        size = sum(call.size for call in run.calls)
        chunk = Chunks.choose(self.options.chunk_size, run.calls[0].params, size).size
        try:
            value = run.live("vmap", f"inside torch.func.{transforms()}", chunk, rows=rows)
        except (RuntimeError, NotImplementedError) as error:
            refuse(run.call, error)
        self._warn_of_draws(run)
        return value

    def _again(self, engine: str, given: tuple[Any, Any, Any]) -> tuple[Evaluation, PerSampleGrads]:
        """The same engine on other data."""
        run = self.evaluation(*given)
        return run, run.value(engine, "repeated")

    def evaluation(self, params: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        """One call, read and checked, for an engine to run."""
        call, options = f"{self.call}(params, ...)", self.options
        _check_params(call, params)
        watched, plans = [*params.values(), *tensors_of((args, kwargs))], self._learnt.plans
        _check_modes(call, watched)
        selected = _selected(call, params, options.wrt)
        fixed = {name: value.detach() for name, value in params.items()}
        if options.batched:
            groups = [Group(torch.arange(1), read_batch(call, args, kwargs, rows=False))]
        else:
            groups = read_groups(call, args, kwargs)
        ids = sample_ids(call, self.index, sum(len(group.positions) for group in groups))
        noticed = Noticed()
        calls = []
        for positions, batch in groups:
            draws = Draws(options.randomness, options.seed, self.step or 0, ids[positions], noticed)
            chosen = {name: fixed[name] for name in selected}
            scale = options.loss_scale or 1.0
            calls.append(Call(call, self.loss, chosen, fixed, batch, draws, options.has_aux, scale))
        return Evaluation(
            options, call, calls, dict(params), [group.positions for group in groups], watched, noticed, plans
        )

    def _chosen(self, run: Evaluation) -> PerSampleGrads:
        if self.options.engine != "auto":
            return self._or_cannot(run, self.options.engine, "as asked")
        refused = dict(self._learnt.refused)  # learnt where another engine has done it: an error may be the user's own
        hint = ""
        for engine, reason in _BATCHED:
            if engine in refused:
                continue
            try:
                value = run.value(engine, refused.get("factored", reason))
            except Exception as error:
                if (limit := run.limit(error)) is None:
                    raise
                if limit.anywhere:
                    raise cannot(run.call, engine, limit, batched=self.options.batched) from error
                refused[engine], hint = f"torch.func cannot run this loss ({limit})", f"{limit.instead} "
            else:
                if not self._loop_draws(run):
                    self._learnt.refused = refused
                    return value
                why = "it draws what torch alone can draw, which vmap gives to a batch and not to a sample by its name"
                refused.update({name: f"torch.func cannot run this loss ({why})" for name, _ in _BATCHED})
        reason, warned = refused["vmap"], self._learnt.warned_of_loop
        value = self._or_cannot(run, "loop", reason)  # the user's own error, if it is one, passes here
        self._learnt.refused = refused
        self._learnt.warned_of_loop = True
        if not warned:
            do = "Results are exact but cost one backward pass a sample; pass engine='loop' to say that this is meant."
            text = f"{run.call}: {reason}; using one autograd call a sample. {hint.lstrip()}{do}"
            warnings.warn(text, GradfuncWarning, stacklevel=3)
        return value

    def _loop_draws(self, run: Evaluation) -> bool:
        """Whether the loss drew what torch alone can draw, which only the loop gives to a sample by its name."""
        return run.noticed.drew_otherwise and not self.options.batched and self.options.randomness != "same"

    def _or_cannot(self, run: Evaluation, engine: str, reason: str) -> PerSampleGrads:
        """The gradients by one engine; what it cannot run is told in one way."""
        try:
            return run.value(engine, reason)
        except Exception as error:
            limit = limitation(error) if engine == "loop" else run.limit(error)
            if limit is None or (engine == "loop" and not limit.anywhere):
                raise
            raise cannot(run.call, engine, limit, batched=self.options.batched) from error

    def _warn_of_draws(self, run: Evaluation) -> None:
        if not run.noticed.drew or self.step is not None or self._learnt.warned_of_draws:
            return
        self._learnt.warned_of_draws = True
        do = "Name the draws with f.at(step, index=ids)(params, ...), or use .eval()."
        text = f"{run.call}: the loss draws random numbers, and without a step every call draws the same. {do}"
        warnings.warn(text, GradfuncWarning, stacklevel=3)


def per_sample_grads(
    loss: Callable[..., Any],
    *,
    wrt: Selection | None = None,
    engine: str = "auto",
    chunk_size: str | int | None = "auto",
    has_aux: bool = False,
    randomness: str = "different",
    seed: int = 0,
    verify: str | bool = "first",
    loss_scale: float | None = None,
    batched: bool = False,
) -> PerSampleGradsFunction:
    """The gradient of every sample: a function `f(params, *args, **kwargs) -> PerSampleGrads`.

    Row i is `grad(loss)(params, *sample_i)`, that is `vmap(grad(loss))`, of the numerator where the loss is
    `Weighted`. Arguments reach `loss` as they are; tensors (in any nest) carry the samples in dimension 0, other
    leaves are the same for every sample, as is what `gf.static` marks; `gf.ragged` lists samples of different shapes.

    What the value answers can be differentiated again where parameters or tensors of the batch require grad: a backward
    pass runs the loss again, by `vmap(grad)` or in a loop, whatever engine answered; what the loss merely closes over
    is a constant there. Inside a transform of torch.func (grad, jvp, jacrev, vmap, ...) engine "auto" is "vmap",
    closures have their derivatives too, rows of all samples are held, and nothing is verified.

    Args:
        loss: `loss(params, *sample, **sample) -> scalar | Weighted` of ONE sample, without batch dimension.
        wrt: which parameters: a regex (`re.fullmatch`), exact names, or a predicate(name, tensor); default: every
            floating one.
        engine: "factored" (one forward pass, and one backward pass that forms no weight gradient; rows are held as
            the inputs and cotangents of each use of a parameter), "vmap" (`vmap(grad)`: rows are formed), "loop" (one
            autograd call a sample: whatever autograd can differentiate), or "auto": the first of these that can.
        chunk_size: samples computed at once; None for all; "auto" keeps rows within 1/16 of the machine's memory, and
            halves its choice where memory runs out all the same. Factors are no rows: "auto" begins with all samples.
        has_aux: the loss returns `(value, aux)`, aux a nest of tensors; `g.aux` has the samples in dimension 0.
        randomness: "different" draws for each sample, the "same" for all, or an "error" if the loss draws at all.
            Dropout and the like are a function of (seed, step, sample id, ordinal of the draw), on every engine, device
            and chunk size; `f.at(step, index=ids)` names step and ids. What torch alone can draw (`torch.multinomial`,
            `torch.poisson`, gamma variates) comes from a generator seeded by them: a sample's own in the loop, which
            "auto" then takes; with engine="vmap" the chunk's. Global generators stay as they are.
        seed: of those draws.
        verify: "first" checks an engine other than the loop against one extra backward pass, at the first call with
            each shape of the input: a random weighted sum of the rows, and the norms of three of them; sample 0 is
            also run alone, outside of vmap. False does not.
        loss_scale: multiply each numerator by this before differentiating, so that half types do not underflow; the
            factor is taken out again in the accumulation dtype. A power of two is exact.
        batched: `loss` runs the whole batch natively and returns one loss a sample, `[B]` or `Weighted` of two.
            Row i is then the gradient of `losses[i]`, coupling between samples included.

    Raises:
        TypeError: `loss` is not callable; params is not `{name: tensor}`; the loss returns something else.
        ValueError: an unknown option; tensors that disagree in B; a loss of another shape; no differentiable
            parameter, or none that `wrt` matches; negative weights.
        RuntimeError: inference mode; a query, or a backward pass through one, that must run the model again after
            something changed in place; an engine that fails verification; inside a transform of torch.func, another
            engine than "vmap", or what torch cannot do there, named with what to do.
        torch.OutOfMemoryError: not even one sample fits, or not `chunk_size` of them.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(torch.nn.Linear(4, 3))
        >>> def loss(params, x, y):
        ...     return gf.losses.cross_entropy(model.sample(params, x), y)
        >>> g = gf.per_sample_grads(loss)(model.params, torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> g.norms().shape, g.mean()["weight"].shape
        (torch.Size([5]), torch.Size([3, 4]))
    """
    options = Options(wrt, engine, chunk_size, has_aux, randomness, seed, verify, loss_scale, batched)
    call = "gf.per_sample_grads(loss)"
    check_options(call, loss, options)
    return PerSampleGradsFunction(loss, options, call=call)


def check_options(call: str, loss: Any, options: Options) -> None:
    if not callable(loss):
        raise TypeError(message(call, got=kind_of(loss), expected="a function loss(params, *sample)"))
    one_of(call, "engine", options.engine, ("auto", "factored", "vmap", "loop"))
    one_of(call, "randomness", options.randomness, ("different", "same", "error"))
    if not isinstance(options.seed, int) or isinstance(options.seed, bool):
        raise TypeError(message(call, got=f"seed={options.seed!r}", expected="an int"))
    for name in ("has_aux", "batched"):
        if not isinstance(getattr(options, name), bool):
            raise TypeError(message(call, got=f"{name}={getattr(options, name)!r}", expected="True or False"))
    if options.verify is not False and options.verify != "first":
        raise ValueError(message(call, got=f"verify={options.verify!r}", expected="'first' or False"))
    wrt, chunk, scale = options.wrt, options.chunk_size, options.loss_scale
    if wrt is not None:
        check_selection(call, "wrt", wrt)
    good = chunk in (None, "auto") or (isinstance(chunk, int) and chunk >= 1)
    if not good or isinstance(chunk, bool):
        expected = "a positive int, None (all at once) or 'auto'"
        raise ValueError(message(call, got=f"chunk_size={chunk!r}", expected=expected))
    if scale is not None and not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
        expected = "a positive finite number, or None"
        raise ValueError(message(call, got=f"loss_scale={scale!r}", expected=expected, do="Such as 2.0**12."))


def _check_params(call: str, params: Any) -> None:
    if not isinstance(params, Mapping) or not all(isinstance(value, Tensor) for value in params.values()):
        do = "Pass model.params, or dict(module.named_parameters())."
        raise TypeError(message(call, got=f"{kind_of(params)} as params", expected="a dict {name: tensor}", do=do))


def _check_modes(call: str, given: list[Tensor]) -> None:
    inference = torch.is_inference_mode_enabled()
    if inference or any(tensor.is_inference() for tensor in given):
        raise RuntimeError(
            message(
                call,
                got="inference mode" if inference else "a tensor made under inference mode",
                expected="tensors that autograd can record",
                do="Leave torch.inference_mode() (no_grad is fine), and clone tensors that were made in it.",
            )
        )


def _selected(call: str, params: Mapping[str, Tensor], wrt: Selection | None) -> list[str]:
    if complex_ones := [name for name, value in params.items() if value.is_complex()]:
        do = "Keep real and imaginary parts as two parameters (torch.view_as_complex joins them)."
        raise ValueError(message(call, got=f"complex parameters {complex_ones}", expected="real ones", do=do))
    floating = [name for name, value in params.items() if value.is_floating_point()]
    if not floating:
        do = "Parameters must be floating tensors."
        raise ValueError(message(call, got="no differentiable parameter", expected="at least one", do=do))
    if wrt is None:
        return floating
    return selected(call, "wrt", {name: params[name] for name in floating}, wrt)
