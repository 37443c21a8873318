"""Tiny random models of each family, their batches with padding and ignored labels, and their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import gradfunc as gf

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'gradfunc[hf]'")

B, T, V, CLASSES = 4, 7, 40, 3
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SIZES, "vocab_size": V, "num_key_value_heads": 2, "max_position_embeddings": 16}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Family(NamedTuple):
    """How to build a model, and what it is: a causal language model, a classifier, a sequence to sequence model."""

    make: Callable[[str], nn.Module]
    kind: str
    eager_only: bool = False
    lowest: torch.dtype = torch.float64  # in which its loss is computed


def _gpt2(attn: str) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=16, n_embd=16, n_layer=2, n_head=2, attn_implementation=attn, **_TOKENS
    )
    return transformers.GPT2LMHeadModel(config)


def _llama(attn: str) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA, attn_implementation=attn, **_TOKENS))


def _mixtral(attn: str) -> nn.Module:
    config = transformers.MixtralConfig(
        **_LLAMA, num_local_experts=4, num_experts_per_tok=2, attn_implementation=attn,
        experts_implementation="eager", **_TOKENS,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def _bert(attn: str) -> nn.Module:
    config = transformers.BertConfig(
        **_SIZES, vocab_size=V, max_position_embeddings=16, num_labels=CLASSES, attn_implementation=attn
    )
    return transformers.BertForSequenceClassification(config)


def _vit(attn: str) -> nn.Module:
    config = transformers.ViTConfig(
        **_SIZES, image_size=8, patch_size=4, num_channels=3, num_labels=CLASSES, attn_implementation=attn
    )
    return transformers.ViTForImageClassification(config)


def _t5(attn: str) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def _bart(attn: str) -> nn.Module:
    config = transformers.BartConfig(
        vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=16,
        attn_implementation=attn, **_TOKENS,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


FAMILIES = {
    "GPT-2": Family(_gpt2, "causal"),
    "Llama": Family(_llama, "causal"),
    "Mixtral": Family(_mixtral, "causal"),
    "BERT": Family(_bert, "classifier"),
    "ViT": Family(_vit, "images"),
    "T5": Family(_t5, "sequences", eager_only=True),
    "BART": Family(_bart, "sequences"),
}
EVERY = [
    (name, attn)
    for name, family in FAMILIES.items()
    for attn in ("sdpa", "eager")
    if attn == "eager" or not family.eager_only
]


class Posed(NamedTuple):
    """A model with a batch, and its losses as a function of the whole batch."""

    model: gf.Stateless
    batch: tuple[Tensor, ...]
    losses: Callable[..., gf.Weighted]


def posed(name: str, attn: str, dtype: torch.dtype = torch.float64, size: int = B) -> Posed:
    """Padded, with labels that are ignored where there is padding."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = gf.stateless(family.make(attn).to(dtype).eval())
    return Posed(model, batch(family.kind, dtype, size), losses_of(model, family.kind))


def batch(kind: str, dtype: torch.dtype, size: int = B) -> tuple[Tensor, ...]:
    """Inputs and targets; sample i lacks its last i % 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(CLASSES, (size,), generator=generator)
    if kind == "images":
        return torch.randn(size, 3, 8, 8, generator=generator, dtype=dtype), classes
    ids = torch.randint(3, V, (size, T), generator=generator)
    mask = (torch.arange(T) < T - torch.arange(size)[:, None] % 4).long()
    ids = ids * mask
    return (ids, mask, classes) if kind == "classifier" else (ids, mask, ids.masked_fill(mask == 0, -100))


def losses_of(model: Callable[..., Any], kind: str) -> Callable[..., gf.Weighted]:
    """One a sample, from the whole batch."""

    def losses(params: Any, *given: Tensor) -> gf.Weighted:
        if kind == "images":
            pixels, y = given
            return gf.losses.cross_entropy(model(params, pixels).logits, y, batched=True)
        ids, mask, y = given
        if kind == "classifier":
            logits = model(params, input_ids=ids, attention_mask=mask, return_dict=False)[0]  # a tuple
            return gf.losses.cross_entropy(logits, y, batched=True)
        if kind == "causal":
            logits = model(params, input_ids=ids, attention_mask=mask).logits
            return gf.losses.causal_lm(logits, y, batched=True)
        logits = model(params, input_ids=ids, attention_mask=mask, labels=y).logits
        return gf.losses.cross_entropy(logits, y, ignore_index=-100, batched=True)

    return losses


def own_loss(module: nn.Module, kind: str, given: tuple[Tensor, ...]) -> Tensor:
    """The model's own, for the whole batch."""
    if kind == "images":
        out = module(given[0], labels=given[1])
    else:
        ids, mask, y = given
        out = module(input_ids=ids, attention_mask=mask, labels=y)
    loss: Tensor = out.loss
    return loss
