"""Schemes against torch's bits, and against what they state of themselves."""

from __future__ import annotations

import dataclasses
import math
import pickle

import init_laws as laws
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional as F

from gradfunc import init
from gradfunc._rounding import unit_roundoff
from gradfunc.init import _entries

MATRIX, TALL, CONV, CONV1 = (6, 5), (40, 3), (4, 3, 2, 5), (8, 2, 3)
GAIN = nn.init.calculate_gain("tanh")


def torch_sparse(tensor, generator, **options):
    """Its zeros come from the global generator: that is given the state, and it is read back."""
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    nn.init.sparse_(tensor, **options)
    generator.set_state(torch.get_rng_state())
    torch.set_rng_state(kept)
    return tensor


def truncated(std):
    wide = std / stats.truncnorm(-2, 2).std()
    return lambda t, g: nn.init.trunc_normal_(t, 0.0, wide, -2 * wide, 2 * wide, g)


def by_kaiming(function, **options):
    return lambda t, g: function(t, generator=g, **options)


KAIMING = [
    {},
    {"nonlinearity": "relu"},
    {"nonlinearity": "tanh", "mode": "fan_out"},
    {"nonlinearity": "leaky_relu", "a": 0.3},
    {"a": math.sqrt(5)},
    {"nonlinearity": "selu", "a": 2.0},
    {"nonlinearity": "linear"},
    {"nonlinearity": "conv_transpose2d"},
    {"nonlinearity": "sigmoid", "mode": "fan_out"},
]
FANNED = {
    **{
        f"kaiming_{kind} {k}": (
            getattr(init, f"kaiming_{kind}")(**options),
            by_kaiming(getattr(nn.init, f"kaiming_{kind}_"), **options),
        )
        for kind in ("normal", "uniform")
        for k, options in enumerate(KAIMING)
    },
    **{
        f"xavier_{kind} {gain:.1f}": (
            getattr(init, f"xavier_{kind}")(gain=gain),
            by_kaiming(getattr(nn.init, f"xavier_{kind}_"), gain=gain),
        )
        for kind in ("normal", "uniform")
        for gain in (1.0, GAIN)
    },
    "torch_default": (init.torch_default(), by_kaiming(nn.init.kaiming_uniform_, a=math.sqrt(5))),
}
ANY = {
    "normal": (init.normal(0.3, mean=-1.0), lambda t, g: nn.init.normal_(t, -1.0, 0.3, g)),
    "uniform": (init.uniform(0.3), lambda t, g: nn.init.uniform_(t, -0.3, 0.3, g)),
    "truncated_normal": (init.truncated_normal(0.3), truncated(0.3)),
    "constant": (init.constant(0.3), lambda t, g: nn.init.constant_(t, 0.3)),
    "zeros": (init.zeros(), lambda t, g: nn.init.zeros_(t)),
    "ones": (init.ones(), lambda t, g: nn.init.ones_(t)),
}
MATRICES = {
    "sparse": (init.sparse(0.3), lambda t, g: torch_sparse(t, g, sparsity=0.3)),
    "sparse, std": (init.sparse(0.5, std=2.0), lambda t, g: torch_sparse(t, g, sparsity=0.5, std=2.0)),
    "identity": (init.identity(), lambda t, g: nn.init.eye_(t)),
}
KERNELS = {
    "dirac": (init.dirac(), lambda t, g: nn.init.dirac_(t)),
    "dirac, groups": (init.dirac(groups=2), lambda t, g: nn.init.dirac_(t, 2)),
}
ORTHOGONAL = {
    "orthogonal": (init.orthogonal(), lambda t, g: nn.init.orthogonal_(t, generator=g)),
    "orthogonal, gain": (init.orthogonal(GAIN), lambda t, g: nn.init.orthogonal_(t, GAIN, generator=g)),
}
FLOATS, DTYPES = [torch.float64, torch.float32], [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BITS = [
    pytest.param(pair, shape, dtype, id=f"{name}-{'x'.join(map(str, shape))}-{str(dtype).removeprefix('torch.')}")
    for table, shapes, dtypes in [
        (FANNED, [MATRIX, TALL, CONV], DTYPES),
        (ANY, [MATRIX, (7,), (), (0, 3)], DTYPES),
        (MATRICES, [MATRIX, TALL], DTYPES),
        (KERNELS, [CONV, CONV1, (4, 3, 2, 2, 2)], DTYPES),
        (ORTHOGONAL, [MATRIX, TALL, CONV, (3, 40)], FLOATS),
    ]
    for name, pair in table.items()
    for shape in shapes
    for dtype in dtypes
]


@pytest.mark.parametrize(("pair", "shape", "dtype"), BITS)
def test_the_same_generator_gives_torchs_bits(pair, shape, dtype):
    laws.check_same_bits(*pair, shape, dtype)


DRAWING = {
    **{f"variance_scaling {m} {d}": (init.variance_scaling(1.7, mode=m, distribution=d), d)
       for m in ("fan_in", "fan_out", "fan_avg") for d in ("normal", "uniform", "truncated_normal")},
    "kaiming_normal": (init.kaiming_normal(nonlinearity="relu"), "normal"),
    "kaiming_uniform": (init.kaiming_uniform(a=0.5, mode="fan_out"), "uniform"),
    "xavier_normal": (init.xavier_normal(gain=GAIN), "normal"),
    "xavier_uniform": (init.xavier_uniform(), "uniform"),
    "lecun_normal": (init.lecun_normal(), "normal"),
    "lecun_uniform": (init.lecun_uniform(gain=2.0), "uniform"),
    "torch_default": (init.torch_default(), "uniform"),
    "grouped": (init.kaiming_normal(mode="fan_out", fans=init.fans(groups=4)), "normal"),
    "transposed": (init.lecun_normal(fans=init.fans(transposed=True)), "normal"),
    "normal": (init.normal(0.02, mean=0.5), "normal"),
    "uniform": (init.uniform(0.02), "uniform"),
    "truncated_normal": (init.truncated_normal(0.02), "truncated_normal"),
    "scaled": (init.scaled(init.xavier_uniform(), -0.3), "uniform"),
    "depth_scaled": (init.depth_scaled(init.normal(0.02), 24), "normal"),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(1024, 200), (128, 16, 10, 10)], ids=["matrix", "convolution"])
