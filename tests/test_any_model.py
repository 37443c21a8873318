"""What models of daily work bring: autocast, hooks, sparse and renormed tables, wrappers, shards, packed sequences."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import close_rows, truth_batched
from tiers import every
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import gradfunc as gf

F64 = torch.float64


def integers(*shape, high=3):
    """Small ones: their products and short sums are exact in every floating type."""
    return torch.randint(-high + 1, high, shape).to(torch.float32)


# --- autocast ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("engine", "batched"), [("factored", True), ("auto", False), ("vmap", False), ("loop", False)])
def test_autocast_gives_the_types_of_plain_autograd_and_exact_numbers_are_exact(dtype, engine, batched):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = integers(5, 4)
    for p in module.parameters():
        p.data = integers(*p.shape)
    model = gf.stateless(module)

    def losses(params, x):
        with torch.autocast("cpu", dtype):
            out = (model if batched else model.sample)(params, x)
        assert out.dtype == dtype
        return out.float().sum(-1)

    g = gf.per_sample_grads(losses, engine=engine, batched=batched)(model.params, x)
    leaves = {name: p.clone().requires_grad_() for name, p in model.params.items()}
    with torch.autocast("cpu", dtype):
        out = torch.func.functional_call(module, leaves, (x,))
    plain = torch.autograd.grad(out.float().sum(), list(leaves.values()))
    for name, want in zip(leaves, plain, strict=True):
        assert want.dtype == g.sum()[name].dtype == g.mean()[name].dtype == g.materialize()[name].dtype
    exact = module.to(F64)

    def whole(params, x):
        return torch.func.functional_call(exact, params, (x,)).sum(1)

    rows = truth_batched(whole, {n: p.to(F64) for n, p in model.params.items()}, (x.to(F64),)).rows
    for name, got in g.materialize().items():
        assert torch.equal(got.to(F64), rows[name]), name


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("batched", [True, False])
def test_a_loss_under_autocast_is_computed_in_the_type_that_torch_chooses(engine, batched):
    """Cross entropy in float32; torch.vmap by itself computes it in bfloat16, where these losses are 0."""
    if batched and engine == "vmap":
        pytest.skip("a batch that is run natively needs no vmap")
    params, x, y = {"w": torch.tensor([[8.0, 0.0], [0.0, 0.0]])}, torch.eye(2)[:1].repeat(3, 1), torch.zeros(3).long()

    def losses(params, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.cross_entropy(x @ params["w"].T, y, reduction="none" if batched else "mean")

    g = gf.per_sample_grads(losses, engine=engine, batched=batched)(params, x, y)
    want = torch.tensor(8.0).neg().exp().log1p()  # what is left of numbers of size 8
    torch.testing.assert_close(g.losses, want.expand(3), rtol=0, atol=8 * torch.finfo(torch.float32).eps)
    assert g.losses.dtype == torch.float32
    assert (g.materialize()["w"][:, 0, 0] < 0).all()


INSIDE = {
    "a gradient": lambda p, x: slope((p["w"] * x).sin().sum(), p["w"]).square().sum(),
    "a hook": lambda p, x: doubled(p["w"] * x).sum().square(),
    "a copy": lambda p, x: (p["w"] * torch.tensor(x)).sum().square(),
    "frequencies": lambda p, x: table(x.abs().long() % 3, p["w"][:, None]).square().sum(),
}


def slope(value, of):
    return torch.autograd.grad(value, of, create_graph=True)[0]


def doubled(h):
    h.register_hook(lambda g: 2 * g)
    return h


def table(indices, weight):
    return nn.functional.embedding(indices, weight, scale_grad_by_freq=True)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("engine", ["auto", "vmap"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_runs_under_vmap_of_grad_and_not_under_vmap_alone(name, engine):
    """The engine is vmap or, where that drops or refuses something, the loop; the answer is that of the loop."""
    loss, params, x = INSIDE[name], {"w": torch.randn(3, dtype=F64)}, torch.randn(4, 3, dtype=F64)
    want = gf.per_sample_grads(loss, engine="loop")(params, x).materialize()
    try:
        g = gf.per_sample_grads(loss, engine=engine)(params, x)
    except gf.EngineError:
        assert engine == "vmap"
    else:
        close_rows(g.materialize(), want)


# --- hooks -------------------------------------------------------------------------------------------------------


def squares_of(module):
    """The losses of a batch that runs natively, hooks included."""
    return lambda params, x: torch.func.functional_call(module, params, (x,)).square().sum(1)


def hooked(kind):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)
    seen = []
    if kind == "forward":
        module[1].register_forward_hook(lambda layer, args, out: 2 * out)
    elif kind == "before":
        module[1].register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    elif kind == "backward":
        module[1].register_full_backward_hook(lambda layer, gi, go: (3 * gi[0],))
    else:
        module[1].register_full_backward_pre_hook(lambda layer, go: (3 * go[0],))
    module[1].register_forward_hook(lambda *args: seen.append(args))
    return module, seen


@pytest.mark.parametrize("kind", ["forward", "before", "backward", "before backward"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.filterwarnings("ignore::gradfunc.GradfuncWarning")
def test_hooks_of_modules_go_on_working(kind, batched):
    """Natively by factors; under vmap torch's own hooks into the backward pass are a wall, and the loop is taken."""
    module, seen = hooked(kind)
    model, x = gf.stateless(module), torch.randn(5, 3, dtype=F64)
    want = truth_batched(squares_of(module), model.params, (x,)).rows

    def losses(params, x):
        return (model if batched else model.sample)(params, x).square().sum(-1)

    seen.clear()
    g = gf.per_sample_grads(losses, batched=batched)(model.params, x)
    assert seen
    close_rows(g.materialize(), want)
    assert g.engine == ("factored" if batched or "backward" not in kind else "loop")


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize("batched", [True, False])
def test_hooks_of_the_old_form_are_refused_by_name(batched):
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    module[1].register_backward_hook(lambda layer, gi, go: None)
    model = gf.stateless(module)

    def losses(params, x):
        return (model if batched else model.sample)(params, x).sum(-1)

    with pytest.raises(RuntimeError, match=r"a Tanh with a hook of register_backward_hook.*full_backward_hook"):
        gf.per_sample_grads(losses, batched=batched)(model.params, torch.randn(4, 3))


