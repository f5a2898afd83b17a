"""A safetensors folder read as memory-mapped arrays: the same bytes, and no memory for them."""

import json
import os
import resource
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxlm.core.errors import CheckpointError
from jaxlm.hub.tensors import DTYPES, open_tensors


def arrays(seed=0):
    """One of every dtype, a scalar and an empty one, of random bits."""
    rng = np.random.default_rng(seed)
    found = {}
    for place, (name, dtype) in enumerate(DTYPES.items()):
        bits = rng.integers(0, 2 if name == "BOOL" else 256, (place % 3 + 1, 4 * dtype.itemsize))
        found[f"layer.{place}.{name}"] = bits.astype(np.uint8).view(dtype)
    return found | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float16)}


def sharded(folder, tensors, stem="model"):
    """Two shards and their index, as transformers writes them."""
    names = list(tensors)
    files = {f"{stem}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
        "weight_map": {name: file for file, held in files.items() for name in held},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def assert_same(found, tensors):
    assert sorted(found) == sorted(tensors)
    for name, array in tensors.items():
        stored = found.table[name]
        for one in (stored, found[name]):
            assert (one.dtype, one.shape, one.nbytes) == (array.dtype, array.shape, array.nbytes)
        assert found[name].tobytes() == array.tobytes(), name


def test_a_single_file_gives_the_same_bytes_in_every_dtype(tmp_path):
    save_file(arrays(), tmp_path / "model.safetensors")
    assert_same(open_tensors(tmp_path), arrays())
    assert_same(open_tensors(str(tmp_path)), arrays())


def test_shards_give_the_same_bytes(tmp_path):
    sharded(tmp_path, arrays())
    found = open_tensors(tmp_path)
    assert_same(found, arrays())
    assert len({stored.file for stored in found.table.values()}) == 2


def test_an_adapter_is_read_by_its_stem(tmp_path):
    tensors = {"base_model.model.q.lora_A.weight": np.ones((2, 3), ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert_same(open_tensors(tmp_path, "adapter_model"), tensors)
    with pytest.raises(CheckpointError, match=r"holds adapter_model.safetensors, and neither"):
        open_tensors(tmp_path)


def test_an_index_of_one_file_is_read_and_links_are_followed(tmp_path):
    """MLX writes an index always; huggingface_hub's cache is links into a folder of blobs."""
    save_file({"w": np.arange(6.0)}, tmp_path / "blob")
    (tmp_path / "model.safetensors").symlink_to("blob")
    index = {"weight_map": {"w": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(open_tensors(tmp_path), {"w": np.arange(6.0)})


def test_arrays_cannot_be_written_and_outlive_the_folder(tmp_path):
    save_file({"w": np.arange(6.0)}, tmp_path / "model.safetensors")
    array = open_tensors(tmp_path)["w"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    (tmp_path / "model.safetensors").unlink()
    assert array.sum() == 15


def test_a_file_that_is_cut_or_gone_after_it_was_opened(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"w": np.arange(6.0)}, file)
    found = open_tensors(tmp_path)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="was cut since it was opened"):
        found["w"]
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        found["w"]


def test_a_name_that_is_not_there_is_a_key_error(tmp_path):
    save_file({"w": np.arange(6.0)}, tmp_path / "model.safetensors")
    found = open_tensors(tmp_path)
    assert "v" not in found and found.get("v") is None and len(found) == 1


def test_tensors_off_their_alignment_are_read(tmp_path):
    """The library reads them too, and old files have them."""
    row = '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    row += '"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    data = np.array([1.5, -2], np.float32).tobytes()
    content = len(row).to_bytes(8, "little") + row.encode() + b"\7" + data
    (tmp_path / "model.safetensors").write_bytes(content)
    assert open_tensors(tmp_path)["b"].tolist() == [1.5, -2]
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.get_tensor("b").tolist() == [1.5, -2]


def rss(kind):
    """KiB of this process's memory of one kind."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{kind}:")[2].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells anonymous memory apart")
def test_reading_takes_no_anonymous_memory_and_leaves_no_map(tmp_path):
    rows, width = 16, 1 << 20
    for place in range(2):
        data = {f"w{place}.{i}": np.full((rows // 4, width), i, np.int8) for i in range(4)}
        save_file(data, tmp_path / f"{place}.safetensors")
    index = {"weight_map": {f"w{p}.{i}": f"{p}.safetensors" for p in range(2) for i in range(4)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = open_tensors(tmp_path)
    sum(int(array[0, :8].sum()) for array in found.values())  # numpy's own first-time memory
    before, mapped = rss("RssAnon"), rss("RssFile")
    held = list(found.values())
    assert sum(int(np.count_nonzero(array)) for array in held) == 6 * rows // 4 * width
    assert rss("RssAnon") - before < 2 << 10
    assert rss("RssFile") - mapped > 24 << 10
    del held
    assert rss("RssFile") - mapped < 2 << 10


def test_as_many_views_as_there_are_tensors_need_a_descriptor_per_file(tmp_path):
    save_file({f"w{i}": np.full(2, i) for i in range(200)}, tmp_path / "model.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    try:
        held = dict(open_tensors(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(held[f"w{i}"][1] == i for i in range(200))
