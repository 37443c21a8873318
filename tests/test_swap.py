"""Inside a loss draws depend on (seed, step, sample, use) alone, recurrent operators run under vmap, and torch's
meaning of every call stays."""

from __future__ import annotations

import contextlib

import pytest
import torch
from oracle import same_bits
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from gradfunc._random import RefuseDraws, forked
from gradfunc._swap import Swap, _levels

F64 = torch.float64
IDS = (5, 0, 2**40 + 1, 3)


@contextlib.contextmanager
def swapped(seed=0, step=0, *, randomness="different", scan="fast", device="cpu"):
    with (
        forked(seed, step, devices=[torch.device(device)]),
        Swap("f", seed, step, randomness=randomness, scan=scan) as swap,
    ):
        yield swap


def once(fn, *args, sample=0, **how):
    """`fn` as the loss of one sample."""
    with swapped(**how) as swap:
        swap.begin(sample)
        return fn(*args)


def alone(loss, params, x, sample, **how):
    """Gradient of one sample's loss by autograd."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    with swapped(**how) as swap:
        swap.begin(sample)
        out = loss(leaves, x)
        with swap.backward():
            grads = torch.autograd.grad(out, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def rows(loss, params, xs, ids=IDS, **how):
    """Gradients of all samples by vmap(grad)."""

    def begun(params, x, sample):
        swap.begin(sample)
        return loss(params, x)

    with swapped(**how, device=xs.device) as swap:
        mapped = vmap(grad(begun), (None, 0, 0), randomness="different")
        return mapped(params, xs, torch.tensor(ids, device=xs.device))


# name -> what a loss does with an [4, 6] tensor
OPERATIONS = {
    "F.dropout": lambda x: F.dropout(x, 0.4),
    "F.dropout in place": lambda x: F.dropout(x * 1, 0.4, inplace=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.4, True),
    "torch.dropout_": lambda x: torch.dropout_(x * 1, 0.4, True),
    "nn.Dropout": nn.Dropout(0.4),
    "dropout1d": lambda x: F.dropout1d(x, 0.4),
    "dropout1d in place": lambda x: F.dropout1d(x * 1, 0.4, inplace=True),
    "dropout2d": lambda x: F.dropout2d(x.reshape(2, 3, 2, 2), 0.4),
    "dropout3d": lambda x: F.dropout3d(x.reshape(3, 2, 2, 2), 0.4),
    "feature_dropout_": lambda x: torch.feature_dropout_(x.reshape(2, 3, 4) * 1, 0.4, True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.4, training=True),
    "alpha_dropout in place": lambda x: F.alpha_dropout(x * 1, 0.4, training=True, inplace=True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x.reshape(2, 3, 4), 0.4, training=True),
    "feature_alpha_dropout_": lambda x: torch.feature_alpha_dropout_(x.reshape(2, 3, 4) * 1, 0.4, True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rrelu in place": lambda x: F.rrelu(x * 1, training=True, inplace=True),
    "rand": lambda x: x * torch.rand(4, 6, dtype=x.dtype, device=x.device),
    "randn": lambda x: x * torch.randn((4, 6), dtype=x.dtype, device=x.device),
    "randint": lambda x: x * torch.randint(-9, 99, (4, 6), device=x.device),
    "rand_like": lambda x: x * torch.rand_like(x),
    "randn_like": lambda x: x * torch.randn_like(x),
    "randint_like": lambda x: x * torch.randint_like(x, 99),
    "randperm": lambda x: x * torch.randperm(6, device=x.device),
    "bernoulli": lambda x: x * torch.bernoulli(x.detach().sigmoid()),
    "bernoulli p": lambda x: x * torch.bernoulli(x, 0.4),
    "Tensor.bernoulli": lambda x: x * x.detach().sigmoid().bernoulli(),
    "bernoulli_": lambda x: x * (x.detach() * 1).bernoulli_(0.4),
    "bernoulli_ tensor": lambda x: x * torch.empty_like(x).bernoulli_(x.detach()[0].sigmoid()),
    "uniform_": lambda x: x * torch.empty_like(x).uniform_(-1, to=3),
    "normal_": lambda x: x * torch.empty_like(x).normal_(1, std=3),
    "exponential_": lambda x: x * torch.empty_like(x).exponential_(2),
    "normal": lambda x: x * torch.normal(x, x.detach().exp()),
    "normal mean": lambda x: x * torch.normal(x, 2.0),
    "normal std": lambda x: x * torch.normal(1.0, x.detach().exp()),
    "normal size": lambda x: x * torch.normal(1.0, 2.0, (4, 6), dtype=x.dtype, device=x.device),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x.reshape(1, 4, 6), 2, (2, 3)),
}
# Those that reduce over a row round differently in a batch.
ROUNDED = {
    "gumbel_softmax": lambda x: F.gumbel_softmax(x),
    "gumbel_softmax hard": lambda x: F.gumbel_softmax(x, hard=True) * x,
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x, dropout_p=0.4),
}
ALL = {**OPERATIONS, **ROUNDED}


def check_operation(name, device="cpu", ids=IDS):
    """vmap(grad) is the loop, in any order and chunks; every part of the name counts."""
    params = {"w": torch.randn(4, 6, dtype=F64, device=device)}
    xs = torch.randn(len(ids), 4, 6, dtype=F64, device=device)

    def loss(params, x):
        out = ALL[name](params["w"] * x)
        again = ALL[name](params["w"] * x)  # the second use is another draw
        return (out * out.detach().cos()).sum() + (again * 3).sum()

    def close(a, b):
        return same_bits(a, b) if name in OPERATIONS else torch.allclose(a["w"], b["w"], rtol=1e-12, atol=1e-12)

    found = rows(loss, params, xs, ids)
    each = [alone(loss, params, x, i, device=device) for x, i in zip(xs, ids, strict=True)]
    assert close(found, {"w": torch.stack([g["w"] for g in each])})
    backwards = rows(loss, params, xs.flip(0), ids[::-1])
    assert close({"w": backwards["w"].flip(0)}, found)
    chunks = [rows(loss, params, xs[at], ids[at]) for at in (slice(0, 1), slice(1, len(ids)))]
    assert close({"w": torch.cat([c["w"] for c in chunks])}, found)
    alike = rows(loss, params, xs[:1].expand_as(xs), ids)["w"]
    assert all(not close({"w": a}, {"w": b}) for i, a in enumerate(alike) for b in alike[:i])
    for other in ({"seed": 1}, {"step": 1}, {"sample": ids[0] + 1}):
        changed = alone(loss, params, xs[0], **{"sample": ids[0], **other}, device=device)
        assert not close(changed, each[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # hard Gumbel softmax scatters under vmap
@pytest.mark.parametrize("name", [n for n in ALL if n != "fractional_max_pool2d"])
def test_operation(name, device):
    check_operation(name, device)


def test_fractional_pooling_draws_keyed():
    x = torch.randn(1, 4, 30, 30)
    pool = nn.FractionalMaxPool2d(2, (10, 10))
    assert torch.equal(once(pool, x), once(pool, x))
    assert not torch.equal(once(pool, x), once(pool, x, sample=1))
    pool = nn.FractionalMaxPool3d(2, (10, 10, 10), return_indices=True)
    x = torch.randn(1, 30, 30, 30)
    assert not torch.equal(once(pool, x)[1], once(pool, x, sample=1)[1])


def check_uses_differ():
    """Two draws in one pass differ, for the sample alone and for a neighbour."""

    def loss():
        return torch.stack([torch.rand(8) for _ in range(3)])

    a, b = once(loss), once(loss, sample=1)
    assert len({tuple(row.tolist()) for row in (*a, *b)}) == 6


def test_uses_differ():
    check_uses_differ()


def test_begin_starts_anew():
    with swapped() as swap:
        draws = []
        for sample in (0, 1, 0):
            swap.begin(sample)
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_a_draw_before_begin_is_refused():
    with swapped(), pytest.raises(RuntimeError, match="begin"):
        torch.rand(3)


def test_a_sample_may_be_a_tensor_outside_vmap():
    net = MODELS["encoder"]()
    a, b = (once(net, torch.ones(2, 8), sample=s) for s in (3, torch.tensor(3)))
    assert torch.equal(a, b)


def test_drew():
    with swapped() as swap:
        swap.begin(0)
        F.dropout(torch.ones(3), 0.0)
        F.dropout(torch.ones(3), 0.5, training=False)
        torch.ones(3).sum()
        assert not swap.drew
        torch.rand(1)
        assert swap.drew


# ---- torch's meaning


def test_dropouts_are_torchs():
    """On a constant input torch's result has two values; so has ours, the same two; whole channels alike."""
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        for suffix in ("", "_"):
            function = getattr(torch, kind + suffix)
            theirs, ours = function(torch.ones(20, 30, 4), 0.3, True), once(function, torch.ones(20, 30, 4), 0.3, True)
            torch.testing.assert_close(ours.unique(), theirs.unique())
            assert ours.unique().numel() == 2
            assert bool((ours == ours[..., :1]).all()) == bool((theirs == theirs[..., :1]).all())


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "kind", [k + s for k in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout") for s in ("", "_")]
)
def test_certain_dropouts_are_torchs(kind, p, train):
    x = torch.randn(3, 4)
    y = x.clone()
    ours = once(getattr(torch, kind), x, p, train)
    assert torch.equal(ours, getattr(torch, kind)(y, p, train))
    assert (ours is x) == (kind.endswith("_") or not train or p == 0)


