"""`gradfunc store build | info | verify | query`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from .. import projections
from .._errors import message
from .._factors import Projection
from .._report import Report, Table, jsonable
from ..audit._demo import digits
from ..store import GradientStore, StoreError, TopK
from ..store import build as build_store
from ..store import info as store_info
from ..store import verify as verify_store
from ._shared import DType, Page, Size, counting, load_problem, show

store = cyclopts.App(name="store", help="Per-sample gradients on disk.", default_parameter=None)
Through = Literal["rademacher", "gaussian", "count-sketch", "two-sided", "none", "factored"]
# As a shell says of a command that Ctrl-C ended.
INTERRUPTED = 130


@store.command
def build(
    path: Annotated[Path, Parameter(negative=())],
    *,
    model: str | None = None,
    projection: Through = "rademacher",
    size: Size = 512,
    seed: int = 0,
    dtype: DType | None = None,
    ids: Path | None = None,
    at_once: Size = 64,
    json: bool = False,
    report: Page | None = None,
) -> int:
    """Write the gradients of all samples of a batch to a store; run again, it goes on where it was stopped.

    Without --model: a small perceptron on the digits data. Ctrl-C leaves a valid store (exit code 130).

    Args:
        path: folder of the store.
        model: package.module:factory, a function returning (model, criterion, batch), the batch with all samples;
            a fourth entry is not used. Files beside you are found.
        projection: what gradients go through; "none" keeps them whole, "factored" as factors where these are smaller.
        size: how many numbers a gradient becomes; of "two-sided" a square number, its root on each side.
        seed: of the projection.
        dtype: of the numbers on disk; by default float16, of factors that of the parameters.
        ids: a file of text with the name of one sample a line; by default samples are numbered.
        at_once: how many samples are computed at a time.
        json: print JSON instead of tables.
        report: write one HTML page with the tables to this file.
    """
    through = _projection(projection, size, seed)
    options: dict[str, Any] = {"factored": projection == "factored", "dtype": dtype, "at_once": at_once}
    options["ids"] = None if ids is None else _names(ids)
    with counting("rows/s") as note:
        try:
            problem = digits(batch_size=1797) if model is None else load_problem("store build", model)
            build_store(path, *problem, projection=through, progress=note, **options)
        except KeyboardInterrupt:
            there = f"{_rows_in(path)} rows are there, the same command goes on"
            print(f"gradfunc store build: stopped; {there}", file=sys.stderr)
            return INTERRUPTED
    return show(store_info(path), json, report)


@store.command
def info(path: Path, *, json: bool = False, report: Page | None = None) -> int:
    """Say what a store holds; lengths and headers of its files are checked. Exit code 1: one is damaged.

    Args:
        path: folder of the store.
        json: print JSON instead of tables.
        report: write one HTML page with the tables to this file.
    """
    return show(store_info(path), json, report)


@store.command
def verify(path: Path, *, json: bool = False, report: Page | None = None) -> int:
    """Hold every byte of a store to its checksum. Exit code 1: something is damaged, the report says what.

    Args:
        path: folder of the store.
        json: print JSON instead of tables.
        report: write one HTML page with the tables to this file.
    """
    return show(verify_store(path), json, report)


@store.command
def query(
    path: Path,
    *,
    ids: Annotated[list[str], Parameter(consume_multiple=True, negative_iterable=())],
    k: Annotated[Size, Parameter(name="-k")] = 10,
    approximate: bool = False,
    json: bool = False,
    report: Page | None = None,
) -> int:
    """Find the samples whose gradients have the largest inner products with those of some samples of the store.

    Args:
        path: folder of the store.
        ids: of the samples that are asked for.
        k: how many for each.
        approximate: ask the index that `store.build_index()` made.
        json: print JSON instead of tables.
        report: write one HTML page with the tables to this file.
    """
    if not ids:
        raise ValueError(message("gradfunc store query", got="--ids without one", expected="ids of samples"))
    opened = GradientStore.open(path)
    every = opened.ids.tolist()
    places = {str(name): at for at, name in enumerate(every)}
    missing = [name for name in ids if name not in places]
    if missing:
        got = f"--ids {missing[0]}, which the store has not"
        raise ValueError(message("gradfunc store query", got=got, expected=f"some of its {len(every)} ids"))
    where = [places[name] for name in ids]
    asked = opened.gradients(where) if opened.manifest.is_factored else opened.rows(where).to(opened._view.dtype)
    found = opened.top_k(asked, k, approximate=approximate)
    return show(Neighbours(tuple(every[at] for at in where), found), json, report)


@dataclass(frozen=True)
class Neighbours(Report):
    """The samples nearest to some, by inner product.

    Attributes:
        asked: ids.
        found: for each.
    """

    asked: tuple[int | str, ...]
    found: TopK

    @property
    def ok(self) -> bool:
        """Nothing is judged."""
        return True

    def parts(self) -> Sequence[Table | str]:
        """A table for each."""
        tables = []
        for asked, ids, values in zip(self.asked, self.found.ids.tolist(), self.found.values.tolist(), strict=True):
            rows = [(str(number), f"{value:.6g}") for number, value in zip(ids, values, strict=True)]
            tables.append(Table(f"Sample {asked}", ("id", "inner product"), rows))
        return tables

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        pairs = zip(self.asked, self.found.ids.tolist(), self.found.values.tolist(), strict=True)
        return {"queries": [{"id": i, "ids": ids, "inner_products": jsonable(v)} for i, ids, v in pairs]}


def _rows_in(path: Path) -> int:
    """None where what was stopped had not made the store."""
    try:
        return store_info(path).manifest.rows
    except StoreError:
        return 0


def _names(path: Path) -> list[str]:
    """One a line."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        got = f"--ids {path}, {type(error).__name__}"
        raise ValueError(message("gradfunc store build", got=got, expected="a file of text to read")) from error


def _projection(name: Through, size: int, seed: int) -> Projection | None:
    if name in ("none", "factored"):
        return None
    if name == "two-sided":
        side = math.isqrt(size)
        if side**2 != size:
            got, expected = f"--size {size}", "a square number, such as 256 for 16 on each side"
            raise ValueError(message("gradfunc store build --projection two-sided", got=got, expected=expected))
        return projections.two_sided((side, side), seed)
    if name == "count-sketch":
        return projections.count_sketch(size, seed)
    return projections.gaussian(size, seed) if name == "gaussian" else projections.rademacher(size, seed)
