"""Labeled words out of Python source."""

from collections import Counter

from jaxlm.config.objectives import TokenClassification
from jaxlm.config.schema import Source
from jaxlm.data import files, labeled
from jaxlm.data.lexemes import KINDS, MOST, lexemes

SOURCE = '''
def double(x):
    """%s"""
    return 2 * x  # twice


name = "a b" + f"{name}!"
''' % ("long " * 40)


def test_each_word_has_its_kind_and_lines_stay_whole(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    [(where, record)] = lexemes(tmp_path / "a.py")
    assert where == f"{tmp_path}/a.py:2"
    pairs = list(zip(record["words"], record["tags"], strict=True))
    assert [word for word, _ in pairs[:6]] == ["def", "double", "(", "x", ")", ":"]
    assert [kind for _, kind in pairs[:6]] == ["NAME", "NAME", "OP", "NAME", "OP", "OP"]
    assert ("2", "NUMBER") in pairs and ("# twice", "COMMENT") in pairs
    assert ('"a b"', "STRING") in pairs and not any("long" in word for word, _ in pairs)


def test_a_file_of_another_python_is_left_out(tmp_path):
    for name, text in (("b", b"# coding: nothing\n"), ("c", b"'\xff'\n"), ("d", b"x = (\n")):
        (tmp_path / f"{name}.py").write_bytes(text)
        assert [*lexemes(tmp_path / f"{name}.py")] == []


def test_the_standard_library_holds_all_kinds():
    found = [record for file in files.find("stdlib", ())[:40] for _, record in lexemes(file)]
    counts = Counter(tag for record in found for tag in record["tags"])
    assert set(counts) == set(KINDS) and min(counts.values()) > 100
    assert max(len(record["words"]) for record in found) <= MOST


def test_they_are_labeled_words():
    wanted = TokenClassification()
    assert labeled.names([Source(path="stdlib")], wanted) == KINDS
