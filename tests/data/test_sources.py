import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxlm.config.schema import Source
from jaxlm.core.errors import DataError
from jaxlm.data import files, sources

TEXTS = ["one\r\ntwo\u2028three", "", "nul \x00, tab \t, ünï, 🙂", " "]


def read(path, field="text"):
    return list(sources.read(Source(path=str(path), field=field)))


def lines(texts):
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packed", PACKED)
def test_jsonl_gives_its_texts_and_counts_the_empty_ones(tmp_path, packed):
    path = write(tmp_path / f"a.jsonl{packed}", PACKED[packed](lines(TEXTS)))
    counts = Counter()
    found = list(sources.read(Source(path=str(path)), counts))
    assert found == [text for text in TEXTS if text]
    assert counts == {"documents": 3, "empty": 1}


@pytest.mark.parametrize("packed", PACKED)
def test_txt_is_one_document_kept_as_it_is(tmp_path, packed):
    text = "\ufefffirst\r\nsecond\x00 🙂\n"
    path = write(tmp_path / f"A.TXT{packed}", PACKED[packed](text.encode()))
    assert read(path) == [text.removeprefix("\ufeff")]


def test_jsonl_with_a_byte_order_mark_windows_lines_and_blank_lines(tmp_path):
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}'
    assert read(write(tmp_path / "a.jsonl", content)) == ["a", "b"]


