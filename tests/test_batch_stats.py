"""Batch norms: refused by default, frozen, or run together; and the table of what takes their place."""

from __future__ import annotations

import pytest
import torch
from oracle import close_rows
from torch import nn

import gradfunc as gf

F64 = torch.float64


def net(**options):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, **options), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8),
        nn.BatchNorm1d(8, **options), nn.Dropout(0.5), nn.Linear(8, 3),
    ).to(F64)  # fmt: skip
    for layer in (module[1], module[5]):
        if layer.running_mean is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module.train()


def batch(size=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 2, 4, 4, generator=generator, dtype=F64), torch.arange(size) % 3


def looped(losses, params):
    """Each loss by a backward pass of its own."""
    each = [torch.autograd.grad(loss, list(params.values()), retain_graph=True) for loss in losses]
    return {name: torch.stack(column) for name, column in zip(params, zip(*each, strict=True), strict=True)}


def leaves(model):
    return {name: value.clone().requires_grad_() for name, value in model.params.items()}


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
@pytest.mark.parametrize("batched", [False, True])
def test_frozen_layers_normalise_by_running_statistics_and_nothing_else_changes_its_mode(engine, batched):
    module = net()
    if batched and engine == "vmap":
        pytest.skip("a batch that is run natively needs no vmap")
    model = gf.stateless(module, batch_stats="frozen")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    seen = []
    module[6].register_forward_hook(lambda layer, args, out: seen.append(layer.training))

    def loss(params, x, y):
        run = model if batched else model.sample
        return gf.losses.cross_entropy(run(params, x), y, **({"batched": True} if batched else {}))

    x, y = batch()
    g = gf.per_sample_grads(loss, engine=engine, batched=batched).at(step=0)(model.params, x, y)
    assert seen
    assert all(seen)  # dropout is in train mode
    assert module[1].training
    assert module[5].training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module[6] = nn.Identity()
    plain = gf.stateless(module, batch_stats="frozen")

    def still(params, x, y):
        return gf.losses.cross_entropy(plain(params, x), y, batched=True)

    rows = gf.per_sample_grads(still, batched=True)(plain.params, x, y).materialize()
    module.eval()
    params = leaves(gf.stateless(module))
    losses = nn.functional.cross_entropy(torch.func.functional_call(module, params, (x,)), y, reduction="none")
    close_rows(rows, looped(losses, params))
    assert g.batch_size == 5


def test_frozen_differs_from_the_batch_s_own_statistics():
    """A mutant that forgets to freeze is noticed: it would be the joint batch."""
    module, (x, _) = net(), batch()
    module[6] = nn.Identity()
    frozen, together = (gf.stateless(module, batch_stats=b) for b in ("frozen", "batch"))
    assert not torch.allclose(frozen(frozen.params, x), together(together.params, x))


def test_frozen_needs_running_statistics():
    with pytest.raises(
        ValueError, match=r"'frozen' and layer '1', which has no running statistics.*nn\.GroupNorm\(6, 6\)"
    ):
        gf.stateless(net(track_running_stats=False), batch_stats="frozen")


@pytest.mark.parametrize("engine", ["auto", "factored", "loop"])
@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}])
def test_a_joint_batch_gives_the_rows_of_its_losses(engine, options):
    """Row i is the derivative of loss i, with statistics to which every sample contributes."""
    module = net(**options)
    module[6] = nn.Identity()
    model = gf.stateless(module, batch_stats="batch")

    def losses(params, x, y):
        return gf.losses.cross_entropy(model(params, x), y, batched=True)

    x, y = batch()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    g = gf.per_sample_grads(losses, engine=engine, batched=True)(model.params, x, y)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    params = leaves(model)
    want = nn.functional.cross_entropy(torch.func.functional_call(module, params, (x,)), y, reduction="none")
    close_rows(g.materialize(), looped(want, params))
    own = torch.autograd.grad(want.mean(), list(params.values()))
    close_rows({n: m[None] for n, m in g.mean().items()}, {n: o[None] for n, o in zip(params, own, strict=True)})


def test_a_row_of_a_joint_batch_depends_on_its_neighbours():
    module = net()
    module[6] = nn.Identity()
    model = gf.stateless(module, batch_stats="batch")
    f = gf.per_sample_grads(lambda p, x, y: gf.losses.cross_entropy(model(p, x), y, batched=True), batched=True)
    x, y = batch()
    rows = [f(model.params, t, y).materialize()["0.weight"][0] for t in (x, torch.cat([x[:4], 2 * x[4:]]))]
    assert not torch.allclose(*rows)


def test_the_error_and_the_table_name_layers_and_substitutes():
    model = gf.stateless(net())
    with pytest.raises(RuntimeError, match=r"layer '1' \(BatchNorm2d\) \(and 1 more\).*batch_stats='frozen'"):
        model(model.params, batch()[0])
    report = model.batch_stat_report()
    assert not report.ok
    assert [layer.name for layer in report.layers] == model.batch_stat_layers() == ["1", "5"]
    assert "nn.GroupNorm(6, 6)" in str(report)
    assert report.to_dict()["layers"][1]["channels"] == 8
    for layer in report.layers:
        for code in layer.substitutes[-2:]:
            made = eval(code.split("#")[0], {"nn": nn})
            assert made(torch.randn(4, layer.channels, 3)).shape == (4, layer.channels, 3)
    for fine in (gf.stateless(net(), batch_stats="frozen"), gf.stateless(net().eval())):
        assert fine.batch_stat_report().ok
        assert str(fine.batch_stat_report()).strip()
