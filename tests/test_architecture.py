"""The house's rules, walked by ast: which room may import which, and how large things may grow."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import jaxlm

PACKAGE = Path(jaxlm.__file__).parent
CHECKOUT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
ARROWS = {
    "core": set(),
    "config": {"core", "models.spec"},
    "models": {"core"},
    "text": {"core"},
    "data": {"core", "text"},
    "objectives": {"core", "data", "models.spec", "models.transformer"},
    "checkpoint": {"core"},
    "families": {"core", "models.spec"},
    "hub": {"core", "families", "models", "text"},
    "observe": {"core"},
    "launch": {"core", "config", "models.axes", "models.spec"},
    "inference": {"core", "checkpoint", "config", "families", "hub", "models", "text"},
    "plan": {
        *("core", "config", "models", "objectives", "inference.run", "training.step"),
        *("training.building", "training.classifier", "training.facts", "training.objective"),
        "training.state",
    },
    "training.step": {"core", "objectives.base", "training.cached"},
    "training.cached": {"core", "objectives.base"},
    "training.optim": {"core", "config.optimizers", "training.schedule"},
    "training.schedule": {"config.optimizers"},
    "training": ROOMS - {"cli", "plan"},
    **dict.fromkeys(("training.loop", "training.planned", "training.shortage"), ROOMS - {"cli"}),
}
"""What each room, or file of a room, may import. cli and the package itself know all. The planner
plans the run's own step, so it knows how one is built; of training, what runs steps knows it."""

OWNERS = {"flax": "models", "orbax": "checkpoint"}
NEVER = {"torch", "transformers", "tensorflow", "clu", "pickle"}
OTHERS = {"inference.against": {"torch", "transformers"}}
"""A program of its own, which nothing imports: the other side of a comparison."""
WITHOUT_JAX = ("cli", "config", "core.errors", "core.section", "core.platform", "text")
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}

READING_PATH = (
    "training/step.py",
    "objectives/base.py",
    "objectives/lm.py",
    "objectives/xent.py",
    "core/tree.py",
    "core/mesh.py",
    "models/transformer.py",
    "models/attention.py",
    "models/layers.py",
    "training/optim.py",
)
"""What a newcomer reads to understand one training step."""


def room(path):
    """`training/step.py` -> `training.step`; `cli.py` -> `cli`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def parsed(path):
    return ast.parse(path.read_text())


def imports(path, *, top_only=False):
    """Dotted names that a file imports; type-checking blocks do not run and do not count."""
    nodes = list(parsed(path).body) if top_only else list(ast.walk(parsed(path)))
    typing = [
        inner
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    ]
    found = set()
    for node in nodes:
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import from its root"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name, allowed):
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


@pytest.mark.parametrize("path", FILES, ids=room)
def test_imports_follow_the_arrows(path):
    here = room(path)
    mine = here.partition(".")[0]
    if here in ARROWS or mine in ARROWS:
        allowed = ARROWS.get(here, ARROWS.get(mine, set())) | {mine}
        if here in ARROWS and "." in here:
            allowed = ARROWS[here] | {here}
        ours = {name.removeprefix("jaxlm.") for name in imports(path) if name.startswith("jaxlm.")}
        ours -= {"__version__"}
        broken = sorted(name for name in ours if not within(name, allowed))
        assert broken == [], f"{here} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", FILES, ids=room)
def test_each_library_has_its_room(path):
    roots = {name.partition(".")[0] for name in imports(path)}
    mine = room(path).partition(".")[0]
    assert not roots & (NEVER - OTHERS.get(room(path), set()))
    assert not any(within(name.removeprefix("jaxlm."), OTHERS) for name in imports(path))
    assert [lib for lib, owner in OWNERS.items() if lib in roots and mine != owner] == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if within(room(path), WITHOUT_JAX)], ids=room
)
def test_what_answers_at_once_does_not_import_jax(path):
    roots = {name.partition(".")[0] for name in imports(path, top_only=True)}
    assert not roots & HEAVY


@pytest.mark.parametrize("path", FILES, ids=room)
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400
    functions = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef)]
    lengths = {f"{n.name}:{n.lineno}": (n.end_lineno or 0) - n.lineno + 1 for n in functions}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_one_training_step_is_an_afternoon():
    lines = {name: len((PACKAGE / name).read_text().splitlines()) for name in READING_PATH}
    assert len(lines) <= 10 and sum(lines.values()) <= 1500, lines


def test_no_room_for_odds_and_ends():
    names = {path.stem for path in FILES}
    assert not names & {"utils", "util", "helpers", "common", "misc", "manager"}
    classes = [n for p in FILES for n in ast.walk(parsed(p)) if isinstance(n, ast.ClassDef)]
    assert [n.name for n in classes if n.name.endswith("Manager")] == []


def test_no_name_that_newer_jax_has_dropped():
    for path in FILES:
        dropped = {"jax.experimental.pjit", "jax.experimental.shard_map", "jax.experimental.maps"}
        assert not any(within(name, dropped) for name in imports(path)), path
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.With):
                assert all(ast.unparse(item.context_expr) != "mesh" for item in node.items), path


def test_no_two_files_of_tests_share_a_name():
    """pytest imports them by it."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []
