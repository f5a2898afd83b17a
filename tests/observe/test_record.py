"""The record tells what a run ran on and what changed, and holds no secret."""

import json
import shutil
import subprocess

import pytest

from jaxlm.core.errors import DataError
from jaxlm.observe.record import FILE, begin, code_state, differences, finish, read, record


def facts():
    return record({"config": "ab"}, mesh={"fsdp": 8}, model={"parameters": 12})


def test_starts_are_kept_and_a_change_is_told(tmp_path):
    assert begin(tmp_path, facts(), step=0, steps=10) == []
    finish(tmp_path, "stopped", step=4)
    other = facts()
    other["versions"]["jax"] = "0.0"
    (line,) = begin(tmp_path, other, step=4, steps=10)
    assert line.startswith(f"versions.jax: {facts()['versions']['jax']} -> 0.0 (bits may differ")
    whole = read(tmp_path)
    assert [(start["step"], start.get("last_step")) for start in whole["starts"]] == [
        (0, 4),
        (4, None),
    ]
    assert (whole["status"], whole["versions"]["jax"]) == ("running", "0.0")


def test_the_environment_is_kept_by_an_allow_list(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-value")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    begin(tmp_path, facts(), step=0, steps=10)
    text = (tmp_path / FILE).read_text()
    assert "s3cr3t-value" not in text
    assert json.loads(text)["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    ("part", "key", "meaning"),
    [
        ("devices", "count", "bits may differ"),
        ("devices", "mesh", "bits may differ"),
        ("environment", "XLA_FLAGS", "bits may differ"),
        ("code", "commit", "bits may differ"),
        ("digests", "data", "bits may differ"),
        ("versions", "python", "same results"),
    ],
)
def test_each_difference_says_what_it_means(part, key, meaning):
    new = facts()
    new[part] = {**new[part], key: "other"}
    (line,) = differences(facts(), new)
    assert line.startswith(f"{part}.{key}: ")
    assert meaning in line
    assert differences(facts(), facts()) == []


def test_a_damaged_record_is_refused(tmp_path):
    assert read(tmp_path) == {}
    (tmp_path / FILE).write_text('{"format": 1')
    with pytest.raises(DataError, match=FILE):
        read(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_code_state_is_the_commit_and_what_is_not_in_it(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, stdout=-3)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("one")
    git("init", "-q")
    assert code_state(package) == {"source": "installed package"}  # a checkout, but not its own
    git("add", ".")
    staged = code_state(package)
    assert "commit" not in staged
    git("commit", "-q", "-m", "first")
    clean = code_state(package)
    assert "uncommitted" not in clean
    (package / "__init__.py").write_text("two")
    changed = code_state(package)
    (package / "new.py").write_text("three")
    added = code_state(package)
    assert clean["commit"] == changed["commit"] == added["commit"]
    assert len({state.get("uncommitted") for state in (clean, staged, changed, added)}) == 4
