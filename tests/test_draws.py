"""Draws of a loss under the engines: a function of (seed, step, sample id, use), whatever engine, chunk or order."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import close_rows, flat, same_bits, truth
from tiers import every
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradfunc as gf

F64 = torch.float64
B = 6


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def through(draw):
    """A loss that draws, of a sample [4, 6]."""
    return lambda p, x: draw(p["w"] * x).square().sum() + p["w"].sum()


def of_module(module):
    model = gf.stateless(module.double())
    values = {name: weights(*value.shape, seed=i) * 0.5 for i, (name, value) in enumerate(model.params.items())}

    def loss(p, x):
        out = model(values, (p["w"] * x).unsqueeze(0))
        return (out[0] if isinstance(out, tuple) else out).square().sum()

    return loss


def attention(x):
    q = x.reshape(1, 2, 4, 3)
    return F.scaled_dot_product_attention(q, q, q.flip(2), dropout_p=0.5)


LOSSES = {
    "dropout": through(lambda x: F.dropout(x, 0.5)),
    "dropout twice": through(lambda x: F.dropout(F.dropout(x, 0.3), 0.5)),
    "dropout in place": through(lambda x: F.dropout(x.clone(), 0.5, inplace=True)),
    "dropout1d": through(lambda x: F.dropout1d(x, 0.5)),
    "dropout2d": through(lambda x: F.dropout2d(x.reshape(1, 8, 3, 1), 0.5)),
    "alpha dropout": through(lambda x: F.alpha_dropout(x, 0.5, training=True)),
    "feature alpha dropout": through(lambda x: F.feature_alpha_dropout(x, 0.5, training=True)),
    "rand_like": through(lambda x: x * torch.rand_like(x)),
    "randn_like": through(lambda x: x + torch.randn_like(x)),
    "randint_like": through(lambda x: x * torch.randint_like(x, 10)),
    "rand": through(lambda x: x * torch.rand(4, 6, dtype=F64, device=x.device)),
    "randn": through(lambda x: x + torch.randn(6, dtype=F64, device=x.device)),
    "bernoulli": through(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5))),
    "gumbel softmax": through(lambda x: F.gumbel_softmax(x)),
    "attention": through(attention),
    "module": of_module(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.3), nn.ReLU(), nn.Linear(5, 6), nn.Dropout(0.5))),
    "encoder layer": of_module(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True)),
    "LSTM": of_module(nn.LSTM(6, 3, 2, batch_first=True, dropout=0.5)),
    "GRU, both ways": of_module(nn.GRU(6, 3, 2, batch_first=True, dropout=0.5, bidirectional=True)),
}


# A recurrence's graph has hundreds of nodes, each read at every new shape.
LONG = "GRU, both ways"
EVERY = [*every(4, [name for name in LOSSES if name != LONG]), pytest.param(LONG, marks=pytest.mark.slow)]


def problem(device="cpu", size=B):
    return {"w": weights(4, 6, seed=1).to(device)}, weights(size, 4, 6, seed=2).to(device)


def asked(name, *, seed=0, step=0, index=None, device="cpu", x=None, **options):
    params, own = problem(device)
    return gf.per_sample_grads(LOSSES[name], seed=seed, **options).at(step, index)(params, own if x is None else x)


def check_engines_and_chunks_agree(name, device="cpu"):
    whole = asked(name, engine="loop", device=device)
    assert same_bits(whole.losses, asked(name, engine="loop", chunk_size=2, device=device).losses)
    batched = [(engine, chunk) for engine in ("factored", "vmap") for chunk in (None, 1, 4)]
    for engine, chunk in [*batched, ("auto", "auto")]:
        g = asked(name, engine=engine, chunk_size=chunk, device=device)
        close_rows(g.materialize(), whole.materialize(), f"{engine}, {chunk}")
        assert g.engine == ("factored" if engine == "auto" else engine)


@pytest.mark.parametrize("name", EVERY)
def test_draws_do_not_depend_on_engine_or_chunks(name, device):
    check_engines_and_chunks_agree(name, device)


def check_rows_go_with_ids(name, engine):
    x = problem()[1]
    ids, order = torch.tensor([7, 0, 3, 2**40, -5, 1]), torch.tensor([3, 0, 5, 1, 4, 2])
    g = asked(name, engine=engine, index=ids, chunk_size=4)
    permuted = asked(name, engine=engine, index=ids[order], x=x[order], chunk_size=4)
    close_rows(permuted.materialize(), g.select(order).materialize(), "permuted")
    alone = asked(name, engine=engine, index=[3], x=x[2:3])
    close_rows(alone.materialize(), g.select([2]).materialize(), "alone")


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("name", EVERY)
def test_draws_go_with_the_ids(name, engine):
    check_rows_go_with_ids(name, engine)


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("name", EVERY)
def test_seed_step_and_id_count(name, engine):
    x = problem()[1]
    same = x[:1].expand(B, -1, -1)
    rows = flat(asked(name, engine=engine, x=same).materialize())
    assert len({tuple(row.tolist()) for row in rows}) > 1  # other ids, other draws
    for change in ({"seed": 1}, {"step": 1}, {"index": range(1, B + 1)}):
        assert not torch.equal(flat(asked(name, engine=engine, x=same, **change).materialize()), rows)
    one = asked(name, engine=engine, x=same, index=[5] * B)
    shared = asked(name, engine=engine, x=same, randomness="same")
    for g in (one, shared):  # equal up to rounding: rows of a product may be summed in another order
        close_rows(g.materialize(), g.select([0] * B).materialize())


def test_uses_count():
    """Two draws of one forward pass differ."""
    g = gf.per_sample_grads(lambda p, x: (p["w"] * (torch.rand_like(x) - torch.rand_like(x))).sum()).at(0)(*problem())
    assert bool((g.materialize()["w"] != 0).all())


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
def test_the_rows_are_gradients_of_the_losses(engine):
    """With the draws of a sample known from one run, the rows are autograd's with those masks put in by hand."""
    params, x = problem()
    drawn = gf.per_sample_grads(
        lambda p, x: ((p["w"] * (m := F.dropout(torch.ones_like(x), 0.5))).sum(), m), has_aux=True
    )
    masks = drawn.at(2)(params, x).aux
    g = gf.per_sample_grads(lambda p, x: F.dropout(p["w"] * x, 0.5).square().sum(), engine=engine).at(2)(params, x)
    want = truth(lambda p, x, m: (p["w"] * x * m).square().sum(), params, B, (x, masks))
    close_rows(g.materialize(), want.rows)
    assert {0.0, 2.0} == set(masks.flatten().tolist())


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
def test_a_query_draws_again_what_the_call_drew(engine):
    g = asked("module", engine=engine, chunk_size=2)
    rows = g.materialize()
    assert same_bits(rows, g.materialize())
    chosen = g.select([4, 1])
    close_rows(chosen.materialize(), {"w": rows["w"][[4, 1]]})
    assert torch.allclose(g.norms(), rows["w"].flatten(1).norm(dim=1), rtol=1e-12)


