"""Updates that know where they lead."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .._tree import Tensors


class Landing(dict[str, Tensor]):
    """Updates of a rule that gave new parameters: the differences, and what they came from and lead to.

    Added to the old parameters, differences lead to the new ones up to rounding only: where an entry changes its sign,
    no number of the same type may lead there. So `apply_updates` on the very tensors that the rule was given takes
    these results. Once anything else was done to the updates they are plain ones.
    """

    def __init__(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        super().__init__({name: value - before[name].detach() for name, value in after.items()})
        self.before = {name: (before[name], before[name]._version) for name in after}
        self.after = dict(after)
        self.made = {name: (value, value._version) for name, value in self.items()}

    def at(self, params: Mapping[str, Tensor]) -> Tensors:
        """The new parameters of those among `params` that the updates were made for, where these still stand."""
        return {
            name: self.after[name]
            for name in self.before
            if _stands(params.get(name), self.before[name]) and _stands(self.get(name), self.made[name])
        }


def _stands(value: Tensor | None, noted: tuple[Tensor, int]) -> bool:
    tensor, version = noted
    return value is tensor and tensor._version == version


def merged(parts: list[Mapping[str, Tensor]], order: list[str]) -> Tensors:
    """Parts as one dictionary, in this order where they have the names."""
    found = {name: value for part in parts for name, value in part.items()}
    ordered = {name: found[name] for name in order if name in found}
    if not parts or not all(isinstance(part, Landing) for part in parts):
        return ordered
    whole = Landing({}, {})
    whole.update(ordered)
    for part in parts:
        assert isinstance(part, Landing)
        whole.before |= part.before
        whole.after |= part.after
        whole.made |= part.made
    return whole
