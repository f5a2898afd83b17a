"""The command line: quick help, one line for what is wrong, and the documented exit codes."""

import errno
import subprocess
import sys

import pytest

from jaxlm import cli
from jaxlm.core import errors

MISSING = (
    "command line: missing key data.train; add it: One source or a list; with weights, a mixture."
)
BASE = ["steps=10", "data.train=corpus.txt"]


def said(capsys, *words, debug=False):
    code = cli.run(list(words), debug=debug)
    return code, capsys.readouterr()


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy():
    done = python("-X", "importtime", "-m", "jaxlm", "--help")
    modules = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    heavy = {"jax", "jaxlib", "numpy", "flax", "optax", "orbax", "pydantic_core", "pyarrow"}
    assert done.returncode == 0 and "Usage" in done.stdout
    assert modules & heavy <= {"pydantic_core"}  # typer reads types with pydantic


@pytest.mark.parametrize("verb", ["train", "generate", "eval", "doctor", "report", "config show"])
def test_every_help_names_the_exit_codes(capsys, verb):
    code, out = said(capsys, *verb.split(), "--help")
    text = " ".join(out.out.split())
    assert code == 0 and "75 stopped by a signal and saved" in text and "8 out of memory" in text


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("trian", "command line: no such command 'trian'; did you mean train?"),
        ("config shwo", "config: no such command 'shwo'; did you mean show?"),
        (
            "train --allow-chang x",
            "train: no such option: --allow-chang; did you mean --allow-change?",
        ),
        (
            "train --steps 5",
            "train: no such option --steps; keys have no dashes: write steps=VALUE",
        ),
        (
            "train quickstart 5",
            "command line: '5' is not KEY=VALUE; one CONFIG comes first, then keys",
        ),
        ("eval", "eval: missing argument 'RUN'"),
        ("train steps=5", MISSING),
        (
            "generate r --prompt a --top-p 3",
            "generate: invalid value for '--top-p': Input should be less than or equal to 1",
        ),
        (
            "train quickstart model.layer=4",
            "override 'model.layer=4': unknown key model.layer; did you mean model.layers?",
        ),
        (
            "train quickstrat",
            "quickstrat: is neither a file, a run nor a preset; did you mean quickstart?",
        ),
    ],
)
def test_a_wrong_line_is_one_line_and_exit_2(capsys, line, error):
    code, out = said(capsys, *line.split())
    assert (code, out.out, out.err) == (errors.CONFIG, "", f"jaxlm: error: {error}\n")


def test_debug_anywhere_shows_the_traceback():
    plain = python("-m", "jaxlm", "config", "show", "nope")
    assert plain.returncode == errors.CONFIG and len(plain.stderr.splitlines()) == 1
    debug = python("-m", "jaxlm", "config", "--debug", "show", "nope")
    assert debug.returncode == errors.CONFIG and "Traceback" in debug.stderr
    assert debug.stderr.splitlines()[-1] == plain.stderr.strip()


def test_train_alone_names_the_presets(capsys):
    code, out = said(capsys, "train")
    assert code == errors.CONFIG and "quickstart" in out.err and len(out.err.splitlines()) == 1


def test_without_a_verb_the_help_comes_and_no_error(capsys):
    code, out = said(capsys)
    assert code == errors.CONFIG and "Usage" in out.out and out.err == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.DataError("a.txt:3", "is empty"), 3, "a.txt:3: is empty"),
        (MemoryError(), 8, "memory: the host has no more; use a smaller batch"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), 8, "memory: RESOURCE_EXHAUSTED"),
        (OSError(errno.ENOSPC, "No space left", "runs/x"), 7, "runs/x: No space left"),
        (RuntimeError("Unable to initialize backend 'cuda': x"), 2, "platform: Unable to"),
        (KeyError("a"), 1, "internal: KeyError: 'a'; run again with --debug"),
    ],
)
def test_every_error_has_its_code(error, code, line):
    found = cli._known(error)
    assert found.code == code and str(found).startswith(line)


def test_config_show_is_a_valid_file(capsys, tmp_path):
    code, out = said(capsys, "config", "show", *BASE, "model.layers=2")
    assert code == 0
    (tmp_path / "config.yaml").write_text(out.out)
    assert said(capsys, "config", "show", str(tmp_path))[1].out == out.out


def test_config_diff_names_what_differs(capsys, tmp_path):
    for name, extra in (("a", ""), ("b", "batch: 16\n")):
        (tmp_path / f"{name}.yaml").write_text(f"steps: 1\ndata: {{train: x}}\n{extra}")
    code, out = said(capsys, "config", "diff", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert (code, out.out) == (0, "batch: 8 -> 16\n")


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m jaxlm config schema | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name, code", [("SIGINT", errors.INTERRUPTED), ("SIGTERM", errors.STOPPED)]
)
def test_a_signal_while_jax_is_imported_is_one_line(tmp_path, name, code):
    finder = f"""
import os, signal, sys
from jaxlm import cli
class Finder:
    def find_spec(self, module, path=None, target=None):
        if module == "jax":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
cli.main(["train", "steps=1", "data.train=corpus.txt", "run_dir={tmp_path}"])
"""
    done = python("-c", finder)
    line = f"jaxlm: error: {name}: stopped; run the same command again\n"
    assert (done.returncode, done.stderr) == (code, line)
