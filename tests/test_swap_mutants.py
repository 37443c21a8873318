"""Planted mistakes in draws and scans, each with the property that must notice it (see test_mutants.py)."""

from __future__ import annotations

import contextlib

import pytest
import torch
from test_keyed import check_distribution, check_frequency, check_layout, check_samples_are_lanes, drawn
from test_philox import check_known_answers
from test_recurrent import check_cell, check_no_product_of_parameters_alone, check_packed, check_padded
from test_swap import (
    check_a_backward_that_draws,
    check_a_vmap_inside_the_loss,
    check_checkpoint,
    check_model,
    check_operation,
    check_uses_differ,
    test_attention_is_torchs_with_the_mask_of_its_draw,
    test_dropouts_are_torchs,
)
from torch.nn import functional as F

from gradfunc import _recurrent
from gradfunc._random import Draw, _keyed, _philox
from gradfunc._recurrent import _cell
from gradfunc._swap import _attention, _dropout, _mode, _ordinals

next_forward, dropped = _ordinals.Ordinals._next_forward, _dropout.dropped


def id_ignored(self, func):
    return Draw(self._key, self._ordinals.next()[1], 0)


def id_of_a_chunk(self, sample, run=_keyed._Plan.run):
    """Ids counted from the start of the chunk."""
    lanes = isinstance(sample, torch.Tensor) and sample.dim() == 1
    return run(self, torch.arange(len(sample), device=sample.device) if lanes else sample)


def unseen(body):
    """A composite run out of the mode's sight."""

    def run(*args, **kwargs):
        with torch._C.DisableTorchFunction():
            return body(*args, **kwargs)

    return run


def id_truncated(self, func):
    sample, use = self._ordinals.next()
    return Draw(self._key, use, sample & 0xFF)


def use_not_advanced(self):
    return self._forwards[-1].sample, 0


def step_ignored(seed, step, derived=_mode.derived_key):
    return derived(seed, 0)


def last_begun(self, extra):
    """Backward passes taken for those of the pass begun last."""
    return self._forwards[-1].sample, next_backward(self, extra)[1]


next_backward = _ordinals.Ordinals._next_backward


def counted_on(self):
    """The ordinal in the mode, where checkpointing does not restore it."""
    now = self._forwards[-1]
    now.count += 1
    return now.sample, now.count - 1


def hidden_bias_twice(x, cell, step):
    gates = F.linear(x, cell.w_ih, cell.b_ih)
    return gates if cell.b_hh is None else gates + 2 * cell.b_hh


def gates_swapped(gates, state, cell, step, advance=_cell.advance):
    i, f, g, o = gates.chunk(4, -1)
    return advance(torch.cat([f, i, g, o], -1), state, cell, step)


def ended_in_the_order_of_time(steps, state, cell, step, *, reverse, scan=_cell.scan):
    outputs, (h, *rest) = scan(steps, state, cell, step, reverse=reverse)
    return outputs, ((h if reverse else h.flip(0)), *rest)


def unscaled(draw, input, p, train, **how):
    out = dropped(draw, input, p, train, **how)
    return out if out is NotImplemented else out * (1 - p)


def channels_ignored(draw, input, p, train, *, feature, alpha, inplace):
    return dropped(draw, input, p, train, feature=False, alpha=alpha, inplace=inplace)


def key_not_bumped(counter, key, philox=_philox.philox4x32):
    weyl, _philox._WEYL = _philox._WEYL, (0, 0)
    try:
        return philox(counter, key)
    finally:
        _philox._WEYL = weyl


def keep_inverted(self, shape, p, device="cpu", keep=Draw.keep):
    return ~keep(self, shape, p, device)


def words_repeated(self, shape, device="cpu", bits=Draw.bits):
    """Every block's first word for all four."""
    flat = bits(self, (4 * (-(-torch.Size(shape).numel() // 4)),), device).reshape(-1, 4)[:, :1].expand(-1, 4)
    return flat.flatten()[: torch.Size(shape).numel()].reshape(shape)


def unrounded_tail(self, shape, dtype, device="cpu"):
    return (self.bits(shape, device).double() / 2**32 * 6 - 3).to(dtype)


def check_distribution_of_normal():
    check_distribution(drawn().normal((20_000,), torch.float64), torch.special.ndtr)


# mutant -> (where, attribute, the mistake, the property)
MUTANTS = {
    "key not bumped": (_philox, "philox4x32", key_not_bumped, check_known_answers),
    "first word of each block": (Draw, "bits", words_repeated, check_layout),
    "keep inverted": (Draw, "keep", keep_inverted, lambda: check_frequency(drawn().keep((20_000,), 0.1), 0.9)),
    "not normal": (Draw, "normal", unrounded_tail, check_distribution_of_normal),
    "lanes of vmap not told apart": (
        _keyed._Plan,
        "run",
        lambda self, sample, run=_keyed._Plan.run: run(self, sample * 0),
        lambda: check_samples_are_lanes("bits"),
    ),
    "id ignored": (_mode.Swap, "_draw", id_ignored, lambda: check_operation("F.dropout")),
    "id relative to the chunk": (_keyed._Plan, "run", id_of_a_chunk, lambda: check_operation("rand")),
    "high bits of an id lost": (
        _mode.Swap,
        "_draw",
        id_truncated,
        lambda: check_operation("rand", ids=(0, 255, 3, 2**40)),
    ),
    "step ignored": (_mode, "derived_key", step_ignored, lambda: check_operation("F.dropout")),
    "use not advanced": (_ordinals.Ordinals, "_next_forward", use_not_advanced, check_uses_differ),
    "ordinal not in the generator": (_ordinals.Ordinals, "_next_forward", counted_on, check_checkpoint),
    "backward of another sample": (_ordinals.Ordinals, "_next_backward", last_begun, check_checkpoint),
    "vmaps in the loss not noticed": (_mode.Swap, "_theirs", lambda self: False, check_a_vmap_inside_the_loss),
    "backward not forked": (
        _ordinals,
        "forked",
        lambda *_, **__: contextlib.nullcontext(),
        check_a_backward_that_draws,
    ),
    "dropout not scaled": (_dropout, "dropped", unscaled, test_dropouts_are_torchs),
    "channels ignored": (_dropout, "dropped", channels_ignored, test_dropouts_are_torchs),
    "attention's dropout not scaled": (
        _attention,
        "dropped",
        unscaled,
        lambda: test_attention_is_torchs_with_the_mask_of_its_draw({"is_causal": True}, "cpu"),
    ),
    "hidden bias twice": (_recurrent, "input_gates", hidden_bias_twice, lambda: check_cell("lstm_cell", True, True)),
    "candidate's hidden bias merged": (
        _cell,
        "hidden_bias",
        lambda cell, step: None,
        lambda: check_padded("gru", 1, False, True, False, True),
    ),
    "gates swapped": (
        _cell,
        "advance",
        gates_swapped,
        lambda: check_padded("lstm", 1, False, True, False, True),
    ),
    "last states out of order": (
        _cell,
        "scan",
        ended_in_the_order_of_time,
        lambda: check_packed("gru", 1, True, True, True, [4, 3, 1]),
    ),
    "state not batched": (_cell, "beside", lambda gates, state: state, check_no_product_of_parameters_alone),
    "attention not looked into": (_mode, "transparent", unseen, lambda: check_model("attention")),
    "no dropout between layers": (_mode.Swap, "_drop", lambda self, x, p: x, lambda: check_model("lstm")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    torch.manual_seed(0)
    law()
    monkeypatch.setattr(where, attribute, mistake)
    torch.manual_seed(0)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law()
