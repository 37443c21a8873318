"""What tests of rules share: parameters, a stream of gradients, and torch's own loop over them."""

from __future__ import annotations

import torch
from oracle import close

import gradfunc as gf

F64 = torch.float64
SHAPES = {"weight": (5, 4), "bias": (4,), "kernel": (3, 2, 2, 2)}


def start(dtype=F64, names=tuple(SHAPES)):
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(SHAPES[k], generator=generator, dtype=F64).to(dtype) for k in names}


def stream(step, params, *, size=1.0):
    """Gradients of update `step`, of very different sizes, that depend on where the parameters are."""
    generator = torch.Generator().manual_seed(1000 + step)
    scale = 10.0 ** (step % 5 - 3)
    noise = {k: torch.randn(v.shape, generator=generator, dtype=F64).to(v.dtype) for k, v in params.items()}
    return {k: size * (v.detach() + scale * noise[k]) for k, v in params.items()}


def torch_loop(make, params, steps, *, lr=None, size=1.0, given=stream):
    """Parameters after each step of torch's own loop; `lr` is a schedule."""
    leaves = {k: torch.nn.Parameter(v.clone()) for k, v in params.items()}
    optimizer = make(list(leaves.values()))
    out = []
    for step in range(steps):
        if lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
        for k, g in given(step, leaves, size=size).items():
            leaves[k].grad = g
        optimizer.step()
        optimizer.zero_grad()
        out.append({k: v.detach().clone() for k, v in leaves.items()})
    return out


def our_loop(rule, params, steps, *, size=1.0, donate=False, given=stream, state=None, first=0):
    """The same of ours, and the last state."""
    state, out = rule.init(params) if state is None else state, []
    for step in range(first, first + steps):
        grads = gf.Grads(given(step, params, size=size))
        updates, state = rule.update(grads, state, params, donate=donate)
        params = gf.apply_updates(params, updates)
        out.append(params)
    return out, state


def agree(got, want, tolerance=1e-12):
    """Step by step, on the scale of each parameter's norm."""
    assert len(got) == len(want)
    for k, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            close(ours[name], value, float(value.norm()), f"{name} after step {k}", tolerance)
