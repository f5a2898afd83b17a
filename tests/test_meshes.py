"""One run on other devices, other meshes and other numbers of processes."""

import json
import signal
import time
from functools import cache
from pathlib import Path

import networks
import numpy as np
import optax
import processes
import pytest

from jaxlm.checkpoint import inspect
from jaxlm.core import errors
from jaxlm.core.mesh import AXES

WORDS = ("steps=6", "checkpoint.every=3", "checkpoint.keep=5")
STEPS, LENGTH = 20, 8
SMALL = {"layers": 1, "heads": 8, "kv_heads": 4, "mlp": 32}
DENSE = networks.spec(**SMALL)
SPARSE = networks.spec(
    **SMALL, experts={"count": 8}, balance_loss=0.01, router_z_loss=1e-3, tied=False
)
ALONE = [{axis: 8} for axis in AXES]
MIXED = [
    {"data": 2, "fsdp": 4},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "expert": 4},
    {"expert": 2, "tensor": 4},
    {"data": 2, "expert": 2, "tensor": 2},
]


@cache
def trained(spec, **mesh):
    """What every step of a short training tells: a row of means for each."""
    at, rows = networks.layout(**mesh), []
    state, step = networks.trainer(spec, optax.adamw(1e-3), at=at)
    batch = networks.placed(networks.batch(length=LENGTH), at)
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        rows.append({k: float(x / metrics["weight"]) for k, x in metrics.items() if k in TOLD})
    return rows


TOLD = ("loss", "balance_loss", "router_z_loss", "expert_load")


@pytest.mark.parametrize(
    ("spec", "mesh"),
    [
        *((SPARSE, mesh) for mesh in ALONE + MIXED),
        *((DENSE, mesh) for mesh in (*ALONE, MIXED[2]) if "expert" not in mesh),
    ],
    ids=lambda it: str(it) if isinstance(it, dict) else "sparse" if it.experts.count else "dense",
)
def test_a_mesh_gives_the_losses_of_one_device(spec, mesh):
    rows, alone = trained(spec, **mesh), trained(spec)
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.1
    for name in alone[0]:
        ours, theirs = ([row[name] for row in each] for each in (rows, alone))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run on one device."""
    folder = tmp_path_factory.mktemp("meshes")
    code, _, err = processes.run(*processes.words(folder, *WORDS, name="single"))
    assert code == errors.DONE, err
    return folder


TINIEST = (
    *("steps=20", "checkpoint.every=0", "evaluate.every=0", "length=16"),
    *("model.layers=1", "model.embed=16", "model.dropout=0"),
)
HYBRID = ("mesh.slices=2", "mesh.data=2")
SEEN = (str(Path(__file__).parent / "training" / "seen.py"),)
"""Writes down the rows that each process reads."""


def of_processes(folder, count):
    """(losses, digests of all rows, what is said) of a run on 8 devices of so many processes."""
    seen, name = folder / f"seen{count}", f"by{count}"
    words = processes.words(folder, *TINIEST, *(HYBRID if count == 2 else ()), name=name)
    ended = processes.cluster(count, str(seen), *words, devices=8 // count, program=SEEN)
    assert [code for code, _, _ in ended] == [errors.DONE] * count, ended
    rows: dict[tuple[int, int], str] = {}
    for line in (line for file in seen.iterdir() for line in file.read_text().splitlines()):
        read = json.loads(line)
        for row, digest in enumerate(read["rows"], read["first"]):
            assert rows.setdefault((read["step"], row), digest) == digest
    return processes.losses(folder, name), rows, ended[0][1]


@pytest.mark.once
def test_losses_and_bytes_are_those_of_any_number_of_processes(tmp_path):
    """8 devices of 1, 2, 4 and 8 processes; two lie as on two slices."""
    losses, rows, _ = of_processes(tmp_path, 1)
    assert sorted(rows) == [(step, row) for step in range(STEPS) for row in range(8)]
    assert len(losses) == STEPS and len(set(rows.values())) > 100
    for count in (2, 4, 8):
        other, others, out = of_processes(tmp_path, count)
        np.testing.assert_allclose(other, losses, rtol=0, atol=1e-5)
        assert others == rows
        told = "mesh data=2 (2 across slices) x fsdp=4" if count == 2 else "mesh fsdp=8"
        assert told in out


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
