"""`record.json`: what a run ran on, with what code, and when it was started and ended.

Of the environment only the names in ENVIRONMENT are kept, and of the command line nothing.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jaxlm
from jaxlm.core.errors import DataError
from jaxlm.observe.metrics import replace

FILE = "record.json"
FORMAT = 1
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
ENVIRONMENT = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "NVIDIA_TF32_OVERRIDE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
"""The variables that change results or speed and cannot hold a secret."""

_SAME_BITS = ("versions.python", "versions.orbax-checkpoint", "versions.tokenizers")
"""What may change without changing a bit of a run whose data is tokenized already."""

Record = dict[str, Any]


def record(
    digests: Mapping[str, str],
    *,
    mesh: Mapping[str, int],
    model: Mapping[str, float | str | None],
    planned: Mapping[str, float] = MappingProxyType({}),
) -> Record:
    """The facts of this start.

    digests: such as `config` (of the keys that must not change), `tokenizer` and `data`, in hex.
    mesh: size of each axis. model: what is worth showing, such as `parameters`, `trained`,
    `flops_per_token`, `flops_formula` and `peak_flops`. planned: what the planner says of a step,
    `step_seconds` and `memory_bytes` of a device, where it knows the devices.
    """
    import jax  # here, because the report reads records on machines without it

    devices = jax.devices()
    return {
        "format": FORMAT,
        "versions": versions(),
        "devices": {
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "mesh": dict(mesh),
        },
        "cores": _cores(),
        "code": code_state(),
        "digests": dict(digests),
        "model": dict(model),
        "planned": dict(planned),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Of Python, of jaxlm and of what it computes with, by name."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"jaxlm": jaxlm.__version__, "python": platform.python_version(), **packages}


def begin(folder: str | os.PathLike[str], facts: Record, *, step: int, steps: int) -> list[str]:
    """Write the record of a start from `step` towards `steps`; process 0 alone calls this.

    Earlier starts stay listed. Returns what differs from the start before, as `differences` does.
    Raises DataError when the record that is there cannot be read.
    """
    path = Path(folder) / FILE
    old = read(folder)
    changed = differences(old, facts) if old else []
    start = {"time": _now(), "step": step, "steps": steps, "differences": changed}
    whole = {**facts, "status": "running", "starts": [*old.get("starts", ()), start]}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, whole)
    return changed


def finish(folder: str | os.PathLike[str], status: str, *, step: int) -> None:
    """Write how the newest start ended: status such as `done`, `stopped` or an error's line."""
    whole = read(folder)
    whole["status"] = status
    whole["starts"][-1] |= {"ended": _now(), "last_step": step}
    _write(Path(folder) / FILE, whole)


def read(folder: str | os.PathLike[str]) -> Record:
    """The record of a run; empty where there is none yet. Raises DataError when it is damaged."""
    path = Path(folder) / FILE
    try:
        whole = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(str(path), f"not JSON ({error}); move it away") from None
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise DataError(str(path), f"not a record of format {FORMAT}; move it away")
    return whole


def differences(old: Record, new: Record) -> list[str]:
    """One line per fact that changed between two starts: `FACT: OLD -> NEW (what it means)`.

    Empty when bits equal to those of a run never stopped are still expected.
    """
    before, after = _facts(old), _facts(new)
    lines = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, "none"), after.get(name, "none")
        if was != now:
            same = "same results expected" if name in _SAME_BITS else "bits may differ from here on"
            lines.append(f"{name}: {was} -> {now} ({same})")
    return lines


def code_state(package: Path = Path(jaxlm.__file__).parent) -> dict[str, str]:
    """What code runs: in a git checkout its commit and a digest of what is not committed.

    package: the folder of jaxlm. Elsewhere, such as in site-packages, only the version, which
    `record` has: a checkout around an installed package is not its own.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"source": "installed package"}
    state = {"source": "git checkout"}
    if (commit := _git(package, "rev-parse", "HEAD")) is not None:
        state["commit"] = commit.decode().strip()
    base = "HEAD" if "commit" in state else "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # empty tree
    changed = _git(package, "diff", "--no-ext-diff", "--binary", base, "--", ".") or b""
    new = _git(package, "ls-files", "--others", "--exclude-standard", "-z", "--", ".") or b""
    digest = hashlib.sha256(changed)
    for name in filter(None, new.decode(errors="surrogateescape").split("\0")):
        digest.update(name.encode(errors="surrogateescape") + (package / name).read_bytes())
    if changed or new:
        state["uncommitted"] = digest.hexdigest()[:16]
    return state


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _facts(whole: Record) -> dict[str, str]:
    parts = ("versions", "devices", "code", "digests", "environment")
    facts = {f"{part}.{k}": str(v) for part in parts for k, v in whole.get(part, {}).items()}
    return facts | ({"cores": str(whole["cores"])} if "cores" in whole else {})


def _cores() -> int:
    """Cores that this process may use: XLA on a CPU splits sums by them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(path: Path, whole: Record) -> None:
    replace(path, json.dumps(whole, indent=1).encode() + b"\n")
