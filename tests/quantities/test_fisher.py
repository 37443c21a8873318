"""Fisher and Gauss-Newton matrices against dense ones: rows, products, Kronecker factors, traces."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import close, flat
from quantity_cases import CASES, EXACT, F64, Q, draw, rows_of
from tiers import every
from torch.nn import functional as F

import gradfunc as gf
from gradfunc.quantities import _corrected, _fisher, _kronecker, _likelihood, _products

PARAMS = {"one": draw(6, 5), "bias": draw(6, seed=4), "two": draw(3, 6, seed=1)}
X, Y = draw(7, 5, seed=2), torch.tensor([0, 2, 1, 1, 0, 2, 2])


def net(p, x):
    return F.linear(torch.tanh(F.linear(x, p["one"], p["bias"])), p["two"])


def jacobian(params=PARAMS, x=X):
    """`[n, K, P]` by torch's own reverse mode."""

    def outputs(*values):
        return net(dict(zip(params, values, strict=True)), x)

    parts = torch.autograd.functional.jacobian(outputs, tuple(params.values()))
    return torch.cat([part.flatten(2) for part in parts], 2)


# Outputs' Fisher matrix by definition: the mean over targets of the outer product of the score.
def scores(likelihood, out):
    """Every target's score and probability, `[targets, K]` and `[targets]`; of the normal, quadrature of degree 3."""
    k = len(out)
    if likelihood == "categorical":
        return torch.eye(k, dtype=F64) - out.softmax(0), out.softmax(0)
    if likelihood == "bernoulli":
        targets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * k)
        p = out.sigmoid()
        return targets - p, (targets * p + (1 - targets) * (1 - p)).prod(1)
    return torch.cat([torch.eye(k, dtype=F64), -torch.eye(k, dtype=F64)]) * math.sqrt(k), torch.full(
        (2 * k,), 0.5 / k, dtype=F64
    )


def dense_fisher(likelihood):
    """`[P, P]`."""
    j, total = jacobian(), 0
    for i, out in enumerate(net(PARAMS, X)):
        s, p = scores(likelihood, out)
        total = total + j[i].T @ (s.T * p) @ s @ j[i]
    return total / len(X)


def check_rows(likelihood, **options):
    """Second moment, diagonal, products and spectrum of the exact rows."""
    want = dense_fisher(likelihood)
    g = Q.fisher_rows(net, PARAMS, X, likelihood=likelihood, **options)
    rows, p = flat(g.materialize()) / g.weights[:, None], g.weights / g.weights.sum()
    scale = float(want.trace())
    close((rows.T * p) @ rows, want, scale, "Fisher matrix", EXACT)
    assert abs(float(g.weights.sum()) - len(X)) < 1e-12
    diagonal = torch.cat([v.flatten() for v in Q.fisher_diagonal(g).values()])
    close(diagonal, want.diagonal(), scale, "diagonal", EXACT)
    v = {name: draw(*value.shape, seed=8) for name, value in PARAMS.items()}
    vector = torch.cat([t.flatten() for t in v.values()])
    got = torch.cat([t.flatten() for t in Q.fisher_product(g, v).values()])
    close(got, want @ vector, scale * vector.norm(), "product", EXACT)


@pytest.mark.parametrize("options", [{}, {"engine": "vmap"}, {"chunk_size": 2}])
@pytest.mark.parametrize("likelihood", _likelihood.LIKELIHOODS)
def test_exact_rows_have_the_fisher_matrix(likelihood, options):
    check_rows(likelihood, **options)


def check_draws(likelihood, samples=3, copies=200):
    """The mean over drawn targets is within 7 standard errors of the exact trace and of a product along a direction.

    By the central limit theorem each interval fails with a chance of 3e-12.
    """
    want = dense_fisher(likelihood)
    g = Q.fisher_rows(net, PARAMS, X.repeat(copies, 1), likelihood=likelihood, samples=samples, seed=1)
    assert g.batch_size == samples * copies * len(X)
    assert abs(float(g.weights.sum()) - copies * len(X)) < 1e-9
    rows = flat(g.materialize()) / g.weights[:, None]
    direction = draw(rows.shape[1], seed=6)
    for each, true in (
        (rows.square().sum(1), want.trace()),
        ((rows @ direction).square(), direction @ want @ direction),
        (rows @ direction, torch.zeros(())),  # a score has mean 0
    ):
        each = each.view(samples * copies, len(X)).mean(1)
        assert abs(float(each.mean() - true)) <= 7 * float(each.std()) / math.sqrt(len(each))


