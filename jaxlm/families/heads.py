"""What a model's head is for, in the words of transformers: its class and its labels."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlm.families.config import Config, Fields
from jaxlm.families.names import Weight
from jaxlm.models.spec import ModelSpec

LM, SEQUENCE, TOKENS = "language modelling", "sequence classification", "token classification"
NONE = "no head"
"""Kinds of heads: a score for each id, for each label of a sequence, or of each of its tokens; and
an encoder without one, whose hidden states are what it is for."""


PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
"""What the scores of a sequence are for -> what problem_type of config.json calls it."""


class Labels(NamedTuple):
    """What a classifier's scores mean."""

    names: tuple[str, ...] = ()
    problem: str = ""
    """One of PROBLEMS; empty where each token is scored, or nobody said."""


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
    if names and {str(key) for key in names} != {str(i) for i in range(len(names))}:
        raise config.error("id2label", f"does not name 0 to {len(names) - 1}")
    if twice := [name for name, n in Counter(map(str, (names or {}).values())).items() if n > 1]:
        raise config.error("id2label", f"names {twice[0]} twice; name each label once")
    count = len(names) if names else config.get("num_labels", default)
    if count < 1:
        raise config.error("num_labels", "is not a number of labels")
    return {"head.labels": count, "head.bias": True}


def named(values: Mapping[str, Any], spec: ModelSpec) -> Labels:
    """What the scores of a classifier with this config.json mean: without names, what transformers
    calls them by itself.
    """
    given, count = values.get("id2label"), spec.head.labels
    given = given if isinstance(given, dict) else {}
    names = tuple(str(given.get(str(i), name)) for i, name in enumerate(_unnamed(count)))
    problems = {theirs: ours for ours, theirs in PROBLEMS.items()}
    return Labels(names, problems.get(str(values.get("problem_type")), ""))


def agree(one: Labels, other: Labels) -> bool:
    """Whether scores mean the same: labels that nobody named may be any, as the numbers of a
    regression may, and so may a problem that nobody named.
    """
    given = [each for each in (one, other) if each.names != _unnamed(len(each.names))]
    problems = {each.problem for each in given} - {""}
    alike = problems == {"regression"} or len({each.names for each in given}) < 2
    return alike and len(problems) < 2


def _unnamed(count: int) -> tuple[str, ...]:
    """What transformers calls labels by itself."""
    return tuple(f"LABEL_{i}" for i in range(count))


def write_labels(labels: Labels) -> dict[str, Any]:
    """id2label, label2id and problem_type of a classifier; nothing of another model."""
    names, problem = labels
    if not names:
        return {}
    ids = {str(i): name for i, name in enumerate(names)}
    found: dict[str, Any] = {"id2label": ids, "label2id": {n: i for i, n in enumerate(names)}}
    return found | ({"problem_type": PROBLEMS[problem]} if problem else {})


def labels(dense: str) -> tuple[Weight, ...]:
    """The scores of labels, by their name."""
    return (
        Weight("head/labels/kernel", f"{dense}.weight", "c e -> e c"),
        Weight("head/labels/bias", f"{dense}.bias"),
    )


def of_decoder(name: str) -> dict[str, str]:
    """The classes of transformers that classify with a decoder, by kind."""
    return {
        SEQUENCE: f"{name}ForSequenceClassification",
        TOKENS: f"{name}ForTokenClassification",
    }


def scored(sequence: str = "score", tokens: str = "score") -> Callable[[ModelSpec], Any]:
    """From a decoder's spec to the weights of its labels' scores, by their name of each kind."""
    dense = {SEQUENCE: sequence, TOKENS: tokens}
    return lambda spec: labels(dense[kind]) if (kind := head_of(spec)) in dense else ()


def read_scores(config: Config, classifiers: Mapping[str, str]) -> Fields:
    """The head of a decoder's classifier, if `architectures` names one of `classifiers`: scores of
    a sequence's last token without a bias, or of each with one.
    """
    given = config.any("architectures")
    kind = next((kind for kind, name in classifiers.items() if given == [name]), LM)
    if kind == LM:
        return {}
    pool = {"head.pool": "last", "head.bias": False} if kind == SEQUENCE else {}
    return read_labels(config) | pool
