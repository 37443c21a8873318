"""The zoo: models are what they are said to be, and gradfunc is exact on every one of them."""

from __future__ import annotations

import pytest
import torch
from oracle import TOLERANCE, check_queries, close, close_rows, flat

import gradfunc as gf
from gradfunc._zoo import MODELS

from .hooks import every_use, last_use, mean_loss, norms_of_positions, uses
from .problems import F64, MODES, arrived, looped, made, posed

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
UNVMAPPED = [name for name, model in MODELS.items() if not (model.vmap or model.scanned)]
# torch saves one number for the padding of all dimensions where it is asked for 'valid'.
EVERY = [(name, mode) for name in MODELS for mode in MODES]


# --- what they are ------------------------------------------------------------------------------------------------


def test_there_are_enough():
    assert len(MODELS) >= 150
    assert all(name == model.name for name, model in MODELS.items())
    assert len({model.name.lower() for model in MODELS.values()}) == len(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_as_described(name):
    model, module, (*inputs, target), criterion = made(name, torch.float32)
    assert model.hazard
    assert "\n" not in model.hazard
    assert model.vmap or "vmap" in model.hazard
    assert not (model.vmap and model.scanned)
    trainable = {key for key, p in module.named_parameters() if p.requires_grad}
    assert set(model.kinds) == trainable
    assert set(model.vmapped) <= trainable
    assert all(model.kinds[key] != kind for key, kind in model.vmapped.items())
    parts = {part for kind in model.kinds.values() for part in kind.split("+")}
    assert parts <= {"outer", "unfolded", "grouped", "rows", "dense", "-"}
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert 4 <= len(target) <= 6
    assert {t.shape[model.in_dims] for t in inputs} == {len(target)}
    out = module(*inputs)
    assert out.shape[model.out_dims] == len(target)
    assert torch.equal(module(*inputs), out)
    elements = criterion(out, target, reduction="none")
    assert len(elements) == len(target)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_counts(name):
    """A gradient in some sample, unlike another one's, unless it is said to have none."""
    model, want = MODELS[name], looped(name)
    for key, rows in want.rows.items():
        silent = key in model.asleep or model.kinds[key] == "-"
        assert bool(rows.any()) == (not silent), key
        assert rows.isfinite().all()
    rows = flat(want.rows)
    assert bool((rows == rows[0]).all()) == (name == "equal samples")


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.asleep])
def test_what_is_asleep_may_wake(name):
    """No unused parameter: it has a gradient for other values of the parameters."""
    model, module, (*inputs, target), criterion = made(name)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    grads = torch.autograd.grad(criterion(module(*inputs), target), [module.get_parameter(n) for n in model.asleep])
    assert all(grad.any() for grad in grads)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_torchs_own_vmap_runs_what_it_is_said_to_run(name):
    model, module, (*inputs, target), criterion = made(name)
    named = dict(module.named_parameters())
    params = {key: p.detach() for key, p in named.items() if p.requires_grad}
    rest = {key: p.detach() for key, p in (*named.items(), *module.named_buffers()) if key not in params}

    def loss(params, *sample):
        *own, y = sample
        own = tuple(t.unsqueeze(model.in_dims) for t in own)
        out = torch.func.functional_call(module, {**params, **rest}, own)
        return criterion(out, y.unsqueeze(0), reduction="sum")

    dims = (None, *[model.in_dims] * len(inputs), 0)
    rows = torch.func.vmap(torch.func.grad(loss), in_dims=dims)
    if model.vmap:
        want = looped(name).rows
        got = rows(params, *inputs, target)
        close(flat(got), flat(want), flat(want).norm(dim=1)[:, None], "rows")
    else:
        with pytest.raises(RuntimeError):
            rows(params, *inputs, target)


# --- gradfunc on them ---------------------------------------------------------------------------------------------


def check_arrived(g, said):
    """As the model says, of the engine that it says it of."""
    assert g.engine == "factored"
    assert arrived(g) == {key: "+".join(sorted(kind.split("+"))) for key, kind in said.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_query_of_a_batch_is_exact(name):
    g = posed(name).rows("native")
    check_queries(g, looped(name))
    check_arrived(g, MODELS[name].kinds)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in UNVMAPPED])
