"""The docs' table of families: all of them, and only what a check on the fixtures found."""

import json

from families import golden, table

from jaxlm.families import FAMILIES

STORED = json.loads(table.STORED.read_text())
AGAIN = "run python tests/families/table.py"


def test_the_page_is_what_was_measured():
    assert table.PAGE.read_text() == table.page(STORED), AGAIN


def test_every_family_and_fixture_was_checked():
    assert [*STORED["families"]] == [*FAMILIES], AGAIN
    checked = [name for fixtures in STORED["families"].values() for name in fixtures]
    assert sorted(checked) == sorted(golden.CONFIGS), AGAIN


def test_what_fails_is_said():
    bad = {"export": [], "difference": 0.1, "generate": False, "train": [1.0, 2.0, 3.0]}
    lines = table.page({**STORED, "families": {"odd": {"one": bad}}}).splitlines()
    (row,) = [line for line in lines if line.startswith("| `odd`")]
    for word in ("| no |", "1.0e-01: too much", "not the same", "does not learn"):
        assert word in row
