"""The tables of weights: both ways without loss or copies, every tensor accounted for."""

import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.families import find
from jaxlm.families.names import (
    Weight,
    expand,
    in_file,
    missing,
    read,
    tensors,
    their_shape,
    unfilled,
    unused,
    write,
)
from jaxlm.models.transformer import param_shapes

CONFIGS = json.loads((Path(__file__).parent / "configs.json").read_text())
DTYPES = [np.dtype("float32"), np.dtype(ml_dtypes.bfloat16)]


def described(name):
    family = find(CONFIGS[name])
    return family, family.spec(CONFIGS[name])


def table(name):
    """(family, shapes of our leaves, pieces) of a configuration."""
    family, spec = described(name)
    leaves = tree.flatten(param_shapes(spec, networks.layout(), jnp.float32))
    shapes = {leaf: struct.shape for leaf, struct in leaves.items()}
    return family, shapes, expand(family.table(spec), shapes, spec.vocab)


def drawn(pieces, dtype):
    """Their tensors, random."""
    rng = np.random.default_rng(0)
    shapes = {name: their_shape(parts[0]) for name, parts in tensors(pieces).items()}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def filled(pieces, shapes, file, dtype):
    """Our leaves of their tensors."""
    leaves = {name: np.full(shape, np.nan, dtype) for name, shape in shapes.items()}
    if first := {piece.leaf: piece.at for piece in reversed(pieces) if piece.at[:1] == (1,)}:
        for name in first.keys() - {piece.leaf for piece in pieces if piece.at[:1] == (0,)}:
            leaves[name][0] = 0  # of a layer that has no such norm
    for piece in pieces:
        leaf = leaves[piece.leaf]
        leaf[piece.at] = read(piece, file[piece.name], leaf.shape[len(piece.at) :])
    return leaves


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_import_then_export_is_the_identity(name, dtype):
    _, shapes, pieces = table(name)
    file = drawn(pieces, dtype)
    leaves = filled(pieces, shapes, file, dtype)
    assert not any(np.isnan(leaf.astype(np.float32)).any() for leaf in leaves.values())
    for theirs, parts in tensors(pieces).items():
        made = write(parts, [leaves[piece.leaf][piece.at] for piece in parts])
        assert made.dtype == dtype and made.tobytes() == file[theirs].tobytes(), theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_every_leaf_and_every_row_is_used_once(name):
    _, shapes, pieces = table(name)
    assert unfilled(pieces, shapes) == []
    assert len({(piece.leaf, piece.at) for piece in pieces}) == len(pieces)
    _, spec = described(name)
    skipped = [leaf for leaf in shapes if "encoder/blocks/attn_norm/" in leaf]
    absent = skipped if spec.embedding.norm else []  # the first layer's
    rows = sum(int(np.prod(shape)) for shape in shapes.values()) - len(absent) * spec.embed
    theirs = sum(int(np.prod(their_shape(parts[0]))) for parts in tensors(pieces).values())
    padding = sum(31 * 32 for leaf in shapes if leaf in ("embed/embedding", "head/kernel"))
    padding += 31 * (shapes.get("head/bias") == (128,))
    assert rows == theirs + padding  # 97 rows of 128


def test_reading_copies_nothing():
    for name in CONFIGS:
        _, shapes, pieces = table(name)
        file = drawn(pieces, np.float32)
        for piece in pieces:
            shape = shapes[piece.leaf][len(piece.at) :]
            known = tuple(slice(0, size) for size in piece.parts[piece.part])
            view = read(piece, file[piece.name], shape, known)
            assert np.shares_memory(view, file[piece.name]), piece


def test_a_slice_is_the_slice_of_the_whole_and_padding_is_zero():
    _, shapes, pieces = table("mistral")
    piece = next(piece for piece in pieces if piece.leaf == "embed/embedding")
    tensor = drawn(pieces, np.float32)[piece.name]
    whole = read(piece, tensor, shapes[piece.leaf])
    assert whole.shape == (128, 32) and np.array_equal(whole[:97], tensor) and not whole[97:].any()
    for rows in (slice(0, 64), slice(64, 128), slice(100, 128), slice(None)):
        index = (rows, slice(8, 24))
        assert np.array_equal(read(piece, tensor, shapes[piece.leaf], index), whole[index])


