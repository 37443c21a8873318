"""The walk through a model's layers: every use of every parameter, in order, on every model of the zoo."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradfunc as gf
from gradfunc import _layers
from gradfunc._layers import Walk
from gradfunc._problem import read
from gradfunc._zoo import MODELS
from gradfunc.audit._case import mean_loss


def walked(problem, note=lambda tensor, use: None):
    leaves = {name: value.detach().requires_grad_() for name, value in problem.model.params.items()}
    walk = Walk(leaves, note)
    with warnings.catch_warnings():
        # torch's own remarks on even kernels, and on one of its kernels
        warnings.filterwarnings("ignore", "Using padding='same'|LSTM with projections")
        loss = mean_loss(problem, walk.around(functools.partial(problem.model, leaves)))
    return leaves, loss, walk.uses()


def of_zoo(name):
    model = MODELS[name]
    torch.manual_seed(3)
    module, batch = model.module(), model.batch()
    stateless = gf.stateless(module, in_dims=model.in_dims, out_dims=model.out_dims)
    return read(name, stateless, model.criterion, batch)


def of_module(module, *inputs):
    out = module(*inputs)
    return read("test", module, nn.MSELoss(), (*inputs, torch.zeros_like(out)))


def missed(leaves, loss, uses):
    """Parameters with a gradient that no use names, or whose uses a gradient does not reach."""
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, retain_graph=True)
    found = torch.autograd.grad(loss, [use.last for use in uses], allow_unused=True) if uses else ()
    reached = {name for use, grad in zip(uses, found, strict=True) if grad is not None for name in use.names}
    return {name for name, grad in zip(leaves, grads, strict=True) if grad is not None} - reached


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_with_a_gradient_is_seen_in_a_use_that_the_gradient_passes(name):
    leaves, loss, uses = walked(of_zoo(name))
    assert not missed(leaves, loss, uses)


@pytest.mark.parametrize("name", ["own autograd function with a weight", "parameter list", "transposed weight"])
def test_a_walk_that_forgets_what_came_past_it_or_what_is_made_of_parameters_is_caught(name, monkeypatch):
    if name == "parameter list":  # only the first use is kept
        monkeypatch.setattr(Walk, "uses", lambda self, every=Walk.uses: every(self)[:1])
    else:  # what came past the mode is not looked up in the graph
        monkeypatch.setattr(Walk, "_origin", lambda self, tensor: self._known.get(tensor))
    if name == "transposed weight":  # and property getters come past it
        place = Walk._place
        monkeypatch.setattr(Walk, "_place", lambda self, kind, *rest: kind == "T" or place(self, kind, *rest))
    assert missed(*walked(of_zoo(name)))


def told(problem):
    return [(use.layer, use.function, use.activation, use.number, use.of) for use in walked(problem)[2]]


def test_uses_come_in_forward_order_with_the_activation_that_follows():
    module = nn.Sequential(
        *[nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.0), nn.ReLU()],
        *[nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)],
    )
    assert told(of_module(module, torch.randn(5, 6))) == [
        ("0", "linear", None, 1, 1),
        ("1", "batch_norm", "relu", 1, 1),
        ("4", "linear", "tanh", 1, 1),
        ("6", "linear", None, 1, 1),
        ("7", "layer_norm", "gelu", 1, 1),
        ("9", "linear", None, 1, 1),
    ]


ACTS = {
    "relu": [
        torch.relu,
        F.relu,
        torch.relu_,
        torch.Tensor.relu,
        functools.partial(F.relu, inplace=True),
        nn.ReLU(True),
    ],
    "tanh": [torch.tanh, F.tanh, torch.Tensor.tanh_, nn.Tanh()],
    "sigmoid": [torch.sigmoid, F.sigmoid, torch.special.expit, torch.Tensor.sigmoid],
    "gelu": [F.gelu, nn.GELU("tanh")],
    "silu": [F.silu, nn.SiLU(inplace=True)],
    "elu": [F.elu, F.elu_],
    "softplus": [F.softplus],
    "hardtanh": [F.hardtanh, nn.Hardtanh(inplace=True)],
    "leaky_relu": [F.leaky_relu, F.leaky_relu_],
    "logsigmoid": [F.logsigmoid],
}


@pytest.mark.parametrize(("kind", "k"), [(kind, k) for kind, acts in ACTS.items() for k in range(len(acts))])
def test_an_activation_is_recognised_however_it_is_written(kind, k):
    act = ACTS[kind][k]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return act(self.fc(x))

    torch.manual_seed(0)
    problem = of_module(Net(), torch.randn(3, 4))
    expected = act(problem.model.module.fc(problem.args[0])).detach()
    _, _, (use,) = walked(problem, lambda tensor, use: tensor.clone())
    assert use.activation == kind
    assert torch.equal(use.value, expected)


def by_hand_gelu(h):
    return 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.045 * h**3)))


class Then(nn.Module):
    """A function behind a layer, and another layer."""

    def __init__(self, fn):
        super().__init__()
        self.fc, self.out, self.fn = nn.Linear(4, 4), nn.Linear(4, 4), fn

    def forward(self, x):
        return self.out(self.fn(self.fc(x), x))


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (lambda h, x: by_hand_gelu(h), None),
        (lambda h, x: h * torch.sigmoid(1.702 * h), None),
        (lambda h, x: torch.relu(h + x), "relu"),
        (lambda h, x: torch.relu(F.dropout(F.layer_norm(h, (4,)), 0.0).view(-1, 2, 2)).flatten(1), "relu"),
        (lambda h, x: torch.relu(2 * h), None),
        (lambda h, x: torch.relu(h.chunk(2, 1)[0].repeat(1, 2)), None),
    ],
    ids=["gelu by hand", "gate", "skip", "norm, dropout and shape", "scaled", "a part of it"],
)
def test_an_activation_belongs_to_a_layer_if_it_is_of_all_its_output(fn, kind):
    assert [entry[:3] for entry in told(of_module(Then(fn), torch.randn(3, 4)))] == [
        ("fc", "linear", kind),
        ("out", "linear", None),
    ]


def test_values_are_noted_before_they_are_overwritten():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)
            h[:, :2] *= 3
            h += 1
            return self.b(h.view(-1, 2, 2).flatten(1).mul_(2))

    problem = of_module(Net(), torch.randn(3, 4))
    *_, uses = walked(problem, lambda tensor, use: tensor.clone())
    assert torch.equal(uses[0].value, problem.model.module.a(problem.args[0]))


def test_a_checkpointed_block_is_walked_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(checkpoint(lambda h: self.a(h).tanh(), x, use_reentrant=False))

    leaves, loss, uses = walked(of_module(Net(), torch.randn(3, 4)))
    torch.autograd.grad(loss, list(leaves.values()))
    assert [(use.layer, use.activation) for use in uses] == [("a", "tanh"), ("b", None)]


def test_a_vmap_inside_the_model_is_placed_by_its_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.vmap(lambda row: F.linear(row, self.a.weight, self.a.bias).tanh())(x))

    leaves, loss, uses = walked(of_module(Net(), torch.randn(3, 4)))
    assert [use.layer for use in uses] == ["a", "b"]
    assert not missed(leaves, loss, uses)


def test_scales_and_shifts_of_one_module_are_one_layer_with_its_product():
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b, self.g = (nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (3,), (3,)))

        def forward(self, x):
            return (x @ self.w * self.g + self.b).relu()

    ((layer, function, kind, _, _),) = told(of_module(ByHand(), torch.randn(5, 4)))
    assert (layer, function, kind) == ("w", "matmul", "relu")


def test_pure_models_and_recurrent_layers_have_uses_by_number():
    pure = read("test", gf.models.mlp([4, 3, 2]), nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 2)))
    assert told(pure) == [("fc1", "linear", "relu", 1, 1), ("fc2", "linear", None, 1, 1)]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(3, 4)

        def forward(self, x):
            h = torch.zeros(len(x), 4)
            for step in x.unbind(1):
                h = self.cell(step, h)
            return h

    uses = walked(of_module(Net(), torch.randn(5, 3, 3)))[2]
    assert [(use.number, use.of, use.sources) for use in uses] == [(1, 3, ()), (2, 3, (0,)), (3, 3, (1,))]


def test_layers_are_named_as_before_a_parametrization():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    module = nn.Sequential(layer, nn.Tanh(), nn.ParameterList())
    module.forward = lambda x: layer(x).tanh()
    assert [use.layer for use in walked(of_module(module, torch.randn(5, 4)))[2]] == ["0"]


def test_a_walk_keeps_no_tensor_of_the_pass():
    kept = []

    class Tap(nn.Module):
        def forward(self, x):
            kept.append(weakref.ref(x))
            return x

    module = nn.Sequential(nn.Linear(4, 4), Tap(), nn.ReLU(), Tap(), nn.Linear(4, 4), Tap())
    leaves, loss, uses = walked(of_module(module, torch.randn(3, 4)))
    kept = kept[-3:]
    uses = [use.without_graph() for use in uses]
    del loss, leaves
    gc.collect()
    assert len(uses) == 2
    assert all(ref() is None for ref in kept)


def test_the_table_of_activations_has_no_name_that_torch_lacks():
    assert set(_layers.ACTIVATIONS) == set(_layers.KINDS.values())
