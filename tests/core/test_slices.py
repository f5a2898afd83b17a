"""The order of devices over slices. Stand-ins have what real devices have that the order reads."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import AXES, make_mesh
from jaxlm.core.slices import across, arrange, describe, find


@dataclass(frozen=True)
class Chip:
    """A device in a slice."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "stand-in"


def chips(*counts, shuffled=False):
    """So many in each slice, two to a process."""
    which = [number for number, count in enumerate(counts) for _ in range(count)]
    made = [Chip(i, i // 2, number) for i, number in enumerate(which)]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))] if shuffled else made


def pod(*counts):
    """Slices of TPUs, which no mesh joins into one torus."""
    return [replace(chip, platform="tpu") for chip in chips(*counts)]


@pytest.mark.parametrize(
    ("sizes", "over"),
    [
        ((4, 4, 1, 1), (2, 1, 1, 1)),
        ((2, 8, 1, 1), (2, 1, 1, 1)),
        ((1, 16, 1, 1), (1, 2, 1, 1)),
        ((1, 1, 2, 8), (1, 1, 2, 1)),
        ((1, 1, 1, 16), (1, 1, 1, 2)),
    ],
)
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_outermost_axis_that_can_crosses_slices(sizes, over, shuffled):
    assert across(sizes, 2) == over
    mesh = arrange(sizes, find(chips(8, 8, shuffled=shuffled)))
    assert mesh.shape == sizes and len(set(mesh.flat)) == 16
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh)
    for axis, (size, crossed) in enumerate(zip(sizes, over, strict=True)):
        lines = np.moveaxis(slices, axis, -1).reshape(-1, size)
        met = {len(set(line)) for line in lines.tolist()}
        assert met == {crossed}, (axis, met)


@pytest.mark.parametrize(("shape", "over"), [((3, 4), (1, 2)), ((6, 4), (2, 4)), ((4, 6), (4, 2))])
def test_slices_are_shared_between_axes_where_one_cannot_have_all(shape, over):
    assert across(shape, int(np.prod(over))) == over


def test_devices_without_slices_are_those_of_one_host():
    found = find(jax.devices())
    assert [len(each) for each in found] == [8]
    assert make_mesh({"fsdp": 4, "tensor": 2}, slices=found).devices.shape == (1, 4, 1, 2)


def test_a_number_of_slices_overrides_what_devices_say():
    assert [len(each) for each in find(chips(8, 8), 1)] == [16]
    cut = find(chips(8, 8, shuffled=True), 4)
    assert [[chip.id for chip in each] for each in cut] == np.arange(16).reshape(4, 4).tolist()


@pytest.mark.parametrize(
    ("devices", "count", "line"),
    [
        (chips(8, 8), 3, "mesh.slices: 3 does not divide 16 devices; use 2 or 4"),
        (chips(2, 2), 9, "mesh.slices: 9 does not divide 4 devices; use 4"),
        (pod(4, 4, 4), 2, "mesh.slices: 2 does not split each of 3 TPU slices into groups; use 3"),
        (pod(4, 4), 1, "mesh.slices: 1 does not split each of 2 TPU slices into groups; use 2"),
        (chips(8, 6), 0, "mesh: hosts or slices have 6 and 8 devices, .* or mesh.slices=1 to lie"),
        (pod(8, 4), 2, "mesh.slices: 2 equal groups would not each lie in one of the TPU slices"),
        (pod(8, 6), 0, "mesh: hosts or slices have 6 and 8 devices, .*; use equal ones$"),
    ],
)
def test_slices_that_are_not_equal_are_refused(devices, count, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        find(devices, count)


def test_a_mesh_is_told_as_it_lies():
    def told(*shape):
        return describe(dict(zip(AXES, shape, strict=True)), find(chips(8, 8)))

    assert told(4, 4, 1, 1) == "mesh data=4 (2 across hosts) x fsdp=4"
    assert told(1, 1, 2, 8) == "mesh expert=2 (2 across hosts) x tensor=8"
    assert describe({"fsdp": 8}, find(chips(8))) == "mesh fsdp=8"
    assert describe({"fsdp": 16}, find(pod(8, 8))) == "mesh fsdp=16 (2 across slices)"
