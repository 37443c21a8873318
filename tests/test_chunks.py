"""How many rows at once: chosen, halved where memory runs out, refused with numbers where nothing helps; scales."""

from __future__ import annotations

import re

import pytest
import torch
from oracle import check_queries, close_rows, truth, truth_batched

import gradfunc as gf
from gradfunc._per_sample import _chunks

F64 = torch.float64
P = {"w": torch.linspace(-1, 1, 4, dtype=F64), "v": torch.ones(4, dtype=F64)}
X = torch.randn(13, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    "Python": MemoryError(),
}
BATCHED = ["factored", "vmap"]  # engines that run several samples at once


def base(p, x):
    return torch.tanh(p["w"] * x).sum() * (p["v"] @ x)


class Tight:
    """A loss for which at most `room` samples fit into memory, forward and backward."""

    def __init__(self, room, error=None):
        self.room, self.error, self.tried = room, error or ERRORS["CUDA"], []

    def __call__(self, p, x):
        size = torch._C._functorch.get_unwrapped(x) if torch._C._functorch.is_batchedtensor(x) else x[None]
        while torch._C._functorch.is_gradtrackingtensor(size) or torch._C._functorch.is_batchedtensor(size):
            size = torch._C._functorch.get_unwrapped(size)
        self.tried.append(len(size))
        if len(size) > self.room:
            raise self.error
        return base(p, x)


@pytest.mark.parametrize("engine", BATCHED)
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("room", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 12))])
def test_chunks_are_halved_until_they_fit(room, kind, engine, device):
    loss = Tight(room, ERRORS[kind])
    params, x = {k: v.to(device) for k, v in P.items()}, X.to(device)
    g = gf.per_sample_grads(loss, engine=engine)(params, x)
    check_queries(g, truth(base, params, 13, (x,)))
    chunk = int(re.search(r"(\d+) at a time", g.explain())[1])
    assert room // 2 < chunk <= room
    loss.tried.clear()
    g.norms()
    assert max(loss.tried) <= room  # what was learnt is not learnt again


def test_halving_under_auto_does_not_fall_to_the_loop():
    g = gf.per_sample_grads(Tight(3))(P, X)
    assert g.engine == "factored"
    check_queries(g, truth(base, P, 13, (X,)))


@pytest.mark.parametrize("engine", BATCHED)
def test_memory_that_runs_out_later(engine):
    """A query may meet less memory than the call did."""
    loss = Tight(4)
    g = gf.per_sample_grads(loss, engine=engine)(P, X)
    loss.room = 1
    check_queries(g, truth(base, P, 13, (X,)))


@pytest.mark.parametrize("engine", BATCHED)
def test_ragged_chunks_are_halved_too(engine):
    loss = Tight(1)
    rows = [X[i, :4] if i % 2 else X[i, :4].repeat(2, 1) for i in range(6)]

    def ragged(p, x):
        return loss(p, x.reshape(-1, 4)[0])

    g = gf.per_sample_grads(ragged, engine=engine)(P, gf.ragged(rows))
    check_queries(g, truth(base, P, 6, (X[:6],)))


@pytest.mark.parametrize("engine", BATCHED)
def test_one_sample_that_does_not_fit(engine):
    with pytest.raises(torch.OutOfMemoryError) as caught:
        gf.per_sample_grads(Tight(0), engine=engine)(P, X)
    text = str(caught.value)
    assert "one sample at a time" in text
    assert "B x P = 13 x 8 entries" in text
    assert f"{13 * 8 * 8} bytes" in text
    assert "wrt=" in text
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("engine", BATCHED)
@pytest.mark.parametrize("chunk_size", [None, 6])
def test_a_chunk_size_that_was_asked_for_is_not_changed(chunk_size, engine):
    loss = Tight(5)
    with pytest.raises(torch.OutOfMemoryError, match=f"{chunk_size or 13} samples at a time.*chunk_size='auto'"):
        gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size)(P, X)
    assert loss.tried == [chunk_size or 13]


@pytest.mark.parametrize("engine", ["auto", *BATCHED, "loop"])
def test_a_native_batch_that_does_not_fit(engine):
    def losses(p, x):
        raise ERRORS["CUDA"]

    with pytest.raises(torch.OutOfMemoryError, match="forward pass of the whole batch"):
        gf.per_sample_grads(losses, batched=True, engine=engine)(P, X)


