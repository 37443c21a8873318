"""What a store holds, as one file of JSON that is replaced as a whole: what it names is acknowledged."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import replace_file
from ._error import reason, refused
from ._ids import INTEGERS
from ._kinds import READING

NAME = "manifest.json"
FORMAT = "gradfunc store"
VERSION = 2
# Of version 1 ids are integers, and gradients are rows.
READABLE = (1, 2)
_FILE = r"rows-[0-9]{8,}\.safetensors"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Shard:
    """A file of rows.

    Attributes:
        file: its name in the store's folder.
        rows: how many.
        bytes: its length.
        sha256: of its bytes.
    """

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a store is, and its shards in order.

    Attributes:
        size: numbers a row.
        dtype: of rows, or of the floats that factors hold: "float16", "bfloat16", "float32" or "float64".
        shard_bytes: about how large a full shard is.
        projection: what rows went through: the `to_dict()` of one of `gf.projections`, `{"kind": "own", "name": ...}`
            for another, `{"kind": "none"}` for rows that are given as they are, `{"kind": "full"}` for whole gradients,
            `{"kind": "factored"}` for whole gradients as factors.
        parameters: `{name: [shape, dtype]}` of the model, in order; None where rows alone were given.
        fingerprint: SHA-256 of the parameters' values, None where they were not given.
        metadata: `{name: [dtype, shape]}` of what is kept with each row; None before the first.
        shards: in the order of rows.
        next: number of the next shard.
        ids: "integers" or "strings"; None before the first row.
        factors: `{parameter: {factor: {"kind", "tensors": {name: [dtype, shape of an entry]}, ...}}}` of factored
            gradients, as far as they have occurred; empty of others. "reading" says how rows are made of them.
    """

    size: int
    dtype: str
    shard_bytes: int
    projection: Mapping[str, Any]
    parameters: Mapping[str, Any] | None = None
    fingerprint: str | None = None
    metadata: Mapping[str, Any] | None = None
    shards: tuple[Shard, ...] = ()
    next: int = 0
    ids: str | None = None
    factors: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of rows."""
        return DTYPES[self.dtype]

    @property
    def is_factored(self) -> bool:
        """Whether gradients are kept as factors."""
        return bool(self.projection["kind"] == "factored")

    def file(self) -> str:
        """Name of the next shard."""
        return f"rows-{self.next:08d}.safetensors"

    def added(self, *shards: Shard) -> Manifest:
        """With shards behind the others."""
        return replace(self, shards=(*self.shards, *shards), next=self.next + len(shards))

    @property
    def digest(self) -> str:
        """Of all rows: changes with any of them."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Replace what the folder says it holds; an OSError leaves that as it was."""
        replace_file(folder / NAME, json.dumps(signed(self.to_dict()), indent=1).encode() + b"\n")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, "version": VERSION, "reading": READING, **asdict(self)}


def signed(facts: dict[str, Any]) -> dict[str, Any]:
    """With the SHA-256 of all other entries, as compact JSON with sorted keys."""
    rest = {name: value for name, value in facts.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_manifest(call: str, folder: Path) -> Manifest:
    """What the folder says it holds. It is data: nothing in it is run.

    Raises:
        StoreError: there is none, of another version, or not as it was written.
    """
    do = "gf.store.GradientStore.create(path, ...) makes one."
    try:
        data = (folder / NAME).read_bytes()
    except OSError as error:
        raise refused(call, got=f"no manifest ({reason(error)})", expected="the folder of a store", do=do) from error
    broken = "Rows are in the files rows-*.safetensors, which other tools read; put back a copy of the manifest."
    try:
        facts = json.loads(data)
        name, version = facts.pop("format"), facts.pop("version")
        if name != FORMAT or not isinstance(version, int):
            raise ValueError(f"it says it is {name!r} {version!r}")
        if version not in READABLE:
            do = "Read it with the gradfunc that wrote it, or a later one."
            raise refused(call, got=f"a store of version {version}", expected=f"version {VERSION} or before", do=do)
        signature = facts.pop("sha256")
        if signed({"format": name, "version": version, **facts})["sha256"] != signature:
            raise ValueError("its bytes are not those that were written (SHA-256)")
        facts.pop("reading", None)
        shards = tuple(Shard(**shard) for shard in facts.pop("shards"))
        if any(not re.fullmatch(_FILE, shard.file) for shard in shards):
            raise ValueError("a shard that lies outside of the folder")
        if version == 1 and shards:
            facts["ids"] = INTEGERS
        return Manifest(**facts, shards=shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refused(call, got=f"a corrupt manifest: {error}", expected="a store's", do=broken) from error


def parameters_of(params: Mapping[str, Tensor]) -> dict[str, Any]:
    """`{name: [shape, dtype]}`, as a manifest holds it."""
    return {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in params.items()}


def fingerprint(params: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values of parameters, in the order of names.

    Example:
        >>> import torch, gradfunc as gf
        >>> params = {"w": torch.zeros(2)}
        >>> gf.store.fingerprint(params)[:8], gf.store.fingerprint({"w": torch.ones(2)})[:8]
        ('f591e525', '9bcc241e')
    """
    digest = hashlib.sha256()
    for name in sorted(params):
        value = params[name].detach()
        digest.update(json.dumps([name, list(value.shape), str(value.dtype)]).encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
