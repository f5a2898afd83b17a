"""tools/bench.py beside peft and TRL, on a miniature: what it does on a GPU, in the same lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("torch", "transformers", "peft", "trl"):
    pytest.importorskip(name)
pytestmark = pytest.mark.peers

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench.py"


def test_a_step_with_adapters_runs_beside_peft_and_trl(tmp_path):
    words = ["lora-tiny", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(next(tmp_path.iterdir()).read_text())
    sides = result["sides"]
    assert result["failed"] == {} and sides.keys() == {"jaxlm", "torch eager", "trl"}
    assert len({side["parameters"] for side in sides.values()}) == 1
    for side in sides.values():
        assert side["last_loss"] < side["first_loss"] and side["tokens_per_second"] > 0
    assert sides["trl"]["checkpointing"] is False and result["versions"].keys() >= {"peft", "trl"}
