"""How much memory the devices of this process use."""

import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax


def peak_bytes(devices: Sequence[Any] | None = None) -> int:
    """Most bytes in use so far on the fullest device of this process: what must fit.

    Where devices do not count (the CPU), the most resident memory of this process.
    """
    return _fullest("peak_bytes_in_use", devices) or _most_resident()


def byte_limit(devices: Sequence[Any] | None = None) -> int | None:
    """Bytes that a device of this process may use; None where devices do not say."""
    return _fullest("bytes_limit", devices) or None


def host_bytes(root: Path = Path("/")) -> int:
    """Memory of the machine whose /sys lies under `root`, or of the container where it has less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [machine]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups of version 2 and 1
        with suppress(OSError, ValueError):  # "max" is no limit
            limits.append(int((root / "sys/fs/cgroup" / name).read_text()))
    return min(limits)


def _fullest(name: str, devices: Sequence[Any] | None) -> int:
    chosen = jax.local_devices() if devices is None else devices
    return max((int((device.memory_stats() or {}).get(name, 0)) for device in chosen), default=0)


def _most_resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
