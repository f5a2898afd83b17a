"""When an answer is right."""

import json

import pytest

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.training.marks import fits, marker, parse_json


@pytest.mark.parametrize(
    ("match", "answer", "expected", "right"),
    [
        ("exact", " four\n", "four", True),
        ("exact", "four.", "four", False),
        ("json", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ("json", '{"a": 1} and more', '{"a": 1}', False),
        ("json", '{"a": NaN}', None, False),
        ("json", '{"a": 1, "a": 2}', None, False),
        ("json", "[1]", None, True),
        ("json", '{"a": [1.0]}', '{"a": [1]}', True),
        ("json", '{"a": [true]}', '{"a": [1]}', False),
        ("json:a", '{"a": 1}', '{"a": true}', False),
        ("json", "[" * 100_000, None, False),
        ("json:city.name", '{"city": {"name": "Oslo"}}', '{"city": {"name": "Oslo"}}', True),
        ("json:city.name", '{"city": {"name": "Oslo"}}', "Oslo", True),
        ("json:city.name", '{"city": {"name": "Rome"}}', "Oslo", False),
        ("json:rows.1", '{"rows": [1, 2]}', "2", True),
        ("json:ok", '{"ok": true}', "true", True),
        ("json:ok", '{"ok": false}', "true", False),
        ("json:ok", '{"ok": null}', " null ", True),
        ("json:rows", '{"rows": [1, 2]}', "[1,2]", True),
        ("json:rows.5", '{"rows": [1, 2]}', None, False),
        ("json:a.b", '{"a": "text"}', None, False),
        ("xml", "<a><b>1</b></a>", "<a>\n <b>1</b>\n</a>", True),
        ("xml", "<a><b>1</b>", None, False),
        ("xml", "<a/>text", None, False),
        ("xml:b", "<a><b> 1 </b></a>", "1", True),
        ("xml:c", "<a><b>1</b></a>", None, False),
        ("regex:#### (\\d+)", "so\n#### 12", "we get #### 12", True),
        ("regex:#### (\\d+)", "so #### 12", "12", True),
        ("regex:#### (\\d+)", "so #### 13", "#### 12", False),
        ("regex:^def \\w+", "def main(", None, True),
        ("regex:^def \\w+", "main(", None, False),
    ],
)
def test_an_answer_is_right(match, answer, expected, right):
    assert marker(match)[0](answer, expected) is right


@pytest.mark.parametrize("match", ["exactly", "json:", "regex:", "exact:a", "regex:("])
def test_another_way_to_match_is_refused(match):
    with pytest.raises(ConfigError, match=r"samples.match: "):
        marker(match)


def test_a_parsed_answer_fits_a_schema(tmp_path):
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    fit = fits(str(tmp_path / "schema.json"))
    assert fit(parse_json('{"a": 1}')) and not fit(parse_json('{"a": "1"}')) and not fit([])


def test_a_schema_may_name_its_own_parts(tmp_path):
    rows = {"items": {"$ref": "#/$defs/row"}, "$defs": {"row": {"type": "integer"}}}
    (tmp_path / "schema.json").write_text(json.dumps({"$id": "https://x.invalid/rows", **rows}))
    fit = fits(str(tmp_path / "schema.json"))
    assert fit([1]) and not fit(["1"])
    (tmp_path / "schema.json").write_text('{"$ref": "#"}')
    assert not fits(str(tmp_path / "schema.json"))(1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"type": "objct"}', "is no JSON schema"),
        ("{", "not JSON"),
        (None, "cannot be read"),
        ('{"items": {"$ref": "#/$defs/row"}}', "\\$ref #/\\$defs/row names nothing in it"),
        ('{"$ref": "http://127.0.0.1:9/a"}', "127.0.0.1:9/a names nothing in it"),
    ],
)
def test_what_is_no_schema_is_refused(tmp_path, text, what):
    if text is not None:
        (tmp_path / "schema.json").write_text(text)
    with pytest.raises(DataError, match=what):
        fits(str(tmp_path / "schema.json"))
