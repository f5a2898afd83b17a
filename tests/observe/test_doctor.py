"""The doctor names what does not fit together, says what to do, and exits with its code."""

import json
import os
import subprocess
import sys

import pytest

from jaxlm.core.errors import CONFIG, DONE
from jaxlm.observe import doctor

CUDA12, CUDA13 = {"jax-cuda12-plugin": "0.10.2"}, {"jax-cuda13-plugin": "0.10.2"}


@pytest.mark.parametrize(
    ("version", "packages", "level", "said"),
    [
        ("580.65.06", CUDA13, "OK", "580.65.06"),
        ("550.54.15", CUDA12, "OK", "550.54.15"),
        ("550.54.15", CUDA13, "fail", "too old for jax-cuda13-plugin, which needs 580"),
        ("470.1", CUDA12, "fail", "too old for jax-cuda12-plugin, which needs 525"),
        (None, CUDA13, "warn", "cannot be read"),
    ],
)
def test_a_driver_older_than_its_package_fails(version, packages, level, said):
    found = doctor.driver_finding(version, packages)
    assert found.level == level and said in found.what
    assert (level == "OK") == (not found.advice)


@pytest.mark.parametrize(
    ("kinds", "gpu", "level", "said"),
    [
        (["gpu"], {}, "fail", "pip install -e '.[cuda13]'"),
        (["gpu"], CUDA12 | CUDA13, "fail", "exclude each other"),
        (["gpu"], CUDA13, "OK", "present"),
        ([], CUDA13, "warn", "this machine shows none"),
        ([], {}, "OK", "the CPU"),
    ],
)
def test_packages_must_fit_the_hardware(kinds, gpu, level, said, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    first = next(doctor.accelerator_findings(kinds, {"gpu": gpu, "tpu": {}}))
    assert first.level == level and said in first.what


def test_an_idle_accelerator_is_fine_where_the_cpu_was_asked_for(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert next(doctor.accelerator_findings(["gpu"], {"gpu": {}, "tpu": {}})).level == "warn"


def test_a_healthy_machine_is_fine_and_sums_over_its_devices(capsys):
    assert doctor.doctor() == DONE
    out = capsys.readouterr().out
    assert "a sum over 8 device(s) is right" in out and "fail" not in out


def test_a_flag_that_ends_jax_does_not_end_the_doctor():
    env = {**os.environ, "XLA_FLAGS": "--xla_no_such_flag"}
    command = [sys.executable, "-m", "jaxlm", "doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == CONFIG and "holds a flag that it does not know" in done.stdout


def test_the_probe_answers_in_json():
    command = [sys.executable, "-m", "jaxlm.observe.probe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8 and found["sum"] == found["expected"] == 28