def test_ragged_samples_keep_their_draws():
    params, x = problem()
    lengths = [4, 2, 4, 1, 2, 3]
    loss = LOSSES["dropout"]

    def cut(p, x):
        return loss({"w": p["w"][: len(x)]}, x)

    rows = [x[i, :n] for i, n in enumerate(lengths)]
    g = gf.per_sample_grads(cut).at(1)(params, gf.ragged(rows))
    for i, row in enumerate(rows):
        alone = gf.per_sample_grads(cut).at(1, [i])(params, row[None])
        close_rows(g.select([i]).materialize(), alone.materialize())


# --- batches run natively: one key for the whole tensor ------------------------------------------------


def native(p, x):
    return F.dropout(p["w"] * x, 0.5).square().flatten(1).sum(1)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_native_batch_draws_by_seed_and_step(chunk_size):
    params, x = problem()

    def rows(engine="auto", seed=0, step=0):
        f = gf.per_sample_grads(native, batched=True, engine=engine, seed=seed, chunk_size=chunk_size)
        return f.at(step)(params, x).materialize()

    for engine in ("factored", "vmap"):
        close_rows(rows(engine), rows("loop"), engine)
    assert same_bits(rows(), rows())
    assert not same_bits(rows(), rows(seed=1))
    assert not same_bits(rows(), rows(step=1))


