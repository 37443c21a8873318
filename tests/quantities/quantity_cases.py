"""Problems of every kind of rows, and what the quantities are by definition: on materialised rows in float64."""

from __future__ import annotations

import functools

import torch
from oracle import close, flat, truth
from torch.nn import functional as F

import gradfunc as gf
from gradfunc.projections import rademacher

F64 = torch.float64
Q = gf.quantities
# What the definition on materialised rows may differ by, on the scale of what is summed.
EXACT = 1e-10


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def classes(p, x, y):
    weight = torch.tensor([0.2, 3.0, 1.0], dtype=x.dtype, device=x.device)
    hidden = torch.tanh(F.linear(x, p["one.weight"], p["one.bias"]))
    return gf.losses.cross_entropy(F.linear(hidden, p["two.weight"]), y, weight=weight, ignore_index=-1)


def tokens(p, ids, y):
    hidden = torch.tanh(F.linear(F.embedding(ids, p["table"]), p["mix.weight"], p["mix.bias"]))
    return gf.losses.cross_entropy(F.linear(hidden, p["table"]), y, ignore_index=-1)  # tied: embedding and head


def images(p, x, y):
    hidden = F.conv2d(x[None], p["conv.weight"], p["conv.bias"], padding=1).relu()[0]
    return gf.losses.mse(hidden.mean((1, 2)) @ p["head"], y)


def bag(p, ids, y):
    hidden = torch.tanh(F.linear(F.embedding(ids, p["table"]).sum(0), p["mix"]))
    return gf.losses.cross_entropy(hidden, y)


def recurrence(p, x, y):
    state = x.new_zeros(9)
    for step in x:
        state = torch.tanh(p["w"] @ state + p["v"] @ step)
    return (state.sum() - y).square()


MLP = {"one.weight": draw(9, 8), "one.bias": draw(9, seed=1), "two.weight": draw(3, 9, seed=2), "idle": draw(2)}
TABLE = {"table": draw(11, 6), "mix.weight": draw(6, 6, seed=1), "mix.bias": draw(6, seed=2)}
CONV = {"conv.weight": draw(5, 2, 3, 3), "conv.bias": draw(5, seed=1), "head": draw(5, 2, seed=2)}
BAG = {"table": draw(60, 3), "mix": draw(7, 3, seed=1)}
RNN = {"w": 0.3 * draw(9, 9), "v": draw(9, 7, seed=1)}
TOKENS = torch.randint(11, (5, 4), generator=torch.Generator().manual_seed(3))
CASES = {
    "class weights, an ignored sample": (classes, MLP, (draw(7, 8, seed=5), torch.tensor([0, 1, 2, -1, 1, 0, 1]))),
    "tied tokens": (tokens, TABLE, (TOKENS, torch.where(TOKENS > 7, -1, TOKENS.roll(1, 1)))),
    "an embedding": (bag, BAG, (TOKENS * 5, torch.tensor([0, 6, 2, 2, 1]))),
    "a convolution": (images, CONV, (draw(4, 2, 5, 6), draw(4, 2, seed=1))),
    "a recurrence": (recurrence, RNN, (draw(4, 3, 7), draw(4, seed=1))),
}
ENGINES = {"factored": {}, "vmap": {}, "factored, in chunks": {"chunk_size": 2}}


def value(name, engine="factored", device="cpu"):
    """Per-sample gradients of a case."""
    loss, params, batch = CASES[name]
    f = gf.per_sample_grads(loss, engine=engine.partition(",")[0], **ENGINES[engine])
    return f({k: v.to(device) for k, v in params.items()}, *[t.to(device) for t in batch])


@functools.cache
def rows_of(name):
    """`{name: [B, *shape]}` and weights `[B]` by plain autograd."""
    loss, params, batch = CASES[name]
    found = truth(loss, params, len(batch[-1]), batch)
    return found.rows, found.weights


def units(rows, weights):
    """`u_i = g_i / w_i` of samples of weight above 0, by name, and their shares."""
    used = weights > 0
    own = weights[used].double()
    return {k: v[used].double() / own.reshape(-1, *[1] * (v.dim() - 1)) for k, v in rows.items()}, own / own.sum()


