"""Models of Hugging Face transformers as they come: exact rows, structured, and the model's own mean."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import close_rows, truth_batched

import gradfunc as gf
from gradfunc._per_sample._explain import lines

from .families import EVERY, FAMILIES, B, batch, losses_of, own_loss, posed

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
# Parameters whose rows have no structure to keep, though they have more than one dimension.
ROWS = ("relative_attention_bias.weight", "position_embeddings", "cls_token")


def kinds(g: gf.PerSampleGrads) -> dict[str, set[str]]:
    """In which the rows of each parameter came."""
    rows = g._source.rows(slice(0, g.batch_size)).grads
    found: dict[str, set[str]] = {}
    for line in lines(rows, g._uses):
        assert "generic" not in line.method, line
        found.setdefault(line.parameter, set()).update(line.kind.removeprefix("dense, of ").split(" and "))
    return found


@pytest.mark.parametrize(("name", "attn"), EVERY)
def test_a_batch_that_runs_natively_is_exact_and_structured(name, attn):
    case = posed(name, attn)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gf.GradfuncWarning)
        g = gf.per_sample_grads(case.losses, batched=True)(case.model.params, *case.batch)
    assert g.engine == "factored"
    close_rows(g.materialize(), truth_batched(case.losses, case.model.params, case.batch).rows)
    for parameter, found in kinds(g).items():
        if case.model.params[parameter].dim() < 2 or parameter.endswith(ROWS):
            assert found <= {"dense", "rows", "none"}, parameter
        else:
            assert found <= {"outer", "rows", "unfolded", "grouped", "none"}, (parameter, found)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.kind in ("causal", "sequences")])
@pytest.mark.parametrize("parts", [(4,), (1, 3), (2, 0, 2)])
def test_the_mean_is_the_gradient_of_the_model_s_own_loss_in_any_micro_batches(name, parts):
    """Token weights: its loss divides by the number of labels of the whole batch. It computes them in float32."""
    case = posed(name, "eager")
    module = case.model.module
    f = gf.per_sample_grads(case.losses, batched=True)
    acc = gf.Accumulator.init(case.model.params)
    for given in zip(*(tensor.split(list(parts)) for tensor in case.batch), strict=True):
        if len(given[0]):
            acc = acc.add(f(case.model.params, *given))
    named = dict(module.named_parameters())
    own = torch.autograd.grad(
        own_loss(module, FAMILIES[name].kind, case.batch), list(named.values()), allow_unused=True
    )
    want = {
        n: (torch.zeros_like(p) if grad is None else grad)[None]
        for (n, p), grad in zip(named.items(), own, strict=True)
    }
    tolerance = 64 * torch.finfo(torch.float32).eps  # logits are rounded once, and their softmax has a few roundings
    close_rows({n: grad[None] for n, grad in acc.mean().items()}, want, tolerance=tolerance)


MASKED = [name for name, family in FAMILIES.items() if family.kind in ("causal", "classifier") and name != "Mixtral"]


def one_by_one(case, name, *, expand):
    """The loss of one sample, and its batch: the mask expanded outside, or as the tokenizer gives it."""
    kind = FAMILIES[name].kind
    ids, mask, y = case.batch
    if expand:
        mask = gf.hf.attention_mask(mask, causal=kind == "causal", dtype=torch.float64)

    def loss(params, ids, mask, y):
        logits = case.model.sample(params, input_ids=ids, attention_mask=mask, return_dict=False)[0]
        return gf.losses.causal_lm(logits, y) if kind == "causal" else gf.losses.cross_entropy(logits, y)

    return loss, (ids, mask, y)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_mask_expanded_outside_runs_under_vmap(name, attn):
    case = posed(name, attn)
    loss, given = one_by_one(case, name, expand=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gf.GradfuncWarning)
        g = gf.per_sample_grads(loss)(case.model.params, *given)
    assert g.engine == "factored"
    close_rows(g.materialize(), truth_batched(case.losses, case.model.params, case.batch).rows)


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_as_it_comes_is_a_wall_under_vmap_with_the_recipe_in_its_message(name):
    case = posed(name, "sdpa")
    loss, given = one_by_one(case, name, expand=False)
    with pytest.raises(gf.EngineError, match=r"transformers.*gf\.hf\.attention_mask.*batched=True") as caught:
        gf.per_sample_grads(loss, engine="factored")(case.model.params, *given)
    assert "masking_utils.py" in caught.value.where
    assert "test_families.py" in caught.value.where
    with pytest.warns(gf.GradfuncWarning, match=r"gf\.hf\.attention_mask"):
        g = gf.per_sample_grads(loss)(case.model.params, *given)
    assert g.engine == "loop"
    close_rows(g.materialize(), truth_batched(case.losses, case.model.params, case.batch).rows)


@pytest.mark.parametrize("kind", ["T5", "BART"])
def test_sequences_with_an_encoder_fall_to_the_loop_and_say_so(kind):
    case = posed(kind, "eager")
    ids, mask, y = case.batch

    def loss(params, ids, mask, y):
        logits = case.model(params, input_ids=ids[None], attention_mask=mask[None], labels=y[None]).logits[0]
        return gf.losses.cross_entropy(logits, y, ignore_index=-100)

    with pytest.warns(gf.GradfuncWarning, match="one autograd call a sample"):
        g = gf.per_sample_grads(loss)(case.model.params, ids, mask, y)
    close_rows(g.materialize(), truth_batched(case.losses, case.model.params, case.batch).rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_check_finds_nothing(name):
    case = posed(name, "eager")
    family = FAMILIES[name]

    def whole(model, given):
        return losses_of(lambda params, *args, **named: model(*args, **named), family.kind)({}, *given)

    report = gf.testing.check_gradients(case.model, gf.whole(whole), case.batch)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_checkpointed_blocks_are_exact(name):
    """In train mode, in which alone transformers checkpoint; non-reentrant, their own default."""
    case = posed(name, "eager")
    want = truth_batched(case.losses, case.model.params, case.batch).rows
    module = case.model.module
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    g = gf.per_sample_grads(case.losses, batched=True)(case.model.params, *case.batch)
    assert g.engine == "factored"
    close_rows(g.materialize(), want)


def test_a_tied_head_has_one_key():
    model = posed("GPT-2", "eager").model
    assert "lm_head.weight" not in model.params
    assert model.aliases["lm_head.weight"] == "transformer.wte.weight"


def test_batches_of_the_test_are_padded_and_ignored():
    ids, mask, y = batch("causal", torch.float64)
    assert len(ids) == B
    assert 0 < int((mask == 0).sum()) == int((y == -100).sum())
