"""`gf.diagnose.doctor` on models of transformers as they begin, adapters, recurrent nets and CNNs: nothing severe."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._zoo import MODELS
from gradfunc.diagnose._doctor._doctor import FAILED

from .families import EVERY, FAMILIES, T, V, batch, own_loss, transformers

doctor = gf.diagnose.doctor
pytestmark = pytest.mark.filterwarnings("ignore")


def severe(report):
    assert not [why for why in report.not_run if FAILED in why[1]]
    return [finding for finding in report.findings if finding.severity == "severe"]


def whole(kind):
    return gf.whole(lambda model, given: own_loss(model, kind, given))


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("name", "attn"), EVERY)
def test_a_model_as_it_begins(name, attn, deep):
    family = FAMILIES[name]
    for seed in range(3):
        torch.manual_seed(seed)
        model = family.make(attn).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        given = batch(family.kind, torch.float32, 16)
        for own in (optimizer, None):
            report = doctor(model, whole(family.kind), given, own, deep=deep)
            assert not severe(report), report
            assert report.forward


def distilled():
    config = transformers.DistilBertConfig(vocab_size=V, dim=16, hidden_dim=24, n_layers=2, n_heads=4, num_labels=3)
    return transformers.DistilBertForSequenceClassification(config)


def test_a_small_one_quickly():
    torch.manual_seed(0)
    model = distilled().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert not severe(doctor(model, whole("classifier"), batch("classifier", torch.float32, 16), optimizer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets"), [("GPT-2", ["c_attn"]), ("Llama", ["q_proj", "v_proj"]), ("BERT", ["query"])]
)
def test_adapters_as_they_begin(name, targets):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'gradfunc[hf]'")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, fan_in_fan_out=name == "GPT-2")
    model = peft.get_peft_model(FAMILIES[name].make("eager"), config).train()  # the second factor is 0, and waits
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    kind = FAMILIES[name].kind
    for deep in (False, True):
        report = doctor(model, whole(kind), batch(kind, torch.float32, 16), optimizer, deep=deep)
        assert not severe(report), report


@pytest.mark.slow
def test_a_language_model_that_ends_in_a_softmax_is_found():
    torch.manual_seed(0)
    model = FAMILIES["GPT-2"].make("eager").train()

    def loss(model, given):
        output = model(input_ids=given[0], attention_mask=given[1]).logits.softmax(-1)
        return F.cross_entropy(output[:, :-1].flatten(0, 1), given[2][:, 1:].flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    report = doctor(model, gf.whole(loss), batch("causal", torch.float32, 16), optimizer)
    assert report.causes[0] == "softmax_before_cross_entropy"


class Last(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(3, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_nets(kind):
    torch.manual_seed(0)
    model = Last(kind)
    x = torch.randn(48, T, 3)
    y = (x[:, -1, 0] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for deep in (False, True):
        report = doctor(model, nn.CrossEntropyLoss(), (x, y), optimizer, deep=deep)
        assert not severe(report), report


# what the doctor says of models of the zoo as they are, and is right to say: targets there are normal numbers, and
# where a value is cut from the graph the gradient is not the derivative
SAID = {
    "position embedding, T = B": {"target_out_of_reach"},
    "temperature, 0-dim": {"target_out_of_reach"},
    "einsum": {"target_out_of_reach"},
    "parameter list": {"target_out_of_reach"},
    "equal samples": {"identical_inputs"},
    "parameter used under no_grad": {"gradient_cut", "wrong_backward"},
    "parameter used once and detached once": {"wrong_backward"},
    "rounded weight, straight-through": {"wrong_backward"},
}


@pytest.mark.slow
def test_models_of_the_zoo_are_healthy_but_for_what_is_listed():
    found = {}
    for name, model in MODELS.items():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            module, given = model.module(), model.batch()
        pure = gf.stateless(module, in_dims=model.in_dims, out_dims=model.out_dims)
        for deep in (False, True):
            report = doctor(pure, model.criterion, given, torch.optim.Adam(module.parameters(), lr=1e-3), deep=deep)
            if said := {finding.cause for finding in severe(report)}:
                found[name] = found.get(name, set()) | said
    assert found == SAID