def test_rows_of_a_native_batch_are_halved(monkeypatch):
    def losses(p, x):
        return torch.tanh(p["w"] * x).sum(1) * (x @ p["v"])

    from gradfunc._engines import CotangentSource

    rows = CotangentSource.rows

    def tight(self, at):
        if (at.stop - at.start if isinstance(at, slice) else len(at)) > 2:
            raise ERRORS["CUDA"]
        return rows(self, at)

    monkeypatch.setattr(CotangentSource, "rows", tight)
    for engine in ("vmap", "loop"):
        g = gf.per_sample_grads(losses, batched=True, engine=engine)(P, X)
        check_queries(g, truth_batched(losses, P, (X,)))


def test_an_error_of_the_users_own_is_no_lack_of_memory():
    def loss(p, x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        gf.per_sample_grads(loss)(P, X)


def test_the_choice_depends_on_total_memory_only(monkeypatch):
    monkeypatch.setattr(_chunks, "_machine_memory", lambda: 16 * 5 * 8 * 8)
    chunks = _chunks.Chunks.choose("auto", P, 13)
    assert (chunks.size, chunks.automatic, chunks.entries, chunks.row_bytes) == (5, True, 8, 64)
    assert _chunks.Chunks.choose("auto", P, 3).size == 3
    monkeypatch.setattr(_chunks, "_machine_memory", lambda: 1)
    assert _chunks.Chunks.choose("auto", P, 13).size == 1


def test_a_gram_matrix_computes_the_columns_from_each_chunk_on():
    calls = []

    def loss(p, x):
        calls.append(1)
        return base(p, x)

    g = gf.per_sample_grads(loss, engine="loop", chunk_size=2)(P, X[:6])
    calls.clear()
    g.gram()
    assert len(calls) == 2 * (3 + 2 + 1)


# --- loss_scale --------------------------------------------------------------------------------------


def check_loss_scale(dtype, scale, device="cpu"):
    """A cotangent below 2^-25 vanishes in float16; scaled it does not, and every query takes the scale out."""
    tiny = 2.0**-14

    def loss(p, x):
        return (p["w"] * x).sum() * tiny * tiny

    params = {"w": torch.ones(4, dtype=dtype, device=device)}
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, -1.0, 0.5, 8.0]], dtype=dtype, device=device)
    want = truth(loss, {"w": params["w"].double()}, 2, (x.double(),))
    g = gf.per_sample_grads(loss, loss_scale=scale)(params, x)
    norms = want.rows["w"].norm(dim=1)
    u = torch.finfo(torch.float32).eps / 2
    n = 8  # roundings of a sum of 4 squares, its root, the division; powers of two round nothing
    assert bool(((g.norms().double() - norms).abs() <= n * u * norms).all())
    sums = g.sum(wide=True)["w"].double()
    assert bool(((sums - want.rows["w"].sum(0)).abs() <= n * u * norms.sum()).all())
    direction = {"w": torch.ones(4, device=device)}
    assert bool(((g.dot(direction).double() - want.rows["w"].sum(1)).abs() <= n * u * 2 * norms).all())


def test_loss_scale_saves_what_float16_loses(device):
    check_loss_scale(torch.float16, 2.0**15, device)
    with pytest.raises(AssertionError):
        check_loss_scale(torch.float16, None, device)


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_power_of_two_changes_nothing_else(engine, batched, chunk_size, device):
    params, x = {k: v.to(device) for k, v in P.items()}, X[:5].to(device)

    def losses(p, x):
        return torch.tanh(p["w"] * x).sum(1) * (x @ p["v"])

    loss, oracle = (losses, truth_batched(losses, params, (x,))) if batched else (base, truth(base, params, 5, (x,)))
    options = {"engine": engine, "batched": batched, "chunk_size": chunk_size}
    plain = gf.per_sample_grads(loss, **options)(params, x)
    scaled = gf.per_sample_grads(loss, loss_scale=2.0**10, **options)(params, x)
    check_queries(scaled, oracle)
    assert torch.equal(scaled.losses, plain.losses)
    close_rows(scaled.materialize(), plain.materialize())
    check_queries(gf.concatenate([scaled, plain]).select(slice(0, 5)), oracle)


def test_a_scale_beyond_the_type_of_the_loss():
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), loss_scale=2.0**16)
    with pytest.raises(ValueError, match=r"loss_scale=65536\.0 for a loss of torch\.float16"):
        f({"w": torch.ones(3).half()}, torch.ones(2, 3).half())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), "1024"])
def test_bad_loss_scales(scale):
    with pytest.raises(ValueError, match=r"loss_scale=.*a positive finite number"):
        gf.per_sample_grads(base, loss_scale=scale)
