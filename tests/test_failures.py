"""What cannot go on ends with its exit code, one line, and nothing lost."""

import json
import signal
import time

import processes
import pytest

from jaxlm.core import errors


def _one_line(err):
    assert err.startswith("jaxlm: error: ") and len(err.splitlines()) == 1, err


def test_gradients_that_stay_infinite_end_the_run_and_keep_the_last_good_checkpoint(tmp_path):
    words = ("checkpoint.every=2", "optimizer.clip=null", "optimizer.max_skipped=3")
    steady = ("optimizer.schedule.type=constant", "model.dropout=0.0")
    code, _, err = processes.run(*processes.words(tmp_path, *words, *steady, "steps=2"))
    assert code == errors.DONE, err
    words = (*words, *steady, "steps=50", "optimizer.learning_rate=1e30")
    allowed = ("--allow-change", "optimizer.learning_rate")
    code, _, err = processes.run(*processes.words(tmp_path, *words, *allowed))
    assert code == errors.NUMERIC
    _one_line(err)
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps[0] == 2 and all(
        "NaN" not in json.dumps(row) for row in processes.rows(tmp_path) if row["step"] <= 2
    )


def test_a_step_that_cannot_fit_says_what_takes_the_memory_and_what_helps(tmp_path):
    words = ("steps=1", "batch=64", "length=1000000", "model.embed=4096")
    code, out, err = processes.run(*processes.words(tmp_path, *words))
    assert code == errors.MEMORY, err
    _one_line(err)
    assert "activations" in out and len(err.split("try ")[1].split(", ")) == 3


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer"])
def test_a_folder_with_files_of_a_person_is_not_taken(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).mkdir()
    code, _, err = processes.run(*processes.words(tmp_path, "steps=1", name="mine"))
    assert code == errors.CONFIG
    _one_line(err)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [name]


def test_a_signal_before_the_first_step_is_one_line(tmp_path):
    process = processes.start(*processes.words(tmp_path, "steps=5"))
    while not (tmp_path / "run" / "owner").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == errors.STOPPED
    _one_line(err)