def test_in_place_writes_to_the_tensor_itself():
    for function in (
        lambda x: F.dropout(x, 0.5, inplace=True),
        lambda x: F.rrelu(x, training=True, inplace=True),
        torch.Tensor.normal_,
        torch.Tensor.bernoulli_,
        torch.Tensor.uniform_,
        torch.Tensor.exponential_,
    ):
        x = torch.randn(50)
        before = x.clone()
        assert once(function, x) is x
        assert not torch.equal(x, before)


CALLS = {
    "sizes": lambda: torch.rand(2, 3),
    "tuple": lambda: torch.randn((2, 3)),
    "size=": lambda: torch.rand(size=(2, 3)),
    "no size": lambda: torch.rand(()),
    "empty": lambda: torch.randn(0, 3),
    "dtype": lambda: torch.rand(3, dtype=torch.bfloat16),
    "half": lambda: torch.randn(3, dtype=torch.half),
    "complex": lambda: torch.randn(3, dtype=torch.complex64),
    "requires_grad": lambda: torch.rand(3, requires_grad=True),
    "out": lambda: torch.randn(2, 3, out=torch.empty(0)),
    "generator=None": lambda: torch.rand(3, generator=None),
    "like dtype": lambda: torch.rand_like(torch.ones(3, dtype=torch.int64), dtype=F64),
    "like": lambda: torch.randn_like(torch.ones(2, 3, dtype=torch.half)),
    "randint": lambda: torch.randint(3, (4,)),
    "randint low": lambda: torch.randint(-3, 3, (4,)),
    "randint low=": lambda: torch.randint(low=-3, high=3, size=(4,)),
    "randint high=": lambda: torch.randint(high=3, size=(4,)),
    "randint dtype": lambda: torch.randint(0, 200, (4,), dtype=torch.uint8),
    "randint float": lambda: torch.randint(0, 9, (4,), dtype=torch.float32),
    "randint wide": lambda: torch.randint(-(2**62), 2**61, (4,)),
    "randint all": lambda: torch.randint(-(2**63), 2**63 - 1, (4,)),
    "randint out": lambda: torch.randint(9, (4,), out=torch.empty(0, dtype=torch.int32)),
    "randint_like": lambda: torch.randint_like(torch.ones(4), 9),
    "randint_like low": lambda: torch.randint_like(torch.ones(4), 3, 9, dtype=torch.int16),
    "randperm": lambda: torch.randperm(5),
    "randperm dtype": lambda: torch.randperm(5, dtype=torch.int32),
    "randperm 0": lambda: torch.randperm(0),
    "bernoulli": lambda: torch.bernoulli(torch.full((4,), 0.5, dtype=F64)),
    "bernoulli p": lambda: torch.bernoulli(torch.ones(4), p=0.5),
    "bernoulli out": lambda: torch.bernoulli(torch.full((4,), 0.5), out=torch.empty(0)),
    "bernoulli_ int": lambda: torch.zeros(4, dtype=torch.int64).bernoulli_(),
    "bernoulli_ bool": lambda: torch.zeros(4, dtype=torch.bool).bernoulli_(torch.tensor(0.5)),
    "normal": lambda: torch.normal(torch.zeros(3, 1), torch.ones(2)),
    "normal mean": lambda: torch.normal(torch.zeros(3)),
    "normal std=": lambda: torch.normal(0.0, std=torch.ones(3, dtype=F64)),
    "normal size": lambda: torch.normal(0.0, 1.0, (2, 3), dtype=F64),
    "normal size=": lambda: torch.normal(mean=0.0, std=1.0, size=(2, 3)),
    "normal out": lambda: torch.normal(torch.zeros(3), 1.0, out=torch.empty(3)),
    "uniform_": lambda: torch.zeros(3).uniform_(2, 3),
    "uniform_ from": lambda: torch.zeros(3).uniform_(**{"from": 2, "to": 3}),
    "uniform_ empty": lambda: torch.zeros(0).uniform_(),
    "normal_ complex": lambda: torch.zeros(3, dtype=torch.complex64).normal_(),
    "exponential_": lambda: torch.zeros(3, dtype=torch.bfloat16).exponential_(lambd=2.0),
    "rrelu eval": lambda: F.rrelu(-torch.ones(3)),
    "dropout of a channel": lambda: F.dropout1d(torch.ones(3, 4), 0.5),
    "autocast": lambda: autocast(lambda: F.dropout(torch.ones(3), 0.5)),
    "autocast attention": lambda: autocast(
        lambda: F.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 3)] * 3, dropout_p=0.5)
    ),
    "half attention": lambda: F.scaled_dot_product_attention(
        *[torch.ones(1, 1, 2, 3, dtype=torch.bfloat16)] * 3, dropout_p=0.5
    ),
}


