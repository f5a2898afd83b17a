import copy
import fcntl
import itertools
import json
import multiprocessing
import os
import queue
import shutil
import signal
import stat
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from jaxlm.config.schema import Source
from jaxlm.core.errors import DataError, StorageError
from jaxlm.data import cache, encoding, sources
from jaxlm.data.cache import tokenized
from jaxlm.text import train
from jaxlm.text.tokenizer import Tokenizer

TEXTS = [f"document {i}, the quick brown fox {'jumps ' * i}" for i in range(60)]


def documents(tokens):
    return [
        tokens.ids[a:b].tolist()
        for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != "lock"
    }


def test_each_document_is_its_ids_and_the_end(tokenizer, jsonl, tmp_path):
    found = tokenized(jsonl("a", TEXTS), tokenizer, folder=tmp_path / "cache").train
    assert documents(found) == [[*ids, tokenizer.eos] for ids in tokenizer.encode_batch(TEXTS)]
    assert found.offsets.dtype == np.int64
    assert found.ids.dtype == np.uint16


def test_special_text_is_parsed_only_when_asked_for(tokenizer, jsonl, tmp_path):
    source = jsonl("a", ["one<|endoftext|>two"])
    for parse, ends in ((False, 1), (True, 2)):
        found = tokenized(source, tokenizer, parse_special=parse, folder=tmp_path / "cache").train
        assert (found.ids == tokenizer.eos).sum() == ends


def test_the_second_time_nothing_is_tokenized(tokenizer, jsonl, tmp_path, monkeypatch):
    source = jsonl("a", TEXTS)
    first = tokenized(source, tokenizer, folder=tmp_path / "cache").train
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    again = tokenized(source, tokenizer, folder=tmp_path / "cache").train
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.ids, first.ids)


def test_the_content_decides_and_not_the_name_or_the_time(tokenizer, jsonl, tmp_path):
    folder = tmp_path / "cache"
    first = tokenized(jsonl("a", TEXTS), tokenizer, folder=folder).train.digest
    assert tokenized(jsonl("b", TEXTS), tokenizer, folder=folder).train.digest == first
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert tokenized(jsonl("a", TEXTS), tokenizer, folder=folder).train.digest == first
    changed = ["D" + TEXTS[0][1:], *TEXTS[1:]]
    assert tokenized(jsonl("a", changed), tokenizer, folder=folder).train.digest != first


def test_a_large_file_that_changes_is_read_again(tokenizer, jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 1)
    folder = tmp_path / "cache"
    first = tokenized(jsonl("a", TEXTS), tokenizer, folder=folder).train.digest
    assert (
        tokenized(Source(path=str(tmp_path / "a.jsonl")), tokenizer, folder=folder).train.digest
        == first
    )
    same_size = [text.replace("fox", "cat") for text in TEXTS]
    assert tokenized(jsonl("a", same_size), tokenizer, folder=folder).train.digest != first


def record(text):
    return json.dumps({"text": text}).encode() + b"\n"


def test_a_file_in_a_bucket_is_read_again_only_when_it_has_changed(
    tokenizer, bucket, tmp_path, monkeypatch
):
    source, folder = Source(path="gs://b/a.jsonl"), tmp_path / "cache"
    bucket.pipe("/b/a.jsonl", record("one fox"))
    first = tokenized(source, tokenizer, folder=folder).train.digest
    with monkeypatch.context() as closed:
        closed.setattr(type(bucket), "_open", None)
        assert tokenized(source, tokenizer, folder=folder).train.digest == first
    bucket.pipe("/b/a.jsonl", record("one cat"))  # of the same size
    assert tokenized(source, tokenizer, folder=folder).train.digest != first


