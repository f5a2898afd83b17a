import errno
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm import cli
from jaxlm.config.objectives import Mlm
from jaxlm.config.schema import Source
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import corpus, tokenizing, workers
from jaxlm.data.masked import masked
from jaxlm.data.packing import Windows
from jaxlm.data.pipeline import documents, open_data
from jaxlm.data.repeats import repeated
from jaxlm.data.stretches import Stretches
from jaxlm.data.tokenizing import Work, claim
from jaxlm.text import train

LENGTH = 32
TEXTS = [f"document {i}, the quick brown fox {'jumps ' * (i % 13)}" for i in range(90)]


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Files of every format in a folder; document 3 comes again in the second and the last."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "a.jsonl").write_bytes(jsonl(TEXTS[:20]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl([TEXTS[3], "", *TEXTS[20:40]])))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl(TEXTS[40:60])))
    rows = pyarrow.table({"text": TEXTS[60:80]})
    pyarrow.parquet.write_table(rows, folder / "d.parquet")
    for number, text in enumerate([*TEXTS[80:], TEXTS[3]]):
        (folder / f"e{number:02}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def masking():
    return train.train("bpe", 320, TEXTS, "encoder")


def made(source, out, tokenizer, *, count=1, mine=(0, 1), **options):
    """The folder of tokens; `count` processes."""
    work = Work(str(source), str(out), **options)
    claim(work, tokenizer)
    workers.tokenize(work, workers=count, mine=mine, say=lambda line: None)
    return out


def content(folder):
    """What a folder of tokens says, without locks and what is remembered of files."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    other = ("lock", "claim.lock", "repeats.lock")
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if name.parts[0] != "digests" and name.name not in other
    }


def written(folder):
    """Shard -> its file on the disk, another one where it was made anew."""
    return {path.parent.name: path.stat().st_ino for path in folder.glob("shards/*/train.ids")}


@settings(deadline=None)
@given(st.data())
def test_stretches_of_files_are_one_array(data):
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    arrays = [np.arange(size, dtype=np.uint16) + 100 * n for n, size in enumerate(sizes)]
    taken = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=6))
    cuts = [sorted(data.draw(st.tuples(*[st.integers(0, sizes[f])] * 2))) for f in taken]
    plain = np.concatenate([arrays[f][a:b] for f, (a, b) in zip(taken, cuts, strict=True)])
    start, end = np.array(cuts).T
    found = Stretches(arrays, np.array(taken), start, end - start)
    assert found.size == len(found) == plain.size and found.dtype == plain.dtype
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, plain.size)] * 2)))
    np.testing.assert_array_equal(found[a:b], plain[a:b])
    if plain.size:
        at = np.array(data.draw(st.lists(st.integers(-plain.size, plain.size - 1))), np.int64)
        np.testing.assert_array_equal(found[at.reshape(-1, 1)], plain[at.reshape(-1, 1)])
        assert found[plain.size - 1] == plain[-1]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=4), st.integers(1, 9))
def test_what_is_repeated_stands_after_its_equal(shards, most):
    values = np.random.default_rng(0).integers(0, 256, (6, 16), np.uint8)
    hashes = [values[np.array(shard, int)].reshape(-1, 16) for shard in shards]
    flat = [number for shard in shards for number in shard]
    expected = [number in flat[:i] for i, number in enumerate(flat)]
    assert repeated(hashes, most).tolist() == expected


ROWS = {
    "windows": lambda t: lambda s: Windows(s, LENGTH, t.vocab, t.pad),
    **{
        shape: lambda t, shape=shape: (
            lambda s: masked(s, t, Mlm(rows=shape), length=LENGTH, types=False, seed=0)
        )
        for shape in ("full", "packed", "padded")
    },
}


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("rows", ROWS)
def test_batches_are_bit_for_bit_those_of_the_texts(source, masking, tmp_path, rows, share):
    out = made(source, tmp_path / "out", masking)
    how = documents(masking, ROWS[rows](masking), cache=tmp_path / "cache")
    both = [
        open_data((Source(path=str(path)),), share, how, length=LENGTH, pad=masking.pad, seed=3)
        for path in (source, out)
    ]
    for texts, tokens in zip(*both, strict=True):
        if texts is None:
            assert tokens is None and share is None
            continue
        assert tokens.rows == texts.rows and tokens.tokens == texts.tokens
        assert tokens.counts["documents"] == texts.counts["documents"]
        for step in range(5):
            one, other = texts.batch(step, 4), tokens.batch(step, 4)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
                assert one[name].dtype == other[name].dtype


def test_any_workers_and_any_jobs_write_the_same_bytes(source, tokenizer, tmp_path):
    options = {"deduplicate": True, "min_tokens": 20}
    one = content(made(source, tmp_path / "one", tokenizer, **options))
    assert content(made(source, tmp_path / "two", tokenizer, count=2, **options)) == one
    for wave in range(2):  # all texts are hashed before any is left out
        for place in (2, 0, 1):
            jobs = made(source, tmp_path / "jobs", tokenizer, mine=(place, 3), **options)
        assert (wave == 1) == (jobs / corpus.MANIFEST).exists()
    assert content(jobs) == one


def test_the_first_of_equal_texts_stays_and_all_are_counted(source, tokenizer, tmp_path):
    sizes = [len(tokenizer.encode(text)) + 1 for text in TEXTS]
    most = sorted(sizes)[60]
    out = made(source, tmp_path / "out", tokenizer, deduplicate=True, max_tokens=most)
    manifest, long = json.loads((out / corpus.MANIFEST).read_text()), sum(n > most for n in sizes)
    assert manifest["counts"] == {"read": 92, "empty": 1, "repeated": 2, "long": long}
    assert manifest["documents"] == 90 - long
    assert manifest["tokens"] == sum(size for size in sizes if size <= most)
    assert sum(manifest["lengths"].values()) == manifest["documents"]
    assert [shard["counts"].get("repeated", 0) for shard in manifest["shards"]] == [0, 1, 0, 0, 1]
    assert [len(shard["files"]) for shard in manifest["shards"]] == [1, 1, 1, 1, 11]
    for shard in manifest["shards"]:
        for file in shard["files"]:
            assert Path(file["file"]).stat().st_size == file["bytes"]


def test_what_is_done_is_not_done_again_and_what_changed_is(source, tokenizer, tmp_path):
    own = tmp_path / "source"
    shutil.copytree(source, own)
    out = made(own, tmp_path / "out", tokenizer)
    before, whole = written(out), content(out)
    assert written(made(own, out, tokenizer)) == before and content(out) == whole
    (own / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(["another"])))
    after = written(made(own, out, tokenizer))
    assert [number for number in before if before[number] != after[number]] == ["00001"]
    damaged = out / "shards" / "00002" / "train.ids"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert written(made(own, out, tokenizer))["00002"] != after["00002"]
    said = out / "shards" / "00001" / "shard.json"
    whole = said.read_bytes()
    said.write_bytes(whole[:-9])
    shutil.rmtree(out / "tokenizer")
    made(own, out, tokenizer)
    assert said.read_bytes() == whole and (out / "tokenizer" / "tokenizer.json").exists()
    for path in own.glob("e*.txt"):
        path.unlink()
    assert sorted(path.name for path in (made(own, out, tokenizer) / "shards").iterdir()) == [
        f"{number:05d}" for number in range(4)
    ]


def test_of_other_corpora_nothing_stays(source, tokenizer, tmp_path):
    own = tmp_path / "source"
    shutil.copytree(source, own)
    made(own, tmp_path / "out", tokenizer, deduplicate=True)
    (own / "b.jsonl.gz").write_bytes(gzip.compress(jsonl([TEXTS[0], "another"])))
    again = made(own, tmp_path / "out", tokenizer, deduplicate=True)
    whole = made(own, tmp_path / "whole", tokenizer, deduplicate=True)
    assert content(again) == content(whole) and len([*again.glob("repeats-*")]) == 1


def test_texts_that_change_after_they_are_hashed_are_hashed_again(source, tokenizer, tmp_path):
    own, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(source, own)
    for place in (0, 1):
        made(own, out, tokenizer, mine=(place, 2), deduplicate=True)
    work = Work(str(own), str(out), deduplicate=True)
    found = tokenizing.parts(work)
    repeated = tokenizing.find_repeats(work, len(found))
    (own / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
    assert tokenizing.unhashed(work, found) == [1]
    with pytest.raises(DataError, match=r"b\.jsonl\.gz: changed while it was read"):
        tokenizing.write_shard(work, found[1], repeated)
    said = []
    assert workers.tokenize(work, workers=1, mine=(0, 2), say=said.append) is None
    assert "1 of 5 parts are to be hashed by other jobs" in said[-1]
    for place in (1, 0):
        made(own, out, tokenizer, mine=(place, 2), deduplicate=True)
    assert content(out) == content(made(own, tmp_path / "whole", tokenizer, deduplicate=True))


def test_a_file_that_grows_while_it_is_read_is_named(source, tokenizer, tmp_path, monkeypatch):
    file, read = tmp_path / "a.jsonl", tokenizing.sources.read
    shutil.copy(source / "a.jsonl", file)
    work = Work(str(file), str(tmp_path / "out"), deduplicate=True)
    claim(work, tokenizer)
    (part,) = tokenizing.parts(work)
    tokenizing.hash_texts(work, part)
    repeated = tokenizing.find_repeats(work, 1)

    def grown(*given):
        with file.open("ab") as stream:
            stream.write(jsonl(["more"]))
        return read(*given)

    monkeypatch.setattr(tokenizing.sources, "read", grown)
    with pytest.raises(DataError, match=r"a\.jsonl: changed while it was read"):
        tokenizing.write_shard(work, part, repeated)


def at_once(call, *given):
    """What it returns to four threads that call it at one time."""
    barrier = threading.Barrier(4)

    def called():
        barrier.wait(60)
        return call(*given)

    with ThreadPoolExecutor(4) as pool:
        return [each.result() for each in [pool.submit(called) for _ in range(4)]]


def unlocked(*given):
    raise OSError(errno.ENOLCK, "No locks available")


def test_jobs_that_do_the_same_at_once_agree(source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", unlocked)  # on a disk that cannot tell them of each other
    own = tmp_path / "source"
    shutil.copytree(source, own)
    work = Work(str(own), str(tmp_path / "out"), deduplicate=True)
    for _ in range(2):  # into nothing, then over what is there
        at_once(claim, work, tokenizer)
        found = tokenizing.parts(work)
        for part in found:
            at_once(tokenizing.hash_texts, work, part)
        (repeated,) = set(at_once(tokenizing.find_repeats, work, len(found)))
        for part in found:
            first, *others = at_once(tokenizing.write_shard, work, part, repeated)
            assert others == [first] * 3
        whole = tmp_path / f"whole-{len(found)}"
        made(own, tmp_path / "out", tokenizer, deduplicate=True)
        assert content(tmp_path / "out") == content(made(own, whole, tokenizer, deduplicate=True))
        for path in own.glob("*.jsonl*"):
            path.unlink()


def test_who_may_read_a_folder_may_read_all_of_it(source, tokenizer, tmp_path):
    (usual := tmp_path / "usual").mkdir()
    (file := usual / "file").touch()
    out = made(source, tmp_path / "out", tokenizer, deduplicate=True)
    for path in out.rglob("*"):
        assert path.stat().st_mode == (usual if path.is_dir() else file).stat().st_mode, path


@contextmanager
def nobody():
    """Meanwhile not root, who may read everything."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_what_may_not_be_read_is_refused_by_name(source, tokenizer, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # nobody else may look into the folders above
    out = made(source, Path("out"), tokenizer)
    shard = out / "shards" / "00003"
    for path in (shard / "train.ids", shard, shard.parent, out / corpus.MANIFEST, out):
        mode = path.stat().st_mode
        path.chmod(0)
        for verify in (True, False):
            with nobody(), pytest.raises(DataError, match=f"{path}.*: Permission denied"):
                how = documents(tokenizer, ROWS["windows"](tokenizer), cache="c", verify=verify)
                how(Source(path=str(out)), 0.0)
        path.chmod(mode)


def test_a_folder_of_texts_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # nobody else may look into the folders above
    (tmp_path / "texts" / "below").mkdir(parents=True)
    (tmp_path / "texts" / "below").chmod(0)
    with nobody(), pytest.raises(DataError, match="texts/below: cannot be read: Permission denied"):
        tokenizing.sources.find("texts")


DIE = """
import os, sys
from jaxlm import cli
calls = int(sys.argv[1])
def dying(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    setattr(os, name, call)
dying("fsync"), dying("rename"), dying("replace")
cli.main(sys.argv[2:])
"""


def words(source, out, folder, *more):
    return ["data", "tokenize", str(source), str(out), f"--tokenizer={folder}", *more]


def test_killed_anywhere_the_same_line_goes_on(source, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    whole = content(made(source, tmp_path / "whole", tokenizer, deduplicate=True))
    out, ends = tmp_path / "out", []
    while len(ends) < 40 and 0 not in ends:
        line = words(source, out, tmp_path / "tokenizer", "--deduplicate", "--workers=1")
        killed = subprocess.run([sys.executable, "-c", DIE, "17", *line], capture_output=True)
        ends.append(killed.returncode)
    assert ends[0] == -signal.SIGKILL and ends[-1] == 0 and len(ends) < 9
    assert content(out) == whole


def refused(capsys, *line):
    code = cli.run([str(word) for word in line])
    return code, capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_input_is_one_line_that_says_what_to_write(source, tokenizer, tmp_path, capsys):
    folder, out = tmp_path / "tokenizer", tmp_path / "out"
    tokenizer.save(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "bad.jsonl").write_bytes(jsonl(TEXTS[:2]) + b'{"text": "\xff"}\n')
    lines = [
        (words(tmp_path / "gone", out, folder), 3, "no such file or folder"),
        (words(tmp_path / "empty", out, folder), 3, "no .txt, .jsonl, .parquet file"),
        (words(source, tmp_path / "full", folder), 2, "thesis.tex, which this did not make"),
        (words(tmp_path / "bad.jsonl", out, folder), 3, "bad.jsonl:3:11: byte 0xff is not UTF-8"),
        (words(source, out, folder), 2, f'path="{tmp_path}/bad.jsonl", not "{source}"'),
        (words(source, out, tmp_path / "gone"), 3, "no such file"),
        (words(source, out, folder, "--shard=3/3"), 2, "'3/3' is not I/N"),
        (words(source, out, folder, "--min-tokens=9", "--max-tokens=8"), 2, "9 is over"),
        (words(source, "gs://bucket/out", folder), 2, "is no local or mounted folder"),
        (words(source, out, folder, "--executor=spark"), 2, "write local, ray or slurm"),
        (words(source, out, folder, "--executor=slurm"), 2, "--partition"),
        (words(source, out, folder, "--partition=cpu"), 2, "--partition: is SLURM's; leave it"),
        (words(source, out, folder, "--time=1:00:00"), 2, "--time: is SLURM's; leave it out"),
        (words(source, out, folder, "--executor=ray", "--shard=0/2"), 2, "ray does all parts"),
        (words("", out, folder), 2, "SOURCE: is empty"),
        (words(source, "", folder), 2, "OUT: is empty"),
        (words(source, tmp_path / "bad.jsonl", folder), 2, "bad.jsonl: is a file, or would lie"),
        (words(source, tmp_path / "bad.jsonl" / "out", folder), 2, "is a file, or would lie"),
    ]
    for line, code, said in lines:
        found = refused(capsys, *line)
        assert found[0] == code and said in found[1], found


def test_other_options_and_another_tokenizer_are_refused(source, tokenizer, masking, tmp_path):
    out = made(source, tmp_path / "out", tokenizer)
    begun = content(out)
    with pytest.raises(ConfigError, match="min_tokens=0, not 5; give 0, or name another folder"):
        claim(Work(str(source), str(out), min_tokens=5), tokenizer)
    with pytest.raises(ConfigError, match="tokenizer=.*name another folder"):
        claim(Work(str(source), str(out)), masking)
    assert content(out) == begun


def test_a_bad_file_leaves_what_is_done(source, tokenizer, tmp_path):
    own = tmp_path / "source"
    shutil.copytree(source, own)
    (own / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl(TEXTS[40:42]) + b"{\n"))
    with pytest.raises(DataError, match=r"c\.jsonl\.zst:3:2: not JSON"):
        made(own, tmp_path / "out", tokenizer, count=2)
    before = written(tmp_path / "out")
    (own / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl(TEXTS[40:60])))
    after = written(made(own, tmp_path / "out", tokenizer))
    assert before.items() <= after.items() and "00002" in after.keys() - before.keys()


