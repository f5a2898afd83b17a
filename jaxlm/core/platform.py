"""Where a run computes, decided before jax starts. Does not import jax."""

import ctypes
import hashlib
import os
import platform as machine
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError

DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")
"""The GPU compiler's flags for equal bits run after run; both exist in jaxlib 0.10 to 0.12. Without
the second, kernels are chosen by their speed of the day. An unknown flag would end the process."""

MEMORY = "0.92"
"""Share of a GPU's memory that jax takes; its own is three quarters."""

_KEPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}
"""Parameters of glibc's mallopt(3), and their values, for memory that is kept once it is had."""

_TPU_CHIPS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
_GOOGLE = "0x1ae0"
_PLUGINS = {"gpu": ("jax-cuda13-plugin", "jax-cuda12-plugin"), "tpu": ("libtpu",)}
_WANTS = {"gpu": "'.[cuda13]' ('.[cuda12]' for drivers older than 580)", "tpu": "'.[tpu]'"}
_NAMES = {"gpu": "NVIDIA GPU", "tpu": "TPU"}
_JAX_NAMES = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}


_COMPILING_FOR: ContextVar[str | None] = ContextVar("compiling_for", default=None)


def target() -> str:
    """The platform that programs are traced for, cpu, gpu or tpu: jax's own, unless another is
    compiled for.
    """
    import jax

    return _COMPILING_FOR.get() or jax.default_backend()


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Trace for a platform that is not here: what is built in this context fits it."""
    token = _COMPILING_FOR.set(platform)
    try:
        yield
    finally:
        _COMPILING_FOR.reset(token)


def accelerators(root: Path = Path("/")) -> list[str]:
    """Which of `gpu` and `tpu` the machine whose /dev and /sys lie under `root` has."""
    found = []
    windows = (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/libcuda.so.1").exists()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if not hidden and (windows or any((root / "dev").glob("nvidia[0-9]*"))):
        found.append("gpu")
    chips = (root / "sys/bus/pci/devices").glob("*/vendor")
    if any(_text(v) == _GOOGLE and _text(v.with_name("device")) in _TPU_CHIPS for v in chips):
        found.append("tpu")
    return found


def plugins(kind: str) -> dict[str, str]:
    """Installed packages, with their versions, that let jax use a `gpu` or a `tpu`."""
    return {name: version for name in _PLUGINS[kind] if (version := _version(name))}


def choose_platform(
    platform: str = "auto", *, deterministic: bool = False, root: Path = Path("/")
) -> None:
    """Make jax compute on `platform`: auto, cpu, gpu or tpu.

    Sets JAX_PLATFORMS, so that an accelerator that does not start is an error and never a silent
    fall to the CPU, the share of a GPU's memory that jax takes, unless one is set, and the
    compiler's flags when `deterministic`. With auto, a JAX_PLATFORMS that is set already is
    obeyed. Raises ConfigError for an accelerator that is absent, or that is here while its package
    is not.
    """
    given = os.environ.get("JAX_PLATFORMS", "")
    if platform == "auto" and given:
        chosen = "gpu" if "cuda" in given or "gpu" in given else ""
    else:
        here = accelerators(root)
        chosen = platform if platform != "auto" else next(iter(here), "")
        if chosen not in (*_PLUGINS, "cpu", ""):
            raise ConfigError("platform", f"{chosen!r} is none; use auto, cpu, gpu or tpu")
        if chosen in _PLUGINS:
            _check(chosen, here)
        if chosen:
            _configure("jax_platforms", _JAX_NAMES.get(chosen, chosen))
    _give_threads()
    if chosen in ("cpu", ""):
        _keep_memory()
    if chosen == "gpu" and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", MEMORY)
    if deterministic and chosen == "gpu":
        flags = os.environ.get("XLA_FLAGS", "")
        new = [flag for flag in DETERMINISTIC if flag.partition("=")[0] not in flags]
        os.environ["XLA_FLAGS"] = " ".join([*filter(None, [flags]), *new])


def check_platform(asked: str, kind: str, where: str = "this") -> None:
    """Raise ConfigError where a run computes on something else than `where` asks for.

    asked: the run's key `platform`. kind: cpu, gpu or tpu.
    """
    if asked not in ("auto", kind):
        what = f"{asked} is not what {where} asks for, which is {kind}; use platform={kind}"
        raise ConfigError("platform", what)


def _give_threads() -> None:
    """Let XLA have threads enough for its fake CPU devices.

    A device may wait in two collectives at once; with as many threads as devices, all of them can
    end up waiting for each other, and XLA ends the process after 40 s. It reads NPROC for their
    number.
    """
    found = re.search(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if found and int(found[1]) > 1:
        os.environ.setdefault("NPROC", str(4 * int(found[1])))


def _keep_memory() -> None:
    """Let glibc keep what it freed.

    XLA asks for a step's whole memory anew in each step, on the CPU, and glibc hands such pieces
    back to the kernel: a step of a small model then touches 100 MB of new pages, an eighth of its
    time. What the environment says of malloc is left as it is; other C libraries know no mallopt.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for parameter, value in _KEPT.values():
        libc.mallopt(parameter, value)


def use_compile_cache() -> Path | None:
    """Keep compiled programs in the user's own cache, and return where; None when that is unsafe.

    Whoever can write there can run code in our process, so the folder is 0700 and ours. Programs
    for a CPU fit that CPU alone, so the name holds its features: home folders are often shared.
    """
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(given)
    folder = compile_cache()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            return None
        folder.chmod(0o700)
        if not os.access(folder, os.W_OK):
            return None
    except OSError:
        return None  # a read-only home: the run is slower to start, and no worse
    _configure("jax_compilation_cache_dir", str(folder))
    return folder


def compile_cache() -> Path:
    """The folder of compiled programs for this user, this jaxlib and this kind of CPU."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache"
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = f"{_version('jaxlib')} {machine.machine()} {features}"
    return Path(caches) / "jaxlm" / f"compiled-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def _check(chosen: str, here: list[str]) -> None:
    if chosen not in here:
        raise ConfigError(
            f"platform={chosen}", f"this machine shows no {_NAMES[chosen]}; use platform=cpu"
        )
    if not plugins(chosen):
        raise ConfigError(
            "platform",
            f"this machine has {_NAMES[chosen]} hardware, but jax is installed for the CPU alone; "
            f"in the checkout, pip install -e {_WANTS[chosen]}; or write platform=cpu, after verbs "
            "other than train --platform cpu",
        )


def _configure(option: str, value: str) -> None:
    os.environ[option.upper()] = value
    jax: Any = sys.modules.get("jax")
    if jax is not None:  # it has read the environment already
        jax.config.update(option, value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