@pytest.mark.parametrize("name", DRAWING)
def test_the_entries_have_the_mean_and_variance_that_is_stated(name, shape):
    scheme, distribution = DRAWING[name]
    for key, dtype in enumerate(FLOATS):
        laws.check_moments(scheme, shape, distribution, key=key, dtype=dtype)


# By hand, from the papers: the variance that a scheme states.
STATED = {
    "kaiming relu": (init.kaiming_normal(nonlinearity="relu"), (8, 5, 3, 3), 2 / 45),
    "kaiming relu, backward": (init.kaiming_uniform(nonlinearity="relu", mode="fan_out"), (8, 5, 3, 3), 2 / 72),
    "kaiming a": (init.kaiming_normal(a=0.5), (8, 5), 2 / 1.25 / 5),
    "xavier": (init.xavier_uniform(gain=3.0), (8, 5), 9 * 2 / 13),
    "lecun": (init.lecun_normal(), (8, 5), 1 / 5),
    "linear's own": (init.torch_default(), (8, 5), 1 / 15),
    "orthogonal": (init.orthogonal(2.0), (8, 5), 4 / 8),
    "orthogonal, wide": (init.orthogonal(), (4, 2, 3), 1 / 6),
    "delta": (init.delta_orthogonal(), (4, 3, 3, 3), 1 / 4 / 9),
    "sparse": (init.sparse(0.3, std=2.0), (5, 7), 4 * 3 / 5),  # ceil(1.5) = 2 of 5 rows
    "truncated": (init.truncated_normal(0.5), (3,), 0.25),
    "uniform": (init.uniform(0.5), (3,), 0.25 / 3),
    "depth": (init.depth_scaled(init.normal(0.02), 12), (3,), 0.02**2 / 12),
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_the_stated_variance_is_the_papers(name):
    scheme, shape, variance = STATED[name]
    assert scheme.variance(shape) == pytest.approx(variance, rel=1e-14)
    assert scheme.std(shape) == pytest.approx(math.sqrt(variance), rel=1e-14)
    assert scheme.mean(shape) == 0


EXACT = {
    "zeros": (init.zeros(), (3, 4)),
    "ones": (init.ones(), (3,)),
    "constant": (init.constant(-2.5), ()),
    "identity": (init.identity(3.0), (4, 7)),
    "dirac": (init.dirac(groups=2), (6, 4, 3, 3)),
    "dirac, few inputs": (init.dirac(), (6, 2, 4)),
    "layer_scale": (init.layer_scale(depth=24), (9,)),
    "forget": (init.lstm_forget_bias(2.0), (20,)),
    "scaled": (init.scaled(init.identity(), 0.7), (5, 5)),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_does_not_draw_has_exactly_the_moments_that_are_stated(name):
    laws.check_exact_moments(*EXACT[name])


def test_sparse_has_its_zeros_in_each_column_and_normal_entries_elsewhere():
    shape = (500, 400)
    w = init.sparse(0.333, std=3.0)(shape, key=0, dtype=torch.float64)
    assert ((w == 0).sum(dim=0) == math.ceil(0.333 * 500)).all()
    kept = w[w != 0] / 3.0
    n = kept.numel()
    assert stats.chi2.ppf(laws.ALPHA / 2, n) <= float(kept.square().sum()) <= stats.chi2.isf(laws.ALPHA / 2, n)
    assert init.sparse(0.333, std=3.0).variance(shape) * w.numel() == pytest.approx(9.0 * n, rel=1e-13)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(16, 16), (24, 6), (6, 24), (5, 2, 3, 3)], ids=str)
