"""The configuration stays a page, and every key is documented and read."""

import ast
from pathlib import Path

import jaxlm
from jaxlm.config.keys import documented
from jaxlm.config.schema import Mesh
from jaxlm.core.mesh import AXES

PACKAGE = Path(jaxlm.__file__).parent


def test_the_configuration_stays_a_page():
    counted = [key for key in documented() if not key.startswith("model.")]
    assert len(counted) <= 75, counted


def test_every_key_says_what_it_is():
    bare = [key for key, field in documented().items() if not field.description]
    assert [key for key in bare if not key.endswith(".type")] == []


def test_every_key_is_read():
    """As an attribute, by its last name, outside the files that declare and load keys."""
    read = set()
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
    for path in [*files, PACKAGE / "config" / "schema.py"]:  # the schema's properties read too
        if path.name != "spec.py":
            read |= {
                n.attr
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Attribute)
            }
    assert tuple(Mesh.model_fields) == AXES and "mesh" in read  # which is read axis by axis
    read |= set(AXES)
    assert [key for key in documented() if key.rpartition(".")[2] not in read] == []
