"""Which law noticed which planted mistake, as the run has seen it so far."""

from __future__ import annotations

MATRIX: dict[str, dict[str, str]] = {}


def table() -> list[str]:
    """A row a mistake, a column a law: "x" where the law went red, "!" where it could not be asked."""
    if not MATRIX:
        return []
    laws = list(dict.fromkeys(law for row in MATRIX.values() for law in row))
    width = max(map(len, MATRIX))
    key = [f"{i:>2} {law}" for i, law in enumerate(laws, 1)]
    head = " " * width + "".join(f"{i:>3}" for i in range(1, len(laws) + 1))
    rows = [
        f"{name:<{width}}" + "".join(f"{row.get(law, '') or '.':>3}" for law in laws) for name, row in MATRIX.items()
    ]
    return [*key, head, *rows]