def test_orthogonal(shape, dtype):
    laws.check_orthogonal(init.orthogonal(1.5), shape, 1.5, dtype)


def test_orthogonal_in_half_types_is_that_of_float32_rounded():
    for dtype in (torch.float16, torch.bfloat16):
        made = init.orthogonal(1.5)((6, 4), key=0, dtype=dtype)
        assert torch.equal(made, init.orthogonal(1.5)((6, 4), key=0, dtype=torch.float32).to(dtype))


def test_orthogonal_entries_have_mean_zero():
    # For a uniformly random orthogonal matrix and the unit vector e of equal entries, e^T W e is a coordinate of a
    # uniformly random unit vector: within 1, of mean 0 and variance 1/n. It is the sum of the entries, over n.
    n, draws = 8, 2000
    generator = torch.Generator().manual_seed(0)
    sums = [float(init.orthogonal()((n, n), generator=generator, dtype=torch.float64).sum()) / n for _ in range(draws)]
    assert abs(sum(sums) / draws) <= laws.bernstein(draws, 1 / n, 1.0)


@pytest.mark.parametrize("shape", [(5, 3, 4), (4, 4, 3, 3), (6, 4, 3, 2), (3, 2, 3, 3, 3)], ids=str)
def test_delta_orthogonal_keeps_the_norm_of_a_circular_convolution(shape):
    laws.check_delta(init.delta_orthogonal(1.3), shape, 1.3)


def test_delta_orthogonal_with_fewer_outputs_keeps_the_norm_backwards():
    w = init.delta_orthogonal()((2, 5, 3), key=0, dtype=torch.float64)
    g = torch.randn(1, 2, 7, dtype=torch.float64)
    back = torch.nn.grad.conv1d_input((1, 5, 9), w, g)
    bound = laws.orthogonality_bound(2, 5, torch.float64)
    assert abs(float(back.norm() / g.norm()) - 1) <= bound


RADII = {
    "normal": (init.spectral_radius(0.9), (30, 30)),
    "gates": (init.spectral_radius(1.1, base=init.uniform()), (60, 15)),
    "orthogonal": (init.spectral_radius(0.5, base=init.orthogonal()), (36, 12)),
    "identity": (init.spectral_radius(0.5, base=init.identity()), (9, 3)),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", RADII)
def test_each_square_block_has_the_spectral_radius(name, dtype):
    scheme, shape = RADII[name]
    laws.check_radius(scheme, shape, scheme.radius, dtype)


def test_the_blocks_of_a_spectral_radius_are_draws_of_their_own():
    a, b = init.spectral_radius(0.9)((8, 4), key=0).split(4)
    assert not torch.equal(a, b)


def test_a_forget_bias_opens_the_gate_that_torch_calls_second():
    cell = nn.LSTMCell(3, 5, dtype=torch.float64)
    params = {name: torch.zeros_like(value) for name, value in cell.named_parameters()}
    params["bias_hh"] = init.lstm_forget_bias(0.7)((20,), dtype=torch.float64)
    x, c = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64)
    _, after = torch.func.functional_call(cell, params, (x, (torch.zeros_like(c), c)))
    # With all else 0 the new cell is sigmoid(forget) c + sigmoid(0) tanh(0).
    assert float((after - torch.sigmoid(torch.tensor(0.7, dtype=torch.float64))).abs().max()) <= 4 * unit_roundoff(
        torch.float64
    )