LIMITED = """
import resource, sys
from jaxlm import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
cli.main(sys.argv[2:])
"""


def test_a_full_disk_is_one_line_and_what_is_done_stays(source, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    line = words(source, tmp_path / "out", tmp_path / "tokenizer", "--workers=1")
    most = 2 * sum(path.stat().st_size for path in (tmp_path / "tokenizer").iterdir())
    (large := tmp_path / "large").mkdir()
    shutil.copy(source / "a.jsonl", large)
    (large / "b.jsonl").write_bytes(jsonl(["fox " * most]))
    line[2] = str(large)
    command = [sys.executable, "-c", LIMITED, str(most), *line]
    full = subprocess.run(command, capture_output=True, text=True)
    assert full.returncode == 7, full.stderr
    assert "cannot be written: File too large" in full.stderr.splitlines()[-1]
    assert set(written(tmp_path / "out")) == {"00000"}


def test_a_job_array_is_known_by_its_variables():
    slurm = dict(zip(workers.ARRAY, "316", strict=True))
    assert workers.share("", {}) == (0, 1)
    assert workers.share("", slurm) == (2, 6)
    assert workers.share("1/4", slurm) == (1, 4)
    with pytest.raises(ConfigError, match="has steps"):
        workers.share("", slurm | {workers.ARRAY[2]: "2"})
    with pytest.raises(ConfigError, match="'x' is no number; unset it, or give --shard"):
        workers.share("", slurm | {workers.ARRAY[0]: "x"})


def opened(out, tokenizer, cache, **how):
    return corpus.open_corpus(str(out), tokenizer, cache=cache, **how)


def test_what_is_not_whole_is_refused_by_name(source, tokenizer, masking, tmp_path):
    out, cache = made(source, tmp_path / "out", tokenizer), tmp_path / "cache"
    with pytest.raises(DataError, match=r"set tokenizer\.path=.*out/tokenizer"):
        opened(out, masking, cache)
    with pytest.raises(DataError, match=r"set data\.parse_special=false"):
        opened(out, tokenizer, cache, parse_special=True)
    ids = out / "shards" / "00003" / "train.ids"
    whole = ids.read_bytes()
    ids.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DataError, match=r"shards/00003: train\.ids has sha256 \w{12}, not \w{12}"):
        opened(out, tokenizer, cache)
    ids.unlink()
    with pytest.raises(DataError, match=r"train\.ids is missing"):
        opened(out, tokenizer, cache)
    ids.write_bytes(whole)
    manifest = out / corpus.MANIFEST
    text = manifest.read_text()
    manifest.write_text(text.replace('"tokens": ', '"tokens": 1', 1))
    with pytest.raises(DataError, match=r"manifest\.json: is damaged"):
        opened(out, tokenizer, cache)
    manifest.unlink()
    with pytest.raises(DataError, match="has no manifest yet"):
        opened(out, tokenizer, cache)


