"""tools/bench.py end to end on a miniature, and the tables that the docs are made of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = CHECKOUT / "tools"


@pytest.fixture(autouse=True)
def tools_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def bench(*arguments):
    command = [sys.executable, str(TOOLS / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_case_becomes_a_file_and_a_table(tmp_path):
    done = bench("tiny", "--alone", "--rounds", "3", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert result["format"] == 1 and result["case"] == "tiny" and result["kind"] == "step"
    assert result["definition"]["model"]["layers"] == 2
    assert {"device", "cores", "memory_bytes", "system"} == result["machine"].keys()
    assert {"jaxlm", "python", "jax"} <= result["versions"].keys()
    ours = result["sides"]["jaxlm"]
    assert len(ours["rounds"]["tokens_per_second"]) == 3
    assert ours["tokens_per_second"] in ours["rounds"]["tokens_per_second"]
    assert ours["last_loss"] < ours["first_loss"]
    assert ours["temporary_bytes"] > 0 and ours["peak_bytes"] > ours["temporary_bytes"]
    assert ours["mfu"] is None and "6N" in result["flops_formula"]
    assert result["ratio"] is None
    assert "| `tiny` | jaxlm |" in done.stdout and "not compared" in done.stdout


def test_an_unknown_case_is_refused_with_those_that_exist():
    done = bench("cpu-43m")
    assert done.returncode == 2 and "cpu-42m" in done.stderr


def step_result(**changed):
    side = {
        "parameters": 100,
        "first_loss": 6.25,
        "compile_seconds": 1.5,
        "temporary_bytes": 2_000_000,
        "peak_bytes": 3_000_000,
        "tokens_per_second": 1234.5,
        "mfu": 0.41,
    }
    sides = {"jaxlm": side, "torch eager": {**side, "tokens_per_second": 1000.0} | changed}
    return {
        "kind": "step",
        "case": "cpu-42m",
        "date": "2026-01-02T03:04:05Z",
        "machine": {"device": "Some CPU", "cores": 2},
        "load": {"before": 0.1, "after": 2.0},
        "versions": {"jax": "0.10.2", "torch": "2.13.0", "transformers": "5.0"},
        "expected_first_loss": 6.25,
        "sides": sides,
        "failed": {"torch compiled": "no C++ compiler"},
        "ratio": 1.2345,
        "targets": [{"figure": "ratio", "at_least": 1.2, "met": True}],
    }


def test_the_docs_hold_what_the_files_say(tmp_path):
    from measure import results

    folder, page = tmp_path / "benchmarks", tmp_path / "page.md"
    results.write(step_result(), folder)
    page.write_text(f"# Title\n{results.BEGIN}\nold\n{results.END}\nend\n")
    results.update_docs(page, folder)
    text = page.read_text()
    assert text.startswith("# Title\n") and text.endswith("end\n") and "old" not in text
    assert "1.23 (at least 1.2: met)" in text and "41.0%" in text
    assert "| torch compiled | failed: no C++ compiler |" in text
    results.update_docs(page, folder)
    assert page.read_text() == text, "a second time changes nothing"


def test_a_page_without_markers_is_refused(tmp_path):
    from measure import results

    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="add both"):
        results.update_docs(page, tmp_path)


@pytest.mark.parametrize(
    ("changed", "word"), [({"parameters": 101}, "101 parameters"), ({"first_loss": 9.0}, "9.000")]
)
def test_sides_that_compute_something_else_are_found(changed, word):
    from measure import turns

    assert turns.same_network(step_result()) == []
    (line,) = turns.same_network(step_result(**changed))
    assert word in line


def test_every_case_can_be_built():
    from measure.cases import CASES, FigureCase
    from measure.figures import FUNCTIONS

    from jaxlm.models.spec import ModelSpec

    for name, case in CASES.items():
        if isinstance(case, FigureCase):
            assert case.function in FUNCTIONS, name
        if "model" in case.shape:
            ModelSpec(**case.shape["model"])


def test_the_pages_table_is_that_of_the_files(tmp_path):
    from measure import results

    page = CHECKOUT / "docs" / "benchmarks.md"
    copy = tmp_path / "benchmarks.md"
    copy.write_text(page.read_text())
    results.update_docs(copy, CHECKOUT / "benchmarks")
    assert copy.read_text() == page.read_text(), "run tools/bench.py --table"


def test_a_lora_step_holds_a_small_share_of_full_fine_tuning():
    from measure.cases import CASES
    from measure.lora_memory import compiled

    case = CASES["lora-memory"]
    small = {**case.shape, **case.shape["small"], "length": 32}
    for kind, least in (("bfloat16", 85), ("nf4", 93)):
        held, full = compiled(small, kind)
        assert 100 * (1 - held / full) >= least
