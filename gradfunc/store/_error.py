"""What is raised about a store."""

from __future__ import annotations

from .._errors import message


class StoreError(OSError):
    """A store that cannot be made, opened, written or read. The message says which, why, and what to do.

    Example:
        >>> import gradfunc as gf
        >>> try:
        ...     gf.store.GradientStore.open("no/such/folder")
        ... except gf.store.StoreError as error:
        ...     print(str(error)[:46])
        gf.store.GradientStore.open('no/such/folder'):
    """


def refused(call: str, *, got: str, expected: str, do: str = "") -> StoreError:
    """The error in the grammar of messages."""
    return StoreError(message(call, got=got, expected=expected, do=do))


def reason(error: OSError) -> str:
    """Why the system refused, in its own words."""
    return f"{type(error).__name__}: {error.strerror or error}"
