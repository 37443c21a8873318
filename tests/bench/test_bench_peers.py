"""Peers: each that is installed is right where it should be, on a copy; what is missing, wrong or refused is said."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from tiny import GPT, MLP, TIED, after
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc.bench._peers import installed, missing, versions
from gradfunc.bench._peers._copy import Copy, has, has_buffers, has_time_first, of_its_own, shares

HAND = gf.bench.CONTENDERS["vmap(grad)"]
PEERS = gf.bench.PEERS
NOWHERE = gf.bench.Library(("a_module_that_nobody_has",), ("a-module-that-nobody-has",), "pip install it")
X, Y = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3


def needs(name):
    """Skips where the peer's library is not installed."""
    for module in PEERS[name].library.modules if PEERS[name].library else ():
        pytest.importorskip(module, reason=f"the peer {name} is not installed")


def bench(workload, *contenders, **options):
    options = {"rounds": 1, "warmups": 1, "memory": False, "quantities": gf.bench.QUANTITIES, **options}
    return gf.bench.run([workload], contenders, **options)


# --- those that are installed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_right_on_a_perceptron(name):
    """So it was told of the right loss: a sum, whose rows are gradients of numerators."""
    needs(name)
    report = bench(MLP, name)
    rows = [row for row in report.rows if row.contender == name]
    assert [row.quantity for row in rows] == [*PEERS[name].quantities]
    assert {row.verdict for row in rows} == {"rounding"}, str(report)
    assert all(row.peer and row.times and row.error64 < 1e-12 for row in rows)
    assert report.peers[name][1] == PEERS[name].settings
    assert PEERS[name].settings.split()[0].rstrip(",") in str(report)


@pytest.mark.parametrize("name", ["expanded-weights", "opacus", "torchjd"])
def test_a_sum_over_tokens(name):
    """A sample's numerator is the sum of its tokens' losses, not their mean."""
    needs(name)
    module = nn.Sequential(nn.Embedding(11, 5), nn.Tanh(), nn.Linear(5, 11))
    tokens = torch.arange(12).view(3, 4) % 11
    losses = gf.bench.Workload("tokens", "", lambda: module, lambda: (tokens, tokens.roll(1, 1)), GPT.criterion)
    report = bench(losses, name)
    assert {row.verdict for row in report.rows[1:]} == {"rounding"}, str(report)


HOOKS = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # torch's, of theirs


@HOOKS
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_works_on_a_copy(name):
    needs(name)
    case = dataclasses.replace(MLP.case(), max_norm=0.5)
    state, hooks = copy.deepcopy(case.module.state_dict()), len(case.module._forward_hooks)
    called = PEERS[name].make(case, "norms")
    assert torch.allclose(called(), called())
    for module in case.module.modules():
        assert not module._backward_hooks
        assert not module._forward_pre_hooks
        assert len(module._forward_hooks) == hooks == 0
    for key, param in case.module.named_parameters():
        assert torch.equal(param, state[key])
        assert param.grad is None
        assert not vars(param)


@HOOKS
@pytest.mark.parametrize("name", [name for name in PEERS if "clip-and-sum" in PEERS[name].quantities])
def test_a_second_call_gives_the_same_again(name):
    """Nothing adds up on the copy's parameters."""
    needs(name)
    call = PEERS[name].make(dataclasses.replace(MLP.case(), max_norm=0.5), "clip-and-sum")
    first, again = call(), call()
    for key, value in first.items():
        torch.testing.assert_close(value, again[key])


@pytest.mark.parametrize("name", ["backpack", "backpack-l2", "opacus-ghost"])
def test_a_tied_head_is_refused_or_wrong(name):
    needs(name)
    report = bench(TIED, name)
    assert {row.verdict for row in report.rows[1:]} <= {"refused", "wrong"}
    assert report.ok, "no fault of gradfunc's"


def test_jax_takes_perceptrons_only():
    needs("jax")
    refused = bench(GPT, "jax").rows[1:]
    assert {row.verdict for row in refused} == {"refused"}
    assert "no translation" in refused[0].failure
    for module in (nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())):
        report = bench(gf.bench.of_model(module, nn.CrossEntropyLoss(), (X, Y)), "jax")
        assert {row.verdict for row in report.rows[1:]} == {"refused"}
    for criterion, told in (
        (nn.CrossEntropyLoss(), "rounding"),
        (F.cross_entropy, "rounding"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "refused"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "refused"),
    ):
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
        report = bench(gf.bench.of_model(module, criterion, (X, Y)), "jax")
        assert {row.verdict for row in report.rows[1:]} == {told}, criterion


def test_memory_that_is_not_torchs_is_not_told():
    own = dataclasses.replace(HAND, name="elsewhere", foreign=True)
    report = bench(MLP, own, "vmap(grad)", memory=True, quantities=["norms"])
    assert report.row("mlp", "elsewhere").peak is None
    assert report.row("mlp", "elsewhere").times
    assert report.row("mlp", "vmap(grad)").peak > 0


# --- those that are not, and those that are wrong -------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch):
    peer = gf.bench.Contender("nobodys", HAND.make, peer=True, library=NOWHERE)
    monkeypatch.setitem(PEERS, "nobodys", peer)
    return peer


