"""Philox4x32-10: four 32-bit words from a counter of four and a key of two, without state.

The generator and its constants are those of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011 (doi:10.1145/2063384.2063405). Words are held in int64, so a product of two wraps at 64 bits, which is where a
32 x 32 bit product ends: its high word is `(product >> 32) & MASK`, its low word the product itself under the mask.
Integer arithmetic is exact, hence the same words on every device; arrays of numpy and Python's integers run through
the same lines.
"""

from __future__ import annotations

from typing import Any

MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """The four words of a block.

    A round costs 10 integer operations on the counters' broadcast shape (12 would be the textbook's), a block some 95:
    while part of the counter is a scalar, so is part of the first two rounds. After these a word that is not multiplied
    next keeps rubbish above its 32 bits, to be masked once it has been mixed in.

    Args:
        counter: int64 tensors, or arrays, that broadcast, or integers, each in [0, 2^32). They are not written to.
        key: integers in [0, 2^32).

    >>> [hex(word) for word in philox4x32((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, d = counter
    k0, k1 = key
    for turn in range(10):
        if turn < 3:  # the words may still be of different shapes or kinds, and a and c are the caller's
            p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
            a, c = (q >> 32) ^ b, (p >> 32) ^ d
            p, q = p & MASK, q & MASK
        else:  # all words are ours and of one shape: write to them
            a *= _MULTIPLIERS[0]
            c *= _MULTIPLIERS[1]
            p, q = a, c
            a, c = q >> 32, p >> 32
            a ^= b
            c ^= d
        a ^= k0
        c ^= k1
        a &= MASK
        c &= MASK
        b, d = q, p
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return a, b & MASK, c, d & MASK
