"""Tokens of Python source with their kinds: labeled words that every machine with Python has."""

import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.core.errors import DataError
from jaxlm.data.files import reading
from jaxlm.data.records import Record

KINDS = ("COMMENT", "NAME", "NUMBER", "OP", "STRING")
"""Of `tokenize`, without what marks lines and indents."""
MOST = 48
"""Tokens of an example, which ends where a line does."""
LONGEST = 80
"""Letters of a token: what is longer, such as most docstrings, is left out with its line."""


def lexemes(file: Path) -> Iterator[Record]:
    """The tokens of one Python file in stretches of whole lines, in order.

    words: as they are written; tags: one of KINDS for each. Empty for a file that this Python
    cannot read.
    """
    try:
        with reading(file), tokenize.open(file) as stream:
            found = list(tokenize.generate_tokens(stream.readline))
    except (SyntaxError, ValueError, tokenize.TokenError, DataError):
        return
    words: list[str] = []
    tags: list[str] = []
    first = 1
    for line in _lines(found):
        if words and len(words) + len(line) > MOST:
            yield f"{file}:{first}", {"words": words, "tags": tags}
            words, tags = [], []
        if not words:
            first = line[0].start[0]
        if len(line) <= MOST and all(len(token.string) <= LONGEST for token in line):
            words = words + [token.string for token in line]
            tags = tags + [_kind(token) for token in line]
    if words:
        yield f"{file}:{first}", {"words": words, "tags": tags}


def _lines(found: list[Any]) -> Iterator[list[Any]]:
    """The tokens of each logical line that has any."""
    line: list[Any] = []
    for token in found:
        if token.string.strip() and _kind(token) in KINDS:
            line.append(token)
        if token.type in (tokenize.NEWLINE, tokenize.NL) and line:
            yield line
            line = []
    if line:
        yield line


def _kind(token: Any) -> str:
    name = tokenize.tok_name[token.type]
    return "STRING" if name.startswith(("FSTRING", "TSTRING")) else name  # parts, from 3.12 on
