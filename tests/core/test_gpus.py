"""Each process computes on GPUs of its own, one of them or all of a host's, whoever started it."""

import pytest

from jaxlm.core import gpus
from jaxlm.core.errors import ClusterError

A, B, C, D = "GPU-a", "GPU-b", "GPU-c", "GPU-d"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A host with four GPUs, as its driver's tool lists them."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo {gpu}\n" for gpu in (A, B, C, D)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "chosen, seen",
    [
        (None, (A, B, C, D)),
        ("", ()),
        ("2", (C,)),
        ("3, 1", (D, B)),
        ("GPU-b,GPU-d", (B, D)),
        ("0,-1,2", (A,)),
        ("1,7", (B,)),
        ("MIG-x", ("MIG-x",)),
    ],
)
def test_a_process_sees_what_cuda_would_show_it(driver, chosen, seen):
    if chosen is not None:
        driver.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpus.visible() == seen


def test_without_a_driver_there_are_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.visible() == ()


@pytest.mark.parametrize(
    "seen, own",
    [
        ([(A, B), (C, D)], [None, None]),  # one process on each of two hosts
        ([(A,), (B,)], [None, None]),  # GPUs bound to their tasks
        ([(A, B), (A, B)], [(0,), (1,)]),  # one for each GPU, none bound
        ([(A, B, C, D)] * 2, [(0, 1), (2, 3)]),
        ([(A, B), (C, D), (A, B), (C, D)], [(0,), (0,), (1,), (1,)]),
        ([(), ()], [None, None]),
        ([(A, B, C, D)], [None]),
    ],
)
def test_processes_that_see_the_same_gpus_share_them(seen, own):
    assert gpus.share(seen) == own


@pytest.mark.parametrize(
    "seen, message",
    [
        ([(A, B, C)] * 2, "processes 0, 1: share 3 GPUs of a host, which do not split over 2"),
        ([(A,)] * 2, "processes 0, 1: share 1 GPU"),
        ([(A, B), (B, C)], "process 0: sees GPUs of process 1 among its own 2"),
    ],
)
def test_what_does_not_split_is_refused(seen, message):
    with pytest.raises(ClusterError, match=f"^{message}"):
        gpus.share(seen)