def test_layer_scale_goes_by_depth_as_in_cait():
    want = {1: 0.1, 18: 0.1, 19: 1e-5, 24: 1e-5, 25: 1e-6, 48: 1e-6}
    assert {depth: init.layer_scale(depth=depth).mean((4,)) for depth in want} == want
    assert init.layer_scale(0.3) == init.constant(0.3)


def test_the_constant_of_the_truncated_normal():
    assert pytest.approx(float(stats.truncnorm(-2, 2).std()), rel=1e-14) == _entries.TRUNCATED_STD
    bounded = init.truncated_normal(0.5)((1000,), key=0, dtype=torch.float64)
    assert float(bounded.abs().max()) <= 2 * 0.5 / _entries.TRUNCATED_STD
    assert not init.truncated_normal(0.0)((3,), key=0).any()
    assert not init.variance_scaling(0.0, distribution="truncated_normal")((3, 3), key=0).any()


@settings(max_examples=40)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    transposed=st.booleans(),
)
def test_fans_count_what_an_entry_away_from_the_border_sees_and_reaches(groups, inputs, outputs, kernel, transposed):
    layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(
        groups * inputs, groups * outputs, kernel, groups=groups, bias=False
    )
    x = torch.ones(1, groups * inputs, 9, 9, requires_grad=True)
    out = torch.func.functional_call(layer, {"weight": torch.ones_like(layer.weight)}, (x,))
    (reached,) = torch.autograd.grad(out.sum(), x)
    counted = init.fans(groups=groups, transposed=transposed)(tuple(layer.weight.shape))
    assert counted == (int(out[0, 0, 4, 4]), int(reached[0, 0, 4, 4]))
    if groups == 1 and not transposed:
        assert counted == nn.init._calculate_fan_in_and_fan_out(layer.weight)


def test_a_transposed_convolution_keeps_the_variance_with_its_own_fans():
    # E|out|^2 = E|x|^2 exactly where sum of squares of weights into an output averages 1: by the stated variance.
    layer = nn.ConvTranspose1d(12, 4, 3)
    shape = tuple(layer.weight.shape)
    scheme = init.lecun_normal(fans=init.fans(transposed=True))
    assert scheme.variance(shape) * 12 * 3 == pytest.approx(1.0, rel=1e-15)
    assert init.lecun_normal().variance(shape) * 12 * 3 == pytest.approx(3.0, rel=1e-15)


ALL = {
    **{name: (pair[0], MATRIX) for name, pair in {**FANNED, **ANY, **MATRICES, **ORTHOGONAL}.items()},
    **{name: (pair[0], CONV) for name, pair in KERNELS.items()},
    **{name: (scheme, (16, 16)) for name, (scheme, _) in DRAWING.items()},
    **{name: case[:2] for name, case in STATED.items()},
    **{f"exact {name}": case for name, case in EXACT.items()},
    **{f"radius {name}": case for name, case in RADII.items()},
}


@pytest.mark.parametrize("name", ALL)
def test_a_scheme_is_a_value(name):
    scheme, shape = ALL[name]
    assert eval(str(scheme), dict(vars(init))) == scheme  # as it prints, so it is made
    assert hash(pickle.loads(pickle.dumps(scheme))) == hash(scheme)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.said = "other"
    made = scheme(shape, key=4)
    assert made.dtype == torch.float32
    assert tuple(made.shape) == shape
    assert torch.equal(made, scheme(list(shape), key=4))
    assert made.data_ptr() != scheme(shape, key=4).data_ptr() or not made.numel()
    assert not made.requires_grad
    assert torch.equal(made, scheme(shape, key=5)) == (not scheme.draws)
    if scheme.draws:
        with pytest.raises(TypeError, match=r"neither generator= nor key=; expected one of them"):
            scheme(shape)
    else:
        assert torch.equal(scheme(shape), made)


