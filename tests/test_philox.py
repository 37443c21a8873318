"""Philox4x32-10 gives the published words, on tensors as on integers."""

from __future__ import annotations

import pytest
import torch

from gradfunc._random import _philox
from gradfunc._random._philox import MASK

# counter, key, words: the known answers that come with Random123, the authors' own library.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def check_known_answers(device="cpu"):
    for counter, key, words in KNOWN:
        assert _philox.philox4x32(counter, key) == words
        tensors = tuple(torch.tensor([word, 0], device=device) for word in counter)
        assert tuple(int(word[0]) for word in _philox.philox4x32(tensors, key)) == words


def test_known_answers(device):
    check_known_answers(device)


@pytest.mark.parametrize("vector", range(4))
@pytest.mark.parametrize("batched", range(4))
def test_any_mix_of_integers_and_tensors(vector, batched, device):
    """Each position of the counter as an integer, a row or a column gives what integers give one by one."""
    generator = torch.Generator().manual_seed(vector)
    counter = [int(word) for word in torch.randint(0, 2**32, (4,), generator=generator)]
    row = torch.randint(0, 2**32, (3,), generator=generator)
    column = torch.randint(0, 2**32, (2, 1), generator=generator)
    mixed = list(counter)
    mixed[batched] = column.to(device)
    mixed[vector] = row.to(device)
    before = [word.clone() if isinstance(word, torch.Tensor) else word for word in mixed]
    key = (7, MASK)
    words = torch.stack(torch.broadcast_tensors(*_philox.philox4x32(tuple(mixed), key)), -1).cpu()
    for place in torch.cartesian_prod(*map(torch.arange, words.shape[:-1])).reshape(-1, words.dim() - 1).tolist():
        one = list(counter)
        one[batched] = int(column[place[0]] if len(place) == 2 else column[0])
        one[vector] = int(row[place[-1]])
        assert tuple(words[tuple(place)].tolist()) == _philox.philox4x32(tuple(one), key)
    for a, b in zip(before, mixed, strict=True):
        assert a is b or torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_words_are_of_32_bits():
    words = _philox.philox4x32((torch.arange(10_000), 0, 0, 0), (0, 0))
    assert all(0 <= int(word.min()) <= int(word.max()) <= MASK for word in words)
