"""A checkpoint is whole or absent, and comes back bit for bit on any mesh."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from jaxlm.checkpoint import arrays, files, inspect
from jaxlm.core.errors import CheckpointError


def entries(kit):
    return sorted(path.name for path in kit.folder.iterdir())


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "tensor": 4}, {"fsdp": 2}, {"data": 1}])
def test_restores_bit_for_bit_on_another_mesh(kit, sizes):
    saved = kit.fill(1, 2)
    target = kit.like(saved[2], sizes)
    step, params, opt, meta = kit.open().restore(target.params, target.opt)
    assert (step, meta) == (2, {"position": 16})
    assert kit.same((params, opt), tuple(saved[2]))
    places = jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, params, target.params)
    assert jax.tree.all(places)


def test_parameters_alone_and_an_older_step(kit):
    saved = kit.fill(1, 2)
    target = kit.like(saved[1], {"fsdp": 8})
    step, params, opt, _ = kit.open().restore(target.params, step=1)
    assert step == 1 and opt is None and kit.same(params, saved[1].params)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; its steps: \[1, 2\]"):
        kit.open().restore(target.params, step=7)


def test_bit_equal_states_have_one_digest_on_any_mesh(kit):
    found = set()
    for step, sizes in enumerate(({"data": 8}, {"fsdp": 4, "tensor": 2}, {"data": 1})):
        checkpoints = kit.open(keep=9)
        if step:
            kit.restore(checkpoints)
        checkpoints.save(step, *kit.make(3, sizes), {"position": 5, "step": step})
        checkpoints.wait()
        found.add(inspect.digest(kit.folder)[1])
    assert len(found) == 1
    checkpoints.save(3, *kit.make(3, {"data": 8}), {"position": 6})
    checkpoints.wait()
    assert inspect.digest(kit.folder)[1] not in found


def test_names_the_tensor_that_does_not_fit(kit):
    saved = kit.fill(1)
    target = kit.like(saved[1], {"fsdp": 8})
    changed = {
        "embedding": jax.ShapeDtypeStruct((32, 16), jnp.bfloat16),
        "blocks": target.params["blocks"] | {"scale": jax.ShapeDtypeStruct((2,), jnp.float32)},
    }
    with pytest.raises(CheckpointError, match=r"scale is float32\[\].*embedding is.*bfloat16"):
        kit.open().restore(changed)
    missing = {"embedding": target.params["embedding"], "head": target.params["embedding"]}
    with pytest.raises(CheckpointError, match=r"kernel is in it and not.*and 2 more"):
        kit.open().restore(missing)
    assert kit.lines == []


def test_saving_does_not_wait_for_the_disk_nor_for_later_donations(kit, monkeypatch):
    finalize, go = arrays.finalize, threading.Event()
    monkeypatch.setattr(arrays, "finalize", lambda folder: go.wait() and finalize(folder))
    checkpoints, state = kit.open(), kit.make(1, {"fsdp": 8})
    expected = jax.tree.map(jnp.copy, state)
    assert checkpoints.save(1, *state, {"position": 0})
    assert checkpoints.latest() is None
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    go.set()
    checkpoints.wait()
    assert checkpoints.latest() == 1
    assert kit.same(kit.restore()[1], expected)


def test_a_state_with_nan_is_never_saved(kit):
    state = kit.fill(1)[1]
    checkpoints = kit.open()
    kit.restore(checkpoints)
    bad = state.params | {"embedding": state.params["embedding"].at[3, 4].set(jnp.nan)}
    assert not checkpoints.save(2, bad, state.opt, {})
    moments = jax.tree.map(lambda x: x / 0 if x.dtype == jnp.float32 else x, state.opt)
    assert not checkpoints.save(3, state.params, moments, {})
    assert checkpoints.latest() == 1
    assert "NaN or infinity in params/embedding" in kit.lines[0]


def test_the_same_step_again(kit):
    state = kit.fill(4)[4]
    checkpoints = kit.open()
    kit.restore(checkpoints)
    before = (kit.folder / "4" / "MANIFEST.json").stat().st_mtime_ns
    assert checkpoints.save(4, *state, {"position": 32})
    checkpoints.wait()
    assert (kit.folder / "4" / "MANIFEST.json").stat().st_mtime_ns == before
    assert checkpoints.save(4, *kit.make(9, {"fsdp": 8}), {"position": 32})
    checkpoints.wait()
    assert entries(kit) == ["4"] and kit.same(kit.restore()[1], kit.make(9, {"fsdp": 8}))
    with pytest.raises(ValueError, match="older than 4"):
        checkpoints.save(3, *state, {})


@pytest.mark.parametrize("local", [True, False])
def test_steps_after_a_rollback_go_with_the_next_commit(kit, monkeypatch, local):
    """Also as on an object store: no rename, the manifest written last is the commit."""
    saved = kit.fill(1, 2, 3)
    monkeypatch.setattr(files, "is_local", lambda path: local)
    checkpoints = kit.open(keep=5)
    target = kit.like(saved[1], {"fsdp": 8})
    checkpoints.restore(*target, step=1)
    assert entries(kit) == ["1", "2", "3"]  # reading removes nothing
    assert checkpoints.save(2, *kit.make(7, {"fsdp": 8}), {})
    checkpoints.wait()
    assert entries(kit) == ["1", "2"]
    assert kit.same(kit.restore()[1], kit.make(7, {"fsdp": 8}))


def test_a_folder_that_was_not_restored_is_not_overwritten(kit):
    state = kit.fill(1)[1]
    with pytest.raises(CheckpointError, match="holds step 1, which this run did not restore"):
        kit.open().save(2, *state, {})


def test_leftovers_of_a_killed_run_go_at_the_first_save(kit):
    state = kit.fill(1)[1]
    (kit.folder / ".tmp-2-0123" / "params").mkdir(parents=True)
    (kit.folder / "2" / "params").mkdir(parents=True)  # half removed: without a manifest
    (kit.folder / "notes").mkdir()
    assert kit.open().latest() == 1
    checkpoints = kit.open(keep=3)
    kit.restore(checkpoints)
    checkpoints.save(3, *state, {})
    checkpoints.wait()
    assert entries(kit) == ["1", "3", "notes"]


def test_a_program_that_ends_without_waiting_is_not_silent(tmp_path):
    code = (
        "import sys, jax.numpy as jnp; from jaxlm.checkpoint.commit import Checkpoints;"
        "Checkpoints(sys.argv[1]).save(1, {'x': jnp.ones((512, 512))}, (), {})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=os.environ
    )
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["1"] or (names == [] and "step 1 is not saved" in done.stderr)


def test_a_relative_folder(kit, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    kit.folder = "runs/checkpoints"
    saved = kit.fill(1)
    assert kit.same(kit.restore()[1], saved[1])


def test_no_optimizer_state_and_nothing_to_restore(kit):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        kit.restore()
    checkpoints, params = kit.open(), kit.make(2, {"fsdp": 8}).params
    checkpoints.save(0, params, (), {})
    checkpoints.wait()
    target = kit.like(kit.make(2, {"fsdp": 8}), {"fsdp": 8})
    assert kit.same(kit.open().restore(target.params, ())[1:3], (params, ()))