def autocast(fn):
    with torch.autocast("cpu", torch.bfloat16):
        return fn()


@pytest.mark.parametrize("name", CALLS)
def test_form_is_torchs(name):
    theirs, ours = CALLS[name](), once(CALLS[name])
    for what in ("shape", "dtype", "device", "layout", "requires_grad"):
        assert getattr(ours, what) == getattr(theirs, what), what


WRONG = {
    "p": lambda: F.dropout(torch.ones(3), 1.5),
    "torch p": lambda: torch.dropout(torch.ones(3), -0.5, True),
    "alpha p": lambda: torch.alpha_dropout(torch.ones(3), 2.0, True),
    "no channels": lambda: torch.feature_dropout(torch.ones(3), 0.5, True),
    "dropout1d": lambda: F.dropout1d(torch.ones(3), 0.5),
    "uniform_": lambda: torch.ones(3).uniform_(2, 1),
    "normal_": lambda: torch.ones(3).normal_(0, -1),
    "exponential_": lambda: torch.ones(3).exponential_(-1),
    "bernoulli_": lambda: torch.ones(3).bernoulli_(1.5),
    "normal": lambda: torch.normal(torch.ones(3), -1.0),
    "randint": lambda: torch.randint(3, 3, (2,)),
    "randint type": lambda: torch.randint(0, 300, (2,), dtype=torch.uint8),
    "randint nothing": lambda: torch.randint(3),
    "rand int": lambda: torch.rand(3, dtype=torch.int64),
    "rand_like int": lambda: torch.rand_like(torch.ones(3, dtype=torch.int64)),
    "keyword": lambda: torch.rand(3, nonsense=1),
    "missing": lambda: torch.dropout(torch.ones(3), 0.5),
    "leaf": lambda: torch.ones(3, requires_grad=True).normal_(),
    "leaf dropout": lambda: F.dropout(torch.ones(3, requires_grad=True), 0.5, inplace=True),
    "two masks": lambda: F.scaled_dot_product_attention(
        *[torch.ones(1, 2, 2)] * 3, attn_mask=torch.ones(2, 2), is_causal=True, dropout_p=0.5
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_torchs(name):
    with pytest.raises((RuntimeError, ValueError, TypeError)) as theirs:
        WRONG[name]()
    with pytest.raises((RuntimeError, ValueError, TypeError)) as ours:
        once(WRONG[name])
    assert type(ours.value) is type(theirs.value)
    # an address of torch's own sources may follow
    assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


ATTENTION = [
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"scale": -0.3},
    {"attn_mask": "bool"},
    {"attn_mask": "float"},
    {"attn_mask": "blind"},
    {"enable_gqa": True},
]


@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_attention_is_torchs_with_the_mask_of_its_draw(options, device):
    heads = 2 if options.get("enable_gqa") else 4
    q = torch.randn(2, 4, 5, 8, dtype=F64, device=device, requires_grad=True)
    k, v = (torch.randn(2, heads, 7, 8, dtype=F64, device=device, requires_grad=True) for _ in range(2))
    masks = {
        "bool": torch.rand(5, 7, device=device) < 0.7,
        "float": torch.randn(5, 7, dtype=F64, device=device),
        "blind": torch.arange(5, device=device)[:, None] > torch.zeros(7, device=device),
    }
    options = {**options, **({"attn_mask": masks[options["attn_mask"]]} if "attn_mask" in options else {})}
    eye = torch.eye(7, dtype=F64, device=device).expand(2, heads, 7, 7)
    noise = once(F.dropout, torch.ones(2, 4, 5, 7, dtype=F64, device=device), 0.3)
    weights = F.scaled_dot_product_attention(q, k, eye, **options)
    true = (weights * noise) @ v.repeat_interleave(4 // heads, 1)
    ours = once(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, **options))
    torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(out.sin().sum(), (q, k, v)) for out in (ours, true)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_plain_attention_is_torchs_and_has_second_derivatives(options, device):
    heads = 2 if options.get("enable_gqa") else 4
    q = torch.randn(1, 4, 3, 2, dtype=F64, device=device, requires_grad=True)
    k, v = (torch.randn(1, heads, 2, 2, dtype=F64, device=device, requires_grad=True) for _ in range(2))
    masks = {
        "bool": torch.tensor([[True, False], [True, True], [False, True]], device=device),
        "float": torch.randn(3, 2, dtype=F64, device=device),
        "blind": torch.tensor([[True, False], [False, False], [False, True]], device=device),
    }
    options = {**options, **({"attn_mask": masks[options["attn_mask"]]} if "attn_mask" in options else {})}
    ours, true = (
        lambda q, k, v: once(lambda: F.scaled_dot_product_attention(q, k, v, **options), scan="plain"),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options),
    )
    outs = ours(q, k, v), true(q, k, v)
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(out.sin().sum(), (q, k, v)) for out in outs]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradgradcheck(ours, (q, k, v))