def test_parquet_gives_the_named_column(tmp_path):
    table = pyarrow.table({"body": [f"text {i}" for i in range(3000)], "n": list(range(3000))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    assert read(tmp_path / "a.parquet", "body") == [f"text {i}" for i in range(3000)]


def test_zstd_of_several_frames(tmp_path):
    frames = [zstandard.compress(lines([f"{i}" * 300_000])) for i in range(3)]
    found = read(write(tmp_path / "a.jsonl.zst", b"".join(frames)))
    assert found == [f"{i}" * 300_000 for i in range(3)]


def test_a_folder_is_read_sorted_without_hidden_and_other_files(tmp_path):
    for name in (
        "b.txt",
        "a/z.txt",
        "a/b.jsonl",
        "a.txt",
        ".hidden.txt",
        ".git/x.txt",
        "README.md",
    ):
        write(tmp_path / name, lines(["record"]) if name.endswith("l") else name.encode())
    assert read(tmp_path) == ["record", "a/z.txt", "a.txt", "b.txt"]


def test_links_are_followed_but_not_up(tmp_path):
    write(tmp_path / "elsewhere" / "a.txt", b"linked")
    write(tmp_path / "data" / "b.txt", b"plain")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    assert read(tmp_path / "data") == ["linked", "plain"]


def test_a_glob_is_read_sorted(tmp_path):
    for name in ("2.txt", "1.txt", "x/3.txt", "3.jsonl"):
        write(tmp_path / name, name.encode())
    assert read(tmp_path / "*.txt") == ["1.txt", "2.txt"]
    assert read(tmp_path / "**" / "*.txt") == ["1.txt", "2.txt", "x/3.txt"]


def test_a_name_with_brackets_is_a_file_first(tmp_path):
    assert read(write(tmp_path / "a[1].txt", b"found")) == ["found"]


def test_the_standard_library_is_its_own_source_without_tests():
    counts = Counter()
    names = sources.find("stdlib")
    assert {"tokenize.py", "dataclasses.py"} <= {path.name for path in names}
    assert not any(part in files.NOT_STDLIB for path in names for part in path.parts[:-1])
    assert names == sources.find("stdlib")
    found = list(sources.read(Source(path="stdlib"), counts))
    assert counts["documents"] == len(found) > 300
    assert counts["documents"] + counts["empty"] + counts["skipped"] == len(names)


CUT = lines(["x" * 30, "y" * 30])
WRONG = [
    ("a.txt", b"ok\nno\xff", ":2:3", "byte 0xff is not UTF-8"),
    ("b.txt", "ä".encode("utf-16"), ":1:1", "not UTF-8; save the file as UTF-8"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ":2:11", "byte 0xff is not UTF-8"),
    ("b.jsonl", b'{"text": "a"}\n{"text": "b"\n', ":2:13", "not JSON: Expecting ',' delimiter"),
    ("c.jsonl", b'{"text": "a\x00b"}\n', ":1:12", "not JSON: Invalid control character"),
    ("d.jsonl", b"[1]\n", ":1", "list where an object is meant"),
    ("e.jsonl", b'{"body": "a", "n": 1}\n', ":1", "no column 'text'; the columns are body, n"),
    ("f.jsonl", b'{"text": null}\n', ":1", "text is NoneType, not a string"),
    (
        "g.jsonl",
        b'\n{"text": "a\\ud83d"}\n',
        ":2",
        "character 1 of text is the lone surrogate U\\+D83D",
    ),
    ("h.jsonl", b"[" * 100_000, ":1", "not JSON that can be read.*; write one flat object per"),
    ("i.jsonl", b"9" * 5000, ":1", "not JSON that can be read"),
    ("a.jsonl.gz", gzip.compress(CUT, mtime=0)[:-12], "", "cannot be read.*; repair the file"),
    ("b.jsonl.gz", CUT, "", "cannot be read: Not a gzipped file"),
    ("a.jsonl.zst", zstandard.compress(CUT)[:-3], "", "ends inside a compressed frame"),
    ("b.jsonl.zst", CUT, "", "cannot be read"),
    ("c.jsonl.gz", b"", "", "no bytes, not even of compression; copy it again"),
    ("c.jsonl.zst", b"", "", "no bytes, not even of compression; copy it again"),
    ("a.parquet", b"PAR1 nothing", "", "cannot be read"),
    ("a.csv", b"a,b", "", "not a format that is read; use .txt, .jsonl, .parquet"),
]


@pytest.mark.parametrize(("name", "content", "where", "message"), WRONG)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path, name, content, where, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as raised:
        read(path)
    assert raised.value.where == f"{path}{where}"
    assert "\n" not in str(raised.value)


def test_parquet_names_the_columns_and_the_row(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", None], "n": [1, 2]}), path)
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text'; the columns are body, n"):
        read(path)
    with pytest.raises(DataError, match=r"a\.parquet:row 2: body is NoneType"):
        read(path, "body")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "no such file or folder"),
        ("empty", "no .txt, .jsonl, .parquet file in this folder"),
        ("*.txt", "no file matches"),
    ],
)
def test_no_files_is_an_error(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        sources.find(str(tmp_path / path))


@pytest.mark.parametrize("path", [".", "a.jsonl", "*.jsonl"])
def test_a_pipe_is_refused_instead_of_waited_for(path, tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl: is a pipe"):
        sources.find(str(tmp_path / path))


def test_what_is_not_there_is_said_with_the_nearest_name_and_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "corpus" / "train.txt", b"x")
    monkeypatch.chdir(tmp_path)
    for path, line in [
        ("corpus/trian.txt", f"in {tmp_path}; did you mean corpus/train.txt?"),
        ("elsewhere.txt", f"in {tmp_path}; write its whole path, or `stdlib`"),
        ("corpus/*.jsonl", f"in {tmp_path}; quote the glob"),
        (f"{tmp_path}/elsewhere.txt", "no such file or folder; write"),
    ]:
        with pytest.raises(files.NotFoundError, match=re.escape(line)):
            sources.find(path)


def test_a_bucket_reads_like_a_folder(bucket):
    bucket.pipe({"/b/data/2.txt": b"two", "/b/data/in/1.jsonl": lines(["one"]), "/b/x.md": b"no"})
    assert read("gs://b/data") == ["two", "one"]
    assert read("gs://b/data/2.txt") == ["two"]
    assert read("gs://b/data/in/*.jsonl") == ["one"]
    with pytest.raises(DataError, match="gs://b/nothing: no such file or folder"):
        read("gs://b/nothing")


@pytest.mark.parametrize(("scheme", "extra"), files.EXTRAS.items())
def test_a_missing_extra_is_named(monkeypatch, scheme, extra):
    from etils.epath import backend

    for module in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    backend.fsspec_backend._get_filesystem.cache_clear()
    with pytest.raises(DataError, match=rf"{scheme}://.*pip install -e '.\[{extra}\]'"):
        read(f"{scheme}://bucket/file.txt")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(
        DataError, match="ftp:// is not read; use a local path or one of gs://, s3://"
    ):
        read("ftp://host/file.txt")


def test_sources_import_neither_jax_nor_pyarrow():
    code = "import sys, jaxlm.data.sources as s; s.find('stdlib'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "pyarrow", "etils", "zstandard"} & set(done.stdout.split())


def test_a_full_memory_while_a_file_is_read_is_not_a_bad_file(monkeypatch):
    """Else it would leave the file out of the standard library's cache, or end with code 3."""

    def full(file):
        raise MemoryError

    monkeypatch.setattr(sources.tokenize, "open", full)
    with pytest.raises(MemoryError):
        read(files.STDLIB)
