"""Low-rank adapters of peft, frozen backbones, `wrt=`: what is frozen costs nothing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from oracle import close_rows, truth_batched
from torch.utils._python_dispatch import TorchDispatchMode

import gradfunc as gf

from .families import batch, losses_of, posed

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'gradfunc[hf]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TARGETS = {"GPT-2": ["c_attn", "c_proj"], "Llama": ["q_proj", "v_proj", "up_proj"], "BERT": ["query", "value"]}
KINDS = {"GPT-2": "causal", "Llama": "causal", "BERT": "classifier"}


def adapted(name: str):
    """A model with adapters whose second factor is not 0, else the first would have no gradient."""
    module = posed(name, "eager").model.module
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[name], fan_in_fan_out=name == "GPT-2")
    module = peft.get_peft_model(module, config).eval()
    for key, parameter in module.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    return gf.stateless(module.double())


@pytest.mark.parametrize("name", TARGETS)
def test_adapters_are_exact_and_factored(name):
    model = adapted(name)
    assert all("lora_" in key for key in model.params)
    losses, given = losses_of(model, KINDS[name]), batch(KINDS[name], torch.float64)
    g = gf.per_sample_grads(losses, batched=True)(model.params, *given)
    assert g.engine == "factored"
    assert set(g.names) == set(model.params)
    assert not g.unused
    close_rows(g.materialize(), truth_batched(losses, model.params, given).rows)


class Products(TorchDispatchMode):
    """Counts matrix products by the shape of what they give."""

    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.shapes[tuple(out.shape)] += 1
        return out


def held(g):
    """Bytes of all factors."""
    rows = g._source.rows(slice(0, g.batch_size)).grads
    return sum(t.numel() * t.element_size() for r in rows.values() for f in r.factors for t in f.tensors)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_frozen_costs_nothing(name):
    """No factor is held, and no product has the shape of a frozen weight: not in the call, nor in clip and sum."""
    model = adapted(name)
    losses, given = losses_of(model, KINDS[name]), batch(KINDS[name], torch.float64)
    f = gf.per_sample_grads(losses, batched=True, verify=False)
    with Products() as ours:  # under a mode torch runs other operations, so the plan is learnt under it too
        f(model.params, *given)
        ours.shapes.clear()
        g = f(model.params, *given)
        g.weighted_sum(1 / (1 + g.norms()))
    frozen = {tuple(p.shape) for p in model.frozen.values() if p.dim() == 2}
    frozen |= {shape[::-1] for shape in frozen}
    trained = {tuple(p.shape) for p in model.params.values()}
    assert not (ours.shapes.keys() - trained - {s[::-1] for s in trained}) & frozen
    every = gf.per_sample_grads(losses, batched=True, verify=False)({**model.frozen, **model.params}, *given)
    assert held(g) < held(every) / 2
    leaves = {name: p.clone().requires_grad_() for name, p in model.params.items()}
    with Products() as plain:
        torch.autograd.grad(losses(leaves, *given).numerator.sum(), list(leaves.values()))
    # norms take two products more for each weight where they go by Gram
    assert sum(ours.shapes.values()) <= sum(plain.shapes.values()) + 2 * len(model.params)


def test_wrt_selects_among_trainable_parameters():
    case = posed("GPT-2", "eager")
    pattern = r"transformer\.h\.1\..*weight"
    f = gf.per_sample_grads(case.losses, batched=True, wrt=pattern, verify=False)
    g = f(case.model.params, *case.batch)
    every = gf.per_sample_grads(case.losses, batched=True)(case.model.params, *case.batch)
    assert g.names
    assert all(name.startswith("transformer.h.1.") for name in g.names)
    whole = every.materialize()
    for name, rows in g.materialize().items():
        close_rows({name: rows}, {name: whole[name]})
    assert held(g) < held(every)
