"""find_nonfinite on planted faults: which sample, operation, pass, line, range; healthy batches; mutants."""

import dataclasses
import json
import statistics
import time
import warnings

import pytest
import torch
from planted_nonfinite import ALSO, BAD, CASES, PRECISION, SIZE, planted
from tiers import every
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo.problems import made

import gradfunc as gf
from gradfunc._nonfinite import _facts, _watch
from gradfunc._random import generator_states, same_states
from gradfunc._zoo import MODELS
from gradfunc.diagnose._nonfinite import _find, _passes, _search

CRITERION = gf.whole(lambda model, x: model(x).mean(-1))


def find(model, criterion, batch, **options):
    return gf.diagnose.find_nonfinite(model, criterion, batch, **options)


def check_planted(name, bad=BAD):
    case = CASES[name]
    found = find(*planted(case, bad)[:1], CRITERION, planted(case, bad)[1])
    assert not found.ok
    assert (found.samples, found.alone) == ((bad,), True)
    assert (found.operation, found.direction, found.layer) == (case.operation, case.direction, "inner")
    assert (found.pattern, found.precision) == (case.pattern, case.precision)
    place, line = found.where.rsplit(":", 1)
    assert place.endswith("planted_nonfinite.py")
    assert int(line) in case.lines
    assert found.what == {"forward": "loss", "backward": "gradient"}[case.direction]
    assert found.after == "embed"
    assert found.safe in str(found)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_found(name):
    check_planted(name)


def test_there_are_as_many_faults_as_promised_each_in_both_passes():
    assert len(CASES) >= 30
    directions = [case.direction for case in CASES.values()]
    assert min(directions.count("forward"), directions.count("backward")) >= 15


@pytest.mark.parametrize("bad", [0, 31, SIZE - 1])
@pytest.mark.parametrize("name", ["log", "where sqrt"])
def test_the_sample_is_found_wherever_it_is(name, bad):
    check_planted(name, bad)


@pytest.mark.parametrize("name", CASES)
def test_without_the_bad_sample_nothing_is_found(name):
    net, x = planted(CASES[name], None)
    found = find(net, CRITERION, x)
    assert found.ok
    assert str(found) == f"The loss and all gradients of {SIZE} samples are finite (float32)."


def test_ranges_are_those_of_the_sample():
    found = check_planted("log below")
    (only,) = found.ranges
    assert (only.name, only.low, only.high, only.shape, only.dtype) == ("self", -1.0, -1.0, (1, 4), "float32")
    found = check_planted("sqrt")
    assert (found.ranges[0].low, found.ranges[0].zero) == (0.0, True)
    assert found.kernel == "aten.div.Tensor"
    assert [r.name for r in found.kernel_ranges] == ["self", "other"]
    assert found.kernel_ranges[1].high == 0.0
    assert "derivative: other" in str(found)


def test_several_bad_samples_are_listed_up_to_eight():
    case = CASES["log"]
    net, x = planted(case, None)
    x[[3, 9, 60]] = 0
    assert find(net, CRITERION, x).samples == (3, 9, 60)
    x[:] = 0
    assert find(net, CRITERION, x).samples == tuple(range(8))


# What is printed, with the case that it mends: `x` becomes the sample's u, `mask` where it is positive.
MENDED = {
    "log": "log of 0", "log below": "log of a negative", "log softmax": "log of a softmax",
    "log sigmoid": "log of a sigmoid", "sqrt": "sqrt at 0", "sqrt below": "sqrt of a negative", "norm": "norm at 0",
    "exp": "exp overflow", "division": "division by 0", "power": "power at 0", "power below": "power of a negative",
    "attention": "empty attention mask", "masked mean": "empty mask", "where sqrt": "where", "where log": "where",
    "acos": "end of [-1, 1]", "atanh": "end of [-1, 1]", "logit": "end of [0, 1]",
    "acosh": "end of [1, inf)", "determinant": "singular matrix", "pole": "pole",
}  # fmt: skip


