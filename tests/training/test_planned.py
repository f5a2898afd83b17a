"""A run keeps what the planner says of its step, where the planner knows its devices."""

import json

import jax
import pytest

from jaxlm import cli
from jaxlm.observe import report
from jaxlm.plan.devices import machine
from jaxlm.training import planned

TINY = [
    *("model.layers=1", "model.embed=32", "model.heads=2", "tokenizer.vocab=300", "length=64"),
    *("batch=8", "steps=2", "log.every=1", "platform=cpu", "checkpoint.every=0"),
]

pytestmark = pytest.mark.once


@pytest.mark.parametrize("known", [True, False])
def test_a_run_keeps_its_plan(tmp_path, monkeypatch, known):
    if known:  # a CPU is not: let it be taken for GPUs
        monkeypatch.setattr(planned.devices, "of", lambda found: machine(f"h200:{len(found)}"))
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    given = [f"data.train={tmp_path}/a.txt", f"data.cache={tmp_path}/c", f"run_dir={tmp_path}/run"]
    assert cli.run(["train", *given, *TINY]) == 0
    found = json.loads((tmp_path / "run/record.json").read_text())["planned"]
    assert len(jax.devices()) == 8 and found.keys() == (
        {"step_seconds", "memory_bytes"} if known else set()
    )
    assert not known or min(found.values()) > 0
    page = report.write(tmp_path / "run").read_text()
    assert ("memory of a device" in page) == known