def test_where_another_process_verifies_sizes_are_compared(source, tokenizer, tmp_path):
    out, said = made(source, tmp_path / "out", tokenizer), []
    how = {"cache": tmp_path / "cache", "say": said.append}
    ids = out / "shards" / "00003" / "train.ids"
    whole = ids.read_bytes()
    ids.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    found = [opened(out, tokenizer, verify=False, **how)]
    with pytest.raises(DataError, match=r"has sha256"):
        opened(out, tokenizer, **how)
    assert not any("verified" in line for line in said)
    ids.write_bytes(whole)
    found.append(opened(out, tokenizer, **how))
    assert "verified" in said[-1]
    assert found[0].train.digest == found[1].train.digest
    for path in (ids, ids.with_name("train.hashes"), next(out.glob("offsets-*"))):
        whole = path.read_bytes()
        path.write_bytes(whole[:-2])
        with pytest.raises(DataError, match=r"bytes, not|offsets-\w+: is damaged"):
            opened(out, tokenizer, verify=False, **how)
        path.write_bytes(whole)


def test_what_wants_texts_says_what_to_set(source, tokenizer, tmp_path, capsys):
    out = made(source, tmp_path / "out", tokenizer)
    for more in ((), ("objective.type=sft", f"tokenizer.path={out}/tokenizer")):
        code, line = refused(capsys, "data", "inspect", f"data.train={out}", "steps=1", *more)
        assert code == 3 and f"set tokenizer.path={out}/tokenizer" in line


def test_the_rows_shown_are_those_of_the_texts(source, tokenizer, tmp_path, capsys):
    out = made(source, tmp_path / "out", tokenizer)
    shown = []
    for path in (source, out):
        keys = (f"data.train={path}", f"tokenizer.path={out}/tokenizer", "length=64", "steps=1")
        assert cli.run(["data", "inspect", *keys, f"data.cache={tmp_path}/cache"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "quick brown fox" in shown[0]


def test_small_files_of_one_document_come_together(source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "LARGE", 2 * (source / "e00.txt").stat().st_size)
    work = Work(str(source / "e*.txt"), str(tmp_path))
    sizes = [len(part.files) for part in tokenizing.parts(work)]
    assert sum(sizes) == 11 and 2 in sizes and max(sizes) < 4
    assert tokenizing.parts(replace(work, path=str(source / "a.jsonl")))[0].number == 0
    assert os.path.isdir(work.out)