def check_moments(g, rows, weights):
    """Entries, parameters, layers and the total; two passes in float64."""
    u, p = units(rows, weights)
    q = p.square().sum()
    mean = {k: torch.tensordot(p, v, 1) for k, v in u.items()}
    spread = {k: torch.tensordot(p, (v - mean[k]).square(), 1) / (1 - q) for k, v in u.items()}
    second = {k: torch.tensordot(p, v.square(), 1) for k, v in u.items()}
    scale = float(sum(v.sum() for v in second.values()))
    found = Q.moments(g)
    entries = {
        "mean": (found.mean, mean, scale**0.5),
        "variance": (Q.variance(g), spread, scale),
        "second moment": (Q.second_moment(g), second, scale),
        "second moment from moments": (Q.second_moment(found), second, scale),
        "Fisher diagonal": (Q.fisher_diagonal(g), second, scale),
        "variance of all": (Q.variance(g, per="parameter"), {k: v.sum() for k, v in spread.items()}, scale),
        "square of all": (Q.second_moment(g, per="parameter"), {k: v.sum() for k, v in second.items()}, scale),
    }
    for what, (got, want, size) in entries.items():
        assert list(got) == list(rows)
        for name, value in want.items():
            close(got[name], value, size, f"{what} of {name}", EXACT)
    layers = {}
    for name, value in spread.items():
        layer = name.rpartition(".")[0] or name
        layers[layer] = layers.get(layer, 0) + value.sum()
    got = Q.variance(found, per="layer")
    assert list(got) == list(layers)
    for layer, want in layers.items():
        close(got[layer], want, scale, f"variance of {layer}", EXACT)
    for of in (g, found, Q.moments(g, entries=False)):
        close(Q.variance(of, per="total"), sum(v.sum() for v in spread.values()), scale, "variance", EXACT)
        close(
            Q.second_moment(of, per="total"),
            torch.tensor(scale, dtype=F64, device=weights.device),
            scale,
            "second moment",
            EXACT,
        )
    check_ratios(found, mean, spread, q)


def check_ratios(g, mean, spread, q):
    """Ratios of entries where the variance is no rounding on the scale of all."""
    signal = sum(v.square().sum() for v in mean.values())
    noise = sum(v.sum() for v in spread.values())
    if float(noise) <= EXACT * float(signal):  # equal samples: a ratio to rounding
        return
    close(Q.signal_to_noise(g, per="total"), signal / noise, (signal + noise) / noise, "signal to noise", EXACT)
    got, want = Q.signal_to_noise(g, per="total", corrected=True), signal / noise - q
    close(got, want, (signal + noise) / noise, "signal to noise, corrected", EXACT)
    for name, value in Q.signal_to_noise(g).items():
        sure = spread[name] > 1e-5 * (signal + noise)
        want = mean[name][sure].square() / spread[name][sure]
        close(value[sure], want, 1 + want, f"signal to noise of {name}", EXACT)


def check_similarity(g, rows, weights):
    """Angles of numerators' gradients, and what is common to unit rows."""
    whole, norms = flat(rows), flat(rows).norm(dim=1)
    scaled = whole / torch.where(norms > 0, norms, 1.0)[:, None]
    close(Q.cosine_similarity(g), scaled @ scaled.T, 1.0, "cosines", EXACT)
    u, p = units(rows, weights)
    u = flat(u)
    want = (p @ u).square().sum() / (p @ u.square().sum(1))
    close(Q.coherence(g), want, 1.0, "coherence", EXACT)
    common = whole.sum(0).square().sum()
    want = norms.square().sum() / common
    close(Q.diversity(g), want, want * (1 + norms.sum().square() / common), "diversity", EXACT)
    close(Q.grand(g), norms, norms, "GraNd", EXACT)
    close(Q.grand([g, g]), norms, norms, "GraNd of two", EXACT)


def check_spectrum(g, rows, weights):
    """Eigenvalues and eigenvectors of the P x P covariance, and of the second moment."""
    u, p = units(rows, weights)
    u = flat(u)
    for centered in (True, False):
        off = u - p @ u if centered else u
        matrix = (off * p[:, None]).T @ off / (1 - p.square().sum() if centered else 1.0)
        size = float((p @ u.square()).sum())
        found = Q.gradient_spectrum(g, centered=centered)
        values = torch.linalg.eigvalsh(matrix).flip(0)
        rank = len(found.values)
        close(found.values, values[:rank], size, "eigenvalues", EXACT)
        close(values[rank:], torch.zeros_like(values[rank:]), size, "what is left out", EXACT)
        close(found.trace, values.sum(), size, "trace", EXACT)
        for k in range(rank):
            if float(found.values[k]) < 1e-6 * size:  # directions of little are known to few digits
                continue
            made = torch.cat([v.flatten() for v in g.weighted_sum(found.coefficients[:, k]).values()])
            close(made.norm(), made.new_ones(()), 1.0, "length", 1e-8)
            close(matrix @ made, found.values[k] * made, size, "eigenvector", 1e-8)


