"""What a model's head is for, in the words of transformers: its class and its labels."""

from collections.abc import Mapping
from typing import Any

from jaxlm.families.config import Config, Fields
from jaxlm.models.spec import ModelSpec

LM, SEQUENCE, TOKENS = "language modelling", "sequence classification", "token classification"
NONE = "no head"
"""Kinds of heads: a score for each id, for each label of a sequence, or of each of its tokens; and
an encoder without one, whose hidden states are what it is for."""


def head_of(spec: ModelSpec) -> str:
    """The kind of a spec's head."""
    if not spec.head.labels:
        bare = spec.structure == "encoder" and spec.head.transform == "none"
        return NONE if bare else LM
    return TOKENS if spec.head.pool == "none" else SEQUENCE


def read_head(config: Config, classes: Mapping[str, str]) -> str:
    """The kind of head that `architectures` asks for; absent is a language model's.

    classes: names of transformers -> kinds. Raises CheckpointError for another name.
    """
    given = config.any("architectures")
    if not given:
        return LM
    name = given[0] if isinstance(given, list) and len(given) == 1 else ""
    if not isinstance(name, str) or name not in classes:
        raise config.error("architectures", f"is not supported; known are {', '.join(classes)}")
    return classes[name]


def read_labels(config: Config, default: int = 2) -> Fields:
    """How many labels there are: num_labels, or as many as id2label names."""
    names = config.any("id2label")
    if names is not None and not (isinstance(names, dict) and names):
        raise config.error("id2label", "is not an object of names by id")
    count = len(names) if names else config.get("num_labels", default)
    if count < 1:
        raise config.error("num_labels", "is not a number of labels")
    return {"head.labels": count, "head.bias": True}


def write_labels(spec: ModelSpec) -> dict[str, Any]:
    """id2label and label2id of a classifier, with the names that transformers gives by itself."""
    names = {i: f"LABEL_{i}" for i in range(spec.head.labels)}
    if not names:
        return {}
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}}
