"""A pytest plugin, for those who ask for it: `pytest -p gradfunc.testing.plugin`, or `pytest_plugins` in a conftest.

It adds the option `--gradfunc-device cpu|cuda|all` and the fixture `gradfunc_device`, a `torch.device`: a test that
takes it runs once for each device asked for, and is skipped, with the reason, where there is none. Nothing is done to
other tests: no fixture is applied by itself, no marker is needed, and a `--device` or `device` of your own stays yours.

Example:
    >>> def test_mine(gradfunc_device):
    ...     x = torch.ones(3, device=gradfunc_device)
    ...     assert x.sum() == 3
"""

from __future__ import annotations

import pytest
import torch

DEVICES = ("cpu", "cuda")
OPTION, FIXTURE = "--gradfunc-device", "gradfunc_device"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    choices = [*DEVICES, "all"]
    text = "devices on which tests with the fixture gradfunc_device run (default: cpu)"
    parser.getgroup("gradfunc").addoption(OPTION, choices=choices, default="cpu", help=text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a device; skipped where it is not there."""
    if FIXTURE not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption(OPTION)
    params = []
    for name in DEVICES if asked == "all" else (asked,):
        there = name == "cpu" or torch.cuda.is_available()
        marks = [] if there else [pytest.mark.skip(reason=f"{OPTION} {asked}: no CUDA device on this machine")]
        params.append(pytest.param(name, marks=marks))
    metafunc.parametrize(FIXTURE, params, indirect=True, scope="session")


@pytest.fixture(scope="session")
def gradfunc_device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of `--gradfunc-device`."""
    return torch.device(request.param)
