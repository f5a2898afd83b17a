"""`kill -9` at any instant of a save leaves whole checkpoints, and the run goes on from them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.checkpoint import inspect


@pytest.mark.once
def test_a_chain_of_kills(tmp_path):
    folder = tmp_path / "checkpoints"
    script = Path(__file__).with_name("saver.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "12", "5"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    restored = [int(word) for word in done.stdout.split()]
    assert len(restored) == 15 and restored[-1] > restored[1]
    steps = inspect.steps(folder)
    assert steps == [s for s in range(steps[-1] + 1) if s in steps[-2:] or (s % 5 == 0 and s)]
    assert all(not inspect.verify(folder, step).problems for step in steps)
    assert sorted(int(path.name) for path in folder.iterdir()) == steps  # and nothing else
