"""Two processes save together, fail together, and read what one process wrote; and the reverse."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.checkpoint import inspect


@pytest.fixture
def pair(kit):
    """What both processes found, in a folder where step 1 is."""
    kit.fill(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = [sys.executable, str(Path(__file__).with_name("pair.py")), str(kit.folder)]
    started = []
    for index in range(2):
        job = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=4"),
        }
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(script, env=os.environ | job, **pipes))
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    found = [(kit.folder.parent / f"found-{index}").read_text() for index in range(2)]
    return [dict(line.split(" ", 1) for line in text.splitlines()) for text in found]


def test_two_processes_and_one(kit, pair):
    for index, found in enumerate(pair):
        assert found["restored"] == "1 True"
        assert found["failed"].startswith("7 ") and "step 3 is not saved" in found["failed"]
        assert ("(on process 1)" in found["failed"]) == (index == 0)
        assert found["left"] == "['1', '2']"
        assert found["fallback"] == "2 True"
        assert "params/_METADATA" in found["warned"]
    assert pair[0]["saved"] == pair[1]["saved"]

    checkpoints = kit.open()
    step, state, meta = kit.restore(checkpoints)
    expected = kit.make(2, {"data": 1})
    assert (step, meta) == (2, {"position": 16}) and kit.same(state, expected)
    assert not inspect.verify(kit.folder, 2).problems
    assert (kit.folder / "2" / "params" / "ocdbt.process_1").is_dir()
    assert pair[0]["saved"] == f"2 {inspect.manifest(kit.folder, 2).digest}"
    alone = type(kit)(kit.folder.parent / "alone")
    alone.fill(2)
    assert inspect.digest(alone.folder)[1] == inspect.manifest(kit.folder, 2).digest
