"""Ids of samples: integers, or strings as their UTF-8; one kind a store."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._errors import kind_of, message
from ._columns import Part, Ragged, joined

IDS, UTF8 = "ids", "utf8"
INTEGERS, STRINGS = "integers", "strings"
# As they are kept, and as they are given back.
Ids = Tensor | Ragged
Named = Tensor | np.ndarray[Any, Any]
_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def read_ids(call: str, ids: Any, count: int, first: int, kind: str | None) -> Ids:
    """`[count]` ids, a copy, of the store's kind where it has one; integers from `first` on by default.

    Raises:
        TypeError: neither integers nor strings, or not of the store's kind.
        ValueError: not one a row; an empty string, or one that is no text.
    """
    if isinstance(ids, (str, bytes)):
        raise TypeError(message(call, got=f"ids: {kind_of(ids)}", expected="integers or strings, one a row"))
    texts = None if ids is None or isinstance(ids, Tensor) else _texts(call, ids)
    own = INTEGERS if texts is None else STRINGS
    if kind is not None and own != kind:
        got = "no ids" if ids is None else f"ids that are {own}"
        raise TypeError(message(call, got=got, expected=f"{kind}, as in the rows before"))
    if texts is not None:
        _check_count(call, (len(texts),), count)
        return _encoded(call, texts)
    if ids is None:
        return torch.arange(first, first + count)
    try:
        given = ids.detach().cpu() if isinstance(ids, Tensor) else torch.from_numpy(np.array(ids))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(message(call, got=f"ids: {kind_of(ids)}", expected="integers or strings")) from error
    if given.dtype not in _WHOLE:
        raise TypeError(message(call, got=f"ids of {given.dtype}", expected="integers or strings, one a row"))
    _check_count(call, tuple(given.shape), count)
    return given.to(torch.int64, copy=True)


def kind_of_ids(ids: Ids) -> str:
    """As a manifest says it."""
    return INTEGERS if isinstance(ids, Tensor) else STRINGS


def ids_of(parts: Sequence[Part], kind: str | None) -> Ids:
    """Those of all rows, in order."""
    found = [part.chosen([IDS]) for part in parts if part.count]
    if not found:
        return _none(kind)
    whole = joined(found)
    return whole.ragged[IDS] if kind == STRINGS else whole.plain[IDS]


def at(ids: Ids, where: Tensor) -> Named:
    """The ids at positions of any shape, likewise."""
    if isinstance(ids, Tensor):
        return ids[where]
    return named(ids.take(where.reshape(-1))).reshape(tuple(where.shape))


def named(ids: Ids) -> Named:
    """As they are given back: int64 `[n]`, or an array of numpy's strings."""
    if isinstance(ids, Tensor):
        return ids
    return np.array([key.decode(errors="replace") for key in keys(ids)], dtype=np.str_)


def keys(ids: Ids) -> list[Any]:
    """Integers, or the bytes of strings: what can be looked up."""
    if isinstance(ids, Tensor):
        return ids.tolist()
    text, ends = ids.tensors[UTF8].numpy().tobytes(), [0, *ids.ends.tolist()]
    return [text[start:stop] for start, stop in pairwise(ends)]


def repeated(ids: Ids) -> int:
    """How many rows have an id that a row before has."""
    if isinstance(ids, Tensor):
        return len(ids) - len(ids.unique())
    return len(ids.lengths) - len(set(keys(ids)))


def _none(kind: str | None) -> Ids:
    if kind != STRINGS:
        return torch.empty(0, dtype=torch.int64)
    return Ragged(torch.empty(0, dtype=torch.int32), {UTF8: torch.empty(0, dtype=torch.uint8)})


def _texts(call: str, ids: Any) -> list[str] | None:
    """The strings, or None where the first is none."""
    given = ids if isinstance(ids, Sequence) else np.asarray(ids).tolist()
    if not isinstance(given, Sequence) or not given or not isinstance(given[0], str):
        return None
    others = [text for text in given if not isinstance(text, str)]
    if others:
        got = f"ids that are strings and {kind_of(others[0])}"
        raise TypeError(message(call, got=got, expected="strings alone, or integers alone"))
    return list(given)


def _encoded(call: str, texts: list[str]) -> Ragged:
    # numpy's strings end before a NUL, so that two ids could be read back as one
    bad = [text for text in texts if not text or "\0" in text or _lone(text)]
    if bad:
        got = f"the id {bad[0]!r}"
        raise ValueError(message(call, got=got, expected="text that is not empty, without NUL and lone surrogates"))
    encoded = [text.encode() for text in texts]
    lengths = torch.tensor([len(data) for data in encoded], dtype=torch.int32)
    return Ragged(lengths, {UTF8: torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)})


def _lone(text: str) -> bool:
    """Whether it has half of a pair of UTF-16, which UTF-8 cannot say."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _check_count(call: str, shape: tuple[int, ...], count: int) -> None:
    if shape != (count,):
        raise ValueError(message(call, got=f"ids of shape {shape}", expected=f"[{count}], one a row"))
