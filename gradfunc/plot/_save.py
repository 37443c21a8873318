"""A figure as SVG text, or as a file; the same figure gives the same bytes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import one_of
from ._style import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Without the day and the program: the same figure, the same file.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def svg(figure: Figure) -> str:
    """The figure as an SVG document.

    Raises:
        ImportError: matplotlib is not there.

    Example:
        >>> import gradfunc as gf
        >>> text = gf.plot.svg(gf.plot.clip_geometry([2.5, 0.8]))
        >>> text == gf.plot.svg(gf.plot.clip_geometry([2.5, 0.8])), "turns the gradient by 20.92°" in text
        (True, True)
    """
    return _bytes(figure, "svg").decode()


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure as .svg, .png or .pdf, and return the path.

    Args:
        figure: of any function of `gf.plot`.
        path: its ending says which.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: another ending.

    Example:
        >>> import tempfile, gradfunc as gf
        >>> folder = tempfile.TemporaryDirectory()
        >>> gf.plot.save(gf.plot.clip_geometry([2.5, 0.8]), f"{folder.name}/clip.png").name
        'clip.png'
        >>> folder.cleanup()
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    one_of(f"gf.plot.save(figure, {str(path)!r})", "ending", kind, _METADATA)
    path.write_bytes(_bytes(figure, kind))
    return path


def _bytes(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    with style():
        figure.savefig(out, format=kind, metadata=_METADATA[kind])
    return out.getvalue()