@pytest.mark.parametrize("name", MENDED)
def test_the_safe_form_that_is_printed_is_safe(name):
    case, (fault,) = CASES[name], [fault for fault in gf.diagnose.FAULTS if fault.name == MENDED[name]]
    assert case.pattern == fault.name
    functions = {
        "where sqrt": torch.sqrt,
        "where log": torch.log,
        "acos": torch.acos,
        "atanh": torch.atanh,
        "pole": torch.lgamma,
    }
    function = functions.get(name)

    def safe(u, x):
        names = {"x": u, "a": u, "b": 2 * u, "scores": u, "logits": 60 * u, "mask": x > 0, "p": 0.3, "f": function}
        names |= {"x": 1 + u} if name == "acosh" else {}
        names |= {"a": torch.diag_embed(u)} if name == "determinant" else {}
        out = eval(fault.safe, {"torch": torch, "F": F, "other": 0.0, **names})
        out = out[1][:, None] if name == "determinant" else out
        return out.reshape(-1, 1).expand(len(u), -1) if out.dim() == 0 else out.reshape(len(u), -1)

    net, x = planted(dataclasses.replace(case, fn=safe), BAD)
    assert find(net, CRITERION, x).ok


# --- what is given ------------------------------------------------------------------------------------


def classifier(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.ReLU(), nn.Linear(8, 3))


def data(size=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)


