"""Records come from every kind of file with where they are from."""

import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from jaxlm.core.errors import DataError
from jaxlm.data.records import is_saved, records

ROWS = [{"a": "x", "b": "1,2"}, {"a": 'ü\n"q"', "b": ""}]


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def saved(folder, table, **state):
    """A folder as Hugging Face's save_to_disk writes one."""
    folder.mkdir()
    with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], **state}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_every_format_gives_the_same_records(tmp_path):
    csv = 'a,b\r\nx,"1,2"\r\n"ü\n""q""",\r\n'
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    found = [
        write(tmp_path, "r.csv", csv),
        write(tmp_path, "r.json", json.dumps(ROWS)),
        write(tmp_path, "r.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        tmp_path / "r.parquet",
        saved(tmp_path / "r", table),
    ]
    for path in found:
        got = list(records(path))
        assert [record for _, record in got] == ROWS, path
        assert all(where.startswith(str(path)) for where, _ in got)
    assert is_saved(str(tmp_path / "r")) and not is_saved(str(tmp_path))


def test_in_a_tsv_a_quote_is_a_letter(tmp_path):
    path = write(tmp_path, "r.tsv", 'a\tb\r\n"x\t1,2\r\ny"\t\r\n')
    assert [record for _, record in records(path)] == [
        {"a": '"x', "b": "1,2"},
        {"a": 'y"', "b": ""},
    ]


@pytest.mark.parametrize(
    ("name", "text", "where", "what"),
    [
        ("a.json", '[{"a": 1},\n 3]', "a.json:item 2", "int where an object is meant"),
        ("a.json", '{"a": 1}', "a.json", "dict where a list of objects is meant; use .jsonl"),
        ("a.json", '[{"a": 1},\n{"b" 2}]', "a.json:2:6", "not JSON"),
        ("a.jsonl", '{"a": 1}\n{"b" 2}\n', "a.jsonl:2:6", "not JSON"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv:3", "3 fields where the first line names 2"),
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv:1", "the column 'a' is there twice"),
        ("a.tsv", 'a\tb\n"1\t2"\t3\n', "a.tsv:2", "write .csv where a text has a tab or a line"),
        ("a.csv", "a,b\n1\n", "a.csv:2", "1 fields where the first line names 2"),
        ("a.csv", 'a,b\n"1,2\n', "a.csv", "cannot be read"),
    ],
)
def test_what_a_file_does_wrong_is_told_with_its_line(tmp_path, name, text, where, what):
    with pytest.raises(DataError) as error:
        list(records(write(tmp_path, name, text)))
    assert str(error.value.where).startswith(f"{tmp_path}/{where}") and what in error.value.what


def test_a_data_set_that_was_filtered_and_saved_says_how_to_write_it(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    folder = saved(tmp_path / "r", table, _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        list(records(folder))