def test_a_bucket_that_tells_nothing_of_the_content_is_read(
    tokenizer, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(cache, "VERSION", ())
    source, folder = Source(path="gs://b/a.jsonl"), tmp_path / "cache"
    bucket.pipe("/b/a.jsonl", record("one fox"))
    first = tokenized(source, tokenizer, folder=folder).train.digest
    bucket.pipe("/b/a.jsonl", record("one cat"))
    assert tokenized(source, tokenizer, folder=folder).train.digest != first


def test_held_out_documents_are_a_share_chosen_by_their_text(tokenizer, jsonl, tmp_path):
    texts = [f"text number {i}" for i in range(2000)]
    found = tokenized(jsonl("a", texts), tokenizer, hold_out=0.1, folder=tmp_path / "cache")
    held = {tokenizer.decode(ids) for ids in documents(found.held)}
    trained = {tokenizer.decode(ids) for ids in documents(found.train)}
    assert held | trained == set(texts)
    assert not held & trained
    assert 0.07 < len(held) / len(texts) < 0.13
    doubled = tokenized(jsonl("b", texts * 2), tokenizer, hold_out=0.1, folder=tmp_path / "cache")
    assert {tokenizer.decode(ids) for ids in documents(doubled.held)} == held


def test_a_long_document_is_one_and_is_cut_at_line_ends_alone(
    tokenizer, jsonl, tmp_path, monkeypatch
):
    lines = "a line of some words\n" * 50
    whole = tokenizer.encode(lines)
    monkeypatch.setattr(encoding, "CHUNK", 300)
    monkeypatch.setattr(encoding, "PART", 100)
    texts = ["before", lines, "no end of line " * 50, "after"]
    found = documents(tokenized(jsonl("a", texts), tokenizer, folder=tmp_path / "cache").train)
    assert found[1] == [*whole, tokenizer.eos]
    assert [tokenizer.decode(ids) for ids in found] == texts


DIE = """
import os, sys
from jaxlm.config.schema import Source
from jaxlm.data import cache, encoding, sources
from jaxlm.text.tokenizer import load
writes = int(sys.argv[4])
def dying(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global writes
        writes -= 1
        if writes < 0:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    setattr(os, name, call)
dying("fsync"), dying("rename")
cache.tokenized(Source(path=sys.argv[1]), load(sys.argv[2]), folder=sys.argv[3])
"""


def test_killed_at_any_step_of_writing_it_is_as_if_never_started(tokenizer, jsonl, tmp_path):
    source = jsonl("a", TEXTS)
    tokenizer.save(tmp_path / "tokenizer")
    tokenized(source, tokenizer, folder=tmp_path / "whole")
    ends = []
    for writes in range(8):
        folder = tmp_path / f"killed-{writes}"
        command = [sys.executable, "-c", DIE, source.path, tmp_path / "tokenizer", folder]
        ends.append(subprocess.run([*map(str, command), str(writes)], check=False).returncode)
        tokenized(source, tokenizer, folder=folder)
        assert content(folder) == content(tmp_path / "whole")
    assert set(ends) == {-signal.SIGKILL, 0}


def race(barrier, source, tokenizer_folder, folder):
    from jaxlm.text.tokenizer import load

    tokenizer = load(tokenizer_folder)
    barrier.wait()
    tokenized(source, tokenizer, folder=folder)


def test_two_processes_that_make_the_same_cache_agree(tokenizer, jsonl, tmp_path):
    source = jsonl("a", TEXTS)
    tokenizer.save(tmp_path / "tokenizer")
    tokenized(source, tokenizer, folder=tmp_path / "whole")
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    arguments = (barrier, source, tmp_path / "tokenizer", tmp_path / "both")
    both = [spawn.Process(target=race, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert content(tmp_path / "both") == content(tmp_path / "whole")


def test_who_comes_second_waits_and_opens_what_the_first_wrote(
    tokenizer, jsonl, tmp_path, monkeypatch
):
    source, said = jsonl("a", TEXTS), queue.Queue()
    written = tokenized(source, tokenizer, folder=tmp_path / "first").train
    [whole] = (tmp_path / "first").glob("*/manifest.json")
    key, folder = whole.parent.name, tmp_path / "second"
    folder.mkdir()
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    with ThreadPoolExecutor() as pool:
        with cache.temporary(folder), cache.alone(folder / f"{key}.lock", "a", None):
            waiting = pool.submit(tokenized, source, tokenizer, folder=folder, say=said.put)
            assert "another process tokenizes" in said.get(timeout=240)
            cache.clear(folder)  # of a third, which must not take the lock away
            shutil.copytree(whole.parent, folder / key)
        assert waiting.result(timeout=240).train.digest == written.digest


def test_after_a_writer_that_failed_there_is_one_again(tmp_path):
    lock, said = tmp_path / "key.lock", queue.Queue()
    writes, go = threading.Event(), threading.Event()

    def second():
        with cache.alone(lock, "a", said.put):
            writes.set()
            go.wait(240)

    with ThreadPoolExecutor() as pool:
        with suppress(DataError), cache.alone(lock, "a", None):
            end = pool.submit(second)
            said.get(timeout=240)
            raise DataError("a", "bad")
        assert writes.wait(240)
        with lock.open("w") as third:
            try:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                go.set()
        end.result(timeout=240)


def test_a_living_process_is_not_cleared_away(tmp_path):
    with cache.temporary(tmp_path) as folder:
        cache.clear(tmp_path)
        assert folder.exists()
    (tmp_path / folder.name).mkdir()  # as a process leaves it that is killed
    cache.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_another_host_writes_is_cleared_away_when_it_is_days_old(tmp_path):
    (folder := tmp_path / "tmp-another").mkdir()
    for path in (file := folder / "train.ids", folder):
        path.touch()
        os.utime(path, (0, 0))
    os.utime(file)
    cache.clear(tmp_path)
    assert file.exists()
    os.utime(file, (0, 0))
    cache.clear(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["train.ids", "held.offsets", "manifest.json"])
@pytest.mark.parametrize("size", [0, 5, None])
def test_a_damaged_cache_is_made_again(tokenizer, jsonl, tmp_path, name, size):
    source = jsonl("a", TEXTS)
    tokenized(source, tokenizer, folder=tmp_path / "cache")
    whole = content(tmp_path / "cache")
    [path] = (tmp_path / "cache").glob(f"*/{name}")
    path.unlink() if size is None else os.truncate(path, size)
    tokenized(source, tokenizer, folder=tmp_path / "cache")
    assert content(tmp_path / "cache") == whole


@pytest.mark.parametrize("structure", ["encoder", "encoder-decoder"])
@pytest.mark.parametrize("type", train.TRAINERS)
def test_a_document_is_framed_as_a_text_of_its_own(type, structure, jsonl, tmp_path):
    made = train.train(type, 480, TEXTS, structure)
    found = tokenized(jsonl("a", TEXTS), made, folder=tmp_path / "cache")
    assert documents(found.train) == [made.encode(text) for text in TEXTS]


def test_ids_outside_the_vocabulary_are_refused_and_leave_nothing(tokenizer, jsonl, tmp_path):
    mixed = copy.copy(tokenizer)
    mixed.vocab = 10  # as when the files of two tokenizers are mixed
    with pytest.raises(DataError, match=r"id \d+, outside its vocabulary of 10 ids"):
        tokenized(jsonl("a", TEXTS), mixed, folder=tmp_path / "cache")
    assert content(tmp_path / "cache") == {}


def test_a_bad_record_leaves_nothing_and_says_where(tokenizer, jsonl, tmp_path):
    source = jsonl("a", TEXTS)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match=r"a\.jsonl:61:2: not JSON"):
        tokenized(source, tokenizer, folder=tmp_path / "cache")
    assert content(tmp_path / "cache") == {}


def test_files_that_change_while_they_are_read_are_refused(tokenizer, jsonl, tmp_path, monkeypatch):
    source = jsonl("a", TEXTS)

    def read(*args):
        yield from sources.read(*args)
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write(json.dumps({"text": "late"}) + "\n")

    monkeypatch.setattr(cache, "sources", types.SimpleNamespace(**{**vars(sources), "read": read}))
    with pytest.raises(DataError, match="changed while they were read; run again"):
        tokenized(source, tokenizer, folder=tmp_path / "cache")
    assert content(tmp_path / "cache") == {}


def test_long_work_is_told(monkeypatch):
    monkeypatch.setattr(
        cache, "time", types.SimpleNamespace(monotonic=itertools.count(0, 3).__next__)
    )
    said = []
    assert list(cache._told(["a" * 10**6] * 9, "files", said.append)) == ["a" * 10**6] * 9
    assert said[0] == "tokenizing files: 1 documents, 1M characters"
    assert 1 < len(said) < 5


def test_the_cache_is_private_and_in_the_users_folder(tokenizer, jsonl, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    tokenized(jsonl("a", TEXTS), tokenizer)
    folder = tmp_path / "home" / "jaxlm" / "tokens"
    assert cache.default_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.glob("*/manifest.json"))) == 1


def test_a_folder_that_cannot_be_written_says_what_to_set(tokenizer, jsonl, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/cache: cannot be written: .*data\.cache"):
        tokenized(jsonl("a", TEXTS), tokenizer, folder=tmp_path / "file" / "cache")
