"""What `pip install` gives: presets, the type marker, the licence and the right requirements."""

import ast
import itertools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's archive, built from a copy so that no other test sees build files."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it comes with jaxlm[test]")
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("jaxlm", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    with zipfile.ZipFile(next((copy / "out").glob("*.whl"))) as archive:
        yield archive


def test_the_wheel_holds_every_preset_and_the_type_marker(wheel):
    names = set(wheel.namelist())
    presets = {f"jaxlm/presets/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert presets <= names and "jaxlm/py.typed" in names
    files = (path for path in (ROOT / "jaxlm").rglob("*") if "__pycache__" not in path.parts)
    ours = {str(path.relative_to(ROOT)) for path in files if path.is_file()}
    assert ours <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"jaxlm"}


def test_presets_are_found_in_an_installed_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = "from jaxlm.config.load import load; print(load('quickstart').name)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path / "site", env={"PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "quickstart", done.stderr


def test_the_licence_and_the_version_are_in_the_metadata(wheel):
    import jaxlm

    (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    text = wheel.read(name).decode()
    assert "License-Expression: Apache-2.0" in text
    assert f"\nVersion: {jaxlm.__version__}\n" in text


def test_bounds_are_lower_bounds_but_for_orbax():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    capped = [line for line in PROJECT["dependencies"] + extras if re.search(r"[<~]|==\d", line)]
    assert capped == ["orbax-checkpoint>=0.12.3,<1"]


def test_accelerators_are_for_linux():
    """Without the marker a lock for all systems fails: their wheels exist for Linux alone."""
    for extra in ("cuda12", "cuda13", "tpu"):
        (line,) = PROJECT["optional-dependencies"][extra]
        assert line.endswith("; sys_platform == 'linux'")


def test_what_is_imported_is_required():
    """The libraries that jaxlm itself imports are dependencies or extras."""
    nodes = [n for p in (ROOT / "jaxlm").rglob("*.py") for n in ast.walk(ast.parse(p.read_text()))]
    found = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    found |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    lines = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    named = {re.split(r"[^A-Za-z0-9_-]", line)[0].replace("-", "_") for line in lines}
    named |= {"absl", "google", "yaml", "orbax", "mlflow"}  # by another name
    named |= {"jaxlm", "jaxlib"}
    roots = {name.partition(".")[0] for name in found}
    assert roots - named - set(sys.stdlib_module_names) == set()


def test_what_is_required_is_imported():
    """Or read through another library: epath's paths, and arrow's and tensorstore's files."""
    text = "".join(path.read_text() for path in (ROOT / "jaxlm").rglob("*.py"))
    others = {"absl_py": "absl", "pyyaml": "yaml", "orbax_checkpoint": "orbax"}
    others["protobuf"] = "google.protobuf"
    for line in PROJECT["dependencies"]:
        name = re.split(r"[^A-Za-z0-9_-]", line)[0].replace("-", "_")
        module = others.get(name, name)
        assert re.search(rf"^\s*(import|from) {module}\b", text, re.MULTILINE), name
