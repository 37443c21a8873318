"""Both ends of the Hessian's spectrum: against dense Hessians, and mistakes that are noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from oracle import TOLERANCE, at, split
from tiers import every
from torch import nn
from torch.nn import functional as F
from train import regression

import gradfunc as gf
from gradfunc.quantities import _curvature, _ends, _hessian

F64 = torch.float64
extremes = gf.quantities.hessian_extremes


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tanh_net(p, x, y):
    return (torch.tanh(x @ p["w"]) @ p["v"] + p["b"] - y).square().sum()


def classes(p, x, y):
    weight = torch.tensor([0.2, 3.0, 1.0], dtype=x.dtype)
    return gf.losses.cross_entropy(torch.tanh(x @ p["w"]) @ p["v"], y, weight=weight, ignore_index=-1)


def form(matrix):
    """A loss whose Hessian is this matrix, whatever the batch."""
    matrix = torch.as_tensor(matrix, dtype=F64)
    return lambda p, x: 0.5 * p["w"] @ matrix @ p["w"] * (1 + 0 * x)


def rotated(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    q = torch.linalg.qr(draw(len(values), len(values), seed=seed))[0]
    matrix = q @ torch.diag(torch.as_tensor(values, dtype=F64)) @ q.T
    return (matrix + matrix.T) / 2


NET = {"w": draw(3, 4), "v": draw(4, 3, seed=1), "b": draw(3, seed=2), "idle": draw(2, seed=3)}
ONE = (torch.ones(1, dtype=F64),)
PROBLEMS = {
    "tanh": (tanh_net, NET, (draw(7, 3), draw(7, 3, seed=4))),
    "class weights, ignored samples": (classes, NET, (draw(7, 3), torch.tensor([0, 1, 2, -1, 1, 0, 1]))),
    "the lower end is the larger": (form(rotated([2.0, 1.0, 0.5, -1.0, -7.0])), {"w": draw(5)}, ONE),
    "both ends are alike": (form(rotated([4.0, 1.0, 0.0, 0.0, -4.0])), {"w": draw(5)}, ONE),
    "negative": (form(rotated([-1.0, -2.0, -3.0])), {"w": draw(3)}, ONE),
    "no curvature": (lambda p, x: (p["w"] * x).sum(), {"w": draw(4)}, (draw(3, 4),)),
    "one entry": (lambda p, x: (p["w"] * x).square(), {"w": draw(())}, (draw(3),)),
    "multiple eigenvalues": (form(rotated([5.0] * 3 + [1.0] * 6 + [-2.0] * 2)), {"w": draw(11)}, ONE),
    "low rank": (form(rotated([3.0] + [0.0] * 30)), {"w": draw(31)}, ONE),
    "a multiple of the identity": (form(3 * torch.eye(30, dtype=F64)), {"w": draw(30)}, ONE),
    "huge": (form(rotated([1e200, 1e199, -1e200] + [0.0] * 5)), {"w": draw(8) * 1e-200}, ONE),
    "tiny": (form(rotated([2e-200, 1e-200, -1e-200] + [0.0] * 5)), {"w": draw(8)}, ONE),
}


def truth(loss, params, batch):
    """The Hessian of the mean loss, `[P, P]`: samples one by one, by autograd."""
    shapes = {name: value.shape for name, value in params.items()}

    def mean(flat):
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        p = {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        rows = [split(loss(p, *at(tuple(batch), i))) for i in range(len(batch[0]))]
        return sum(n for n, _ in rows) / sum(w for _, w in rows)

    flat = torch.cat([value.flatten() for value in params.values()])
    return torch.autograd.functional.hessian(mean, flat)


def check_pairs(found, matrix):
    """An eigenvalue lies within the residual, which is what it says; the ends are the ends."""
    values = torch.linalg.eigvalsh(matrix)
    norm = float(values.abs().max())
    slack = TOLERANCE * norm
    assert found.ok
    for pair in (*found.largest, *found.smallest):
        assert float((values - pair.value).abs().min()) <= pair.residual + slack
        vector = torch.cat([value.flatten() for value in pair.vector.values()])
        assert abs(float(vector.norm()) - 1) <= TOLERANCE
        residual = matrix / (norm or 1) @ vector - pair.value / (norm or 1) * vector
        assert abs(float(residual.norm()) - pair.residual / (norm or 1)) <= TOLERANCE
    assert abs(found.sharpness - float(values[-1])) <= found.largest[0].residual + slack
    assert abs(found.smallest[0].value - float(values[0])) <= found.smallest[0].residual + slack
    assert abs(found.norm - norm) <= max(pair.residual for pair in (*found.largest, *found.smallest)) + slack


def check_problem(name, method):
    loss, params, batch = PROBLEMS[name]
    check_pairs(extremes(loss, params, batch, method=method), truth(loss, params, batch))


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_ends_of_a_dense_hessian(name, method):
    if method == "lanczos" and name == "one entry":
        with pytest.raises(ValueError, match="k=1 from each end of 1 eigenvalues, by method='lanczos'; expected 2 k"):
            check_problem(name, method)
    else:
        check_problem(name, method)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_several_from_each_end(method):
    loss, params, batch = PROBLEMS["tanh"]
    matrix = truth(loss, params, batch)
    values = torch.linalg.eigvalsh(matrix)
    found = extremes(loss, params, batch, k=3, method=method)
    check_pairs(found, matrix)
    for want, pair in zip([*values.flip(0)[:3], *values[:3]], [*found.largest, *found.smallest], strict=True):
        assert abs(float(want) - pair.value) <= pair.residual + TOLERANCE * found.norm


def test_no_more_than_there_are():
    found = extremes(form(rotated([1.0, -2.0])), {"w": draw(2)}, ONE, k=5)
    assert [round(pair.value, 9) for pair in found.largest] == [1.0, -2.0]
    assert [round(pair.value, 9) for pair in found.smallest] == [-2.0, 1.0]


def batched_classes(p, x, y):
    weight = torch.tensor([0.2, 3.0, 1.0], dtype=x.dtype)
    out = torch.tanh(x @ p["w"]) @ p["v"]
    return gf.losses.cross_entropy(out, y, weight=weight, ignore_index=-1, batched=True)


def ragged_classes():
    _, params, (x, y) = PROBLEMS["class weights, ignored samples"]
    cut = [1, 3, 2, 1, 3, 2, 3]  # features of a sample; the rest is 0

    def loss(p, x, y):
        return classes({**p, "w": p["w"][: len(x)]}, x, y)

    rows = [row[:n] for row, n in zip(x, cut, strict=True)]
    full = torch.stack([F.pad(row, (0, 3 - len(row))) for row in rows])
    return extremes(loss, params, (gf.ragged(rows), y), method="lanczos"), truth(classes, params, (full, y))


def check_chunks():
    loss, params, batch = PROBLEMS["class weights, ignored samples"]
    matrix = truth(loss, params, batch)
    for options in ({"chunk_size": 1}, {"chunk_size": 3}, {"engine": "loop"}, {"engine": "loop", "chunk_size": 2}):
        check_pairs(extremes(loss, params, batch, method="lanczos", **options), matrix)
    check_pairs(extremes(batched_classes, params, batch, batched=True), matrix)
    check_pairs(extremes(gf.per_sample_grads(loss, chunk_size=5), params, {"x": batch[0], "y": batch[1]}), matrix)
    check_pairs(*ragged_classes())


def test_chunks_are_the_whole():
    check_chunks()


def test_selected_parameters():
    loss, params, batch = PROBLEMS["tanh"]
    fixed = {name: params[name] for name in ("w", "idle")}
    matrix = truth(lambda p, x, y: loss({**p, **fixed}, x, y), {name: params[name] for name in ("v", "b")}, batch)
    found = extremes(loss, params, batch, wrt=["v", "b"])
    check_pairs(found, matrix)
    assert list(found.largest[0].vector) == ["v", "b"]


def exploding():
    """The regression whose training explodes at a learning rate of 0.01."""
    model = regression.model()
    return regression.losses_of(model), model.params, regression.data()


def check_exploding(method):
    """2 / lr is 200: the sharpness stands just below, and an eigenvalue of the other sign beside it."""
    loss, params, batch = exploding()
    found = extremes(loss, params, batch, batched=True, method=method)
    assert (f"{found.sharpness:.1f}", f"{found.smallest[0].value:.1f}") == ("198.4", "-197.9")
    assert found.dtype == "float64"
    assert found.ok
    assert 0.99 < found.stability(0.01) < 1 < found.stability(0.0102)
    assert found.critical_lr == 2 / found.sharpness


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_the_exploding_regression(method):
    check_exploding(method)


def test_power_iteration_misleads_there():
    """A hundred steps end anywhere between the two ends, with the start vector: why there is Lanczos."""
    loss, params, batch = exploding()
    hessian = _hessian.MeanHessian.of("", gf.per_sample_grads(loss, batched=True), (params, batch, {}), None)
    found = []
    for seed in (0, 1, 5):
        vector = draw(hessian.size, seed=seed)
        for _ in range(100):
            vector = hessian.product(vector)
            vector = vector / vector.norm()
        found.append(float(vector @ hessian.product(vector)))
    assert [round(value, -1) for value in found] == [200, -70, -170]


def test_stability_is_that_of_gradient_descent():
    matrix = rotated([4.0, 1.0, 0.25])
    found = extremes(form(matrix), {"w": draw(3)}, ONE)
    for lr, grows in ((0.99 * found.critical_lr, False), (1.01 * found.critical_lr, True)):
        w = draw(3)
        start = w.norm()
        for _ in range(1000):
            w = w - lr * matrix @ w
        assert (found.stability(lr) > 1) is grows is bool(w.norm() > start)


def clustered(values=200):
    """Many eigenvalues close together at the lower end."""
    return form(rotated([1.0, 0.5] + [-1 - 1e-5 * k for k in range(values - 2)])), {"w": draw(values)}


def check_cluster(tol):
    loss, params = clustered()
    found = extremes(loss, params, ONE, method="lanczos", tol=tol)
    check_pairs(found, truth(loss, params, ONE))
    return found


def test_a_cluster_takes_more_vectors():
    assert check_cluster(1e-9).products > 105  # twenty vectors did not do
    assert check_cluster(1e-3).products < 105


def test_too_few_products():
    loss, params = clustered()
    for limit in (10, 120):
        with pytest.raises(RuntimeError, match=rf"no convergence of both ends within {limit} products at tol=1e-12"):
            extremes(loss, params, ONE, method="lanczos", tol=1e-12, max_products=limit)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def by_formula(p, x, y):
    """The same for one sample, written out."""
    q, k, v = (part.unflatten(-1, (2, 2)).transpose(0, 1) for part in F.linear(x, p["w"], p["b"]).chunk(3, -1))
    mixed = (q @ k.mT / 2**0.5).softmax(-1) @ v
    out = F.linear(mixed.transpose(0, 1).flatten(1), p["o"], p["c"])
    return gf.Weighted((out - y).square().sum(), torch.tensor(float(y.numel()), dtype=F64))


def test_attention_has_second_derivatives():
    """The fused kernels have none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = gf.stateless(Attention().double())
    batch = (draw(3, 5, 4), draw(3, 5, 4, seed=1))
    names = {"inner.in_proj_weight": "w", "inner.in_proj_bias": "b"}
    names |= {"inner.out_proj.weight": "o", "inner.out_proj.bias": "c"}
    matrix = truth(by_formula, {names[name]: value for name, value in model.params.items()}, batch)
    one = lambda p, x, y: gf.losses.mse(model.sample(p, x), y)  # noqa: E731
    for options in ({}, {"engine": "loop"}, {"chunk_size": 2}):
        check_pairs(extremes(one, model.params, batch, method="lanczos", **options), matrix)
    native = lambda p, x, y: gf.losses.mse(model(p, x), y, batched=True)  # noqa: E731
    check_pairs(extremes(native, model.params, batch, batched=True), matrix)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_operators_have_second_derivatives(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = kind(2, 3, batch_first=True).double()
    model, batch = gf.stateless(layer, out_dims=(0, 1)), (draw(3, 4, 2), draw(3, 4, 3, seed=1))
    one = lambda p, x, y: gf.losses.mse(model.sample(p, x)[0], y)  # noqa: E731
    native = lambda p, x, y: gf.losses.mse(model(p, x)[0], y, batched=True)  # noqa: E731
    names = list(model.params)

    def hessian(*values):
        p = dict(zip(names, values, strict=True))
        return F.mse_loss(torch.func.functional_call(layer, p, (batch[0],))[0], batch[1])

    blocks = torch.autograd.functional.hessian(hessian, tuple(model.params.values()))
    sizes = [value.numel() for value in model.params.values()]
    rows = [[b.reshape(n, m) for b, m in zip(row, sizes, strict=True)] for row, n in zip(blocks, sizes, strict=True)]
    matrix = torch.cat([torch.cat(row, 1) for row in rows])
    check_pairs(extremes(one, model.params, batch, method="lanczos"), matrix)
    check_pairs(extremes(native, model.params, batch, batched=True), matrix)


def test_draws_are_the_same_in_every_product():
    def dropped(p, x):
        return F.dropout(torch.tanh(p["w"] * x), 0.5).square().sum()

    found = extremes(dropped, {"w": draw(30)}, (draw(5, 30),), method="lanczos", chunk_size=2)
    assert found.ok
    assert found != extremes(dropped, {"w": draw(30)}, (draw(5, 30),), method="lanczos", chunk_size=2, seed=1)


def test_low_precision_is_cast_where_it_can_be():
    loss, params, batch = PROBLEMS["tanh"]
    matrix = truth(loss, params, batch)
    low = {name: value.float() for name, value in params.items()}
    rounded = truth(loss, {name: value.double() for name, value in low.items()}, [t.float().double() for t in batch])
    given = [t.float() for t in batch]
    found = extremes(loss, low, given)
    assert found.dtype == "float64"
    check_pairs(found, rounded)
    kept = low["v"]  # closed over: it is not cast, so all runs in float32
    closed = extremes(lambda p, x, y: loss({**p, "v": kept}, x, y), {k: low[k] for k in ("w", "b")}, given)
    own = truth(lambda p, x, y: loss({**p, "v": kept.double()}, x, y), {k: params[k] for k in ("w", "b")}, batch)
    assert closed.dtype == "float32"
    off = abs(closed.sharpness - float(torch.linalg.eigvalsh(own)[-1]))
    assert 0 < off <= float(torch.finfo(torch.float32).eps) ** 0.5 * closed.norm  # half of the digits, or it is wrong
    assert extremes(loss, params, batch, dtype=torch.float32).dtype == "float32"
    check_pairs(extremes(loss, params, batch), matrix)


def test_the_seed_makes_it_repeat():
    loss, params, batch = PROBLEMS["tanh"]
    once, again, other = (extremes(loss, params, batch, method="lanczos", seed=seed) for seed in (3, 3, 4))
    assert once == again
    for name, value in once.largest[0].vector.items():
        assert torch.equal(value, again.largest[0].vector[name])
    assert once != other


def test_nothing_is_touched(device):
    loss, params, batch = PROBLEMS["class weights, ignored samples"]
    loss = tanh_net
    batch = [draw(7, 3).to(device), draw(7, 3, seed=4).to(device)]
    given = {name: value.to(device).requires_grad_() for name, value in params.items()}
    before = {name: (value.detach().clone(), value._version) for name, value in given.items()}
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()
    with torch.no_grad():
        found = extremes(loss, given, batch, method="lanczos")
    check_pairs(found, truth(loss, params, [t.cpu() for t in batch]))
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    for name, (value, version) in before.items():
        assert torch.equal(given[name].detach(), value)
        assert given[name]._version == version
        assert given[name].grad is None
        assert not found.largest[0].vector[name].requires_grad


def test_the_report():
    found = extremes(form(rotated([2.0, 1.0, -7.0])), {"w": draw(3)}, ONE, k=2)
    text = str(found)
    for part in ("3 parameters, dense, 7 Hessian-vector products", "largest, 2", "-7", "learning rate of 1."):
        assert part in text
    assert "power iteration would find that" in text
    told = json.loads(json.dumps(found.to_dict()))
    assert told["sharpness"] == found.sharpness == told["largest"][0]["value"]
    assert [round(pair["value"], 9) for pair in told["smallest"]] == [-7.0, 1.0]
    flat = extremes(*PROBLEMS["no curvature"])
    assert flat.critical_lr == float("inf")
    assert flat.to_dict()["critical_lr"] == "inf"
    assert flat.stability(10.0) == 0


def branching(p, x):
    return (p["w"] * x).square().sum() if x.sum() > 0 else p["w"].square().sum()


def test_what_torch_func_cannot_run_goes_sample_by_sample():
    params, batch = {"w": draw(4)}, (draw(5, 4),)
    with pytest.warns(gf.GradfuncWarning, match=r"torch.func cannot run this loss .* sample by sample"):
        found = extremes(branching, params, batch)
    check_pairs(found, truth(branching, params, batch))


W = {"w": torch.ones(3, dtype=F64)}
X = (torch.ones(2, 3, dtype=F64),)


def square(p, x):
    return (p["w"] * x).square().sum()


BAD = {
    "k": (lambda: extremes(square, W, X, k=0), ValueError, "k=0; expected an int >= 1"),
    "a method": (lambda: extremes(square, W, X, method="power"), ValueError, "method='power'"),
    "a tolerance": (lambda: extremes(square, W, X, tol=0.0), ValueError, "tol=0.0; expected a finite number > 0"),
    "a dtype": (lambda: extremes(square, W, X, dtype=torch.int64), TypeError, "dtype=torch.int64"),
    "products": (lambda: extremes(square, W, X, max_products=1.5), TypeError, "max_products=1.5"),
    "a learning rate": (lambda: extremes(square, W, X).stability(-0.1), ValueError, "lr=-0.1"),
    "a text": (lambda: extremes(square, W, X).stability("1"), TypeError, "lr='1'"),
    "no loss": (lambda: extremes(3, W, X), TypeError, "an int; expected a function"),
    "parameters in a list": (lambda: extremes(square, [W["w"]], X), TypeError, "a list as params"),
    "an option": (lambda: extremes(square, W, X, engin="loop"), TypeError, "engin"),
    "options twice": (
        lambda: extremes(gf.per_sample_grads(square), W, X, chunk_size=2),
        TypeError,
        r"options \['chunk_size'\] beside a function that has its own",
    ),
    "no samples": (lambda: extremes(square, W, (torch.ones(0, 3, dtype=F64),)), ValueError, "a total weight of 0"),
    "no entries": (
        lambda: extremes(square, {"w": torch.ones(0)}, (torch.ones(2, 0),)),
        ValueError,
        "without an entry",
    ),
    "no finite curvature": (
        lambda: extremes(lambda p, x: (p["w"] * x).abs().pow(1.5).sum(), {"w": torch.zeros(3, dtype=F64)}, X),
        ValueError,
        "inf or NaN",
    ),
    "clipped cotangents": (
        lambda: extremes(lambda p, x: square({"w": gf.clip_cotangent(p["w"], value=1.0)}, x), W, X),
        ValueError,
        "clipped cotangents",
    ),
    "negative weights": (
        lambda: extremes(lambda p, x: gf.Weighted(square(p, x), -1.0), W, X),
        ValueError,
        "weight -1.0 for sample 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call()


by_matrix, by_lanczos, weigh, pair_of = _ends.by_matrix, _ends.by_lanczos, _hessian._weigh, _curvature._pair


def powered(products, k, **_):
    """Power iteration for one end, and for the other on what is left of the first."""
    vectors = []
    for seed in range(2):
        vector = draw(products.hessian.size, seed=seed).numpy()
        for _ in range(100):
            vector = products(vector)
            for known in vectors:
                vector = vector - known * (known @ vector)
            vector = vector / np.linalg.norm(vector)
        vectors.append(vector)
    return np.stack(vectors, 1)


def upper(products, k, **options):
    vectors = by_lanczos(products, 2 * k, **options)
    return vectors[:, 2 * k :]


def magnitudes(products, k, **_):
    """Both from the end that is larger in magnitude, as which="LM" gives them."""
    matrix = np.stack([products(row) for row in np.eye(products.hessian.size)])
    values, vectors = np.linalg.eigh(matrix)
    chosen = np.argsort(-abs(values))[: 2 * k]
    return vectors[:, np.sort(chosen)]


def counted(call, parts, kept):
    """The number of samples for the total weight."""
    held = list(parts)
    weigh(call, iter(held), kept)
    return float(sum(len(part.traced.weights) for part in held))


def averaged(self, vector):
    """The mean over chunks of their means."""
    out = []
    for part in self._parts():
        found = part.product(self.named(vector))
        weight = float(part.traced.weights.sum()) or 1.0
        out.append(torch.cat([value.detach().flatten() for value in found.values()]) / weight)
    return torch.stack(out).mean(0)


def boasted(products, vector):
    pair = pair_of(products, vector)
    return _curvature.Eigenpair(pair.value, 0.0, pair.vector)


WEIGHTED = "class weights, ignored samples"
MUTANTS = {
    "power iteration": (_curvature, "by_lanczos", powered, lambda: check_exploding("lanczos")),
    "power iteration, the lower end the larger": (
        _curvature,
        "by_lanczos",
        lambda products, k, **o: powered(products, k)[:, :1].repeat(2, 1),
        lambda: check_problem("the lower end is the larger", "lanczos"),
    ),
    "one end only": (_curvature, "by_lanczos", upper, lambda: check_problem("tanh", "lanczos")),
    "the largest magnitudes": (_curvature, "by_lanczos", magnitudes, lambda: check_problem("negative", "lanczos")),
    "not divided": (_hessian, "_weigh", lambda *a: min(weigh(*a), 1.0), lambda: check_problem("tanh", "dense")),
    "divided by the count": (_hessian, "_weigh", counted, lambda: check_problem(WEIGHTED, "dense")),
    "a mean of means": (_hessian.MeanHessian, "product", averaged, check_chunks),
    "a residual of 0": (_curvature, "_pair", boasted, lambda: check_cluster(1e-3)),
}


@pytest.mark.parametrize("name", every(3, MUTANTS))
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    owner, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(owner, attribute, mistake)
    with pytest.raises(AssertionError):
        law()