def test_attention_without_dropout_is_left_alone():
    q = torch.randn(1, 2, 5, 8)
    assert torch.equal(once(lambda: F.scaled_dot_product_attention(q, q, q)), F.scaled_dot_product_attention(q, q, q))
    assert not once(lambda: F.scaled_dot_product_attention(q, q, q, dropout_p=1.0)).any()


# ---- models

MODELS = {
    "attention": lambda: Self(nn.MultiheadAttention(8, 2, dropout=0.3), need_weights=False),
    "attention with weights": lambda: Self(nn.MultiheadAttention(8, 2, dropout=0.3)),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3),
    "lstm": lambda: First(nn.LSTM(8, 5, 3, dropout=0.3, bidirectional=True)),
    "gru": lambda: First(nn.GRU(8, 5, 2, dropout=0.3)),
    "rnn": lambda: First(nn.RNN(8, 5, 2, dropout=0.3)),
    "mlp": lambda: nn.Sequential(nn.Linear(8, 8), nn.AlphaDropout(0.3), nn.SELU(), nn.RReLU(), nn.Dropout(0.3)),
}


class First(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)[0]


class Self(First):
    def __init__(self, net, **options):
        super().__init__(net)
        self.options = options

    def forward(self, x):
        return self.net(x, x, x, **self.options)[0]


