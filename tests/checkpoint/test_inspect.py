"""What a person sees of a folder of checkpoints, without jax."""

import os
import subprocess
import sys

import pytest

from jaxlm.checkpoint import inspect
from jaxlm.core.errors import CheckpointError


def test_listing_and_digest_need_no_jax(kit):
    checkpoints = kit.open(keep=5)
    for step in (5, 12):
        checkpoints.save(step, *kit.make(step, {"fsdp": 8}), {"position": 1}, score=step / 8)
    checkpoints.wait()
    (kit.folder / "5" / "MANIFEST.json").write_bytes(b"no")
    code = (
        "import sys; from jaxlm.checkpoint import inspect;"
        f"print(inspect.table({str(kit.folder)!r})); print(*inspect.digest({str(kit.folder)!r}));"
        "assert 'jax' not in sys.modules"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.splitlines()
    head, damaged, whole, digest = (line.split() for line in out)
    assert head == ["step", "date", "size", "score", "digest"]
    assert damaged == ["5", "damaged"]
    assert whole[0] == "12" and whole[-2] == "1.5000" and digest[1].startswith(whole[-1])
    assert digest == ["12", inspect.digest(kit.folder)[1]]


def test_an_empty_folder(tmp_path):
    assert inspect.steps(tmp_path / "none") == []
    with pytest.raises(CheckpointError, match="no committed checkpoint"):
        inspect.digest(tmp_path)


def test_the_manifest_tells_shapes_and_dtypes(kit):
    kit.fill(3)
    recorded = inspect.manifest(kit.folder)
    kernel = recorded.items["params"]["blocks/kernel"]
    assert (kernel.shape, kernel.dtype) == ((3, 16, 8), "bfloat16")
    assert recorded.step == 3 and "0/mu/embedding" in recorded.items["opt"]


def test_a_step_that_is_not_there_names_those_that_are(kit):
    kit.fill(3)
    with pytest.raises(CheckpointError, match="holds no step 7; use one of 3$"):
        inspect.manifest(kit.folder, 7)
