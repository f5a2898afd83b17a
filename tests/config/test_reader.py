"""YAML reads by 1.2's core rules, keeps lines, and refuses what cannot be meant."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.config import reader
from jaxlm.core.errors import ConfigError

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("", None),
        ("~", None),
        ("'1'", "1"),
        ("true", True),
        ("[1, 2.]", [1, 2.0]),
        ("{a: b}", {"a": "b"}),
        ("gs://bucket/x", "gs://bucket/x"),
        ("*.txt", "*.txt"),
        ("lora_[ab]$", "lora_[ab]$"),
        (".inf", math.inf),
    ],
)
def test_values_follow_the_core_schema(text, value):
    read = reader.read_value(text, "here")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", 4, "key c stands twice, first at x.yaml:3; keep one"),
        ("a:\n\tb: 1\n", 2, "indent with spaces, not tabs"),
        ("a: 1\nb: [1,\n", 3, "mend the YAML"),
        ("a: x: y\n", 1, "quote a value that holds `: `"),
        ("a: *.txt\n", 1, "quote a value that starts with *"),
        ("a: 1\nb: !!python/name:os.system x\n", 2, "quote a value that starts with !"),
        ("a: &a [*a]\n", 1, "aliases grow without end"),
        (BOMB, 1, "aliases grow without end"),
        ("[" * 50_000, 1, "nested too deep"),
        ("- 1\n", 1, "is not `key: value` lines"),
        ("a: 1\n---\na: 2\n", 2, "one document"),
        ("a: 1\nb: \x01\n", 2, "not allowed"),
    ],
)
def test_bad_files_name_their_line(tmp_path, text, line, what):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        reader.read_file(path, "x.yaml")
    assert error.value.where == f"x.yaml:{line}" and what in error.value.what
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf8_name_their_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match="x.yaml:2: is not UTF-8"):
        reader.read_file(path, "x.yaml")


scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=20)
scalars |= st.floats(allow_nan=False) | st.sampled_from(
    ["1e-4", "010", "no", "~", ".5", "0x1", "="]
)
printable = scalars.filter(lambda v: not isinstance(v, str) or v.isprintable())


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), printable | st.lists(printable))
)
def test_what_is_written_reads_back_equal(values):
    assert (reader.read_value(reader.write(values), "here") or {}) == values
