"""Rows over hosts: each reads its own, and the order goes on whatever their number."""

import json
from pathlib import Path

import processes
import pytest

from jaxlm.core import errors
from jaxlm.data import workers
from jaxlm.data.tokenizing import Work, claim
from jaxlm.text import train

SCRIPT = (str(Path(__file__).with_name("seen.py")),)


def write(folder):
    """Two files of examples to be packed and mixed."""
    for name, count in (("a", 150), ("b", 60)):
        records = [
            {"prompt": f"{name} {i} " * (1 + i % 3), "completion": f"is {i}"} for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def words(folder, steps, name):
    mixture = (
        f"data.train=[{{path: {folder}/a.jsonl, weight: 2}}, {{path: {folder}/b.jsonl, weight: 1}}]"
    )
    return [
        *("train", *processes.TINY, "objective.type=sft", mixture, f"steps={steps}"),
        *(f"run_dir={folder}/{name}", f"data.cache={folder}/cache"),
    ]


def seen(folder):
    """{(step, place in the batch): hash of the row}; no row is read by two processes."""
    found = {}
    for path in folder.iterdir():
        own = {}
        for line in map(json.loads, path.read_text().splitlines()):
            for place, row in enumerate(line["rows"], line["first"]):
                own[line["step"], place] = row
        assert not found.keys() & own.keys()
        found |= own
    return found


@pytest.mark.once
def test_four_hosts_then_two_then_eight_read_what_one_would(tmp_path):
    write(tmp_path)
    for steps, hosts in ((3, 4), (6, 2), (8, 8)):
        given = (str(tmp_path / "seen"), *words(tmp_path, steps, "run"))
        found = processes.cluster(hosts, *given, devices=8 // hosts, program=SCRIPT)
        assert [code for code, _, _ in found] == [errors.DONE] * hosts, found[0][2]
    alone = (str(tmp_path / "alone"), *words(tmp_path, 8, "one"))
    code, _, err = processes.run(*alone, devices=8, program=SCRIPT)
    assert code == errors.DONE, err
    read = seen(tmp_path / "seen")
    assert read == seen(tmp_path / "alone")
    assert sorted(read) == [(step, place) for step in range(8) for place in range(8)]
    losses, one = processes.losses(tmp_path), processes.losses(tmp_path, "one")
    assert len(losses) == len(one) == 8 and abs(losses[0] - one[0]) < 1e-5  # rates differ after it


@pytest.mark.once
def test_of_two_processes_one_verifies_a_corpus(tmp_path):
    text, out = tmp_path / "a.txt", tmp_path / "tokens"
    text.write_text("the quick brown fox " * 99)
    tokenizer = train.train("bpe", 300, [text.read_text()])
    work = Work(str(text), str(out))
    claim(work, tokenizer)
    workers.tokenize(work, workers=1, say=lambda line: None)
    ids = out / "shards" / "00000" / "train.ids"
    whole = ids.read_bytes()
    ids.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    paths = f"data.train={out}", f"tokenizer.path={out}/tokenizer", f"data.cache={tmp_path}/cache"
    line = ("train", *processes.TINY, *paths, "steps=1", f"run_dir={tmp_path}/run")
    found = processes.cluster(2, *line, devices=1)
    assert [code for code, _, _ in found] == [errors.DATA] * 2
    said = [err.strip().splitlines()[-1] for _, _, err in found]
    assert all("train.ids has sha256" in each for each in said)
    assert "process 0" in said[1] and "process 0" not in said[0]
