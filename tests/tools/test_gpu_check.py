"""tools/gpu_check.py: what it can check on a CPU, and that it finds what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.objectives.kinds import TRAINS

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def gpu_check(*arguments, **environment):
    command = [sys.executable, str(TOOLS / "gpu_check.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, **environment}
    )


@pytest.mark.once
def test_the_portable_parts_pass_on_a_cpu(tmp_path):
    done = gpu_check("--cpu", "--alone", "--rounds", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(tmp_path.glob("gpu_check-*.json")).read_text())
    names = [line["check"] for line in found["checks"]]
    assert all(line["passed"] for line in found["checks"]) and found["failed"] == {}
    assert any("chunked, packed" in name for name in names)
    stepped = [name.split()[3] for name in names if name.startswith("two steps of ")]
    assert stepped == [*TRAINS][::3]
    assert any("adapters over a base in nf4" in name for name in names)
    assert found["measured"] == [path.name for path in tmp_path.glob("tiny-*.json")]


def test_without_a_gpu_it_says_so():
    done = gpu_check(CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 0 and "no GPU here" in done.stdout


def test_a_kernel_that_looks_ahead_fails(monkeypatch):
    from measure import checks

    def ahead(q, k, v, segments, how):
        return checks.BACKENDS["full"](q, k, v, segments, how._replace(causal=False))

    monkeypatch.setattr(checks, "usable", lambda *_: ["ahead"])
    monkeypatch.setitem(checks.BACKENDS, "ahead", ahead)
    found = list(checks.numerics(32))
    assert {line["passed"] for line in found if "both ways" not in line["check"]} == {False}
    assert {line["passed"] for line in found if "both ways" in line["check"]} == {True}


def test_a_check_that_cannot_run_has_failed(monkeypatch):
    from measure import checks

    def broken(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(checks, "usable", broken)
    monkeypatch.setattr(checks, "objectives", lambda: iter(()))
    monkeypatch.setattr(checks, "tuning", lambda: iter(()))
    monkeypatch.setattr(checks, "step_memory", lambda case: iter(()))
    lines = checks.run({"case": "tiny"})["checks"]
    assert [line["value"] for line in lines if not line["passed"]] == [
        "RuntimeError: no such kernel"
    ]