def test_rows_and_norms_of_a_loss_of_one_sample_are_exact(name):
    g, want = posed(name).rows("vmap", verify=False), looped(name)
    close_rows(g.materialize(), want.rows)
    norms = flat(want.rows).norm(dim=1)
    close(g.norms(), norms, norms, "norms")
    close(g.losses, want.losses, want.losses.abs() + 1, "losses")
    check_arrived(g, {**MODELS[name].kinds, **MODELS[name].vmapped})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in UNVMAPPED])
def test_every_query_of_a_loss_of_one_sample_is_exact(name):
    check_queries(posed(name).rows("vmap"), looped(name))


@pytest.mark.parametrize("name", UNVMAPPED)
def test_a_sample_at_a_time_where_vmap_cannot(name):
    with pytest.raises(RuntimeError):
        posed(name).rows("vmap")
    check_queries(posed(name).rows("vmap", engine="loop"), looped(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_certified(name, mode):
    """At both precisions: the loss is made for that of the parameters, with buffers and frozen parameters."""
    options = {"engine": "loop"} if mode == "vmap" and name in UNVMAPPED else {"engine": "factored"}
    by_dtype = {dtype: posed(name, dtype) for dtype in (F64, torch.float32)}
    given = by_dtype[F64]

    def loss(params, *tensors):
        losses = by_dtype[next(iter(params.values())).dtype].losses
        return (losses.rows if mode == "native" else losses.one)(params, *tensors)

    report = gf.testing.certify(loss, given.params, given.losses.tensors, batched=mode == "native", **options)
    assert report.ok, str(report)
    assert {row.verdict for row in report.rows} <= {"exact", "rounding"}, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_checked(name):
    """Nothing is found but what is right to be reported, and only torch's vmap keeps a check from running."""
    model, module, batch, criterion = made(name, torch.float32)
    stateless = gf.stateless(module, in_dims=model.in_dims, out_dims=model.out_dims)
    report = gf.testing.check_gradients(stateless, criterion, batch)
    assert {row.check for row in report.rows if row.verdict == "wrong"} == set(model.reported), str(report)
    assert report.ok == (not model.reported)
    idle = [row for row in report.rows if row.verdict in ("not run", "cannot tell")]
    assert all(row.check == "engines" for row in idle), str(report)
    assert not idle or name in UNVMAPPED, str(report)


# --- what it catches ----------------------------------------------------------------------------------------------


def wrong(name, rule):
    """Weights of linear layers whose rows (or norms) by a careless tool are not those of the loop."""
    want = looped(name).rows
    found = []
    for key, calls in uses(name).items():
        if key not in want:
            continue
        rows = rule(calls)
        right = want[key] if rows.dim() > 1 else want[key].flatten(1).norm(dim=1)
        same = rows.shape == right.shape and bool(((rows - right).abs() <= TOLERANCE * right.abs().max()).all())
        found += [] if same else [key]
    return found


@pytest.mark.parametrize(
    ("rule", "caught"),
    [
        (
            every_use,
            [
                "linear on a sequence, time first, T = B",
                "linear on a grid, transposed inside",
                "batch reversed and back",
                "queries through a layer before they meet the data",
                "transformer encoder layer, time first, norm first",
            ],
        ),
        (
            last_use,
            [
                "layer used twice",
                "layer used on a sequence and on its mean",
                "weight shared by two modules",
                "recurrence of linear layers",
            ],
        ),
        (mean_loss, ["MLP", "linear on a sequence", "tied embedding and head"]),
        (norms_of_positions, ["linear on a sequence", "causal attention by hand", "layer used twice"]),
    ],
)
def test_a_careless_tool_is_shown_wrong(rule, caught):
    """And right where its hazard does not act, so that it is the model that shows it."""
    assert all(wrong(name, rule) for name in caught)
    innocent = {mean_loss: [], norms_of_positions: ["MLP"]}.get(rule, ["linear on a sequence", "MLP", "equal samples"])
    assert not any(wrong(name, rule) for name in innocent)
