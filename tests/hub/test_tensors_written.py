"""Safetensors written: what the library writes, byte for byte, in shards, whole or not at all."""

import json
import math
import os
import resource
import subprocess
import tracemalloc
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxlm.core.errors import CheckpointError, ConfigError, StorageError
from jaxlm.hub.shards import Lazy, shard_bytes, write_tensors
from jaxlm.hub.tensors import DTYPES, open_tensors

PLAIN = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int32, np.int64, np.uint8]
SHAPES = st.dictionaries(
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.é]{0,12}", fullmatch=True),
    st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(PLAIN)),
    min_size=1,
    max_size=12,
)


def random(shapes, seed=0):
    """Arrays of random bits, by name, from {name: (shape, dtype)}."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (shape, dtype) in shapes.items():
        data = rng.bytes(math.prod(shape) * np.dtype(dtype).itemsize)
        found[name] = np.frombuffer(data, dtype).reshape(shape)
    return found


def write(folder, tensors, max_shard_bytes=10**9, **options):
    made = {name: Lazy(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}
    return write_tensors(folder, made, max_shard_bytes=max_shard_bytes, **options)


def bits(tensors):
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in tensors.items()}


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(1, 500), st.integers(0, 2**32))
def test_what_is_written_reads_back_bit_for_bit(tmp_path_factory, shapes, limit, seed):
    tensors = random(shapes, seed)
    folder = tmp_path_factory.mktemp("written")
    files = [file for file in write(folder, tensors, limit) if file.suffix == ".safetensors"]
    assert bits(open_tensors(folder)) == bits(tensors)
    theirs = {name: array for file in files for name, array in load_file(file).items()}
    assert bits(theirs) == bits(tensors)


def test_a_file_is_what_the_library_writes_byte_for_byte(tmp_path):
    tensors = random({f"{n}.{i}": ([i, 3], d) for n, d in DTYPES.items() for i in range(3)})
    (file,) = write(tmp_path, tensors)
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert file.name == "model.safetensors"
    assert file.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_shards_keep_the_order_and_the_index_names_each_tensor(tmp_path):
    sizes = {"z": 4, "huge": 40, "b": 6, "a": 4, "c": 1}
    tensors = random({name: ([size], np.uint8) for name, size in sizes.items()})
    files = write(tmp_path, tensors, 10, stem="adapter_model")
    names = [f"adapter_model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert [file.name for file in files] == [*names, "adapter_model.safetensors.index.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in files)
    index = json.loads(files[-1].read_text())
    assert index["metadata"] == {"total_size": 55}
    places = {"z": 0, "huge": 1, "b": 2, "a": 2, "c": 3}
    assert index["weight_map"] == {name: names[place] for name, place in places.items()}
    assert bits(open_tensors(tmp_path, "adapter_model")) == bits(tensors)


def test_every_header_says_the_format_that_transformers_asks_for(tmp_path):
    tensors = random({"a": ([8], np.uint8), "b": ([8], np.uint8)})
    for file in write(tmp_path, tensors, 8, metadata={"step": "7"})[:2]:
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt", "step": "7"}


def test_arrays_in_any_order_of_memory_are_written_by_rows(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(tmp_path, {"t": array.T, "s": array[:, ::2], "f": np.asfortranarray(array)})
    found = open_tensors(tmp_path)
    assert found["t"].tolist() == array.T.tolist()
    assert found["s"].tolist() == array[:, ::2].tolist()
    assert found["f"].tolist() == array.tolist()


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    shape, size = (1 << 20,), 1 << 20
    made = {
        f"w{i}": Lazy(shape, np.dtype("u1"), lambda i=i: np.full(shape, i, "u1"))
        for i in "12345678"
    }
    tracemalloc.start()
    try:
        write_tensors(tmp_path, made, max_shard_bytes=3 * size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size < peak < 1.5 * size


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(4, np.float16)])
def test_a_tensor_that_is_not_what_was_announced_leaves_nothing(tmp_path, wrong):
    made = {"w": Lazy((4,), np.dtype(np.float32), lambda: wrong)}
    with pytest.raises(ValueError, match=r"w was made as float\d\d\[\d\] and announced as float32"):
        write_tensors(tmp_path, made, max_shard_bytes=100)
    assert os.listdir(tmp_path) == []


def test_a_name_that_no_one_would_read_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="named like a path"):
        write(tmp_path, {"../w": np.zeros(3)})
    assert os.listdir(tmp_path) == []


def test_weights_that_are_there_are_kept(tmp_path):
    write(tmp_path, {"w": np.ones(3)})
    for limit in (1, 10**9):
        with pytest.raises(ConfigError, match="already holds model.safetensors; remove it or name"):
            write(tmp_path, {"w": np.zeros(3), "v": np.zeros(3)}, limit)
    write(tmp_path, {"w": np.zeros(3)}, stem="adapter_model")
    assert open_tensors(tmp_path)["w"].tolist() == [1, 1, 1]


@contextmanager
def no_file_above(nbytes):
    """The kernel refuses to let this process's files grow: what a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 100, 5_000, 30_000])
def test_a_quota_leaves_nothing_under_any_name(tmp_path, limit):
    """The second shard is the larger one: the first is whole when the write fails."""
    tensors = {"a": np.ones(2_000, np.uint8), "b": np.ones(40_000, np.uint8)}
    (tmp_path / "config.json").write_text("{}")
    with no_file_above(limit), pytest.raises(StorageError, match="File too large") as caught:
        write(tmp_path, tensors, 10_000)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["config.json"]
    write(tmp_path, tensors, 10_000)
    assert bits(open_tensors(tmp_path)) == bits(tensors)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB, where this user may mount one."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_disk_that_is_full_or_fills_up_while_writing(small_disk):
    large = {f"w{i}": np.ones(1 << 20, np.uint8) for i in range(5)}
    with pytest.raises(StorageError, match=r"has .* MB free and needs 5.24 MB; free some"):
        write(small_disk, large, 1 << 20)

    def filling():
        (small_disk / "other").write_bytes(bytes(2 << 20))
        return np.ones(1 << 20, np.uint8)

    made = {f"w{i}": Lazy((1 << 20,), np.dtype("u1"), filling) for i in range(3)}
    with pytest.raises(StorageError, match="No space left on device; free some"):
        write_tensors(small_disk, made, max_shard_bytes=1 << 20)
    assert os.listdir(small_disk) == ["other"]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/out: cannot be written: Not a directory"):
        write(tmp_path / "file" / "out", {"w": np.zeros(3)})


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("2GiB", 2**31), ("1.5 kb", 1500), ("500M", 5 * 10**8), ("7", 7)],
)
def test_sizes_as_people_write_them(text, size):
    assert shard_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "0GB", "5 parsecs", "1e9", "nan", "5G\nB", "\u0665GB"]
)
def test_a_size_that_is_none(text):
    with pytest.raises(ConfigError, match=r"^--max-shard-size: .* write one like 5GB"):
        shard_bytes(text)
