"""A run that only saves: each step is a function of the one before, so that the truth is known.

`python saver.py FOLDER KILLS SEED` forks a child that restores, checks and saves step after step,
kills it with SIGKILL at a random instant, again and again, and lets the last one finish. Forking
before any device is touched spares each child the imports.
"""

import os
import random
import signal
import sys
import time
import traceback
import warnings

import jax
import numpy as np

from jaxlm.checkpoint import inspect
from jaxlm.checkpoint.commit import Checkpoints

SIZE, STEPS_AFTER = 1 << 17, 3


def state(step: int) -> dict[str, np.ndarray]:
    words = np.arange(SIZE, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(step)
    return {"words": words, "floats": (words >> 8).astype(np.float32) * np.float32(step)}


def run(folder: str, ready: int, last: int | None) -> None:
    checkpoints = Checkpoints(folder, keep=2, keep_every=5)
    for step in inspect.steps(folder):
        assert not (found := inspect.verify(folder, step).problems), found
    step = 0
    if checkpoints.latest() is not None:
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
            for name, x in state(0).items()
        }
        step, params, _, meta = checkpoints.restore(like)
        assert meta == {"position": step}
        assert all(np.array_equal(params[name], x) for name, x in state(step).items())
    os.write(ready, f"{step}\n".encode())
    end = step + STEPS_AFTER if last is None else last
    while step < end or last is None:
        step += 1
        checkpoints.save(step, jax.device_put(state(step)), (), {"position": step})
        os.write(ready, b".\n")
    checkpoints.wait()


def child(folder: str, last: int | None, saves: int = 0) -> tuple[int, int]:
    """(pid, the step it restored), once it has started so many saves."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            run(folder, writer, last)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    lines = os.fdopen(reader)  # left open: the child writes on
    step = int(lines.readline() or -1)
    for _ in range(saves):
        lines.readline()
    return pid, step


def main(folder: str, kills: int, seed: int) -> None:
    warnings.simplefilter("ignore")  # jax warns of forks; no device has been touched here
    rng, restored = random.Random(seed), [0]
    for _ in range(kills):
        pid, step = child(folder, None, rng.randint(0, 4))
        assert step >= restored[-1], (step, restored)
        restored.append(step)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert status == signal.SIGKILL, status
    pid, step = child(folder, (inspect.steps(folder) or [0])[-1] + STEPS_AFTER)
    assert os.waitpid(pid, 0)[1] == 0
    print(*restored, step, inspect.steps(folder)[-1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
