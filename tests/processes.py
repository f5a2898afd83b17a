"""`jaxlm` as a person runs it: real processes on a few fake CPU devices, on text made here."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY = (
    "batch=8",
    "length=32",
    "model.layers=2",
    "model.embed=32",
    "model.heads=4",
    "model.dropout=0.1",
    "tokenizer.vocab=300",
    "log.every=1",
    "platform=cpu",
)
"""A model that takes milliseconds a step; dropout, so that randomness is resumed too."""


def words(folder: Path, *more: str, name: str = "run") -> list[str]:
    """The words of `jaxlm train` for a tiny run in folder/name on the text that lies in folder."""
    text = folder / "text"
    if not text.exists():
        text.mkdir()
        for index, part in enumerate(Path(subprocess.__file__).read_text().split("\n\n\n")):
            (text / f"{index:03}.txt").write_text(part)
    paths = (f"data.train={text}", f"data.cache={folder}/cache", f"run_dir={folder}/{name}")
    return ["train", *TINY, *paths, *more]


def start(
    *argv: str,
    devices: int = 1,
    program: tuple[str, ...] = ("-m", "jaxlm"),
    start_new_session: bool = False,
    **environment: str,
) -> subprocess.Popen[str]:
    """`python -m jaxlm`, or another program, with these words, its output captured."""
    ours = {name: value for name, value in os.environ.items() if name != "NPROC"}
    kept = [flag for flag in ours.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags = " ".join((*kept, f"--xla_force_host_platform_device_count={devices}"))
    return subprocess.Popen(
        [sys.executable, *program, *argv],
        env=ours | {"XLA_FLAGS": flags} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    )


def run(*argv: str, devices: int = 1, **more: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `start`, waited for."""
    process = start(*argv, devices=devices, **more)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def cluster(
    count: int,
    *argv: str,
    devices: int,
    program: tuple[str, ...] = ("-m", "jaxlm"),
    own: tuple[tuple[str, ...], ...] = (),
    meanwhile: Callable[[list[subprocess.Popen[str]]], None] = lambda started: None,
) -> list[tuple[int, str, str]]:
    """`run` in `count` processes that make one job of gloo, each with so many devices.

    own: more words for each process. meanwhile: called with them while they run.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        start(
            *argv,
            *(own[index] if own else ()),
            devices=devices,
            program=program,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(count),
            JAX_PROCESS_ID=str(index),
        )
        for index in range(count)
    ]
    meanwhile(started)
    outputs = [process.communicate(timeout=600) for process in started]
    return [(p.returncode, out, err) for p, (out, err) in zip(started, outputs, strict=True)]


def rows(folder: Path, name: str = "run") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none before there is one."""
    path = folder / name / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(folder: Path, name: str = "run") -> list[float]:
    """The loss of every step."""
    return [row["loss"] for row in rows(folder, name) if "loss" in row]
