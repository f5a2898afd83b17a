"""One value per array, whatever the mesh, the device or the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.checkpoint import digest
from jaxlm.checkpoint.digest import Slices, digests, host_digest
from jaxlm.checkpoint.manifest import Tensor, chain
from jaxlm.core.mesh import make_mesh

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint8", "int8", "bool")
SHAPES = ((), (1,), (7,), (8, 16), (2, 3, 8), (0, 4))


def array(shape, dtype, seed=0):
    bits = np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)
    if dtype == "bool":
        return np.asarray(bits % 2, bool)
    width = np.dtype(f"u{jnp.dtype(dtype).itemsize}")
    return np.asarray(bits).astype(width).view(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_device_and_host_agree(dtype):
    arrays = {str(shape): array(shape, dtype) for shape in SHAPES}
    found, _ = digests({name: jnp.asarray(a) for name, a in arrays.items()})
    assert found == {name: host_digest(a) for name, a in arrays.items()}


def test_every_mesh_agrees():
    x = array((16, 8), "float32")
    meshes = ({"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2})
    for sizes in meshes:
        mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
        for spec in (PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec("tensor", "fsdp")):
            placed = jax.device_put(x, NamedSharding(mesh, spec))
            assert digests({"x": placed})[0]["x"] == host_digest(x)


def test_numbering_beyond_32_bits(monkeypatch):
    """With words of 7 bits, so that the high half of an element's place is used."""
    x = array((5, 3, 64), "int32")
    narrow = digests({"x": jnp.asarray(x)})[0]["x"]
    monkeypatch.setattr(digest, "_WORD", 128)
    jax.clear_caches()
    assert digests({"x": jnp.asarray(x)})[0]["x"] == host_digest(x) != narrow
    monkeypatch.undo()
    jax.clear_caches()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([s for s in SHAPES if 0 not in s]),
    dtype=st.sampled_from(DTYPES),
    place=st.integers(0, 2**20),
    bit=st.integers(0, 31),
    seed=st.integers(0, 9),
)
def test_one_bit_changes_it(shape, dtype, place, bit, seed):
    x = array(shape, dtype, seed)
    y = x.copy()
    flat = y.reshape(-1).view(np.uint8)
    # Of a bool only one bit is a value.
    flat[place % flat.size] ^= 1 if dtype == "bool" else 1 << (bit % 8)
    assert host_digest(x) != host_digest(y)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), a=st.integers(0, 15), b=st.integers(0, 15))
def test_swapped_rows_change_it(seed, a, b):
    x = array((16, 4), "float32", seed)
    y = x.copy()
    y[[a, b]] = y[[b, a]]
    assert (host_digest(x) == host_digest(y)) == np.array_equal(x.view("u4"), y.view("u4"))


def test_shape_and_dtype_enter_the_chain():
    kinds = (((4, 2), "f4"), ((2, 4), "f4"), ((8,), "f4"), ((4, 2), "i4"))
    zeros = [host_digest(np.zeros(shape, dtype)) for shape, dtype in kinds]
    assert len({chain({"params": {"x": tensor}}) for tensor in zeros}) == 4


def test_chain_needs_names_and_position_but_no_order():
    a, b = Tensor((1,), "int8", "aa"), Tensor((1,), "int8", "bb")
    one = chain({"params": {"a": a, "b": b}}, 3)
    assert one == chain({"params": {"b": b, "a": a}}, 3)
    assert one != chain({"params": {"a": b, "b": a}}, 3)
    assert one != chain({"params": {"a": a, "b": b}}, 4)


def test_names_what_is_not_finite():
    leaves = {
        "fine": jnp.ones(3),
        "nan": jnp.array([0.0, jnp.nan]),
        "infinite": jnp.array([jnp.inf], jnp.bfloat16),
        "whole": jnp.array([2**31 - 1], jnp.int32),
    }
    assert digests(leaves)[1] == ["nan", "infinite"]


def test_refuses_what_it_cannot_digest():
    with pytest.raises(TypeError, match="complex64"):
        digests({"x": jnp.ones(2, jnp.complex64)})
    with pytest.raises(TypeError, match="x: a float"):
        digests({"x": 1.0})  # pyright: ignore[reportArgumentType]


def test_slices_add_up_to_the_whole():
    wide = array((2, 3, 700, 900), "bfloat16"), array((2_000_000,), "float32")
    leaves = {str(i): jnp.asarray(x).astype(jnp.float32) for i, x in enumerate(wide)}
    sums = Slices(leaves)
    for at in np.ndindex(2, 3):
        sums.add("0", at, wide[0][at])  # in its own type, digested in the whole's
    sums.add("1", (), wide[1])
    assert sums.tensors() == digests(leaves)[0]
