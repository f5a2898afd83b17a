"""Matrix products alone, of XLA and of torch in turn: what a step's ratio can be at best."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from measure.pipe import Answer, cores


def products(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Giga-operations a second of x [M, K] with W [K, N], forward and both gradients, float32.

    Each of shape["sizes"] is M, K, N. With torch here, its own in turn and the median ratio of the
    seconds, torch's over XLA's: under 1 XLA is slower.
    """
    sides: dict[str, Callable[..., Any]] = {"xla": _xla}
    if importlib.util.find_spec("torch") is not None:
        sides["torch"] = _torch
    figures: Answer = {}
    ratios = []
    for rows, inner, columns in shape["sizes"]:
        calls = {name: make(rows, inner, columns) for name, make in sides.items()}
        seconds = {name: [] for name in calls}
        for _ in range(max(rounds, 3) * 4):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
        work = 3 * 2 * rows * inner * columns
        for name, taken in seconds.items():
            key = f"gflops_{name}_{rows}x{inner}x{columns}"
            figures[key] = work / statistics.median(taken) / 1e9
        if "torch" in seconds:
            pairs = zip(seconds["torch"], seconds["xla"], strict=True)
            ratios.append(statistics.median(theirs / ours for theirs, ours in pairs))
    if ratios:
        figures["ratio"] = statistics.geometric_mean(ratios)
    return figures


def _arrays(rows: int, inner: int, columns: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    sizes = ((rows, inner), (inner, columns), (rows, columns))
    return tuple(rng.normal(size=size).astype(np.float32) for size in sizes)


def _xla(*size: int) -> Callable[[], Any]:
    x, kernel, dy = (jnp.asarray(a) for a in _arrays(*size))
    run = jax.jit(lambda x, kernel, dy: (x @ kernel, dy @ kernel.T, x.T @ dy))
    jax.block_until_ready(run(x, kernel, dy))
    return lambda: jax.block_until_ready(run(x, kernel, dy))


def _torch(*size: int) -> Callable[[], Any]:
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores())
    x, kernel, dy = (torch.from_numpy(a) for a in _arrays(*size))

    def run() -> Any:
        return x @ kernel, dy @ kernel.T, x.T @ dy

    run()
    return run
