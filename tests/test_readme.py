"""What the README tells people to type exists: verbs, options, presets, files and keys."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from jaxlm import cli
from jaxlm.config.load import load

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines()]
COMMANDS = [words for words in LINES if words and words[0] == "jaxlm"]


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_is_one_of_ours(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, rest = typer.main.get_command(cli.app), words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(command, "commands"), f"{words} names no verb"
    command.make_context(words[1], list(rest))  # raises for an option that is not there
    if words[1] in ("train", "data", "config"):
        files = [word for word in rest if "=" not in word]
        load(files[0] if files else None, [word for word in rest if "=" in word])


@pytest.mark.parametrize("words", [w for w in LINES if w and w[0] == "bash"], ids=" ".join)
def test_a_script_of_the_readme_is_there(words):
    assert (ROOT / words[1]).is_file()


TINY = (
    "model.layers=1",
    "model.embed=32",
    "model.heads=2",
    "tokenizer.vocab=300",
    "batch=2",
    "length=128",
    "evaluate.batches=1",
    "platform=cpu",
)
"""What makes the README's run take seconds."""
TUNED = ("epochs=0.01", "length=128", "batch=2", "evaluate.batches=1", "samples.tokens=4")
"""And the one that starts from it."""


def test_the_commands_of_the_readme_run_one_after_the_other(tmp_path):
    """From "Use", in another folder than the checkout, with a tiny model and fewer steps."""
    text = (ROOT / "README.md").read_text().partition("## Use")[2]
    block = re.search(r"```bash\n(.*?)```.*?```python\n(.*?)```", text, re.DOTALL)
    assert block
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name in ("NPROC", "XLA_FLAGS"):  # of the 8 devices of these tests
        env.pop(name, None)
    commands = [shlex.split(line, comments=True)[1:] for line in block[1].splitlines()]
    for words in commands:
        tiny = [re.sub(r"^steps=(\d+)00$", r"steps=\1", word) for word in words]
        more = TINY if words[:2] in (["train", "quickstart"], ["data", "inspect"]) else ()
        more = TUNED if words[:2] == ["train", "quickstart_lora"] else more
        done = subprocess.run(
            [sys.executable, "-m", "jaxlm", *tiny, *more],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stdout, (words, done.stderr)
    python = [sys.executable, "-c", block[2]]
    done = subprocess.run(python, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
