"""Memory in use, from the device where it counts and from the process where it does not."""

import jax
import numpy as np
import pytest

from jaxlm.observe.memory import byte_limit, host_bytes, peak_bytes


class Counting:
    """A device that counts; the CPU's here do not."""

    def __init__(self, **stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_a_new_array_is_seen_and_the_peak_stays():
    assert jax.local_devices()[0].memory_stats() is None
    array = np.ones(peak_bytes() // 8 + 2**22)  # more than there ever was
    with_it = peak_bytes()
    assert with_it > array.nbytes
    del array
    assert peak_bytes() >= with_it and byte_limit() is None


def test_the_fullest_device_counts():
    devices = [Counting(peak_bytes_in_use=n, bytes_limit=99) for n in (5, 7, 6)]
    assert (peak_bytes(devices), byte_limit(devices)) == (7, 99)


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_has_what_it_was_given(tmp_path, name):
    file = tmp_path / "sys/fs/cgroup" / name
    file.parent.mkdir(parents=True)
    whole = host_bytes(tmp_path)
    assert whole > 10**8
    file.write_text("12345678\n")
    assert host_bytes(tmp_path) == 12345678
    file.write_text("max\n")
    assert host_bytes(tmp_path) == whole
