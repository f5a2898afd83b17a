"""OLMo 2 (Walsh et al. 2024): norms of outputs, and of all queries and keys of a token together."""

from jaxlm.families import llama
from jaxlm.families.config import Config, Fields, Key
from jaxlm.families.family import Family
from jaxlm.families.heads import SEQUENCE, scored
from jaxlm.families.names import Weight

KEYS = (
    Key("vocab_size", "vocab", 50304),
    Key("hidden_size", "embed", 4096),
    Key("intermediate_size", "mlp", 11008),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads"),
    Key("head_dim", "head_dim"),
    Key("max_position_embeddings", "max_length", 2048),
    Key("rms_norm_eps", "norm.eps", 1e-5),
    Key("tie_word_embeddings", "tied", False),
)
NORMS = (
    Weight("decoder/blocks/attn_out_norm/scale", "model.layers.{}.post_attention_layernorm.weight"),
    Weight(
        "decoder/blocks/mlp_out_norm/scale", "model.layers.{}.post_feedforward_layernorm.weight"
    ),
)
WEIGHTS = (
    llama.EMBED,
    *NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    llama.OUT_BIAS,
    *llama.QK_NORMS,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
)


def fields(config: Config, known: Fields) -> Fields:
    """As in Llama, with the norms elsewhere."""
    return llama.fields(config, known) | {"norm.place": "after", "norm.qk": "all"}


FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    KEYS,
    fields,
    llama.others,
    WEIGHTS,
    llama.IGNORED,
    classifiers={SEQUENCE: "Olmo2ForSequenceClassification"},
    more=scored(),
)
