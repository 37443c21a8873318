"""Influence of many samples: in blocks it is what it is at once, in less memory than their rows would take."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import time

import pytest
import torch

from gradfunc.bench import _attribution, attribution, gpt, influence_of_many, peak_bytes
from gradfunc.bench._apart import apart

SMALL = functools.partial(gpt, layers=1, width=16, heads=2, length=4, vocabulary=40)
ROWS = 4 * sum(p.numel() for p in SMALL(batch_size=1).case().model.params.values())


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(influence_of_many, "gpt", SMALL)
    monkeypatch.setattr(influence_of_many, "SIZES", (4, 4))
    monkeypatch.setattr(influence_of_many, "PLAIN", 4)
    monkeypatch.setattr(attribution, "gpt", SMALL)


def check_bounded(n=160, block=20):
    """The rows would take n x P numbers; all that is alive at any time takes less than a quarter of them."""
    assert peak_bytes(lambda: influence_of_many.influence(n, 4, block)) < n * ROWS / 4


@pytest.mark.slow
def test_rows_of_all_samples_are_never_there():
    check_bounded()


@pytest.mark.slow
def test_one_block_of_formed_rows_is_noticed(monkeypatch):
    def formed(train, test):
        a, b = (torch.cat([v.flatten(1) for v in g.materialize().values()], 1) for g in (train, test))
        return a @ b.T

    monkeypatch.setattr(influence_of_many.quantities, "grad_dot", formed)
    with pytest.raises(AssertionError):
        check_bounded(block=160)


def test_blocks_do_not_matter():
    found = [influence_of_many.influence(12, 3, block)["projected_against_exact"] for block in (12, 5)]
    for key, value in found[0].items():
        assert found[1][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    assert found[0]["root_mean_square_error"] <= found[0]["stated_root_of_variance_at_most"]


def test_agreement_is_of_the_scale_of_norms():
    want = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]])
    same = influence_of_many.agreement(want, want, torch.ones(3, 2), k=1)
    assert same["largest_error"] == 0
    assert same["correlation"] == pytest.approx(1)
    assert same["of_the_1_largest_of_a_test_sample"] == 1
    other = influence_of_many.agreement(want + 0.3, want, torch.full((3, 2), 3.0), k=1)
    assert other["largest_error"] == pytest.approx(0.1)
    assert influence_of_many.agreement(-want, want, torch.ones(3, 2), k=1)["of_the_1_largest_of_a_test_sample"] == 0


def ask(folder, name):
    attribution.truth(folder, 6, 3)
    return attribution.asked(folder, name, 6, 3, 1)


def test_contenders_are_held_to_the_definition(tmp_path, monkeypatch):
    name = "gradfunc, grad_dot"
    found = ask(str(tmp_path), name)
    assert found["largest_error"] < 1e-5
    assert found["calls"] == 1  # beside the first
    assert found["ratio_to_plain"] == pytest.approx(found["seconds"] / found["plain_seconds"])
    way = _attribution.CONTENDERS[name]

    def off(case, n):
        call, names = way.make(case, n)
        return lambda: call() * 1.01, names

    monkeypatch.setitem(_attribution.CONTENDERS, name, dataclasses.replace(way, make=off))
    assert ask(str(tmp_path), name)["largest_error"] > 1e-4


def doubled(number):
    return {"number": 2 * number}


def refusing():
    raise ValueError("two\nlines")


def busy():
    while True:
        pass


def waiting():
    """For longer than the busy one may run, without the processor."""
    time.sleep(4)
    return {"number": 1}


def dying():
    os._exit(1)


@pytest.mark.slow
@pytest.mark.slow
def test_work_apart_has_so_many_seconds_of_the_processor():
    """Neither waiting nor importing this file is charged."""
    assert apart(waiting, seconds=1)["number"] == 1
    with pytest.raises(RuntimeError, match="no answer within 1 s of the processor"):
        apart(busy, seconds=1)


@pytest.mark.slow
def test_work_apart():
    found = apart(doubled, 4)
    assert found["number"] == 8
    assert found["peak_bytes"] >= found["of_that_before"] > 0
    with pytest.raises(RuntimeError, match="ValueError: two lines"):
        apart(refusing)
    with pytest.raises(EOFError):
        apart(dying)
    assert not multiprocessing.active_children()
