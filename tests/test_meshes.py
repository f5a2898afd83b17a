"""One run on other devices, other meshes and other numbers of processes."""

import signal
import time

import numpy as np
import processes
import pytest

from jaxlm.checkpoint import inspect
from jaxlm.core import errors

WORDS = ("steps=6", "checkpoint.every=3", "checkpoint.keep=5")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run on one device."""
    folder = tmp_path_factory.mktemp("meshes")
    code, _, err = processes.run(*processes.words(folder, *WORDS, name="single"))
    assert code == errors.DONE, err
    return folder


@pytest.mark.parametrize(
    "mesh",
    [(), ("mesh.data=8", "mesh.fsdp=1"), ("mesh.tensor=2", "mesh.data=2"), ("mesh.tensor=4",)],
)
def test_eight_devices_give_the_losses_of_one(single, mesh):
    name = "x".join(("eight", *mesh)).replace("mesh.", "")
    words = processes.words(single, *WORDS, *mesh, name=name)
    code, _, err = processes.run(*words, devices=8)
    assert code == errors.DONE, err
    np.testing.assert_allclose(
        processes.losses(single, name), processes.losses(single, "single"), rtol=0, atol=1e-5
    )


def test_two_processes_give_the_losses_of_one_and_continue_as_one(single):
    words = processes.words(single, *WORDS, name="two")
    for code, _, err in processes.cluster(2, *words, devices=2):
        assert code == errors.DONE, err
    np.testing.assert_allclose(
        processes.losses(single, "two"), processes.losses(single, "single"), rtol=0, atol=1e-5
    )
    # On another mesh and another number of processes it goes on from the same step.
    more = processes.words(single, *WORDS, "steps=8", name="two")
    code, _, err = processes.run(*more, devices=4)
    assert code == errors.DONE, err
    assert inspect.digest(single / "two" / "checkpoints")[0] == 8
    assert len(processes.losses(single, "two")) == 8


def test_a_failure_on_one_of_two_processes_ends_both_with_its_code(tmp_path):
    words = processes.words(tmp_path, *WORDS, "batch=7")
    ended = processes.cluster(2, *words, devices=2)
    assert [code for code, _, _ in ended] == [errors.CONFIG] * 2
    assert all("use 4 or 8" in err for _, _, err in ended)


def test_a_signal_to_one_of_two_processes_saves_on_both(tmp_path):
    words = processes.words(tmp_path, "steps=100000", "checkpoint.every=0", name="two")

    def signalled(started):
        while len(processes.losses(tmp_path, "two")) < 2 and started[1].poll() is None:
            time.sleep(0.05)
        started[1].send_signal(signal.SIGTERM)

    ended = processes.cluster(2, *words, devices=2, meanwhile=signalled)
    assert [code for code, _, _ in ended] == [errors.STOPPED] * 2, ended
    assert inspect.digest(tmp_path / "two" / "checkpoints")[0] > 1


def test_processes_that_would_train_on_other_things_do_not_start(tmp_path):
    words = processes.words(tmp_path, *WORDS, name="differ")
    ended = processes.cluster(2, *words, devices=2, own=((), ("seed=1",)))
    assert [code for code, _, _ in ended] == [errors.CLUSTER] * 2
    said = [err.strip().splitlines()[-1] for *_, err in ended]
    assert all("has another seed than process 0" in line for line in said), said
