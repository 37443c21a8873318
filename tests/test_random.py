"""Draws come from the seed alone, repeat at every query, and leave the global generators as they were."""

from __future__ import annotations

import pytest
import torch
from oracle import same_bits
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._random import CannotReplay, RecordDraws, RefuseDraws, ReplayDraws, forked

F64 = torch.float64
DRAWS = {
    "like": torch.rand_like,
    "dropout": lambda x: F.dropout(x, 0.5),
    "in place": lambda x: x.clone().normal_(),
    "factory": lambda x: x * torch.rand(x.shape),
}
ENGINES = ["factored", "vmap", "loop"]


def noisy(p, x):
    return (p["w"] * F.dropout(x, 0.5)).sum() + torch.randn(()).to(x) * p["w"].sum()


def noisy_batched(p, x):
    return (p["w"] * F.dropout(x, 0.5)).sum(1) + torch.randn(len(x)).to(x) * p["w"].sum()


def asked(loss=noisy, size=6, width=32, **options):
    params = {"w": torch.ones(width, dtype=F64)}
    return gf.per_sample_grads(loss, **options).at(0)(params, torch.ones(size, width, dtype=F64))


def global_states(device):
    return [torch.random.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])]


def check_global_state_is_unchanged(engine, batched=False, device="cpu"):
    torch.manual_seed(3)
    before = global_states(device)
    params = {"w": torch.ones(4, device=device)}
    f = gf.per_sample_grads(
        noisy_batched if batched else noisy, engine=engine, chunk_size=2, batched=batched, randomness="different"
    )
    g = f.at(0)(params, torch.ones(5, 4, device=device))
    g.norms(), g.mean(), g.materialize(), g.unused
    assert all(torch.equal(a, b) for a, b in zip(before, global_states(device), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batched", [False, True])
def test_global_state_is_unchanged(engine, batched, device):
    check_global_state_is_unchanged(engine, batched, device)


@pytest.mark.parametrize("engine", ENGINES)
def test_global_state_is_unchanged_by_a_loss_that_raises(engine):
    def loss(p, x):
        torch.rand(())
        raise ValueError("mine")

    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="mine"):
        asked(loss, engine=engine)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batched", [False, True])
def test_draws_do_not_depend_on_the_global_state(engine, batched):
    rows = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        rows.append(asked(noisy_batched if batched else noisy, engine=engine, batched=batched).materialize())
    assert same_bits(*rows)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_different(engine, chunk_size):
    rows = asked(engine=engine, chunk_size=chunk_size, randomness="different").materialize()["w"]
    # Two samples with the same 32 dropout decisions and the same normal draw: a chance below 2^-32.
    assert len({tuple(row.tolist()) for row in rows}) == 6


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_same(chunk_size):
    rows = [asked(engine=e, chunk_size=chunk_size, randomness="same").materialize()["w"] for e in ENGINES]
    assert all(torch.equal(row, rows[0][0]) for part in rows for row in part)
    # and it did draw: some entries were dropped, others doubled
    assert len(set(rows[0][0].tolist())) == 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("randomness", ["different", "same"])
def test_the_seed_counts(engine, randomness):
    a, b = (asked(engine=engine, randomness=randomness, seed=seed).materialize() for seed in (0, 1))
    assert not same_bits(a, b)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", [-1, 0, 2**40, 2**63])
def test_any_integer_is_a_seed(engine, seed):
    assert asked(engine=engine, seed=seed).norms().isfinite().all()


@pytest.mark.parametrize("engine", ["auto", "factored", "vmap", "loop"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("draw", DRAWS)
def test_error(engine, batched, draw):
    def loss(p, x):
        return (p["w"] * DRAWS[draw](x)).sum(-1)

    with pytest.raises(RuntimeError, match=r"random(ness|.* operation)"):
        asked(loss, engine=engine, batched=batched, randomness="error")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batched", [False, True])
def test_error_lets_a_deterministic_loss_pass(engine, batched):
    g = asked(lambda p, x: (p["w"] * x).sum(-1), engine=engine, batched=batched, randomness="error")
    assert g.sum()["w"].tolist() == [6.0] * 32


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_losses_and_rows_of_a_streamed_value_come_from_the_same_draws(engine, chunk_size):
    # The loss is linear in w, so loss_i = <g_i, w>, whatever was drawn, if both drew alike.
    g = asked(engine=engine, chunk_size=chunk_size)
    assert torch.allclose(g.losses, g.materialize()["w"].sum(1), rtol=1e-12, atol=1e-12)
    assert torch.allclose(g.norms(), g.materialize()["w"].norm(dim=1), rtol=1e-12, atol=0)


def test_forked_repeats_and_restores():
    before = torch.random.get_rng_state()
    draws = []
    for seed, stream in ((0, 0), (0, 0), (0, 1), (1, 0), (1, 1)):
        with forked(seed, stream, devices=[torch.device("cpu")]):
            draws.append(tuple(torch.rand(4).tolist()))
    assert torch.equal(before, torch.random.get_rng_state())
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4


def test_refusing_sees_through_autograd():
    x = torch.ones(3, requires_grad=True)
    with RefuseDraws("here"), pytest.raises(RuntimeError, match=r"^here: got a loss that draws random numbers"):
        F.dropout(x * 2, 0.5)
    with RefuseDraws("here"):
        (x * 2).sum().backward()


@pytest.mark.parametrize("name", DRAWS)
def test_recorded_draws_of_samples_replay_as_a_batch(name):
    draw = DRAWS[name]
    x = torch.randn(3, 5)
    records, alone = [], []
    for row in x.split(1):
        with RecordDraws() as mode:
            alone.append(draw(row))
        records.append(mode.record)
    with ReplayDraws(records):
        together = draw(x)
    assert torch.equal(together, torch.cat(alone))


def test_a_pass_that_draws_something_else_is_not_replayed():
    with RecordDraws() as mode:
        torch.rand(2)
    with ReplayDraws([mode.record]), pytest.raises(CannotReplay, match="draw 0 is"):
        torch.randn(2)
    with ReplayDraws([mode.record]), pytest.raises(CannotReplay, match="do not add up"):
        torch.rand(3)
    with ReplayDraws([mode.record]):
        torch.rand(2)
        with pytest.raises(CannotReplay, match="draw 1"):
            torch.rand(2)
