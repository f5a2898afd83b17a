"""Files that lie are refused in one line that names file and tensor, and nothing is allocated."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxlm.core.errors import CheckpointError
from jaxlm.hub.tensors import HEADER, open_tensors


def row(begin, end, shape=None, dtype="F32"):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file(header, data=8, length=None):
    """The bytes of a file: header as an object, text or bytes; data: how many bytes follow."""
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    length = len(text) if length is None else length
    return length.to_bytes(8, "little") + text + bytes(data)


A, B = row(0, 4), row(4, 8)
TWICE = '{"w": {"dtype": "F32", "shape": [1], "shape": [2], "data_offsets": [0, 8]}}'
PAIR = f'{{"w": {json.dumps(A)}, "w": {json.dumps(B)}}}'
DEEP = '{"w": ' + "[" * 100_000 + "]" * 100_000 + "}"

FILES = {
    "empty": (b"", "is empty"),
    "five bytes": (b"12345", "is cut off: it has 5 bytes"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a header longer than the file": (file({"w": row(0, 8)}, length=99), "claims 99 bytes, and 69"),
    "a header of 200 GB": (file("{}", length=200 * 10**9), "claims 200000000000 bytes; at most"),
    "a header of 2^62": (file("{}", length=2**62), "claims 4611686018427387904 bytes"),
    "a header of 2^64 - 1": (file("{}", length=2**64 - 1), "claims 18446744073709551615 bytes"),
    "no header": (file(""), "does not begin with {"),
    "truncation": (file({"v": A, "w": B}, 7), "is cut off in tensor 'w'"),
    "truncation to the header": (file({"v": A, "w": B}, 0), "is cut off in tensor 'v'"),
    "trailing bytes": (file({"v": A, "w": B}, 9), "1 bytes after tensor 'w' belong to no tensor"),
    "bytes and no tensor": (file("{}", 1), "1 bytes after the header belong to"),
    "overlap": (file({"v": row(0, 8), "w": B}), "'w' overlaps tensor 'v' by 4 bytes"),
    "the same bytes twice": (file({"v": row(0, 8), "w": row(0, 8)}), "'w' overlaps tensor 'v'"),
    "a hole": (file({"v": A, "w": row(8, 12)}, 12), "4 bytes before tensor 'w' belong to no"),
    "a hole at the start": (file({"w": B}), "4 bytes before tensor 'w' belong to no"),
    "a tensor twice": (file(PAIR), "key 'w' occurs twice"),
    "a shape twice": (file(TWICE), "key 'shape' occurs twice"),
    "negative offsets": (file({"w": row(-8, 0, [2])}), "'w' has data_offsets"),
    "swapped offsets": (file({"w": row(8, 0, [2])}), "'w' has data_offsets"),
    "offsets beyond the file": (file({"w": row(0, 2**62, [2**60])}), "is cut off in tensor 'w'"),
    "three offsets": (file({"w": A | {"data_offsets": [0, 4, 8]}}), "'w' has data_offsets"),
    "offsets of floats": (file({"w": A | {"data_offsets": [0, 4.0]}}), "'w' has data_offsets"),
    "an offset of 5000 digits": (file('{"w": ' + "9" * 5000 + "}"), "4300 digits"),
    "a shape beyond its bytes": (file({"w": row(0, 8, [1000])}), r"'w' is F32 of shape \[1000\]"),
    "a shape short of its bytes": (file({"w": row(0, 8, [1])}), r"'w' is F32 of shape \[1\]"),
    "a negative dim": (file({"w": row(0, 8, [-1, -2])}), "'w' has a shape that is not"),
    "a dim that is true": (file({"w": row(0, 8, [2, True])}), "'w' has a shape that is not"),
    "a shape that wraps around": (file({"w": row(0, 8, [2**62, 4, 2**1])}), "'w' has a shape bey"),
    "a shape around zero": (file({"w": row(0, 0, [0, 2**63])}, 0), "'w' has a shape beyond any"),
    "a hundred dims": (file({"w": row(0, 8, [1] * 99 + [2])}), "'w' has a shape that is not"),
    "an unknown dtype": (file({"w": row(0, 8, dtype="F33")}), "'w' has a dtype 'F33'; known are"),
    "a dtype of half bytes": (file({"w": row(0, 8, [16], "F4")}), "'w' has a dtype 'F4'; known"),
    "a dtype that is a list": (file({"w": row(0, 8, dtype=["F32"])}), "'w' has a dtype that is no"),
    "not UTF-8": (file(b'{"\xff": 1}'), "is not UTF-8 at byte 2"),
    "UTF-16": (file('{"w": 1}'.encode("utf-16")), "does not begin with {"),
    "not JSON": (file("{'w': 1}"), "its JSON does not parse"),
    "two objects": (file("{}{}", 0), "its JSON does not parse"),
    "a space": (file(" " + json.dumps({"w": row(0, 8)})), "does not begin with {"),
    "a list": (file(json.dumps([A]), 4), "does not begin with {"),
    "a nest": (file(DEEP), "is nested too deep"),
    "a tensor of no fields": (file({"w": {}}), "'w' needs dtype, shape and data_offsets"),
    "a field too many": (file({"w": row(0, 8) | {"scale": 2}}), "'w' needs dtype, shape and"),
    "a tensor that is a number": (file({"w": 7}), "'w' needs dtype, shape and"),
    "metadata of numbers": (file({"__metadata__": {"step": 7}, "w": row(0, 8)}), "__metadata__"),
    "metadata that only the library refuses": (
        file({"__metadata__": {"a": "\ud800"}, "w": row(0, 8)}),
        "[Ee]rror while deserializing header",
    ),
    "metadata in a list": (file({"__metadata__": ["pt"], "w": row(0, 8)}), "__metadata__"),
}
NAMES = ["/etc/passwd", "../../evil", "a/../b", "..", "\\\\host\\w", "a\\..\\b", "w\0", "a\nb", ""]
NAMES += ["\x1b[2J", "\x1b" * 500, "\ud800", "\u202egnp.w"]
FILES |= {f"named {n[:9]!a}": (file({n: row(0, 8)}), "is named like a path or has") for n in NAMES}


@pytest.mark.parametrize("content, match", FILES.values(), ids=FILES)
def test_a_malformed_file_is_refused(tmp_path, content, match):
    (tmp_path / "model.safetensors").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=match) as caught:
            open_tensors(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/model.safetensors: ") and text.isprintable()
    assert len(text) < len(str(tmp_path)) + 500
    assert peak < (1 << 20) + 20 * len(content)


def test_no_header_of_a_large_file_is_read_when_it_is_absurd(tmp_path):
    """A file with holes takes no disk, and a header of its length would take all memory."""
    path = tmp_path / "model.safetensors"
    path.write_bytes((HEADER + 1).to_bytes(8, "little") + b'{"w":')
    os.truncate(path, 1 << 34)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="claims 33554433 bytes; at most 33554432"):
            open_tensors(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


GOOD = file({"__metadata__": {"format": "pt"}, "v": A, "w": row(4, 8, [2, 1], "F16")})


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_whatever_is_changed_in_a_file_is_refused_or_lies_within_it(tmp_path_factory, data):
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(max_size=3) | st.sampled_from([b"9", b"-", b'"w"', b"[", b"\0"]))
        content[place : place + data.draw(st.integers(0, 3))] = new
    folder = tmp_path_factory.mktemp("changed")
    (folder / "model.safetensors").write_bytes(content)
    try:
        found = open_tensors(folder)
    except CheckpointError as error:
        assert str(error).isprintable()
        return
    held = b"".join(found[n].tobytes() for n in sorted(found, key=lambda n: found.table[n].start))
    assert held == bytes(content)[8 + int.from_bytes(content[:8], "little") :]


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEXES = {
    "outside": ({"v": ONE, "w": "../x.safetensors"}, "tensor 'w' in '../x.safetensors', which is"),
    "absolute": ({"v": ONE, "w": "/x.safetensors"}, "tensor 'w' in '/x.safetensors', which is not"),
    "a folder below": ({"v": ONE, "w": "x/y.safetensors"}, "which is not a .safetensors file"),
    "a pickle": ({"v": ONE, "w": "x.bin"}, "tensor 'w' in 'x.bin', which is not a .safetensors"),
    "no name": ({"v": ONE, "w": 7}, "tensor 'w' in '7', which is not a .safetensors file beside"),
    "a missing shard": ({"v": ONE, "w": "x.safetensors"}, "x.safetensors: is missing, and .*index"),
    "a tensor the shard lacks": ({"v": ONE, "w": TWO, "u": TWO}, "00002-of.*lacks tensor 'u'"),
    "a tensor elsewhere": ({"v": ONE, "w": ONE}, "00001-of.*lacks tensor 'w', which"),
    "no tensors": ({}, "has no weight_map of tensors to files"),
    "a list": ([["v", ONE]], "has no weight_map of tensors to files"),
}


def shards(folder, weight_map, **more):
    """Two shards, v in one and w in two, and an index that says what it likes."""
    save_file({"v": np.zeros(2), **more}, folder / ONE)
    save_file({"w": np.zeros(2)}, folder / TWO)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("weight_map, match", INDEXES.values(), ids=INDEXES)
def test_a_malformed_index_is_refused(tmp_path, weight_map, match):
    shards(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_tensors(tmp_path)
    assert str(caught.value).isprintable()


def test_a_shard_that_holds_more_than_the_index_says(tmp_path):
    shards(tmp_path, {"v": ONE, "w": TWO}, u=np.zeros(2))
    with pytest.raises(CheckpointError, match="00001-of.*holds tensor 'u', which .* does not name"):
        open_tensors(tmp_path)
    shards(tmp_path, {"v": ONE, "w": TWO}, w=np.zeros(2))
    with pytest.raises(CheckpointError, match=f"00001-of.*holds tensor 'w', which .* in {TWO}"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "does not parse"),
        (b"[]", "is a list and not an object"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {"v": "%b", "v": "%b"}}' % (ONE.encode(), TWO.encode()), "'v' occurs"),
        (b"\xff", "is not UTF-8"),
        (b" " * (HEADER + 1), "has more than 33554432 bytes"),
    ],
)
def test_an_index_that_is_no_index_is_refused(tmp_path, content, match):
    shards(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"index.json: .*{match}"):
        open_tensors(tmp_path)


def test_a_malformed_shard_is_named(tmp_path):
    shards(tmp_path, {"v": ONE, "w": TWO})
    os.truncate(tmp_path / TWO, (tmp_path / TWO).stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"{TWO}: is cut off in tensor 'w'"):
        open_tensors(tmp_path)


def test_a_single_file_beside_an_index_of_others_is_refused(tmp_path):
    shards(tmp_path, {"v": ONE, "w": TWO})
    save_file({"v": np.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds both model.safetensors and .*index.json"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_not_opened_and_the_way_to_convert_them_is_said(tmp_path, suffix):
    bomb = b"cposix\nsystem\n(S'touch %b/gone'\ntR." % str(tmp_path).encode()
    (tmp_path / f"model{suffix}").write_bytes(bomb)
    with pytest.raises(CheckpointError, match=rf"holds model{suffix}, a pickle.*save_pretrained"):
        open_tensors(tmp_path)
    assert os.listdir(tmp_path) == [f"model{suffix}"]


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor model.*index"):
        open_tensors(tmp_path)
    with pytest.raises(CheckpointError, match=r"none: is no folder; name one that holds model"):
        open_tensors(tmp_path / "none")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="holds neither"):
        open_tensors(tmp_path)
