"""The scans equal torch's fused recurrent operators, values and gradients, and run under vmap(grad)."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode

from gradfunc import _recurrent

F64 = torch.float64
NAMES = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
MODULES = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
    "lstm_cell": nn.LSTMCell,
    "gru_cell": nn.GRUCell,
    "rnn_tanh_cell": nn.RNNCell,
    "rnn_relu_cell": lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options),
}


class Scans(TorchFunctionMode):
    """Sends torch's recurrent operators to the scans; counts them."""

    def __init__(self, **options):
        super().__init__()
        self.options, self.seen = options, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in MODULES:
            self.seen += 1
            return getattr(_recurrent, name)(*args, **(kwargs or {}), **self.options)
        return func(*args, **(kwargs or {}))


def scanned(fn, *args, **options):
    with Scans(**options) as mode:
        out = fn(*args)
    assert mode.seen
    return out


def tensors(out):
    if isinstance(out, PackedSequence):
        return [out.data]
    return [out] if isinstance(out, torch.Tensor) else [t for part in out for t in tensors(part)]


def check_equal(net, *inputs):
    """Values and gradients in the parameters and all inputs that ask for one."""
    leaves = [*net.parameters(), *[t for part in inputs for t in tensors(part) if t.requires_grad]]
    found = []
    for run in (lambda: net(*inputs), lambda: scanned(net, *inputs)):
        out = tensors(run())
        torch.manual_seed(1)
        loss = sum((t * torch.randn_like(t)).sum() for t in out)
        found.append([t.detach() for t in (*out, *torch.autograd.grad(loss, leaves))])
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(*found, strict=True))
    assert max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(*found, strict=True)) < 1e-13


def states(net, size):
    hidden = net.proj_size or net.hidden_size
    shape = net.num_layers * (2 if net.bidirectional else 1), size
    h = torch.randn(*shape, hidden, dtype=F64, requires_grad=True)
    if not isinstance(net, nn.LSTM):
        return h
    return h, torch.randn(*shape, net.hidden_size, dtype=F64, requires_grad=True)


def unbatched(hx):
    return hx.detach()[:, 0].requires_grad_() if isinstance(hx, torch.Tensor) else tuple(map(unbatched, hx))


def net_of(name, **options):
    return MODULES[name](3, 5, dtype=F64, **options)


def check_padded(name, num_layers, bidirectional, bias, batch_first, given, **more):
    net = net_of(name, num_layers=num_layers, bidirectional=bidirectional, bias=bias, batch_first=batch_first, **more)
    x = torch.randn(4, 2, 3, dtype=F64, requires_grad=True)
    size = 4 if batch_first else 2
    check_equal(net, x, *([states(net, size)] if given else []))
    one = x[:, 0].detach().requires_grad_()
    check_equal(net, one, *([unbatched(states(net, 1))] if given else []))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias", "batch_first", "given"),
    list(product([1, 3], [False, True], [False, True], [False, True], [False, True])),
)
def test_padded(name, num_layers, bidirectional, bias, batch_first, given):
    check_padded(name, num_layers, bidirectional, bias, batch_first, given)


@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias", "batch_first", "given"),
    list(product([1, 2], [False, True], [False, True], [False, True], [False, True])),
)
def test_projections(num_layers, bidirectional, bias, batch_first, given):
    check_padded("lstm", num_layers, bidirectional, bias, batch_first, given, proj_size=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias", "given"),
    list(product([1, 2], [False, True], [False, True], [False, True])),
)
@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 3, 1], [2, 4, 2], [1, 1, 1]])
def test_packed(name, num_layers, bidirectional, bias, given, lengths):
    check_packed(name, num_layers, bidirectional, bias, given, lengths)


def check_packed(name, num_layers, bidirectional, bias, given, lengths, **more):
    net = net_of(name, num_layers=num_layers, bidirectional=bidirectional, bias=bias, **more)
    x = torch.randn(4, 3, 3, dtype=F64)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed = packed._replace(data=packed.data.requires_grad_())
    check_equal(net, packed, *([states(net, 3)] if given else []))


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 3, 1]])
def test_packed_projections(lengths):
    check_packed("lstm", 2, True, True, True, lengths, proj_size=2)


