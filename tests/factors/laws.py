"""What every gradient must satisfy, whatever its factors: each answer against the rows themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from factors.uses import ALONE
from oracle import close, close_rows, close_sum, flat
from torch import Tensor

from gradfunc import _factors as F
from gradfunc._factors import Gradient, Gradients
from gradfunc.projections import Gaussian
from gradfunc.testing.strategies._factors import Gathered
from gradfunc.testing.strategies._factors import gathered as make

Law = Callable[[Gathered, int], None]


def numbers(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in tensors.items()}


def dense(case: Gathered, scratch: int) -> None:
    got = F.dense(case.gradients)
    assert all(value.dtype == case.gradients[name].like.dtype for name, value in got.items())
    close_rows(cpu(got), case.rows)


def norms(case: Gathered, scratch: int) -> None:
    want = flat(case.rows).norm(dim=1)
    close(F.norms(case.gradients, scratch).cpu(), want, want, "norms")


def norms_each(case: Gathered, scratch: int) -> None:
    for name, value in F.norms_each(case.gradients, scratch).items():
        want = flat({name: case.rows[name]}).norm(dim=1)
        close(value.cpu(), want, want, f"norms of {name}")


def squares(case: Gathered, scratch: int) -> None:
    """Of every factor alone, and by the way that `method` names."""
    for gradient in case.gradients.values():
        for factor in gradient.factors:
            rows = flat({"": factor.dense().cpu()})
            value, magnitude = factor.squares(scratch)
            scale = rows.square().sum(1)
            scale = torch.maximum(scale, torch.zeros_like(scale) if magnitude is None else magnitude.cpu())
            close(value.cpu(), rows.square().sum(1), scale, f"squared norms of {factor.kind}")


def _gram(left: Gathered, right: Gathered, scratch: int) -> None:
    for name, value in F.gram(left.gradients, right.gradients, scratch).items():
        a, b = flat({"": left.rows[name]}), flat({"": right.rows[name]})
        close(value.cpu(), a @ b.T, a.norm(dim=1)[:, None] * b.norm(dim=1), f"gram of {name}")


def gram(case: Gathered, scratch: int) -> None:
    _gram(case, case, scratch)


def gram_of_two(case: Gathered, scratch: int) -> None:
    """Rows of one against some rows of another, in another order."""
    at = torch.arange(case.size).flip(0)[: max(1, case.size - 1)]
    rows = {name: value[at] for name, value in case.rows.items()}
    _gram(case, Gathered(F.select(case.gradients, at), rows, case.geometry), scratch)


def gram_of_kinds(case: Gathered, scratch: int) -> None:
    """Every kind against every other: what one engine left beside what another did."""
    some = make(case.geometry, ALONE)
    for one, left in some.gradients.items():
        for two, right in some.gradients.items():
            a, b = flat({"": some.rows[one]}), flat({"": some.rows[two]})
            got = F.gram({"": left}, {"": right}, scratch)[""].cpu()
            close(got, a @ b.T, a.norm(dim=1)[:, None] * b.norm(dim=1), f"gram of {one} with {two}")


def dots(case: Gathered, scratch: int) -> None:
    v = {name: numbers(value.shape[1:].numel()).reshape(value.shape[1:]) for name, value in case.rows.items()}
    whole, direction = flat(case.rows), torch.cat([value.flatten() for value in v.values()])
    on_device = {name: value.to(case.geometry.device) for name, value in v.items()}
    close(
        F.dots(case.gradients, on_device, scratch).cpu(),
        whole @ direction,
        whole.norm(dim=1) * direction.norm(),
        "dots",
    )


def many_dots(case: Gathered, scratch: int) -> None:
    """A factor with more directions than positions."""
    for gradient in case.gradients.values():
        entries = gradient.like.numel()
        v = numbers(70 * entries).reshape(70, entries)
        for factor in gradient.factors:
            rows = flat({"": factor.dense().cpu()})
            got = factor.dots(v.reshape(70, *gradient.like.shape).to(case.geometry.device), scratch)
            close(got.cpu(), rows @ v.T, rows.norm(dim=1)[:, None] * v.norm(dim=1), f"dots of {factor.kind}")


def total(case: Gathered, scratch: int) -> None:
    got = F.weighted_sum(case.gradients, None, scratch)
    close_sum(cpu(got), torch.ones(case.size, dtype=torch.float64), case.rows, "sum")


def weighted_sum(case: Gathered, scratch: int) -> None:
    c = numbers(case.size)
    got = F.weighted_sum(case.gradients, c.to(case.geometry.device), scratch)
    close_sum(cpu(got), c, case.rows, "weighted sum")


def masked_sum(case: Gathered, scratch: int) -> None:
    """Coefficients 0 leave out rows that hold inf and NaN in either half."""
    c = numbers(case.size)
    c[::2] = 0
    for position in (0, -1):  # the first half, or the last, of each factor

        def spoiled(rows: Gradients, position: int = position) -> Gradients:
            held = {id(f.tensors[position]) for gradient in rows.values() for f in gradient.factors}

            def spoil(tensor: Tensor) -> Tensor:
                if id(tensor) not in held or not tensor.is_floating_point():
                    return tensor
                tensor = tensor.clone()
                tensor[::4], tensor[2::4] = torch.nan, torch.inf
                return tensor

            return F.mapped(rows, spoil)

        got = F.weighted_sum(spoiled(case.gradients), c.to(case.geometry.device), scratch)
        close_sum(cpu(got), c, case.rows, "masked sum")


def project(case: Gathered, scratch: int) -> None:
    projection = Gaussian(3, seed=2, drawn=scratch)
    want = torch.zeros(case.size, 3, dtype=torch.float64)
    scale = torch.zeros(case.size, dtype=torch.float64)
    for name, value in case.rows.items():
        columns = projection.columns(name, torch.arange(value.shape[1:].numel())).double()
        want += flat({"": value}) @ columns
        scale += flat({"": value}).norm(dim=1) * columns.norm()
    close(F.project(case.gradients, projection).cpu(), want, scale[:, None], "projection")


def select(case: Gathered, scratch: int) -> None:
    for at in (slice(1, 3), torch.arange(case.size).flip(0), torch.arange(0)):
        at = slice(min(1, case.size), min(3, case.size)) if isinstance(at, slice) else at
        close_rows(
            cpu(F.dense(F.select(case.gradients, at))), {k: v[at] for k, v in case.rows.items()}, "selected rows"
        )


def concatenated(case: Gathered, scratch: int) -> None:
    """Parts in two orders, by stretch and by position, one of them with more positions than the other."""
    half = case.size // 2
    stretches = [slice(0, half), slice(half, case.size)]
    positions = [torch.arange(half, case.size), torch.arange(half)]
    for ats in (stretches, positions):
        parts = [(at, F.select(case.gradients, at)) for at in ats]
        parts[0] = (parts[0][0], longer(parts[0][1]))
        joined = F.concatenated(parts)
        got = F.dense(joined)
        close_rows(cpu(got), case.rows, "concatenated rows")
        norms(Gathered(joined, case.rows, case.geometry), scratch)
        for name, gradient in joined.items():
            kinds = [factor.kind for factor in case.gradients[name].factors]
            assert [factor.kind for factor in gradient.factors] == kinds


def longer(rows: Gradients) -> Gradients:
    """The same rows with a position that holds zeros."""

    def grown(tensor: Tensor) -> Tensor:
        return torch.cat(
            [tensor, torch.zeros_like(tensor[:, :1]), tensor.new_zeros(len(tensor), 1, *tensor.shape[2:])], 1
        )

    out = {}
    for name, gradient in rows.items():
        factors = tuple(f if f.kind == "dense" else f.mapped(grown) for f in gradient.factors)
        out[name] = F.Gradient(gradient.like, gradient.size, factors)
    return out


def merged(case: Gathered, scratch: int) -> None:
    """What can be joined is, and rows that are dense take everything."""
    for name, gradient in case.gradients.items():
        kinds = [(factor.kind, *factor.features) for factor in gradient.factors]
        assert len(set(kinds)) == len(kinds), name
        assert ("dense",) not in kinds or len(kinds) == 1, name


def formed(case: Gathered, scratch: int) -> None:
    """Rows that are formed are the same rows; they are where they take no more than their factors; there is a bound."""
    names = F.formed(case.gradients)
    before = after = sure = 0
    for name, gradient in case.gradients.items():
        rows = gradient.formed()
        close_rows(cpu(F.dense({name: rows})), {name: case.rows[name]})
        kinds = {factor.kind for factor in gradient.factors}
        if not kinds or "dense" in kinds:
            assert name not in names
            continue
        assert [factor.kind for factor in rows.factors] == ["dense"]
        held, each = _bytes(gradient), _bytes(rows)
        twice = 2 if {factor.method(2**16).name for factor in gradient.factors} == {"direct"} else 1
        cheap = gradient.like.numel() <= twice * sum(factor.reads for factor in gradient.factors) and each <= 4 * held
        assert name in names or not cheap
        assert name not in names or cheap or each <= 2 * held
        before, after = before + held, after + (each if name in names else held)
        sure += each if cheap else held
    assert after <= max(1.3 * before, sure)


def _bytes(gradient: Gradient) -> int:
    return sum(tensor.numel() * tensor.element_size() for factor in gradient.factors for tensor in factor.tensors)


def mapped(case: Gathered, scratch: int) -> None:
    """Tensors are all there, and stay as they were whatever is asked."""
    held = F.tensors(case.gradients)
    before = [tensor.clone() for tensor in held]
    copied = F.mapped(case.gradients, torch.clone)
    close_rows(cpu(F.dense(copied)), case.rows)
    assert not {id(t) for t in F.tensors(copied)} & {id(t) for t in held}
    for law in (norms, weighted_sum, dots, project):
        law(case, scratch)
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


LAWS: tuple[Law, ...] = (
    dense,
    norms,
    norms_each,
    squares,
    gram,
    gram_of_two,
    gram_of_kinds,
    dots,
    many_dots,
    total,
    weighted_sum,
    masked_sum,
    project,
    select,
    concatenated,
    merged,
    formed,
    mapped,
)
