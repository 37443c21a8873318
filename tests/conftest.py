"""Threads, devices and seeds of the suite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

# A parallel region of torch costs milliseconds as soon as another process is busy.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda", "all"], default="cpu", help="devices to test on")
    parser.addoption("--record", metavar="FILE", help="write what the properties have shown to this JSON file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--device")
        names = ["cpu", "cuda"] if asked == "all" else [asked]
        cuda = [pytest.mark.cuda]
        if not torch.cuda.is_available():
            cuda.append(pytest.mark.skip(reason="no CUDA device on this machine"))
        metafunc.parametrize("device", [pytest.param(name, marks=cuda if name == "cuda" else []) for name in names])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