def loss_of(net):
    return lambda params, x: functional_call(net, params, (x,)).square().sum()


@pytest.mark.parametrize("name", MODELS)
def test_models(name, device):
    check_model(name, device)


def check_model(name, device="cpu"):
    net = MODELS[name]().to(device, F64)
    params = {k: v.detach() for k, v in net.named_parameters()}
    xs = torch.randn(4, 3, 8, dtype=F64, device=device)
    found = rows(loss_of(net), params, xs)
    for i, sample in enumerate(IDS):
        one = alone(loss_of(net), params, xs[i], sample, device=device)
        scale = sum(g.square().sum() for g in one.values()).sqrt()
        assert all((found[k][i] - g).abs().max() <= 1e-12 * scale for k, g in one.items())
        assert once(lambda i=i: loss_of(net)(params, xs[i]), sample=sample) != loss_of(net.eval())(params, xs[i])
        net.train()


@pytest.mark.parametrize("scan", [None, "plain", "fast"])
@pytest.mark.parametrize("train", [False, True])
def test_recurrences_that_do_not_draw_are_left_alone_unless_asked(scan, train):
    net = nn.LSTM(3, 4, 2, dropout=0.5 if not train else 0.0).train(train)
    x = torch.randn(5, 2, 3)
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        once(net, x, scan=scan)
        once(nn.GRUCell(3, 4), x[0], scan=scan)
    assert (torch.lstm in seen) == (torch.gru_cell in seen) == (scan is None)


