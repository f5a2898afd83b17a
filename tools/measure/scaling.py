"""The network's part of a step over simulated hosts, beside what the planner says of it."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.config.load import load
from jaxlm.plan import sketch
from jaxlm.plan.devices import Machine, devices
from jaxlm.plan.steptime import communication
from measure import network
from measure.pipe import Answer, SideError, python_path

PORT = 8476
FLAGS = "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"


def weak_scaling(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Seconds on the network in one step, measured and planned, for each number of hosts and speed.

    Each host is one process of `jaxlm train` with one CPU device and as many rows, whatever their
    number. Measured is what a step takes beyond the same hosts' step without a limit.
    """
    if why := network.reason():
        raise SideError(f"weak-scaling: {why}")
    found: Answer = {}
    off = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(Path(statistics.__file__).read_text())
        for count in shape["hosts"]:
            words = [*shape["words"], f"batch={shape['rows'] * count}", f"mesh.data={count}"]
            free = _seconds(folder, count, None, words, rounds * steps)
            for megabits in shape["megabits"]:
                measured = _seconds(folder, count, megabits, words, rounds * steps) - free
                plan = planned(count, megabits, words)
                of = f"{count}_hosts_{megabits}_megabits"
                found |= {f"seconds_network_{of}": measured, f"seconds_planned_{of}": plan}
                off.append(100 * abs(measured / plan - 1))
    return found | {"percent_off_worst": max(off)}


def planned(count: int, megabits: float, words: list[str]) -> float:
    """The planner's seconds on the network in one step of such a job."""
    config = sketch.resolved(load(None, [*words, "data.train=stdlib", "steps=1"]))
    rate = megabits / 8 * 1e6
    device = replace(devices()["cpu"], near=rate, near_size=1, far=rate)
    made = sketch.sketch(sketch.model(config, "cpu"), Machine(device, (count,)))
    return sum(communication(made.load, made.machine).values())


def _seconds(
    folder: Path, count: int, megabits: float | None, words: list[str], steps: int
) -> float:
    """The median seconds of a step, but for the first two."""
    run = folder / f"{count}-{megabits}"
    line = [sys.executable, "-m", "jaxlm", "train", *words, f"steps={steps + 2}", f"run_dir={run}"]
    line += [f"data.train={folder}/text.txt", f"data.cache={folder}/cache", "log.every=1"]
    line += ["--coordinator", f"{network.address(0)}:{PORT}", "--processes", str(count)]
    own = {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()}
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with network.hosts(count, megabits) as there:
        started = [
            subprocess.Popen([*host, *line, "--process", str(i)], env=os.environ | own, **pipes)
            for i, host in enumerate(there)
        ]
        errors = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        raise SideError(next(error for error in errors if error).strip().splitlines()[-1])
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return statistics.median(row["seconds"] for row in rows if "seconds" in row and row["step"] > 2)
