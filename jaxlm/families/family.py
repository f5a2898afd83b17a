"""What a model family is: a table of keys, a table of weights, and what no table can say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxlm.families.config import (
    NEUTRAL,
    Config,
    Fields,
    Key,
    build,
    read_keys,
    write_keys,
)
from jaxlm.families.names import Weight
from jaxlm.models.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """Everything about one model_type of Hugging Face."""

    model_type: str
    architecture: str
    """The class of transformers that has the head."""
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

    def spec(self, values: Mapping[str, Any], where: str = "config.json") -> ModelSpec:
        """The filled spec of a config.json.

        Raises CheckpointError for the first key that is wrong, not supported or not known.
        """
        config = Config(values, where)
        known = read_keys(config, self.keys)
        spec = build(config, self.keys, known | self.fields(config, known))
        config.check_read(NEUTRAL | self.neutral)
        return spec

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """config.json of a filled spec, as both old and new versions of transformers read it.

        Without the weights' type; with no special ids, where transformers would put Llama's.
        """
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **write_keys(spec, self.keys),
            "initializer_range": spec.init_scale,
            **self.others(spec),
        }