@pytest.mark.parametrize("name", ALL)
def test_the_global_generator_neither_moves_nor_matters(name):
    scheme, shape = ALL[name]
    laws.check_global_untouched(lambda: scheme(shape, key=1))


def test_a_key_and_the_default_dtype_and_device(device):
    scheme = init.xavier_uniform()
    made = scheme((3, 4), key=2, device=device)
    assert made.device.type == device
    assert torch.equal(made.cpu(), scheme((3, 4), key=2, device="cpu"))
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert scheme((3, 4), key=2).dtype == torch.float64
    finally:
        torch.set_default_dtype(previous)
    with torch.device("meta"):
        assert scheme((3, 4), key=2).is_meta
        assert torch.equal(scheme((3, 4), key=2, device="cpu"), scheme((3, 4), key=2, device="cpu"))
        assert torch.equal(init.sparse(0.5)((4, 4), key=0, device="cpu"), init.sparse(0.5)((4, 4), key=0, device="cpu"))


def test_shapes_without_entries():
    for scheme, shape in [
        (init.kaiming_normal(), (0, 3)),
        (init.kaiming_normal(), (3, 0)),
        (init.orthogonal(), (0, 3)),
        (init.delta_orthogonal(), (0, 3, 3)),
        (init.dirac(), (0, 3, 3)),
        (init.sparse(0.5), (0, 3)),
        (init.normal(), (0,)),
    ]:
        assert tuple(scheme(shape, key=0).shape) == shape
        assert math.isnan(scheme.variance(shape))
        assert math.isnan(scheme.mean(shape))


def test_what_has_no_closed_form_states_nothing():
    assert math.isnan(init.spectral_radius(0.9).std((3, 3)))


# The paper's claim itself: a ReLU layer keeps the scale of what it is given.
def test_kaiming_keeps_the_scale_of_a_relu_network_on_average():
    generator, width = torch.Generator().manual_seed(0), 400
    x = torch.randn(width, 256, generator=generator, dtype=torch.float64)
    w = init.kaiming_normal(nonlinearity="relu")((width, width), generator=generator, dtype=torch.float64)
    for column in (F.relu(x)).T[:4]:
        # Given the input, each output is normal of variance 2 |relu(x)|^2 / width: chi-square exactly.
        square = float((w @ column).square().sum() / (2 * column.square().sum() / width))
        assert stats.chi2.ppf(laws.ALPHA / 2, width) <= square <= stats.chi2.isf(laws.ALPHA / 2, width)


