"""The processes of a run find each other, and prove that they are alike, before it costs much."""

import jax

from jaxlm.config.load import flat
from jaxlm.config.schema import RunConfig
from jaxlm.core import distributed
from jaxlm.core.errors import ClusterError
from jaxlm.core.job import Told, find
from jaxlm.observe import record


def join(config: RunConfig, told: Told | None, timeout: float) -> list[str]:
    """Start jax on all processes of the job, if there is one; a line about each, at process 0.

    told: what the command line says of the job; else the environment does. timeout: seconds for all
    to come. They must have the same configuration (but for the folder of the cache), versions,
    code and kind of device, and a sum over all devices must be right. Raises ClusterError, on all,
    naming the process that is missing or differs.
    """
    lines: list[str] = []
    job = find(told)
    if job is None:
        distributed.check_complete()
        return lines
    keys = {key: str(value) for key, value in flat(config).items() if key != "data.cache"}
    facts = record.versions() | record.code_state() | keys
    distributed.initialize(job, facts, timeout=timeout, say=lines.append)
    distributed.check_complete()
    local = jax.local_devices()
    distributed.compare(
        "devices", {"kind of device": local[0].device_kind, "count of devices": len(local)}
    )
    check_sum()
    lines.append(
        f"{job.processes} processes ({job.told_by}), {jax.device_count()} x {local[0].device_kind}"
    )
    return lines


def check_sum() -> None:
    """Raise ClusterError where a sum over all devices is not what it should be."""
    total, expected = distributed.device_sum()
    if total != expected:
        what = f"a sum over all {jax.device_count()} devices is {total}, not {expected}"
        raise ClusterError("devices", f"{what}; run `jaxlm doctor` on each host")