@pytest.mark.parametrize("middle", [(), (nn.BatchNorm1d(8),)], ids=["plain", "batch norm"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_input_that_is_not_finite(middle, value):
    x, y = data()
    x[5, 2] = value
    found = find(classifier(*middle), nn.CrossEntropyLoss(), (x, y))
    assert (found.samples, found.given, found.pattern) == ((5,), "input 0", "input not finite")
    assert (found.precision, found.operation) == (ALSO, "")


def test_a_target_and_a_named_input_that_are_not_finite():
    x, _ = data()
    y = torch.zeros(16, 3)
    y[7] = torch.nan
    assert find(classifier(), nn.MSELoss(), (x, y)).given == "the target"
    x[7] = torch.nan
    found = find(classifier(), nn.MSELoss(), {"input": x, "target": torch.zeros(16, 3)})
    assert (found.given, found.samples) == ("input 'input'", (7,))
    found = find(classifier(), gf.whole(lambda model, x: model(x).square().mean()), x)
    assert (found.given, found.samples) == ("the batch", (7,))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_parameter_that_is_not_finite(value):
    net = classifier()
    with torch.no_grad():
        net[2].weight[1, 1] = value
    found = find(net, nn.CrossEntropyLoss(), data())
    assert (found.given, found.pattern) == ("parameter '2.weight'", "parameter not finite")
    assert found.samples == ()
    assert "every one" in str(found)
    frozen = classifier()
    with torch.no_grad():
        frozen[0].weight.fill_(value)
    frozen[0].weight.requires_grad_(False)
    assert find(frozen, nn.CrossEntropyLoss(), data()).given == "frozen parameter '0.weight'"


def test_all_targets_ignored_is_a_matter_of_the_batch():
    x, y = data()
    found = find(classifier(), nn.CrossEntropyLoss(), (x, torch.full_like(y, -100)))
    assert (found.pattern, found.samples, found.alone) == ("all targets ignored", (), False)
    assert (found.operation, found.layer) == ("aten.nll_loss_forward", "CrossEntropyLoss")
    assert "the batch together" in str(found)
    y[1:] = -100
    assert find(classifier(), nn.CrossEntropyLoss(), (x, y)).ok
    x[0] = torch.nan  # ignored samples are not to blame
    assert find(classifier(), nn.CrossEntropyLoss(), (x, y)).samples == (0,)


def test_a_bad_sample_among_ignored_ones():
    x, y = data()
    y[::2] = -100
    x = x.abs() + 1
    x[9] = 0
    found = find(LogNet(), nn.CrossEntropyLoss(), (x, y))
    assert (found.samples, found.pattern) == ((9,), "log of 0")


class LogNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.out((self.scale * x).log())


def test_samples_that_break_only_together():
    def pairs(u, x):
        return (u[0::2] + u[1::2]).log().repeat_interleave(2, dim=0)

    net, x = planted(dataclasses.replace(CASES["log"], fn=lambda u, x: u), None)
    net.inner.fn = pairs
    x[10], x[11] = 1.0, -1.0
    found = find(net, CRITERION, x)
    assert (found.samples, found.alone, found.pattern) == ((10, 11), False, "log of 0")
    assert found.ranges[0].shape == (1, 4)
    assert "10, 11, together" in str(found)


def test_a_batch_norm_that_refuses_a_sample_alone():
    x, y = data()
    net = nn.Sequential(nn.BatchNorm1d(6), LogNet())
    found = find(net, nn.CrossEntropyLoss(), (x, y))
    assert (found.pattern, found.operation, found.layer) == ("log of a negative", "aten.log", "1")
    assert found.precision == ALSO


# --- precision ----------------------------------------------------------------------------------------

HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
def test_overflow_of_a_half_type_is_precision(dtype):
    net, x = planted(CASES["product"], None)
    x[BAD] = 300.0 if dtype == torch.float16 else 3e19
    x[BAD] *= 1 if dtype == torch.float16 else 10
    found = find(net.to(dtype), CRITERION, x.to(dtype))
    assert (found.samples, found.operation) == ((BAD,), "aten.mul.Tensor")
    assert (found.pattern, found.precision, found.dtype) == ("overflow", PRECISION, str(dtype)[6:])


@pytest.mark.parametrize("dtype", HALF)
def test_a_cast_inside_the_model_is_followed_into_float64(dtype):
    check_cast(dtype)


def check_cast(dtype):
    net, x = planted(dataclasses.replace(CASES["exp"], fn=lambda u, x: (100 * u).to(dtype).exp().float()), BAD)
    x[:BAD], x[BAD + 1 :] = 0.01, 0.01
    found = find(net, CRITERION, x)
    assert (found.samples, found.operation, found.precision) == ((BAD,), "aten.exp", PRECISION)
    assert found.ranges[0].dtype == str(dtype)[6:]


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_is_followed_into_float64(dtype):
    net, x = planted(CASES["matmul"], None)
    x[BAD] = 1e36
    criterion = gf.whole(lambda model, x: model(x).mean(-1))

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with torch.autocast("cpu", dtype=dtype):
                return self.net(x).float()

    x = x if dtype == torch.bfloat16 else x * 1e-6
    found = find(Cast(), criterion, x)
    assert (found.samples, found.precision) == ((BAD,), PRECISION)


def test_a_constant_that_does_not_fit_float64():
    # a literal float32 overflow built by hand stays one: the tool says that it cannot tell or that it stays
    net, x = planted(dataclasses.replace(CASES["log"], fn=lambda u, x: (u - x).log() * 0 + u), BAD)
    found = find(net, CRITERION, x)
    assert (found.pattern, found.precision) == ("log of 0", ALSO)


def test_a_model_that_does_not_run_in_float64():
    def only32(u, x):
        if u.dtype != torch.float32:
            raise TypeError("float32 alone")
        return u.log()

    net, x = planted(dataclasses.replace(CASES["log"], fn=only32), BAD)
    found = find(net, CRITERION, x)
    assert found.samples == (BAD,)
    assert found.precision == "cannot tell: it does not run in float64 (TypeError: float32 alone)"


# --- healthy ------------------------------------------------------------------------------------------


def attended(u, x):
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    scores = (u[:, :, None] * u[:, None, :]).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ u[:, :, None])[..., 0]


def zoo(name):
    module, batch, criterion = made(name, torch.float32)[1:]
    model = MODELS[name]
    return gf.stateless(module, in_dims=model.in_dims, out_dims=model.out_dims), criterion, batch


@pytest.mark.filterwarnings("ignore:Using padding", "ignore:LSTM with projections")  # torch's, of its own kernels
@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_zoo_are_quiet(name):
    assert find(*zoo(name)).ok


@pytest.mark.parametrize("name", every(6, [(name,) for name in MODELS]))
def test_a_parameter_of_a_model_of_the_zoo(name):
    model, criterion, batch = zoo(name)
    broken = next(key for key, kind in MODELS[name].kinds.items() if kind != "-" and key not in MODELS[name].asleep)
    params = {key: value.clone() for key, value in model.params.items()}
    params[broken].view(-1)[:] = torch.nan
    found = find(dataclasses.replace(model, params=params), criterion, batch)
    assert found.given == f"parameter '{broken}'"


HARMLESS = {
    "causal mask": attended,
    "norm at 0": lambda u, x: torch.linalg.vector_norm(u - x, dim=-1, keepdim=True) + u,
    "double where": lambda u, x: torch.where(x > 0.5, torch.where(x > 0.5, u - 0.5, 1.0).sqrt(), 0.0),
    "detached": lambda u, x: u + torch.where(x > 9, (x - x).log(), 0.0),
    "infinite and gone": lambda u, x: u + 1 / (x - x).reciprocal(),
    "maximum": lambda u, x: torch.maximum(u, torch.full_like(u, -torch.inf)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_infinity_that_reaches_nothing_is_no_fault(name):
    net, x = planted(dataclasses.replace(CASES["log"], fn=HARMLESS[name]), None)
    assert find(net, CRITERION, x).ok


@pytest.mark.parametrize("name", ["causal mask", "norm at 0"])
def test_it_is_not_blamed_for_another_fault(name):
    net, x = planted(dataclasses.replace(CASES["log"], fn=lambda u, x: HARMLESS[name](u, x) + u.log()), BAD)
    found = find(net, CRITERION, x)
    assert (found.samples, found.operation) == ((BAD,), "aten.log")


def test_an_operation_that_raises_at_nan():
    x = 0.1 + 0.8 * torch.rand(16, 4, generator=torch.Generator().manual_seed(0))
    x[6] = -1
    net, _ = planted(dataclasses.replace(CASES["log"], fn=lambda u, x: u.sqrt()), None)
    net = nn.Sequential(net, nn.Sigmoid())
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        nn.BCELoss()(net(x), torch.ones(16, 1))
    found = find(net, nn.BCELoss(), (x, torch.ones(16, 1)))
    assert (found.samples, found.operation, found.pattern) == ((6,), "aten.sqrt", "sqrt of a negative")
    assert "between 0 and 1" in found.raised
    assert "raised" in str(found)


def test_an_error_of_the_users_own_passes():
    def raising(model, x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        find(nn.Linear(2, 1), gf.whole(raising), torch.ones(3, 2))
    late = gf.whole(lambda model, x: raising(model, x) if (model(x) * torch.inf).sum() else None)
    with pytest.raises(ZeroDivisionError, match="mine"):
        find(nn.Linear(2, 1), late, torch.ones(3, 2))


def test_sparse_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 1))
    tokens = torch.arange(8)
    criterion = gf.whole(lambda model, tokens: model(tokens)[:, 0])
    assert find(net, criterion, tokens).ok
    with torch.no_grad():
        net[0].weight[3] = 0
        net[1].bias.zero_()
    found = find(net, gf.whole(lambda model, tokens: model(tokens)[:, 0].abs().sqrt()), tokens)
    assert (found.samples, found.operation, found.parameters[0]) == ((3,), "aten.sqrt", "0.weight")


def test_checkpointed_layers():
    def inner(u, x):
        return checkpoint(lambda u: u.sqrt(), u, use_reentrant=False)

    net, x = planted(dataclasses.replace(CASES["sqrt"], fn=inner), BAD)
    found = find(net, CRITERION, x)
    assert (found.samples, found.operation, found.direction) == ((BAD,), "aten.sqrt", "backward")


@pytest.mark.parametrize("name", ["log", "where sqrt", "norm", "exp", "slope"])
def test_on_a_device(name, device):
    net, x = planted(CASES[name])
    found = find(net.to(device), CRITERION, x.to(device))
    assert (found.samples, found.operation, found.pattern) == ((BAD,), CASES[name].operation, CASES[name].pattern)
    assert find(net, CRITERION, planted(CASES[name], None)[1].to(device)).ok


@pytest.mark.slow
def test_a_healthy_batch_costs_at_most_half_a_plain_pass_more():
    """Medians of interleaved runs on the perceptron of gf.bench: about 1.1 on two cores."""
    work = gf.bench.mlp()
    torch.manual_seed(0)
    net, (x, y) = work.module(), work.batch()
    criterion, parameters = nn.CrossEntropyLoss(), list(net.parameters())

    def timed(fn):
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start

    plain = lambda: torch.autograd.grad(criterion(net(x), y), parameters)  # noqa: E731
    pairs = [(timed(plain), timed(lambda: find(net, criterion, (x, y)))) for _ in range(25)][3:]
    assert statistics.median(tool / bare for bare, tool in pairs) <= 1.5


# --- form ---------------------------------------------------------------------------------------------


def test_nothing_is_touched():
    net, x = planted(CASES["where sqrt"])
    batch, before = x.clone(), {name: value.clone() for name, value in net.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    states = generator_states()
    first = find(net, CRITERION, x)
    assert find(net, CRITERION, x) == first
    assert same_states(states, generator_states())
    assert torch.equal(x, batch)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert attributes == {name: set(vars(module)) for name, module in net.named_modules()}
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_healthy_batch_costs_one_forward_and_one_backward_pass():
    net, x = planted(CASES["log"], None)
    calls, backwards = [], []
    criterion = gf.whole(lambda model, x: (calls.append(1), model(x).mean(-1))[1])

    def counted(*args, original=torch.autograd.grad, **kwargs):
        backwards.append(1)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counted)
        assert find(net, criterion, x).ok
    assert (len(calls), len(backwards)) == (1, 1)


def test_reports_are_json():
    found = check_planted("where log")
    out = json.loads(json.dumps(found.to_dict()))
    assert (out["ok"], out["samples"], out["ranges"][0]["low"]) == (False, [BAD], 0.0)
    assert found.line.startswith(f"a gradient is not finite; samples {BAD}; first in aten.log (backward), at ")


def test_losses_of_gf_and_pure_models():
    model = gf.models.mlp([4, 8, 3], activation=F.relu)
    x = torch.ones(8, 4)
    x[3] = torch.nan
    found = find(model, gf.losses.cross_entropy, (x, torch.zeros(8, dtype=torch.long)))
    assert (found.samples, found.given) == ((3,), "input 0")
    loss = gf.whole(lambda model, x: (model(x).square().sum(-1) - 1e9).log())
    found = find(model, loss, torch.ones(8, 4))
    assert (found.pattern, found.samples) == ("log of a negative", tuple(range(8)))
    assert found.layer == found.after != ""  # of a model without modules: the last layer before it


def test_a_fault_of_ones_own():
    mine = gf.diagnose.Fault("mine", lambda origin, late: origin.name == "log" and not late, "why", "safe()")
    net, x = planted(CASES["log"])
    assert find(net, CRITERION, x, faults=(mine, *gf.diagnose.FAULTS)).safe == "safe()"
    assert find(net, CRITERION, x, faults=()).pattern == ""


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ((3, CRITERION, torch.ones(2)), {}, TypeError, "find_nonfinite|stateless"),
        ((nn.Linear(2, 1), nn.MSELoss(), torch.ones(2, 2)), {}, TypeError, "as batch"),
        ((nn.Linear(2, 1), CRITERION, torch.ones(0, 2)), {}, ValueError, "0 samples"),
        ((nn.Linear(2, 1), CRITERION, torch.ones(2, 2)), {"faults": ["log"]}, TypeError, "a str among faults"),
        ((nn.Linear(2, 1), gf.whole(lambda m, x: x.sum(-1)), torch.ones(2, 2)), {}, ValueError, "without a gradient"),
    ],
)
def test_what_is_refused(args, options, error, match):
    with pytest.raises(error, match=match):
        find(*args, **options)


