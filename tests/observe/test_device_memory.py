"""Memory in use, from the device where it counts and from the process where it does not."""

import jax
import numpy as np

from jaxlm.observe.memory import byte_limit, peak_bytes


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
