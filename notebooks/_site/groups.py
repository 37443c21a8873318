"""The names of `gf` itself in groups, by the files they come from: a new stage is grouped by where it stands."""

from __future__ import annotations

from .names import Name, names

GROUPS = {
    "per-sample gradients": ("_per_sample", "_reduce", "_weights", "_stateless", "_tree", "losses", "_errors"),
    "per-sample stages": ("_transform._rows",),
    "reductions": ("_transform._reductions",),
    "stages of the batch's gradient": ("_transform._batch",),
    "rules": ("_transform._rules",),
    "composition": (
        "_transform._protocol",
        "_transform._chain",
        "_transform._guarantee",
        "_transform._parts",
        "_transform._same",
        "_transform._states",
        "_transform._step",
    ),
    "bridges and output": ("_bridge", "_cotangent", "_export", "_page"),
}


def of_group(group: str) -> list[Name]:
    """The names of a group, in the order in which `gradfunc/__init__.py` has them."""
    return [name for name in top_level() if group_of(name) == group]


def top_level() -> list[Name]:
    """The names of `gf` itself."""
    return [name for name in names().values() if name.path.count(".") == 1]


def group_of(name: Name) -> str | None:
    """The group of a name; None where no file of it is listed."""
    home = name.value.__module__.removeprefix("gradfunc.")
    # The longest prefix decides, so that a file may have another group than its folder.
    fits = [
        (prefix, group)
        for group, prefixes in GROUPS.items()
        for prefix in prefixes
        if home == prefix or home.startswith(f"{prefix}.")
    ]
    return max(fits, key=lambda fit: len(fit[0]))[1] if fits else None
