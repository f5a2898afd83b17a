"""A batch script for SLURM (sbatch(1), srun(1)), with one process for each GPU or for each node."""

import re
from typing import NamedTuple

from jaxlm.core.errors import ConfigError
from jaxlm.core.platform import check_platform
from jaxlm.launch import task
from jaxlm.launch.task import Task

SIGNAL = 180
"""Seconds before the end of its time that a run is asked to stop; SLURM may be 60 early."""
_TIME = re.compile(r"(?:(\d{1,6})-)?(\d{1,8})(?::(\d+))?(?::(\d+))?", re.ASCII)
_WORD = r"[\w.,:@%+/=*\[\]-]+"
_OPTION = rf"--[a-z][\w-]*(={_WORD})?|-[A-Za-z]({_WORD})?"
_LEAVE = "leave it out, or edit what --out=FILE writes"
_LOG = f"the log is NAME-JOB.log, after name=NAME; {_LEAVE}"
_TASKS = f"processes are as many as --nodes and --one-process-per make; {_LEAVE}"
_GPUS = "write --gpus-per-node=[TYPE:]N instead"
_END = f"a run that is asked to stop saves, and the script requeues it; {_LEAVE}"
CHOSEN = {
    "account": "write --account=NAME instead",
    "array": "a run is one job; launch another one with another name=NAME",
    "chdir": "the job works in the folder that this is run in; leave it out",
    "error": _LOG,
    "gpu-bind": f"the processes of a node share its GPUs out; {_LEAVE}",
    "gpus": _GPUS,
    "gpus-per-node": _GPUS,
    "gpus-per-socket": _GPUS,
    "gpus-per-task": _GPUS,
    "job-name": "write name=NAME after train instead",
    "no-requeue": _END,
    "nodes": "write --nodes=N instead",
    "ntasks": _TASKS,
    "ntasks-per-core": _TASKS,
    "ntasks-per-gpu": _TASKS,
    "ntasks-per-node": _TASKS,
    "ntasks-per-socket": _TASKS,
    "open-mode": f"a job that starts more than once adds to its log; {_LEAVE}",
    "output": _LOG,
    "partition": "write --partition=NAME instead",
    "requeue": _END,
    "signal": _END,
    "time": "write --time=HOURS:MINUTES:SECONDS instead",
    "wrap": "what is run is what follows --; leave it out",
}
"""Options of sbatch that the script has, or counts on the absence of, and what to write instead."""
LETTERS = {
    "A": "account",
    "D": "chdir",
    "G": "gpus",
    "J": "job-name",
    "N": "nodes",
    "a": "array",
    "e": "error",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "t": "time",
}
"""How sbatch calls some of them for short."""
ADVICE = "run this where the cluster's jobs are submitted (Debian's package is slurm-client)"


class Layout(NamedTuple):
    """What sbatch is asked for; what is None is the cluster's default."""

    nodes: int
    gpus_per_node: str
    """A number, or TYPE:NUMBER; 0 computes on the CPU."""
    one_process_per: str
    """gpu or node."""
    time: str
    partition: str | None
    account: str | None
    container: str | None
    """An image for pyxis (a name of a registry, or a .sqsh file) or Apptainer (a .sif file, or
    docker://...)."""
    container_mounts: str | None
    sbatch: tuple[str, ...]
    """Other options of sbatch, as they are."""
    python: str


def write(run: Task, layout: Layout) -> str:
    """The batch script. Raises ConfigError for what sbatch would refuse, or could not work."""
    check(layout)
    count = gpus(layout)
    check_platform(run.config.platform, "gpu" if count else "cpu")
    task.check_devices(run, layout.nodes * max(count, 1), "--nodes and --gpus-per-node")
    each = layout.one_process_per == "gpu"
    return task.render(
        "slurm.sbatch",
        made_by=run.made_by,
        name=run.config.name,
        layout=layout,
        gpus=count,
        tasks=count if each else 1,
        each=each,
        kind=_kind(layout.container),
        signal=SIGNAL,
        command=run.command([layout.python, "-m", "jaxlm"]),
        saved=task.SAVED,
        again=" | ".join(map(str, (*task.AGAIN, 137))),
        restarts=task.RESTARTS,
    )


