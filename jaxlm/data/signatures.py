"""What functions are for, and how they begin: examples that every machine with Python has.

A prompt is the first paragraph of a docstring of the standard library, its completion the line that
begins the function.
"""

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

from jaxlm.core.errors import DataError
from jaxlm.data.files import reading
from jaxlm.data.records import Record

SHORTEST, LONGEST = 12, 160
"""Letters of a docstring's first paragraph that is a prompt."""
WIDEST = 100
"""Letters of a line that begins a function."""


def signatures(file: Path) -> Iterator[Record]:
    """The public functions and methods of one Python file that say what they do, in order.

    prompt: the paragraph as one line, with its end; completion: `def name(arguments):`. Empty for a
    file that this Python cannot parse.
    """
    try:
        with reading(file), tokenize.open(file) as stream:
            parsed = ast.parse(stream.read())
    except (SyntaxError, ValueError, DataError):  # written for another Python, or no text
        return
    functions = [node for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: node.lineno):
        said = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
        line = f"def {node.name}({ast.unparse(node.args)}):"
        fits = SHORTEST <= len(said) <= LONGEST and len(line) <= WIDEST
        if fits and not node.name.startswith("_"):
            yield f"{file}:{node.lineno}", {"prompt": f"{said}\n", "completion": line}
