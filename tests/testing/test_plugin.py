"""The pytest plugin in a process of its own: its option and fixture, beside a conftest with a `--device` of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONFTEST = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--device", default="mine")

@pytest.fixture
def device(request):
    return request.config.getoption("--device")
"""
TESTS = """
import random, torch

def test_mine(device, request):
    assert device == "other"
    assert not [name for name in request.fixturenames if name.startswith("gradfunc")]

def test_of_devices(gradfunc_device, device):
    assert isinstance(gradfunc_device, torch.device)
    assert torch.ones(2, device=gradfunc_device).sum() == 2

class TestClass:
    def test_method(self, gradfunc_device):
        assert gradfunc_device.type in ("cpu", "cuda")
"""
GPU = torch.cuda.is_available()


def run(folder: Path, *options: str) -> str:
    folder.joinpath("conftest.py").write_text(CONFTEST)
    folder.joinpath("test_theirs.py").write_text(TESTS)
    plugins = ["-p", "gradfunc.testing.plugin", "-p", "no:cacheprovider", "--strict-markers", "-W", "error"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        f"--rootdir={folder}",
        "-c",
        "/dev/null",
        *plugins,
        "-rs",
        "-v",
        *options,
    ]
    done = subprocess.run([*command, str(folder)], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_beside_a_device_of_ones_own(tmp_path):
    out = run(tmp_path, "--device", "other", "--gradfunc-device", "all")
    assert f"{5 if GPU else 3} passed" in out, out
    assert "test_of_devices[cpu] PASSED" in out
    assert "test_of_devices[cuda]" in out
    if not GPU:
        assert "2 skipped" in out
        assert "--gradfunc-device all: no CUDA device on this machine" in out


@pytest.mark.slow
def test_one_device(tmp_path):
    assert "3 passed" in run(tmp_path, "--device", "other")
    out = run(tmp_path, "--device", "other", "--gradfunc-device", "cuda")
    assert "test_of_devices[cpu]" not in out
    assert ("3 passed" if GPU else "1 passed, 2 skipped") in out, out


@pytest.mark.slow
def test_a_device_that_is_none(tmp_path):
    out = run(tmp_path, "--gradfunc-device", "tpu")
    assert "argument --gradfunc-device: invalid choice: 'tpu' (choose from" in out


@pytest.mark.slow
def test_what_the_plugin_shows(tmp_path):
    assert "--gradfunc-device" in run(tmp_path, "--help")
    fixtures = run(tmp_path, "--fixtures")
    assert "gradfunc_device [session scope]" in fixtures
    assert "Each device of `--gradfunc-device`." in fixtures


def test_nothing_is_loaded_unasked():
    """No entry point: pytest of others does not know of it."""
    from importlib.metadata import entry_points

    assert not [point for point in entry_points(group="pytest11") if point.value.startswith("gradfunc")]
