"""The mains for a checkout do what the verbs do."""

import subprocess
import sys
from pathlib import Path

import hubs
import pytest

from jaxlm.core import errors
from jaxlm.hub.tensors import open_tensors

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name, *words):
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_folder_goes_in_and_out_and_is_told(tmp_path):
    source = hubs.write(tmp_path / "source", "qwen3")
    done = tool("import_hf", source, tmp_path / "in")
    assert done.returncode == errors.DONE and "equal" in done.stdout, done.stderr
    done = tool("export_hf", tmp_path / "in", tmp_path / "out", "--no-verify")
    assert done.returncode == errors.DONE and "verdict" not in done.stdout, done.stderr
    first, second = open_tensors(source), open_tensors(tmp_path / "out")
    assert {n: t.tobytes() for n, t in first.items()} == {n: t.tobytes() for n, t in second.items()}
    done = tool("inspect_checkpoint", tmp_path / "in")
    assert done.returncode == errors.DONE and "family qwen3" in done.stdout, done.stderr


@pytest.mark.parametrize("words", [("inspect_checkpoint", "a"), ("merge_lora", "a", "b", "c")])
def test_what_is_wrong_is_one_line_and_a_code(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = tool(*words)
    assert done.returncode == errors.CHECKPOINT and done.stderr.count("\n") == 1, done.stderr