@pytest.mark.parametrize("engine", ["auto", "factored"])
def test_what_vmap_drops_without_a_word_is_not_passed_on(engine):
    """Outside of `gf.stateless` nobody sees the module: sample 0 is run alone, and differs."""
    module, _ = hooked("backward")
    x = torch.randn(5, 3, dtype=F64)

    def loss(params, x):
        return torch.func.functional_call(module, params, (x[None],)).square().sum()

    params = {name: p.detach() for name, p in module.named_parameters()}
    with pytest.raises(RuntimeError, match=r"fail verification: the row of sample 0.*outside of vmap.*engine='loop'"):
        gf.per_sample_grads(loss, engine=engine)(params, x)
    g = gf.per_sample_grads(loss, engine="loop")(params, x)
    close_rows(g.materialize(), truth_batched(squares_of(module), params, (x,)).rows)


def test_what_asks_whether_it_requires_grad_is_not_passed_on():
    def loss(params, x):
        h = params["w"] * x
        return (2 * h if h.requires_grad else h).sum().square()

    with pytest.raises(RuntimeError, match="the row of sample 0"):
        gf.per_sample_grads(loss)({"w": torch.ones(3)}, torch.randn(4, 3))


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"sparse": True}, {"max_norm": 0.5}, {"sparse": True, "max_norm": 0.5, "padding_idx": 0}]
)
@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.filterwarnings("ignore::gradfunc.GradfuncWarning")
def test_sparse_and_renormed_tables(options, layer, batched):
    torch.manual_seed(0)
    options = {**options, **({"mode": "sum"} if layer is nn.EmbeddingBag else {})}
    module, ids = nn.Sequential(layer(9, 4, **options)).to(F64), torch.randint(9, (5, 3))
    before = module[0].weight.detach().clone()
    model = gf.stateless(module)
    scale = torch.linspace(1, 2, 4, dtype=F64)

    def losses(params, ids):
        return ((model if batched else model.sample)(params, ids) * scale).square().flatten(1 if batched else 0).sum(-1)

    g = gf.per_sample_grads(losses, batched=batched)(model.params, ids)
    assert torch.equal(module[0].weight, before)
    limit = options.get("max_norm", torch.inf)
    norms = before.norm(dim=1, keepdim=True)
    table = torch.where(norms > limit, before * (limit / (norms + 1e-7)), before)  # as torch renorms a row
    rows = torch.zeros(5, 9, 4, dtype=F64)
    for b in range(5):
        if layer is nn.EmbeddingBag:
            kept = [i for i in ids[b].tolist() if i != options.get("padding_idx")]
            bag = table[kept].sum(0)
            for i in kept:
                rows[b, i] += 2 * scale.square() * bag
        else:
            for i in ids[b].tolist():
                rows[b, i] += 2 * scale.square() * table[i] if i != options.get("padding_idx") else 0
    close_rows(g.materialize(), {"0.weight": rows})


