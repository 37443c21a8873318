"""What an engine cannot run: one error that names line, module, reason and ways out, each of which works."""

from __future__ import annotations

import inspect
import re
import warnings

import pytest
import torch
from oracle import close_rows
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradfunc as gf

F64 = torch.float64


class Picky(nn.Module):
    """A layer that looks at a value."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        out = self.layer(x)
        return out if out.sum() > 0 else 2 * out  # the line


class Written(nn.Module):
    def forward(self, x):
        out = torch.zeros(3, dtype=x.dtype)
        out[:] = x.reshape(3)  # the line
        return out[None]


class Chosen(nn.Module):
    def forward(self, x):
        return x[x > 0].sum().reshape(1, 1)  # the line


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Function(nn.Module):
    def forward(self, x):
        return Old.apply(x)  # the line


class Kept(nn.Module):
    def forward(self, x):
        return checkpoint(torch.sin, x, use_reentrant=False)  # the line


class Backwards(nn.Module):
    """Reentrant checkpointing."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(3, 3)

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=True)


def line(module):
    """file:line of `# the line`."""
    source, first = inspect.getsourcelines(type(module).forward)
    (offset,) = [i for i, text in enumerate(source) if "# the line" in text]
    return f"test_engine_errors.py:{first + offset}", source[offset].strip()


def setting(layer):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"odd": layer})["odd"]).to(F64)
    model = gf.stateless(module)

    def loss(params, x):
        return model.sample(params, x).square().sum()

    return loss, model.params, torch.randn(5, 3, dtype=F64)


def looped(loss, params, x):
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    each = [torch.autograd.grad(loss(leaves, one), list(leaves.values())) for one in x]
    return {name: torch.stack(column) for name, column in zip(leaves, zip(*each, strict=True), strict=True)}


# layer -> words of the reason, words of the hint
WALLS = {
    Picky: ("depends on a value", r"torch\.where"),
    Written: ("written in place", r"x\.new_zeros"),
    Chosen: ("depends on values|depends on a value", r"torch\.where"),
    Function: ("not written for torch.func", "setup_context"),
    Kept: ("saved tensors", ""),
}


@pytest.mark.parametrize("layer", WALLS)
@pytest.mark.parametrize("engine", ["vmap", "factored"])
def test_the_error_names_the_line_the_module_and_the_ways_out(layer, engine):
    loss, params, x = setting(layer())
    why, hint = WALLS[layer]
    with pytest.raises(gf.EngineError) as caught:
        gf.per_sample_grads(loss, engine=engine)(params, x)
    error, (where, code) = caught.value, line(layer())
    assert re.search(why, error.why)
    assert error.engine == engine
    assert re.search(hint, error.exits[0])
    if (layer, engine) == (Kept, "factored"):  # noticed in the backward pass, which runs no line of the user's
        where = code = ""
    else:
        assert error.where.endswith(where)
        assert error.operation == code
        assert error.module == "1"
    assert any("engine='loop'" in way for way in error.exits)
    assert any("batched=True" in way for way in error.exits)
    for part in (error.why, where, error.module, code, *error.exits):
        assert part in str(error)
    assert error.__cause__ is not None


@pytest.mark.parametrize("layer", WALLS)
def test_the_ways_out_lead_out(layer):
    """The loop is exact, "auto" takes it and says where the wall is, once; a native batch is exact too."""
    loss, params, x = setting(layer())
    want = looped(loss, params, x)
    close_rows(gf.per_sample_grads(loss, engine="loop")(params, x).materialize(), want)
    f = gf.per_sample_grads(loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        g = f(params, x)
        f(params, x)
    close_rows(g.materialize(), want)
    where, code = line(layer())
    (told,) = [str(w.message) for w in caught if issubclass(w.category, gf.GradfuncWarning)]
    assert where in told
    assert code in told
    assert where in " ".join(g.explain().split())
    native = gf.per_sample_grads(lambda p, x: torch.stack([loss(p, one) for one in x]), batched=True)
    close_rows(native(params, x).materialize(), want)


@pytest.mark.parametrize("engine", ["auto", "factored", "loop"])
@pytest.mark.parametrize("batched", [False, True])
def test_reentrant_checkpointing_is_refused_by_every_engine_with_the_fix(engine, batched):
    loss, params, x = setting(Backwards())

    def whole(params, x):
        return torch.stack([loss(params, one) for one in x])

    f = gf.per_sample_grads(whole if batched else loss, engine=engine, batched=batched)
    with pytest.raises(gf.EngineError, match=r"`.*checkpoint\(.*`.*use_reentrant=False") as caught:
        f(params, x)
    assert caught.value.exits == (caught.value.exits[0],)


def test_a_user_s_own_error_passes_as_it_is():
    def loss(params, x):
        raise RuntimeError("mine")

    for engine in ("auto", "factored", "vmap", "loop"):
        with pytest.raises(RuntimeError, match=r"^mine$"):
            gf.per_sample_grads(loss, engine=engine)({"w": torch.ones(3)}, torch.ones(2, 3))


def test_nothing_falls_back_that_need_not():
    """The same layers without the wall stay with the quickest engine, without a word."""

    class Fine(nn.Module):
        def forward(self, x):
            return torch.where(x.sum() > 0, x, 2 * x)

    loss, params, x = setting(Fine())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gf.per_sample_grads(loss)(params, x).engine == "factored"


def test_a_library_s_line_comes_with_the_caller_s_own():
    """torch.distributions is not the user's code: the line that called it is named."""
    from sklearn.utils import extmath  # a library that looks at values

    def loss(params, x):
        extmath.density((params["w"] * x).detach().numpy())  # the caller
        return (params["w"] * x).sum()

    with pytest.raises(gf.EngineError) as caught:
        gf.per_sample_grads(loss, engine="vmap")({"w": torch.ones(3)}, torch.ones(2, 3))
    assert "test_engine_errors.py" in caught.value.where