# ---- checkpointing


class Net(nn.Module):
    """Dropout before, between, in and after checkpointed regions, one of them nested."""

    def __init__(self, *, regions, preserve=True):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6, dtype=F64) for _ in range(4))
        self.regions, self.preserve = regions, preserve

    def region(self, fn, x):
        if not self.regions:
            return fn(x)
        return checkpoint(fn, x, use_reentrant=False, preserve_rng_state=self.preserve)

    def inner(self, x):
        return F.dropout(self.layers[0](F.dropout(x, 0.3)).tanh(), 0.3)

    def outer(self, x):
        x = F.dropout(x, 0.3) * self.region(self.inner, x)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)
        return F.dropout(self.layers[1](x), 0.3)

    def last(self, x):
        return self.layers[2](x * torch.rand_like(x)).tanh()

    def forward(self, x):
        x = self.region(self.outer, F.dropout(x, 0.3))
        x = self.region(self.last, F.dropout(x, 0.3))
        return self.layers[3](F.dropout(x, 0.3))


def nets(**options):
    nets = [Net(regions=False), Net(regions=True, **options)]
    nets[1].load_state_dict(nets[0].state_dict())
    return nets


def check_checkpoint(device="cpu"):
    """Exactly the gradients of the model without, twice, for several passes under one mode in any order."""
    plain, checked = (net.to(device) for net in nets())
    xs = torch.randn(3, 4, 6, dtype=F64, device=device)
    found = []
    for net in (plain, checked):
        with swapped(device=device) as swap:
            losses = []
            for sample in range(3):
                swap.begin(sample)
                losses.append(net(xs[sample]).square().sum())
            grads = {}
            for sample in (2, 0, 1, 1, 0):
                with swap.backward():
                    again = torch.autograd.grad(losses[sample], list(net.parameters()), retain_graph=True)
                assert sample not in grads or same_bits(grads[sample], again)
                grads[sample] = again
        found.append([grads[sample] for sample in range(3)])
    assert same_bits(*found)
    return found[0]


def test_checkpoint(device):
    check_checkpoint(device)


def test_checkpoint_of_several_forks():
    """As in a loop with one fork and one mode a sample."""
    plain, checked = nets()
    xs = torch.randn(3, 4, 6, dtype=F64)
    for sample in range(3):
        a, b = (
            alone(lambda p, x, net=net: functional_call(net, p, (x,)).sum(), dict(net.named_parameters()), x, sample)
            for net, x in ((plain, xs[sample]), (checked, xs[sample]))
        )
        assert same_bits(a, b)