def test_recurrent_layers_of_a_native_batch_are_not_looped():
    model = gf.stateless(nn.GRU(6, 3, 2, batch_first=True).double())
    x = problem()[1]

    def losses(p, x):
        return model(p, x)[0].square().flatten(1).sum(1)

    engines = ("auto", "vmap", "loop")
    *others, loop = (gf.per_sample_grads(losses, batched=True, engine=e)(model.params, x) for e in engines)
    assert [g.engine for g in others] == ["factored", "vmap"]
    for g in others:
        close_rows(g.materialize(), loop.materialize(), g.engine)


# --- activation checkpointing ------------------------------------------------------------------------


def block(x):
    return F.dropout(torch.tanh(F.dropout(x, 0.3)), 0.4) + attention(x).reshape(x.shape)


def stack(through):
    """Draws before, between, after and inside of two regions, one of them nested."""

    def nested(x):
        return through(block, F.dropout(x, 0.5)) * 2

    def loss(p, x):
        h = F.dropout(p["w"] * x, 0.2)
        h = F.dropout(through(block, h) * p["w"], 0.3)
        h = through(nested, h) * p["w"]
        return F.dropout(h, 0.5).square().sum()

    return loss


def plainly(fn, x):
    return fn(x)


def checkpointed(fn, x):
    return checkpoint(fn, x, use_reentrant=False)


def check_checkpoint(batched=False, device="cpu"):
    def asked(through):
        loss = stack(through)

        def losses(p, x):
            return torch.stack([loss(p, row) for row in x])

        f = gf.per_sample_grads(losses if batched else loss, engine="loop", batched=batched, chunk_size=4)
        return f.at(3)(*problem(device))

    got, want = asked(checkpointed), asked(plainly)
    assert same_bits(got.losses, want.losses)
    for _ in range(2):  # a graph that is retained runs its regions again at each query
        close_rows(got.materialize(), want.materialize())


@pytest.mark.parametrize("batched", [False, True])
def test_checkpointed_regions_draw_again_what_they_drew(batched, device):
    check_checkpoint(batched, device)


def test_a_region_that_does_not_keep_its_draws_is_refused():
    def loss(p, x):
        return checkpoint(
            lambda h: F.dropout(h, 0.5).square(), p["w"] * x, use_reentrant=False, preserve_rng_state=False
        ).sum()

    with pytest.raises(RuntimeError, match="preserve_rng_state=True"):
        gf.per_sample_grads(loss, engine="loop").at(0)(*problem())


# --- recurrences -------------------------------------------------------------------------------------

RECURRENT = {
    "LSTM": lambda: nn.LSTM(6, 3, batch_first=True),
    "LSTM, projected, both ways": lambda: nn.LSTM(6, 4, 2, batch_first=True, proj_size=2, bidirectional=True),
    "GRU": lambda: nn.GRU(6, 3, 2, batch_first=True),
    "RNN": lambda: nn.RNN(6, 3, batch_first=True, nonlinearity="relu"),
    "RNN, both ways, no bias": lambda: nn.RNN(6, 3, batch_first=True, bidirectional=True, bias=False),
}
CELLS = {
    "LSTM cell": lambda: nn.LSTMCell(6, 3),
    "GRU cell": lambda: nn.GRUCell(6, 3),
    "RNN cell": lambda: nn.RNNCell(6, 3),
}