def test_each_fault_of_the_table_is_planted():
    seen = {case.pattern for case in CASES.values()}
    elsewhere = {
        "parameter not finite",
        "input not finite",
        "all targets ignored",
        "deviation of one entry",
        "no alignment",
    }
    assert {fault.name for fault in gf.diagnose.FAULTS} == seen | elsewhere


def test_the_deviation_of_one_entry():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says so too, once, and not where
        net, x = planted(dataclasses.replace(CASES["log"], fn=lambda u, x: u + u[:, :1].std(-1, keepdim=True)), None)
        found = find(net, CRITERION, x)
    assert (found.pattern, found.operation) == ("deviation of one entry", "aten.std.correction")
    assert found.samples == tuple(range(8))


def test_a_target_that_no_alignment_gives():
    net, lengths = nn.Sequential(nn.Linear(8, 4), nn.LogSoftmax(-1)), torch.tensor([5, 5, 1, 5])
    steps = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, 3]] * 4)

    def ctc(model, batch):
        inputs, targets, lengths = batch
        rows = model(inputs).transpose(0, 1)
        return F.ctc_loss(rows, targets, lengths, torch.full_like(lengths, 3), reduction="none")

    found = find(net, gf.whole(ctc), (steps, targets, lengths))
    assert (found.pattern, found.samples, found.operation) == ("no alignment", (2,), "aten._ctc_loss.Tensor")


