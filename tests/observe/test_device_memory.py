"""Memory in use, from the device where it counts and from the process where it does not."""

import jax
import numpy as np

from jaxlm.observe.memory import byte_limit, bytes_in_use, peak_bytes


class Counting:
    """A device that counts; the CPU's here do not."""

    def __init__(self, **stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_a_new_array_is_seen_and_the_peak_stays():
    assert jax.local_devices()[0].memory_stats() is None
    before = bytes_in_use()
    array = np.ones(2**25)
    assert bytes_in_use() - before > 0.9 * array.nbytes
    assert peak_bytes() >= bytes_in_use() - 2**20
    assert byte_limit() is None


def test_the_fullest_device_counts():
    devices = [Counting(bytes_in_use=n, peak_bytes_in_use=2 * n, bytes_limit=99) for n in (5, 7, 6)]
    assert (bytes_in_use(devices), peak_bytes(devices), byte_limit(devices)) == (7, 14, 99)