@pytest.mark.parametrize("likelihood", _likelihood.LIKELIHOODS)
def test_drawn_targets_are_unbiased(likelihood):
    check_draws(likelihood)


def test_draws_come_from_the_seed_alone():
    a, b, other = (Q.fisher_rows(net, PARAMS, X, samples=2, seed=seed).norms() for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


# --- Gauss-Newton and Hessian --------------------------------------------------------------------------------------


def weighted(out, y):
    return gf.losses.cross_entropy(out, y, weight=torch.tensor([1.0, 0.2, 3.0], dtype=F64), ignore_index=1)


CRITERIA = {
    "cross entropy": (lambda out, y: F.cross_entropy(out, y), Y),
    "class weights, ignored samples": (weighted, Y),
    "squares": (lambda out, y: (out - y).square().sum() / 2, draw(7, 3, seed=5)),
    "linear": (lambda out, y: (out * y).sum(), draw(7, 3, seed=5)),
    "not convex": (lambda out, y: (out - y).sin().sum(), draw(7, 3, seed=5)),
}


def check_ggn(name):
    criterion, target = CRITERIA[name]
    j, total, weight = jacobian(), 0, 0.0
    for i, out in enumerate(net(PARAMS, X)):
        found = criterion(out, target[i])
        weight += float(found.weight) if isinstance(found, gf.Weighted) else 1.0

        def value(o, i=i):
            found = criterion(o, target[i])
            return found.numerator if isinstance(found, gf.Weighted) else found

        total = total + j[i].T @ torch.autograd.functional.hessian(value, out) @ j[i]
    want = total / weight
    product = Q.ggn_product(net, criterion, PARAMS, (X, target))
    for seed in range(2):
        v = {k: draw(*value.shape, seed=seed) for k, value in PARAMS.items()}
        vector = torch.cat([t.flatten() for t in v.values()])
        got = torch.cat([t.flatten() for t in product(v).values()])
        scale = float(j.square().sum()) * float(vector.norm())
        close(got, want @ vector, scale, "Gauss-Newton product", EXACT)


@pytest.mark.parametrize("name", CRITERIA)
def test_the_gauss_newton_product(name):
    check_ggn(name)


def test_gauss_newton_is_fisher_where_the_loss_is_the_likelihood():
    want = dense_fisher("categorical")
    product = Q.ggn_product(net, CRITERIA["cross entropy"][0], PARAMS, (X, Y))
    v = {k: draw(*value.shape) for k, value in PARAMS.items()}
    vector = torch.cat([t.flatten() for t in v.values()])
    got = torch.cat([t.flatten() for t in product(v).values()])
    close(got, want @ vector, float(want.trace() * vector.norm()), "product", EXACT)


def test_the_hessian_product():
    def mean(flat_):
        pieces = flat_.split([v.numel() for v in PARAMS.values()])
        p = {k: piece.view(v.shape) for (k, v), piece in zip(PARAMS.items(), pieces, strict=True)}
        return F.cross_entropy(net(p, X), Y)

    matrix = torch.autograd.functional.hessian(mean, torch.cat([v.flatten() for v in PARAMS.values()]))
    v = {k: draw(*value.shape) for k, value in PARAMS.items()}
    vector = torch.cat([t.flatten() for t in v.values()])
    for options in ({}, {"chunk_size": 2}, {"engine": "loop"}):
        product = Q.hessian_product(lambda p, x, y: F.cross_entropy(net(p, x), y), PARAMS, (X, Y), **options)
        got = torch.cat([t.flatten() for t in product(v).values()])
        close(got, matrix @ vector, float(matrix.norm() * vector.norm()), "product", EXACT)


# --- traces --------------------------------------------------------------------------------------------------------


def check_trace(distribution):
    """Within 7 standard errors, by the variance of the estimator in closed form; the stated error is about that."""
    half = draw(30, 30)
    matrix = half + half.T
    off = matrix.square().sum() - (matrix.diagonal().square().sum() if distribution == "rademacher" else 0)
    samples = 2000
    found = Q.hutchinson_trace(
        lambda v: {"w": (matrix @ v["w"].flatten()).view(5, 6)},
        {"w": torch.zeros(5, 6, dtype=F64)},
        samples=samples,
        distribution=distribution,
    )
    error = math.sqrt(2 * float(off) / samples)
    assert abs(found.value - float(matrix.trace())) <= 7 * error
    assert 0.8 * error <= found.error <= 1.25 * error  # 2000 draws: the root of a variance known to a few percent


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_hutchinson(distribution):
    check_trace(distribution)


def test_signs_are_exact_on_a_diagonal():
    scale = draw(9)
    found = Q.hutchinson_trace(lambda v: {"w": scale * v["w"]}, {"w": scale}, samples=3)
    assert abs(found.value - float(scale.sum())) < 1e-12
    assert found.error < 1e-12
    assert math.isnan(Q.hutchinson_trace(lambda v: v, {"w": scale}, samples=1).error)


# --- Kronecker factors ---------------------------------------------------------------------------------------------


WEIGHTS = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0, 3.0], dtype=F64)


