"""Options that let XLA talk over the network while it computes, by kind of device.

They go to jax.jit as compiler_options: an unknown name in XLA_FLAGS would end the process, here it
is found by compiling nothing much with it, and left out. Names change from jaxlib to jaxlib.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax

Options = dict[str, bool | int | str]

GIB = 2**30
TABLE: tuple[tuple[str, str, Options], ...] = (
    (
        "gpu",
        "",
        {
            "xla_gpu_enable_latency_hiding_scheduler": True,
            # Collectives of one layer become one: with less the first bytes wait for many starts.
            "xla_gpu_all_gather_combine_threshold_bytes": GIB,
            "xla_gpu_all_reduce_combine_threshold_bytes": GIB,
            "xla_gpu_reduce_scatter_combine_threshold_bytes": GIB,
            # The next layer's parameters come while this one computes: to jaxlib 0.10, and from it.
            "xla_gpu_enable_pipelined_all_gather": True,
            "xla_gpu_enable_pipelined_all_reduce": True,
            "xla_gpu_enable_pipelined_reduce_scatter": True,
            "xla_gpu_pipeline_all_gather": "COLLECTIVE_PIPELINING_MODE_ON",
            "xla_gpu_pipeline_all_reduce": "COLLECTIVE_PIPELINING_MODE_ON",
            "xla_gpu_pipeline_reduce_scatter": "COLLECTIVE_PIPELINING_MODE_ON",
            "xla_gpu_enable_while_loop_double_buffering": True,
        },
    ),
    (
        "tpu",
        "",
        {
            "xla_enable_async_all_gather": True,
            "xla_tpu_enable_async_collective_fusion": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
            "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
            "xla_tpu_overlap_compute_collective_tc": True,
            # Of the gradient between slices.
            "xla_tpu_enable_data_parallel_all_reduce_opt": True,
            "xla_tpu_data_parallel_opt_different_sized_ops": True,
        },
    ),
    ("tpu", "v6", {"xla_tpu_scoped_vmem_limit_kib": 98304}),
)
"""(platform, part of the device's kind, options). NVIDIA: JAX's "GPU performance tips" and
JAX-Toolbox's GPU performance page; Google: MaxText's benchmarks/xla_flags_library.py."""
_UNKNOWN = re.compile("No such compile option|is not a valid")
_VARIABLES = "XLA_FLAGS", "LIBTPU_INIT_ARGS"


def said(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the environment tells the compiler, by variable, but for where it writes."""
    words = {name: environment.get(name, "").split() for name in _VARIABLES}
    return {
        name: " ".join(sorted(word for word in each if "_dump_" not in word))
        for name, each in words.items()
    }


class Chosen(NamedTuple):
    """How several devices' programs are compiled."""

    options: Options
    unknown: tuple[str, ...] = ()
    """What this jaxlib does not know."""
    given: tuple[str, ...] = ()
    """What the environment says, which counts."""

    def line(self) -> str:
        """What is used and what is not; empty where nothing was to choose."""
        used = [f"{name}={_written(value)}" for name, value in self.options.items()]
        parts = [f"compiled with {', '.join(used)}"] if used else []
        if self.unknown:
            parts.append(f"unknown to jaxlib {jax.lib.__version__}: {', '.join(self.unknown)}")
        if self.given:
            parts.append(f"as the environment says: {', '.join(self.given)}")
        return "; ".join(parts)


def choose(
    devices: Sequence[Any],
    table: Sequence[tuple[str, str, Options]] = TABLE,
    environment: Mapping[str, str] = os.environ,
) -> Chosen:
    """The options for programs over these devices; none for one device.

    An option that XLA_FLAGS or LIBTPU_INIT_ARGS names is left to it.
    """
    if len(devices) < 2:
        return Chosen({})
    options = wanted(devices[0].platform, devices[0].device_kind, table)
    said = " ".join(environment.get(name, "") for name in _VARIABLES)
    given = tuple(name for name in options if re.search(rf"--{name}\b", said))
    rest = {name: value for name, value in options.items() if name not in given}
    odd = {} if knows(**rest) else rest
    unknown = tuple(name for name, value in odd.items() if not knows(**{name: value}))
    return Chosen({n: v for n, v in rest.items() if n not in unknown}, unknown, given)


def wanted(platform: str, kind: str, table: Sequence[tuple[str, str, Options]] = TABLE) -> Options:
    """What the table says of several devices of a kind, known to their compiler or not."""
    found: Options = {}
    for where, part, options in table:
        found |= options if where == platform and part in kind else {}
    return found


def refused(error: Exception, options: Options) -> set[str]:
    """Of the options those that a compiler's error says it does not know; none of another error."""
    said = str(error)
    if not _UNKNOWN.search(said):
        return set()
    return {name for name in options if re.search(rf"\b{name}\b", said)}


@cache
def knows(**options: bool | int | str) -> bool:
    """Whether the compiler takes all of these options."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError as error:
        if _UNKNOWN.search(str(error)):
            return False
        raise
    return True


def _written(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