def check_products(g, rows, weights):
    """The Fisher matrix of rows times a direction."""
    u, p = units(rows, weights)
    whole = flat(u)
    v = {k: draw(*r.shape[1:], seed=9).to(r.device) for k, r in rows.items()}
    vector = torch.cat([t.flatten() for t in v.values()])
    want = whole.T @ (p * (whole @ vector)) + 0.3 * vector
    got = torch.cat([t.flatten() for t in Q.fisher_product(g, v, damping=0.3).values()])
    close(got, want, ((p @ whole.square().sum(1)) + 0.3) * vector.norm(), "Fisher product", EXACT)


def check_noise(g, rows, weights):
    """Parts and layers add up to the whole, whose parts are by definition."""
    u, p = units(rows, weights)
    whole, q = flat(u), p.square().sum()
    mean = p @ whole
    trace = (p @ (whole - mean).square().sum(1)) / (1 - q)
    scale = p @ whole.square().sum(1)
    found = Q.gradient_noise_scale(g)
    close(found.trace, trace, scale, "trace", EXACT)
    close(found.squared_norm, mean.square().sum() - q * trace, scale, "squared norm", EXACT)
    for per in ("parameter", "layer"):
        parts = Q.gradient_noise_scale(g, per=per)
        close(sum(one.trace for one in parts.values()), trace, scale, f"traces by {per}", EXACT)
        norm = sum(one.squared_norm for one in parts.values())
        close(norm, found.squared_norm, scale, f"squared norms by {per}", EXACT)


def check_influence(g, rows, weights):
    """Inner products with some of the same samples, in blocks, over checkpoints, and through a projection."""
    whole, few = flat(rows), slice(0, 2)
    norms, part = whole.norm(dim=1), g.select(few)
    want, scale = whole @ whole[few].T, norms[:, None] * norms[few]
    close(Q.grad_dot(g, part), want, scale, "grad-dot", EXACT)
    cosines = want / torch.where(scale > 0, scale, 1.0)
    close(Q.grad_cos(g, part), cosines, 1.0, "grad-cos", EXACT)
    close(Q.tracin([g, g], [part, part], [0.5, 0.25]), 0.75 * want, scale, "TracIn", EXACT)
    close(Q.self_influence([g, g], [0.5, 0.25]), 0.75 * norms.square(), norms.square(), "self-influence", EXACT)
    gram, blocks = whole @ whole.T, torch.full((len(whole), len(whole)), torch.nan, dtype=F64, device=whole.device)
    for at, columns, values in Q.gram_blocks(g, block_size=2):
        blocks[at, columns], blocks[columns, at] = values.double(), values.T.double()
    close(blocks, gram, norms[:, None] * norms, "Gram matrix in blocks", EXACT)
    projection = rademacher(3, seed=1)
    features = 0
    for name, value in rows.items():
        entries = torch.arange(value[0].numel(), device=value.device)
        features = features + flat({"": value}) @ projection.columns(name, entries).double()
    phi = g.project(projection)
    close(phi, features, norms[:, None] * whole.shape[1] ** 0.5, "features", EXACT)
    damping = float(features.square().sum())
    matrix = features.T @ features + damping * torch.eye(3, dtype=F64, device=whole.device)
    want = features @ torch.linalg.solve(matrix, features[few].T)
    close(Q.trak(phi, phi[few], damping=damping), want, 1.0, "TRAK", EXACT)


def check_turned(found, rows, weights):
    """Of corrected Kronecker factors: squares of unit rows in the eigenvectors of each block; else the diagonal."""
    u, p = units(rows, weights)
    scale = float(p @ flat(u).square().sum(1))
    for name, value in u.items():
        if name in found.diagonal:
            close(found.diagonal[name], torch.tensordot(p, value.square(), 1), scale, f"diagonal of {name}", EXACT)
            continue
        down, along = found.outputs[name], found.inputs[name]
        turned = down.T @ value.reshape(len(value), len(down), len(along)) @ along
        want = torch.tensordot(p, turned.square(), 1)
        close(found.eigenvalues[name], want, scale, f"second moments of turned rows of {name}", EXACT)


LAWS = {
    "moments": check_moments,
    "similarity": check_similarity,
    "spectrum": check_spectrum,
    "products": check_products,
    "noise": check_noise,
    "influence": check_influence,
}
