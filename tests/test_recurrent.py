"""The scans equal torch's fused recurrent operators, values and derivatives; the plain one runs under vmap(grad)."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tiers import every
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode

from gradfunc import _recurrent

F64 = torch.float64
SCANS = {"plain": _recurrent.plain, "fast": _recurrent.fast}
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
            options = {} if name.endswith("cell") else self.options
            return getattr(_recurrent, name)(*args, **(kwargs or {}), **options)
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


def check_equal(net, *inputs, scans=SCANS):
    """Values and gradients in the parameters and all inputs that ask for one, of each scan."""
    for scan in scans:
        check_scan(SCANS[scan], net, *inputs)


def check_scan(scan, net, *inputs):
    leaves = [*net.parameters(), *[t for part in inputs for t in tensors(part) if t.requires_grad]]
    found = []
    for run in (lambda: net(*inputs), lambda: scanned(net, *inputs, scan=scan)):
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
    every(3, product([1, 3], [False, True], [False, True], [False, True], [False, True])),
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
    every(3, product([1, 2], [False, True], [False, True], [False, True])),
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
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_computes_in_the_lower_type(name, scan, inside):
    net, x = MODULES[name](3, 5), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = tensors(scanned(net, x, scan=SCANS[scan]))
        got = torch.autograd.grad(out[0].float().sum(), list(net.parameters())) if inside else ()
    assert {t.dtype for t in out} == {torch.bfloat16}
    got = got or torch.autograd.grad(out[0].float().sum(), list(net.parameters()))
    want = torch.autograd.grad(net(x)[0].sum(), list(net.parameters()))
    scale = sum(g.square().sum() for g in want).sqrt()
    assert all(g.dtype == torch.float32 for g in got)
    assert max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True)) < 20 * 2**-8 * scale


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


# ---- the scan by hand


def derivatives(net, run, inputs, leaves):
    """First and second derivatives, and first ones of several cotangents at once."""
    torch.manual_seed(1)

    def weighed(values):
        return sum((value * torch.randn_like(value)).sum() for value in values)

    out = tensors(run(net, *inputs))
    first = torch.autograd.grad(weighed([t.sin() for t in out]), leaves, create_graph=True)
    second = torch.autograd.grad(weighed(first), leaves, allow_unused=True, materialize_grads=True)
    cotangents = [torch.randn(3, *t.shape, dtype=t.dtype) for t in out]
    out = tensors(run(net, *inputs))
    lanes = torch.autograd.grad(out, leaves, cotangents, is_grads_batched=True)
    return [t.detach() for t in (*out, *first, *second, *lanes)]


def by_hand(net, *inputs):
    return scanned(net, *inputs, scan=_recurrent.fast)


def in_plain_operations(net, *inputs):
    return scanned(net, *inputs, scan=_recurrent.plain)


def check_derivatives(name, **options):
    net = net_of(name, **options)
    x, hx = torch.randn(4, 2, 3, dtype=F64, requires_grad=True), states(net, 2)
    leaves = [*net.parameters(), x, *tensors(hx)]
    want, got = (derivatives(net, run, (x, hx), leaves) for run in (in_plain_operations, by_hand))
    assert max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(got, want, strict=True)) < 1e-13


OPTIONS = [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}]


@pytest.mark.parametrize(
    ("name", "options"), [*product(NAMES, OPTIONS), *[("lstm", {**some, "proj_size": 2}) for some in OPTIONS]]
)
def test_second_derivatives_and_several_cotangents(name, options):
    check_derivatives(name, **options)


def check_second_derivative_is_torchs(name):
    """Of torch's own operator, which has one in float64 on the CPU."""
    net = net_of(name)
    x = torch.randn(4, 2, 3, dtype=F64, requires_grad=True)
    found = []
    for run in (lambda net, x: net(x), by_hand):
        (grad,) = torch.autograd.grad(run(net, x)[0].sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, *net.parameters()], materialize_grads=True))
    assert max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(*found, strict=True)) < 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_is_torchs(name):
    check_second_derivative_is_torchs(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight", "all"])
def test_frozen_parameters(name, frozen):
    net = net_of(name, num_layers=2)
    for key, parameter in net.named_parameters():
        parameter.requires_grad_(not (frozen == "all" or key.startswith(frozen)))
    x, hx = torch.randn(4, 2, 3, dtype=F64, requires_grad=True), states(net, 2)
    leaves = [t for t in (*net.parameters(), x, *tensors(hx)) if t.requires_grad]
    found = []
    for run in (in_plain_operations, by_hand):
        out = tensors(run(net, x, hx))
        found.append(torch.autograd.grad(sum(t.sin().sum() for t in out), leaves))
    assert max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(*found, strict=True)) < 1e-13


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_output_alone(name, part):
    """The outputs, the last h or the last c: the others have no cotangent."""
    net, x = net_of(name), torch.randn(4, 2, 3, dtype=F64, requires_grad=True)
    found = []
    for run in (in_plain_operations, by_hand):
        out = tensors(run(net, x))
        if part < len(out):
            found.append(torch.autograd.grad(out[part].sin().sum(), [x, *net.parameters()]))
    assert len(found) == (0 if part == 2 and name != "lstm" else 2)
    for grads in zip(*found, strict=True):
        assert torch.allclose(*grads, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_saved_is_changed(name):
    """Two backward passes over one graph, and what a caller writes to outputs."""
    net, x = net_of(name), torch.randn(4, 2, 3, dtype=F64)
    out = tensors(by_hand(net, x))
    twice = [torch.autograd.grad(out[0].sum(), list(net.parameters()), retain_graph=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))
    want = torch.autograd.grad(out[0].square().sum(), list(net.parameters()))
    written = tensors(by_hand(net, x))[0]
    got = torch.autograd.grad(written.square_().sum(), list(net.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_changed_in_between_is_noticed(name):
    net, x = net_of(name), torch.randn(4, 2, 3, dtype=F64)
    out = by_hand(net, x)[0].sum()
    with torch.no_grad():
        net.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad(out, list(net.parameters()))
    net.requires_grad_(False).weight_hh_l0.requires_grad_()
    out = by_hand(net, x)[0].sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="before its second derivative"):
        torch.autograd.grad(out, net.weight_hh_l0, create_graph=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scan", SCANS)
def test_no_steps_and_no_rows(name, scan):
    net = net_of(name)
    with pytest.raises(RuntimeError, match=r"length 0|larger than 0"):
        scanned(net, torch.randn(0, 2, 3, dtype=F64), scan=SCANS[scan])
    out = tensors(scanned(net, torch.randn(4, 0, 3, dtype=F64), scan=SCANS[scan]))
    grads = torch.autograd.grad(sum(t.sum() for t in out), list(net.parameters()))
    assert out[0].shape == (4, 0, 5)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_graph(name):
    net, x = net_of(name, bidirectional=True), torch.randn(4, 2, 3, dtype=F64)
    want = tensors(net(x))
    with torch.no_grad():
        got = tensors(by_hand(net, x))
    frozen = tensors(by_hand(net.requires_grad_(False), x))
    assert not any(t.requires_grad for t in (*got, *frozen))
    for some in (got, frozen):
        assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(some, want, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_rounds_no_worse_than_plain_operations(name):
    """Over a few networks, within a bit."""
    errors = {"plain": 0.0, "fast": 0.0}
    for seed in range(5):
        torch.manual_seed(seed)
        net, x = MODULES[name](8, 16, num_layers=2), torch.randn(20, 4, 8)
        grads = {}
        for scan in errors:
            grads[scan] = torch.autograd.grad(scanned(net, x, scan=SCANS[scan])[0].sin().sum(), list(net.parameters()))
        net.double()
        exact = torch.autograd.grad(net(x.double())[0].sin().sum(), list(net.parameters()))
        for scan, found in grads.items():
            errors[scan] += float(sum((g - e).square().sum() for g, e in zip(found, exact, strict=True)).sqrt())
    assert errors["fast"] <= 2 * errors["plain"]


@pytest.mark.parametrize("name", NAMES)
def test_on_device(name, device):
    net = net_of(name, num_layers=2, bidirectional=True).to(device)
    check_equal(net, torch.randn(4, 2, 3, dtype=F64, device=device, requires_grad=True))