def test_fused_parts_of_other_sizes_are_told_apart():
    weight = Weight(("q", "k"), "h.{}.qk", "(h k)| e -> e h k")
    pieces = expand([weight], {"q": (1, 5, 2, 3), "k": (1, 5, 1, 3)}, 0)
    tensor = np.arange(45).reshape(9, 5)
    q, k = (read(piece, tensor, piece.parts[piece.part]) for piece in pieces)
    assert np.array_equal(q.reshape(5, 6), tensor[:6].T)
    assert np.array_equal(k.reshape(5, 3), tensor[6:].T)


def test_interleaved_parts_are_told_apart():
    weight = Weight(("q", "k", "v"), "h.{}.qkv", "(h s k) -> s h k")
    pieces = expand([weight], dict.fromkeys("qkv", (1, 2, 4)), 0)
    tensor = np.arange(24)
    found = [read(piece, tensor, (2, 4)) for piece in pieces]
    assert np.array_equal(found, tensor.reshape(2, 3, 4).swapaxes(0, 1))


def test_a_wrong_shape_is_refused_with_both_shapes():
    _, shapes, pieces = table("phi3")
    piece = next(piece for piece in pieces if piece.leaf.endswith("k/kernel"))
    with pytest.raises(CheckpointError) as error:
        read(piece, np.zeros((64, 31)), shapes[piece.leaf][1:])
    assert error.value.where == "model.layers.0.self_attn.qkv_proj.weight"
    assert "[64, 31]" in error.value.what and "[64, 32]" in error.value.what


def test_missing_and_unused_tensors_are_named_and_buffers_ignored():
    family, _, pieces = table("gpt_neox")
    names = list(tensors(pieces))
    buffers = ["bias", "masked_bias", "rotary_emb.inv_freq"]
    extra = [f"gpt_neox.layers.1.attention.{name}" for name in buffers]
    assert unused(pieces, [*names, *extra, "odd"], family.ignored, []) == ["odd"]
    assert missing(pieces, names[1:]) == names[:1]
    assert unfilled(pieces, {"odd/leaf": (1,)}) == ["odd/leaf"]


def test_a_tied_head_in_the_file_is_a_copy_of_the_embedding():
    family, shapes, pieces = table("llama")
    copied = family.copied(described("llama")[1], shapes)
    assert copied == {"lm_head.weight": "model.embed_tokens.weight"}
    names = [*tensors(pieces), "lm_head.weight"]
    assert unused(pieces, names, family.ignored, copied) == []
    family, shapes, _ = table("llama linear")
    assert family.copied(described("llama linear")[1], shapes) == {}


def test_a_head_of_its_own_is_no_copy():
    stacks = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
    for name, more in [("t5", {"lm_head.weight": "shared.weight"}), ("t5 1.1", {})]:
        family, shapes, _ = table(name)
        assert family.copied(described(name)[1], shapes) == stacks | more
    family, shapes, pieces = table("bert untied")
    assert family.copied(described("bert untied")[1], shapes) == {}
    assert "cls.predictions.decoder.bias" in tensors(pieces)


def test_names_of_old_versions_are_read():
    old = {"bert.embeddings.LayerNorm.gamma": "weight", "bert.embeddings.LayerNorm.beta": "bias"}
    family, _ = described("bert")
    found = in_file(old, family.prefix, family.renamed)
    assert found == {f"bert.embeddings.LayerNorm.{new}": name for name, new in old.items()}


def test_a_network_saved_without_its_head_lacks_the_prefix():
    family, _, pieces = table("gpt2")
    names = [name for name in tensors(pieces) if name != "lm_head.weight"]
    bare = [name.removeprefix("transformer.") for name in names]
    assert in_file(bare, family.prefix) == dict(zip(names, bare, strict=True))
    assert in_file(names, family.prefix) == dict(zip(names, names, strict=True))
