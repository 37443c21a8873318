"""The grammar of messages: repeat the call, say what came, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class GradfuncWarning(UserWarning):
    """Something the caller should know about a result that is still exact.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", GradfuncWarning)    # make it stop the program
        >>> warnings.resetwarnings()
    """


class ModelPathError(ValueError):
    """A `--model package.module:factory` that cannot be read, called or understood."""


def message(call: str, *, got: str, expected: str, do: str = "") -> str:
    """Spell one error: `call: got ...; expected .... do`.

    Example:
        >>> message("gf.reduce(g, 'avg')", got="'avg'", expected="'mean'")
        "gf.reduce(g, 'avg'): got 'avg'; expected 'mean'."
    """
    return f"{call}: got {got}; expected {expected}." + (f" {do}" if do else "")


def one_of(call: str, name: str, value: object, options: Iterable[str], do: str = "") -> None:
    """Raise ValueError unless `value` is one of `options`."""
    known = list(options)
    if value not in known:
        raise ValueError(
            message(call, got=f"{name}={value!r}", expected=f"{name} to be one of {_listed(known)}", do=do)
        )


def kind_of(value: object) -> str:
    """How a message names a value that came: `a list`, `an int`, `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def _listed(options: list[str]) -> str:
    return ", ".join(repr(option) for option in options)
