"""`jaxlm doctor`: what this machine has, whether it fits together, and what to do if not."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from jaxlm import __version__
from jaxlm.core import platform
from jaxlm.core.errors import CLUSTER, CONFIG, DONE, STORAGE, ConfigError

DRIVERS = {"jax-cuda12-plugin": 525, "jax-cuda13-plugin": 580}
"""Oldest NVIDIA driver for each package (CUDA 12's and 13's own release pairing)."""

LITTLE_DISK, MUCH_DISK = 2e9, 20e9  # bytes: too little for any run; enough for a 1B model's saves
PROBE_SECONDS = 180
_COLORS = {"OK": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, what to do, and the exit code where it fails."""

    level: Literal["OK", "warn", "fail"]
    subject: str
    what: str
    advice: str = ""
    code: int = CONFIG


def doctor() -> int:
    """Print every finding as it comes. Returns 0, or the exit code of the first that fails."""
    console = Console(soft_wrap=True, highlight=False)
    code = DONE
    for finding in examine():
        advice = f"; {finding.advice}" if finding.advice else ""
        level = f"[{_COLORS[finding.level]}]{finding.level:4}[/]"
        console.print(f"{level}  {finding.subject}: {escape(finding.what + advice)}")
        if finding.level == "fail":
            code = code or finding.code
    return code


def examine() -> Iterator[Finding]:
    """Look at one thing after the other, jax last, because it is slow to start."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("OK", "jaxlm", f"{__version__} on Python {version} at {sys.executable}")
    kinds = platform.accelerators()
    installed = {kind: platform.plugins(kind) for kind in ("gpu", "tpu")}
    yield from accelerator_findings(kinds, installed)
    if "gpu" in kinds:
        yield driver_finding(driver_version(), installed["gpu"])
    yield from disk_findings(Path.cwd())
    yield cache_finding()
    yield from probe_findings()


def accelerator_findings(
    kinds: list[str], installed: dict[str, dict[str, str]]
) -> Iterator[Finding]:
    """Does what is installed fit what is plugged in? kinds as from `platform.accelerators`.

    An accelerator without its package fails, and only warns where the CPU was asked for.
    """
    lacking = "warn" if os.environ.get("JAX_PLATFORMS") == "cpu" else "fail"
    for kind, packages in installed.items():
        names = ", ".join(f"{name} {version}" for name, version in packages.items())
        extra = {"gpu": "cuda13", "tpu": "tpu"}[kind]
        if kind in kinds and not packages:
            what = (
                "one is here, but jax is installed for the CPU alone: in the checkout, "
                f"pip install -e '.[{extra}]'"
            )
            yield Finding(lacking, kind, what)
        elif kind in kinds and len(packages) > 1:
            yield Finding("fail", kind, f"{names} exclude each other", "pip uninstall one of them")
        elif kind in kinds:
            yield Finding("OK", kind, f"present, with {names}")
        elif packages:
            what = f"{names} is installed, but this machine shows none"
            yield Finding("warn", kind, what, "check the driver, and the container's devices")
    if not kinds:
        yield Finding("OK", "accelerator", "none; runs compute on the CPU")


def driver_version() -> str | None:
    """The NVIDIA driver's version, from the kernel or from nvidia-smi; None when neither tells."""
    kernel = Path("/proc/driver/nvidia/version")
    text = kernel.read_text() if kernel.exists() else ""
    if not text and (tool := shutil.which("nvidia-smi")):
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return found[0] if found else None


def driver_finding(version: str | None, packages: dict[str, str]) -> Finding:
    """Is the NVIDIA driver new enough for the installed jax package?"""
    if version is None:
        return Finding("warn", "driver", "its version cannot be read", "check nvidia-smi")
    major = int(version.partition(".")[0])
    for name in packages:
        if major < DRIVERS.get(name, 0):
            fits = [n for n, floor in DRIVERS.items() if floor <= major]
            other = (
                "in the checkout, pip install -e '.[cuda12]'"
                if fits
                else "a newer driver is needed"
            )
            what = f"{version} is too old for {name}, which needs {DRIVERS[name]} or newer"
            return Finding("fail", "driver", what, other)
    return Finding("OK", "driver", version)


def disk_findings(folder: Path) -> Iterator[Finding]:
    """Room and write access where runs go. `folder` must exist."""
    free = shutil.disk_usage(folder).free
    what = f"{free / 1e9:.1f} GB free at {folder}"
    if not os.access(folder, os.W_OK):
        yield Finding("fail", "disk", f"{folder} is read-only", "set run_dir=", STORAGE)
    if free < LITTLE_DISK:
        yield Finding("fail", "disk", what, "free some, or set run_dir=", STORAGE)
    elif free < MUCH_DISK:
        yield Finding("warn", "disk", what, "a checkpoint takes 12 bytes per parameter")
    else:
        yield Finding("OK", "disk", what)


def cache_finding() -> Finding:
    """Where compiled programs are kept, and how much there is."""
    folder = platform.use_compile_cache()
    if folder is None:
        what = f"{platform.compile_cache()} is not this user's alone, or cannot be written"
        advice = "make it yours with mode 0700; until then every run compiles anew"
        return Finding("warn", "compile cache", what, advice)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Finding("OK", "compile cache", f"{size / 1e6:.0f} MB in {folder}")


def probe_findings() -> Iterator[Finding]:
    """Start jax in a process of its own and sum over the mesh."""
    try:
        platform.choose_platform()
    except ConfigError:  # an accelerator without its package, which has been said above
        os.environ["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "jaxlm.observe.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        what = f"did not start within {PROBE_SECONDS} s"
        yield Finding("fail", "jax", what, "another process may hold the device", CLUSTER)
        return
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        what = said[-1].strip() if said else f"ended with {done.returncode}"
        yield Finding("fail", "jax", f"does not start: {what}", _start_advice(done.stderr))
        return
    found: dict[str, Any] = json.loads(lines[-1])
    if "error" in found:
        yield Finding("fail", "processes", found["error"], code=CLUSTER)
        return
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield Finding("OK", "versions", versions)
    memory = f", {found['memory'] / 2**30:.1f} GiB each" if found["memory"] else ""
    what = f"{found['devices']} x {found['kind']} ({found['backend']}{memory})"
    yield Finding("OK", "devices", f"{what} in {found['processes']} process(es)")
    if found["sum"] == found["expected"]:
        yield Finding("OK", "collective", f"a sum over {found['devices']} device(s) is right")
    else:
        what = f"a sum over the devices gave {found['sum']}, not {found['expected']}"
        yield Finding("fail", "collective", what, "suspect the interconnect", CLUSTER)


def _start_advice(said: str) -> str:
    if "Unknown flag" in said or "XLA_FLAGS" in said:
        return f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r} holds a flag that it does not know"
    if "ImportError" in said or "ModuleNotFoundError" in said or "AttributeError" in said:
        return "the packages do not fit together: pip install --upgrade jaxlm"
    if given := os.environ.get("JAX_PLATFORMS"):
        return f"JAX_PLATFORMS={given!r} must start here: mend the driver, or use platform=cpu"
    return "run `python -m jaxlm.observe.probe` for all that it says"
