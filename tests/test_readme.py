"""What the README tells people to type exists: verbs, options, presets, files and keys."""

import re
import shlex
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
