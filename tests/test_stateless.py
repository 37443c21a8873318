"""`gf.stateless`: a module as a function, and the module exactly as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import same_bits, storages
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradfunc as gf

F64 = torch.float64


class Tied(nn.Module):
    """An embedding whose weight is also the head's; one frozen layer; one buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.mix.weight.requires_grad_(False)
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, tokens, *, scale=1.0):
        return self.head(self.mix(self.embedding(tokens)) + self.shift) * scale


def state(module):
    """Everything that must stay as it was."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "dict": {name: sorted(m.__dict__) for name, m in module.named_modules()},
        "training": {name: m.training for name, m in module.named_modules()},
        "hooks": {
            name: [len(value) for key, value in sorted(m.__dict__.items()) if "hooks" in key]
            for name, m in module.named_modules()
        },
        "identity": {name: id(t) for name, t in tensors.items()},
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "grads": {name: None if t.grad is None else t.grad.clone() for name, t in tensors.items()},
        "flags": {name: t.requires_grad for name, t in tensors.items()},
        "attributes": {name: sorted(vars(t)) for name, t in tensors.items()},
    }


def assert_same_state(before, after):
    for key in before:
        if key in ("values", "grads"):
            for name, value in before[key].items():
                other = after[key][name]
                assert (value is None and other is None) or same_bits(value, other), (key, name)
        else:
            assert before[key] == after[key], key


def check_running_statistics_stay():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model = gf.stateless(module, batch_stats="batch")
    x = torch.randn(5, 3)
    before = state(module)
    model(model.params, x)
    gf.per_sample_grads(lambda p, x: model(p, x).square().sum(1), batched=True)(model.params, x).sum()
    assert_same_state(before, state(module))


# --- what it holds -------------------------------------------------------------------------------


def test_parameters_share_storage_and_are_detached():
    module = Tied()
    model = gf.stateless(module)
    assert list(model.params) == ["embedding.weight", "mix.bias"]
    assert list(model.frozen) == ["mix.weight"]
    assert list(model.buffers) == ["shift"]
    assert model.aliases == {"head.weight": "embedding.weight"}
    assert model.module is module
    named = dict(module.named_parameters())
    for name, value in {**model.params, **model.frozen}.items():
        assert value.data_ptr() == named[name].data_ptr()
        assert not value.requires_grad
    with torch.no_grad():
        module.mix.bias.fill_(7)
    assert model.params["mix.bias"].eq(7).all()


def test_the_call_is_the_modules_own(device):
    module = Tied().to(device)
    model = gf.stateless(module)
    tokens = torch.randint(7, (5, 3), device=device)
    assert torch.equal(model(model.params, tokens, scale=2.0), module(tokens, scale=2.0))
    other = {name: value + 1 for name, value in model.params.items()}
    want = F.linear(
        F.linear(other["embedding.weight"][tokens], module.mix.weight, other["mix.bias"]) + 1,
        other["embedding.weight"],
    )
    assert torch.allclose(model(other, tokens), want, rtol=1e-5, atol=1e-5)


def test_frozen_parameters_and_buffers_may_be_given():
    module = Tied()
    model = gf.stateless(module)
    tokens = torch.randint(7, (5, 3))
    zero = {**model.params, "mix.weight": torch.zeros(4, 4), "shift": torch.zeros(4)}
    want = F.linear(module.mix.bias.expand(5, 3, 4), module.embedding.weight)
    assert torch.equal(model(zero, tokens), want)
    assert module.shift.eq(1).all()


def test_a_tied_parameter_gets_both_gradients():
    model = gf.stateless(Tied().double())
    tokens = torch.randint(7, (5, 3))
    params = {name: value.clone().requires_grad_() for name, value in model.params.items()}
    (ours,) = torch.autograd.grad(model(params, tokens).square().sum(), params["embedding.weight"])
    model.module(tokens).square().sum().backward()
    assert torch.equal(ours, model.module.embedding.weight.grad)


def test_frozen_parameters_have_no_gradient():
    model = gf.stateless(Tied())
    g = gf.per_sample_grads(lambda p, t: model.sample(p, t).square().sum())(model.params, torch.randint(7, (2, 3)))
    assert g.names == ("embedding.weight", "mix.bias")


# --- which keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: {**p, "nonsense": torch.ones(1)}, r"got key 'nonsense'; expected the model's own: 'embedding"),
        (lambda p: {**p, "head.weight": torch.ones(7, 4)}, r"'head\.weight' is tied to 'embedding\.weight'"),
        (lambda p: {"mix.bias": p["mix.bias"]}, r"params without 'embedding\.weight'.*\{\*\*model\.params"),
        (lambda p: {}, r"params without 'embedding\.weight', 'mix\.bias'"),
    ],
)
@pytest.mark.parametrize("how", ["call", "sample"])
def test_keys_are_checked(change, match, how):
    model = gf.stateless(Tied())
    run = model if how == "call" else model.sample
    with pytest.raises(KeyError, match=match):
        run(change(model.params), torch.zeros(3, dtype=torch.long))


# --- one sample ----------------------------------------------------------------------------------


def test_sample_is_a_row_of_the_batch():
    model = gf.stateless(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double())
    x = torch.randn(4, 2, 3, 3, dtype=F64)
    for i, row in enumerate(model(model.params, x)):
        assert torch.allclose(model.sample(model.params, x[i]), row, rtol=1e-12, atol=1e-12)


class Many(nn.Module):
    """Time first, a mask, an option, and a nest for an answer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, table, *, extra, flip=False):
        assert x.dim() == 3
        assert x.shape[1] == 1
        out = self.linear(x) + table + extra["shift"].unsqueeze(0)
        return {"time": out.flip(0) if flip else out, "last": (out[-1], None)}


