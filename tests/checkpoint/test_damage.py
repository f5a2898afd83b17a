"""No damaged checkpoint is ever restored: it is named, and the one before is taken."""

import numpy as np
import pytest

from jaxlm.checkpoint import inspect
from jaxlm.core.errors import CheckpointError

LARGE = 20_000  # width at which an array's file is too large to be hashed at each restore


def every_file(kit, step):
    folder = kit.folder / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def test_a_flipped_bit_in_any_file_is_found(kit):
    saved = kit.fill(1, 2)
    rng = np.random.default_rng(0)
    found = every_file(kit, 2)
    assert len(found) > 15
    for path in found:
        whole = path.read_bytes()
        flip(path, rng)
        step, state, _ = kit.restore()
        assert step == 1 and kit.same(state, saved[1]), path
        assert path.name in kit.lines[-1] and "falling back to step 1" in kit.lines[-1]
        path.write_bytes(whole)
    assert kit.restore()[0] == 2


@pytest.mark.parametrize("how", ["truncate", "empty", "delete", "zeros"])
def test_whatever_happens_to_a_file(kit, how):
    kit.fill(1, 2)
    for path in every_file(kit, 2):
        whole = path.read_bytes()
        change = {"truncate": whole[:-1], "empty": b"", "zeros": bytes(len(whole))}
        path.unlink() if how == "delete" else path.write_bytes(change[how])
        assert kit.restore()[0] == 1, path
        path.write_bytes(whole)


def test_large_files_are_found_by_the_digest_of_their_tensor(kit):
    saved = kit.fill(1, 2, width=LARGE)
    rng = np.random.default_rng(1)
    large = [path for path in every_file(kit, 2) if path.stat().st_size > 1 << 20]
    assert large
    for path in large:
        whole = path.read_bytes()
        flip(path, rng)
        step, state, _ = kit.restore(width=LARGE)
        assert step == 1 and kit.same(state, saved[1])
        assert f"file {path.relative_to(kit.folder / '2')} is damaged" in kit.lines[-1]
        assert "tensor " in kit.lines[-1]
        assert len(kit.lines[-1].splitlines()) == 1
        path.write_bytes(whole)


def test_falls_back_as_far_as_needed_and_then_refuses(kit):
    saved = kit.fill(1, 2, 3)
    target = kit.like(saved[1], {"fsdp": 8})
    for step in (3, 2):
        (kit.folder / str(step) / "meta" / "meta.json").write_text("{}")
    assert kit.restore()[0] == 1 and len(kit.lines) == 2
    with pytest.raises(CheckpointError, match=r"meta/meta.json"):
        kit.open().restore(*target, step=3)
    (kit.folder / "1" / "MANIFEST.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no good checkpoint is left"):
        kit.restore()


def test_damaged_ones_are_replaced_by_the_run_that_falls_back(kit):
    saved = kit.fill(1, 2)
    (kit.folder / "2" / "params" / "_METADATA").write_text("")
    checkpoints = kit.open(keep=1)
    assert kit.restore(checkpoints)[0] == 1
    checkpoints.save(2, *saved[2], {"position": 16})  # same values as the damaged one's manifest
    checkpoints.wait()
    assert inspect.steps(kit.folder) == [2] and not inspect.verify(kit.folder).problems


def test_a_newer_format_is_not_damage(kit, monkeypatch):
    kit.fill(1)
    monkeypatch.setattr("jaxlm.checkpoint.manifest.FORMAT", 2)
    with pytest.raises(CheckpointError, match="format 1, this jaxlm reads 2"):
        kit.restore()
    assert kit.lines == []


def test_verify_names_file_and_tensor_without_a_device(kit):
    kit.fill(1)
    assert inspect.verify(kit.folder).problems == ()
    for path in every_file(kit, 1):
        whole = path.read_bytes()
        flip(path, np.random.default_rng(2))
        if path.name == "MANIFEST.json":
            with pytest.raises(CheckpointError, match="MANIFEST"):
                inspect.verify(kit.folder)
        else:
            problems = inspect.verify(kit.folder, 1).problems
            assert path.name in problems[0]
        path.write_bytes(whole)
