"""What a parameter is by its name, and what a person may call many of them.

A pattern is a regular expression, a word of WORDS, or `last_layers: N`. The layers under the last N
lie apart, in LOWER beside `blocks`, so that what is frozen of a stack is a leaf of its own; so do
the rows of ids that a tokenizer adds, in NEW_ROWS. No jax here: the configuration reads this.
"""

import difflib
import re
from collections.abc import Iterable, Mapping

from jaxlm.core.errors import ConfigError

LOWER = "lower_blocks"
NEW_ROWS = "new_rows"
TYPES = {
    "adapters": r"/lora_",
    "norms": r"_norm/(scale|bias)$",
    "embeddings": r"/embedding$|^embed/new_rows$",
    "head": r"^head/",
    "attention": r"/(attn|cross)/[a-z]/(kernel(_\w+)?|bias)$",
    "mlp": r"/(mlp|experts)/[a-z]+/(kernel(_\w+)?|bias)$",
}
"""Type of a layer -> its parameters. Every parameter matches exactly one; a test holds that."""
WORDS = {
    "lora": TYPES["adapters"],
    "biases": r"bias$",
    "new_rows": rf"/{NEW_ROWS}$",
    **{name: pattern for name, pattern in TYPES.items() if name != "adapters"},
}
"""Word -> the pattern that it stands for."""
_WHY = {
    "head": "the embedding is this model's head (model.tied): write embeddings",
    "lora": "add adapters with lora.rank=8",
    "biases": "this model has none",
    "new_rows": "the tokenizer adds no id to that of init; set tokenizer.path to one that does",
}
_LAST = re.compile(r"last_layers: ([0-9]+)")


def whole(name: str) -> str:
    """The name of a parameter in a tree whose layers all lie together."""
    return name.replace(f"/{LOWER}/", "/blocks/")


def type_of(name: str) -> str:
    """The type, one of TYPES, of the layer that a parameter is of; `other` for what has none."""
    return next((kind for kind, pattern in TYPES.items() if re.search(pattern, name)), "other")


def last_layers(patterns: Iterable[str]) -> int:
    """N of `last_layers: N`, when it stands among the patterns; else 0."""
    return max((int(found[1]) for p in patterns if (found := _LAST.fullmatch(p))), default=0)


def depth_of(name: str) -> int:
    """How far from the input a parameter is used first: a gradient comes down to the least depth
    that trains. 0 embeddings, 1 the layers in LOWER, 2 the others, 3 what follows them.
    """
    if f"/{LOWER}/" in name:
        return 1
    if "/blocks/" in name:
        return 2
    return 3 if re.search(r"^head/|/final_norm/", name) else 0


def last_stack(names: Iterable[str]) -> str:
    """Where the stack that the head reads has its layers: `decoder/blocks/`, or an encoder's."""
    decoder = any(name.startswith("decoder/") for name in names)
    return "decoder/blocks/" if decoder else "encoder/blocks/"


def matched(
    names: Iterable[str], patterns: Iterable[str], where: str = "trainable"
) -> dict[str, list[str]]:
    """Of each pattern the names that it means, in a tree split by its `last_layers`.

    Raises ConfigError, under the key `where`, for a pattern that matches nothing.
    """
    every, meant = list(names), {}
    for pattern in patterns:
        if _LAST.fullmatch(pattern):
            stack = last_stack(every)
            meant[pattern] = [name for name in every if name.startswith(stack)]
        else:
            meant[pattern] = found(every, pattern, where, WORDS)
    return meant


def found(
    names: Iterable[str], pattern: str, where: str, words: Mapping[str, str] | None = None
) -> list[str]:
    """The names in which a regular expression is found, or that of one of `words`.

    Raises ConfigError, with near names, when there is none.
    """
    every, words = list(names), words or {}
    try:
        search = re.compile(words.get(pattern, pattern)).search
    except re.error as error:
        raise ConfigError(where, f"{pattern!r} is not a regular expression: {error}") from None
    chosen = [name for name in every if search(whole(name))]
    if chosen:
        return chosen
    known = near(pattern, map(whole, every), words)
    hint = f"near are {known}" if known else f"names are like {', '.join(every[:3])}"
    hint = _WHY.get(pattern, hint) if words else hint
    raise ConfigError(where, f"{pattern!r} matches no parameter; {hint}")


def near(pattern: str, names: Iterable[str], words: Iterable[str]) -> str:
    """Up to three of `words` and pieces of names that look like a pattern; empty when none does."""
    pool: dict[str, None] = dict.fromkeys(words)
    for name in names:
        steps = name.split("/")
        ends = range(1, len(steps) + 1)
        pool |= {"/".join(steps[a:b]): None for b in ends for a in range(b)}
    plain = re.sub(r"[^\w/]", "", pattern)
    return ", ".join(difflib.get_close_matches(plain, list(pool), n=3, cutoff=0.65))