def test_sample_follows_in_dims_and_out_dims():
    model = gf.stateless(Many(), in_dims=(1, None), out_dims={"time": 1, "last": 0})
    x, table, shift = torch.randn(5, 3), torch.randn(2), torch.randn(2)
    out = model.sample(model.params, x, table, extra={"shift": shift}, flip=True)
    want = model.module.linear(x) + table + shift
    assert torch.allclose(out["time"], want.flip(0))
    assert torch.allclose(out["last"][0], want[-1])
    assert out["last"][1] is None


def test_sample_of_a_recurrent_network():
    model = gf.stateless(nn.LSTM(3, 2, batch_first=True), out_dims=(0, (1, 1)))
    out, (h, c) = model.sample(model.params, torch.randn(5, 3))
    assert (out.shape, h.shape, c.shape) == ((5, 2), (1, 2), (1, 2))
    assert torch.allclose(out[-1], h[0])


def test_sample_refuses_an_output_without_a_batch_of_one():
    class Total(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum()

    model = gf.stateless(Total(3, 2))
    with pytest.raises(ValueError, match=r"got an output of shape \(\); expected size 1 in dimension 0"):
        model.sample(model.params, torch.ones(3))
    swapped = gf.stateless(nn.Linear(3, 2), out_dims=1)
    with pytest.raises(ValueError, match=r"shape \(1, 2\); expected size 1 in dimension 1.*out_dims"):
        swapped.sample(swapped.params, torch.ones(3))


def test_in_dims_that_do_not_fit_are_refused():
    model = gf.stateless(nn.Linear(3, 2), in_dims=(0, 0))
    with pytest.raises(ValueError, match=r"dims \(0, 0\).*prefix of the value"):
        model.sample(model.params, torch.ones(3))


# --- buffers ---


class Counting(nn.Module):
    """One buffer written in place, one assigned, one left alone, and one that is tied into a child."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("still", torch.full((2,), float("nan")))

    def forward(self, x):
        self.seen += len(x)
        self.last = x[-1]
        return self.layer(x)


def test_buffers_that_a_forward_pass_changes_are_given_back_and_not_written():
    module, x = Counting(), torch.randn(5, 3)
    model = gf.stateless(module, batch_stats="batch")
    before = {name: b.clone() for name, b in module.named_buffers()}
    after = model.buffers_after(model.params, x)
    assert all(torch.equal(b.nan_to_num(), before[name].nan_to_num()) for name, b in module.named_buffers())
    twin = copy.deepcopy(module)
    twin(x)
    changed = dict(twin.named_buffers())
    assert set(after) == {
        "seen",
        "last",
        *(f"layer.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")),
    }
    assert all(torch.equal(value, changed[name]) for name, value in after.items())
    again = model.buffers_after({**model.params, **after}, x)  # passed on as values
    twin(x)
    assert all(torch.equal(value, twin.get_buffer(name)) for name, value in again.items())
    assert not any(value.requires_grad for value in after.values())
    assert "layer.1.running_mean" not in gf.stateless(module, batch_stats="frozen").buffers_after(model.params, x)
    with pytest.raises(RuntimeError, match=r"layer 'layer\.1'"):
        gf.stateless(module).buffers_after(model.params, x)
    assert gf.stateless(gf.models.mlp([3, 2])).buffers_after(gf.models.mlp([3, 2]).init(), x) == {}


# --- what is taken -------------------------------------------------------------------------------


def test_wrappers_are_taken_off():
    module = nn.Linear(3, 2)
    for wrapped in (
        nn.DataParallel(module),
        torch.compile(module, backend="eager"),
        torch.compile(nn.DataParallel(module), backend="eager"),
        nn.DataParallel(torch.compile(module, backend="eager")),
    ):
        model = gf.stateless(wrapped)
        assert model.module is module
        assert list(model.params) == ["weight", "bias"]


def test_only_the_type_makes_a_wrapper():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 2)
            self._orig_mod = nn.Linear(2, 2)

        def forward(self, x):
            return self._orig_mod(self.module(x))

    module = Mine()
    model = gf.stateless(module)
    assert model.module is module
    assert "module.weight" in model.params
    assert "_orig_mod.weight" in model.params


def test_pure_models_and_stateless_ones_pass():
    pure = gf.models.mlp([3, 2])
    model = gf.stateless(pure)
    assert model.module is None
    assert gf.stateless(model) is model
    assert torch.equal(model(model.params, torch.ones(1, 3))[0], model.sample(model.params, torch.ones(3)))


def test_parametrised_layers_have_their_own_names():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2).double())
    model = gf.stateless(module)
    assert sorted(model.params) == sorted(name for name, _ in module.named_parameters())
    x = torch.randn(4, 3, dtype=F64)
    assert torch.equal(model(model.params, x), module(x))


# --- statistics of the batch ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "training"),
    [
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm1d(4, affine=False), True),
        (nn.BatchNorm1d(4, track_running_stats=False), True),
        (nn.BatchNorm1d(4, track_running_stats=False), False),
        (nn.SyncBatchNorm(4), True),
    ],
)
def test_batch_statistics_are_refused_by_name(layer, training):
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), layer))
    module.train(training)
    for model in (gf.stateless(module), gf.stateless(nn.DataParallel(module))):
        for run, x in ((model, torch.ones(5, 3)), (model.sample, torch.ones(3))):
            with pytest.raises(RuntimeError, match=r"got layer '1\.1' \(\w*BatchNorm\w*\).*batch_stats='batch'"):
                run(model.params, x)


@pytest.mark.parametrize("engine", ["auto", "factored", "vmap", "loop"])
def test_the_refusal_is_not_taken_for_a_limitation(engine):
    model = gf.stateless(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)))
    f = gf.per_sample_grads(lambda p, x: model.sample(p, x).sum(), engine=engine)
    with pytest.raises(RuntimeError, match="got layer '1'"):
        f(model.params, torch.ones(5, 3))


def test_a_layer_that_normalises_by_its_running_statistics_runs():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    model = gf.stateless(module)
    x = torch.randn(5, 3)
    assert torch.equal(model(model.params, x), module(x))


def test_the_mode_at_the_time_of_the_call_counts():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model = gf.stateless(module)
    module.eval()
    model(model.params, torch.ones(2, 3))
    module.train()
    with pytest.raises(RuntimeError, match="is in train mode"):
        model(model.params, torch.ones(2, 3))


def test_batch_statistics_may_be_allowed_for_whole_batches_only():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model = gf.stateless(module, batch_stats="batch")
    x = torch.randn(5, 3)
    want = F.batch_norm(module[0](x), None, None, module[1].weight, module[1].bias, training=True)
    assert torch.equal(model(model.params, x), want)
    with pytest.raises(RuntimeError, match=r"model\.sample\(params, \.\.\.\): got layer '1'"):
        model.sample(model.params, x[0])


def test_running_statistics_stay():
    check_running_statistics_stay()


# --- the module is left alone --------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
def test_the_module_is_left_as_it_was(engine, device):
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).to(device)
    module[0].weight.grad = torch.full_like(module[0].weight, 5.0)
    module[2].eval()
    before = state(module)
    model = gf.stateless(module)
    f = gf.per_sample_grads(lambda p, x: model.sample(p, x).square().sum(), engine=engine, chunk_size=2)
    g = f.at(0)(model.params, torch.randn(3, 3, device=device))
    g.norms(), g.mean(), g.materialize(), g.unused
    assert_same_state(before, state(module))
    assert not storages(g.materialize()) & storages(model.params)


def test_layers_that_write_to_their_buffers_do_not():
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
    before = state(module)
    model = gf.stateless(module)
    gf.per_sample_grads(lambda p, x: model.sample(p, x).square().sum())(model.params, torch.randn(3, 3)).sum()
    assert_same_state(before, state(module))


def test_an_embedding_that_renormalises_its_weight_in_place_does_not():
    # nn.Embedding(max_norm=...) writes to its weight in every forward pass.
    module = nn.Embedding(5, 3, max_norm=0.5)
    before = state(module)
    model = gf.stateless(module)
    model(model.params, torch.arange(3))
    assert_same_state(before, state(module))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        self.rnn = nn.RNN(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = checkpoint(self.body, x, use_reentrant=False)
        h = checkpoint(lambda h: self.rnn(h[:, None])[0][:, 0], h, use_reentrant=False)
        return self.head(h)


def test_what_runs_again_in_the_backward_pass_finds_the_parameters_of_the_call():
    """A checkpointed block is run again after `functional_call` has put the module's own tensors back."""
    module = Checkpointed().double()
    model = gf.stateless(module)
    others = {name: torch.randn_like(p, requires_grad=True) for name, p in model.params.items()}
    x = torch.randn(3, 4).double()
    got = torch.autograd.grad(model(others, x).square().sum(), list(others.values()))
    for p, value in zip(module.parameters(), others.values(), strict=True):
        p.data = value.detach()
    expected = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_modules_kept_in_plain_lists_are_seen():
    """They are no children, but the same objects as children: what is passed for those must reach them."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)
            self.order = [self.a, self.b]

        def forward(self, x):
            for layer in self.order:
                x = layer(x)
            return x

    model = gf.stateless(Listed())
    params = {name: torch.zeros_like(p) for name, p in model.params.items()}
    assert torch.equal(model(params, torch.ones(4, 3)), torch.zeros(4, 2))


def test_a_forward_that_assigns_leaves_the_module_alone():
    class Assigning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.calls, self.last = nn.Linear(3, 2), 0, None

        def forward(self, x):
            self.calls += 1
            self.last = self.lin(x)
            return self.last

    module = Assigning()
    model = gf.stateless(module)
    model(model.params, torch.ones(4, 3))
    assert (module.calls, module.last) == (0, None)


def test_bind_is_the_model_with_other_parameters():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    model = gf.stateless(module)
    other = {name: (value + 1).requires_grad_() for name, value in model.params.items()}
    bound, x = model.bind(dict(reversed(other.items()))), torch.randn(5, 3)
    assert list(bound.params) == list(model.params)
    assert all(bound.params[name].data_ptr() == value.data_ptr() for name, value in other.items())
    assert not any(value.requires_grad for value in bound.params.values())
    assert torch.equal(bound(bound.params, x), model(other, x))
    assert not torch.equal(bound(bound.params, x), model(model.params, x))
    with pytest.raises(KeyError, match=r"model.bind\(params\): got parameters '0.bias'; expected '0.bias', '0.weight'"):
        model.bind({"0.bias": other["0.bias"]})
    with pytest.raises(ValueError, match=r"got '0.bias' of shape \(2,\); expected \(4,\)"):
        model.bind({**other, "0.bias": torch.zeros(2)})