BAD = {
    "no dimensions for fans": (lambda: init.kaiming_normal()((3,), key=0), ValueError, r"shape \(3,\); expected two"),
    "no dimensions, stated": (lambda: init.lecun_normal().std((3,)), ValueError, r"lecun_normal\(\).variance\(shape\)"),
    "matrix for orthogonal": (lambda: init.orthogonal()((3,), key=0), ValueError, "expected two dimensions or more"),
    "kernel for delta": (lambda: init.delta_orthogonal()((3, 3), key=0), ValueError, "three to five dimensions"),
    "kernel for dirac": (lambda: init.dirac()((3, 3)), ValueError, "three to five dimensions"),
    "groups for dirac": (lambda: init.dirac(groups=2)((3, 3, 3)), ValueError, "groups=2; expected a first dimension"),
    "matrix for identity": (lambda: init.identity()((3, 3, 3)), ValueError, "expected two dimensions"),
    "matrix for sparse": (lambda: init.sparse(0.1)((3,), key=0), ValueError, "expected two dimensions"),
    "square blocks": (lambda: init.spectral_radius(1.0)((5, 3), key=0), ValueError, r"of k gates above each other"),
    "radius 0": (lambda: init.spectral_radius(1.0, base=init.zeros())((3, 3)), ValueError, "draw of spectral radius 0"),
    "four gates": (lambda: init.lstm_forget_bias()((6,)), ValueError, "the bias of four gates"),
    "fans, groups": (lambda: init.kaiming_normal(fans=init.fans(groups=2))((3, 3), key=0), ValueError, "they divide"),
    "shape": (lambda: init.zeros()(3), TypeError, "an int as shape; expected a tuple of ints"),
    "a size": (lambda: init.zeros()((3, -1)), ValueError, "a size=-1; expected an int >= 0"),
    "dtype": (lambda: init.zeros()((3,), dtype=torch.int64), TypeError, "expected a floating dtype"),
    "both": (lambda: init.zeros()((3,), key=0, generator=torch.Generator()), ValueError, "and key=; expected one"),
    "key": (lambda: init.normal()((3,), key="a"), TypeError, "key='a'; expected an int >= 0"),
    "generator": (lambda: init.normal()((3,), generator=3), TypeError, "an int; expected a torch.Generator"),
    "no number": (lambda: init.normal("a"), TypeError, r"gf.init.normal\(std\): got std='a'; expected a number"),
    "negative std": (lambda: init.truncated_normal(-1.0), ValueError, "std=-1.0; expected a finite number >= 0"),
    "bound": (lambda: init.uniform(math.inf), ValueError, "bound=inf; expected a finite number >= 0"),
    "constant": (lambda: init.constant(math.nan), ValueError, "value=nan; expected a finite number"),
    "gain": (lambda: init.xavier_normal(gain=-1.0), ValueError, r"gf.init.xavier_normal\(gain=...\): got gain=-1.0"),
    "mode": (lambda: init.variance_scaling(mode="fan"), ValueError, "mode='fan'; expected mode to be one of 'fan_in'"),
    "distribution": (lambda: init.variance_scaling(distribution="t"), ValueError, "distribution='t'; expected"),
    "nonlinearity": (lambda: init.kaiming_normal(nonlinearity="gelu"), ValueError, r"variance_scaling\(gain=...\)"),
    "a": (lambda: init.kaiming_uniform(a="b"), TypeError, "a='b'; expected a number"),
    "kaiming's average": (lambda: init.kaiming_uniform(mode="fan_avg"), ValueError, r"xavier_normal\(\) takes"),
    "fans": (lambda: init.lecun_normal(fans=(3, 4)), TypeError, "a tuple as fans; expected a function from a shape"),
    "fans of 0": (lambda: init.lecun_normal(fans=lambda s: (0, 1))((2, 2), key=0), ValueError, r"fans \(0, 1\)"),
    "groups": (lambda: init.fans(groups=0), ValueError, "groups=0; expected an int >= 1"),
    "transposed": (lambda: init.fans(transposed=1), TypeError, "transposed=1; expected True or False"),
    "sparsity": (lambda: init.sparse(1.1), ValueError, r"sparsity=1.1; expected a number in \[0, 1\]"),
    "dirac's groups": (lambda: init.dirac(groups=1.5), TypeError, "groups=1.5; expected an int >= 1"),
    "radius": (lambda: init.spectral_radius(0.0), ValueError, "radius=0.0; expected a finite number > 0"),
    "base": (lambda: init.spectral_radius(1.0, base="normal"), TypeError, "base='normal'; expected a scheme"),
    "scaled": (lambda: init.scaled(2.0, 2.0), TypeError, "scheme=2.0; expected a scheme"),
    "factor": (lambda: init.scaled(init.ones(), math.inf), ValueError, "factor=inf; expected a finite number"),
    "layers": (lambda: init.depth_scaled(init.ones(), 0), ValueError, "layers=0; expected an int >= 1"),
    "layer scale": (lambda: init.layer_scale(), ValueError, "value=None and depth=None; expected one of them"),
    "layer scale, both": (lambda: init.layer_scale(0.1, depth=3), ValueError, "value=0.1 and depth=3; expected one of"),
    "depth": (lambda: init.layer_scale(depth=0), ValueError, "depth=0; expected an int >= 1"),
    "generator's seed": (lambda: init.generator("a", "b"), TypeError, "seed='a'; expected an int >= 0"),
    "generator's name": (lambda: init.generator(0, 3), TypeError, "name=3; expected a str"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name):
    act, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        act()


class Elsewhere(torch.Generator):
    device = torch.device("cuda")


def test_a_generator_of_another_device_is_refused():
    with pytest.raises(ValueError, match="a generator on cuda; expected one on the CPU"):
        init.normal()((3,), generator=Elsewhere())