@pytest.mark.parametrize("call", [torch.Tensor.backward, torch.autograd.backward], ids=["method", "function"])
def test_checkpoint_and_backward_by_other_names(call):
    found = []
    for net in nets():
        with swapped() as swap:
            swap.begin(0)
            loss = net(torch.ones(4, 6, dtype=F64)).sum()
            with swap.backward():
                call(loss)
        found.append([p.grad for p in net.parameters()])
    assert same_bits(*found)


def test_checkpoint_under_several_cotangents():
    plain, checked = nets()
    x = torch.randn(4, 6, dtype=F64)
    found = []
    for net in (plain, checked):
        with swapped() as swap:
            swap.begin(0)
            out = net(x).sum(1)
            with swap.backward():
                found.append(
                    torch.autograd.grad(out, list(net.parameters()), torch.eye(4).to(F64), is_grads_batched=True)
                )
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_checkpoint_and_a_gradient_inside_the_loss():
    def run(net):
        with swapped() as swap:
            swap.begin(0)
            x = torch.ones(4, 6, dtype=F64, requires_grad=True)
            (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            loss = (slope * torch.rand_like(slope)).sum() + F.dropout(net(x), 0.3).sum()
            with swap.backward():
                return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)

    assert same_bits(*map(run, nets()))


def test_checkpoint_without_the_generators_state_is_refused():
    _, net = nets(preserve=False)
    with swapped() as swap:
        swap.begin(0)
        loss = net(torch.ones(4, 6, dtype=F64)).sum()
        with swap.backward(), pytest.raises(RuntimeError, match="preserve_rng_state"):
            torch.autograd.grad(loss, list(net.parameters()))


def check_a_backward_that_draws():
    """Its draws repeat, are not those of the forward pass, and leave the generators as they were."""

    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * torch.rand_like(x)

        @staticmethod
        def backward(ctx, g):
            return g * torch.rand_like(g) * torch.multinomial(torch.ones(99), len(g))

    x = torch.ones(50, requires_grad=True)
    with swapped() as swap:
        swap.begin(4)
        out = Noisy.apply(x)
        found, before = [], torch.get_rng_state()
        for _ in range(2):
            with swap.backward():
                found.append(torch.autograd.grad(out.sum(), x, retain_graph=True)[0])
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*found)
    assert not torch.equal(found[0] > found[0].median(), out > out.median())


def test_a_backward_that_draws():
    check_a_backward_that_draws()


# ---- surroundings


def attention_arguments():
    weights = torch.randn(24, 8), torch.zeros(24), None, None, False, 0.3, torch.randn(8, 8), torch.zeros(8)
    return *[torch.randn(3, 8)] * 3, 8, 2, *weights


def check_leaves_nothing_behind():
    arguments = attention_arguments()
    before = torch.get_rng_state()
    names = dict(vars(F))
    once(F.multi_head_attention_forward, *arguments)
    with swapped() as swap:
        swap.begin(0)
        loss = F.dropout(torch.ones(3, requires_grad=True), 0.5).sum()
        with swap.backward():
            loss.backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.overrides._get_current_function_mode_stack() == []
    assert names == vars(F)
    assert F.dropout.__globals__ is vars(F)


def check_global_state_is_unchanged(device="cpu"):
    net = MODELS["encoder"]().to(device)
    x = torch.ones(2, 8, device=device)
    states = [torch.get_rng_state, *([torch.cuda.get_rng_state] if device == "cuda" else [])]
    before = [state() for state in states]
    with swapped(device=device) as swap:
        swap.begin(0)
        loss = net(x).sum() + torch.multinomial(torch.ones(3, device=device), 1).sum()
        with swap.backward():
            torch.autograd.grad(loss, list(net.parameters()))
    assert same_bits(before, [state() for state in states])


def test_global_state_is_unchanged(device):
    check_global_state_is_unchanged(device)


def test_leaves_nothing_behind():
    check_leaves_nothing_behind()


