"""How a mesh lies over devices of which only some have a fast network between them.

A slice is a group of devices with such a network: a slice of a TPU, a host of GPUs, or hosts that
NVLink joins. Axes cross from slice to slice outermost first, so that `data`, which talks once a
microbatch, does before `fsdp`, and `tensor` last.
"""

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from jaxlm.core import distributed
from jaxlm.core.errors import ConfigError
from jaxlm.core.sizes import check_slices

Slices = Sequence[Sequence[Any]]
"""The devices of each slice."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


def find(devices: Sequence[Any], count: int = 0) -> list[list[Any]]:
    """The slices of `devices`, each in the order in which they are listed.

    count: how many; 0: as the devices say (`slice_index` of TPUs and GPUs), else a host is one.
    All processes call it together. Raises ConfigError where slices would not be equal.
    """
    if count:
        check_slices(count, len(devices), _toruses(devices))
        devices = sorted(devices, key=_place)
        each = len(devices) // count
        groups = [devices[at : at + each] for at in range(0, len(devices), each)]
        if any(_toruses(group) > 1 for group in groups):
            what = f"{count} equal groups would not each lie in one of the TPU slices"
            raise ConfigError("mesh.slices", f"{what}, which are not equal; use equal ones")
        return groups
    own = {device: _slice(device) for device in devices}
    if len(set(own.values())) == 1 and not hasattr(devices[0], "slice_index"):
        hosts = distributed.gather("hosts", _host())
        own = {device: hosts.index(hosts[device.process_index]) for device in devices}
    found = [[d for d in devices if own[d] == key] for key in sorted(set(own.values()))]
    if len({len(each) for each in found}) > 1:
        sizes = " and ".join(map(str, sorted({len(each) for each in found})))
        what = f"hosts or slices have {sizes} devices, and a mesh needs as many of each"
        use = "use equal ones"
        if _toruses(devices) == 1:
            use += ", or mesh.slices=1 to lie over them anyhow"
        raise ConfigError("mesh", f"{what}; {use}")
    return found


def across(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """Of each axis of a mesh, over how many slices of `count` it goes: outermost axes first."""
    over, left = [], count
    for size in shape:
        over.append(math.gcd(size, left))
        left //= over[-1]
    return tuple(over)


def arrange(shape: Sequence[int], slices: Slices) -> np.ndarray:
    """The devices as a mesh of this shape, each slice a block of it.

    As mesh_utils.create_hybrid_device_mesh has it, for slices that devices do not name too.
    """
    over = across(shape, len(slices))
    within = [size // over_it for size, over_it in zip(shape, over, strict=True)]
    blocks = np.empty(len(slices), object)
    for index, devices in enumerate(slices):
        blocks[index] = _block(within, devices)
    return np.block(blocks.reshape(over).tolist())


def describe(sizes: dict[str, int], slices: Slices, *, counted: bool = False) -> str:
    """A mesh as it lies: `mesh data=4 (2 across hosts) x fsdp=8`.

    counted: somebody said how many slices there are.
    """
    over = across(list(sizes.values()), len(slices))
    what = "slices" if counted or slices[0][0].platform == "tpu" else "hosts"
    parts = [
        f"{axis}={size}" + (f" ({crossed} across {what})" if crossed > 1 else "")
        for (axis, size), crossed in zip(sizes.items(), over, strict=True)
        if size > 1
    ]
    return f"mesh {' x '.join(parts)}"


def _block(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices of one slice, by the topology of a TPU."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # an axis of the torus has to be split
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", 0)


def _toruses(devices: Sequence[Any]) -> int:
    """Over how many the devices lie: each slice of TPUs is one; nothing else is told apart."""
    return len({*map(_slice, devices)}) if devices[0].platform == "tpu" else 1


def _place(device: Any) -> tuple[int, int, int]:
    return _slice(device), device.process_index, device.id


def _host() -> str:
    """What processes on one machine have alike, in containers too."""
    return BOOT.read_text().strip() if BOOT.is_file() else platform.node()