@pytest.mark.parametrize("name", [*RECURRENT, *CELLS])
@pytest.mark.parametrize("chunk_size", [None, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_recurrent_layers_run_under_vmap(name, engine, chunk_size, device):
    model = gf.stateless({**RECURRENT, **CELLS}[name]().to(device, F64))
    x = problem(device)[1]

    def layer(p, x):
        return model(p, x.unsqueeze(0))[0].square().sum()

    def cell(p, x):
        state = None
        for step in x.unsqueeze(1):
            state = model(p, step, state)
        return (state[0] if isinstance(state, tuple) else state).square().sum()

    loss = cell if name in CELLS else layer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g = gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size)(model.params, x)
    assert g.engine == ("factored" if engine == "auto" else engine)
    close_rows(g.materialize(), truth(loss, model.params, B, (x,)).rows)


# --- other draws, and the warning ----------------------------------------------------------------------


def gamma(p, x):
    concentration = p["w"].exp() + x.abs()
    return (torch._standard_gamma(concentration) * x).sum() + F.dropout(x, 0.5).sum() * p["w"].sum()


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_what_torch_alone_can_draw_goes_with_the_ids_in_the_loop(chunk_size):
    params, x = problem()
    f = gf.per_sample_grads(gamma, chunk_size=chunk_size)
    with pytest.warns(gf.GradfuncWarning, match="it draws what torch alone can draw"):
        g = f.at(0, range(3, 9))(params, x)
    assert g.engine == "loop"
    close_rows(g.select([4]).materialize(), f.at(0, [7])(params, x[4:5]).materialize())
    close_rows(gf.concatenate(g.split(4)).materialize(), g.materialize())


def test_losses_alone_draw_what_the_call_draws_whatever_came_before():
    params, x = problem()
    f = gf.per_sample_grads(gamma).at(0, range(3, 3 + len(x)))
    first = f.losses(params, x).numerator
    with pytest.warns(gf.GradfuncWarning, match="it draws what torch alone can draw"):
        assert same_bits(f(params, x).losses, first)
    assert same_bits(f.losses(params, x).numerator, first)
    assert same_bits(gf.per_sample_grads(gamma).at(0, [7]).losses(params, x[4:5]).numerator, first[4:5])


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_other_draws_repeat_and_follow_seed_and_step(engine, chunk_size):
    def loss(p, x):
        return (p["w"] * x).flatten()[torch.multinomial(x.abs().flatten(), 5)].sum()

    def rows(seed=0, step=0):
        return gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size, seed=seed).at(step)(*problem())

    g = rows()
    assert same_bits(g.materialize(), g.materialize())
    assert same_bits(g.materialize(), rows().materialize())
    assert not same_bits(g.materialize(), rows(seed=1).materialize())
    assert not same_bits(g.materialize(), rows(step=1).materialize())
    picked = (g.materialize()["w"] != 0).flatten(1)
    assert len({tuple(row.tolist()) for row in picked}) > 1


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "draw", [lambda x: F.dropout(x, 0.5), lambda x: x * torch.poisson(x.detach().abs())], ids=["keyed", "torch's own"]
)
def test_a_loss_that_draws_without_a_step_warns_once(batched, draw):
    def loss(p, x):
        return draw(p["w"] * x).flatten(1 if batched else 0).sum(-1)

    f = gf.per_sample_grads(loss, batched=batched)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f(*problem())
    told = [w for w in caught if "f.at(step, index=ids)" in str(w.message)]
    assert [(w.category, w.filename) for w in told] == [(gf.GradfuncWarning, __file__)]
    f(*problem())
    f.at(1)(*problem())


def test_naming_the_step_warns_of_nothing():
    gf.per_sample_grads(LOSSES["dropout"]).at(0)(*problem())
    gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(*problem())


BAD = {
    "step: a float": (lambda f: f.at(1.0), TypeError, r"gf\.per_sample_grads\(loss\)\.at\(step, index\): got step=1.0"),
    "step: a bool": (lambda f: f.at(True), TypeError, "step=True"),
    "step: negative": (lambda f: f.at(-1), ValueError, "step=-1"),
    "index: floats": (lambda f: f.at(0, torch.ones(B))(*problem()), TypeError, "dtype torch.float32"),
    "index: bools": (lambda f: f.at(0, [True] * B)(*problem()), TypeError, "bools as index"),
    "index: short": (lambda f: f.at(0, [1, 2])(*problem()), ValueError, "index of 2 samples.*one id for each of 6"),
    "index: a string": (lambda f: f.at(0, "abc")(*problem()), TypeError, "one integer a sample"),
    "index: batched": (
        lambda f: gf.per_sample_grads(native, batched=True).at(0, range(B)),
        ValueError,
        "an index beside batched=True",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_told_what_is_wrong(name):
    bad, error, text = BAD[name]
    with pytest.raises(error, match=text):
        bad(gf.per_sample_grads(LOSSES["dropout"]))
