"""The corpus that datatrove writes on a real Ray, started here, is that of the local command."""

import json
import subprocess
import sys

import pytest

from jaxlm.text import train

pytestmark = pytest.mark.peers
TEXTS = [f"document {i % 33}, the quick brown fox {'jumps ' * (i % 33 % 13)}" for i in range(90)]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for part in range(3):
        rows = [json.dumps({"text": text}) + "\n" for text in TEXTS[part::3]]
        (folder / f"{part}.jsonl").write_text("".join(rows))
    train.train("bpe", 300, TEXTS).save(tmp_path / "tokenizer")
    return folder


def tokenize(source, out, *more):
    line = [str(source), str(out), f"--tokenizer={source.parent}/tokenizer", "--deduplicate"]
    command = [sys.executable, "-m", "jaxlm", "data", "tokenize", *line, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def content(folder):
    other = ("lock", "claim.lock", "repeats.lock")
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.relative_to(folder).parts[0] not in ("digests", "logs")
        and path.name not in other
    }


def test_on_ray_every_byte_is_that_of_the_local_command(source, tmp_path):
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install .[datatrove]")
    pytest.importorskip("ray", reason="ray is not installed: pip install .[datatrove]")
    assert tokenize(source, tmp_path / "local", "--workers=2").returncode == 0
    (source / "1.jsonl").rename(tmp_path / "1.jsonl")
    (source / "1.jsonl").write_text('{"text": "one"}\n{\n')
    bad = tokenize(source, tmp_path / "ray", "--executor=ray", "--workers=2")
    assert bad.returncode == 3, bad.stderr
    assert "1.jsonl:2:2: not JSON" in bad.stderr.splitlines()[-1]
    (tmp_path / "1.jsonl").rename(source / "1.jsonl")
    done = tokenize(source, tmp_path / "ray", "--executor=ray", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert "57 repeated a text" in done.stdout
    assert content(tmp_path / "ray") == content(tmp_path / "local")
