"""Every public name says what it is, with an example; every example of the package runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch.nn import functional as F

import gradfunc as gf

MODULES = ["gradfunc", *(info.name for info in pkgutil.walk_packages(gf.__path__, "gradfunc."))]


def public(namespace):
    return {
        name: value
        for name, value in vars(namespace).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__.startswith("gradfunc")
    }


NAMES = {
    **{f"gf.{name}": value for name, value in public(gf).items()},
    **{
        f"gf.losses.{name}": value for name, value in public(gf.losses).items() if value.__module__ == "gradfunc.losses"
    },
    **{f"gf.bench.{name}": value for name, value in public(gf.bench).items()},
    **{f"gf.hf.{name}": value for name, value in public(gf.hf).items() if value.__module__ == "gradfunc.hf"},
    **{f"gf.init.{name}": value for name, value in public(gf.init).items()},
    **{f"gf.weightings.{name}": value for name, value in public(gf.weightings).items()},
    **{f"gf.quantities.{name}": value for name, value in public(gf.quantities).items()},
    **{
        f"gf.schedules.{name}": value
        for name, value in public(gf.schedules).items()
        if inspect.isfunction(value) and value.__module__ == "gradfunc.schedules"
    },
    **{f"gf.projections.{name}": value for name, value in public(gf.projections).items()},
    **{f"gf.store.{name}": value for name, value in public(gf.store).items()},
    **{f"gf.train.{name}": value for name, value in public(gf.train).items()},
    **{f"gf.testing.{name}": value for name, value in public(gf.testing).items()},
    **{f"gf.testing.rounding.{name}": value for name, value in public(gf.testing.rounding).items()},
    **{f"gf.testing.strategies.{name}": value for name, value in public(gf.testing.strategies).items()},
    **{f"gf.plot.{name}": value for name, value in public(gf.plot).items()},
    **{f"gf.models.{name}": value for name, value in public(gf.models).items()},
    **{f"gf.diagnose.{name}": value for name, value in public(gf.diagnose).items()},
}
# Made by other functions, which have the example; internal helpers of the losses.
MADE = {"gf.quantities.NoiseScale", "gf.losses.Whole", "gf.models.Pure", "gf.losses.class_weights"}
MADE |= {
    f"gf.quantities.{name}"
    for name in ("Eigenpair", "GramBlock", "Duplicates", "GradientSpectrum", "KroneckerFactors", "TraceEstimate")
}
MADE |= {"gf.quantities.BatchEfficiency", "gf.quantities.CriticalBatch"}
MADE |= {"gf.init.InitReport", "gf.init.InitRow", "gf.init.Place", "gf.init.VarianceFactor", "gf.init.VariancePath"}
MADE |= {"gf.init.LsuvReport", "gf.init.LsuvRow"}
MADE |= {"gf.testing.CheckReport", "gf.testing.CheckRow", "gf.bench.BenchReport", "gf.bench.BenchRow", "gf.bench.Case"}
MADE |= {f"gf.testing.strategies.{name}" for name in ("Model", "Loss", "Batch", "Case", "Problem", "SyntheticGrads")}
MADE |= {f"gf.testing.strategies.{name}" for name in ("heavy", "deviation")}
MADE |= {f"gf.store.{name}" for name in ("Manifest", "Shard", "Damage", "StoreReport", "TopK")}
MADE |= {f"gf.projections.{name}" for name in ("Gaussian", "Rademacher", "CountSketch", "TwoSided", "PerParameter")}
MADE |= {"gf.diagnose.NonfiniteReport", "gf.diagnose.MovedLayer", "gf.diagnose.MovedReport", "gf.diagnose.Unmoved"}
MADE |= {"gf.diagnose.Distribution", "gf.diagnose.FlowReport", "gf.diagnose.FlowRow", "gf.diagnose.GridReport"}
MADE |= {"gf.diagnose.GridRow"}
MADE |= {"gf.diagnose.DoctorReport"}
MADE |= {"gf.train.Fit", "gf.train.Stopped", "gf.train.Nonfinite", "gf.train.Checkpoint"}
MADE |= {"gf.models.Recurrent", "gf.diagnose.Growth", "gf.diagnose.LinearRecurrence", "gf.diagnose.RecurrenceReport"}
MADE |= {"gf.diagnose.MemoryCapacity", "gf.diagnose.Remedy", "gf.diagnose.RemedyReport"}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_with_an_example(name):
    value = NAMES[name]
    assert inspect.getdoc(value)
    if name in MADE:
        return
    own = [inspect.getdoc(value) or ""]
    if inspect.isclass(value):
        own += [inspect.getdoc(member) or "" for key, member in vars(value).items() if not key.startswith("_")]
    assert any(">>>" in text for text in own), f"{name} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_documented(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    globs = {**vars(module), "torch": torch, "F": F}
    result = doctest.testmod(module, extraglobs=globs, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_the_package_has_examples_at_all():
    # testmod of a module without any would pass in silence.
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {name: sum(bool(t.examples) for t in finder.find(importlib.import_module(name))) for name in MODULES}

    def examples(package):
        return sum(count for name, count in found.items() if name == package or name.startswith(f"{package}."))

    assert examples("gradfunc.losses") >= 4
    assert examples("gradfunc._per_sample") >= 1
    assert examples("gradfunc._weights") >= 2
    assert examples("gradfunc.audit") >= 1
    assert examples("gradfunc.testing") >= 2
