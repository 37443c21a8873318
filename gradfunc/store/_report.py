"""What a store holds, and whether it is as it was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._report import Report, Table
from ._manifest import Manifest


class Damage(NamedTuple):
    """A shard that is not what was written."""

    file: str
    rows: int
    why: str


@dataclass(frozen=True)
class StoreReport(Report):
    """What `gf.store.verify` found.

    Attributes:
        manifest: what the store says it holds.
        checked: whether every byte was held to its checksum; else lengths and headers alone.
        damaged: shards that are missing, cut short or changed.
        twice: how many rows have an id that another has too.
        left: files of a writer that was stopped; the next writer takes them away.
    """

    manifest: Manifest
    checked: bool
    damaged: tuple[Damage, ...]
    twice: int
    left: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every acknowledged row is there, as it was written, once."""
        return not self.damaged and not self.twice

    def parts(self) -> Sequence[Table | str]:
        """The store, and what is damaged."""
        m = self.manifest
        kept = ", ".join(f"{name} {dtype}{shape}" for name, (dtype, shape) in (m.metadata or {}).items())
        facts = [
            ("rows", f"{m.rows:,} of {m.size:,} {m.dtype}"),
            ("files", f"{len(m.shards)}, {sum(shard.bytes for shard in m.shards):,} bytes"),
            ("projection", ", ".join(f"{key} {value}" for key, value in m.projection.items())),
            ("parameters", "-" if m.parameters is None else f"{len(m.parameters)}"),
            ("model", m.fingerprint or "-"),
            ("ids", m.ids or "-"),
            ("metadata", kept or "-"),
        ]
        found: list[Table | str] = [Table("Store", ("", ""), facts)]
        if m.factors:
            found.append(Table("Factors", ("parameter", "shape", "kept as"), [_line(m, name) for name in m.factors]))
        if self.damaged:
            rows = [(one.file, str(one.rows), one.why) for one in self.damaged]
            found.append(Table("Damaged", ("file", "rows", "what is wrong"), rows))
        if self.twice:
            found.append(f"{self.twice} rows have an id that another row has too.")
        if self.left:
            found.append(f"Left by a writer that was stopped, and no part of the store: {', '.join(self.left)}")
        how = "every byte held to its checksum" if self.checked else "lengths and headers alone were looked at"
        lost = sum(one.rows for one in self.damaged)
        found.append(f"Sound: {how}." if self.ok else f"NOT SOUND: {lost:,} of {m.rows:,} rows damaged; {how}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a shard is named only if it is damaged."""
        facts = {name: value for name, value in self.manifest.to_dict().items() if name not in ("shards", "next")}
        return {
            "ok": self.ok,
            "checked": self.checked,
            "rows": self.manifest.rows,
            "files": len(self.manifest.shards),
            "bytes": sum(shard.bytes for shard in self.manifest.shards),
            "damaged": [one._asdict() for one in self.damaged],
            "twice": self.twice,
            "left": list(self.left),
            **facts,
        }


def _line(manifest: Manifest, name: str) -> tuple[str, str, str]:
    """A parameter, its shape, and the kinds of factors that occur."""
    shape, _ = (manifest.parameters or {})[name]
    return name, "x".join(map(str, shape)) or "1", ", ".join(manifest.factors[name])
