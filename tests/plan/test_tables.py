"""The tables of docs/planning.md are what their command writes."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.once


def test_the_page_has_the_tables_as_they_are_now(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.delitem(sys.modules, "plan_tables", raising=False)
    import plan_tables

    text = plan_tables.PAGE.read_text()
    assert plan_tables.page(text) == text


def test_each_was_compiled_within_its_bounds():
    kept = json.loads((ROOT / "benchmarks/plan-compile.json").read_text())
    for found in kept["cases"].values():
        said, memory = found["compiled"], found["memory"]
        assert said["seconds"] < 300 and said["process_bytes"] < 4e9 and said["kernels"] >= 3
        assert said["peak"] < memory["limit"]
        assert memory["total"] / said["peak"] == pytest.approx(1, abs=0.25)