# --- modules ---


@pytest.mark.parametrize("batched", [True, False])
def test_a_module_with_two_paths_stays_as_it_is(batched):
    layer = nn.Linear(4, 4).to(F64)
    norm = nn.BatchNorm1d(4).to(F64)
    module = nn.Sequential(layer, norm, nn.Tanh(), nn.Sequential(layer), norm)
    kept = {name: (id(t), t.clone()) for name, t in [*module.named_parameters(), *module.named_buffers()]}
    model = gf.stateless(module, batch_stats="batch" if batched else "frozen")
    x = torch.randn(5, 4, dtype=F64)

    def losses(params, x):
        return (model if batched else model.sample)(params, x).square().sum(-1)

    g = gf.per_sample_grads(losses, batched=batched)(model.params, x)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        assert id(tensor) == kept[name][0], name
        assert torch.equal(tensor, kept[name][1]), name
    assert isinstance(layer.weight, nn.Parameter)
    gf.assign_grads(module, g.mean())
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert torch.equal(layer.weight, kept["0.weight"][1] - g.mean()["0.weight"])


def test_a_frozen_norm_in_a_plain_list_is_refused_by_name_and_not_run_by_the_batch():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.order = [self.norm]

        def forward(self, x):
            return self.order[0](x)

    model = gf.stateless(Listed(), batch_stats="frozen")
    with pytest.raises(RuntimeError, match=r"not reached through its parent.*nn\.ModuleList"):
        model(model.params, torch.randn(4, 3))


@pytest.mark.parametrize("inside", ["noise", "dropout", "lstm", "twice"])
@pytest.mark.parametrize("engine", ["auto", "factored"])
def test_what_a_checkpointed_block_computes_again_is_what_it_computed(inside, engine):
    """Weights derived inside of the block, which rows are pulled back through, draws, scans, and two uses of one."""
    torch.manual_seed(0)
    params = {"v": torch.randn(4, 4, dtype=F64), "w": torch.randn(4, 4, dtype=F64), "s": torch.randn(4, 1, dtype=F64)}
    lstm = nn.LSTM(4, 4, batch_first=True).to(F64)
    named = {name: p.detach() for name, p in lstm.named_parameters()}

    def block(x, v, w, s):
        if inside == "noise":
            x = x + 0.5 * torch.randn_like(x)
        if inside == "dropout":
            x = nn.functional.dropout(x, 0.5)
        h = (x @ v).tanh()
        if inside == "lstm":
            h = torch.func.functional_call(lstm, named, (h[:, None],))[0][:, 0]
        scaled = w * s
        return (h @ scaled).sin() @ scaled if inside == "twice" else h @ scaled

    def losses(params, x, again=True):
        given = (x, params["v"], params["w"], params["s"])
        return (checkpoint(block, *given, use_reentrant=False) if again else block(*given)).square().sum(1)

    x = torch.randn(5, 4, dtype=F64)
    kept = gf.per_sample_grads(losses, batched=True, engine=engine).at(step=0)
    plain = gf.per_sample_grads(lambda p, x: losses(p, x, again=False), batched=True, engine="loop").at(step=0)
    want = plain(params, x).materialize()
    for _ in range(2):  # the plan is learnt, and known
        g = kept(params, x)
        assert g.engine == "factored"
        close_rows(g.materialize(), want)


