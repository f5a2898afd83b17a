"""Phi-3 and Phi-4-mini (Abdin et al. 2024): Llama with fused projections and another long rope."""

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
    Key("vocab_size", "vocab", 32064),
    Key("hidden_size", "embed", 3072),
    Key("intermediate_size", "mlp", 8192),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads"),
    Key("head_dim", "head_dim"),
    Key("max_position_embeddings", "max_length", 4096),
    Key("rms_norm_eps", "norm.eps", 1e-5),
    Key("tie_word_embeddings", "tied", False),
)
ROPE = Dialect(
    share_key="partial_rotary_factor",
    original_key="original_max_position_embeddings",
    original=4096,
    kinds=("longrope",),
    renamed=("su", "yarn"),
)
WEIGHTS = (
    llama.EMBED,
    *llama.NORMS,
    Weight(
        tuple(f"decoder/blocks/attn/{part}/kernel" for part in "qkv"),
        "model.layers.{}.self_attn.qkv_proj.weight",
        "(h k)| e -> e h k",
    ),
    llama.OUT,
    Weight(
        ("decoder/blocks/mlp/gate/kernel", "decoder/blocks/mlp/up/kernel"),
        "model.layers.{}.mlp.gate_up_proj.weight",
        "f| e -> e f",
    ),
    llama.DOWN,
    llama.FINAL_NORM,
    llama.HEAD,
)
UNREAD = frozenset({"full_attn_mod", "interpolate_factor"})
"""Keys of Phi-4-mini's own code that transformers does not read."""


def fields(config: Config, known: Fields) -> Fields:
    """The window, the activation and the rope."""
    near = window(read_size(config, 0), [True])
    act = read_activation(config, "hidden_act", "silu")
    return near | act | read_rope(config, known["max_length"], ROPE)


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    drops = {"resid_pdrop": spec.dropout, "embd_pdrop": spec.dropout}
    return mistral.others(spec) | drops | write_rope(spec, ROPE)


FAMILY = Family(
    "phi3",
    "Phi3ForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    UNREAD,
    classifiers=of_decoder("Phi3"),
    more=scored(),
)
