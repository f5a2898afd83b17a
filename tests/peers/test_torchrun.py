"""torchrun starts a job of two processes, which find each other by its variables."""

import socket

import processes
import pytest

from jaxlm.core import errors

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def test_torchrun_starts_a_job(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}")
    program = (*launcher, "--master-addr=127.0.0.1", "-m", "jaxlm")
    code, _, err = processes.run(*processes.words(tmp_path, "steps=3"), program=program)
    assert code == errors.DONE, err
    assert "2 processes (torchrun)" in (tmp_path / "run" / "log.txt").read_text()
    assert len(processes.losses(tmp_path)) == 3
