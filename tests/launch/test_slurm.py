"""A real SLURM runs the scripts: both layouts, a run that saves and requeues itself, and an end."""

import os
import subprocess
import time
from pathlib import Path

import processes
import pytest
import slurm_here
from test_files import written

from jaxlm.checkpoint import inspect

pytestmark = [
    pytest.mark.once,
    slurm_here.needed,
]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_here.cluster(folder):
        yield
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if _of(pid, folder)]


def _of(process, folder):
    try:
        return f"SLURM_CONF={folder}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False  # ended meanwhile
    except PermissionError:
        return False


def submit(folder, script, devices=1):
    """The number of a job of this script, submitted in a folder, with so many for each process."""
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    flags = " ".join((*kept, f"--xla_force_host_platform_device_count={devices}"))
    environment = {"JAX_PLATFORMS": "cpu", "NPROC": "8", "XLA_FLAGS": flags}
    done = subprocess.run(
        ["sbatch", "--parsable"],
        input=script,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def batch(capsys, *words):
    """The script that `jaxlm launch slurm WORDS` prints."""
    code, script, err = written(capsys, "slurm", "--dry-run", *words)
    assert code == 0, err
    return script


def state(job):
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)


def until(job, *states, also=lambda: False):
    """Wait until a job is in one of these states, or something else holds."""
    for _ in range(1800):
        if (now := state(job)).get("JobState") in states or also():
            return now
        time.sleep(0.1)
    raise AssertionError(f"job {job} is {now}")


def requeued(job, starts=1):
    """Wait until a job waits again, which SLURM lets it do for two minutes, and hurry it."""
    until(job, also=lambda: state(job)["Restarts"] == str(starts))
    until(job, "PENDING")
    time.sleep(2)  # a node refuses a start in the second in which it ended the one before
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def log(folder):
    return "".join(path.read_text() for path in folder.glob("*.log"))


ENDED = "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"


def test_one_process_for_each_node_saves_when_asked_and_goes_on_by_itself(capsys, tmp_path):
    """To its last step, which is made a near one when it has saved: its losses are then those of a
    run that was never asked to stop.
    """
    (tmp_path / "run.yaml").write_text("steps: 100000\n")
    plain = ("checkpoint.every=0", "platform=auto", "optimizer.schedule.type=constant")
    verb, *keys = processes.words(tmp_path, *plain)
    words = verb, str(tmp_path / "run.yaml"), *keys
    layout = ("--nodes=2", "--gpus-per-node=2", "--one-process-per=node", "--time=1:00:00")
    script = batch(capsys, *layout, "--", *words)
    job = submit(tmp_path, script, devices=2)
    until(job, *ENDED, also=lambda: len(processes.losses(tmp_path)) > 2)
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    until(job, *ENDED, also=lambda: state(job)["Restarts"] == "1")
    step, _ = inspect.digest(tmp_path / "run" / "checkpoints")
    assert step >= 3 and f"stopped by SIGTERM at step {step}, saved" in log(tmp_path)
    last = step + 3
    (tmp_path / "run.yaml").write_text(f"steps: {last}\n")
    requeued(job)
    assert until(job, *ENDED)["JobState"] == "COMPLETED", log(tmp_path)
    said = log(tmp_path)
    assert said.count("process 1 of 2: ") == 2 and "jaxlm: error" not in said
    assert [row["step"] for row in processes.rows(tmp_path)] == list(range(1, last + 1))
    assert inspect.digest(tmp_path / "run" / "checkpoints")[0] == last
    whole = processes.words(tmp_path, *plain, f"steps={last}", name="whole")
    code, _, err = processes.run(*whole, devices=4, JAX_PLATFORMS="cpu")
    assert code == 0, err
    expected = pytest.approx(processes.losses(tmp_path, "whole"), abs=1e-5)
    assert processes.losses(tmp_path) == expected


def test_one_process_for_each_gpu_as_the_command_submits_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = processes.words(tmp_path, "steps=2", "platform=auto")
    layout = ("--nodes=1", "--gpus-per-node=2")
    code, out, err = processes.run("launch", "slurm", *layout, "--", *words, JAX_PLATFORMS="cpu")
    assert code == 0 and out.startswith("Submitted batch job "), err
    job = out.split()[-1]
    assert until(job, *ENDED)["JobState"] == "COMPLETED", log(tmp_path)
    assert "process 1 of 2: " in log(tmp_path) and len(processes.losses(tmp_path)) == 2


@pytest.mark.parametrize(
    "code, starts, end",
    [(2, 1, "FAILED"), (75, 3, "COMPLETED"), (6, 3, "COMPLETED"), (0, 1, "COMPLETED")],
)
def test_which_codes_start_it_again(capsys, tmp_path, code, starts, end):
    """A program that ends with the code until its third start, in the place of Python."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/bash\n((${{SLURM_RESTART_COUNT:-0}} < 2)) || exit 0\nexit {code}\n")
    program.chmod(0o755)
    layout = ("--nodes=2", "--gpus-per-node=1", f"--python={program}")
    job = submit(tmp_path, batch(capsys, *layout, "--", "train", "quickstart", "platform=auto"))
    for start in range(1, starts):
        requeued(job, start)
    found = until(job, *ENDED)
    assert (found["JobState"], found["Restarts"]) == (end, str(starts - 1))
    assert not list(tmp_path.glob(".*"))  # what it counted in


PATIENT = """#!/bin/bash
((${SLURM_RESTART_COUNT:-0} == 0)) || exit 0
trap 'exit 75' TERM
touch started
sleep 100 &
wait
"""
"""A program that saves when it is asked to stop, and is done when it is started again."""


@pytest.mark.parametrize("partition", ["debug", "patient"])
def test_what_is_preempted_goes_on_with_or_without_a_grace_time(partition, capsys, tmp_path):
    program = tmp_path / "program"
    program.write_text(PATIENT)
    program.chmod(0o755)
    layout = ("--nodes=2", "--gpus-per-node=2", f"--python={program}")
    run = ("--", "train", "quickstart", "platform=auto")
    job = submit(tmp_path, batch(capsys, *layout, f"--partition={partition}", *run))
    until(job, *ENDED, also=lambda: (tmp_path / "started").exists())
    taken = submit(tmp_path, "#!/bin/bash\n#SBATCH -N2 --gpus-per-node=2 --partition=urgent\n")
    assert until(taken, *ENDED)["JobState"] == "COMPLETED"
    requeued(job)
    found = until(job, *ENDED)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1")


def test_what_is_canceled_stays_so(capsys, tmp_path):
    program = tmp_path / "program"
    program.write_text(PATIENT)
    program.chmod(0o755)
    layout = ("--gpus-per-node=1", f"--python={program}")
    job = submit(tmp_path, batch(capsys, *layout, "--", "train", "quickstart", "platform=auto"))
    until(job, *ENDED, also=lambda: (tmp_path / "started").exists())
    subprocess.run(["scancel", job], check=True)
    found = until(job, *ENDED)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")
    until(job, *ENDED, also=lambda: "EndTime" in state(job))
    assert state(job)["JobState"] == "CANCELLED"
