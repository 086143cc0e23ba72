"""The tests on the simulated accelerator, in the process of their own that they need (conftest.py says why)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif("MIXTRANSFER_SIMULATE" in os.environ, reason="this is the process that it starts")
@pytest.mark.parametrize("name", ["test_accelerator.py", "test_warm_steps.py"])
def test_on_the_simulated_accelerator(name):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:warnings", str(HERE / name)]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env={**env, "MIXTRANSFER_SIMULATE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