def net_loss(p, x, y, w):
    return gf.Weighted(w * F.cross_entropy(net(p, x), y), w)


def sides(case):
    """Inputs and unit cotangents of every position by hand, for the layers of two cases, and weights."""
    if case == "mlp":
        leaves = {k: v.clone().requires_grad_() for k, v in PARAMS.items()}
        first = F.linear(X, leaves["one"], leaves["bias"])
        hidden = torch.tanh(first)
        out = F.linear(hidden, leaves["two"])
        back = torch.autograd.grad(F.cross_entropy(out, Y, reduction="sum"), [first, out])
        layers = {"one": (X[:, None], back[0][:, None]), "two": (hidden.detach()[:, None], back[1][:, None])}
        return layers, WEIGHTS
    _, params, (x, y) = CASES["a convolution"]
    pre = F.conv2d(x, params["conv.weight"], params["conv.bias"], padding=1).requires_grad_()
    loss = (pre.relu().mean((2, 3)) @ params["head"] - y).square().sum()
    (back,) = torch.autograd.grad(loss, pre)
    windows = F.unfold(x, 3, padding=1).mT  # [B, T, C k k]
    return {"conv.weight": (windows, back.flatten(2).mT / 2)}, torch.full((4,), 2.0, dtype=F64)  # elements a sample


def check_factors(case, setting):
    loss, params, batch = (net_loss, PARAMS, (X, Y, WEIGHTS)) if case == "mlp" else CASES["a convolution"]
    layers, weights = sides(case)
    p = weights / weights.sum()
    for options in ({}, {"chunk_size": 3}, {"chunk_size": 1}):
        found = Q.kronecker_factors(loss, params, batch, setting=setting, **options)
        for name, (x, e) in layers.items():
            if setting == "reduce":
                x, e = x.mean(1, keepdim=True), e.sum(1, keepdim=True)
            a = torch.einsum("b,bti,btj->ij", p, x, x) / x.shape[1]
            b = torch.einsum("b,bti,btj->ij", p, e, e)
            close(found.inputs[name], a, float(a.trace()), f"inputs of {name}", EXACT)
            close(found.outputs[name], b, float(b.trace()), f"outputs of {name}", EXACT)


@pytest.mark.parametrize("setting", _kronecker.SETTINGS)
@pytest.mark.parametrize("case", ["mlp", "convolution"])
def test_kronecker_factors_are_those_of_inputs_and_cotangents(case, setting):
    check_factors(case, setting)


def block_of(name, rows, weights):
    used = weights > 0
    u = rows[name][used].flatten(1) / weights[used][:, None]
    return (u.T * (weights[used] / weights.sum())) @ u


