"""The one error for what an engine cannot run: where, why, and the ways out."""

from __future__ import annotations

from .._engines import Limit
from .._errors import EngineError, message

_LOOP = "Pass engine='loop' or 'auto': one autograd call a sample takes whatever autograd can differentiate."
_NATIVE = "Write the loss for the whole batch and pass batched=True: nothing runs under vmap then."
_RAGGED = "If samples differ in shape rather than being padded, pass gf.ragged(samples)."


def cannot(call: str, engine: str, limit: Limit, *, batched: bool) -> EngineError:
    """To be raised from torch's own error."""
    others = [] if batched else [_NATIVE, _RAGGED]
    exits = tuple(way for way in [limit.instead, *([] if limit.anywhere else [*others, _LOOP])] if way)
    expected = f"a loss that {'any engine' if limit.anywhere else f'engine={engine!r}'} can run"
    text = message(call, got=str(limit), expected=expected, do=_listed(exits))
    return EngineError(
        text,
        engine="any" if limit.anywhere else engine,
        why=limit.why,
        operation=limit.code,
        where=limit.where,
        module=limit.module,
        exits=exits,
    )


def _listed(exits: tuple[str, ...]) -> str:
    return exits[0] if len(exits) == 1 else "Ways out: " + " ".join(f"({n}) {way}" for n, way in enumerate(exits, 1))
