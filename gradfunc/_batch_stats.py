"""Layers that normalise by the statistics of the batch: found, refused, frozen; and what is used in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ._errors import message
from ._report import Report, Table, jsonable

# Groups of a GroupNorm where they divide the channels: Wu and He, "Group Normalization", ECCV 2018, section 4.1.
_GROUPS = 32


@dataclass(frozen=True)
class BatchStatLayer:
    """One layer under which a sample's output depends on the other samples.

    Attributes:
        name: its path in the module.
        kind: its class.
        channels: that it normalises.
        why: what makes it use the batch: its mode, or that it has no running statistics.
        substitutes: lines of code, the one that changes least first.
    """

    name: str
    kind: str
    channels: int
    why: str
    substitutes: tuple[str, ...]


@dataclass(frozen=True)
class BatchStatReport(Report):
    """The layers, and what others use in their place. Nothing is replaced by itself."""

    layers: tuple[BatchStatLayer, ...]

    @property
    def ok(self) -> bool:
        """Whether samples are treated alone."""
        return not self.layers

    def parts(self) -> Sequence[Table | str]:
        """A row a layer."""
        if not self.layers:
            return ["No layer normalises by the statistics of the batch."]
        rows = [[x.name, x.kind, str(x.channels), x.why, "\n".join(x.substitutes)] for x in self.layers]
        columns = ["layer", "class", "channels", "why", "substitutes"]
        note = "Nothing is replaced by itself. Another norm must be trained: it computes something else."
        return [Table("Layers that normalise by the statistics of the batch", columns, rows, note)]

    def to_dict(self) -> dict[str, Any]:
        """A dictionary a layer."""
        found: dict[str, Any] = jsonable({"layers": [vars(layer) for layer in self.layers]})
        return found


def layers(module: nn.Module) -> list[BatchStatLayer]:
    """Those of a module, in the modes in which its layers are."""
    return [
        _described(name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
    ]


def _described(name: str, layer: _BatchNorm) -> BatchStatLayer:
    kind, channels = type(layer).__name__, layer.num_features
    groups = next(n for n in range(min(_GROUPS, channels), 0, -1) if channels % n == 0)
    others = [f"nn.GroupNorm({groups}, {channels})", f"nn.GroupNorm(1, {channels})  # over all channels"]
    if layer.running_mean is None:
        return BatchStatLayer(name or kind, kind, channels, "track_running_stats=False", tuple(others))
    own = [
        ".eval()  # of this layer alone",
        "batch_stats='frozen'  # the same",
    ]
    return BatchStatLayer(name or kind, kind, channels, "in train mode", (*own, *others))


def refuse(call: str, found: Sequence[BatchStatLayer]) -> None:
    """Raise RuntimeError if there is one."""
    if not found:
        return
    first = found[0]
    tracks = first.why == "in train mode"
    why = "is in train mode" if tracks else "has track_running_stats=False"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    use = "Use .eval(), GroupNorm or LayerNorm; or" if tracks else "Use GroupNorm or LayerNorm; or"
    frozen = "batch_stats='frozen' for the running statistics, or " if tracks else ""
    raise RuntimeError(
        message(
            call,
            got=f"layer '{first.name}' ({first.kind}){more}, which {why} and so normalises by the statistics of "
            "the batch: sample i's gradient depends on the other samples",
            expected="layers that treat samples alone",
            do=f"{use} gf.stateless with {frozen}batch_stats='batch' and a loss of the whole batch (batched=True). "
            "print(model.batch_stat_report()) lists the layers and what takes their place.",
        )
    )


def check_running(call: str, module: nn.Module) -> None:
    """Raise ValueError unless every batch norm has running statistics, by which "frozen" normalises."""
    for layer in layers(module):
        if layer.why != "in train mode":
            got = f"batch_stats='frozen' and layer '{layer.name}', which has no running statistics"
            do = f"Use {layer.substitutes[0]} there, or batch_stats='batch'."
            raise ValueError(message(call, got=got, expected="track_running_stats=True", do=do))


class FrozenOnly(TorchFunctionMode):
    """Refuses to normalise by the statistics of the batch: a layer may be reached in ways that a replica does not see.

    Such as a list of layers beside `nn.ModuleList`, or a bound method, which lead to the user's own module.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in (F.batch_norm, torch.batch_norm) and (given.get("training") or (len(args) > 5 and args[5])):
            got = "a batch norm that is not reached through its parent module (through a list, or a bound method)"
            do = "Keep layers in nn.ModuleList and call them, or call .eval() on this one."
            raise RuntimeError(
                message("model(params, ...)", got=got, expected="layers that batch_stats='frozen' finds", do=do)
            )
        return func(*args, **given)


def freeze(module: nn.Module) -> None:
    """Put the batch norms of a replica, which shares nothing but tensors with the user's module, into eval mode."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.training = False