def test_leaves_nothing_behind_after_an_error():
    with pytest.raises(ZeroDivisionError):
        once(lambda: F.dropout(torch.ones(3), 0.5) / (1 // 0))
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("name", ALL)
def test_error_refuses(name):
    with pytest.raises(RuntimeError, match="randomness='error'") as ours:
        once(ALL[name], -torch.ones(4, 6), randomness="error")
    with RefuseDraws("f"), pytest.raises(RuntimeError) as theirs:
        ALL[name](-torch.ones(4, 6))
    ours, theirs = (str(e.value) for e in (ours, theirs))
    assert ours[: ours.index("(")] == theirs[: theirs.index("(")]
    assert ours[ours.index(")") :] == theirs[theirs.index(")") :]


def test_error_lets_the_rest_pass():
    x = torch.ones(3)
    once(
        lambda: (F.dropout(x, 0.5, training=False), F.dropout(x, 0.0), F.dropout(x, 1.0), torch.rand(0)),
        randomness="error",
    )


def test_an_explicit_generator_is_left_alone():
    def fn():
        return torch.rand(4, generator=torch.Generator().manual_seed(3))

    assert torch.equal(once(fn), fn())
    with swapped() as swap:
        swap.begin(0)
        fn()
        assert not swap.drew


def check_a_vmap_inside_the_loss():
    """Draws for its lanes, as torch does: different ones; "same" ones are keyed; "error" refuses."""

    def fn(randomness):
        return vmap(lambda x: F.dropout(x, 0.5) + torch.rand(()), randomness=randomness)(torch.ones(8, 8))

    assert len({tuple(row.tolist()) for row in once(fn, "different")}) == 8
    assert len({tuple(row.tolist()) for row in once(fn, "same")}) == 1
    assert not torch.equal(once(fn, "same"), once(fn, "same", sample=1))
    with pytest.raises(RuntimeError, match="randomness"):
        once(fn, "error")
    # under the outer one's lanes too
    outer = once(
        lambda: vmap(lambda x: vmap(torch.rand_like, randomness="different")(x), randomness="different")(
            torch.ones(2, 3, 4)
        )
    )
    assert len({tuple(row.tolist()) for row in outer.flatten(0, 1)}) == 6


def test_a_vmap_inside_the_loss():
    check_a_vmap_inside_the_loss()


def test_the_list_of_levels_may_be_missing(monkeypatch):
    monkeypatch.setattr(_levels.torch, "_C", object())
    assert _levels.levels() == []


def test_transforms_inside_the_loss():
    def loss(params, x):
        slope = grad(lambda x: (F.dropout(x, 0.5) * params["w"]).sin().sum())(x)
        return (slope * torch.rand_like(slope)).sum()

    params, xs = {"w": torch.randn(6, dtype=F64)}, torch.randn(4, 6, dtype=F64)
    found = rows(loss, params, xs)
    each = [alone(loss, params, x, i)["w"] for x, i in zip(xs, IDS, strict=True)]
    torch.testing.assert_close(found["w"], torch.stack(each), rtol=1e-13, atol=1e-13)


def test_modes_of_the_user():
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def fn():
        with Watch():
            return F.dropout(torch.ones(9), 0.5)

    assert torch.equal(once(fn), once(F.dropout, torch.ones(9), 0.5))
    with Watch():
        assert torch.equal(once(fn), once(F.dropout, torch.ones(9), 0.5))
    assert F.dropout in seen


def test_a_default_device_is_honoured():
    with torch.device("meta"):
        assert once(torch.rand, 3).device.type == "meta"


def test_subclasses_keep_their_ways():
    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return "mine"

    assert once(F.dropout, torch.ones(3).as_subclass(Mine), 0.5) == "mine"


def test_a_seed_set_by_the_loss():
    def fn():
        a = torch.rand(4)
        torch.manual_seed(0)
        return torch.stack([a, torch.rand(4), torch.rand(4)])

    draws = once(fn)
    assert len({tuple(row.tolist()) for row in draws}) == 3
    assert torch.equal(draws, once(fn))
