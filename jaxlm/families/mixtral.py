"""Mixtral (Jiang et al. 2024): Mistral with sparse experts."""

from typing import Any

from jaxlm.families import llama, mistral
from jaxlm.families.config import Config, Fields, Key, read_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.names import Weight
from jaxlm.families.rope import Dialect, read_rope, write_rope
from jaxlm.families.windows import read_size, window
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 32000),
    Key("hidden_size", "embed", 4096),
    Key("intermediate_size", "mlp", 14336),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads", 8),
    Key("head_dim", "head_dim"),
    Key("num_local_experts", "experts.count", 8),
    Key("num_experts_per_tok", "experts.chosen", 2),
    Key("max_position_embeddings", "max_length", 131072),
    Key("rms_norm_eps", "norm.eps", 1e-5),
    Key("tie_word_embeddings", "tied", False),
)
ROPE = Dialect(theta=1e6)

_SPARSE = "model.layers.{}.block_sparse_moe"
EXPERTS = (
    Weight("decoder/blocks/experts/router/kernel", f"{_SPARSE}.gate.weight", "x e -> e x"),
    Weight("decoder/blocks/experts/gate/kernel", f"{_SPARSE}.experts.{{}}.w1.weight", "f e -> e f"),
    Weight("decoder/blocks/experts/up/kernel", f"{_SPARSE}.experts.{{}}.w3.weight", "f e -> e f"),
    Weight("decoder/blocks/experts/down/kernel", f"{_SPARSE}.experts.{{}}.w2.weight", "e f -> f e"),
)
WEIGHTS = (
    llama.EMBED,
    *llama.NORMS,
    *llama.ATTENTION,
    *EXPERTS,
    llama.FINAL_NORM,
    llama.HEAD,
)


def fields(config: Config, known: Fields) -> Fields:
    """The window, the activation and the rope; the chosen experts' weights sum to 1."""
    near = window(read_size(config, 0), [True])
    act = read_activation(config, "hidden_act", "silu")
    return near | act | read_rope(config, known["max_length"], ROPE)


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    return mistral.others(spec) | write_rope(spec, ROPE)


FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    classifiers=of_decoder("Mixtral"),
    more=scored(),
)
