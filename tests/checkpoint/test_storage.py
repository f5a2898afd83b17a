"""A disk that is full or closed to us is an error with a cause, and never a torn checkpoint."""

import os
import resource
import subprocess
from contextlib import contextmanager

import jax
import pytest

from jaxlm.checkpoint import files
from jaxlm.core.errors import StorageError

WIDTH = 8192  # 1 MB of embedding, twice more in the optimizer


@contextmanager
def no_file_above(nbytes):
    """The kernel refuses to let this process's files grow: what a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(kit):
    return sorted(path.name for path in kit.folder.iterdir())


def test_a_failed_save_is_raised_once_and_leaves_nothing(kit, capfd):
    first = kit.fill(1, width=WIDTH)[1]
    checkpoints, state = kit.open(), kit.make(2, {"fsdp": 8}, WIDTH)
    kit.restore(checkpoints, WIDTH)
    with no_file_above(1 << 18):
        assert checkpoints.save(2, *state, {})
        with pytest.raises(StorageError, match="step 2 is not saved: File too large") as caught:
            checkpoints.save(3, *state, {})
    assert "\n" not in str(caught.value) and "Traceback" not in capfd.readouterr().err
    assert names(kit) == ["1"] and checkpoints.latest() == 1
    checkpoints.wait()  # it was told; now the step can be saved after all
    assert checkpoints.save(3, *state, {})
    checkpoints.wait()
    assert names(kit) == ["1", "3"]
    assert kit.same(kit.restore(width=WIDTH)[1], state)
    assert not kit.same(first, state)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 10 MB, where this user may mount one."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk(kit, small_disk):
    """4.2 MB fit, and a second save does not until another file goes."""
    kit.folder = small_disk / "checkpoints"
    checkpoints, state = kit.open(keep=9), kit.make(1, {"fsdp": 8}, WIDTH)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    checkpoints.check_space(nbytes)
    with pytest.raises(StorageError, match=r"has .* MB free and needs .* MB; free some"):
        checkpoints.check_space(2 * nbytes)
    (small_disk / "other").write_bytes(bytes(6 << 20))
    with pytest.raises(StorageError, match="free and needs"):
        checkpoints.save(1, *state, {})
    assert names(kit) == []
    (small_disk / "other").unlink()
    assert checkpoints.save(1, *state, {})
    checkpoints.wait()
    assert names(kit) == ["1"]


@pytest.mark.parametrize("left", [0, 1 << 16, 1 << 20, 3 << 20, 4 << 20])
def test_a_disk_that_fills_up_while_saving(kit, small_disk, monkeypatch, left):
    """Whatever the point at which the last block goes, nothing torn is left, and no room lost."""
    monkeypatch.setattr(files, "free", lambda folder: None)  # as if another filled it since
    kit.folder = small_disk / "checkpoints"
    checkpoints, state = kit.open(), kit.make(1, {"fsdp": 8}, WIDTH)
    checkpoints.check_space(0)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    (small_disk / "other").write_bytes(bytes(free - left))
    with pytest.raises(StorageError, match="No space left"):
        checkpoints.save(1, *state, {})
        checkpoints.wait()
    assert names(kit) == []
    (small_disk / "other").unlink()
    assert checkpoints.save(1, *state, {})
    checkpoints.wait()
    assert kit.same(kit.restore(width=WIDTH)[1], state)


def test_more_than_any_disk_and_a_folder_that_is_a_file(kit):
    with pytest.raises(StorageError, match="needs 2000000 TB"):
        kit.open().check_space(10**18)
    kit.folder.rmdir()
    kit.folder.write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        kit.open().check_space(1)
