import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import layout

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import AXES, logical_axes, make_mesh
from jaxlm.core.sizes import check_batch, check_slices

TABLE = (("up/kernel", ("embed", "mlp")), ("up/bias", ("mlp",)), ("norm/scale", ("norm",)))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"fsdp": -1}, (1, 8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 1, 2)),
        ({"expert": -1, "tensor": 2}, (1, 1, 4, 2)),
        ({"tensor": 8}, (1, 1, 1, 8)),
    ],
)
def test_a_mesh_takes_all_devices(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.axis_names == AXES and mesh.devices.shape == shape


@pytest.mark.parametrize(
    ("sizes", "use"),
    [
        ({}, "mesh.fsdp=8"),
        ({"data": 4}, "mesh.data=4 mesh.fsdp=2"),
        ({"fsdp": -1, "tensor": 3}, "mesh.fsdp=2 mesh.tensor=4"),
        ({"fsdp": 16, "tensor": 4}, "mesh.fsdp=2 mesh.tensor=4"),
        ({"data": 8, "tensor": 4}, "mesh.data=2 mesh.fsdp=1 mesh.tensor=4"),
        ({"data": 3, "expert": 3}, "mesh.data=2 mesh.fsdp=1 mesh.expert=4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_sizes_that_do(sizes, use):
    with pytest.raises(ConfigError, match=f"^mesh: .* does not give 8 devices; use {use}$"):
        make_mesh(sizes)
    assert make_mesh({k: int(v) for k, v in re.findall(r"mesh.(\w+)=(\d+)", use)}).devices.size == 8


@pytest.mark.parametrize("sizes", [{"data": -1, "fsdp": -1}, {"data": 0, "fsdp": -1}])
def test_only_one_size_is_open(sizes):
    with pytest.raises(
        ConfigError, match="^mesh: .* sizes are positive, and one of them may be -1"
    ):
        make_mesh(sizes)


def test_rows_of_the_table_give_every_leaf_its_place():
    at = layout(fsdp=4, tensor=2)
    tree = {"blocks": {"up": {"kernel": (3, 16, 6), "bias": (3, 6)}}, "norm": {"scale": (16,)}}
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, "float32"), tree, is_leaf=lambda s: isinstance(s, tuple)
    )
    found = at.shardings({"opt": (shapes, {"count": jax.ShapeDtypeStruct((), "int32")})}, TABLE)
    specs = jax.tree.map(lambda sharding: sharding.spec, found)["opt"]
    assert specs[0]["blocks"]["up"] == {
        "kernel": P(None, "fsdp", "tensor"),
        "bias": P(None, "tensor"),
    }
    assert specs[0]["norm"]["scale"] == P(None) and specs[1]["count"] == P()


def test_a_dimension_that_does_not_divide_stays_whole():
    odd = {"up": {"kernel": jax.ShapeDtypeStruct((6, 6), "float32")}}
    assert layout(fsdp=4, tensor=2).shardings(odd, TABLE)["up"]["kernel"].spec == P(None, "tensor")


def test_an_axis_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="unknown logical axis 'embedd'; known are batch, embed"):
        layout(fsdp=8).sharding(("embedd",))


def test_two_dimensions_do_not_share_a_mesh_axis():
    with pytest.raises(ValueError, match="two dimensions on one mesh axis"):
        layout(fsdp=8).sharding(("batch", "embed"))


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 8}])
def test_as_many_axes_as_dimensions(sizes):
    with pytest.raises(ValueError, match=r"2 axes .* shape \(2, 3, 4\)"):
        layout(**sizes).constrain(np.zeros((2, 3, 4)), "batch", None)


def test_a_name_that_two_rows_claim_is_refused():
    with pytest.raises(ValueError, match="a/up/bias matches 2 rows"):
        logical_axes("a/up/bias", (*TABLE, ("bias", ("norm",))))


def test_constrained_arrays_lie_where_they_should():
    at = layout(data=2, fsdp=2, tensor=2)
    placed = jax.jit(lambda x: at.constrain(x, "batch", None, "vocab"))(np.zeros((8, 3, 4)))
    assert placed.sharding.is_equivalent_to(at.sharding(("batch", None, "vocab")), 3)
    assert placed.addressable_shards[0].data.shape == (2, 3, 2)


def test_an_unknown_axis_names_those_that_are():
    with pytest.raises(ConfigError, match="mesh: no axis is called 'model'; use data, fsdp"):
        make_mesh({"model": 2})


@pytest.mark.parametrize(
    ("batch", "parts", "shards"), [(20, 1, 16), (3, 1, 8), (64, 8, 16), (48, 5, 3), (7, 7, 2)]
)
def test_a_batch_that_does_not_split_is_told_what_does(batch, parts, shards):
    with pytest.raises(ConfigError, match="^batch: .*; use ") as found:
        check_batch(batch, parts, shards)
    advice = str(found.value).rpartition("; use ")[2]
    for key, number in re.findall(r"(microbatches)?=?(\d+)", advice):
        given = (batch, int(number)) if key else (int(number), parts)
        check_batch(*given, shards)


@pytest.mark.parametrize(
    ("count", "devices", "own"), [(3, 16, 1), (9, 4, 1), (1, 32, 2), (3, 32, 2), (5, 48, 3)]
)
def test_slices_that_are_not_equal_are_told_what_are(count, devices, own):
    with pytest.raises(ConfigError, match="^mesh.slices: ") as found:
        check_slices(count, devices, own)
    for number in re.findall(r"\d+", str(found.value).rpartition("; use ")[2]):
        check_slices(int(number), devices, own)
    check_slices(0, devices, own)
