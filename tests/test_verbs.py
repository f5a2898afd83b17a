"""Every verb on one real run: trained here in a few steps, on text of this checkout."""

import re
import shutil
from pathlib import Path

import processes
import pytest

from jaxlm import cli
from jaxlm.checkpoint import inspect
from jaxlm.core import errors

TINY = [
    "steps=4",
    "batch=8",
    "length=32",
    "model.layers=1",
    "model.embed=32",
    "model.heads=2",
    "tokenizer.vocab=300",
    "data.validation=0.3",
    "log.every=2",
    "platform=cpu",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and the words that made it."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "text").mkdir()
    for index, part in enumerate(Path(cli.__file__).read_text().split("\n\n")):
        (folder / "text" / f"{index:03}.txt").write_text(part)
    words = [
        f"data.train={folder}/text",
        f"data.cache={folder}/cache",
        f"run_dir={folder}/run",
        *TINY,
    ]
    assert cli.run(["train", *words]) == errors.DONE
    return folder / "run", words


def test_training_again_has_nothing_left_to_do(run, capsys):
    folder, words = run
    before = inspect.digest(folder / "checkpoints")
    assert cli.run(["train", *words]) == errors.DONE
    assert "nothing left to do" in capsys.readouterr().out
    assert inspect.digest(folder / "checkpoints") == before


def test_a_changed_key_is_refused_by_name_unless_allowed(run, capsys, tmp_path):
    folder, words = run
    copy = shutil.copytree(folder, tmp_path / "run")
    words = [*words, f"run_dir={copy}"]
    assert cli.run(["train", *words, "optimizer.b1=0.5"]) == errors.CONFIG
    error = capsys.readouterr().err
    assert "optimizer.b1: 0.9 -> 0.5" in error and len(error.splitlines()) == 1
    words = [*words, "steps=5", "optimizer.b1=0.5"]
    assert cli.run(["train", *words, "--allow-change", "optimizer.b1"]) == errors.DONE
    assert inspect.digest(copy / "checkpoints")[0] == 5


def test_generate_streams_the_same_text_for_the_same_seed(run, capsys):
    folder, _ = run
    words = ["--prompt", "def ", "--max-tokens", "8", "--temperature", "0.9", "--seed", "3"]
    assert cli.run(["generate", str(folder), *words]) == errors.DONE
    first = capsys.readouterr().out
    assert cli.run(["generate", str(folder), *words]) == errors.DONE
    assert capsys.readouterr().out == first and first.startswith("def ")


def test_eval_prints_a_line_per_figure(run, capsys):
    folder, _ = run
    assert cli.run(["eval", str(folder), "--batches", "1"]) == errors.DONE
    figures = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {"loss", "perplexity", "bits_per_byte"} <= set(figures)
    assert float(figures["loss"]) > 0


def test_checkpoints_are_listed_digested_and_verified(run, capsys):
    folder, _ = run
    step, digest = inspect.digest(folder / "checkpoints")
    assert cli.run(["checkpoint", "digest", str(folder)]) == errors.DONE
    assert capsys.readouterr().out == f"{step} {digest}\n"
    assert cli.run(["checkpoint", "list", str(folder)]) == errors.DONE
    assert digest[:16] in capsys.readouterr().out
    assert cli.run(["checkpoint", "verify", str(folder)]) == errors.DONE
    assert capsys.readouterr().out.endswith("all as saved\n")


def test_the_report_is_one_page(run, capsys):
    folder, _ = run
    assert cli.run(["report", str(folder)]) == errors.DONE
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_data_inspect_shows_text_and_uses_no_color_in_a_pipe(run, capsys):
    _, words = run
    assert cli.run(["data", "inspect", *words, "-n", "2"]) == errors.DONE
    out = capsys.readouterr().out
    assert re.search(r"row 0: \d+ documents, \d+ of 32 tokens trained", out) and "row 1" in out
    assert "\x1b" not in out


def test_the_run_keeps_a_configuration_that_trains_it(run, capsys):
    folder, _ = run
    assert cli.run(["train", str(folder)]) == errors.DONE
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["generate", "nowhere", "--prompt", "a"], errors.CHECKPOINT),
        (["eval", "nowhere"], errors.CHECKPOINT),
        (["checkpoint", "list", "nowhere"], errors.CHECKPOINT),
        (["checkpoint", "digest", "nowhere"], errors.CHECKPOINT),
        (["report", "nowhere"], errors.DATA),
    ],
)
def test_a_run_that_is_not_there_is_one_line(words, code, capsys):
    assert cli.run(words) == code
    error = capsys.readouterr().err
    assert error.startswith("jaxlm: error: nowhere") and len(error.splitlines()) == 1


@pytest.mark.once
def test_the_folder_that_is_named_is_the_one_that_trains(tmp_path):
    code, _, err = processes.run(*processes.words(tmp_path, "steps=2"))
    assert code == errors.DONE, err
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    code, out, err = processes.run("train", str(tmp_path / "copy"), "steps=3")
    assert code == errors.DONE and f"{tmp_path}/copy: step 3 of 3" in out, err
    assert [len(processes.losses(tmp_path, name)) for name in ("run", "copy")] == [2, 3]
    # Fewer steps than there are, or another shape, change nothing of what is there.
    before = (tmp_path / "copy" / "config.yaml").read_text()
    code, out, _ = processes.run("train", str(tmp_path / "copy"), "steps=1")
    assert code == errors.DONE and "3 steps are done, more than steps=1" in out
    words = ("train", str(tmp_path / "copy"), "model.layers=4", "--allow-change", "model")
    code, _, err = processes.run(*words)
    assert code == errors.CONFIG and "its checkpoints hold model.layers=2, not 4" in err
    assert (tmp_path / "copy" / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("train", "quickstart", "run_dir=a[b]"), errors.CONFIG),
        (("train", "quickstart", f"run_dir={'a' * 300}"), errors.CONFIG),
        (("train", "quickstart", "model.embed=2000000000"), errors.CONFIG),
        (("report", "setup.txt"), errors.CONFIG),
        (("generate", "nowhere", "--prompt", "x"), errors.CHECKPOINT),
    ],
)
def test_odd_paths_and_sizes_are_one_line(tmp_path, monkeypatch, words, code):
    (tmp_path / "setup.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    found, out, err = processes.run(*words)
    assert found == code and err.count("\n") == 1 and not out, err


def test_a_damaged_end_is_not_an_end(tmp_path):
    words = processes.words(tmp_path, "steps=4", "checkpoint.every=2")
    code, _, err = processes.run(*words)
    assert code == errors.DONE, err
    checkpoints = tmp_path / "run" / "checkpoints"
    before = inspect.digest(checkpoints)
    largest = max((checkpoints / "4" / "params").rglob("*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-9])
    code, out, err = processes.run(*words)  # goes on from step 2, to the same end
    assert code == errors.DONE and "nothing left to do" not in out, err
    assert inspect.digest(checkpoints) == before and not inspect.verify(checkpoints, 4).problems
