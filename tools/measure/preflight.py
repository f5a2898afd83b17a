"""How long the processes of a job take to find each other and to prove that they are alike."""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from measure.pipe import Answer, SideError, free_port, python_path

FLAGS = "--xla_force_host_platform_device_count=1"


def preflight(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Seconds of `training.joining.join` for each number of processes here, with one CPU device
    each: of the last to be through, after what it imports; the median of rounds.
    """
    found: Answer = {}
    for count in shape["processes"]:
        each = [_joined(count) for _ in range(rounds)]
        found[f"seconds_{count}_processes"] = statistics.median(each)
    return found


def _joined(count: int) -> float:
    own = {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()}
    own["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
    own["JAX_NUM_PROCESSES"] = str(count)
    line = [sys.executable, "-m", "measure.preflight"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(line, env=os.environ | own | {"JAX_PROCESS_ID": str(i)}, **pipes)
        for i in range(count)
    ]
    ended = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise SideError(next(error for _, error in ended if error).strip().splitlines()[-1])
    return max(json.loads(out.splitlines()[-1]) for out, _ in ended)


def main() -> None:
    """One of the processes: the seconds of its join, on the last line."""
    from jaxlm.config.load import load
    from jaxlm.core import distributed
    from jaxlm.training.joining import join

    config = load("quickstart", ["platform=cpu"])
    start = time.monotonic()
    join(config, None, distributed.TIMEOUT)
    print(f"\n{time.monotonic() - start}", flush=True)
    distributed.exit_now(0)


if __name__ == "__main__":
    main()
