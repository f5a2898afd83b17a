"""How sentence-transformers says that a model embeds texts: modules.json and 1_Pooling."""

import json
from pathlib import Path
from typing import Any

from jaxlm.core.errors import DataError

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
FILES = MODULES, POOLING
"""In a folder that it wrote."""
MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
"""Its words for how states are pooled."""
KNOWN = "Transformer", "Pooling", "Normalize"
"""Those of its modules that `jaxlm embed` is."""


def pooling_of(folder: Path) -> str | None:
    """How a folder's states are pooled, if sentence-transformers wrote it.

    Raises DataError for a way that there is not here, and for modules that change a vector after
    it is pooled.
    """
    where = folder / POOLING
    if not where.is_file():
        return None
    if (folder / MODULES).is_file():
        _check_modules(folder / MODULES)
    said = _read(where, dict)
    chosen = [key for key in said if key.startswith("pooling_mode_") and said[key] is True]
    if len(chosen) == 1 and chosen[0] in MODES:
        return MODES[chosen[0]]
    asked = " and ".join(chosen) or "nothing"
    raise DataError(str(where), f"asks for {asked}; pooled here is by {', '.join(MODES)} alone")


def write_pooling(folder: Path, how: str, width: int) -> None:
    """Let sentence-transformers embed with the model in `folder` as `jaxlm embed` does: states of
    `width` numbers pooled by `how`, each vector made of length 1.
    """
    paths = {"Transformer": "", "Pooling": Path(POOLING).parent.name, "Normalize": "2_Normalize"}
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (kind, path) in enumerate(paths.items())
    ]
    modes = {name: how == ours for name, ours in MODES.items()}
    (folder / POOLING).parent.mkdir()
    for name, said in ((MODULES, modules), (POOLING, {"word_embedding_dimension": width, **modes})):
        (folder / name).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _check_modules(where: Path) -> None:
    kinds = [str(each.get("type", "")).rpartition(".")[2] for each in _read(where, list)]
    if other := [kind for kind in kinds if kind not in KNOWN]:
        what = f"has {other[0]}, which changes the vectors and is not read here"
        raise DataError(str(where), f"{what}; known are {', '.join(KNOWN)}")


def _read(where: Path, kind: type) -> Any:
    try:
        said = json.loads(where.read_bytes())
    except ValueError:
        said = None
    if not isinstance(said, kind):
        raise DataError(str(where), "is not the JSON that it should be; download it again")
    return said
