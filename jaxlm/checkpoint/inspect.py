"""What lies in a folder of checkpoints, without the model, its configuration or a device."""

import json
from dataclasses import dataclass

from etils import epath

from jaxlm.checkpoint import files
from jaxlm.checkpoint.manifest import META, NAME, DamagedError, Manifest, chain, load
from jaxlm.core.errors import CheckpointError


@dataclass(frozen=True)
class Report:
    """What `verify` found: step, tensors and bytes read, and a line per problem."""

    step: int
    tensors: int
    nbytes: int
    problems: tuple[str, ...]


def steps(folder: epath.PathLike) -> list[int]:
    """Committed steps in RUN/checkpoints, ascending."""
    root = epath.Path(folder)
    if not root.exists():
        return []
    named = [path for path in root.iterdir() if path.name.isdecimal()]
    return sorted(int(path.name) for path in named if (path / NAME).exists())


def manifest(folder: epath.PathLike, step: int | None = None) -> Manifest:
    """The manifest of a committed step, the newest by default. Raises CheckpointError."""
    found = steps(folder)
    if not found:
        raise CheckpointError(str(folder), "holds no committed checkpoint; train first")
    if step is None:
        step = found[-1]
    if step not in found:
        named = ", ".join(map(str, found))
        raise CheckpointError(str(folder), f"holds no step {step}; use one of {named}")
    return load(epath.Path(folder) / str(step))


def digest(folder: epath.PathLike) -> tuple[int, str]:
    """(step, digest) of the newest committed checkpoint; equal for bit-equal runs on any mesh."""
    newest = manifest(folder)
    return newest.step, newest.digest


def verify(folder: epath.PathLike, step: int | None = None) -> Report:
    """Read every file and every array of a checkpoint and compare them with its manifest.

    Needs host memory for the largest array. Raises CheckpointError when there is no manifest.
    """
    recorded = manifest(folder, step)
    path = epath.Path(folder) / str(recorded.step)
    tensors = sum(len(item) for item in recorded.items.values())
    return Report(recorded.step, tensors, recorded.nbytes, tuple(problems(path, recorded)))


def problems(path: epath.Path, recorded: Manifest) -> list[str]:
    """A line per damaged file and per tensor that does not read back as it was saved."""
    from jaxlm.checkpoint import arrays  # not at the top: listing needs no jax
    from jaxlm.checkpoint.digest import host_digest

    found = files.problems(path, recorded, full=True)
    for item, tensors in recorded.items.items():
        for name, tensor in tensors.items():
            try:
                read = host_digest(arrays.read_host(path / item, name, tensor))
            except (ValueError, OSError) as error:
                reason = str(error).splitlines()[0][:120]
                found.append(f"tensor {item}/{name} cannot be read ({reason})")
                continue
            if read != tensor:
                found.append(f"tensor {item}/{name} is damaged (its digest differs)")
    try:
        position = json.loads((path / META).read_bytes()).get("position")
        if chain(recorded.items, position) != recorded.digest:
            found.append("the digests do not give the checkpoint's digest")
    except (ValueError, OSError) as error:
        found.append(f"file {META} cannot be read ({error})")
    return found


def table(folder: epath.PathLike) -> str:
    """A line per committed checkpoint: step, date (UTC), bytes, score and digest."""
    rows = [("step", "date", "size", "score", "digest")]
    for step in steps(folder):
        try:
            found = manifest(folder, step)
        except DamagedError:
            rows.append((str(step), "damaged", "", "", ""))
            continue
        score = "" if found.score is None else f"{found.score:.4f}"
        date = found.saved[:16].replace("T", " ")
        rows.append((str(step), date, f"{found.nbytes / 1e6:.1f} MB", score, found.digest[:16]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