def submit(text: str) -> int:
    """Give the script to sbatch, which prints the job's number."""
    return task.submit(["sbatch"], text, ADVICE)


def check(layout: Layout) -> None:
    """Raise ConfigError for an option that sbatch would not read."""
    number = r"([A-Za-z][\w.-]*:)?(0|[1-9]\d{0,6})"
    task.check_word("--gpus-per-node", layout.gpus_per_node, number, "8 or h100:8")
    task.check_word("--python", layout.python, r".*\S.*", "/opt/jaxlm/bin/python")
    task.check_word("--partition", layout.partition, _WORD, "gpu")
    task.check_word("--account", layout.account, _WORD, "lab")
    task.check_word("--container-mounts", layout.container_mounts, _WORD, "/data:/data")
    for option in layout.sbatch:
        task.check_word("--sbatch", option, _OPTION, "--sbatch=--qos=high")
        _check_open(option)
    if layout.one_process_per not in ("gpu", "node"):
        raise ConfigError("--one-process-per", f"{layout.one_process_per!r}: use gpu or node")
    if layout.one_process_per == "gpu" and not gpus(layout):
        raise ConfigError("--one-process-per", "gpu needs some; use node, or --gpus-per-node 8")
    if layout.container_mounts and not layout.container:
        raise ConfigError("--container-mounts", "is of a container; add --container IMAGE")
    if minutes(layout.time) * 60 <= 2 * SIGNAL:
        what = f"{layout.time} leaves no time to train: a run is asked to stop {SIGNAL} s before"
        raise ConfigError("--time", f"{what} the end; use 1:00:00")


def _check_open(option: str) -> None:
    """Raise ConfigError for an option of sbatch that the script has, with what to write instead."""
    name, _, value = option.removeprefix("--").partition("=")
    if not option.startswith("--"):
        name = LETTERS.get(option[1], option)
    if name in ("gres", "tres-per-task") and "gpu" in value:
        name = "gpus"
    # the beginning of a name, where it is that of no other, is the name to sbatch
    meant = [name] if name in CHOSEN else [each for each in CHOSEN if each.startswith(name)]
    if meant:
        raise ConfigError("--sbatch", f"{option}: {CHOSEN[meant[0]]}")


def gpus(layout: Layout) -> int:
    """Of each node."""
    return int(layout.gpus_per_node.rpartition(":")[2])


def minutes(time: str) -> float:
    """The minutes of one of sbatch's forms: minutes, minutes:seconds, hours:minutes:seconds,
    days-hours, days-hours:minutes, days-hours:minutes:seconds. Raises ConfigError for others.
    """
    found = _TIME.fullmatch(time)
    numbers = [int(part) for part in found.groups()[1:] if part is not None] if found else []
    with_days = found is not None and found[1] is not None
    if not found or any(n >= 60 for n in numbers[1:]) or (with_days and numbers[0] >= 24):
        what = f"{time!r} is no time of SLURM's; write hours:minutes:seconds or days-hours"
        raise ConfigError("--time", f"{what}, as in 12:00:00 or 2-0")
    units = (60, 1, 1 / 60) if with_days or len(numbers) == 3 else (1, 1 / 60)
    days = int(found[1]) if with_days else 0
    return days * 1440 + sum(n * unit for n, unit in zip(numbers, units, strict=False))


def _kind(container: str | None) -> str:
    if container is None:
        return ""
    task.check_word("--container", container, r"[\w.,:@%+/=#-]*\w", "jaxlm.sif")
    apptainer = container.endswith(".sif") or "://" in container
    return "apptainer" if apptainer else "pyxis"