# --- wrappers and shards -----------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_distributed_wrapper_is_taken_off():
    module = nn.Linear(3, 2)
    wrapped = nn.parallel.DistributedDataParallel(module)
    model = gf.stateless(wrapped)
    assert list(model.params) == ["weight", "bias"]
    g = gf.per_sample_grads(lambda p, x: model.sample(p, x).sum())(model.params, torch.ones(4, 3))
    gf.assign_grads(wrapped, g.mean())
    assert torch.equal(module.weight.grad, torch.ones(2, 3))
    gf.load_params(wrapped, {"bias": torch.zeros(2)})
    assert not module.bias.any()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_shards_are_refused_with_what_works():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    module = nn.Linear(3, 2)
    module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh))
    assert isinstance(module.weight, DTensor)
    sharded = nn.Sequential(nn.Linear(3, 2))
    fully_shard(sharded, mesh=mesh)
    for one, name in ((module, "weight"), (sharded, "0.weight")):
        for call in (gf.stateless, lambda m: gf.assign_grads(m, {}), lambda m: gf.load_params(m, {})):
            with pytest.raises(
                TypeError, match=rf"parameter '{name}', a DTensor; expected whole parameters.*unsharded"
            ):
                call(one)


# --- sequences ---------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """A recurrent layer over padded sequences with their lengths, and a head on its states."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.head = nn.Linear(6 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(out)


@pytest.mark.parametrize("kind", every(3, [nn.LSTM, nn.GRU, nn.RNN]))
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_packed_sequences_and_lists_of_sequences_are_the_same_and_factored(kind, options):
    torch.manual_seed(0)
    model = gf.stateless(Tagger(kind, **options).to(F64))
    lengths = torch.tensor([5, 2, 4, 1, 5])
    x, y = torch.randn(5, 5, 4, dtype=F64), torch.randint(3, (5, 5))
    y = y.masked_fill(torch.arange(5) >= lengths[:, None], -100)

    def losses(params, x, y):
        return gf.losses.cross_entropy(model(params, x, lengths), y, ignore_index=-100, batched=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = gf.per_sample_grads(losses, batched=True)(model.params, x, y)
    assert packed.engine == "factored"
    want = truth_batched(losses, model.params, (x, y)).rows
    close_rows(packed.materialize(), want)
    layer = gf.stateless(model.module.rnn, out_dims=(0, None))

    def loss(params, x, y):
        own = {name.removeprefix("rnn."): p for name, p in params.items() if name.startswith("rnn.")}
        states = layer(own, x[None])[0][0]
        return gf.losses.cross_entropy(states @ params["head.weight"].T + params["head.bias"], y)

    parts = [gf.ragged([t[:n] for t, n in zip(tensor, lengths, strict=True)]) for tensor in (x, y)]
    ragged = gf.per_sample_grads(loss)(model.params, *parts)
    assert ragged.engine == "factored"
    close_rows(ragged.materialize(), want)
    assert torch.equal(ragged.weights.long(), lengths)
