"""Planted mistakes in the scans by hand: a piece of the source replaced, and the property that must notice it."""

from __future__ import annotations

import inspect
import textwrap

import pytest
import torch
from test_recurrent import check_derivatives, check_padded, test_nothing_saved_is_changed, test_one_output_alone
from test_recurrent_rows import (
    Problem,
    check,
    test_a_vmap_inside_the_loss,
    test_steps_that_are_samples,
    test_weights_of_each_samples_own,
)

from gradfunc._capture import _follows
from gradfunc._recurrent import _fast, _kernels, _layer, _nodes
from gradfunc._swap import _recurrence


def padded(name, **more):
    """Both directions, a given first state."""
    return lambda _: check_padded(name, 1, True, True, False, True, **more)


def one_way(name):
    return lambda _: check_padded(name, 1, False, True, False, True)


def derivatives(name, **options):
    return lambda _: check_derivatives(name, **options)


def last_cell(_):
    test_one_output_alone("lstm", 2)


def rows(**options):
    return lambda _: check(Problem(0, "lstm", "given", **options), "vmap", "factored")


# mutant -> (where, the function, what it says, what the mutant says, the property)
LSTM, GRU, RNN = _kernels.LSTM, _kernels.GRU, _kernels.RNN
ALONG = "torch.addmm(given, behind, weights.w_hh, out=whole)"
MUTANTS = {
    "LSTM's gates in another order": (LSTM, "run", "enter, forget, new", "forget, enter, new", one_way("lstm")),
    "LSTM's recurrent path dropped": (LSTM, "back", ALONG, "whole.copy_(given)", one_way("lstm")),
    "LSTM's last cell forgotten": (
        LSTM,
        "back",
        "if last is None else last.clone",
        "if True else last.clone",
        last_cell,
    ),
    "LSTM forgets nothing": (LSTM, "back", "own.mul_(forget)", "pass", one_way("lstm")),
    "LSTM's first h": (
        LSTM,
        "back",
        "(behind @ weights.w_hh, own)",
        "(behind[:, :own.shape[1]], own)",
        one_way("lstm"),
    ),
    "the last step not projected": (LSTM, "back", "whole.copy_(given)", "whole.zero_()", padded("lstm", proj_size=2)),
    "projections not saved": (
        LSTM,
        "back",
        "gates, gates, projected",
        "gates, gates, grad",
        padded("lstm", proj_size=2),
    ),
    "GRU's new and old exchanged": (GRU, "run", "torch.lerp(new, h,", "torch.lerp(h, new,", one_way("gru")),
    "GRU's share of the hidden bias": (
        GRU,
        "back",
        "Cotangents(gates, hidden",
        "Cotangents(gates, gates",
        one_way("gru"),
    ),
    "GRU's share of the input bias": (
        GRU,
        "back",
        "Cotangents(gates, hidden",
        "Cotangents(hidden, hidden",
        one_way("gru"),
    ),
    "GRU's update path dropped": (GRU, "back", ".add_(own)", "", one_way("gru")),
    "GRU's recurrent path dropped": (
        GRU,
        "back",
        "torch.addmm(given, behind, weights.w_hh, out=h)",
        "given",
        one_way("gru"),
    ),
    "GRU's reset gate": (GRU, "back", "slope_n * to_candidate, r", "to_candidate, r", one_way("gru")),
    "GRU's hidden bias dropped": (GRU, "run", "if bias is None:", "if True:", one_way("gru")),
    "RNN's recurrent path dropped": (
        RNN,
        "back",
        "torch.addmm(given, behind, weights.w_hh, out=h)",
        "given",
        one_way("rnn_tanh"),
    ),
    "a relu's slope": (RNN, "back", "if self._relu", "if not self._relu", one_way("rnn_relu")),
    "the first state at the wrong end": (_kernels, "_states", "-1 if reverse else 0", "0", padded("lstm")),
    "both directions forward": (_kernels, "_by_step", "tensor.unbind(0)[::-1] if reverse else", "", padded("gru")),
    "the last state at the wrong end": (_fast, "fast", "h[0 if reverse else -1]", "h[-1]", padded("rnn_tanh")),
    "outputs that the graph holds": (
        _nodes.RecurrentScan,
        "forward",
        "run.after.clone()",
        "run.after",
        lambda _: test_nothing_saved_is_changed("rnn_tanh"),
    ),
    "products without their second derivative": (
        _nodes.RecurrentProduct,
        "backward",
        "if torch.is_grad_enabled():",
        "if False:",
        derivatives("lstm"),
    ),
    "a projection's second derivative": (
        _nodes.RecurrentProduct,
        "backward",
        "again.inside if ctx.projects else again.before",
        "again.before[:, :, :1].expand_as(rows)",
        derivatives("lstm", proj_size=2),
    ),
    "a second derivative of what is by hand": (
        _nodes.RecurrentScan,
        "backward",
        "torch.is_grad_enabled() or not all(map(_stored, (grad, last)))",
        "False",
        derivatives("lstm"),
    ),
    "cotangents of the products": (
        _layer.Layer,
        "again",
        "hidden if added is None else hidden + added.hidden[t]",
        "hidden",
        derivatives("gru"),
    ),
    "samples folded in another order": (
        _recurrence,
        "_folded",
        "y.unflatten(1, (samples, -1))",
        "y.unflatten(1, (-1, samples)).transpose(1, 2)",
        lambda monkeypatch: test_a_vmap_inside_the_loss("lstm", monkeypatch),
    ),
    "states not folded": (
        _recurrence,
        "_folded",
        "s.unflatten(0, (samples, -1)) for s in last",
        "s.flip(0).unflatten(0, (samples, -1)) for s in last",
        rows(),
    ),
    "weights of each sample's own not noticed": (
        _recurrence,
        "quickest",
        " and not any(map(is_batched, weights))",
        "",
        lambda monkeypatch: test_weights_of_each_samples_own("gru", monkeypatch),
    ),
    "steps that are samples": (
        _follows,
        "follows",
        "(own, dim, within) == (len(shape) - 2, len(out) - 2, inner)",
        "True",
        lambda _: test_steps_that_are_samples(),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, function, old, new, law = MUTANTS[name]
    torch.manual_seed(0)
    with monkeypatch.context() as unplanted:
        law(unplanted)
    held = inspect.getattr_static(where, function)
    real = held.__func__ if isinstance(held, staticmethod) else held
    source = textwrap.dedent(inspect.getsource(real))
    assert old in source
    scope = {}
    exec(compile(source.replace(old, new), f"<{name}>", "exec"), real.__globals__, scope)
    made = scope[function].__func__ if isinstance(held, staticmethod) else scope[function]
    monkeypatch.setattr(real, "__code__", made.__code__)  # wherever it has been imported
    torch.manual_seed(0)
    with pytest.raises((AssertionError, RuntimeError)):
        law(monkeypatch)