def test_a_missing_peer_is_said_in_a_line(nowhere):
    assert nowhere not in installed()
    assert "not installed: nobodys; pip install it" in missing()
    report = bench(MLP, "gradfunc", peers=True, quantities=["norms"])
    assert "not installed: nobodys; pip install it" in report.notes
    assert "nobodys" not in {row.contender for row in report.rows}
    assert "nobodys" not in report.peers
    assert {peer.name for peer in installed()} <= {row.contender for row in report.rows}
    assert not any("not installed" in note for note in bench(MLP, "gradfunc", quantities=["norms"]).notes)


def test_a_missing_peer_by_name(nowhere):
    for tool in (gf.bench.run, gf.bench.zoo):
        with pytest.raises(ModuleNotFoundError, match=r"contender='nobodys', which is not installed.* pip install it"):
            tool(contenders=["nobodys"])


def test_one_line_a_library(monkeypatch):
    for name in ("nobodys", "nobodys-other"):
        monkeypatch.setitem(PEERS, name, gf.bench.Contender(name, HAND.make, peer=True, library=NOWHERE))
    assert [line for line in missing() if "pip install it" in line] == [
        "not installed: nobodys and nobodys-other; pip install it"
    ]


def test_versions_are_those_of_the_installed():
    assert versions().keys() == {
        name for peer in installed() if peer.library for name in peer.library.distributions if name in versions()
    }
    report = bench(MLP, "gradfunc", quantities=["norms"])
    assert report.environment["peers"] == versions()
    assert gf.bench.Library(("torch",), ("torch", "a-module-that-nobody-has"), "").versions.keys() == {"torch"}


def refusing(case, quantity):
    raise NotImplementedError("no rule\nfor this layer")


@pytest.mark.parametrize("peer", [True, False])
def test_whose_fault_it_is(peer):
    doubled = after(HAND.make, lambda case, out: out * 2)
    wrong = gf.bench.Contender("wrong one", doubled, ("norms",), peer=peer)
    refuses = gf.bench.Contender("refusing one", refusing, ("norms",), peer=peer)
    report = bench(MLP, "gradfunc", wrong, refuses, quantities=["norms"])
    verdicts = {row.contender: row.verdict for row in report.rows}
    told = "refused" if peer else "failed"
    assert (verdicts["gradfunc"], verdicts["wrong one"], verdicts["refusing one"]) == ("rounding", "wrong", told)
    assert report.ok == peer
    assert f"{told.capitalize()}: mlp, refusing one, norms: NotImplementedError: no rule for this layer" in str(report)
    assert ("wrong one" in report.peers) == peer
    json.dumps(report.to_dict(), allow_nan=False)


# --- what peers start from ------------------------------------------------------------------------------------


def test_a_copy_reads_what_was_left():
    case = MLP.case()
    made = Copy.of(case)
    name, param = next(iter(made.params.items()))
    assert param is not case.module.get_parameter(name)
    losses = made.losses(made.module)
    assert torch.allclose(losses, case.losses(case.model.params, *case.batch).numerator)
    losses.sum().backward()
    with pytest.raises(NotImplementedError, match=r"no rows for 0\.weight, which has a gradient"):
        made.rows("rows")
    for each in made.params.values():
        each.rows = each.detach().expand(case.size, *each.shape)
    rows = made.rows("rows")
    assert torch.equal(rows["0.weight"][3], param)
    assert all(each.grad is None and each.rows is None for each in made.params.values())
    assert all(not bool(value.any()) for value in made.rows("rows").values()), "unused"
    param.rows = [param.detach()[None]] * 2
    with pytest.raises(NotImplementedError, match=r"rows of 0\.weight: 2 rows for 11 samples"):
        made.rows("rows")


@pytest.mark.parametrize(("in_dims", "first"), [(0, True), ((0, 0), True), (1, False), ((1,), False), ((0, 1), None)])
def test_where_the_samples_are(in_dims, first):
    made = Copy.of(MLP.case())
    problem = made.case.problem
    model = dataclasses.replace(problem.model, in_dims=in_dims)
    case = dataclasses.replace(made.case, problem=dataclasses.replace(problem, model=model))
    made = dataclasses.replace(made, case=case)
    if first is None:
        with pytest.raises(NotImplementedError, match=r"samples in dimensions \(0, 1\)"):
            _ = made.batch_first
    else:
        assert made.batch_first is first
    if first:
        made.has_samples_first()
    else:
        with pytest.raises(NotImplementedError, match="expected 0"):
            made.has_samples_first()


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def tied():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


def twice():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("applies", "to", "not_to"),
    [
        (has(nn.LSTM), nn.Sequential(nn.LSTM(2, 2)), nn.GRU(2, 2)),
        (has_buffers, nn.Sequential(nn.BatchNorm1d(2)), nn.LayerNorm(2)),
        (has_time_first, nn.Sequential(nn.MultiheadAttention(2, 1)), nn.GRU(2, 2, batch_first=True)),
        (shares, tied(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))),
        (shares, twice(), nn.Linear(3, 3)),
        (of_its_own, nn.Sequential(Own()), nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))),
    ],
)
def test_what_limits_apply_to(applies, to, not_to):
    assert applies(to)
    assert not applies(not_to)