FUSED = {
    "mse_loss": lambda out: F.mse_loss(out, torch.zeros_like(out)),
    "l1_loss": lambda out: F.l1_loss(out, torch.zeros_like(out)),
    "huber_loss": lambda out: F.huber_loss(out, torch.zeros_like(out)),
    "smooth_l1_loss": lambda out: F.smooth_l1_loss(out, torch.zeros_like(out)),
    "binary_cross_entropy_with_logits": lambda out: F.binary_cross_entropy_with_logits(out, torch.zeros_like(out)),
    "cross_entropy": lambda out: F.cross_entropy(out, torch.zeros(len(out), dtype=torch.long)),
}


@pytest.mark.parametrize("name", FUSED)
def test_an_empty_mask_under_a_fused_loss(name):
    loss = gf.whole(lambda model, batch: FUSED[name](model(batch[0])[batch[1]]))
    x, mask = data()[0], torch.zeros(16, dtype=torch.bool)
    assert find(classifier(), loss, (x, mask)).pattern == "empty mask"
    mask[3] = True
    assert find(classifier(), loss, (x, mask)).ok


def check_of_parameters_alone():
    net = classifier(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    with torch.no_grad():
        net[1].parametrizations.weight.original1[1] = 0
    found = find(net, nn.CrossEntropyLoss(), data())
    assert (found.operation, found.pattern) == ("aten._weight_norm_interface", "division by 0")
    assert (found.samples, found.alone) == ((), True)
    assert "every one" in str(found)


def test_what_reads_parameters_alone_is_no_matter_of_samples():
    check_of_parameters_alone()
    x = data()[0]
    found = find(classifier(), gf.whole(lambda model, x: model(x).mean() + torch.zeros(3).log().mean()), x)
    assert (found.samples, found.alone, found.operation) == ((), True, "aten.log")

    def mixed(model, x):  # a constant that the batch is written to
        held = torch.zeros(x.shape)
        held.copy_(x)
        return model(x).mean(-1) + held[:, 0].log()

    x = x.abs() + 1
    x[5] = 0
    found = find(classifier(), gf.whole(mixed), x)
    assert (found.samples, found.alone, found.operation) == ((5,), True, "aten.log")


def test_a_logarithm_in_the_criterion_is_of_the_models_softmax():
    def likelihood(output, target):
        return -output.gather(-1, target[:, None])[:, 0].log()

    net = nn.Sequential(classifier(), nn.Softmax(-1))
    x, y = data()
    x[4] *= 1e4
    with torch.no_grad():
        y[4] = net(x).argmin(-1)[4]
    found = find(net, likelihood, (x, y))
    assert (found.samples, found.pattern, found.after) == ((4,), "log of a softmax", "0.2")


@pytest.mark.parametrize("attention", ["module", "function"])
def test_attention_of_torch_over_nothing(attention):
    """The module fills with -inf by itself; the fused function gives 0 where everything is masked, since torch 2.5."""
    x = torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(8, 5, dtype=torch.bool)
    padded[:, 4] = True
    padded[3] = True
    module = nn.MultiheadAttention(8, 2, batch_first=True)

    def loss(model, batch):
        return model(*batch).mean((1, 2))

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = module

        def forward(self, x, padded):
            if attention == "module":
                return self.attend(x, x, x, key_padding_mask=padded)[0]
            q = self.attend.out_proj(x)
            return F.scaled_dot_product_attention(q, q, q, attn_mask=~padded[:, None, :].expand(-1, 5, -1))

    assert find(Attend(), gf.whole(loss), (x[:3], padded[:3])).ok
    found = find(Attend(), gf.whole(loss), (x, padded))
    if attention == "function":
        assert found.ok
    else:
        assert (found.pattern, found.samples, found.layer) == ("empty attention mask", (3,), "attend")


# --- mutants ------------------------------------------------------------------------------------------


def latest(roots):
    return max(roots, key=lambda root: root.order, default=None)


def meant_too(roots):
    return min(roots, key=lambda root: root.order, default=None)


def unmasked(nodes, sequence):
    return False


def any_half(size, breaks):
    return _search.Samples((size // 2,), True)


def unwidened(func, args, kwargs):
    return args, kwargs


def no_facts(func, args, kwargs, out):
    return set()


def case_of(fn, **expected):
    net, x = planted(dataclasses.replace(CASES["log"], fn=fn), BAD)
    found = find(net, CRITERION, x)
    assert {key: getattr(found, key) for key in expected} == expected


def check_latest():
    case_of(lambda u, x: u.log() + 1 / u, operation="aten.log")


def check_product():
    case_of(lambda u, x: u.sqrt() * x, operation="aten.sqrt", pattern="sqrt at 0")


def check_share():
    """Its neighbour is finite as it counts in the batch, a 64th, and would not be as a batch of its own."""
    net, x = planted(CASES["steep"])
    x[BAD - 1] = 3e19
    assert find(net, CRITERION, x).samples == (BAD,)


def check_two_lines():
    """Two logarithms break, each in a sample of its own: they are two faults, and the first one is told."""

    def twice(u, x):
        first = u.log()
        return first + (u - 1.0).abs().log()

    net, x = planted(dataclasses.replace(CASES["log"], fn=twice), BAD)
    x[3] = 1.0
    found = find(net, CRITERION, x)
    assert (found.samples, found.code) == ((BAD,), "first = u.log()")


def check_large():
    """A gradient of finite entries whose sum overflows."""
    net = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(net.weight)
    assert find(net, CRITERION, torch.full((1, 2), 3e38)).ok


@pytest.mark.parametrize("check", [check_latest, check_product, check_share, check_two_lines, check_large])
def test_hard_cases(check):
    check()


MUTANTS = {
    "all are parameters": (_watch.Watch, "_alone", lambda *_: True, lambda: check_planted("log")),
    "none are parameters": (_watch.Watch, "_alone", lambda *_: False, check_of_parameters_alone),
    "no float64 of an operation": (_facts, "_again", lambda *_: set(), lambda: check_planted("pole")),
    "always of precision": (_facts, "_again", lambda *_: {"narrow"}, lambda: check_planted("pole")),
    "the latest operation": (_watch, "_chosen", latest, check_latest),
    "no mask is seen": (_watch, "masked", unmasked, lambda: check_planted("where sqrt below")),
    "all is masked": (_watch, "masked", lambda nodes, sequence: True, check_product),
    "no facts": (_watch, "facts_of", no_facts, lambda: check_planted("attention")),
    "nothing is purposeful": (_watch, "literal", lambda func, out: False, lambda: check_planted("infinity")),
    "any sample": (_find, "search", any_half, lambda: check_planted("log")),
    "float32 twice": (_watch, "_widened", unwidened, lambda: check_cast(torch.float16)),
    "the first fault": (_find, "recognized", lambda o, late, faults: faults[0], lambda: check_planted("log")),
    "a sample's own mean": (_passes, "_share", lambda part, of, model: _passes.mean_loss(part, model), check_share),
    "not finite by its sum": (_passes, "_finite", lambda tensor: bool(tensor.sum().isfinite()), check_large),
    "not all ranges": (_watch, "inputs_of", lambda func, args, kwargs: (), lambda: check_planted("log")),
    "not by its line": (_find.Origin, "same", property(lambda self: self.operation), check_two_lines),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_search_is_caught(name, monkeypatch):
    place, attribute, broken, check = MUTANTS[name]
    check()
    monkeypatch.setattr(place, attribute, broken)
    with pytest.raises(AssertionError):
        check()
