"""Every test runs on 8 fake CPU devices, with a shared compile cache and no rank promotion."""

import os
import tempfile
from collections import Counter
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["NPROC"] = "32"  # threads for 8 devices that wait for each other: core/platform.py
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"jaxlm-test-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")


BRIEF = 8
"""Of so many cases of a parametrized test, a brief run has one."""
ALIKE = "config", "data", "observe", "text"
"""Rooms that meet no jax: a brief run, which is for another jax, leaves their tests out."""


def pytest_addoption(parser):
    parser.addoption(
        "--brief",
        action="store_true",
        help=f"one case in {BRIEF} of every test that may meet jax and is not marked `once`",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("brief"):
        return
    cases = Counter()
    kept, left = [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        chosen = cases[test] % BRIEF == 0 and not item.get_closest_marker("once")
        chosen = chosen and item.path.parent.name not in ALIKE
        (kept if chosen else left).append(item)
        cases[test] += 1
    config.hook.pytest_deselected(items=left)
    items[:] = kept
