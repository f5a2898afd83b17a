"""Which GPUs of its host each process computes on, whoever started it.

One process for each GPU and one for all of a host's are both right, and so is everything between:
processes that see the same GPUs share them out evenly, and those that were given GPUs of their own
keep them. Device numbers do not tell the two apart, since a container counts its own from 0;
identities do.
"""

import os
import subprocess
from collections import defaultdict
from collections.abc import Sequence

from jaxlm.core.errors import ClusterError

_QUERY = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")


def visible(seconds: float = 30) -> tuple[str, ...]:
    """The identities of the NVIDIA GPUs that this process may use, in CUDA's order; none without a
    driver. Obeys CUDA_VISIBLE_DEVICES.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    every = tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
    if chosen is None:
        return every
    found: list[str] = []
    for word in filter(None, (part.strip() for part in chosen.split(","))):
        if word.isdecimal() and int(word) < len(every):
            found.append(every[int(word)])
        elif word.startswith(("GPU-", "MIG-")):
            found += [one for one in every if one.startswith(word)] or [word]
        else:
            break  # as CUDA: what comes after a number that is none is not seen
    return tuple(found)


def share(seen: Sequence[tuple[str, ...]]) -> list[tuple[int, ...] | None]:
    """Of the GPUs that each process sees, by their place among these, those that are its own.

    None: all that it sees. Raises ClusterError for GPUs that do not split evenly, and for one that
    two processes see among others that they do not.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    for process, gpus in enumerate(seen):
        for gpu in gpus:
            holders[gpu].append(process)
    found: list[tuple[int, ...] | None] = []
    for process, gpus in enumerate(seen):
        sharing = holders[gpus[0]] if gpus else [process]
        if other := next((p for gpu in gpus for p in holders[gpu] if seen[p] != gpus), None):
            what = f"sees GPUs of process {other} among its own {len(gpus)}"
            raise ClusterError(f"process {process}", f"{what}; give both the same, or none of them")
        if len(sharing) == 1:
            found.append(None)
            continue
        if len(gpus) % len(sharing):
            what = f"share {len(gpus)} GPUs of a host, which do not split over {len(sharing)}"
            names = ", ".join(map(str, sharing))
            raise ClusterError(f"processes {names}", f"{what}; start one for each GPU, or for all")
        own = len(gpus) // len(sharing)
        first = sharing.index(process) * own
        found.append(tuple(range(first, first + own)))
    return found