def check_cell(name, bias, given, batched=True):
    net = MODULES[name](3, 5, bias=bias, dtype=F64)
    batch = (4,) if batched else ()
    x = torch.randn(*batch, 3, dtype=F64, requires_grad=True)
    h, c = (torch.randn(*batch, 5, dtype=F64, requires_grad=True) for _ in range(2))
    check_equal(net, x, *([(h, c) if name == "lstm_cell" else h] if given else []))


@pytest.mark.parametrize("name", [f"{name}_cell" for name in NAMES])
@pytest.mark.parametrize(("bias", "given", "batched"), list(product([False, True], repeat=3)))
def test_cells(name, bias, given, batched):
    check_cell(name, bias, given, batched)


@pytest.mark.parametrize("name", NAMES)
def test_calls_by_name(name):
    net = net_of(name, num_layers=2, bidirectional=True)
    x, hx = torch.randn(4, 2, 3, dtype=F64), states(net, 2)
    options = {"has_biases": True, "num_layers": 2, "dropout": 0.0, "train": True, "bidirectional": True}
    ours, theirs = (
        f(x, hx, params=net._flat_weights, batch_first=False, **options)
        for f in (getattr(_recurrent, name), getattr(torch, name))
    )
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_dropout_between_layers(name, packed, train):
    # Dropped with certainty, only the biases and what the last layer's state carries are left: no noise to compare.
    net = net_of(name, num_layers=3, bidirectional=True, dropout=1.0).train(train)
    x = torch.randn(4, 3, 3, dtype=F64, requires_grad=not packed)
    if packed:
        x = pack_padded_sequence(x, [4, 2, 1])
        x = x._replace(data=x.data.requires_grad_())
    check_equal(net, x)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_asked_for_between_layers_only(name):
    asked = []
    net = net_of(name, num_layers=3, bidirectional=True, dropout=0.25)
    scanned(net, torch.randn(4, 2, 3, dtype=F64), drop=lambda x, p: (asked.append((x.shape, p)), x)[1])
    assert asked == [((4, 2, 10), 0.25)] * 2


@pytest.mark.parametrize("name", list(MODULES))
@pytest.mark.parametrize("given", [False, True])
def test_vmap_of_grad_is_the_loop(name, given):
    cell = name.endswith("cell")
    net = MODULES[name](3, 5, dtype=F64, **({} if cell else {"num_layers": 2, "bidirectional": True}))
    params = {k: v.detach() for k, v in net.named_parameters()}
    x = torch.randn(6, 3, dtype=F64) if cell else torch.randn(6, 4, 3, dtype=F64)
    shape = (5,) if cell else (4, 5)
    h = torch.randn(shape, dtype=F64)
    hx = ([(h, h) if name.startswith("lstm") else h]) if given else []

    def loss(params, x):
        return sum(t.square().sum() for t in tensors(functional_call(net, params, (x, *hx))))

    with Scans():
        rows = vmap(grad(loss), (None, 0))(params, x)
    for i in range(len(x)):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        alone = torch.autograd.grad(loss(leaves, x[i]), list(leaves.values()))
        scale = sum(g.square().sum() for g in alone).sqrt()
        assert all((rows[k][i] - g).abs().max() <= 1e-12 * scale for k, g in zip(leaves, alone, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_computes_in_the_lower_type(name):
    net, x = MODULES[name](3, 5), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = tensors(scanned(net, x))
    assert {t.dtype for t in out} == {torch.bfloat16}


def check_no_product_of_parameters_alone():
    """Under vmap every product with a recurrent weight has a batched partner, the first step's too."""
    net = net_of("gru")
    x = torch.randn(6, 4, 3, dtype=F64)
    seen = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.nn.functional.linear and args[1] is net.weight_hh_l0:
                seen.append(torch._C._functorch.is_batchedtensor(args[0]))
            return func(*args, **(kwargs or {}))

    with Products(), Scans():
        vmap(lambda x: net(x)[0])(x)
    assert seen == [True] * 4


def test_no_product_of_parameters_alone():
    check_no_product_of_parameters_alone()


@pytest.mark.parametrize("name", NAMES)
def test_on_device(name, device):
    net = net_of(name, num_layers=2, bidirectional=True).to(device)
    check_equal(net, torch.randn(4, 2, 3, dtype=F64, device=device, requires_grad=True))
