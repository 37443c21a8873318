"""The laws of transformations: one function a law, which takes a stage and what it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._per_sample import PerSampleGrads
from .._transform import chain, flatten_state, identity, unflatten_state
from .._transform._chain import Chain
from .._transform._stage import AnyStage
from .._tree import Tensors, map_tensors, norm, tensors_of
from ._claims import F64, Claim, norms, rows, sums
from ._purity import Snapshot, generators_elsewhere, same_bits, storages
from ._staged import Outcome, Staged, content, of_rows


def keeps_names_shapes_and_dtypes(b: Staged) -> Iterator[Claim]:
    """What comes out has a tensor for each parameter that went in, of its shape and dtype; rows stay as many."""
    out, given = b.first(), b.grads
    like = given._shapes if isinstance(given, PerSampleGrads) else given
    if isinstance(out, PerSampleGrads):
        if not isinstance(given, PerSampleGrads):
            raise AssertionError("gradients go in, and rows come out")
        if out.batch_size != given.batch_size:
            text = f"{out.batch_size} samples of {given.batch_size}"
            raise AssertionError(f"{text}: leave one out by g.weighted(c), c = 0, so that row i stays sample i")
    found = content(out)
    if isinstance(out, PerSampleGrads):
        found = {name: value.new_zeros(value.shape[1:]) for name, value in out.materialize().items()}
    if set(found) != set(like):
        lost, new = sorted(set(like) - set(found)), sorted(set(found) - set(like))
        raise AssertionError(f"parameters {lost} are lost, and {new} are new")
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.shape != like[name].shape:
            raise AssertionError(f"'{name}': shape {getattr(value, 'shape', value)}, not {tuple(like[name].shape)}")
        if value.dtype != like[name].dtype or value.device != like[name].device:
            came, went = ((t.dtype, str(t.device)) for t in (value, like[name]))
            raise AssertionError(f"'{name}': {came[0]} on {came[1]}, not {went[0]} on {went[1]}")
    yield from ()


def gives_finite_for_finite(b: Staged) -> Iterator[Claim]:
    """Of finite gradients whose fourth powers are finite, and of gradients that are all 0."""
    entries = [value for value in tensors_of(content(b.grads)) if value.numel()]
    largest = max(
        (float(value.detach().double().abs().nan_to_num(nan=torch.inf).max()) for value in entries), default=0.0
    )
    zeros = b.of_others(torch.zeros_like)
    if isinstance(zeros, PerSampleGrads):  # of rows that may have come with a loss of NaN
        zeros = of_rows(zeros.materialize(), zeros.losses.nan_to_num(posinf=0.0, neginf=0.0), zeros.weights)
    asked: list[tuple[str, Any]] = [("gradients of 0", zeros)]
    if largest < torch.finfo(b.dtype).max ** 0.25:
        asked.append(("finite gradients", b.grads))
    for what, grads in asked:
        for name, value in _flat(b.first(grads)).items():
            if not bool(value.isfinite().all()):
                at = int((~value.isfinite()).nonzero()[0, 0]) if value.dim() and name.startswith("row") else None
                where = "" if at is None else f", sample {at},"
                raise AssertionError(f"of {what}: {name}{where} is not finite")
    yield from ()


def touches_nothing(b: Staged) -> Iterator[Claim]:
    """Gradients, state, parameters, flags and global generators stay as they are; no output shares their memory."""
    state = b.transformation.init(b.params)
    for _ in range(2):  # from the first state, and from one that remembers
        _, state = _watched(b, state)
    yield from ()


def _watched(b: Staged, state: Any) -> tuple[Outcome, Any]:
    given = b.grads
    before = content(given) if isinstance(given, PerSampleGrads) else {}
    kept, entries = map_tensors(torch.clone, state), dict(given) if isinstance(given, Mapping) else {}
    named = {f"params['{name}']": value for name, value in b.params.items()}
    named |= {f"grads['{name}']": value for name, value in entries.items()}
    with generators_elsewhere():
        held = dataclasses.replace(Snapshot.of(None, tensors_of(state), named), flags=b.flags)
        out, after = b.update(given, state)
        now = {f"params['{name}']": value for name, value in b.params.items()}
        if isinstance(given, Mapping):
            now |= {f"grads['{name}']": value for name, value in given.items()}
        changed = [f"{name.replace('the batch', 'the state')} {what}" for name, what in held.changed(None, now)]
    values = content(out)
    if changed:
        raise AssertionError("; ".join(changed[:4]))
    if not same_bits(kept, state):
        raise AssertionError("the state that was given holds something else")
    if before and not same_bits(before, content(b.value)):
        raise AssertionError("the rows that were given hold other values")
    plain = {} if isinstance(out, PerSampleGrads) else values
    for what, others in (("a parameter", b.params), ("the state given", state), ("the next state", after)):
        for name, value in plain.items():
            if storages(value) & storages(others):
                raise AssertionError(f"'{name}' of the output shares the memory of {what}: clone it")
    if storages(after) & storages(b.params):
        raise AssertionError("the next state shares the memory of a parameter: clone it")
    return out, after


def remembers_in_its_state_alone(b: Staged) -> Iterator[Claim]:
    """The same gradients and state give the same, whatever was asked in between; so does another first state."""
    init = b.transformation.init
    out, after = b.update(b.grads, init(b.params))
    first = content(out), map_tensors(torch.clone, after)
    others = b.of_others(lambda value: value / -2 + 1)
    _, later = b.update(others, after)
    b.update(b.grads, later)
    out, after = b.update(b.grads, init(b.params))
    yield from alike("after another batch", (content(out), after), first, b)
    if isinstance(b.transformation, AnyStage):
        told, after, _ = b.transformation.update_with_report(b.grads, init(b.params), b.params)
        yield from alike("with a report", (content(told), after), first, b)


def has_a_plain_state(b: Staged) -> Iterator[Claim]:
    """Nested dictionaries and tuples of tensors and numbers, always the same ones: stored and read back, it goes on."""
    first = b.transformation.init(b.params)
    _, state = b.update(b.grads, first)
    try:
        read = unflatten_state(map_tensors(torch.clone, flatten_state(state)), like=first)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"a state that cannot be stored and read back: {error}") from None
    mine, theirs = (b.update(b.grads, one) for one in (state, read))
    yield from alike("from a state read back", (content(theirs[0]), theirs[1]), (content(mine[0]), mine[1]), b)


def composes(b: Staged) -> Iterator[Claim]:
    """A chain of it alone, beside the identity or in another grouping gives what it gives."""
    alone, whole = b.transformation, chain(b.transformation)
    others = {"gf.chain(t)": whole, "identity >> t >> identity": identity() >> whole >> identity()}
    if isinstance(alone, Chain):
        for cut in range(1, len(alone.stages)):
            others[f"in groups of {cut} and the rest"] = chain(chain(*alone.stages[:cut]), chain(*alone.stages[cut:]))
    want = trace(alone, b)
    for what, other in others.items():
        if isinstance(alone, Chain) and other != alone:
            raise AssertionError(f"{what} is {other}, not {alone}")
        yield from alike(what, [out for out, _ in trace(other, b)], [out for out, _ in want], b)


def trace(transformation: Any, b: Staged, steps: int = 2) -> list[tuple[dict[str, Any], Any]]:
    """Outputs and states of some updates."""
    state, found = transformation.init(b.params), []
    for _ in range(steps):
        out, state = transformation.update(b.grads, state, b.params)
        found.append((content(out), state))
    return found


LAWS = [
    keeps_names_shapes_and_dtypes,
    gives_finite_for_finite,
    touches_nothing,
    remembers_in_its_state_alone,
    has_a_plain_state,
    composes,
]


def permuting_samples_permutes_the_output(b: Staged, order: Tensor) -> Iterator[Claim]:
    """Rows that come out are the same in that order; a reduction of the samples is the same."""
    g, init = b.value, b.transformation.init
    for what, state in (("", init(b.params)), (", at the second update,", b.given(g, init(b.params))[1])):
        out, _ = b.given(g, state)
        moved, _ = b.given(g.select(order), state)
        if isinstance(out, PerSampleGrads) and isinstance(moved, PerSampleGrads):
            here = order.to(out.losses.device)
            want = {name: value[here] for name, value in out.materialize().items()}
            largest = norms(want).max() if g.batch_size else torch.zeros((), dtype=F64)
            yield from rows(f"rows{what}", moved.materialize(), want, largest)
            losses, weights = out.losses[here], out.weights[here]
            yield Claim(f"losses{what}", moved.losses, losses, losses.double().abs() + 1, samples=True)
            yield Claim(f"weights{what}", moved.weights, weights, weights.double().abs(), samples=True)
        else:
            one, other = content(out), content(moved)
            scale = one_scale(b, state, one)
            yield from sums(f"the output{what}", other, one, scale)


def one_scale(b: Staged, state: Any, out: Tensors) -> Tensor:
    """The error scale of a reduction: what it makes of rows without signs, `sum |c_i| |g_i|` where it sums."""
    plain, _ = b.given(b.of_others(torch.abs), state)
    size = max(norm(content(plain)), norm(out))
    return torch.tensor(size, dtype=F64, device=next(iter(out.values())).device) if out else torch.zeros((), dtype=F64)


def twice_is_once(b: Staged) -> Iterator[Claim]:
    """What was bounded once stays as it is."""
    once = b.first()
    twice = b.first(once)
    if isinstance(once, PerSampleGrads) and isinstance(twice, PerSampleGrads):
        yield from rows("rows bounded twice, and once,", twice.materialize(), once.materialize())
    else:
        one, two = content(once), content(twice)
        yield from sums("bounded twice, and once,", two, one, torch.tensor(norm(one), dtype=F64))


def alike(what: str, got: Any, want: Any, b: Staged) -> Iterator[Claim]:
    """Bit by bit on the CPU; elsewhere atomic additions have no order, and rounding remains."""
    if same_bits(got, want):
        return
    ours, theirs = tensors_of(got), tensors_of(want)
    if b.device == "cpu" or len(ours) != len(theirs):
        raise AssertionError(f"{what}: other values{_where(got, want)}")
    for k, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        if x.is_floating_point():
            yield Claim(f"{what}: tensor {k}", x, y, y.double().abs().max() if y.numel() else y.double().sum())


def _where(got: Any, want: Any) -> str:
    """The first entry that differs, and by how much."""
    for k, (x, y) in enumerate(zip(tensors_of(got), tensors_of(want), strict=False)):
        if x.shape != y.shape or x.dtype != y.dtype:
            return f": tensor {k} is {x.dtype} {tuple(x.shape)}, not {y.dtype} {tuple(y.shape)}"
        if not same_bits(x, y):
            return f": tensor {k} is up to {float((x.double() - y.double()).abs().max()):.2e} off"
    return f" (no tensor: {got!r}, not {want!r})"[:400]


def _flat(out: Outcome) -> dict[str, Tensor]:
    """The tensors of an output by name, rows as such."""
    values = content(out)
    if not isinstance(out, PerSampleGrads):
        return {f"'{name}'": value for name, value in values.items()}
    named = {f"rows of '{name}'": value for name, value in values["rows"].items()}
    return {**named, "row losses": values["losses"], "row weights": values["weights"]}
