"""What a model family is: a table of keys, a table of weights, and what no table can say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.core.errors import CheckpointError
from jaxlm.families.config import (
    NEUTRAL,
    Config,
    Fields,
    Key,
    build,
    read_keys,
    write_keys,
)
from jaxlm.families.heads import LM, head_of, named, read_scores, write_labels
from jaxlm.families.names import Shape, Weight, tied
from jaxlm.models.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """Everything about one model_type of Hugging Face."""

    model_type: str
    architecture: str
    """The class of transformers that has the language-model head."""
    keys: tuple[Key, ...]
    """Keys of config.json that are a field of the spec, both ways."""
    fields: Callable[[Config, Fields], Fields]
    """(config.json, the fields of `keys`) -> every other field that is not the spec's default."""
    others: Callable[[ModelSpec], dict[str, Any]]
    """The keys of config.json that `keys` lacks, of a spec."""
    weights: tuple[Weight, ...]
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors that hold no parameter: buffers that old versions saved."""
    neutral: frozenset[str] = frozenset()
    """Keys that change no logit in this family, beside those that do so in none."""
    prefix: str = "model."
    """What the tensors' names lack when the network was saved without its head."""
    classifiers: Mapping[str, str] = field(default_factory=dict)
    """Of other heads, by kind (see heads.py), the class of transformers."""
    more: Callable[[ModelSpec], tuple[Weight, ...]] = lambda _: ()
    """The weights that not every model of the family has under these names."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors that are a copy of another wherever the file or the table lacks one of both."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement): names that old versions gave."""

    def spec(self, values: Mapping[str, Any], where: str = "config.json") -> ModelSpec:
        """The filled spec of a config.json.

        Raises CheckpointError for the first key that is wrong, not supported or not known.
        """
        config = Config(values, where)
        known = read_keys(config, self.keys)
        fields = known | self.fields(config, known)
        if "structure" not in fields:  # of a decoder its class alone says what it scores
            fields |= read_scores(config, self.classifiers)
        spec = build(config, self.keys, fields)
        if not config.get("is_causal", True) and spec.structure != "encoder":
            raise config.error("is_causal", "is not supported: a decoder looks back alone here")
        config.check_read(NEUTRAL | self.neutral)
        return spec

    def table(self, spec: ModelSpec) -> tuple[Weight, ...]:
        """All weights of a spec, or those that it may have."""
        return self.weights + self.more(spec)

    def copied(self, spec: ModelSpec, shapes: Mapping[str, Shape]) -> dict[str, str]:
        """Tensors that a file may hold besides, and which other each must equal.

        shapes: of our leaves.
        """
        table = self.table(spec)
        used = {row.theirs for row in table if not shapes.keys().isdisjoint(row.leaves)}
        return tied(table, shapes) | {
            copy: original
            for copy, original in self.copies.items()
            if original in used and copy not in used
        }

    def class_of(self, spec: ModelSpec) -> str:
        """The class of transformers for a spec. Raises CheckpointError where it has none."""
        kind = head_of(spec)
        name = self.architecture if kind == LM else self.classifiers.get(kind)
        if not name:
            raise CheckpointError("export", f"{self.model_type} has no head for {kind}")
        return name

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """config.json of a filled spec, as both old and new versions of transformers read it.

        Without the weights' type; with no special ids, where transformers would put Llama's.
        """
        return {
            "architectures": [self.class_of(spec)],
            "model_type": self.model_type,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **write_keys(spec, self.keys),
            "initializer_range": spec.init_scale,
            **self.others(spec),
            **write_labels(named({}, spec)),
        }