def check_single(likelihood=None):
    """Of one sample and one position the approximation is the matrix itself, block by block."""
    one = X[:1]
    if likelihood is None:
        found = Q.kronecker_factors(lambda p, x, y: F.cross_entropy(net(p, x), y), PARAMS, (one, Y[:1]))
        g = gf.per_sample_grads(lambda p, x, y: F.cross_entropy(net(p, x), y))(PARAMS, one, Y[:1])
    else:
        found = Q.kronecker_factors(net, PARAMS, one, likelihood=likelihood)
        g = Q.fisher_rows(net, PARAMS, one, likelihood=likelihood)
    rows = g.materialize()
    for name in PARAMS:
        want = block_of(name, rows, g.weights)
        close(found.dense(name), want, float(want.trace()), f"block of {name}", EXACT)


@pytest.mark.parametrize("likelihood", [None, *_likelihood.LIKELIHOODS])
def test_one_sample_has_its_fisher_matrix_exactly(likelihood):
    check_single(likelihood)


ONE_POSITION = {
    "a convolution": (lambda w, x: F.conv2d(x, w), draw(4, 5, 3, 3), draw(1, 5, 3, 3, seed=1)),
    "a transposed convolution": (lambda w, x: F.conv_transpose2d(x, w), draw(5, 4, 3, 3), draw(1, 5, 1, 1, seed=1)),
    "a product from the right": (lambda w, x: x @ w, draw(9, 8), draw(1, 9, seed=1)),
    "a part of a weight": (lambda w, x: F.linear(x, w[1:, :8]), draw(9, 9), draw(1, 8, seed=1)),
}


@pytest.mark.parametrize("name", ONE_POSITION)
def test_rows_of_every_layout_at_one_position(name):
    """Of one sample and one position every block is exact."""
    layer, weight, x = ONE_POSITION[name]
    scale = draw(layer(weight, x).numel(), seed=2)

    def one(p, x):
        return (layer(p["w"], x[None]).flatten().tanh() * scale).cumsum(0).square().sum()

    found = Q.kronecker_factors(one, {"w": weight}, x)
    want = block_of("w", gf.per_sample_grads(one)({"w": weight}, x).materialize(), torch.ones(1, dtype=F64))
    close(found.dense("w"), want, float(want.trace()), "block", EXACT)


def test_a_batch_that_runs_natively_has_the_same_factors():
    def native(p, x, y, w):
        return gf.Weighted(w * F.cross_entropy(net(p, x), y, reduction="none"), w)

    one = Q.kronecker_factors(net_loss, PARAMS, (X, Y, WEIGHTS))
    whole = Q.kronecker_factors(native, PARAMS, {"x": X, "y": Y, "w": WEIGHTS}, batched=True)
    scaled = Q.kronecker_factors(net_loss, PARAMS, (X, Y, WEIGHTS), loss_scale=2.0**10)
    for name in PARAMS:
        for other in (whole, scaled):
            close(other.dense(name), one.dense(name), float(one.dense(name).trace()), f"block of {name}", EXACT)


@pytest.mark.parametrize("name", CASES)
def test_vectors_and_diagonals_are_exact(name):
    loss, params, batch = CASES[name]
    rows, weights = rows_of(name)
    for options in ({}, {"chunk_size": 2}):
        found = Q.kronecker_factors(loss, params, batch, **options)
        for key in params:
            want = block_of(key, rows, weights)
            if key in found.diagonal:
                close(found.dense(key).diagonal(), want.diagonal(), float(want.trace()), f"diagonal of {key}", EXACT)
            elif params[key].dim() == 1:
                close(found.dense(key), want, float(want.trace()), f"block of {key}", EXACT)
    assert ("table" in found.diagonal) == ("table" in params)


def check_algebra(factors):
    """Products and inverses against the dense blocks."""
    for case in CASES:
        loss, params, batch = CASES[case]
        found = factors(loss, params, batch)
        v = {k: draw(*value.shape, seed=7) for k, value in params.items()}
        product, solved = found.product(v), found.solve(v, damping=0.1)
        for name, value in v.items():
            block = found.dense(name)
            assert product[name].shape == solved[name].shape == value.shape
            scale = float((block.norm() + 0.1) * value.norm())
            close(product[name].flatten(), block @ value.flatten(), scale, f"product of {name}", EXACT)
            again = block @ solved[name].flatten() + 0.1 * solved[name].flatten()
            close(again, value.flatten(), 10 * scale, f"inverse of {name}", EXACT)


