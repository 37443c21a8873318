"""Influence of some samples on others, of one workload: by gradfunc, and by other libraries as they document it.

Each is `make(case, n) -> (call, names)`: `call()` gives scores `[n, m]` of the first n samples on the others, `names`
are the parameters it takes into account.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .. import projections, quantities
from .._per_sample import per_sample_grads
from ._workload import Case

Scores = Callable[[], Tensor]


def _parts(case: Case, n: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tuple(t[:n] for t in case.batch), tuple(t[n:] for t in case.batch)


def _loaders(case: Case, n: int) -> tuple[Any, Any]:
    """All of a side in one batch."""
    train, test = (DataLoader(TensorDataset(*part), batch_size=len(part[0])) for part in _parts(case, n))
    return train, test


def _grad_dot(case: Case, n: int) -> tuple[Scores, list[str]]:
    f, (train, test) = per_sample_grads(case.loss), _parts(case, n)

    def call() -> Tensor:
        params = case.model.params
        return quantities.grad_dot(f(params, *train), f(params, *test))

    return call, list(case.model.params)


def _projected(case: Case, n: int) -> tuple[Scores, list[str]]:
    f, projection = per_sample_grads(case.loss), projections.two_sided((64, 64))
    train, test = _parts(case, n)

    def call() -> Tensor:
        phi, psi = (f(case.model.params, *part).project(projection) for part in (train, test))
        return phi @ psi.T

    return call, list(case.model.params)


def _dattri_task(case: Case) -> Any:
    from dattri.task import AttributionTask

    module = copy.deepcopy(case.module)

    def loss(params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        tokens, target = data
        return _summed(torch.func.functional_call(module, params, (tokens[None],))[0], target)

    return AttributionTask(loss_func=loss, model=module, checkpoints=module.state_dict())


def _dattri(case: Case, n: int) -> tuple[Scores, list[str]]:
    from dattri.algorithm.tracin import TracInAttributor

    attributor = TracInAttributor(_dattri_task(case), torch.ones(1), normalized_grad=False)
    # As an argument None means the default, a projection to 512 numbers, which takes minutes here.
    attributor.projector_kwargs = None
    loaders = _loaders(case, n)
    return lambda: attributor.attribute(*loaders), list(case.model.params)


class _WithLoss(nn.Module):
    """The model as dattri's projections take one that is no classifier of vectors: a batch by name, a loss inside.

    It multiplies cotangents by the size of the batch, as suits the mean of the samples' losses.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, target: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=_summed(self.model(tokens), target) / len(target))


def _dattri_logra(case: Case, n: int) -> tuple[Scores, list[str]]:
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask

    def loader(tokens: Tensor, target: Tensor) -> Any:
        named: Any = [{"tokens": one, "target": other} for one, other in zip(tokens, target, strict=True)]
        return DataLoader(named, batch_size=len(named))

    def loss(model: nn.Module, batch: dict[str, Tensor], device: str) -> Tensor:
        found: Tensor = model(**batch).loss
        return found

    module, loaders = _WithLoss(copy.deepcopy(case.module)), [loader(*part) for part in _parts(case, n)]
    task = AttributionTask(loss_func=loss, model=module, checkpoints=module.state_dict())

    def call() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            attributor = LoGraAttributor(task, hessian="Identity", proj_dim=4096, cache_dir=folder)
            attributor.cache(loaders[0])
            found: Tensor = attributor.attribute(*loaders)
            return found

    return call, _linear(case)


def _kronfluence(case: Case, n: int) -> tuple[Scores, list[str]]:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    class Losses(Task):  # type: ignore[misc]  # kronfluence is not there to be checked
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return _summed(model(batch[0]), batch[1])

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    task, (train, test) = Losses(), (TensorDataset(*part) for part in _parts(case, n))
    model = prepare_model(copy.deepcopy(case.module), task)
    folder = tempfile.TemporaryDirectory()
    analyzer = Analyzer("bench", model, task, cpu=True, output_dir=folder.name, disable_tqdm=True)
    analyzer.fit_all_factors("none", train, factor_args=FactorArguments(strategy="identity"))
    sizes = {"per_device_query_batch_size": case.size - n, "per_device_train_batch_size": n}

    def call() -> Tensor:
        assert folder.name
        analyzer.compute_pairwise_scores("all", "none", test, train, overwrite_output_dir=True, **sizes)
        found: Tensor = analyzer.load_pairwise_scores("all")["all_modules"].T
        return found

    return call, _linear(case)


def _trak(case: Case, n: int) -> tuple[Scores, list[str]]:
    """Features of half as many numbers as there are training samples, and the whole estimator."""
    import trak

    class Output(trak.modelout_functions.AbstractModelOutput):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            super().__init__()

        @staticmethod
        def get_output(model: nn.Module, weights: Any, buffers: Any, tokens: Tensor, target: Tensor) -> Tensor:
            return _summed(torch.func.functional_call(model, (weights, buffers), tokens[None])[0], target)

        def get_out_to_loss_grad(self, model: nn.Module, weights: Any, buffers: Any, batch: Any) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    module, loaders, m = copy.deepcopy(case.module), _loaders(case, n), case.size - n

    def call() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:

            def made() -> Any:
                return trak.TRAKer(
                    module, Output(), n, save_dir=folder, device="cpu", proj_dim=n // 2, use_half_precision=False,
                    logging_level=logging.ERROR,
                )  # fmt: skip

            one = made()
            one.load_checkpoint(module.state_dict(), model_id=0)
            for batch in loaders[0]:
                one.featurize(batch, num_samples=len(batch[0]))
            one.finalize_features()
            # It lets go of its matrix there, and draws it again only where there are more than 100 numbers; a
            # second one on the same folder goes on from what the first has saved.
            other = made()
            other.start_scoring_checkpoint("all", module.state_dict(), model_id=0, num_targets=m)
            for batch in loaders[1]:
                other.score(batch, num_samples=len(batch[0]))
            return torch.as_tensor(other.finalize_scores("all")).clone()

    return call, list(case.model.params)


def _summed(logits: Tensor, target: Tensor) -> Tensor:
    """The numerators of the workload's loss."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="sum")


def _linear(case: Case) -> list[str]:
    """Parameters of linear layers."""
    layers = [name for name, layer in case.module.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name in case.model.params if name.rpartition(".")[0] in layers]


@dataclass(frozen=True)
class Way:
    """One way to scores: how, what is promised ("exact", "projected" or "TRAK"), and what it is, in words."""

    make: Callable[[Case, int], tuple[Scores, list[str]]]
    promised: str
    about: str


CONTENDERS = {
    "gradfunc, grad_dot": Way(_grad_dot, "exact", "inner products of all parameters, from factors"),
    "gradfunc, two_sided((64, 64))": Way(
        _projected, "projected", "all parameters, added in one set of 4096 numbers a sample"
    ),
    "dattri, TracInAttributor": Way(
        _dattri, "exact", "inner products of all parameters, from rows by vmap(grad); its projection is turned off"
    ),
    "dattri, LoGraAttributor of 4096, identity": Way(
        _dattri_logra, "projected", "weights and biases of linear layers, 4096 numbers for each of the layers"
    ),
    "kronfluence, identity": Way(
        _kronfluence, "exact", "inner products of weights and biases of linear layers, by hooks"
    ),
    "traker, 32 numbers": Way(
        _trak,
        "TRAK",
        "all parameters in half as many numbers as training samples, and TRAK's kernel: no inner products",
    ),
}
