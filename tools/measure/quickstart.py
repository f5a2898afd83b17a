"""What launch/quickstart.sh does once everything is installed: train the preset, write a sample,
tune it with adapters.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure.pipe import Answer

SAMPLE = ("--prompt", "def main(", "--max-tokens", "64", "--temperature", "0.8", "--top-p", "0.95")


def quickstart(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Seconds until the first loss and until the end of the first run, its validation loss, and the
    seconds of the second, with the percent of its answers that begin a function, before and after.

    Nothing is warm: no tokens, no compiled program. The first loss is when its row is on the disk.
    """
    with tempfile.TemporaryDirectory() as root:
        run = Path(root) / "run"
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": f"{root}/compiled",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
        }
        jaxlm = (sys.executable, "-m", "jaxlm")
        paths = (f"run_dir={run}", f"data.cache={root}/tokens")
        start = time.perf_counter()
        train = subprocess.Popen(
            (*jaxlm, "train", shape["preset"], *paths), env=environment, stdout=subprocess.DEVNULL
        )
        first = None
        while train.poll() is None:
            log = run / "metrics.jsonl"
            if first is None and log.exists() and log.stat().st_size:
                first = time.perf_counter() - start
            time.sleep(0.05)
        if train.returncode:
            raise RuntimeError(f"jaxlm train {shape['preset']} ended with {train.returncode}")
        sample = subprocess.run(
            (*jaxlm, "generate", str(run), *SAMPLE, "--seed", "1"),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        end = time.perf_counter() - start
        rows = read(run)
        tuned = Path(root) / "tuned"
        start = time.perf_counter()
        subprocess.run(
            (*jaxlm, "train", shape["second"], f"init={run}", f"run_dir={tuned}"),
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        second = time.perf_counter() - start
        answers = [row for row in read(tuned) if "samples_match" in row]
    scores = [r["validation_bits_per_byte"] for r in rows if "validation_bits_per_byte" in r]
    return {
        "first_loss_seconds": first,
        "seconds": end,
        "validation_bits_per_byte": scores[-1],
        "steps": rows[-1]["step"],
        "sample_characters": len(sample.stdout),
        "second_seconds": second,
        "percent_answered_before": 100 * answers[0]["samples_match"],
        "percent_answered_after": 100 * answers[-1]["samples_match"],
        "general_change": answers[-1]["general_change"],
    }


def read(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