def check_kronecker_algebra():
    # looked up when it is called, so that a planted mistake is met
    check_algebra(Q.kronecker_factors)


def test_products_and_inverses_of_kronecker_factors():
    check_kronecker_algebra()


# --- with the eigenvalues of the rows -------------------------------------------------------------------------------


def check_corrected(case, **options):
    """By definition on materialised rows, block by block; nearer to the Fisher matrix than what is not corrected."""
    loss, params, batch = CASES[case]
    rows, weights = rows_of(case)
    plain = Q.kronecker_factors(loss, params, batch, **options)
    found = Q.corrected_kronecker_factors(loss, params, batch, **options)
    for name in params:
        want = block_of(name, rows, weights)
        if name in found.diagonal:
            close(found.diagonal[name].flatten(), want.diagonal(), float(want.trace()), f"diagonal of {name}", EXACT)
            continue
        basis = torch.kron(found.outputs[name], found.inputs[name])
        turned = basis.T @ want @ basis
        scale = float(want.trace())
        close(basis.T @ basis, torch.eye(len(basis), dtype=F64), 1.0, f"eigenvectors of {name}", EXACT)
        own = basis.T @ plain.dense(name) @ basis
        close(own, torch.diag(own.diagonal()), float(own.trace()), f"block of {name} in its eigenvectors", EXACT)
        values = found.eigenvalues[name].flatten()
        close(values, turned.diagonal(), scale, f"second moments of turned rows of {name}", EXACT)
        close(values.sum(), want.trace(), scale, f"trace of {name}", EXACT)
        off, before = ((matrix - want).norm() for matrix in (found.dense(name), plain.dense(name)))
        assert float(off) <= float(before) + EXACT * scale, name


CORRECTED = [{}, {"chunk_size": 2}, {"setting": "reduce"}]


@pytest.mark.parametrize(("case", "options"), every(2, [(case, options) for case in CASES for options in CORRECTED]))
def test_corrected_eigenvalues_are_second_moments_in_the_eigenvectors(case, options):
    check_corrected(case, **options)


def check_corrected_truth(likelihood):
    """Of the true Fisher matrix: the diagonal of each dense block in the eigenvectors."""
    found = Q.corrected_kronecker_factors(net, PARAMS, X, likelihood=likelihood)
    whole, start = dense_fisher(likelihood), 0
    for name, value in PARAMS.items():
        at = slice(start, start + value.numel())
        start = at.stop
        basis = torch.kron(found.outputs[name], found.inputs[name])
        want = (basis.T @ whole[at, at] @ basis).diagonal()
        close(found.eigenvalues[name].flatten(), want, float(want.sum()), f"second moments of {name}", EXACT)


@pytest.mark.parametrize("likelihood", _likelihood.LIKELIHOODS)
def test_corrected_eigenvalues_of_the_true_fisher_matrix(likelihood):
    check_corrected_truth(likelihood)


def check_corrected_algebra():
    check_algebra(Q.corrected_kronecker_factors)


def test_products_and_inverses_of_corrected_factors():
    check_corrected_algebra()


