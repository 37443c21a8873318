"""Every public name says what it is, with an example; every example of the package runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from _site.names import names
from _site.signatures import made_by
from torch.nn import functional as F

import gradfunc as gf

MODULES = ["gradfunc", *(info.name for info in pkgutil.walk_packages(gf.__path__, "gradfunc."))]


NAMES = {name.short: name.value for name in names().values() if name.kind != "data"}


def has_example(value):
    own = [inspect.getdoc(value) or ""]
    if inspect.isclass(value):
        own += [inspect.getdoc(member) or "" for key, member in vars(value).items() if not key.startswith("_")]
    return any(">>>" in text for text in own)


# What a function with an example makes needs none of its own.
MADE = made_by(value for value in NAMES.values() if has_example(value))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_with_an_example(name):
    value = NAMES[name]
    assert inspect.getdoc(value)
    assert has_example(value) or value in MADE, f"{name} has no example"


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
