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
        self.before = {name: (before[name], _version(before[name])) for name in after}
        self.after = dict(after)
        self.made = {name: (value, _version(value)) for name, value in self.items()}
        self.direct = False

    @classmethod
    def at_once(cls, after: Mapping[str, Tensor]) -> Landing:
        """New parameters for `How.lands`: no differences, which nobody would see."""
        landing = cls({}, {})
        landing.after, landing.direct = dict(after), True
        return landing

    def at(self, params: Mapping[str, Tensor]) -> Tensors:
        """The new parameters of those among `params` that the updates were made for, where these are as they were."""
        if self.direct:
            return self.after
        return {
            name: self.after[name]
            for name in self.after
            if _same(params.get(name), self.before[name]) and _same(self.get(name), self.made[name])
        }


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


def _same(given: Tensor | None, known: tuple[Tensor, int]) -> bool:
    tensor, version = known
    return given is tensor and _version(tensor) == version


def _version(tensor: Tensor) -> int:
    """Of a tensor of inference mode, whose changes nobody counts, 0."""
    return 0 if tensor.is_inference() else tensor._version
