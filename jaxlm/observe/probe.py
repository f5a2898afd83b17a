"""Start jax as a run would and add up one number per device: `python -m jaxlm.observe.probe`.

A process of its own, because a broken driver or an unknown flag may end it or hang it. Prints one
line of JSON; the exit code is 6 when processes do not find each other or do not agree.
"""

import json
import sys
from importlib import import_module, metadata

from jaxlm.core.errors import CLUSTER, DONE, ClusterError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def probe() -> int:
    """Import what a run imports, join the other processes, and sum over the mesh of all devices."""
    for name in ("jax", "flax.linen", "optax", "orbax.checkpoint"):
        import_module(name)
    import jax

    from jaxlm.core import distributed

    try:
        distributed.initialize(timeout=60)
        total, expected = distributed.device_sum()
    except ClusterError as error:
        print(json.dumps({"error": str(error)}))
        return CLUSTER
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    found = {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "kind": jax.local_devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "memory": memory,
        "sum": total,
        "expected": expected,
    }
    print(json.dumps(found))
    return DONE if found["sum"] == found["expected"] else CLUSTER


if __name__ == "__main__":
    sys.exit(probe())
