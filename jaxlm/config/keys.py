"""The keys that exist, with their documentation, read from the schema."""

import difflib
from typing import Any, get_args

from pydantic.fields import FieldInfo

from jaxlm.config.schema import RunConfig
from jaxlm.core.section import Section

ELSEWHERE = {
    "batch_size": "batch",
    "d_model": "model.embed",
    "epoch": "epochs",
    "eval": "evaluate",
    "grad_accum": "microbatches",
    "gradient_accumulation_steps": "microbatches",
    "hidden_size": "model.embed",
    "lr": "optimizer.learning_rate",
    "max_steps": "steps",
    "n_layer": "model.layers",
    "num_layers": "model.layers",
    "optim": "optimizer",
    "output_dir": "run_dir",
    "seq_len": "length",
    "vocab_size": "model.vocab",
    "warmup_steps": "optimizer.schedule.warmup",
}
"""What other trainers call our keys, for the did-you-mean."""


def sections(annotation: Any) -> list[type[Section]]:
    """The sections that a field of this type can hold; more than one for a choice by `type`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    found = [section for part in get_args(annotation) for section in sections(part)]
    return list(dict.fromkeys(found))


def documented(section: type[Section] = RunConfig, prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted key below a section. The choices of a union share their keys."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        below = sections(field.annotation)
        for part in below:
            found |= documented(part, f"{prefix}{name}.")
        if not below:
            found[prefix + name] = field
    return found


def choose(parts: list[type[Section]], values: Any) -> type[Section]:
    """Of the choices of a union, the one that `values` names by its `type`; else the first."""
    kind = values.get("type") if isinstance(values, dict) else None
    named = (part for part in parts if len(parts) > 1 and part.model_fields["type"].default == kind)
    return next(named, parts[0])


def suggestion(key: str, siblings: list[str]) -> str | None:
    """The key that was probably meant: a similar sibling, or one of that name elsewhere."""
    parent, _, name = key.rpartition(".")
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    if near := difflib.get_close_matches(name, siblings, n=1, cutoff=0.6):
        return f"{parent}.{near[0]}".lstrip(".")
    full = [key.split(".") for key in documented()]
    ends = {words[n - 1]: ".".join(words[:n]) for words in full for n in range(1, len(words) + 1)}
    near = difflib.get_close_matches(name, ends, n=1, cutoff=0.8)
    return ends[near[0]] if near and ends[near[0]] != key else None
