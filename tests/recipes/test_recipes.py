"""The recipes of README train, on the gradients that they say: clipped by hand, and torch's own optimiser."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import gradfunc as gf

README = (Path(__file__).parents[2] / "README.md").read_text()
# Their own use of what torch and others have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def recipe(first_line):
    """The code block of README that begins so, run, as a namespace."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if block.startswith(first_line)]
    names = {"torch": torch, "gf": gf}
    exec(code, names)
    return names


def clipped_mean(losses_of, module, batch, weights=None):
    """The mean of gradients clipped at norm 1 (per weight), by one autograd call a sample."""
    params = list(module.parameters())
    total = [torch.zeros_like(p) for p in params]
    n = len(batch[0])
    for i in range(n):
        w = 1.0 if weights is None else float(weights[i])
        grads = torch.autograd.grad(losses_of(*(t[i : i + 1] for t in batch)), params)
        norm = torch.stack([g.norm() for g in grads]).norm()
        for t, g in zip(total, grads, strict=True):
            t += g * float(min(1.0, w / norm))
    size = n if weights is None else float(weights.sum())
    return [t / size for t in total]


def test_lightning():
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed (extra hf)")
    lightning = recipe("import pytorch_lightning")["Clipped"]().double()
    torch.manual_seed(0)
    x, y = torch.randn(12, 64, dtype=torch.float64), torch.randint(10, (12,))
    net = copy.deepcopy(lightning.net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(3):
        grads = clipped_mean(lambda a, b: F.cross_entropy(net(a), b), net, (x, y))
        for p, g in zip(net.parameters(), grads, strict=True):
            p.grad = g
        optimizer.step()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=12)
    trainer.fit(lightning, data)
    for mine, theirs in zip(lightning.net.parameters(), net.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def test_the_trainer_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
    pytest.importorskip("accelerate", reason="accelerate is not installed (extra hf)")
    trainer_class = recipe("import transformers")["PerSampleTrainer"]
    torch.manual_seed(0)
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, **drops
    )
    net = transformers.GPT2LMHeadModel(config).double()
    ids = torch.randint(0, 50, (6, 8))
    labels = ids.clone()
    labels[:2, 5:] = -100
    reference = copy.deepcopy(net)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)

    def total(ids, labels):
        logits = reference(ids).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")

    for _ in range(2):
        grads = clipped_mean(total, reference, (ids, labels), weights=(labels[:, 1:] != -100).sum(1))
        for p, g in zip(reference.parameters(), grads, strict=True):
            p.grad = g
        optimizer.step()
    options = {"max_steps": 2, "per_device_train_batch_size": 6, "max_grad_norm": 0.0, "learning_rate": 0.1}
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "report_to": [], "save_strategy": "no", "use_cpu": True}
    args = transformers.TrainingArguments(str(tmp_path), disable_tqdm=True, **options, **plain)
    data = [{"input_ids": row, "labels": target} for row, target in zip(ids, labels, strict=True)]
    trainer_class(net, args, train_dataset=data).train()
    for mine, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)