def test_what_is_refused():
    with pytest.raises(ValueError, match="got likelihood='poisson'"):
        Q.fisher_rows(net, PARAMS, X, likelihood="poisson")
    with pytest.raises(ValueError, match="got samples=0; expected an int >= 1"):
        Q.fisher_rows(net, PARAMS, X, samples=0)
    with pytest.raises(ValueError, match="got setting='mean'"):
        Q.kronecker_factors(net, PARAMS, X, likelihood="gaussian", setting="mean")
    with pytest.raises(ValueError, match="got a total weight of 0; expected a sample of weight > 0"):
        Q.kronecker_factors(lambda p, x: gf.Weighted(net(p, x).sum(), torch.zeros(())), PARAMS, X)
    with pytest.raises(TypeError, match=r"got a Tensor as batch; expected a tuple \(\*inputs, target\)"):
        Q.ggn_product(net, F.cross_entropy, PARAMS, X)
    product = Q.ggn_product(net, F.cross_entropy, PARAMS, (X, Y))
    with pytest.raises(ValueError, match=r"got 'bias' of shape None; expected \(6,\)"):
        product({"one": PARAMS["one"]})
    with pytest.raises(ValueError, match="got damping=0; expected a finite number > 0"):
        Q.kronecker_factors(net, PARAMS, X, likelihood="gaussian").solve(PARAMS, damping=0)
    with pytest.raises(ValueError, match=r"EigenFactors\.solve.*got damping=0; expected a finite number > 0"):
        Q.corrected_kronecker_factors(net, PARAMS, X, likelihood="gaussian").solve(PARAMS, damping=0)
    with pytest.raises(ValueError, match="got setting='mean'"):
        Q.corrected_kronecker_factors(net, PARAMS, X, likelihood="gaussian", setting="mean")
    with pytest.raises(ValueError, match="got distribution='gauss'"):
        Q.hutchinson_trace(lambda v: v, PARAMS, distribution="gauss")


def diagonal_only(out):
    return torch.diag(out.softmax(0).sqrt())


def greedy(out):
    return out.softmax(0) - (torch.arange(len(out)) == out.argmax(0)).to(out)


def no_positions(side, w):
    flat_ = side.flatten(0, 1)
    return flat_.T @ flat_


def by_positions(w, x, e):
    return (e.square().sum(1) * w[:, None]).T @ x.square().sum(1)


def uncorrected(w, x, e):
    return torch.zeros(e.shape[2], x.shape[2], dtype=F64)


def unturned(self, call, direction, scaled):
    held = self.diagonal | self.eigenvalues
    return {k: scaled(k, direction[k], held[k].view(shape)) for k, shape in self.shapes.items()}


roots, residuals = _likelihood.ROOTS, _likelihood.RESIDUALS
MUTANTS = {
    "the mean of the score forgotten": (roots, "categorical", diagonal_only, lambda: check_rows("categorical")),
    "the likeliest label drawn": (residuals, "categorical", greedy, lambda: check_draws("categorical")),
    "uniform noise drawn": (residuals, "gaussian", torch.rand_like, lambda: check_draws("gaussian")),
    "shares forgotten": (_kronecker, "_product", no_positions, lambda: check_factors("mlp", "expand")),
    "the Fisher share forgotten": (_fisher, "per_unit", lambda g: g.weights * 0 + 1, lambda: check_rows("gaussian")),
    "eigenvalues of one side": (
        _kronecker,
        "_eigh",
        lambda m: (torch.linalg.eigvalsh(m), torch.eye(len(m), dtype=F64)),
        check_kronecker_algebra,
    ),
    "weights of the mean loss forgotten": (
        _products,
        "total",
        lambda w: torch.tensor(float(len(w)), dtype=F64),
        lambda: check_ggn("class weights, ignored samples"),
    ),
    "squares of positions for squares of rows": (
        _corrected,
        "_squares",
        by_positions,
        lambda: check_corrected("a convolution"),
    ),
    "shares of samples forgotten": (
        _corrected,
        "_squares",
        lambda w, x, e: squares(torch.ones_like(w), x, e),
        lambda: check_corrected("class weights, an ignored sample"),
    ),
    "nothing seen": (_corrected, "_squares", uncorrected, lambda: check_corrected_truth("categorical")),
    "eigenvectors of one side, corrected": (
        _kronecker,
        "_eigh",
        lambda m: (torch.linalg.eigvalsh(m), torch.eye(len(m), dtype=F64)),
        lambda: check_corrected("a convolution"),
    ),
    "no turn": (Q.EigenFactors, "_apply", unturned, check_corrected_algebra),
}
squares = _corrected._squares


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    owner, attribute, mistake, law = MUTANTS[name]
    law()
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, attribute, mistake)
    else:
        monkeypatch.setattr(owner, attribute, mistake)
    with pytest.raises(AssertionError):
        law()
