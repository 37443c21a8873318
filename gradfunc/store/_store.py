"""`GradientStore`: per-sample gradients on disk, as a folder is made, opened, written and kept."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from .._errors import check_int, one_of
from .._factors import Projection
from .._tree import Tensors
from . import _export, _maintain
from ._asked import check_model, kind_and_size, same_projection
from ._error import StoreError, reason, refused
from ._ids import Named, named
from ._manifest import DTYPES, NAME, Manifest, fingerprint, parameters_of, read_manifest
from ._questions import Questions
from ._report import StoreReport
from ._verify import info, verify
from ._view import View
from ._writer import LOCK, Writer

Path_ = str | os.PathLike[str]


class GradientStore(Questions):
    """Gradients on disk, one a sample, with ids and metadata. Made by `create` and `open`.

    Rows `[n, size]`: projected, or whole. Or factors: what a layer saw and what came back to it, wherever that is
    smaller than rows; no query forms n x P then, and `gradients()` is a value like that which was appended.

    A folder of shards in the format of safetensors ("rows" or "factors/...", "ids", "metadata/..."), and
    `manifest.json`, which names them in order with their SHA-256, and says of which model the gradients are, what they
    went through, and how factors make rows. Opening one maps the files and runs nothing. What is asked is answered of
    the gradients that were acknowledged when the store was opened, or last refreshed; `writer()` refreshes it when it
    closes.

    Attributes:
        path: the folder.

    Example:
        >>> import tempfile, torch, gradfunc as gf
        >>> model = gf.stateless(gf.models.mlp([20, 30, 5]))
        >>> f = gf.per_sample_grads(lambda p, x: model.sample(p, x).square().sum())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = gf.store.GradientStore.create(
        ...         folder, projection=gf.projections.rademacher(64), params=model.params, dtype="float32")
        ...     with store.writer() as w:
        ...         count = w.append(f(model.params, torch.eye(20)), ids=range(100, 120))
        ...     len(store), store.top_k(store.rows([3]), k=1).ids.item(), store.verify().ok
        (20, 103, True)
    """

    def __init__(self, path: Path, view: View, projection: Projection | None) -> None:
        self.path = path
        self._view = view
        self._projection = projection

    @classmethod
    def create(
        cls,
        path: Path_,
        *,
        projection: Projection | None = None,
        params: Mapping[str, Tensor] | None = None,
        size: int | None = None,
        factored: bool = False,
        dtype: str | torch.dtype | None = None,
        shard_bytes: int = 2**24,
    ) -> Self:
        """An empty store in a folder, which is made if need be.

        Args:
            path: of the folder.
            projection: what gradients go through. One of `gf.projections` is written down and made again by `open`;
                one of your own must be given again.
            params: of the model, whose names, shapes and SHA-256 are written down. Without a projection, gradients
                are kept whole, `size` being all their entries.
            size: of rows that are given as they are, with neither projection nor params.
            factored: keep factors of whole gradients where they are smaller; values of the engines "vmap" and "loop"
                have none, and are kept whole.
            dtype: on disk: "float16", "bfloat16", "float32" or "float64". By default float16 for rows; for factors the
                widest of the params', in which both halves are as they were. Rounded to another, of unit roundoff u, a
                gradient is off by at most (2 u + u^2) |x| |g| a factor.
            shard_bytes: about how large a file is; so much waits in memory.

        Raises:
            TypeError, ValueError: something else.
            StoreError: there is a store already, or the folder cannot be written.
        """
        call, folder = f"gf.store.GradientStore.create({str(path)!r}, ...)", Path(path)
        kind, found = kind_and_size(call, projection, params, size, factored)
        if dtype is None and factored and params is not None:
            dtype = functools.reduce(torch.promote_types, [value.dtype for value in params.values()])
        name = str(dtype or "float16").removeprefix("torch.")
        one_of(call, "dtype", name, DTYPES)
        check_int(call, "shard_bytes", shard_bytes, 1)
        described, own = (None, None) if params is None else (parameters_of(params), fingerprint(params))
        manifest = Manifest(found, name, shard_bytes, kind, described, own)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / NAME).exists():
                do = "gf.store.GradientStore.open(path) opens it."
                raise refused(call, got="a folder with a store in it", expected="one without", do=do)
            others = [one.name for one in folder.iterdir() if one.name != LOCK and not one.name.startswith(f".{NAME}.")]
            if others:
                raise refused(call, got=f"a folder with {others[0]!r} in it", expected="a new or empty one")
            manifest.write(folder)
        except StoreError:
            raise
        except OSError as error:
            raise refused(call, got=reason(error), expected="a folder that can be written") from error
        return cls(folder, View.of(call, folder, "raise"), projection)

    @classmethod
    def open(
        cls,
        path: Path_,
        *,
        projection: Projection | None = None,
        params: Mapping[str, Tensor] | None = None,
        damaged: str = "raise",
    ) -> Self:
        """A store that is there, to be read by as many as like, also while another writes. Runs no code from it.

        Args:
            path: of the folder.
            projection: what gradients went through, to be held to what is written down.
            params: of the model, likewise; without, the model is not checked until gradients are appended, and then
                names and shapes alone.
            damaged: "raise", or "skip" to leave damaged shards out with a warning; such a store has no writer.

        Raises:
            TypeError, ValueError: something else.
            StoreError: no store, one of another version, model or projection, or a damaged one.
        """
        call, folder = f"gf.store.GradientStore.open({str(path)!r})", Path(path)
        one_of(call, "damaged", damaged, ("raise", "skip"))
        manifest = read_manifest(call, folder)
        made = same_projection(call, manifest, projection)
        if params is not None:
            check_model(call, manifest, params)
        return cls(folder, View.of(call, folder, damaged), made)

    def __repr__(self) -> str:
        m = self.manifest
        return f"GradientStore({str(self.path)!r}: {len(self):,} rows of {m.size:,} {m.dtype}, {m.projection['kind']})"

    @property
    def manifest(self) -> Manifest:
        """What the store says it holds."""
        return self._view.manifest

    @property
    def projection(self) -> Projection | None:
        """What gradients go through; None where they are given or whole, or it is another's that was not given."""
        return self._projection

    @property
    def ids(self) -> Named:
        """Of samples, in the order of rows: int64 `[n]`, or an array of numpy's strings."""
        return named(self._view.ids())

    @property
    def metadata(self) -> Tensors:
        """What is kept with each row, `{name: [n, ...]}`."""
        return self._view.metadata()

    def refresh(self) -> None:
        """See what was acknowledged since."""
        self._view = View.of(f"{self._name}.refresh()", self.path, "raise")

    def writer(self, params: Mapping[str, Tensor] | None = None) -> Writer:
        """The one writer, to be used in a `with`; it takes away what a killed one left, and says so.

        Args:
            params: of the model, to be held to the SHA-256 that is written down.

        Raises:
            StoreError: another writer is at work, the folder cannot be written, a shard is damaged, or it is another
                model.
        """
        call = f"{self._name}.writer()"
        if params is not None:
            check_model(call, self.manifest, params)
        return Writer(call, self.path, self._view, self._projection, self.refresh)

    def export(self, path: Path_, format: str = "numpy") -> None:
        """Write ids, rows and metadata for other tools; of factored gradients the factors, as ragged columns.

        Args:
            path: of a new folder of `.npy` files ("numpy": rows, ids, metadata-NAME, with NAME as in a URL), or a new
                file: a dict for `torch.load` ("torch", held in memory), or Arrow's IPC format ("arrow", extra "store":
                columns id, row, metadata/NAME). Arrow and numpy have no bfloat16: float32 then.
            format: "numpy", "torch" or "arrow".

        Raises:
            ValueError: another format.
            StoreError: it is there already, or cannot be written.
        """
        call = f"{self._name}.export({str(path)!r}, format={format!r})"
        one_of(call, "format", format, _export.FORMATS)
        _export.export(call, self._view, Path(path), format)

    def verify(self) -> StoreReport:
        """Hold every byte on disk to its checksum; as `gf.store.verify(path)`."""
        return verify(self.path)

    def info(self) -> StoreReport:
        """What the store holds; lengths and headers alone are checked."""
        return info(self.path)

    def compact(self) -> int:
        """Join short shards, which `flush()` and `merge` leave; returns how many files fewer there are.

        Rows, ids and their order stay, and so does what others have open. Every shard is held to its checksum first.

        Raises:
            StoreError: a writer is at work, a shard is damaged, or there is no room: the store is as it was.
        """
        done = _maintain.compact(f"{self._name}.compact()", self.path)
        self.refresh()
        return done

    def merge(self, parts: Iterable[GradientStore | Path_]) -> int:
        """Copy the rows of other stores, such as those of other processes, behind these; returns how many.

        All at once or none: until the last file is there none of them counts.

        Args:
            parts: stores of the same model, projection, dtype and metadata, with ids of their own.

        Raises:
            StoreError: an incompatible or damaged part, an id twice, a writer at work, or no room: nothing changed.
        """
        folders = [part.path if isinstance(part, GradientStore) else Path(part) for part in parts]
        done = _maintain.merge(f"{self._name}.merge(parts)", self.path, folders)
        self.refresh()
        return done
