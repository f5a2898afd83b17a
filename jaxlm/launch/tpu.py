"""A script that asks Google Cloud for TPU VMs in its queue, which train once they are here."""

import re
from typing import NamedTuple

from jaxlm.core.errors import ConfigError
from jaxlm.core.platform import check_platform
from jaxlm.launch import task
from jaxlm.launch.task import Task

LONGEST = 56
"""Of a node's name: those of several slices get a number each."""
ADVICE = "install the Google Cloud CLI (cloud.google.com/sdk/docs/install)"


SQUARES = (1, 4, 8, 16, 32, 64, 128, 256)
"""Chips of the slices that are cut out of a plane."""


class Kind(NamedTuple):
    """A generation of TPUs (cloud.google.com/tpu/docs/runtimes, .../docs/v2 to v6e)."""

    runtime: str
    """The software of its VMs."""
    counted: int
    """What the number in its type counts, for each device of jax: cores where jax sees both cores
    of a chip as one."""
    sizes: tuple[int, ...] = ()
    """Numbers that there are; none: multiples of 8, which are whole VMs."""


KINDS = {
    "v2": Kind("tpu-ubuntu2204-base", 1, (8, 32, 128, 256, 512)),
    "v3": Kind("tpu-ubuntu2204-base", 1, (8, 32, 64, 128, 256, 512, 1024, 2048)),
    "v4": Kind("tpu-ubuntu2204-base", 2),
    "v5litepod": Kind("v2-alpha-tpuv5-lite", 1, SQUARES),
    "v5p": Kind("v2-alpha-tpuv5", 2),
    "v6e": Kind("v2-alpha-tpuv6e", 1, SQUARES),
}


class Layout(NamedTuple):
    """What is asked for, named as gcloud names it; what is None is left out."""

    accelerator_type: str
    """Such as v5p-256."""
    node_count: int
    """Slices."""
    zone: str
    project: str | None
    runtime_version: str | None
    spot: bool
    image: str
    nfs: str
    """SERVER:/SHARE that all VMs mount: the run's folder lies there."""


def write(run: Task, layout: Layout) -> str:
    """The script. Raises ConfigError for what Google Cloud would refuse, or could not work."""
    kind, devices = _kind(layout.accelerator_type)
    name = task.label(run.config.name, LONGEST)
    task.check_word("--zone", layout.zone, r"[a-z]+-[a-z]+\d+-[a-z]", "us-east5-a")
    task.check_word("--nfs", layout.nfs, r"[\w.-]+:/[\w./-]*", "10.0.0.2:/share")
    task.check_word("--image", layout.image, task.IMAGE, "REGISTRY/jaxlm:1")
    task.check_word("--project", layout.project, r"[\w.:-]+", "lab-1")
    task.check_word("--runtime-version", layout.runtime_version, r"[\w.:-]+", kind.runtime)
    where = "--accelerator-type and --node-count"
    check_platform(run.config.platform, "tpu")
    task.check_devices(run, layout.node_count * devices, where, layout.node_count)
    task.check_shared(run.config, task.WORKSPACE)
    sent, config = run.sent()
    return task.render(
        "queued_resource.sh",
        made_by=run.made_by,
        name=name,
        layout=layout,
        runtime=layout.runtime_version or kind.runtime,
        where=f"--zone={layout.zone}" + (f" --project={layout.project}" if layout.project else ""),
        registry=_registry(layout.image),
        command=sent.command([]),
        config=config,
        sent=task.SENT,
        workspace=task.WORKSPACE,
        saved=task.SAVED,
        again=" | ".join(map(str, task.AGAIN)),
        restarts=task.RESTARTS,
    )


def submit(text: str) -> int:
    """Run the script, which asks with gcloud."""
    task.require("gcloud", ADVICE)
    return task.submit(["bash"], text, ADVICE)


def _registry(image: str) -> str:
    """Google's registry that an image is in, which docker needs leave for; "" of another's."""
    host = image.partition("/")[0]
    return host if host.endswith(("pkg.dev", "gcr.io")) else ""


def _kind(accelerator: str) -> tuple[Kind, int]:
    """The generation of a type, and its devices."""
    found = re.fullmatch(r"([a-z0-9]+)-([1-9]\d{0,6})", accelerator, re.ASCII)
    kind = KINDS.get(found[1]) if found else None
    if found is None or kind is None:
        known = ", ".join(f"{name}-N" for name in KINDS)
        what = f"{accelerator!r} is no type of TPU that is known here"
        raise ConfigError("--accelerator-type", f"{what}; use {known}")
    number = int(found[2])
    if number not in kind.sizes if kind.sizes else number % 8:
        sizes = ", ".join(map(str, kind.sizes)) or "a multiple of 8"
        what = f"there is no {accelerator}; write {found[1]}-N, N being {sizes}"
        raise ConfigError("--accelerator-type", what)
    return kind, number // kind.counted
