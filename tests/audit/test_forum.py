"""The forum question: the pattern (x, x, 0, 0, x, x), and x by its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradfunc._problem import read
from gradfunc._tree import subtract
from gradfunc.audit import _loops
from gradfunc.audit._case import Case, per_sample
from gradfunc.audit._causes import largest
from gradfunc.audit._demo import digits, forum_pairs


def as_posted(model: nn.Module, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """The question's loop to the letter: a list, views of .grad, torch.cat, zeroing in place."""
    columns: list[torch.Tensor] = []
    params = list(model.parameters())
    for i in range(len(losses)):
        for p in params:
            if p.grad is not None:
                p.grad.zero_()
        losses[i].backward(retain_graph=True)
        for j, p in enumerate(params):
            if i == 0:
                columns.append(p.grad.view(-1, 1))
            else:
                columns[j] = torch.cat((columns[j], p.grad.view(-1, 1)), dim=1)
    named = zip(model.named_parameters(), columns, strict=True)
    return {name: column.mean(1).view(p.shape) for (name, p), column in named}


@pytest.mark.parametrize("n", [1, 2, 8, 13, 64])
@pytest.mark.parametrize("seed", range(3))
def test_pattern_and_closed_form_in_float64(n: int, seed: int) -> None:
    model, criterion, batch = digits(n)
    case = Case.of(read("test", model, criterion, batch).cast(torch.float64), seed)
    rows = forum_pairs(case)
    x = rows[0].predicted
    assert [row.predicted for row in rows] == [x, x, 0, 0, x, x]
    assert (x > 0) == (n > 1)
    scale = per_sample(case).norms / n  # DESIGN's error scale of an average: sum |g_i| / n
    for row in rows:
        assert abs(row.measured - row.predicted) <= 1e-12 * scale


@pytest.mark.parametrize("n", [2, 8, 64])
def test_zeros_of_the_pattern_are_exact_in_float32(n: int) -> None:
    """As published: 'none' and 'one by one' agree to the last bit, and so do sum and mean at n = 2^k."""
    rows = forum_pairs(Case.of(read("test", *digits(n)), 0))
    assert rows[2].measured == 0
    assert rows[3].measured == 0
    assert min(rows[k].measured for k in (0, 1, 4, 5)) > 1e-3


def test_the_running_sum_is_the_loop_as_posted() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 6).double(), torch.randint(3, (9,))
    posted = as_posted(module, nn.functional.cross_entropy(module(x), y, reduction="none"))
    case = Case.of(read("test", module, nn.CrossEntropyLoss(), (x, y)), 0)
    ours = _loops.forum(case, iter(case.forward.elements))
    assert largest(subtract(ours, posted)) <= 1e-15
    clean = per_sample(case)
    assert largest(subtract(ours, {k: v / 9 for k, v in clean.total.items()})) > 1e-3


def test_set_to_none_hides_it() -> None:
    """With fresh `.grad` tensors the same loop is right, which is why it went unnoticed after torch 2.0."""

    torch.manual_seed(0)
    module = nn.Linear(4, 3).double()
    x, y = torch.randn(5, 4).double(), torch.randint(3, (5,))
    losses = nn.functional.cross_entropy(module(x), y, reduction="none")
    columns: list[list[torch.Tensor]] = [[] for _ in module.parameters()]
    for loss in losses:
        module.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        for column, p in zip(columns, module.parameters(), strict=True):
            column.append(p.grad.view(-1))  # no clone here either
    for column, p in zip(columns, module.parameters(), strict=True):
        exact = torch.autograd.grad(losses.mean(), p, retain_graph=True)[0].view(-1)
        assert torch.stack(column).mean(0).sub(exact).abs().max() <= 1e-15
